"""Check mutated weights files: `make fuzz-weights`, or `python tests/hard/fuzz_weights.py --files 100000`.

Each file is a valid one with one change (a field of its header, a length, bytes of a tensor, the end of the file), or
with several. It goes through the trial that every upload goes through (service/trial.py), which must refuse it with one
line or accept it; an accepted file must then generate words with finite probabilities. Nothing else may be raised, and
the memory of this process must stay flat.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent), str(Path(__file__).resolve().parent.parent)]

import numpy as np
from conftest import make_checkpoint
from weights_files import join, split

import rnn
from rnnlm import checkpoint
from rnnlm.language_model import Sampling
from service import trial
from service.engines import CEngine, Feed

MAX_GROWTH_BYTES = 8 << 20  # growth of this process's memory from a tenth of the files to the last
ODD_NUMBERS = (
    *(0, 1, -1, 2, 12, 13, 255, 2**16, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64),
    *(10**40, 10**400),
)
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS,
    *(None, True, False, "", "x", "F32", "F64", "U8", "I32", "BF16", "\0", "\u202e", "é" * 300, [], {}, [[]], 1.5),
    *([1], [-1], [0], [13, 9], [9, 13], [2**62, 4], [1] * 5, ["1"], {"a": 1}, float("nan"), float("inf"), -0.0),
)
ODD_FLOATS = (math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e30, 1e-45, -0.0, 1e19, 0.0)
ODD_BYTES = (b"\0", b"\n", b" ", b"\xff", b"\x7f", b"\xe2\x80\xae", b"\r", b"\x1b", b"<", b"\xc0\x80")


# ---- Mutations ------------------------------------------------------------------------------------------------------


def sound_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.safetensors"
        checkpoint.save(path, make_checkpoint(vocab=13, embed=9, hidden=6))
        return path.read_bytes()


def places(value: Any, *keys: Any) -> Iterator[tuple[Any, ...]]:
    """Yield every place in a JSON value, as the keys that lead to it."""
    yield keys
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], *keys, key)


def replaced(header: Any, keys: Sequence[Any], value: Any) -> Any:
    copy = json.loads(json.dumps(header))
    if not keys:
        return value
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return copy


def systematic(raw: bytes) -> Iterator[bytes]:
    """Replace each field of the header by each odd value, remove each, and try every length of file and header."""
    header, data = split(raw)
    for keys in places(header):
        for value in ODD_VALUES:
            yield join(replaced(header, keys, value), data)
        if keys:
            without = replaced(header, keys, None)
            inner = without
            for key in keys[:-1]:
                inner = inner[key]
            del inner[keys[-1]]
            yield join(without, data)
    for length in (*ODD_NUMBERS, *range(len(raw) + 10)):
        yield (length % 2**64).to_bytes(8, "little") + raw[8:]
    for end in range(len(raw)):
        yield raw[:end]
    for extra in (b"\0", b"x" * 100, raw):
        yield raw + extra


def rename_key(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    key = random.choice(list(header))
    header[random.choice([key.lower(), key + " ", "x" * random.choice([1, 1000]), "", "__metadata__", "../x"])] = (
        header.pop(key)
    )
    return join(header, data)


def swap_tensors(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    a, b = random.sample([key for key in header if key != "__metadata__"], 2)
    field = random.choice(["shape", "data_offsets", "dtype"])
    header[a][field], header[b][field] = header[b][field], header[a][field]
    return join(header, data)


def odd_field(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    keys = random.choice(list(places(header))[1:])
    return join(replaced(header, keys, random.choice(ODD_VALUES)), data)


def other_sizes(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    """Move one offset a little."""
    entry = header[random.choice([key for key in header if key != "__metadata__"])]
    entry["data_offsets"][random.randrange(2)] += random.choice([-8, -4, -1, 1, 4, 8, 64])
    return join(header, data)


def resized(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    """Write a consistent header for other sizes V, E and H."""
    v, e, h = (random.choice([1, 2, 5, 6, 9, 12, 13, 14, 40, 2**14, 2**14 + 1, 2**24]) for _ in range(3))
    shapes = {"embeddings": [v, e], "Wxh": [e, h], "Whh": [h, h], "bh": [h], "Why": [h, v], "by": [v]}
    position = 0
    for name, shape in (*shapes.items(), ("vocabulary", header["vocabulary"]["shape"])):
        end = position + math.prod(shape) * (1 if name == "vocabulary" else 4)
        header[name] = {**header[name], "shape": shape, "data_offsets": [position, end]}
        position = end
    room = min(position, 1 << 16)
    return join(header, (data * (room // len(data) + 1))[:room])


def odd_floats(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    """Replace one number of a tensor, or all of them."""
    name = random.choice(["embeddings", *checkpoint.PARAMETERS])
    begin, end = header[name]["data_offsets"]
    values = np.frombuffer(data[begin:end], np.float32).copy()
    if random.random() < 0.7:
        values[random.randrange(values.size)] = random.choice(ODD_FLOATS)
    else:
        values[:] = random.choice(ODD_FLOATS)
    return join(header, data[:begin] + values.tobytes() + data[end:])


def odd_words(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    """Replace bytes of the vocabulary; its length stays, or the header says the new one."""
    begin, end = header["vocabulary"]["data_offsets"]
    words = data[begin:end]
    at = random.randrange(len(words))
    odd = random.choice(ODD_BYTES)
    words = words[:at] + odd + words[at + len(odd) * random.randrange(2) :]
    header["vocabulary"] = {"dtype": "U8", "shape": [len(words)], "data_offsets": [begin, begin + len(words)]}
    return join(header, data[:begin] + words)


def flipped(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    raw = bytearray(join(header, data))
    for _ in range(random.choice([1, 1, 2, 8])):
        raw[random.randrange(len(raw) if random.random() < 0.5 else 900)] ^= 1 << random.randrange(8)
    return bytes(raw)


def spliced(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    raw = join(header, data)
    a, b, c = sorted(random.randrange(len(raw)) for _ in range(3))
    return random.choice([raw[:a] + raw[b:], raw[:b] + raw[a:], raw[:a] + raw[b:c] + raw[a:b] + raw[c:]])


def odd_text(header: dict[str, Any], data: bytes, random: random.Random) -> bytes:
    """Break the header's JSON: duplicate keys, nesting, endless numbers, other encodings."""
    text = json.dumps(header)
    at = random.randrange(len(text))
    piece = random.choice(
        ["[" * 2000, '{"a":' * 50, '"bh":1,', "1" * 5000, "\\ud800", "/*", "NaN", ",", '"', "}", "\0", "1e999", "-"]
    )
    return join((text[:at] + piece + text[at:]).encode(random.choice(["utf-8", "utf-16"])), data)


