/* peak.c -- measures this machine's limits on THREADS threads, each the best of a few samples, and prints one a line:
 *
 *     peak THREADS
 *     float32 GFLOP/s of multiply-adds
 *     bfloat16 GFLOP/s of VDPBF16PS          (where the processor has it)
 *     tiles GFLOP/s of TDPBF16PS, AMX        (likewise)
 *     exponentials 10^9 a second             (those of csrc/vector.h)
 *     copy GB/s of memcpy                    (each byte counts twice, once read, once written)
 *
 * All but the last work on registers: enough independent chains to hide the latency of each operation, in each of which an
 * operation needs the result of the one before, so that a compiler can neither leave one out nor move it out of the loop.
 * Copying is of buffers far larger than the caches. Compile it for the machine that it runs on.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../csrc/vector.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { CHAINS = 12, EXP_CHAINS = 8, TILES = 4, ROUNDS = 1 << 22, SAMPLES = 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Each of the following returns the operations that it has done, and adds what they gave to *total. */

static double multiply_adds(float *total) {
    vec sum[CHAINS], a = splat(0.999f), b = splat(0.001f);
    for (int c = 0; c < CHAINS; c++) sum[c] = splat((float)c);
    for (int i = 0; i < ROUNDS; i++) {
        UNROLL for (int c = 0; c < CHAINS; c++) sum[c] = multiply_add(sum[c], a, b);
    }
    for (int c = 0; c < CHAINS; c++) *total += sum[c][0];
    return 2.0 * LANES * CHAINS * (double)ROUNDS;
}

static double exponentials(float *total) {
    enum { TIMES = ROUNDS / 8 };
    vec x[EXP_CHAINS];
    for (int c = 0; c < EXP_CHAINS; c++) x[c] = splat(-0.1f * (float)c);
    for (int i = 0; i < TIMES; i++) {
        UNROLL for (int c = 0; c < EXP_CHAINS; c++) x[c] = exp_of(-x[c]); /* tends to 0.567 */
    }
    for (int c = 0; c < EXP_CHAINS; c++) *total += x[c][0];
    return (double)LANES * EXP_CHAINS * (double)TIMES;
}

static double dot_products(float *total) {
#ifdef __AVX512BF16__
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3c23); /* 1 and 0.01 */
    for (int c = 0; c < CHAINS; c++) sum[c] = _mm512_set1_ps((float)c);
    for (int i = 0; i < ROUNDS; i++) {
        UNROLL for (int c = 0; c < CHAINS; c++) sum[c] = _mm512_dpbf16_ps(sum[c], a, b);
    }
    for (int c = 0; c < CHAINS; c++) *total += _mm512_cvtss_f32(sum[c]);
    return 4.0 * LANES * CHAINS * (double)ROUNDS;
#else
    (void)total;
    return 0.0;
#endif
}

#if defined(__x86_64__) && defined(__linux__)
/* Whether there are tiles, and the system lets this process use them. */
static bool tiles_allowed(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18, BF16 = 1 << 22, TILE = 1 << 24 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static double tiles(float *total) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    static const uint32_t ones[256] = {0x3f803f80};
    float out[256];
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = 16;
    }
    /* In assembly: gcc 12 drops the stores to a configuration that _tile_loadconfig reads. */
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    __asm__ volatile("tilezero %%tmm0\ntilezero %%tmm1\ntilezero %%tmm2\ntilezero %%tmm3" ::);
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm4\ntileloadd (%0,%1,1), %%tmm5" ::"r"(ones), "r"(64L) : "memory");
    for (int i = 0; i < ROUNDS / 16; i++) {
        __asm__ volatile("tdpbf16ps %%tmm5, %%tmm4, %%tmm0\ntdpbf16ps %%tmm5, %%tmm4, %%tmm1\n"
                         "tdpbf16ps %%tmm5, %%tmm4, %%tmm2\ntdpbf16ps %%tmm5, %%tmm4, %%tmm3" ::);
    }
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\ntilerelease" ::"r"(out), "r"(64L) : "memory");
    *total += out[0];
    return 2.0 * 16 * 16 * 32 * TILES * (ROUNDS / 16);
}
#else
static bool tiles_allowed(void) { return false; }
static double tiles(float *total) {
    (void)total;
    return 0.0;
}
#endif

static char *from, *to;
static size_t copied; /* bytes of each thread */

/* The best rate of all threads together, in 10^9 a second. */
static double rate_of(double (*work)(float *), int threads, float *total) {
    double best = 0.0;
    for (int sample = 0; sample < SAMPLES; sample++) {
        double start = now(), done = 0.0;
        float sum = 0.0f;
#pragma omp parallel num_threads(threads) reduction(+ : done, sum)
        done += work(&sum);
        double rate = done / (now() - start) / 1e9;
        if (rate > best) best = rate;
        *total += sum;
    }
    return best;
}

static double copy_rate(int threads) {
    double best = 0.0;
    for (int sample = 0; sample < SAMPLES; sample++) {
        double start = now();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int t = 0; t < threads; t++) memcpy(to + copied * (size_t)t, from + copied * (size_t)t, copied);
        double rate = 2.0 * (double)copied * threads / (now() - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    float total = 0.0f;
    if (threads < 1) return 1;
    copied = (size_t)128 << 20;
    from = malloc(copied * (size_t)threads);
    to = malloc(copied * (size_t)threads);
    if (!from || !to) return 1;
    memset(from, 1, copied * (size_t)threads);
    memset(to, 2, copied * (size_t)threads);
    printf("float32 %.1f\n", rate_of(multiply_adds, threads, &total));
    double dots = rate_of(dot_products, threads, &total);
    if (dots > 0.0) printf("bfloat16 %.1f\n", dots);
    if (tiles_allowed()) printf("tiles %.1f\n", rate_of(tiles, threads, &total));
    printf("exponentials %.2f\n", rate_of(exponentials, threads, &total));
    printf("copy %.1f\n", copy_rate(threads));
    if (total == 0.5f) puts("never"); /* what was computed is used, so it must be computed */
    free(from);
    free(to);
    return 0;
}
