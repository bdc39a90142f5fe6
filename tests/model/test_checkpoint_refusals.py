"""Files that are not weights files are refused with one line that says why."""

import copy
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import weights_files
from weights_files import (
    METADATA,
    NAMES,
    POSIX,
    WORDS,
    E,
    H,
    Header,
    assert_equal,
    join,
    make_checkpoint,
    put_words,
    refused,
    split,
)

from rnnlm import checkpoint
from rnnlm.checkpoint import CheckpointError, VocabularyError
from rnnlm.container import MAX_HEADER_BYTES
from rnnlm.errors import UserError
from rnnlm.training import state_file

path = weights_files.path  # a fixture


class Bomb:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "pickle.safetensors"
    path.write_bytes(pickle.dumps(Bomb(str(mark))))
    assert "is not a safetensors file" in refused(path)
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(str(mark))], dtype=object), allow_pickle=True)
    assert "is not a safetensors file" in refused(path)
    assert not mark.exists()


def test_an_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, Wxh=np.zeros((E, H)))
    path = tmp_path / "zip.safetensors"
    path.write_bytes(buffer.getvalue())
    assert "is not a safetensors file" in refused(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    assert re.search(r"there is no such file: train a model \(make train\)", refused(tmp_path / "no.safetensors"))
    assert "there is no such file" in refused(tmp_path / "no folder" / "no.safetensors")
    assert "there is no such file: train without --resume" in refused(tmp_path / "no.resume", state_file.load)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / ("x" * 300))
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in refused(tmp_path / "file" / "x.safetensors")


@POSIX
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is not a regular file" in refused(tmp_path / "pipe.safetensors")


def test_a_name_that_would_break_the_line_is_quoted() -> None:
    for name in ("a\0b", "a\nb", "a\x1b[2Jb"):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(name)
        assert str(caught.value).startswith(repr(name)) and str(caught.value).isprintable()


def test_a_name_without_its_suffix_is_recognized(path: Path) -> None:
    short = path.with_suffix("")
    assert refused(short) == f"{short}: there is no such file: do you mean {path}?"


@pytest.mark.parametrize("size", [8, 9, 100])
def test_a_short_file_is_refused(path: Path, size: int) -> None:
    header = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:size])
    said = (
        f"is cut short: {size} bytes, and its header takes {header:,}: train a model (make train), or use another file"
    )
    assert refused(path) == f"{path}: {said}"


@pytest.mark.parametrize(
    "content", [b"{", b"weights", b"# A title\n" * 99, b"\x89PNG\r\n\x1a\n{}", bytes(99), b"\n" * 9]
)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path) == (
        f"{path}: is not a safetensors file, as a weights file must be: train a model (make train), or use another file"
    )
    said = refused(path, state_file.load)
    assert said == f"{path}: is not a safetensors file, as a resume file must be: {state_file.AFRESH}"


def test_an_empty_file_is_refused(path: Path) -> None:
    path.write_bytes(b"")
    assert refused(path) == f"{path}: is empty: train a model (make train), or use another file"
    assert refused(path, state_file.load) == f"{path}: is empty: {state_file.AFRESH}"


def test_every_truncation_and_extension_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole[:-1])
    assert "tensors take" in refused(path)
    path.write_bytes(whole + b"\0")
    assert "tensors take" in refused(path)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path)


