/* test_optimizers.c -- the updates against plain formulas, and that of some words against that of all. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rnnlib.h"
#include "testing.h"
#include "tests.h"

/* Each step has a gradient for a few words; what they and all others become is what an update of everything gives, bit for bit.
 * The numbers of a row after the first `decayed` are updated without weight decay. */
static void some_words(int32_t width, int32_t decayed) {
    enum { WORDS = 23, COUNT = 150 };
    size_t size = WORDS * (size_t)width;
    float *p = random_floats(size, 1.0), *m = floats(size), *v = floats(size), *average = copy_floats(p, size);
    float *want = copy_floats(p, size), *want_m = floats(size), *want_v = floats(size);
    float *want_average = copy_floats(p, size), averaging[RNN_MAX_STEPS] = {0};
    int32_t done[WORDS] = {0}, steps = 0;
    rnn_words words = {p, m, v, average, done, WORDS, width, decayed};
    rnn_adamw options[RNN_MAX_STEPS];
    for (int32_t step = 1; step <= COUNT; step++) {
        int32_t ids[WORDS], count = 0;
        for (int32_t id = step % 3; id < WORDS; id += 1 + (step * 7 + id) % 11) ids[count++] = id;
        float *few = random_floats((size_t)count * (size_t)width, step % 5 ? 1.0 : 1e-6), *all = floats(size);
        for (int32_t i = 0; i < count; i++) {
            memcpy(all + ids[i] * width, few + i * width, (size_t)width * sizeof *few);
        }
        CHECK(rnn_adamw_words(&words, ids, count, options, averaging, steps, NULL, 0.0f, 2) == RNN_OK);
        for (int32_t i = 0; i < count; i++) {
            CHECK(same(p + ids[i] * width, want + ids[i] * width, (size_t)width * sizeof *p));
        }
        options[steps] = (rnn_adamw){1e-2f / (float)step, 0.9f, 0.999f, 1e-8f, 0.1f, step};
        averaging[steps++] = step % 4 ? 0.0f : 0.2f;
        CHECK(rnn_adamw_words(&words, ids, count, options, averaging, steps, few, 0.5f, 2) == RNN_OK);
        rnn_adamw *now = options + steps - 1;
        rnn_adamw undecayed = *now;
        undecayed.weight_decay = 0.0f;
        for (size_t at = 0; at < size; at += (size_t)width) {
            size_t bias = at + (size_t)decayed;
            int64_t rest = width - decayed;
            CHECK(rnn_adamw_update(want + at, all + at, want_m + at, want_v + at, decayed, 0.5f, now, 1) == RNN_OK);
            CHECK(rnn_adamw_update(want + bias, all + bias, want_m + bias, want_v + bias, rest, 0.5f, &undecayed, 1) ==
                  RNN_OK);
        }
        CHECK(rnn_average_update(want_average, want, (int64_t)size, averaging[steps - 1], 2) == RNN_OK);
        if (steps == RNN_MAX_STEPS || step == COUNT) {
            CHECK(rnn_adamw_words(&words, NULL, 0, options, averaging, steps, NULL, 0.0f, 3) == RNN_OK);
            CHECK(done[0] == steps && done[WORDS - 1] == steps);
            memset(done, 0, sizeof done);
            steps = 0;
        }
        free(few);
        free(all);
    }
    CHECK(same(p, want, size * sizeof *p) && same(average, want_average, size * sizeof *p));
    CHECK(same(m, want_m, size * sizeof *m) && same(v, want_v, size * sizeof *v));
    float *all[] = {p, m, v, average, want, want_m, want_v, want_average};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

void test_some_words_are_updated_as_all_are(void) {
    static const int32_t widths[] = {1, 7, 16, 101, 301};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        some_words(widths[i], widths[i]);
        some_words(widths[i], widths[i] - 1);
    }
}

