/* peak.c -- measure this machine's limits on THREADS threads: prints GFLOP/s of multiply-adds and GB/s of copying.
 *
 *     peak THREADS
 *
 * Multiply-adds: enough independent chains to hide the latency of each, without memory accesses, compiled for the machine
 * it runs on. Copying: memcpy of a buffer far larger than the caches; each byte counts twice, once read, once written.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { LANES = 16, CHAINS = 12, ROUNDS = 4 << 20, SAMPLES = 5 };
typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float multiply_add(void) {
    vec sum[CHAINS], a = (vec){0} + 0.999f, b = (vec){0} + 0.001f;
    for (int c = 0; c < CHAINS; c++) sum[c] = (vec){0} + (float)c;
    for (int i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * a + b;
    }
    float total = 0.0f;
    for (int c = 0; c < CHAINS; c++) total += sum[c][0];
    return total;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    size_t bytes = (size_t)128 << 20;
    double flops = 0.0, copied = 0.0;
    float total = 0.0f;
    char *from = malloc(bytes * (size_t)threads), *to = malloc(bytes * (size_t)threads);
    if (threads < 1 || !from || !to) return 1;
    memset(from, 1, bytes * (size_t)threads);
    memset(to, 2, bytes * (size_t)threads);
    for (int sample = 0; sample < SAMPLES; sample++) {
        double start = now();
#pragma omp parallel num_threads(threads) reduction(+ : total)
        total += multiply_add();
        double rate = 2.0 * LANES * CHAINS * (double)ROUNDS * threads / (now() - start);
        if (rate > flops) flops = rate;
        start = now();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int t = 0; t < threads; t++) memcpy(to + bytes * (size_t)t, from + bytes * (size_t)t, bytes);
        rate = 2.0 * (double)bytes * threads / (now() - start);
        if (rate > copied) copied = rate;
    }
    printf("%.1f %.1f\n", flops / 1e9, copied / 1e9);
    if (total == 0.0f) puts("never"); /* the sums are used, so the compiler must compute them */
    free(from);
    free(to);
    return 0;
}
