# Every task of the project. `make help` lists them.
# CC, CFLAGS, LDFLAGS and PYTHON are honoured: make lib CC=clang OMP=0

.PHONY: help train serve load test test-slow test-page screenshots test-c lint format lib dll bench results clean \
        test-windows test-arm test-macos fixed-run FORCE image test-image test-small dist pin licences sbom
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- Python: one virtual environment, made at first use -------------------------------------------------------------

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

$(VENV)/.run: requirements.txt deploy/requirements-serve.txt deploy/requirements-slim.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)  # none yet, or half of one
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(VENV)/.dev: tests/requirements-dev.txt $(VENV)/.run
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

train: $(VENV)/.run lib ## train both models on the demo corpus: weights/demo.safetensors, weights/demo-torch.safetensors
	$(PY) main.py --preset demo
	$(PY) torch_rnn.py --preset demo

PORT ?= 8000
serve: $(VENV)/.run lib ## train the demo weights if there are none, and serve on http://127.0.0.1:8000 (PORT=...)
	@ls weights/*.safetensors >/dev/null 2>&1 || $(PY) main.py --preset demo
	PORT=$(PORT) $(PY) -m service

load: $(VENV)/.run lib ## load test: the service, and beside it a plain FastAPI route around the torch model
	$(PY) bench/load.py

# ---- The C library --------------------------------------------------------------------------------------------------

WIN_CC ?= x86_64-w64-mingw32-gcc
ifeq ($(origin CC),default)
CC := gcc
endif
TARGET ?=#                 # a triple, for clang as a cross compiler: TARGET=aarch64-linux-gnu
TARGET_FLAGS := $(if $(TARGET),--target=$(TARGET))
MACHINE := $(shell $(CC) $(TARGET_FLAGS) -dumpmachine 2>/dev/null)
WINDOWS := $(findstring mingw,$(MACHINE))
MACOS   := $(findstring darwin,$(MACHINE))$(findstring macos,$(MACHINE))
EXT  ?= $(if $(WINDOWS),dll,$(if $(MACOS),dylib,so))
OMP  ?= $(if $(MACOS),0,1)# Apple's clang comes without OpenMP
SAN  ?= 0
EXE  := $(if $(WINDOWS),.exe)
comma := ,
OMP_FLAGS := $(if $(filter 1,$(OMP)),-fopenmp)
# SAN=1: AddressSanitizer and UBSan; thread: ThreadSanitizer; fuzz: as 1, with libFuzzer's coverage (clang). Such a
# library stays in build/, never in lib/.
SAN_FLAGS_1      := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
SAN_FLAGS_thread := -fsanitize=thread -fno-omit-frame-pointer -g
SAN_FLAGS_fuzz   := $(SAN_FLAGS_1) -fsanitize=fuzzer-no-link
SAN_FLAGS        := $(SAN_FLAGS_$(SAN))

# -O3 and no fast-math: the library checks for NaN and infinity, and -ffast-math compiles such checks away.
CFLAGS ?= -O3
override CFLAGS += -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wvla -Wmissing-prototypes \
                   $(TARGET_FLAGS) -fPIC -fvisibility=hidden -DRNN_BUILD $(OMP_FLAGS) $(SAN_FLAGS) $(WERROR)

# kernels.c is compiled once for each instruction set, and the library chooses at run time. Contraction makes a * b + c
# one instruction, and -fno-math-errno vectorises sqrtf; neither is fast-math. The compiler is asked what it compiles
# for, not uname, so that cross builds are right.
KERNEL_FLAGS := -ffp-contract=fast -fno-math-errno
ifeq ($(SAN),fuzz) # counting the turns of inner loops makes them ten times slower, and finds nothing
KERNEL_FLAGS += -fno-sanitize=fuzzer-no-link
endif
AVX2_FLAGS   := -mavx2 -mfma
AVX512_FLAGS := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512
ISAS         := baseline

# gcc 12 for arm64 ends with an internal error when it vectorises a maximum of doubles. The kernels have none.
ifneq ($(and $(findstring aarch64,$(MACHINE)),$(findstring gcc,$(CC))),)
override CFLAGS += -fno-tree-vectorize
KERNEL_FLAGS += -ftree-vectorize
endif

# Objects lie in a folder keyed by what changes them, so that no build meets another's.
BUILD   := build/$(notdir $(CC))$(addprefix -,$(TARGET))-$(EXT)-omp$(OMP)-san$(SAN)
OBJECTS := $(patsubst csrc/%.c,$(BUILD)/%.o,$(wildcard csrc/*.c))
LIBRARY := $(if $(filter 0,$(SAN)),lib,$(BUILD))/rnnlib.$(EXT)

ifneq ($(filter x86_64%,$(MACHINE)),)
ISAS    := avx512 avx2 baseline
OBJECTS += $(BUILD)/kernels.avx2.o $(BUILD)/kernels.avx512.o
override CFLAGS += -DRNN_X86_KERNELS
endif

# Windows promises 16 bytes of stack alignment, and gcc for it may spill 32- and 64-byte registers with aligned moves (GCC
# bug 54412; Debian's build does not): the assembler makes every move an unaligned one, which costs nothing where memory
# is aligned. -static: the DLL brings its OpenMP along, and needs no other but the system's.
ifneq ($(WINDOWS),)
AVX2_FLAGS   += -Wa,-muse-unaligned-vector-move
AVX512_FLAGS += -Wa,-muse-unaligned-vector-move
override LDFLAGS += -static
override CFLAGS += -Wno-float-conversion# mingw's isfinite() holds a cast for each type, in branches never taken
endif

# What a folder of objects, and a library, were built with: a file that is rewritten when it changes, and what depends on
# it is then built anew. -Werror changes nothing that is built.
FLAGS := $(filter-out $(WERROR),$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX2_FLAGS) $(AVX512_FLAGS) $(LDFLAGS))
STAMP := $(dir $(LIBRARY)).$(notdir $(LIBRARY)).flags

$(BUILD)/.flags $(STAMP): FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS)' | cmp -s - $@ || echo '$(FLAGS)' >$@

lib: $(LIBRARY) ## compile lib/rnnlib.so

dll: ## cross-compile lib/rnnlib.dll for Windows, with mingw-w64
	$(MAKE) lib CC=$(WIN_CC)

$(LIBRARY): $(OBJECTS) $(STAMP)
	$(CC) -shared $(CFLAGS) $(LDFLAGS) -o $@ $(OBJECTS) -lm

$(BUILD)/%.o: csrc/%.c $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/kernels.o: override CFLAGS += $(KERNEL_FLAGS)

$(BUILD)/kernels.avx2.o: csrc/kernels.c $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX2_FLAGS) -DRNN_ISA=avx2 -MMD -MP -c -o $@ $<

$(BUILD)/kernels.avx512.o: csrc/kernels.c $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) $(AVX512_FLAGS) -DRNN_ISA=avx512 -MMD -MP -c -o $@ $<

-include $(OBJECTS:.o=.d)

# ---- Tests and style --------------------------------------------------------------------------------------------------

# With SAN=1 the library needs its sanitizer's runtime loaded before Python, and with it libstdc++, whose exceptions it
# watches; Python's own allocations are not its matter.
SAN_ENV := $(if $(filter 1,$(SAN)),ASAN_OPTIONS=detect_leaks=0 RNNLIB_PATH="$(CURDIR)/$(LIBRARY)" \
             LD_PRELOAD="$(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libstdc++.so)")
C_TEST       := $(BUILD)/test_rnnlib$(EXE)
C_TEST_PARTS := test_rnnlib test_kernels test_training test_inference plain testing
THREADS_TEST := $(BUILD)/test_threads
FIXED_RUN    := $(BUILD)/fixed_run$(EXE)
RUN          ?=#           what runs a program of a foreign machine: wine64, "qemu-aarch64 -L ..."

test: $(VENV)/.dev lib test-c ## run the fast tests (SAN=1: under the address and undefined-behaviour sanitizers)
	$(SAN_ENV) $(PY) -m pytest -q

test-c: $(C_TEST) ## run the C tests on every instruction set
	@for isa in $(ISAS) reference; do echo "RNN_ISA=$$isa"; RNN_ISA=$$isa $(RUN) $< || exit 1; done

$(C_TEST): $(C_TEST_PARTS:%=tests/c/%.c)
$(THREADS_TEST): tests/c/test_threads.c tests/c/testing.c
$(C_TEST) $(THREADS_TEST): $(wildcard tests/c/*.h) $(OBJECTS) Makefile
	$(CC) $(CFLAGS) $(LDFLAGS) -Icsrc -o $@ $(filter tests/c/%.c,$^) $(OBJECTS) -lm -lpthread

# The numbers of one fixed training run: two systems are compared by it (tests/model/test_platforms.py). It takes the library
# as a program of somebody else would, so it lies beside a copy of it.
fixed-run: $(FIXED_RUN)
	@$(RUN) $<

$(FIXED_RUN): tests/c/fixed_run.c $(LIBRARY) Makefile
	cp $(LIBRARY) $(BUILD)/rnnlib.$(EXT)
	cd $(BUILD) && $(CC) $(CFLAGS) -URNN_BUILD $(LDFLAGS) -I$(CURDIR)/csrc -o $(@F) $(CURDIR)/$< rnnlib.$(EXT) \
	    $(if $(EXE),,-Wl$(comma)-rpath$(comma)'$$ORIGIN')

test-slow: $(VENV)/.dev lib ## run the tests that take minutes
	$(PY) -m pytest -q -m 'slow and not page'

test-page: $(VENV)/.dev lib ## run the page's tests in Chromium (apt-get install chromium); without it they are skipped
	$(PY) -m pytest -q -m 'page and not slow' tests

screenshots: $(VENV)/.dev lib ## take the README's screenshots of the page anew: docs/page-*.png
	$(PY) -m pytest -q -m 'page and slow' tests/page/test_page_look.py

test-windows: $(VENV)/.dev ## cross-compile the library and its C tests for Windows and run them under wine
	$(PY) -m pytest -q -m slow tests/model/test_platforms.py -k windows

test-arm: $(VENV)/.dev ## the same for arm64, with gcc and clang, under qemu
	$(PY) -m pytest -q -m slow tests/model/test_platforms.py -k arm

test-macos: $(VENV)/.dev ## compile and link the library for macOS, arm64 and x86-64 (nothing runs), with zig's clang
	$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements-cross.txt
	$(PY) -m pytest -q -m slow tests/model/test_platforms.py -k macos

lint: $(VENV)/.dev ## check style and compiler warnings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.[ch] tests/c/*.[ch]

format: $(VENV)/.dev ## rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i csrc/*.[ch] tests/c/*.[ch]

bench: $(VENV)/.run lib ## compare C with PyTorch: a table, bench/results/bench.jsonl, plots in docs/ (QUICK=1: fewer cases)
	$(PY) bench/bench.py $(if $(QUICK),--quick)
	$(if $(QUICK),,$(PY) bench/plots.py)

# ---- Hard to break: what takes minutes; docs/reliability.md has the figures ------------------------------------------

.PHONY: test-san test-threads run-threads test-valgrind run-valgrind fuzz run-fuzz fuzz-weights fuzz-python faults soak audit

test-san: ## the tests under gcc's address and undefined-behaviour sanitizers
	$(MAKE) test SAN=1 CC=gcc

# gcc's OpenMP is unknown to ThreadSanitizer. clang's is known, through archer; where it is missing: threads of our own.
TSAN_OMP = $(if $(wildcard $(shell clang -print-file-name=include/omp.h)),1,0)

test-threads: ## the C tests under ThreadSanitizer: one model, many threads, models replaced under load
	$(MAKE) run-threads CC=clang SAN=thread OMP=$(TSAN_OMP)

TSAN := OMP_NUM_THREADS=3 OMP_WAIT_POLICY=passive TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1"

run-threads: $(THREADS_TEST) $(C_TEST)
	$(TSAN) $(THREADS_TEST)
	$(TSAN) $(C_TEST)

VALGRIND := valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,possible

test-valgrind: ## the C tests under valgrind's memcheck, which knows AVX2 but no AVX-512
	$(MAKE) run-valgrind OMP=0

run-valgrind: $(THREADS_TEST) $(C_TEST)
	for isa in avx2 reference; do RNN_ISA=$$isa $(VALGRIND) $(C_TEST) || exit 1; done
	RNN_ISA=avx2 $(VALGRIND) $(THREADS_TEST)

FUZZ_RUNS ?= 10000000
FUZZ_ISAS ?= $(ISAS) reference

fuzz: ## libFuzzer on the C library: FUZZ_RUNS inputs (10 million), in equal parts for each instruction set
	$(MAKE) run-fuzz CC=clang OMP=0 SAN=fuzz

FUZZER := $(BUILD)/fuzz_rnnlib
FUZZ   := -runs=$$(($(FUZZ_RUNS) / $(words $(FUZZ_ISAS)))) -max_len=300 -len_control=0 -timeout=20 -rss_limit_mb=2048 \
          -verbosity=0 -print_final_stats=1 -artifact_prefix=$(BUILD)/
run-fuzz: export ASAN_OPTIONS = allocator_may_return_null=1:max_allocation_size_mb=64
run-fuzz: $(FUZZER)
	@for isa in $(FUZZ_ISAS); do \
	    mkdir -p $(BUILD)/corpus-$$isa; log=$(BUILD)/fuzz-$$isa.log; echo "RNN_ISA=$$isa"; \
	    RNN_ISA=$$isa $< $(FUZZ) $(BUILD)/corpus-$$isa >$$log 2>&1 || { tail -n 60 $$log; exit 1; }; \
	    grep -E '^stat::(number|average|peak)' $$log; \
	done

$(FUZZER): tests/c/fuzz_rnnlib.c $(OBJECTS) Makefile
	$(CC) $(CFLAGS) -fsanitize=fuzzer -Icsrc -o $@ $< $(OBJECTS) -lm


results: $(VENV)/.run lib ## train `best` on WikiText-2 beside n-grams, `reference` and torch: hours (CORPUS=FOLDER:wikitext-2-v1)
	$(PY) bench/results.py $(if $(CORPUS),--corpus $(CORPUS))

FUZZ_FILES ?= 100000

fuzz-weights: $(VENV)/.dev lib ## FUZZ_FILES mutated weights files (100,000): each refused, or it serves
	$(PY) tests/hard/fuzz_weights.py --files $(FUZZ_FILES)

fuzz-python: $(VENV)/.dev lib ## 10,000 examples each of weights headers, texts, bodies and forms of any kind
	$(PY) -m pytest -q tests/hard/test_fuzz.py --hypothesis-profile=long

MOMENTS ?= 50

faults: $(VENV)/.dev lib ## kill -9, full disks, no memory, changed files, clients that hang: at MOMENTS moments (50)
	$(PY) -m pytest -q tests/hard/test_faults_files.py tests/hard/test_faults_processes.py -m "slow or not slow" \
	    --moments $(MOMENTS) --durations=0

SOAK_MINUTES ?= 20

soak: $(VENV)/.dev lib ## mixed load for SOAK_MINUTES (20), weights replaced every 5 s: no 5xx, memory and files flat
	$(PY) tests/hard/soak.py --minutes $(SOAK_MINUTES)

audit: $(VENV)/.dev ## known holes in what is installed (pip-audit), and habits that are dangerous (bandit)
	$(PY) tests/hard/audit.py

# ---- Shipping ---------------------------------------------------------------------------------------------------------

VERSION  := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' rnnlm/version.py)
REVISION  = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
ENGINE   ?= $(firstword $(foreach name,docker podman buildah,$(shell $(name) info >/dev/null 2>&1 && echo $(name))))

image: ## build the images rnn:serve and rnn:slim with docker, podman or buildah (ENGINE=...), weights/ in them
	@test -n "$(ENGINE)" || { echo "make image needs docker, podman or buildah, running" >&2; exit 2; }
	@ls weights/*.safetensors >/dev/null 2>&1 || $(MAKE) train
	for target in slim serve; do $(ENGINE) build $(if $(filter docker,$(ENGINE)),,--format docker) --target $$target \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(IMAGE_OPTIONS) --tag rnn:$$target . || exit; done

test-image: $(VENV)/.dev lib ## build both images in a chroot with buildah, as root, and talk to them
	@ls weights/*.safetensors >/dev/null 2>&1 || $(MAKE) train
	$(PY) -m pytest -q -m 'slow or not slow' tests/service/test_image.py

test-small: $(VENV)/.run lib ## the service on one processor with one gigabyte: WikiText-2's size, then 200,000 words
	$(PY) bench/small.py
	$(PY) bench/small.py --size 200000 300 100

DIST := dist/rnn-$(VERSION)

dist: lib ## dist/: the source, the libraries of Linux, Windows and arm64, and their checksums
	@git diff --quiet HEAD || { echo "make dist: commit first: what is not in git would be missing" >&2; exit 2; }
	rm -rf dist && mkdir -p dist
	git archive --prefix=rnn-$(VERSION)/ --output=$(DIST).tar.gz HEAD
	cp lib/rnnlib.so $(DIST)-linux-$(firstword $(subst -, ,$(MACHINE))).so
	$(MAKE) dll
	cp lib/rnnlib.dll $(DIST)-windows-x86_64.dll
	$(MAKE) lib CC=$(ARM_CC) LIBRARY=build/rnnlib-aarch64.so
	cp build/rnnlib-aarch64.so $(DIST)-linux-aarch64.so
	cp docs/licences.md dist
	$(MAKE) sbom
	cd dist && sha256sum * >SHA256SUMS

ARM_CC    ?= aarch64-linux-gnu-gcc
INSTALLER ?= uv
PIN        = $(VENV)/bin/uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 \
             --no-annotate --custom-compile-command "make pin"

pin: $(VENV)/.ship ## renew what the image installs, with hashes: deploy/pinned-*.txt
	$(PIN) --output-file deploy/pinned-slim.txt deploy/requirements-slim.txt
	$(PIN) --output-file deploy/pinned-full.txt deploy/requirements-slim.txt deploy/torch-needs.in
	echo uv | $(PIN) --output-file deploy/pinned-uv.txt -

licences: build/image/.done ## docs/licences.md: the licences of what the image installs (INSTALLER=pip: by pip, not uv)
	{ echo "# Licences"; echo; echo "Of the Python packages in the image, as they state them (\`make licences\`)."; echo; \
	  $(VENV)/bin/pip-licenses --python build/image/bin/python --format markdown; } >docs/licences.md

sbom: build/image/.done ## dist/sbom.json: what the image installs, as a CycloneDX bill of materials
	@mkdir -p dist
	$(VENV)/bin/cyclonedx-py environment --output-reproducible --output-file dist/sbom.json build/image/bin/python

build/image/.done: $(VENV)/.ship deploy/install-packages.sh deploy/pinned-full.txt deploy/torch.txt
	rm -rf $(@D)
	cd deploy && sh install-packages.sh $(INSTALLER) $(CURDIR)/$(@D) pinned-full.txt torch.txt
	touch $@

$(VENV)/.ship: deploy/requirements-ship.txt $(VENV)/.run
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean: ## remove what was built; weights and the virtual environment stay
	rm -rf build lib dist