def test_the_header_has_a_limit(path: Path) -> None:
    header, data = split(path.read_bytes())
    raw = json.dumps(header).encode()
    path.write_bytes(join(raw + b" " * (MAX_HEADER_BYTES - len(raw)), data))
    assert_equal(checkpoint.load(path), make_checkpoint())
    path.write_bytes(join(raw + b" " * (MAX_HEADER_BYTES + 1 - len(raw)), data))
    assert f"its header takes 4,194,305 bytes, more than {MAX_HEADER_BYTES:,}" in refused(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "format is None"),
        (b'{"__metadata__": {}}', "format is None"),
        (b'{"__metadata__": null}', "an object of strings"),
        (b'{"__metadata__": {"format": 1}}', "an object of strings"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "'__metadata__' occurs twice"),
        (b'{"by": 1, "by": 2}', "'by' occurs twice"),
        (b'{"by": NaN}', "nan, which is not a finite number"),
        (b'{"by": -Infinity}', "-inf, which is not a finite number"),
        (b'{"by": 1e999}', "inf, which is not a finite number"),
        (b'{"by": ' + b"9" * 40 + b"}", "more than 128 bits"),
        (b'{"by": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"by": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"by": "\xff"}', "not UTF-8 at byte 8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"{'by': 1}", "not valid JSON"),
        (b"[" * 17 + b"]" * 17, "nested more than 16 deep"),
        (b"[" * 100_000, "nested more than 16 deep"),
        (b'{"a":' * 100_000, "nested more than 16 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 16 deep"),
        (json.dumps({f"t{i}": {} for i in range(257)}).encode(), "257 tensors, more than 256"),
    ],
)
def test_a_bad_header_is_refused(path: Path, raw: bytes, message: str) -> None:
    path.write_bytes(join(raw, b""))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "pt", "format is 'pt', not 'rnn-weights'"),
        ("format", "rnn-resume", "format is 'rnn-resume', not 'rnn-weights'"),
        ("format", None, "format is None"),
        ("version", "2", "version is '2'; this program reads '1'"),
        ("version", None, "version is None"),
        ("tokenizer", "bpe", "tokenizer is 'bpe', not one of wikitext, plain"),
        ("tokenizer", None, "lacks 'tokenizer'"),
        ("backend", "jax", "backend is 'jax', not one of c, torch"),
        ("backend", "\n" * 9999, "..., not one of c, torch"),
        ("backend", None, "lacks 'backend'"),
        ("config", "lr=1", "config is not valid JSON"),
        ("config", "[]", "config must be a JSON object"),
        ("config", '{"lr": NaN}', "config['lr'] is nan"),
        ("config", '{"a": 1, "a": 1}', "'a' occurs twice"),
        ("config", "[" * 99_999, "config is nested more than 16 deep"),
        ("config", '{"a":' * 17 + "1" + "}" * 17, "is nested more than 16 deep"),
        ("config", '{"a": "\\udc00"}', "half of a surrogate pair"),
        ("config", None, "lacks 'config'"),
        ("history", "{}", "history must be a JSON list of objects"),
        ("history", "[1]", "history must be a JSON list of objects"),
        ("history", '[{}, {"loss": 1e999}]', "history[1]['loss'] is inf"),
        ("history", "", "history is not valid JSON"),
        ("history", None, "lacks 'history'"),
    ],
)
def test_bad_metadata_is_refused(path: Path, key: str, value: str | None, message: str) -> None:
    header, data = split(path.read_bytes())
    if value is None:
        del header["__metadata__"][key]
    else:
        header["__metadata__"][key] = value
    path.write_bytes(join(header, data))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("tensor", "changes", "message"),
    [
        ("by", {"strides": [4]}, "must have dtype, shape and data_offsets"),
        ("by", {"dtype": "F16"}, "'by' has the type 'F16', not F32"),
        ("by", {"dtype": ["F32"]}, "'by' has the type ['F32']"),
        ("by", {"dtype": None}, "'by' has the type None"),
        ("by", {"dtype": "I32"}, "by must be an array of float32, not int32"),
        ("by", {"dtype": "F64"}, "'by' takes 56 bytes, but has"),
        ("by", {"shape": "7"}, "'by' has the shape '7'"),
        ("by", {"shape": 7}, "'by' has the shape 7"),
        ("by", {"shape": [7.0]}, "'by' has the shape [7.0]"),
        ("by", {"shape": [7, True]}, "'by' has the shape [7, True]"),
        ("by", {"shape": [-7]}, "'by' has the shape [-7]"),
        ("by", {"shape": [-7, -1]}, "'by' has the shape [-7, -1]"),
        ("by", {"shape": [0]}, "'by' has the shape [0]"),
        ("by", {"shape": [0, 2**62]}, "'by' has the shape [0, "),
        ("by", {"shape": [2**62, 4, 7]}, "bytes, but has"),  # 2**66 * 7, which is 0 if sizes wrap at 64 bits
        ("by", {"shape": [7, 1, 1, 1, 1]}, "not up to 4 sizes"),
        ("by", {"shape": [1] * 9999}, "not up to 4 sizes"),
        ("by", {"shape": [8]}, "'by' takes 32 bytes, but has"),
        ("by", {"shape": []}, "'by' takes 4 bytes, but has"),
        ("by", {"shape": [1, 7]}, "by has shape [1, 7], expected [7]"),
        ("bh", {"shape": [3, 1]}, "embeddings must be (V, E) and bh (H)"),
        ("embeddings", {"shape": [35]}, "embeddings must be (V, E) and bh (H)"),
        ("embeddings", {"shape": [5, 7]}, "Wxh has shape [5, 3], expected [7, 3]"),
        ("Wxh", {"shape": [3, 5]}, "Wxh has shape [3, 5], expected [5, 3]"),
        ("Whh", {"shape": [9]}, "Whh has shape [9], expected [3, 3]"),
        ("Why", {"shape": [7, 3]}, "Why has shape [7, 3], expected [3, 7]"),
        ("vocabulary", {"shape": [7, 5]}, "one row of uint8, not uint8 [7, 5]"),
        ("by", {"data_offsets": None}, "'by' has the bytes None"),
        ("by", {"data_offsets": [0]}, "'by' has the bytes [0]"),
        ("by", {"data_offsets": [0, 28, 28]}, "'by' has the bytes [0, 28, 28]"),
        ("by", {"data_offsets": [0.0, 28.0]}, "'by' has the bytes [0.0, 28.0]"),
        ("by", {"data_offsets": [-28, 0]}, "'by' has the bytes [-28, 0]"),
        ("by", {"data_offsets": [28, 0]}, "'by' takes 28 bytes, but has [28, 0]"),
        ("by", {"data_offsets": [0, 28]}, "starts at byte"),  # overlaps the embeddings
        ("by", {"data_offsets": [2**63, 2**63 + 28]}, "starts at byte"),
        ("by", {"data_offsets": [2**127, 2**127 + 28]}, "starts at byte"),
    ],
)
def test_a_bad_tensor_is_refused(path: Path, tensor: str, changes: Header, message: str) -> None:
    header, data = split(path.read_bytes())
    header[tensor] |= changes
    path.write_bytes(join(header, data))
    assert message in refused(path)


