/* test_kernels.c -- the kernels one by one, against plain sums in double. RNN_ISA says which ones. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "testing.h"
#include "tests.h"

/* The products of one size against plain sums in double. z are panels that lie b_panel apart, with room to spare. */
static void compare_products(const rnn_kernels *k, size_t m, size_t K, size_t cols) {
    size_t P = k->panel, panels = rnn_ceil_div(cols, P), lda = K + 3, ldb = cols + 5, apart = m * P + RNN_SKEW;
    float *a = random_floats(m * lda, 1.0), *b = random_floats(K * ldb, 1.0), *packed = floats(panels * P * K);
    float *z = random_floats(panels * apart, 1.0), *z0 = copy_floats(z, panels * apart);
    double *want = doubles(m * cols);
    float *got = floats(m * cols), largest = 0.0f;
    for (size_t i = 0; i < m * cols; i++) {
        for (size_t n = 0; n < K; n++) want[i] += (double)a[i / cols * lda + n] * b[n * ldb + i % cols];
    }
    for (size_t i = 0; i < K * cols; i++) largest = fmaxf(largest, fabsf(b[i / cols * ldb + i % cols]));
    CHECK(k->pack(b, ldb, K, cols, -3.0f, packed) == largest);

    /* C = A B and C += A B, in panels */
    for (int add = 0; add <= 1; add++) {
        k->multiply(m, K, panels, a, lda, packed, z, P, apart, add);
        for (size_t i = 0; i < m * cols; i++) {
            size_t at = i % cols / P * apart + i / cols * P + i % cols % P;
            got[i] = add ? z[at] - z0[at] : z[at];
        }
        CHECK_BELOW(rel_err(got, want, m * cols), 2e-6);
        memcpy(z0, z, panels * apart * sizeof *z);
    }
    float *last = z + (panels - 1) * apart; /* the padding of the last panel came from the last row only */
    k->multiply(m, K, panels, a, lda, packed, z, P, apart, false);
    for (size_t i = 0; i < m && cols % P; i++) CHECK(last[i * P + P - 1] == -3.0f * a[i * lda + K - 1]);

    /* A B as B lies, to the same bits */
    size_t ldc = rnn_round_up(cols, RNN_BLOCK);
    float *c = floats(m * ldc), *bias = random_floats(cols, 1.0);
    k->rows_times(m, K, cols, a, lda, b, ldb, bias, c, ldc);
    for (size_t i = 0; i < m * ldc; i++) {
        size_t v = i % ldc;
        CHECK(c[i] == (v < cols ? z[v / P * apart + i / ldc * P + v % P] + bias[v] : 0.0f));
    }

    /* B Z^T, over whole panels: Z is what multiply has made of them */
    float *back = random_floats(m * (K + 1), 1.0), *want_back_f = floats(m * K);
    double *want_back = doubles(m * K);
    k->multiply_bt(m, K, panels, z, apart, packed, K * P, back, K + 1);
    for (size_t i = 0; i < m * K; i++) {
        for (size_t v = 0; v < panels * P; v++) {
            want_back[i] += (double)z[v / P * apart + i / K * P + v % P] * packed[(v / P * K + i % K) * P + v % P];
        }
        want_back_f[i] = back[i / K * (K + 1) + i % K];
    }
    CHECK_BELOW(rel_err(want_back_f, want_back, m * K), 2e-6);

    /* A^T Z, and nothing beyond the columns that there are */
    float *grad = random_floats((lda + 1) * ldb, 1.0), *grad0 = copy_floats(grad, (lda + 1) * ldb);
    double *want_grad = doubles(K * cols);
    float *got_grad = floats(K * cols);
    for (size_t i = 0; i < K * cols; i++) {
        for (size_t n = 0; n < m; n++) {
            size_t v = i % cols;
            want_grad[i] += (double)a[n * lda + i / cols] * z[v / P * apart + n * P + v % P];
        }
    }
    for (int add = 0; add <= 1; add++) {
        k->multiply_at(K, m, cols, a, lda, z, P, apart, grad, ldb, add);
        for (size_t i = 0; i < K * cols; i++) {
            size_t at = i / cols * ldb + i % cols;
            got_grad[i] = add ? grad[at] - grad0[at] : grad[at];
        }
        CHECK_BELOW(rel_err(got_grad, want_grad, K * cols), 2e-6);
        for (size_t i = 0; i < K; i++) CHECK(same(grad + i * ldb + cols, grad0 + i * ldb + cols, 5 * sizeof *grad));
        memcpy(grad0, grad, (lda + 1) * ldb * sizeof *grad);
    }
    free(a), free(b), free(packed), free(z), free(z0), free(want), free(got), free(c), free(bias);
    free(back), free(want_back_f), free(want_back), free(grad), free(grad0), free(want_grad), free(got_grad);
}

