/* testing.c -- see testing.h. */
#include "testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

atomic_int checks_failed;

static uint64_t test_seed = 1;

int run_tests(const test *tests, size_t count) {
    int passed = 0, failed = 0;
    for (size_t i = 0; i < count; i++) {
        checks_failed = 0;
        test_seed = 1 + i;
        tests[i].run();
        printf("%s  %s\n", checks_failed ? "FAIL" : "ok  ", tests[i].name);
        if (checks_failed) {
            failed++;
        } else {
            passed++;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}

void *need(void *memory) {
    if (!memory) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

float *floats(size_t count) { return need(calloc(count + 1, sizeof(float))); }
double *doubles(size_t count) { return need(calloc(count + 1, sizeof(double))); }
int32_t *ints(size_t count) { return need(calloc(count + 1, sizeof(int32_t))); }

float *copy_floats(const float *x, size_t count) { return memcpy(floats(count), x, count * sizeof *x); }

double *widen(const float *x, size_t count) {
    double *d = doubles(count);
    for (size_t i = 0; i < count; i++) d[i] = x[i];
    return d;
}

/* A 64-bit linear congruential generator (Knuth, MMIX); its high bits are good enough for test data. */
double uniform_after(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) * 0x1p-53;
}

double uniform(void) { return uniform_after(&test_seed); }

void start_numbers(uint64_t seed) { test_seed = seed; }

float *random_floats(size_t count, double scale) {
    float *x = floats(count);
    for (size_t i = 0; i < count; i++) x[i] = (float)(scale * 3.4641 * (uniform() - 0.5));
    return x;
}

int32_t *random_tokens(size_t count, size_t V) {
    int32_t *x = ints(count);
    for (size_t i = 0; i < count; i++) x[i] = (int32_t)(uniform() * (double)V);
    return x;
}

double rel_err(const float *got, const double *want, size_t count) {
    double worst = 0.0, largest = 1e-8;
    for (size_t i = 0; i < count; i++) {
        double error = fabs(got[i] - want[i]);
        worst = error <= worst ? worst : error; /* a NaN is kept */
        if (isnan(error)) return error;
        largest = fmax(largest, fabs(want[i]));
    }
    return worst / largest;
}

bool same(const void *a, const void *b, size_t bytes) { return memcmp(a, b, bytes) == 0; }