@pytest.mark.parametrize("entry", [None, [], "F32", {}, {"dtype": "F32"}])
def test_a_bad_entry_is_refused(path: Path, entry: object) -> None:
    header, data = split(path.read_bytes())
    header["by"] = entry
    path.write_bytes(join(header, data))
    assert "'by' must have dtype, shape and data_offsets" in refused(path)


def test_holes_overlaps_and_strangers_are_refused(path: Path) -> None:
    good, data = split(path.read_bytes())

    def message(change: Callable[[Header], object]) -> str:
        header = copy.deepcopy(good)
        change(header)
        path.write_bytes(join(header, data))
        return refused(path)

    assert "'Why' starts at byte" in message(lambda header: header.pop("bh"))
    assert "its tensors take" in message(lambda header: header.pop("vocabulary"))
    # the same bytes under two names; the file keeps its length
    assert "starts at byte" in message(lambda header: header.update(twin=header["embeddings"]))
    assert "format is None" in message(lambda header: header.pop("__metadata__"))
    assert "['by'] missing, ['b2'] unknown" in message(lambda header: header.update(b2=header.pop("by")))
    assert "['Wxh'] missing, ['wxh'] unknown" in message(lambda header: header.update(wxh=header.pop("Wxh")))
    end = max(entry["data_offsets"][1] for name, entry in good.items() if name in (*NAMES, "vocabulary"))
    data += bytes(4)
    extra = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    assert "[] missing, ['extra'] unknown" in message(lambda header: header.update(extra=extra))


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("Why", np.float64, "Why must be an array of float32, not float64"),
        ("Why", np.float16, "'Why' has the type 'F16', not F32, F64, I32, I64, U8"),
        ("vocabulary", np.float32, "one row of uint8, not float32 [35]"),
    ],
)
def test_other_types_are_refused(path: Path, name: str, dtype: type, message: str) -> None:
    tensors = safetensors.numpy.load_file(path)
    tensors[name] = tensors[name].astype(dtype)
    safetensors.numpy.save_file(tensors, path, METADATA)
    assert message in refused(path)


