# Every task of the project; `make help` lists them.
# CC, CFLAGS, LDFLAGS and PYTHON are honoured: make lib CC=clang OMP=0

.PHONY: help train serve lesson load test test-slow test-page screenshots lint format lib dll figures bench results clean FORCE
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

## Use

help: ## list the targets
	@awk -F ':.*## ' '/^## / { print "\n" substr($$0, 4) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One virtual environment, created at first use.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -r

$(VENV)/.run: requirements.txt deploy/requirements-serve.txt deploy/requirements-slim.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)  # missing, or left half made
	$(PIP_INSTALL) $<
	touch $@

$(VENV)/.dev: tests/requirements-dev.txt $(VENV)/.run
	$(PIP_INSTALL) $<
	touch $@

# --resume trains what is not there, continues what was stopped, and leaves what is finished.
TRAIN ?= --resume
train: $(VENV)/.run lib ## train both models on the demo corpus, or the rest of it: weights/demo*.safetensors (TRAIN=--overwrite: again)
	$(PY) main.py --preset demo $(TRAIN)
	$(PY) torch_rnn.py --preset demo $(TRAIN)

# The service reads PORT itself. A shell between the two would die of Ctrl-C, and make would report an error.
serve: $(VENV)/.run lib ## serve on http://127.0.0.1:8000 (PORT=...); trains the demo weights first if there are none
	@ls weights/*.safetensors >/dev/null 2>&1 || $(PY) main.py --preset demo --resume
	$(PY) -m service

LESSON := csrc/elman.c csrc/lesson.c
lesson: $(VENV)/.run ## train the model of docs/lesson.md, csrc/elman.c, on the demo corpus: half a minute (RATE=...)
	@mkdir -p build
	$(CC) -O3 -o build/lesson $(LESSON) -lm
	@cat $(VENV)/lib/*/site-packages/gensim/test/test_data/lee_background.cor | ./build/lesson $(RATE)

## The C library

CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
WIN_CC ?= x86_64-w64-mingw32-gcc
TARGET ?=# the target triple when clang cross-compiles: TARGET=aarch64-linux-gnu
TARGET_FLAGS := $(if $(TARGET),--target=$(TARGET))
MACHINE := $(shell $(CC) $(TARGET_FLAGS) -dumpmachine 2>/dev/null)# asked of the compiler: cross builds are right too
WINDOWS := $(findstring mingw,$(MACHINE))
MACOS   := $(findstring darwin,$(MACHINE))$(findstring macos,$(MACHINE))
EXT  ?= $(if $(WINDOWS),dll,$(if $(MACOS),dylib,so))
OMP  ?= $(if $(MACOS),0,1)# Apple's clang ships without OpenMP
# SAN=1: AddressSanitizer and UBSan. thread: ThreadSanitizer. fuzz: as 1, plus libFuzzer's coverage (clang only).
SAN  ?= 0
SAN_FLAGS_1      := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
SAN_FLAGS_thread := -fsanitize=thread -fno-omit-frame-pointer -g
SAN_FLAGS_fuzz   := $(SAN_FLAGS_1) -fsanitize=fuzzer-no-link

# -O3 without fast-math: the library checks for NaN and infinity, and -ffast-math compiles such checks away.
CFLAGS ?= -O3
override CFLAGS += -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wvla -Wmissing-prototypes \
                   $(TARGET_FLAGS) -fPIC -fvisibility=hidden -DRNN_BUILD $(if $(filter 1,$(OMP)),-fopenmp) \
                   $(SAN_FLAGS_$(SAN)) $(WERROR)

# kernels.c is compiled once per instruction set, and the library chooses at run time. Contraction fuses a * b + c into
# one instruction; -fno-math-errno lets sqrtf vectorise. Neither is fast-math.
ISAS         := baseline
KERNEL_FLAGS := -ffp-contract=fast -fno-math-errno
AVX2_FLAGS   := -mavx2 -mfma
AVX512_FLAGS := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512
BFLOAT16_FLAGS = $(AVX512_FLAGS) -mavx512bf16
# libFuzzer is not to count the iterations of inner loops: ten times slower, and it finds nothing.
KERNEL_FLAGS += $(if $(filter fuzz,$(SAN)),-fno-sanitize=fuzzer-no-link)
ifneq ($(and $(findstring aarch64,$(MACHINE)),$(findstring gcc,$(CC))),) # gcc 12 for arm64 crashes when it vectorises
override CFLAGS += -fno-tree-vectorize#                                    a maximum of doubles; the kernels have none
KERNEL_FLAGS += -ftree-vectorize
endif