void test_products(void) {
    static const size_t sizes[][3] = {{1, 1, 1},     {13, 101, 31}, {7, 99, 33},  {1, 100, 576}, {2, 2, 577},
                                      {3, 37, 64},   {4, 5, 65},    {5, 64, 130}, {6, 1, 127},   {12, 12, 200},
                                      {16, 29, 575}, {3, 7, 5},     {2, 9, 11}};
    for (size_t m = 1; m <= 19; m++) compare_products(rnn_kernels_choose(), m, 21, 150 + m);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        compare_products(rnn_kernels_choose(), sizes[i][0], sizes[i][1], sizes[i][2]);
    }
}

/* What the copies of a matrix hold, how near it is, and that one row and many give the same bits. */
void test_copies(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    enum { K = 37, ROWS = 13 };
    for (size_t cols = k->wide - 1; cols <= k->wide; cols++) {
        for (int32_t precision = RNN_PRECISION_BF16; precision <= RNN_PRECISION_INT8; precision++) {
            float *w = random_floats(K * cols, 1.0), *unit = floats(K * K), *kept = floats(K * k->wide);
            float *h = random_floats(ROWS * K, 1.0), *many = floats(ROWS * k->wide), *one = floats(k->wide);
            float *scale = floats(cols), *got = floats(ROWS * cols);
            double *want = doubles(ROWS * cols);
            uint32_t *packed = need(calloc(K * k->wide, sizeof *packed));
            for (size_t i = 0; i < K; i++) unit[i * K + i] = 1.0f; /* times the copy, it shows what the copy holds */
            k->compress(precision, w, cols, K, cols, packed, scale);
            k->rows_times_packed(K, precision, K, unit, K, packed, kept, k->wide);
            for (size_t i = 0; i < K * cols; i++) {
                size_t v = i % cols;
                double limit = precision == RNN_PRECISION_BF16 ? fabs(w[i]) / 256.0 : 0.5001 * scale[v];
                CHECK_BELOW(fabs(kept[i / cols * k->wide + v] * scale[v] - w[i]), limit);
            }
            for (size_t m = 1; m <= ROWS; m++) {
                k->rows_times_packed(m, precision, K, h, K, packed, many, k->wide);
                for (size_t i = 0; i < m; i++) {
                    k->rows_times_packed(1, precision, K, h + i * K, K, packed, one, k->wide);
                    CHECK(same(one, many + i * k->wide, k->wide * sizeof *one));
                }
            }
            for (size_t i = 0; i < ROWS * cols; i++) {
                got[i] = many[i / cols * k->wide + i % cols];
                for (size_t n = 0; n < K; n++) {
                    want[i] += (double)h[i / cols * K + n] * kept[n * k->wide + i % cols];
                }
            }
            CHECK_BELOW(rel_err(got, want, ROWS * cols), 2e-6);
            free(w), free(unit), free(kept), free(h), free(many), free(one), free(scale), free(got), free(want);
            free(packed);
        }
    }
}

/* exp and tanh on a fine grid, with the errors that vector.h promises; then the values that have no neighbours. */
void test_exp_and_tanh(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    enum { COUNT = 200003 };
    float *x = floats(COUNT), *y = floats(COUNT), *e = floats(COUNT);
    double worst_exp = 0.0, worst_tanh = 0.0, want_sum = 0.0;
    for (size_t i = 0; i < COUNT; i++) x[i] = (float)(-87.3 * (double)i / COUNT);
    double sum = k->exp_sum(COUNT, x, 0.0f, 1.0f, e);
    CHECK(k->exp_sum(COUNT, x, 0.0f, 1.0f, NULL) == sum);
    for (size_t i = 0; i < COUNT; i++) {
        worst_exp = worse(worst_exp, fabs(e[i] / exp((double)x[i]) - 1.0));
        want_sum += exp((double)x[i]);
    }
    CHECK_BELOW(worst_exp, 2e-7);
    CHECK_BELOW(fabs(sum / want_sum - 1.0), 1e-7);
    for (size_t i = 0; i < COUNT; i++) x[i] = y[i] = (float)(24.0 * (double)i / COUNT - 12.0);
    k->tanh(COUNT, y);
    for (size_t i = 0; i < COUNT; i++) worst_tanh = worse(worst_tanh, fabs(y[i] - tanh((double)x[i])));
    CHECK_BELOW(worst_tanh, 1e-7);

    float odd[] = {0.0f, -INFINITY, -1e30f, -1000.0f, NAN}, odd_exp[5];
    CHECK(isnan(k->exp_sum(5, odd, 0.0f, 1.0f, odd_exp)));
    CHECK(odd_exp[0] == 1.0f && odd_exp[1] == 0.0f && isnan(odd_exp[4]));
    CHECK(odd_exp[2] == 0.0f && odd_exp[3] == 0.0f);
    float far[] = {INFINITY, -INFINITY, 1e30f, -1e30f, 0.0f, -0.0f, NAN, 1e-30f};
    k->tanh(8, far);
    CHECK(far[0] == 1.0f && far[1] == -1.0f && far[2] == 1.0f && far[3] == -1.0f && far[4] == 0.0f && isnan(far[6]));
    CHECK_BELOW(fabs(far[7] / 1e-30 - 1.0), 1e-6); /* small values keep their relative accuracy */
    free(x), free(y), free(e);
}

