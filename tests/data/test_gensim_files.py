"""gensim's own files: the rows are those that gensim reads, and nothing that a file names is ever run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gensim
import numpy as np
import pytest
from gensim.models import Doc2Vec, FastText, KeyedVectors, Word2Vec
from gensim.models.doc2vec import TaggedDocument
from gensim.models.poincare import PoincareKeyedVectors
from running import options, refused, run

from rnnlm.data.vector_files import EmbeddingsError, read_vectors

GENSIM_DATA = Path(gensim.__file__).parent / "test" / "test_data"
SENTENCES = [["the", "king", "Größe", "日本", "a"] * 4] * 5
ASKED = ["king", "queen", "日本", "the"]
SMALL = {"vector_size": 5, "min_count": 1, "workers": 1, "epochs": 1}
MODELS: dict[str, Callable[[], Any]] = {
    "negative": lambda: Word2Vec(SENTENCES, **SMALL),
    "hierarchical": lambda: Word2Vec(SENTENCES, hs=1, negative=0, **SMALL),
    "fastText": lambda: FastText(SENTENCES, bucket=50, **SMALL),
    "fastText-words": lambda: FastText(SENTENCES, max_n=0, **SMALL),
    "doc2vec": lambda: Doc2Vec([TaggedDocument(words, [i]) for i, words in enumerate(SENTENCES)], **SMALL),
}


def same_as_gensim(path: Path, asked: list[str]) -> None:
    want = KeyedVectors.load(str(path), mmap="r")
    want = getattr(want, "wv", want)
    vectors, found = read_vectors(path, asked)
    assert found.tolist() == [word in want.key_to_index for word in asked]
    assert vectors.dtype == np.float32 and vectors.flags.c_contiguous and vectors.flags.writeable
    for vector, word in zip(vectors, asked, strict=True):
        np.testing.assert_array_equal(vector, want[word] if word in want.key_to_index else 0 * vector)


# ---- What gensim wrote -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["model", "wv"])
@pytest.mark.parametrize("name", MODELS)
def test_what_this_gensim_saves(tmp_path: Path, name: str, part: str) -> None:
    assert gensim.__version__.startswith("4.4."), "ft_ngram_hashes and the classes of a file: look at them again"
    model = MODELS[name]()
    saved = model if part == "model" else model.wv
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for limit in (0, 10**9):  # large arrays in files of their own, or in the pickle
            path = tmp_path / f"{protocol}-{limit}.{part}"
            saved.save(str(path), sep_limit=limit, pickle_protocol=protocol)
            same_as_gensim(path, ASKED)


def test_a_model_that_was_loaded_and_saved_again(tmp_path: Path) -> None:
    MODELS["negative"]().save(str(tmp_path / "first.model"), sep_limit=0)
    model = Word2Vec.load(str(tmp_path / "first.model"), mmap="r")
    model.random = np.random.default_rng(7)  # as gensim does for the models of versions that saved none
    model.save(str(tmp_path / "again.model"))
    same_as_gensim(tmp_path / "again.model", ASKED)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_words_and_numbers_of_other_types(tmp_path: Path, dtype: type) -> None:
    vectors = PoincareKeyedVectors(3, 0)
    vectors.vectors = vectors.vectors.astype(dtype)
    vectors.add_vectors(np.array(["a", "king"]), np.ones((2, 3), dtype=dtype))  # numpy.str_
    vectors.save(str(tmp_path / "v.kv"))
    same_as_gensim(tmp_path / "v.kv", ["king", "b"])


@pytest.mark.parametrize(
    "name",
    [
        "compatible-hash-true.model",
        "model-from-gensim-3.8.0.w2v",
        "old_keyedvectors_320.dat",
        "old_w2v_models/w2v_0.13.4.mdl",
        "old_w2v_models/w2v_1.0.0.mdl",
        "old_w2v_models/w2v_2.3.0.mdl",
        "old_w2v_models/w2v_3.2.0.mdl",
        "old_w2v_models/w2v_3.4.0.mdl",
        "word2vec_3.3",
        "word2vec_old",
        "word2vec_old_sep",
    ],
)
def test_the_models_that_gensim_tests_itself_with(name: str) -> None:
    path = GENSIM_DATA / name
    loaded = KeyedVectors.load(str(path))
    words = getattr(loaded, "wv", loaded).index_to_key
    assert len(words) > 1
    same_as_gensim(path, [*words[:200], "no such word"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lda_3_0_1_model", "is refused: it names 'gensim.models.ldamodel.LdaModel'"),
        ("poincare_test_3.4.0", "is refused: it names 'gensim.models.poincare.PoincareModel'"),
        ("lee_fasttext", "is refused: it names 'gensim.models.wrappers.fasttext.FastText'"),
        ("old_d2v_models/d2v_3.4.0.mdl", "is refused: it names 'gensim.models.doc2vec.Doc2Vec"),
        ("w2v-lee-v0.12.0", "holds no KeyedVectors, but a Word2Vec"),
        ("testcorpus.mm.index", "holds no KeyedVectors, but a list"),
    ],
)
def test_files_of_gensim_without_word_vectors(name: str, message: str) -> None:
    refused_with(GENSIM_DATA / name, message)


# ---- What would run --------------------------------------------------------------------------------------------------


def refused_with(path: Path, message: str) -> None:
    with pytest.raises(EmbeddingsError, match=message) as caught:
        read_vectors(path, ASKED)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 400 + len(str(path))


# A pickle is a program for a stack machine; these write parts of one.


def text(value: str) -> bytes:
    return b"V" + value.encode() + b"\n"


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def saved(module: str, name: str, **state: bytes) -> bytes:
    """An object of a class, with `state` as its attributes."""
    items = b"".join(text(key) + value for key, value in state.items())
    return named(module, name) + b")\x81}(" + items + b"ub"


def keyed(**state: bytes) -> bytes:
    return saved("gensim.models.keyedvectors", "KeyedVectors", **state)


def payload(name: str, marker: Path) -> bytes:
    make = text(str(marker))
    imported_os = call(named("builtins", "__import__"), text("os"))
    a_class = named("gensim.models.keyedvectors", "KeyedVectors")
    return {
        "os.mkdir": call(named("os", "mkdir"), make),
        "os.system": call(named("posix", "system"), text(f"mkdir {marker}")),
        "exec": call(named("builtins", "exec"), text(f"import os; os.mkdir({str(marker)!r})")),
        "eval of Python 2": call(named("__builtin__", "eval"), text(f"__import__('os').mkdir({str(marker)!r})")),
        "getattr": call(call(named("builtins", "getattr"), imported_os, text("mkdir")), make),
        "attrgetter": call(call(call(named("operator", "attrgetter"), text("mkdir")), imported_os), make),
        "a name with dots": call(named("gensim.utils", "os.mkdir"), make),
        "the old way": b"(" + make + b"ios\nmkdir\n",
        "the other old way": b"(" + named("os", "mkdir") + make + b"o",
        "a method of an accepted class": call(named("gensim.models.keyedvectors", "KeyedVectors.load"), make),
        "another function of gensim": call(named("gensim.utils", "unpickle"), make),
        "another function of NumPy": call(named("numpy", "load"), make, text("r"), b"\x88"),
        "another function of NumPy's core": call(named("numpy.core.multiarray", "fromfile"), make),
        "the pickle module": call(named("pickle", "loads"), make),
        "partial": call(call(named("functools", "partial"), named("os", "mkdir"), make)),
        "a reconstructor": call(named("copyreg", "_reconstructor"), a_class, named("builtins", "object"), b"N"),
        "a registered extension": b"\x82\x01",
        "a persistent id": make + b"Q",
        "the state of a class": a_class + b"}(" + text("load") + named("os", "mkdir") + b"ub",
    }[name]


RUN = ["os.mkdir", "os.system", "exec", "getattr", "attrgetter", "a name with dots"]
RUN += ["the old way", "the other old way", "partial"]
OTHERS = [
    "eval of Python 2",
    "a method of an accepted class",
    "another function of gensim",
    "another function of NumPy",
]
OTHERS += ["another function of NumPy's core", "the pickle module", "a reconstructor", "a registered extension"]
OTHERS += ["a persistent id", "the state of a class"]

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "the file": lambda part: part,
    "an attribute": lambda part: keyed(vectors=part),
    "a key": lambda part: keyed(key_to_index=b"}(" + part + b"K\x00u"),
    "a model's vectors": lambda part: saved("gensim.models.word2vec", "Word2Vec", wv=keyed(key_to_index=part)),
    "an array": lambda part: keyed(
        vectors=call(named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"), part)
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", RUN + OTHERS)
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, name: str, place: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "v.kv"
    raw = b"\x80\x04" + PLACES[place](payload(name, marker)) + b"."
    path.write_bytes(raw)
    refused_with(path, "is refused: it names|is damaged: ")
    assert not marker.exists()
    if name in RUN and place == "the file":  # Python's own unpickler falls for it
        pickle.loads(raw)
        assert marker.is_dir()


@pytest.mark.parametrize("function", ["os.mkdir", "builtins.getattr", "gensim.utils.os.mkdir"])
def test_what_is_refused_is_named(tmp_path: Path, function: str) -> None:
    module, _, name = function.partition(".")
    if module == "gensim":
        module, name = "gensim.utils", "os.mkdir"
    path = tmp_path / "v.kv"
    path.write_bytes(b"\x80\x04" + named(module, name) + b".")
    refused_with(path, rf"^'.*v\.kv' is refused: it names '{function}', which is no part .*save_word2vec_format$")
    path.write_bytes(
        b"\x80\x02c" + b"x" * 5000 + b"\nA\x1b[2J\n."
    )  # a name that is long, and one that a terminal obeys
    refused_with(path, "is refused: it names 'xxxx")
    path.write_bytes(b"\x80\x02cx\nA\x1b[2J\n.")
    refused_with(path, r"is refused: it names 'x\.A\\x1b\[2J'")


def test_attributes_are_data_whatever_their_names(tmp_path: Path) -> None:
    path = tmp_path / "v.kv"
    names = ("__class__", "__setstate__", "__reduce__", "__dict__", "_load_specials", "key_to_index")
    twice = keyed(**{name: named("gensim.models.word2vec", "Word2Vec") for name in names}) + b"}b"
    path.write_bytes(b"\x80\x04" + twice + b".")
    refused_with(path, "is damaged: its KeyedVectors have no table of words")


class MakeFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("model", [False, True])
def test_files_of_arrays_hold_numbers_only(tmp_path: Path, model: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "v.kv"
    vectors = MODELS["negative"]()
    (vectors if model else vectors.wv).save(str(path), sep_limit=0)
    beside = tmp_path / ("v.kv.wv.vectors.npy" if model else "v.kv.vectors.npy")
    assert beside.is_file()
    np.save(beside, np.array([[MakeFolder(marker)]], dtype=object), allow_pickle=True)
    refused_with(path, rf"has a damaged file beside it, '{beside.name}': .*Python objects")
    beside.write_bytes(pickle.dumps(MakeFolder(marker)))
    refused_with(path, "has a damaged file beside it")
    with beside.open("wb") as file:
        np.savez(file, val=np.ones((5, 5)))
    refused_with(path, "has a damaged file beside it")
    for content in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((\n"):
        beside.write_bytes(content)
        refused_with(path, "has a damaged file beside it")
    np.save(beside, np.ones((5, 5), dtype=np.complex64))
    refused_with(path, "holds no table of numbers as its vectors")
    np.save(beside, np.ones((5, 5), dtype=np.float32))
    beside.write_bytes(beside.read_bytes()[:-4])
    refused_with(path, "has a damaged file beside it")
    beside.unlink()
    refused_with(path, rf"needs '{beside.name}' beside it: No such file or directory")
    assert not marker.exists()


def array(code: str, shape: bytes, data: bytes, order: str = "<") -> bytes:
    """An array with the dtype `code`, as NumPy pickles it."""
    state = b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    dtype = call(named("numpy", "dtype"), text(code), b"\x89", b"\x88") + state + b"b"
    empty = call(named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"), b"(K\x00t", b"C\x01b")
    return empty + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


IDS = b"}(" + text("king") + b"K\x00u"
NUMBERS = b"C\x08" + np.array([1, 2], dtype="<f4").tobytes()


def test_an_array_built_from_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "v.kv"
    path.write_bytes(b"\x80\x04" + keyed(key_to_index=IDS, vectors=array("f4", b"(K\x01K\x02t", NUMBERS)) + b".")
    vectors, _ = read_vectors(path, ["king"])
    assert vectors.tolist() == [[1, 2]] and pickle.loads(path.read_bytes()).vectors.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (array("O8", b"(K\x01K\x01t", b"](K\x01e"), "an array of something other than numbers"),  # objects
        (array("O8", b"(K\x01K\x01t", NUMBERS, "|"), "other than numbers: 'O8'"),  # addresses of objects
        (array("V8", b"(K\x01K\x01t", NUMBERS, "|"), "other than numbers: 'V8'"),
        (array("f4,O8", b"(K\x01K\x01t", NUMBERS), "other than numbers: 'f4,O8'"),
        (array("f4", b"(K\x01K\x02t", NUMBERS, "<f4,O8,"), "other than numbers"),
        (array("f4", b"(K\x09K\x02t", NUMBERS), "is damaged: 'cannot reshape"),
        (array("f4", b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", NUMBERS), "is damaged: "),
        (array("f4", b"(" + text("x") + b"K\x02t", NUMBERS), "is damaged: "),
        (array("f4", b"(K\x02t", NUMBERS), "holds no table of numbers as its vectors"),
        (array("f8", b"(K\x01K\x01t", b"C\x05king!"), "is damaged: "),
        (array("f4", b"(K\x00K\x02t", b"C\x00"), "is damaged: "),
        (array("f4", b"N", b"N"), "other than numbers"),
        (b"K\x07", "holds no table of numbers as its vectors"),
        (b"N", "holds no table of numbers as its vectors"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, vectors: bytes, message: str) -> None:
    path = tmp_path / "v.kv"
    path.write_bytes(b"\x80\x04" + keyed(key_to_index=IDS, vectors=vectors) + b".")
    refused_with(path, message)


@pytest.mark.parametrize("row", [b"K\x01", b"J\xfe\xff\xff\xff", b"\x8a\x09" + b"\x7f" * 9, b"N", b"G?\xf0" + bytes(6)])
def test_rows_that_are_not_there(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "v.kv"
    ids, vectors = b"}(" + text("king") + row + b"u", array("f4", b"(K\x01K\x02t", NUMBERS)
    path.write_bytes(b"\x80\x04" + keyed(key_to_index=ids, vectors=vectors) + b".")
    refused_with(path, "is damaged: it has 1 vectors, and a word in row 1|is damaged: the row of 'king' is ")


@pytest.mark.parametrize(
    ("name", "value"), [("bucket", 49), ("bucket", -1), ("min_n", None), ("compatible_hash", False)]
)
def test_ngrams_that_do_not_fit(tmp_path: Path, name: str, value: object) -> None:
    vectors, path = MODELS["fastText"]().wv, tmp_path / "v.kv"
    setattr(vectors, name, value)
    vectors.save(str(path))
    refused_with(path, "is damaged: its n-grams are|is a fastText model of a version before gensim 3.8")


def test_a_pickle_that_is_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "v.kv"
    MODELS["negative"]().wv.save(str(path))
    content = path.read_bytes()
    for kept in range(2, len(content), 7):
        path.write_bytes(content[:kept])
        refused_with(path, "is damaged: ")


def test_the_trainer_refuses_it_in_one_line(tmp_path: Path, text: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "v.kv"
    path.write_bytes(pickle.dumps(MakeFolder(marker)))
    result = run("c", *options(text, tmp_path / "model", embeddings=path))
    refused(result, 2, "v.kv' is refused: it names 'posix.mkdir'")
    assert not marker.exists()
