"""The names of the tests themselves: the processes that share the tests must find the same ones."""

import gzip

import pytest


@pytest.mark.parametrize(
    ("content", "name"), [(gzip.compress(b""), "20 bytes"), (b"\x00\xff", "2 bytes"), (b"the 1 2", "the 1 2")]
)
def test_bytes_that_are_no_text_are_named_by_their_number(
    request: pytest.FixtureRequest, content: bytes, name: str
) -> None:
    assert request.node.name.partition("[")[2] == f"{name}-{name}]"