/* Rows of panels: each row's maximum, the sum of its exponentials, and those, with logits of any size. */
static void compare_softmax(const rnn_kernels *k, bool rounded) {
    enum { ROWS = 7 };
    size_t P = k->panel, panels = 3, apart = ROWS * P + 11;
    float *z = random_floats(panels * apart, 1.0), max[ROWS];
    double sum[ROWS], unit = rounded ? 0.69314718055994530942 : 1.0; /* max counts powers of 2, or of e */
    for (size_t i = 0; i < panels * apart; i++) z[i] = (float)(80.0 * (2.0 * uniform() - 1.0));
    for (size_t v = 0; v < panels * P; v++) {
        z[v / P * apart + v % P] = 5.0f;                                 /* row 0: all equal */
        z[v / P * apart + P + v % P] = v == 2 * P ? 0.0f : -INFINITY;    /* row 1: one holds everything */
        if (v == 1) z[v / P * apart + 2 * P + v % P] = NAN;              /* row 2 */
        if (v == 4) z[v / P * apart + 3 * P + v % P] = INFINITY;         /* row 3 */
        if (v < 8) z[v / P * apart + 4 * P + v % P] = 250.0f - (float)v; /* row 4 */
    }
    float *z0 = copy_floats(z, panels * apart);
    (rounded ? k->softmax_rounded : k->softmax)(ROWS, panels, z, apart, max, sum);
    CHECK(rounded ? max[0] == 8.0f : max[0] == 5.0f && sum[0] == (double)(panels * P));
    CHECK(max[1] == 0.0f && sum[1] == 1.0);
    CHECK(!isfinite(sum[2]) && !isfinite(sum[3]));
    for (size_t i = 4; i < ROWS; i++) {
        double want = 0.0;
        float top = -INFINITY;
        for (size_t v = 0; v < panels * P; v++) top = fmaxf(top, z0[v / P * apart + i * P + v % P]);
        for (size_t v = 0; v < panels * P; v++) {
            size_t at = v / P * apart + i * P + v % P;
            double e = exp(z0[at] - max[i] * unit), limit = rounded ? e * (1.0 / 256.0 + 1e-6) + 1e-37 : 2e-7;
            want += e;
            CHECK_BELOW(fabs(z[at] - e), limit);
            CHECK(!rounded || z[at] == rnn_widen_bfloat16(rnn_round_bfloat16(z[at])));
        }
        CHECK(max[i] == (rounded ? ceilf((float)(top / unit)) : top));
        CHECK_BELOW(fabs(sum[i] / want - 1.0), 2e-7);
    }
    for (size_t p = 0; p < panels; p++) CHECK(same(z + p * apart + ROWS * P, z0 + p * apart + ROWS * P, 11 * 4));
    free(z), free(z0);
}

void test_softmax(void) {
    compare_softmax(rnn_kernels_choose(), false);
    compare_softmax(rnn_kernels_choose(), true);
}

