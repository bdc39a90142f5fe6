"""What the tests share: tiny models of unequal sizes, texts, caches, and the local copy of WikiText-2."""

from __future__ import annotations

import os

# One thread for OpenMP and torch, here and in the programs that tests start, unless a test asks for more: there is one
# worker process per processor. Set before anything loads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import hypothesis
import numpy as np
import pytest

from rnnlm import checkpoint, library
from rnnlm.checkpoint import Checkpoint, Weights
from rnnlm.data.text import EOS

# Background jobs of a script ignore Ctrl-C, and their children inherit that. Programs under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A make that a test starts is not to get the flags of the make that runs the tests.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rnnlm", "service")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))])
WIKITEXT = ROOT.parent / "shared" / "wikitext"

WORDS = "the a king queen sat stood walked here there with was old young and then".split()  # noqa: SIM905

# The profile of `make fuzz-python`.
hypothesis.settings.register_profile("long", max_examples=int(os.environ.get("FUZZ_EXAMPLES", 10_000)), deadline=None)

needs_wikitext = pytest.mark.skipif(not WIKITEXT.is_dir(), reason=f"the local copy of WikiText-2 is not at {WIKITEXT}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--moments", type=int, default=3, help="number of random moments at which each fault strikes")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number, unless they are short text: what packs files may put the time of day into them.

    The processes that share the tests must find the same names.
    """
    if isinstance(val, bytes) and not (len(val) <= 40 and all(32 <= byte < 127 or byte == 10 for byte in val)):
        return f"{len(val)} bytes"
    return None  # pytest's own name


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--moments")


def make_weights(vocab: int, embed: int, hidden: int, seed: int = 0, scale: float = 1.0) -> Weights:
    """Return random weights of standard deviation scale / sqrt(fan-in), at which float32 stays close to float64."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, fan_in: int = 1) -> np.ndarray:
        return (rng.standard_normal(shape) * scale / np.sqrt(fan_in)).astype(np.float32)

    return Weights(
        embeddings=normal(vocab, embed),
        Wxh=normal(embed, hidden, fan_in=embed),
        Whh=normal(hidden, hidden, fan_in=hidden),
        bh=normal(hidden, fan_in=hidden),
        Why=normal(hidden, vocab, fan_in=hidden),
        by=normal(vocab, fan_in=hidden),
    )


def make_checkpoint(vocab: int = 13, embed: int = 9, hidden: int = 6, seed: int = 0) -> Checkpoint:
    """Return a checkpoint with random weights and the words <EOS>, waa, wab, ... wzz, waaa, ..."""
    letters = itertools.chain.from_iterable(itertools.product(ascii_lowercase, repeat=n) for n in itertools.count(2))
    words = (EOS, *("w" + "".join(next(letters)) for _ in range(vocab - 1)))
    return Checkpoint(make_weights(vocab, embed, hidden, seed), words, "plain", "c", {}, [])


INSTRUCTION_SETS = {  # with the flags that /proc/cpuinfo shows on a processor that has them
    "amx": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512bf16": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx2": {"avx2", "fma"},
    "baseline": set(),
    "reference": set(),
}


# AddressSanitizer maps terabytes itself, and ends the process when an allocation fails.
no_sanitizer = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="limits memory, which AddressSanitizer exceeds"
)


def force_kernels(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the C library use the kernels of `isa` for this test, or skip the test if the processor lacks them."""
    library.library()  # which refuses to load when RNN_ISA is not to be had
    monkeypatch.setenv("RNN_ISA", isa)
    if library.kernel() != isa:
        flags = set(Path("/proc/cpuinfo").read_text().split())
        assert not INSTRUCTION_SETS[isa] <= flags, f"RNN_ISA={isa} was ignored"
        pytest.skip(f"this processor has no {isa}")


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return max |got - want| / max |want|: per tensor, since entries near zero have no useful error of their own."""
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-8))  # a tensor may be all zeros


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all worker processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Call make(path) in the first worker process that gets here; the others wait and use the same file."""
    import fcntl

    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def cache(common_folder: Path) -> None:
    """Cache tokens and vectors in a folder of this test run, in the programs that tests start as well."""
    os.environ["RNN_CACHE_DIR"] = str(common_folder / "cache")


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """Save the weights file of a tiny untrained model with the words waa, wab, ..."""
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(path, make_checkpoint(vocab=40, embed=9, hidden=12))
    return path


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def write_text(path: Path, sentences: int) -> Path:
    """Write sentences of 3 to 8 random WORDS."""
    rng = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(sentences)))
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "grammar.txt", sentences=600)