void test_words_that_are_refused(void) {
    enum { WORDS = 3, WIDTH = 2 };
    float p[WORDS * WIDTH] = {1, 2, 3, 4, 5, 6}, m[WORDS * WIDTH] = {0}, v[WORDS * WIDTH] = {0}, mean[WORDS * WIDTH];
    float g[WORDS * WIDTH] = {1, 1, 1, 1, 1, 1}, averaging[RNN_MAX_STEPS + 1] = {0}, before[WORDS * WIDTH];
    memcpy(mean, p, sizeof p);
    memcpy(before, p, sizeof p);
    int32_t done[WORDS] = {0}, two[] = {0, 2}, back[] = {2, 0}, outside[] = {1, 3}, negative[] = {-1, 1};
    rnn_adamw options[RNN_MAX_STEPS + 1];
    for (int32_t s = 0; s <= RNN_MAX_STEPS; s++) options[s] = (rnn_adamw){1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, s + 1};
    rnn_words words = {p, m, v, mean, done, WORDS, WIDTH, WIDTH - 1}, other = words;
#define UPDATE(words_, ids_, count_, steps_, grads_, scale_)                                                           \
    rnn_adamw_words(words_, ids_, count_, options, averaging, steps_, grads_, scale_, 1)
    CHECK(UPDATE(NULL, two, 2, 1, g, 1.0f) == RNN_E_NULL);
    CHECK(rnn_adamw_words(&words, two, 2, NULL, averaging, 1, g, 1.0f, 1) == RNN_E_NULL);
    CHECK(rnn_adamw_words(&words, two, 2, options, NULL, 1, g, 1.0f, 1) == RNN_E_NULL);
    other.done = NULL;
    CHECK(UPDATE(&other, two, 2, 1, g, 1.0f) == RNN_E_NULL);
    CHECK(UPDATE(&words, back, 2, 1, g, 1.0f) == RNN_E_TOKEN);
    CHECK(UPDATE(&words, outside, 2, 1, g, 1.0f) == RNN_E_TOKEN);
    CHECK(UPDATE(&words, negative, 2, 1, g, 1.0f) == RNN_E_TOKEN);
    CHECK(UPDATE(&words, two, 4, 1, g, 1.0f) == RNN_E_DIM && UPDATE(&words, two, -1, 1, g, 1.0f) == RNN_E_DIM);
    CHECK(UPDATE(&words, two, 2, RNN_MAX_STEPS + 1, g, 1.0f) == RNN_E_DIM);
    CHECK(UPDATE(&words, two, 2, -1, NULL, 1.0f) == RNN_E_DIM);
    CHECK(UPDATE(&words, two, 2, 1, g, NAN) == RNN_E_ARG);
    CHECK(UPDATE(&words, two, 2, 0, g, 1.0f) == RNN_E_ARG); /* a gradient, and no step that it belongs to */
    other = words;
    other.width = RNN_MAX_HIDDEN + 2;
    CHECK(UPDATE(&other, two, 2, 1, g, 1.0f) == RNN_E_DIM);
    other.width = WIDTH;
    other.decayed = WIDTH + 1;
    CHECK(UPDATE(&other, two, 2, 1, g, 1.0f) == RNN_E_DIM);
    other.decayed = -1;
    CHECK(UPDATE(&other, two, 2, 1, g, 1.0f) == RNN_E_DIM);
    other.decayed = WIDTH;
    other.count = 0;
    CHECK(UPDATE(&other, NULL, 0, 1, NULL, 1.0f) == RNN_E_DIM);
    done[2] = 2;
    CHECK(UPDATE(&words, two, 2, 2, g, 1.0f) == RNN_E_ARG && UPDATE(&words, two, 2, 1, NULL, 1.0f) == RNN_E_ARG);
    done[2] = -1;
    CHECK(UPDATE(&words, two, 2, 2, NULL, 1.0f) == RNN_E_ARG);
    done[2] = 0;
    options[1].lr = NAN;
    CHECK(UPDATE(&words, two, 2, 2, g, 1.0f) == RNN_E_ARG);
    averaging[0] = 1.5f;
    CHECK(UPDATE(&words, two, 2, 1, g, 1.0f) == RNN_E_ARG);
    CHECK(rnn_average_update(mean, p, WORDS, NAN, 1) == RNN_E_ARG);
    CHECK(rnn_average_update(NULL, p, WORDS, 0.5f, 1) == RNN_E_NULL);
    CHECK(rnn_average_update(mean, p, -1, 0.5f, 1) == RNN_E_DIM);
#undef UPDATE
    CHECK(same(p, before, sizeof p) && same(mean, before, sizeof p) && done[0] == 0 && done[2] == 0);
}

