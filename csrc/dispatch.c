/* dispatch.c -- chooses the kernels when a handle is made, not with the ELF ifunc: Windows and macOS do not have it.
 * RNN_X86_KERNELS says that kernels.c was also compiled for AVX-512 and AVX2; without it there is the baseline only. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* What this processor runs, the best first, to where `end` points. */
static const rnn_kernels **available(const rnn_kernels **end) {
#ifdef RNN_X86_KERNELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        *end++ = &rnn_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) *end++ = &rnn_kernels_avx2;
#endif
    *end++ = &rnn_kernels_baseline;
    *end++ = &rnn_kernels_reference;
    return end;
}

const rnn_kernels *rnn_kernels_choose(void) {
    const rnn_kernels *list[4], **end = available(list);
    const char *wish = getenv("RNN_ISA");
    for (const rnn_kernels **k = list; wish && k < end; k++) {
        if (!strcmp(wish, (*k)->name)) return *k;
    }
    return list[0];
}

const char *rnn_kernel_name(void) { return rnn_kernels_choose()->name; }
