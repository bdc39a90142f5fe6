"""The C library on other systems: `make test-windows`, `make test-arm`, `make test-macos`.

The library is cross-compiled. Windows programs run under wine, arm64 programs under qemu. If a compiler or an emulator
is missing, its tests are skipped and name the Debian package.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from rnnlm import library

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # between the numbers of two systems; the tokens must be equal
ISAS = ("amx", "avx512bf16", "avx512", "avx2", "baseline", "reference")


@dataclass(frozen=True)
class Platform:
    """Another system. tools: the programs it needs, and the Debian package of each."""

    name: str
    options: tuple[str, ...]
    run: tuple[str, ...]
    isas: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]

    def make(self, target: str, **environment: str) -> str:
        """Return what `make TARGET` prints for this platform."""
        for tool, package in self.tools:
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is missing: apt-get install {package}")
        run = [f"RUN={shlex.join(self.run)}"] if self.run else []
        return make(target, *self.options, *run, **environment)


WINE = "/usr/lib/wine/wine64"  # called directly: Debian's wrapper asks for a display
WINDOWS = Platform(
    "windows",
    ("CC=x86_64-w64-mingw32-gcc",),
    (WINE,),
    ISAS,
    (("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64"), (WINE, "wine64")),
)
QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
ARM_TOOLS = (("qemu-aarch64", "qemu-user"), ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"))
ARM = Platform(
    "arm-gcc",
    ("CC=aarch64-linux-gnu-gcc", "LIBRARY=build/arm-gcc/rnnlib.so"),
    QEMU,
    ("baseline", "reference"),
    ARM_TOOLS,
)
ARM_CLANG = Platform(
    "arm-clang",
    ("CC=clang", "TARGET=aarch64-linux-gnu", "OMP=0", "LIBRARY=build/arm-clang/rnnlib.so"),
    QEMU,
    ("baseline", "reference"),
    (("clang", "clang"), *ARM_TOOLS),
)
HERE = Platform("here", ("LIBRARY=build/here/rnnlib.so",), (), ISAS, (("gcc", "gcc"),))
FOREIGN = (WINDOWS, ARM, ARM_CLANG)


def make(*arguments: str, **environment: str) -> str:
    wine = {"WINEPREFIX": str(ROOT / "build" / "wine"), "WINEDEBUG": "-all"}
    command = ["make", "--silent", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | wine | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@functools.cache
def fixed_run(platform: Platform, isa: str) -> dict[str, float]:
    """Return the results of the fixed training run, {name: number}."""
    pairs = (line.split() for line in platform.make("fixed-run", RNN_ISA=isa).splitlines())
    return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize("platform", FOREIGN, ids=lambda platform: platform.name)
def test_the_c_tests_pass(platform: Platform) -> None:
    said = platform.make("test-c")
    runs = [*platform.isas, "amx"] if "amx" in platform.isas else list(platform.isas)  # the last one on emulated tiles
    assert re.findall(r"RNN_ISA=(\w+)", said) == runs
    assert len(re.findall(r"^\d+ passed, 0 failed$", said, re.MULTILINE)) == len(runs)


@pytest.mark.parametrize(
    ("platform", "isa"),
    [(platform, isa) for platform in FOREIGN for isa in platform.isas],
    ids=lambda value: getattr(value, "name", value),
)
def test_training_and_generation_come_to_the_same(platform: Platform, isa: str) -> None:
    there, here = fixed_run(platform, isa), fixed_run(HERE, isa)
    assert there.keys() == here.keys() and len(here) > 500
    assert here["loss"] < here["loss1"]  # it learns
    for name, value in here.items():
        if ".token" in name:
            assert there[name] == value, name
        else:
            assert there[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name


# ---- CFLAGS that name a processor ------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is missing")
@pytest.mark.parametrize("processor", ["x86-64", "sandybridge", "bdver2", "haswell", "skylake-avx512"])
def test_the_kernels_fit_the_extensions_of_a_processor(processor: str) -> None:
    """-march=native on a processor with AVX, or FMA too, but without AVX2: LANES is 4, and vectors of 8 do not fit."""
    if "x86_64" not in subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("gcc compiles for another kind of processor")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-DRNN_ISA=baseline", f"-march={processor}"]
    done = subprocess.run(["gcc", *flags, ROOT / "csrc" / "kernels.c"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- The DLL ---------------------------------------------------------------------------------------------------------

SYSTEM_DLLS = {"kernel32.dll", "msvcrt.dll"}  # every Windows has both


@pytest.fixture(scope="module")
def dll(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("x86_64-w64-mingw32-gcc") is None:
        pytest.skip("x86_64-w64-mingw32-gcc is missing: apt-get install gcc-mingw-w64-x86-64")
    make("dll")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.platform", "win32")
        patch.delenv("RNNLIB_PATH", raising=False)
        return library.library_path()  # where a program on Windows looks


def objdump(*arguments: str | Path) -> str:
    command = ["x86_64-w64-mingw32-objdump", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_windows_dll_needs_only_the_system(dll: Path) -> None:
    imported = set(re.findall(r"DLL Name: (\S+)", objdump("-p", dll)))
    assert {name.lower() for name in imported} == SYSTEM_DLLS


def test_the_windows_dll_exports_only_the_public_functions(dll: Path) -> None:
    table = objdump("-p", dll).split("[Ordinal/Name Pointer] Table")[1].split("\n\n")[0]
    assert re.findall(r"\[ *\d+\] (\S+)", table) == sorted(library.SIGNATURES)


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_no_windows_kernel_relies_on_an_aligned_stack(dll: Path, isa: str) -> None:
    """Windows aligns the stack to 16 bytes; an aligned move of 32 or 64 would crash (GCC bug 54412)."""
    code = objdump("-d", "--no-show-raw-insn", ROOT / f"build/x86_64-w64-mingw32-gcc-dll-omp1-san0/kernels.{isa}.o")
    assert "vmovups" in code
    assert not re.findall(r"vmov(?:ap[sd]|dqa\w*)\s.*\(.*", code)  # an operand with a ( is in memory


# ---- macOS: its programs are compiled and linked, but cannot run here ------------------------------------------------


@pytest.mark.parametrize(("target", "processor"), [("aarch64-macos", 0x0100000C), ("x86_64-macos", 0x01000007)])
def test_the_macos_library_links(target: str, processor: int) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("ziglang is missing: make test-macos installs it")
    library = ROOT / "build" / target / "rnnlib.dylib"
    compiler = shlex.join([sys.executable, "-m", "ziglang", "cc"])
    make("lib", f"CC={compiler}", f"TARGET={target}", f"LIBRARY={library}", "WERROR=-Werror")
    raw = library.read_bytes()
    assert struct.unpack("<II", raw[:8]) == (0xFEEDFACF, processor)  # 64-bit little-endian Mach-O
    assert all(f"_{name}\0".encode() in raw for name in library.SIGNATURES)