# Objects go to a folder named after what changes them, so builds never mix. A sanitized library stays there too.
SPACE   := $(subst ,, )
BUILD   := build/$(subst $(SPACE),-,$(notdir $(CC)))$(addprefix -,$(TARGET))-$(EXT)-omp$(OMP)-san$(SAN)
OBJECTS := $(patsubst csrc/%.c,$(BUILD)/%.o,$(filter-out $(LESSON),$(wildcard csrc/*.c)))
LIBRARY := $(if $(filter 0,$(SAN)),lib,$(BUILD))/rnnlib.$(EXT)

ifneq ($(filter x86_64%,$(MACHINE)),)
ISAS    := amx avx512bf16 avx512 avx2 baseline
OBJECTS += $(BUILD)/kernels.avx2.o $(BUILD)/kernels.avx512.o
override CFLAGS += -DRNN_X86_KERNELS
endif

# Windows guarantees 16-byte stack alignment only, yet gcc may spill wider registers with aligned moves (GCC bug 54412).
# The assembler turns them into unaligned moves, which cost nothing on aligned memory. -static: no DLL but the system's.
ifneq ($(WINDOWS),)
AVX2_FLAGS   += -Wa,-muse-unaligned-vector-move
AVX512_FLAGS += -Wa,-muse-unaligned-vector-move
override LDFLAGS += -static
override CFLAGS += -Wno-float-conversion# mingw's isfinite() casts to every type, in branches that never run
endif

# The flags that the objects and the library were built with: rewriting the file when they change forces a rebuild.
# -Werror does not count, since it changes nothing that is built.
FLAGS := $(filter-out $(WERROR),$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX2_FLAGS) $(BFLOAT16_FLAGS) $(LDFLAGS))
STAMP := $(dir $(LIBRARY)).$(notdir $(LIBRARY)).flags

$(BUILD)/.flags $(STAMP): FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS)' | cmp -s - $@ || echo '$(FLAGS)' >$@

lib: $(LIBRARY) ## compile lib/rnnlib.so

dll: ## cross-compile lib/rnnlib.dll for Windows with mingw-w64
	@command -v $(firstword $(WIN_CC)) >/dev/null || \
	    { echo "make dll needs $(WIN_CC): apt-get install gcc-mingw-w64-x86-64" >&2; exit 2; }
	$(MAKE) lib CC=$(WIN_CC)

$(LIBRARY): $(OBJECTS) $(STAMP)
	$(CC) -shared $(CFLAGS) $(LDFLAGS) -o $@ $(OBJECTS) -lm

$(BUILD)/%.o: csrc/%.c $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/kernels.o: override CFLAGS += $(KERNEL_FLAGS)
$(BUILD)/kernels_bfloat16.o: override CFLAGS += $(if $(filter x86_64%,$(MACHINE)),$(KERNEL_FLAGS) $(BFLOAT16_FLAGS))
$(BUILD)/kernels.avx512.o: override CFLAGS += -DRNN_BFLOAT16_KERNELS

$(BUILD)/kernels.avx2.o $(BUILD)/kernels.avx512.o: $(BUILD)/kernels.%.o: csrc/kernels.c $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) $($(if $(filter avx2,$*),AVX2,AVX512)_FLAGS) -DRNN_ISA=$* -MMD -MP -c -o $@ $<

-include $(OBJECTS:.o=.d)

## Tests and style

PYTEST := $(PY) -m pytest -q
# One process per processor, eight at most: each may take a gigabyte. PARALLEL= runs the tests one by one.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev lib test-c ## run the fast tests (SAN=1: under the address and undefined-behaviour sanitizers)
	$(SAN_ENV) $(PYTEST) $(PARALLEL)

test-slow: $(VENV)/.dev lib ## run the tests that take minutes
	$(PYTEST) -m 'slow and not page'

test-page: $(VENV)/.dev lib ## run the page's tests in Chromium (apt-get install chromium); skipped without it
	$(PYTEST) $(PARALLEL) -m 'page and not slow' tests

screenshots: $(VENV)/.dev lib ## take the pictures of the page again: docs/page-*.png, docs/inside.webp
	$(PY) bench/screenshots.py

lint: $(VENV)/.dev ## check the style of the sources
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.[ch] tests/c/*.[ch]

format: $(VENV)/.dev ## rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i csrc/*.[ch] tests/c/*.[ch]

clean: ## remove everything that was built; weights and the virtual environment stay
	rm -rf build lib dist

## Measurements

figures: $(VENV)/.run lib ## write the quoted figures, and list their age and processor (PIECES=load,sizes or all: measured first)
	$(PY) bench/figures.py $(PIECES) $(if $(CORPUS),--corpus $(CORPUS))

bench: $(VENV)/.run lib ## compare C with PyTorch: tables and plots in the documents (QUICK=1: fewer cases, a table here)
	$(PY) bench/bench.py $(if $(QUICK),--quick)

results: $(VENV)/.run lib ## train `best`, `reference`, torch, n-grams on WikiText-2, write docs/results.*: hours (CORPUS=FOLDER:wikitext-2-v1)
	$(PY) bench/results.py $(if $(CORPUS),--corpus $(CORPUS))

load: $(VENV)/.run lib ## load-test the service, and a plain FastAPI route around the torch model beside it
	$(PY) bench/load.py

# The targets below are missing where only the library is built, as in the Dockerfile.
-include tests/hard.mk deploy/ship.mk
