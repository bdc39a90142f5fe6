# The C tests, and tests that try to break the program and take minutes: sanitizers, fuzzing, faults, other systems. Part
# of the Makefile; docs/reliability.md has the figures.

.PHONY: test-c test-san test-threads run-threads test-valgrind run-valgrind fuzz run-fuzz fuzz-weights fuzz-python \
        faults test-hosts soak audit test-windows test-arm test-macos fixed-run

## The C tests, and tests that try to break the program

EXE          := $(if $(WINDOWS),.exe)
C_TEST       := $(BUILD)/test_rnnlib$(EXE)
TILES_TEST   := $(if $(filter amx,$(ISAS)),$(BUILD)/test_rnnlib_tiles$(EXE))
REFUSAL_TEST := $(if $(and $(TILES_TEST),$(findstring linux,$(MACHINE))),$(BUILD)/test_refusal)
C_TEST_PARTS := test_rnnlib test_kernels test_bfloat16 test_training test_precision test_optimizers test_inference \
                test_sampling problem rounded testing
RUN          ?=# runs a program of another system: wine64, "qemu-aarch64 -L ..."

test-c: $(C_TEST) $(TILES_TEST) $(REFUSAL_TEST) ## run the C tests on every instruction set, and on an emulation of AMX
	@for isa in $(ISAS) reference; do echo "RNN_ISA=$$isa"; RNN_ISA=$$isa $(RUN) $< || exit 1; done
	$(if $(TILES_TEST),@echo "RNN_ISA=amx (emulated)"; RNN_ISA=amx $(RUN) $(TILES_TEST))
	$(if $(REFUSAL_TEST),@$(REFUSAL_TEST))