/* The passes over a vector, at lengths on both sides of every block of theirs. */
void test_passes(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    for (size_t count = 1; count < 150; count++) {
        float *x = random_floats(count, 1.0), *rounded = floats(count), *out = floats(count);
        float max = -INFINITY, max_abs = 0.0f, weights[] = {0.5f, NAN, -2.0f};
        float *terms = random_floats(2 * count, 1.0);
        double squares = 0.0, *want = doubles(count);
        for (size_t i = 0; i < count; i++) {
            max = fmaxf(max, x[i]);
            max_abs = fmaxf(max_abs, fabsf(x[i]));
            squares += (double)x[i] * x[i];
            want[i] = 0.5 * terms[i] - 2.0 * terms[count + i];
        }
        CHECK(k->max(count, x) == max && k->max_abs(count, x) == max_abs);
        CHECK_BELOW(fabs(k->sum_squares(count, x) / squares - 1.0), 1e-12);
        k->weighted_sum(2, count, weights, 2, terms, count, out);
        CHECK_BELOW(rel_err(out, want, count), 1e-6);
        memcpy(rounded, x, count * sizeof *x);
        rounded[count / 3] = NAN;
        k->round(count, rounded);
        for (size_t i = 0; i < count; i++) {
            CHECK(i == count / 3 ? isnan(rounded[i]) : rounded[i] == rnn_widen_bfloat16(rnn_round_bfloat16(x[i])));
        }
        x[count - 1] = -INFINITY;
        CHECK(k->max_abs(count, x) == INFINITY);
        x[count - 1] = NAN;
        CHECK(k->max_abs(count, x) == INFINITY && isnan(k->sum_squares(count, x)));
        free(x), free(rounded), free(out), free(terms), free(want);
    }
}

/* What a cut asks of logits, at levels that some of them meet exactly. */
void test_levels(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    static const size_t counts[] = {1, 2, 15, 16, 17, 63, 64, 65, 150, 575, 576};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        enum { FIRST = 1152, BEFORE = 3 };
        size_t count = counts[c], want_above = 10, want_found = BEFORE, above = 10;
        float *z = floats(count), *other = random_floats(count, 1.0), levels[RNN_LEVELS] = {0.5f, 0.25f, 0.125f};
        for (size_t i = 0; i < count; i++) z[i] = i % 7 == 5 ? -INFINITY : rintf((float)uniform() * 64.0f) / 64.0f;
        double numbers[RNN_LEVELS], sums[RNN_LEVELS], sum = 9.0, want_sum = 0.0;
        double want_numbers[RNN_LEVELS] = {0.0}, want_sums[RNN_LEVELS] = {0.0};
        size_t room = BEFORE + count + RNN_ALIGN / sizeof(float);
        rnn_found found = {ints(room), floats(room), NULL}, want = {ints(room), floats(room), NULL};
        rnn_split split = {.low = 0.125f, .high = 0.5f, .max = 1.0f, .beta = 2.0f};
        for (size_t i = 0; i < count; i++) {
            for (size_t j = 0; j < RNN_LEVELS; j++) {
                want_numbers[j] += z[i] >= levels[j];
                want_sums[j] += z[i] >= levels[j] ? (double)other[i] : 0.0;
            }
            if (z[i] >= split.high) {
                want_above++;
                want_sum += exp((z[i] - 1.0) * 2.0);
            } else if (z[i] >= split.low) {
                want.tokens[want_found] = (int32_t)(FIRST + i);
                want.logits[want_found++] = z[i];
            }
        }
        k->tally(count, z, NULL, levels, numbers);
        k->tally(count, z, other, levels, sums);
        for (size_t j = 0; j < RNN_LEVELS; j++) {
            CHECK(numbers[j] == want_numbers[j]);
            CHECK_BELOW(fabs(sums[j] - want_sums[j]), 1e-5 * (double)(count + 10));
        }
        CHECK(k->part(count, z, FIRST, &split, &sum, &above, found, BEFORE) == want_found && above == want_above);
        CHECK_BELOW(fabs(sum - want_sum), 1e-6 * (want_sum + 1.0));
        CHECK(same(found.tokens, want.tokens, want_found * sizeof *want.tokens));
        CHECK(same(found.logits, want.logits, want_found * sizeof *want.logits));
        double before = sum;
        CHECK(k->part(count, z, FIRST, &split, &sum, NULL, found, BEFORE) == want_found && sum == before);
        /* Down to the smallest that is finite, and nothing above. */
        split = (rnn_split){.low = -FLT_MAX, .high = INFINITY, .max = 1.0f, .beta = 2.0f};
        want_found = 0;
        for (size_t i = 0; i < count; i++) want_found += z[i] > -INFINITY;
        CHECK(k->part(count, z, 0, &split, &sum, &above, found, 0) == want_found && above == want_above && sum == 0.0);
        free(z), free(other), free(found.tokens), free(found.logits), free(want.tokens), free(want.logits);
    }
}