MUTATIONS: tuple[Callable[[dict[str, Any], bytes, random.Random], bytes], ...] = (
    *(rename_key, swap_tensors, odd_field, other_sizes, resized, odd_floats, odd_words, flipped, spliced, odd_text),
)


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` mutated files, each with the name of its mutation: systematic ones first, then random ones."""
    raw = sound_file()
    made = 0
    for mutated in systematic(raw):
        if made >= count // 2:
            break
        made += 1
        yield "systematic", mutated
    generator = random.Random(seed)
    for _ in range(made, count):
        header, data = split(raw)
        mutation = generator.choice(MUTATIONS)
        yield mutation.__name__, mutation(header, data, generator)


# ---- Refused or served ----------------------------------------------------------------------------------------------


def serves(path: Path) -> None:
    """Generate from an accepted file as the service does. Raises AssertionError."""
    source = checkpoint.load(path)
    model = rnn.RNN(source)
    engine = CEngine(model, 2)
    states: Any = [engine.begin(), engine.begin()]
    tokens = [model.vocabulary.eos] * 2
    for u in (0.1, 0.5, 0.999):
        feeds = [Feed(token, u, Sampling(temperature=t), 3, None) for token, t in zip(tokens, (0.0, 1.0), strict=True)]
        steps, states = engine.step(feeds, states)
        for step in steps:
            assert 0 <= step.token < len(model.vocabulary) and math.isfinite(step.logprob), step
            assert all(math.isfinite(logprob) for _, logprob in step.top), step
        tokens = [step.token for step in steps]
    assert all(word.isprintable() and word for word in model.vocabulary.words)


def judge(path: Path, raw: bytes, *backends: str) -> str:
    """Return "refused" or "accepted". Raises AssertionError for anything else."""
    path.write_bytes(raw)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = trial.main([str(path), *backends])
    if code == 2:
        line = said.getvalue()
        assert line.strip() and line.count("\n") == 1 and str(path) not in line and len(line) < 1000, line
        return "refused"
    assert code == 0, said.getvalue()
    serves(path)
    return "accepted"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz_weights.py", description="Check mutated weights files.")
    parser.add_argument("--files", type=int, default=100_000, help="number of files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random mutations (%(default)s)")
    options = parser.parse_args(arguments)
    verdicts: Counter[tuple[str, str]] = Counter()
    started, at_first = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        judge(Path(folder) / "sound.safetensors", sound_file(), "c", "torch")  # which takes its memory now
        for number, (kind, raw) in enumerate(files(options.files, options.seed)):
            # The torch model is slow and has no checks of its own: every 500th file is enough.
            path = Path(folder) / "mutated.safetensors"
            try:
                verdicts[kind, judge(path, raw, "c", *(("torch",) if number % 500 == 0 else ()))] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"mutated-{options.seed}-{number}.safetensors"
                kept.write_bytes(raw)
                print(f"file {number} ({kind}), kept as {kept}", file=sys.stderr)
                raise
            if number == options.files // 10:
                at_first = resident_bytes()
    growth = resident_bytes() - at_first
    for kind in sorted({kind for kind, _ in verdicts}):
        print(f"{kind:12} {verdicts[kind, 'refused']:8,} refused {verdicts[kind, 'accepted']:8,} accepted and served")
    total = sum(verdicts.values())
    print(f"{total:,} files in {time.monotonic() - started:.0f} s; memory grew by {growth / 2**20:.1f} MB")
    if growth > MAX_GROWTH_BYTES:
        print(f"more than the {MAX_GROWTH_BYTES / 2**20:.0f} MB allowed", file=sys.stderr)
    return int(growth > MAX_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