$(C_TEST): $(C_TEST_PARTS:%=tests/c/%.c) csrc/elman.c
$(C_TEST) $(BUILD)/test_threads: $(wildcard tests/c/*.h) $(OBJECTS) Makefile
	$(CC) $(CFLAGS) $(LDFLAGS) -Icsrc -o $@ $(filter %.c,$^) $(OBJECTS) -lm -lpthread

# The same program, with the two files that use AMX tiles compiled for emulated ones.
TILES_FILES   := dispatch kernels_amx
TILES_OBJECTS := $(filter-out $(TILES_FILES:%=$(BUILD)/%.o),$(OBJECTS)) $(TILES_FILES:%=$(BUILD)/%.emulated.o)
$(TILES_TEST): $(C_TEST_PARTS:%=tests/c/%.c) csrc/elman.c $(wildcard tests/c/*.h) $(TILES_OBJECTS) Makefile
	$(CC) $(CFLAGS) $(LDFLAGS) -Icsrc -o $@ $(filter %.c,$^) $(TILES_OBJECTS) -lm -lpthread

$(BUILD)/%.emulated.o: csrc/%.c tests/c/emulated_tiles.h $(BUILD)/.flags Makefile
	$(CC) $(CFLAGS) -DRNN_EMULATED_TILES='"emulated_tiles.h"' -Itests/c -MMD -MP -c -o $@ $<

$(REFUSAL_TEST): tests/c/test_refusal.c csrc/dispatch.c $(OBJECTS) Makefile
	$(CC) $(CFLAGS) $(LDFLAGS) -DRNN_ASSUME_TILES -Icsrc -o $@ tests/c/test_refusal.c csrc/dispatch.c \
	    $(filter-out %/dispatch.o,$(OBJECTS)) -lm

# The sanitizer's runtime must be loaded before Python, and libstdc++ with it, whose exceptions it intercepts. Leaks are
# not checked: Python's own allocations would be reported. Memory that nobody has is refused, as it is without the sanitizer.
SAN_ENV := $(if $(filter 1,$(SAN)),ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 RNNLIB_PATH="$(CURDIR)/$(LIBRARY)" \
             LD_PRELOAD="$(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libstdc++.so)")

test-san: ## the fast tests under gcc's address and undefined-behaviour sanitizers
	$(MAKE) test SAN=1 CC=gcc

THREADS_TEST := $(BUILD)/test_threads

$(THREADS_TEST): tests/c/test_threads.c tests/c/testing.c

# ThreadSanitizer cannot follow gcc's OpenMP. It follows clang's, through archer; where that is missing, the library is
# built without OpenMP, and only the test's own threads are checked.
TSAN_OMP = $(shell echo 'int main(void) { return 0; }' | clang -fopenmp -include omp.h -xc - -o /dev/null 2>/dev/null && echo 1 || echo 0)

# Debian keeps the sanitizers' and the fuzzer's runtime apart from clang.
CLANG_RUNTIME = @echo 'int main(void) { return 0; }' | clang -fsanitize=thread -xc - -o /dev/null 2>/dev/null || \
                { echo "make $@ needs clang with its runtimes: apt-get install clang libclang-rt-dev libomp-dev" >&2; exit 1; }

test-threads: ## the C tests under ThreadSanitizer: one model, many threads, models replaced under load
	$(CLANG_RUNTIME)
	$(MAKE) run-threads CC=clang SAN=thread OMP=$(TSAN_OMP)

TSAN := OMP_NUM_THREADS=3 OMP_WAIT_POLICY=passive TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1"

run-threads: $(THREADS_TEST) $(C_TEST)
	$(TSAN) $(THREADS_TEST)
	$(TSAN) $(C_TEST)

VALGRIND := valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,possible

test-valgrind: ## the C tests under valgrind's memcheck, which knows AVX2 but not AVX-512
	$(MAKE) run-valgrind OMP=0

run-valgrind: $(THREADS_TEST) $(C_TEST)
	for isa in avx2 reference; do RNN_ISA=$$isa $(VALGRIND) $(C_TEST) || exit 1; done
	RNN_ISA=avx2 $(VALGRIND) $(THREADS_TEST)

FUZZ_RUNS ?= 10000000
FUZZ_ISAS ?= $(ISAS) reference

fuzz: ## libFuzzer on the C library: FUZZ_RUNS inputs (10 million), spread evenly over the instruction sets
	$(CLANG_RUNTIME)
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

FUZZ_FILES ?= 100000

fuzz-weights: $(VENV)/.dev lib ## FUZZ_FILES mutated weights files (100,000): each is refused or can be served
	$(PY) tests/hard/fuzz_weights.py --files $(FUZZ_FILES)

FUZZ_EXAMPLES ?= 10000

fuzz-python: $(VENV)/.dev lib ## FUZZ_EXAMPLES (10,000) each of arbitrary weights headers, texts, vectors, bodies and forms
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) tests/hard/test_fuzz.py --hypothesis-profile=long

MOMENTS ?= 50

faults: $(VENV)/.dev lib ## kill -9, full disks, no memory, changed files, hanging clients, at MOMENTS moments each (50)
	$(PYTEST) tests/hard/test_faults_*.py -m "slow or not slow" \
	    --moments $(MOMENTS) --durations=0

SOAK_MINUTES ?= 20

test-hosts: $(VENV)/.dev lib ## two machines and a cable between them: network namespaces, as root
	$(PY) -m pytest -q -n 0 -m slow tests/hard/test_hosts.py

soak: $(VENV)/.dev lib ## mixed load for SOAK_MINUTES (20), new weights every 5 s: no 5xx; memory and open files stay flat
	$(PY) tests/hard/soak.py --minutes $(SOAK_MINUTES)

audit: $(VENV)/.dev ## known vulnerabilities in installed packages (pip-audit), dangerous habits in the sources (bandit)
	$(PY) tests/hard/audit.py

## Other systems

test-windows: $(VENV)/.dev ## cross-compile the library and its C tests for Windows, and run them under wine
	$(PYTEST) -m slow tests/model/test_platforms.py -k windows

test-arm: $(VENV)/.dev ## the same for arm64, with gcc and clang, under qemu
	$(PYTEST) -m slow tests/model/test_platforms.py -k arm

test-macos: $(VENV)/.dev ## compile and link the library for macOS, arm64 and x86-64, with zig's clang; runs nothing
	$(PIP_INSTALL) tests/requirements-cross.txt
	$(PYTEST) -m slow tests/model/test_platforms.py -k macos

# The numbers of one fixed training run, by which two systems are compared (tests/model/test_platforms.py). The program
# uses the library as anybody's would, so it gets a copy of it in its own folder.
FIXED_RUN := $(BUILD)/fixed_run$(EXE)
comma := ,

fixed-run: $(FIXED_RUN)
	@$(RUN) $<

$(FIXED_RUN): tests/c/fixed_run.c $(LIBRARY) Makefile
	cp $(LIBRARY) $(BUILD)/rnnlib.$(EXT)
	cd $(BUILD) && $(CC) $(CFLAGS) -URNN_BUILD $(LDFLAGS) -I$(CURDIR)/csrc -o $(@F) $(CURDIR)/$< rnnlib.$(EXT) \
	    $(if $(EXE),,-Wl$(comma)-rpath$(comma)'$$ORIGIN')
