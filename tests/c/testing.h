/* testing.h -- what the C tests share: checks, memory, random numbers, and the loop over the tests. */
#ifndef RNN_TESTING_H
#define RNN_TESTING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

extern atomic_int checks_failed; /* in the test that runs; its threads count together */

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("    %s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                       \
            checks_failed++;                                                                                           \
        }                                                                                                              \
    } while (0)

#define CHECK_BELOW(value, limit)                                                                                      \
    do {                                                                                                               \
        double value_ = (value);                                                                                       \
        if (!(value_ <= (limit))) {                                                                                    \
            printf("    %s:%d: %s is %g, limit %g\n", __FILE__, __LINE__, #value, value_, (double)limit);              \
            checks_failed++;                                                                                           \
        }                                                                                                              \
    } while (0)

/* The larger error of two, and NaN if one is: fmax would drop it. */
static inline double worse(double worst, double error) { return error <= worst || worst != worst ? worst : error; }

typedef struct test {
    const char *name;
    void (*run)(void);
} test;

/* Runs the tests in order, a line for each, then "N passed, M failed". Returns the program's exit code. */
int run_tests(const test *tests, size_t count);

/* `memory`, or where it is NULL the end of the program. */
void *need(void *memory);

/* Arrays of `count` zeros, to be freed. */
float *floats(size_t count);
double *doubles(size_t count);
int32_t *ints(size_t count);

float *copy_floats(const float *x, size_t count);
double *widen(const float *x, size_t count);

/* The next number in [0, 1) of the sequence at `seed`. */
double uniform_after(uint64_t *seed);

/* The next number of the running test's own sequence, which is not for threads; it is the same in every run. */
double uniform(void);

/* Starts the running test's sequence at `seed`: its numbers then do not depend on the tests before it. */
void start_numbers(uint64_t seed);

float *random_floats(size_t count, double scale); /* uniform around 0, of standard deviation `scale` */
int32_t *random_tokens(size_t count, size_t V);

/* The largest difference over the largest number wanted, or NaN where there is one. */
double rel_err(const float *got, const double *want, size_t count);

bool same(const void *a, const void *b, size_t bytes);

#endif
