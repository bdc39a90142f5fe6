"""The limits in Python are those of the C header."""

import re

from conftest import ROOT

from rnnlm import arrays


def test_the_limits_are_those_of_the_c_library() -> None:
    header = (ROOT / "csrc" / "rnnlib.h").read_text()
    defined = re.findall(r"^#define RNN_(MAX_\w+) (?:\(1 << (\d+)\)|(\d+))", header, re.MULTILINE)
    limits = {name: 1 << int(power) if power else int(number) for name, power, number in defined}
    ours = {name: value for name, value in vars(arrays).items() if name.startswith("MAX_")}
    assert len(ours) >= 4 and ours.items() <= limits.items()