# ---- The vocabulary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"a\nb\nc\nd\ne\nf\ng", "lacks <EOS>"),
        (b"a\nb\nc\nd\ne\nf\n<eos>", "lacks <EOS>"),
        (b"a\nb\nc\nd\ne\na\n<EOS>", "names 1 words more than once"),
        (b"a\nb\nc\nd\ne\n\n<EOS>", "has an empty word"),
        (b"a\nb\nc\nd\ne\n<EOS>\n", "has an empty word"),
        (b"a\nb\nc\nd\ne\n<EOS>", "has 6 words, but there are embeddings for 7"),
        (b"a\nb\nc\nd\ne\nf\ng\n<EOS>", "has 8 words, but there are embeddings for 7"),
        (b"\n" * 99_999, "has 100,000 words, but there are embeddings for 7"),
        (b"a\nb\nc\nd\ne\n\xff\n<EOS>", "not UTF-8 at byte 10"),
        (b"a\nb\nc\nd\ne\n\xed\xa0\x80\n<EOS>", "not UTF-8 at byte 10"),
        (b"a\nb\nc\nd\ne\nf g\n<EOS>", "word 'f g' has a space"),
        (b"a\nb\nc\nd\ne\nf\tg\n<EOS>", r"word 'f\tg' has a space or an unprintable character"),
        (b"a\r\nb\nc\nd\ne\nf\n<EOS>", r"word 'a\r' has a space or an unprintable character"),
        (b"a\nb\nc\nd\ne\n\x1b[2J\n<EOS>", r"word '\x1b[2J' has a space or an unprintable character"),
        (b"a\nb\nc\nd\ne\n\0\n<EOS>", r"word '\x00' has a space or an unprintable character"),
        ("a\nb\nc\nd\ne\n\N{RIGHT-TO-LEFT OVERRIDE}\n<EOS>".encode(), r"word '\u202e' has a space or"),
        (b"a\nb\nc\nd\ne\n" + b"f" * 1025 + b"\n<EOS>", "has 1,025 characters, more than 1,024"),
        (b"f" * ((8 << 20) + 1), "takes 8,388,609 bytes, more than 8,388,608"),
    ],
)
def test_a_bad_vocabulary_is_refused(path: Path, words: bytes, message: str) -> None:
    put_words(path, words)
    assert message in refused(path)


def test_the_longest_word_is_allowed(path: Path) -> None:
    put_words(path, b"a\nb\nc\nd\ne\n" + b"f" * 1024 + b"\n<EOS>")
    assert checkpoint.load(path).vocabulary[5] == "f" * 1024


def test_check_vocabulary_is_a_user_error_before_training() -> None:
    checkpoint.check_vocabulary(WORDS)
    with pytest.raises(VocabularyError, match="1,025 characters, more than 1,024: take it out") as caught:
        checkpoint.check_vocabulary(["<EOS>", "f" * 1025])
    assert isinstance(caught.value, UserError) and len(str(caught.value)) < 300
    with pytest.raises(VocabularyError, match="has 0 words"):
        checkpoint.check_vocabulary([])
    many = ["<EOS>", *(f"{i:0>999}" for i in range(8_500))]
    with pytest.raises(VocabularyError, match="bytes, more than 8,388,608: cut rare words"):
        checkpoint.check_vocabulary(many)
