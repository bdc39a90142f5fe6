/* isa.c -- chooses the kernels when a handle is made, not with the ELF ifunc: Windows and macOS do not have it.
 * RNN_X86_KERNELS says that kernels.c was also compiled for AVX-512 and AVX2; without it there is the baseline only. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const rnn_kernels *best(void) {
#ifdef RNN_X86_KERNELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        return &rnn_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &rnn_kernels_avx2;
#endif
    return &rnn_kernels_baseline;
}

const rnn_kernels *rnn_kernels_choose(void) {
    const rnn_kernels *kernels = best();
    const char *wish = getenv("RNN_ISA");
    if (!wish) return kernels;
    if (!strcmp(wish, "reference")) return &rnn_kernels_reference;
    if (!strcmp(wish, "baseline")) return &rnn_kernels_baseline;
#ifdef RNN_X86_KERNELS
    if (!strcmp(wish, "avx2") && kernels == &rnn_kernels_avx512) return &rnn_kernels_avx2;
#endif
    return kernels; /* a wish for more than the processor has gets the best that it has */
}
