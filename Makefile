# Every task of the project. `make help` lists them.
# CC, CFLAGS, LDFLAGS and PYTHON are honoured: make lib CC=clang OMP=0

.PHONY: help train serve load test test-slow test-c lint format lib bench clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- Python: one virtual environment, made at first use -------------------------------------------------------------

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

$(VENV)/.run: requirements.txt requirements-serve.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

train: $(VENV)/.run lib ## train both models on the demo corpus: weights/demo.safetensors, weights/demo-torch.safetensors
	$(PY) main.py --preset demo
	$(PY) torch_rnn.py --preset demo

serve: $(VENV)/.run lib ## train the demo weights if there are none, and serve on http://127.0.0.1:8000
	@ls weights/*.safetensors >/dev/null 2>&1 || $(PY) main.py --preset demo
	$(VENV)/bin/uvicorn api:app --http h11 --host 127.0.0.1 --port 8000 --no-access-log --no-server-header

load: $(VENV)/.run lib ## load test: the service, and beside it a plain FastAPI route around the torch model
	$(PY) bench/load.py

# ---- The C library --------------------------------------------------------------------------------------------------

ifeq ($(origin CC),default)
CC := gcc
endif
EXT  ?= so
OMP  ?= 1
SAN  ?= 0
OMP_FLAGS := $(if $(filter 1,$(OMP)),-fopenmp)
comma := ,
# gcc's AddressSanitizer and UBSan; such a library stays in build/, never in lib/.
SAN_FLAGS := $(if $(filter 1,$(SAN)),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g)

# -O3 and no fast-math: the library checks for NaN and infinity, and -ffast-math compiles such checks away.
CFLAGS ?= -O3
override CFLAGS += -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wvla -Wmissing-prototypes \
                   -fPIC -fvisibility=hidden -DRNN_BUILD $(OMP_FLAGS) $(SAN_FLAGS) $(WERROR)

# kernels.c is compiled once for each instruction set, and the library chooses at run time. Contraction makes a * b + c
# one instruction, and -fno-math-errno vectorises sqrtf; neither is fast-math. The compiler is asked what it compiles
# for, not uname, so that cross builds are right.
KERNEL_FLAGS := -ffp-contract=fast -fno-math-errno
AVX2_FLAGS   := -mavx2 -mfma
AVX512_FLAGS := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512
ISAS         := baseline

# Objects lie in a folder keyed by what changes them, so that no build meets another's.
BUILD   := build/$(notdir $(CC))-$(EXT)-omp$(OMP)-san$(SAN)
OBJECTS := $(patsubst csrc/%.c,$(BUILD)/%.o,$(wildcard csrc/*.c))
LIBRARY := $(if $(filter 1,$(SAN)),$(BUILD),lib)/rnnlib.$(EXT)

ifneq ($(filter x86_64%,$(shell $(CC) -dumpmachine 2>/dev/null)),)
ISAS    := avx512 avx2 baseline
OBJECTS += $(BUILD)/kernels.avx2.o $(BUILD)/kernels.avx512.o
override CFLAGS += -DRNN_X86_KERNELS
endif

lib: $(LIBRARY) ## compile lib/rnnlib.so

$(LIBRARY): $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) -shared $(CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/%.o: csrc/%.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/kernels.o: override CFLAGS += $(KERNEL_FLAGS)

$(BUILD)/kernels.avx2.o: csrc/kernels.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX2_FLAGS) -DRNN_ISA=avx2 -MMD -MP -c -o $@ $<

$(BUILD)/kernels.avx512.o: csrc/kernels.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX512_FLAGS) -DRNN_ISA=avx512 -MMD -MP -c -o $@ $<

-include $(OBJECTS:.o=.d)

# ---- Tests and style --------------------------------------------------------------------------------------------------

# With SAN=1 the library needs its sanitizer's runtime loaded before Python; Python's own allocations are not its matter.
SAN_ENV := $(if $(filter 1,$(SAN)),LD_PRELOAD=$(shell $(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
             RNNLIB_PATH="$(CURDIR)/$(LIBRARY)")
C_TEST  := $(BUILD)/test_rnnlib

test: $(VENV)/.dev lib test-c ## run the fast tests (SAN=1: under the address and undefined-behaviour sanitizers)
	$(SAN_ENV) $(PY) -m pytest -q

test-c: $(C_TEST) ## run the C tests on every instruction set
	@for isa in $(ISAS) reference; do echo "RNN_ISA=$$isa"; RNN_ISA=$$isa $< || exit 1; done

$(C_TEST): tests/c/test_rnnlib.c $(OBJECTS) Makefile
	$(CC) $(CFLAGS) $(LDFLAGS) -Icsrc -o $@ $< $(OBJECTS) -lm

test-slow: $(VENV)/.dev lib ## run the tests that take minutes
	$(PY) -m pytest -q -m slow

lint: $(VENV)/.dev ## check style and compiler warnings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.[ch] tests/c/*.c

format: $(VENV)/.dev ## rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i csrc/*.[ch] tests/c/*.c

bench: $(VENV)/.run lib ## compare C with PyTorch: a table, bench/results/bench.jsonl, plots in docs/ (QUICK=1: fewer cases)
	$(PY) bench/bench.py $(if $(QUICK),--quick)
	$(PY) bench/plots.py

clean: ## remove what was built; weights and the virtual environment stay
	rm -rf build lib
