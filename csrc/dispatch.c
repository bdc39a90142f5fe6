/* dispatch.c -- chooses the kernels when a handle is made, not with the ELF ifunc: Windows and macOS do not have it.
 * RNN_X86_KERNELS says that the kernels for x86's instruction sets were compiled; without it there is the baseline only. */
#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#ifdef RNN_X86_KERNELS

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

/* Whether the system lets this process use the tile registers, state component 18 (Linux: arch/x86/xstate.rst). */
static bool system_allows_tiles(void) {
#if defined(RNN_EMULATED_TILES)
    return true;
#elif defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18L) == 0;
#elif defined(_WIN32)
    typedef BOOL(WINAPI * enable_features)(DWORD64);
    union {
        FARPROC symbol;
        enable_features enable;
    } found = {.symbol = GetProcAddress(GetModuleHandleA("kernel32.dll"), "EnableProcessOptionalXStateFeatures")};
    return found.symbol && found.enable((DWORD64)1 << 18);
#else
    return false;
#endif
}

/* Whether the processor has AMX for bfloat16, and the system saves its registers: bits 17 and 18 of XCR0. */
static bool processor_has_tiles(void) {
#if defined(RNN_EMULATED_TILES) || defined(RNN_ASSUME_TILES)
    return true;
#else
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false; /* XGETBV */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a >> 17 & 3) == 3;
#endif
}

static bool tiles_allowed(void) {
    enum { UNKNOWN, NO, YES };
    static atomic_int known; /* the answer never changes, so two threads may both find it */
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer == UNKNOWN) {
        answer = processor_has_tiles() && system_allows_tiles() ? YES : NO;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == YES;
}

/* VDPBF16PS does twice the operations of a float32 multiply-add per second on AMD's Zen 5, and half of them on Intel's
 * Sapphire Rapids. */
static bool dot_products_pay(void) { return __builtin_cpu_is("amd"); }

#endif

/* Stores the kernels that this processor runs at `end`, and in *best the fastest of them. Returns the end of the list. */
static const rnn_kernels **available(const rnn_kernels **end, const rnn_kernels **best) {
    *best = NULL;
#ifdef RNN_X86_KERNELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512bf16")) {
            if (tiles_allowed()) *best = *end++ = &rnn_kernels_amx;
            *end++ = &rnn_kernels_avx512bf16;
            if (!*best && dot_products_pay()) *best = &rnn_kernels_avx512bf16;
        }
        *end++ = &rnn_kernels_avx512;
        if (!*best) *best = &rnn_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) *end++ = &rnn_kernels_avx2;
#endif
    *end++ = &rnn_kernels_baseline;
    *end++ = &rnn_kernels_reference;
    return end;
}

const rnn_kernels *rnn_kernels_choose(void) {
    const rnn_kernels *list[6], *best, **end = available(list, &best);
    const char *wish = getenv("RNN_ISA");
    for (const rnn_kernels **k = list; wish && k < end; k++) {
        if (!strcmp(wish, (*k)->name)) return *k;
    }
    return best ? best : list[0];
}

const char *rnn_kernel_name(void) { return rnn_kernels_choose()->name; }