void test_optimizers(void) {
    enum { COUNT = 1003, STEPS = 50 };
    for (int kind = 0; kind < 3; kind++) { /* SGD, with momentum, AdamW */
        float *p = random_floats(COUNT, 1.0), *m = floats(COUNT), *v = floats(COUNT);
        double *want = widen(p, COUNT), *want_m = doubles(COUNT), *want_v = doubles(COUNT);
        for (int step = 1; step <= STEPS; step++) {
            float *g = random_floats(COUNT, 1.0);
            rnn_adamw options = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, step};
            if (kind == 2) {
                CHECK(rnn_adamw_update(p, g, m, v, COUNT, 0.5f, &options, 2) == RNN_OK);
            } else {
                CHECK(rnn_sgd_update(p, g, kind ? v : NULL, COUNT, 0.5f, 0.1f, kind ? 0.9f : 0.0f, 2) == RNN_OK);
            }
            for (size_t i = 0; i < COUNT; i++) {
                double d = 0.5 * g[i];
                if (kind < 2) {
                    want_v[i] = (kind ? 0.9f : 0.0) * want_v[i] + d;
                    want[i] -= 0.1f * want_v[i];
                    continue;
                }
                want[i] *= 1.0 - (double)options.lr * options.weight_decay;
                want_m[i] = options.beta1 * want_m[i] + (1.0 - options.beta1) * d;
                want_v[i] = options.beta2 * want_v[i] + (1.0 - options.beta2) * d * d;
                double m_hat = want_m[i] / (1.0 - pow(options.beta1, step));
                double v_hat = want_v[i] / (1.0 - pow(options.beta2, step));
                want[i] -= options.lr * m_hat / (sqrt(v_hat) + options.epsilon);
            }
            free(g);
        }
        CHECK_BELOW(rel_err(p, want, COUNT), 2e-6);
        free(p);
        free(m);
        free(v);
        free(want);
        free(want_m);
        free(want_v);
    }
}

void test_optimizer_refusals(void) {
    enum { COUNT = 100 };
    float *g = random_floats(COUNT, 1.0), *p = random_floats(COUNT, 1.0), *m = floats(COUNT), *v = floats(COUNT);
    float *p0 = copy_floats(p, COUNT), *m0 = copy_floats(m, COUNT);
    double norm = 7.0, one = 0.0, four = 0.0, want = 0.0;
    for (size_t i = 0; i < COUNT; i++) want += (double)g[i] * g[i];
    CHECK(rnn_grad_norm(g, COUNT, 1, &one) == RNN_OK && rnn_grad_norm(g, COUNT, 4, &four) == RNN_OK);
    CHECK_BELOW(fabs(one - sqrt(want)), 1e-12);
    CHECK(one == four);
    float huge[3] = {3e38f, 3e38f, 3e38f};
    CHECK(rnn_grad_norm(huge, 3, 1, &one) == RNN_OK && isfinite(one)); /* the squares need a double's range */
    g[57] = NAN;
    CHECK(rnn_grad_norm(g, COUNT, 1, &norm) == RNN_E_NONFINITE);
    g[57] = -INFINITY;
    CHECK(rnn_grad_norm(g, COUNT, 2, &norm) == RNN_E_NONFINITE);
    CHECK(rnn_grad_norm(NULL, COUNT, 1, &norm) == RNN_E_NULL);
    CHECK(rnn_grad_norm(g, -1, 1, &norm) == RNN_E_DIM);
    CHECK(rnn_grad_norm(g, COUNT, 0, &norm) == RNN_E_ARG);
    CHECK(norm == 7.0);
    CHECK(rnn_sgd_update(p, g, NULL, COUNT, 1.0f, 0.1f, 0.9f, 1) == RNN_E_NULL);
    CHECK(rnn_sgd_update(p, g, m, -1, 1.0f, 0.1f, 0.9f, 1) == RNN_E_DIM);
    CHECK(rnn_sgd_update(p, g, m, COUNT, NAN, 0.1f, 0.9f, 1) == RNN_E_ARG);
    CHECK(rnn_sgd_update(p, g, m, COUNT, 1.0f, -0.1f, 0.9f, 1) == RNN_E_ARG);
    CHECK(rnn_sgd_update(p, g, m, COUNT, 1.0f, INFINITY, 0.9f, 1) == RNN_E_ARG);
    CHECK(rnn_sgd_update(p, g, m, COUNT, 1.0f, 0.1f, 1.0f, 1) == RNN_E_ARG);
    rnn_adamw good = {1e-3f, 0.9f, 0.999f, 1e-8f, 0.0f, 1}, bad[6] = {good, good, good, good, good, good};
    bad[0].lr = NAN;
    bad[1].beta1 = 1.0f;
    bad[2].beta2 = -0.1f;
    bad[3].epsilon = -1.0f;
    bad[4].weight_decay = NAN;
    bad[5].step = 0;
    for (int i = 0; i < 6; i++) CHECK(rnn_adamw_update(p, g, m, v, COUNT, 1.0f, &bad[i], 1) == RNN_E_ARG);
    CHECK(rnn_adamw_update(p, g, m, NULL, COUNT, 1.0f, &good, 1) == RNN_E_NULL);
    CHECK(same(p, p0, COUNT * sizeof *p) && same(m, m0, COUNT * sizeof *m) && same(v, m0, COUNT * sizeof *m));
    free(g);
    free(p);
    free(m);
    free(v);
    free(p0);
    free(m0);
}
