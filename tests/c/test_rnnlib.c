/* test_rnnlib.c -- the C library against a plain double-precision model, and against its own promises.
 *
 * Links the library's objects, so that the kernels can be tested one by one. Runs with whatever RNN_ISA asks for.
 * Prints a line per test and "N passed, M failed"; the exit code is 0 only when none failed.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "rnnlib.h"

/* ---- Bookkeeping --------------------------------------------------------------------------------------------------- */

static int checks_failed; /* in the test that runs */

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

static void *need(void *memory) {
    if (!memory) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

static float *floats(size_t count) { return need(calloc(count + 1, sizeof(float))); }
static double *doubles(size_t count) { return need(calloc(count + 1, sizeof(double))); }
static int32_t *ints(size_t count) { return need(calloc(count + 1, sizeof(int32_t))); }

/* A 64-bit linear congruential generator (Knuth, MMIX); its high bits are good enough for test data. */
static uint64_t seed = 1;

static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static float *random_floats(size_t count, double scale) {
    float *x = floats(count);
    for (size_t i = 0; i < count; i++) x[i] = (float)(scale * 3.4641 * (uniform() - 0.5)); /* deviation: scale */
    return x;
}

static int32_t *random_tokens(size_t count, size_t V) {
    int32_t *x = ints(count);
    for (size_t i = 0; i < count; i++) x[i] = (int32_t)(uniform() * (double)V);
    return x;
}

static double rel_err(const float *got, const double *want, size_t count) {
    double worst = 0.0, largest = 1e-8;
    for (size_t i = 0; i < count; i++) {
        double error = fabs(got[i] - want[i]);
        worst = error <= worst ? worst : error; /* a NaN is kept */
        if (isnan(error)) return error;
        largest = fmax(largest, fabs(want[i]));
    }
    return worst / largest;
}

static float *copy_floats(const float *x, size_t count) { return memcpy(floats(count), x, count * sizeof *x); }

static bool same(const void *a, const void *b, size_t bytes) { return memcmp(a, b, bytes) == 0; }

/* ---- The model in plain double precision --------------------------------------------------------------------------- */

typedef struct problem {
    size_t V, E, H, T, B;
    rnn_dims dims;
    rnn_offsets at;
    float *params, *embeddings, *state;
    int32_t *x, *y;
} problem;

static problem make_problem(size_t V, size_t E, size_t H, size_t T, size_t B) {
    problem p = {.V = V, .E = E, .H = H, .T = T, .B = B};
    p.dims = (rnn_dims){(int32_t)V, (int32_t)E, (int32_t)H};
    p.at = rnn_param_offsets(V, E, H);
    p.params = random_floats(p.at.count, 1.0 / sqrt((double)H));
    for (size_t i = 0; i < E * H; i++) p.params[i] *= (float)sqrt((double)H / (double)E);
    p.embeddings = random_floats(V * E, 1.0);
    p.state = random_floats(B * H, 0.3);
    p.x = random_tokens(T * B, V);
    p.y = random_tokens(T * B, V);
    return p;
}

static void free_problem(problem *p) {
    free(p->params);
    free(p->embeddings);
    free(p->state);
    free(p->x);
    free(p->y);
}

static double *widen(const float *x, size_t count) {
    double *d = doubles(count);
    for (size_t i = 0; i < count; i++) d[i] = x[i];
    return d;
}

/* The loss of problem p with parameters q (double); grads (may be NULL) = scale * dloss/dq; logp may be NULL. */
static double plain_loss(const problem *p, const double *q, double scale, double *grads, double *state, double *logp) {
    size_t V = p->V, E = p->E, H = p->H, B = p->B, T = p->T;
    const double *wxh = q + p->at.wxh, *whh = q + p->at.whh, *bh = q + p->at.bh, *why = q + p->at.why;
    const double *by = q + p->at.by;
    double *h = doubles((T + 1) * B * H), *dh = doubles((T + 1) * B * H), *prob = doubles(V), loss = 0.0;
    for (size_t i = 0; i < B * H; i++) h[i] = p->state[i];
    for (size_t n = 0; n < T * B; n++) {
        const double *before = h + n * H;
        double *now = h + (n + B) * H, max = -INFINITY, sum = 0.0;
        const float *input = p->embeddings + (size_t)p->x[n] * E;
        for (size_t j = 0; j < H; j++) {
            double a = bh[j];
            for (size_t i = 0; i < E; i++) a += input[i] * wxh[i * H + j];
            for (size_t i = 0; i < H; i++) a += before[i] * whh[i * H + j];
            now[j] = tanh(a);
        }
        for (size_t v = 0; v < V; v++) {
            prob[v] = by[v];
            for (size_t i = 0; i < H; i++) prob[v] += now[i] * why[i * V + v];
            max = fmax(max, prob[v]);
        }
        for (size_t v = 0; v < V; v++) sum += exp(prob[v] - max);
        double lse = max + log(sum), here = prob[p->y[n]] - lse;
        loss -= here;
        if (logp) logp[n] = here;
        for (size_t v = 0; grads && v < V; v++) {
            double d = scale * (exp(prob[v] - lse) - ((size_t)p->y[n] == v));
            grads[p->at.by + v] += d;
            for (size_t i = 0; i < H; i++) {
                grads[p->at.why + i * V + v] += now[i] * d;
                dh[(n + B) * H + i] += d * why[i * V + v];
            }
        }
    }
    for (size_t n = T * B; grads && n-- > 0;) {
        const double *before = h + n * H, *now = h + (n + B) * H;
        const float *input = p->embeddings + (size_t)p->x[n] * E;
        for (size_t j = 0; j < H; j++) {
            double a = dh[(n + B) * H + j] * (1.0 - now[j] * now[j]);
            grads[p->at.bh + j] += a;
            for (size_t i = 0; i < E; i++) grads[p->at.wxh + i * H + j] += input[i] * a;
            for (size_t i = 0; i < H; i++) {
                grads[p->at.whh + i * H + j] += before[i] * a;
                dh[n * H + i] += a * whh[i * H + j];
            }
        }
    }
    for (size_t i = 0; state && i < B * H; i++) state[i] = h[T * B * H + i];
    free(h);
    free(dh);
    free(prob);
    return loss;
}

/* ---- Kernels, one by one --------------------------------------------------------------------------------------- */

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
    float *last = z + (panels - 1) * apart; /* what fills up the last panel came from the last row alone */
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

static void test_products(void) {
    static const size_t sizes[][3] = {{1, 1, 1},  {13, 101, 31}, {7, 99, 33}, {1, 100, 512}, {2, 2, 513},  {3, 37, 64},
                                      {4, 5, 65}, {5, 64, 130},  {6, 1, 127}, {12, 12, 200}, {16, 29, 511}};
    for (size_t m = 1; m <= 19; m++) compare_products(rnn_kernels_choose(), m, 21, 150 + m);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        compare_products(rnn_kernels_choose(), sizes[i][0], sizes[i][1], sizes[i][2]);
    }
}

/* What the copies of a matrix hold, how near it is, and that one row and many give the same bits. */
static void test_copies(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    enum { K = 37, ROWS = 13 };
    for (size_t cols = k->wide - 1; cols <= k->wide; cols++) {
        for (int32_t precision = RNN_PRECISION_BF16; precision <= RNN_PRECISION_INT8; precision++) {
            float *w = random_floats(K * cols, 1.0), *unit = floats(K * K), *kept = floats(K * k->wide);
            float *h = random_floats(ROWS * K, 1.0), *many = floats(ROWS * k->wide), *one = floats(k->wide);
            float *scale = floats(cols), *got = floats(ROWS * cols);
            double *want = doubles(ROWS * cols);
            uint32_t *words = need(calloc(K * k->wide, sizeof *words));
            for (size_t i = 0; i < K; i++) unit[i * K + i] = 1.0f; /* times the copy, it shows what the copy holds */
            k->compress(precision, w, cols, K, cols, words, scale);
            k->rows_times_words(K, precision, K, unit, K, words, kept, k->wide);
            for (size_t i = 0; i < K * cols; i++) {
                size_t v = i % cols;
                double limit = precision == RNN_PRECISION_BF16 ? fabs(w[i]) / 256.0 : 0.5001 * scale[v];
                CHECK_BELOW(fabs(kept[i / cols * k->wide + v] * scale[v] - w[i]), limit);
            }
            for (size_t m = 1; m <= ROWS; m++) {
                k->rows_times_words(m, precision, K, h, K, words, many, k->wide);
                for (size_t i = 0; i < m; i++) {
                    k->rows_times_words(1, precision, K, h + i * K, K, words, one, k->wide);
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
            free(words);
        }
    }
}

/* exp and tanh on a fine grid, with the errors that vector.h promises; then the values that have no neighbours. */
static void test_exp_and_tanh(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    enum { COUNT = 200003 };
    float *x = floats(COUNT), *y = floats(COUNT), *e = floats(COUNT);
    double worst_exp = 0.0, worst_tanh = 0.0, want_sum = 0.0;
    for (size_t i = 0; i < COUNT; i++) x[i] = (float)(-87.3 * (double)i / COUNT);
    double sum = k->exp_sum(COUNT, x, 0.0f, 1.0f, e);
    CHECK(k->exp_sum(COUNT, x, 0.0f, 1.0f, NULL) == sum);
    for (size_t i = 0; i < COUNT; i++) {
        worst_exp = fmax(worst_exp, fabs(e[i] / exp((double)x[i]) - 1.0));
        want_sum += exp((double)x[i]);
    }
    CHECK_BELOW(worst_exp, 2e-7);
    CHECK_BELOW(fabs(sum / want_sum - 1.0), 1e-7);
    for (size_t i = 0; i < COUNT; i++) x[i] = y[i] = (float)(24.0 * (double)i / COUNT - 12.0);
    k->tanh(COUNT, y);
    for (size_t i = 0; i < COUNT; i++) worst_tanh = fmax(worst_tanh, fabs(y[i] - tanh((double)x[i])));
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
static void test_softmax(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    enum { ROWS = 7 };
    size_t P = k->panel, panels = 3, apart = ROWS * P + 11;
    float *z = random_floats(panels * apart, 1.0), max[ROWS];
    double sum[ROWS];
    for (size_t i = 0; i < panels * apart; i++) z[i] = (float)(80.0 * (2.0 * uniform() - 1.0));
    for (size_t v = 0; v < panels * P; v++) {
        z[v / P * apart + v % P] = 5.0f;                              /* row 0: all equal */
        z[v / P * apart + P + v % P] = v == 2 * P ? 0.0f : -INFINITY; /* row 1: one holds everything */
        if (v == 1) z[v / P * apart + 2 * P + v % P] = NAN;           /* row 2 */
        if (v == 4) z[v / P * apart + 3 * P + v % P] = INFINITY;      /* row 3 */
    }
    float *z0 = copy_floats(z, panels * apart);
    k->softmax(ROWS, panels, z, apart, max, sum);
    CHECK(max[0] == 5.0f && sum[0] == (double)(panels * P));
    CHECK(max[1] == 0.0f && sum[1] == 1.0);
    CHECK(!isfinite(sum[2]) && !isfinite(sum[3]));
    for (size_t i = 4; i < ROWS; i++) {
        double want = 0.0;
        float top = -INFINITY;
        for (size_t v = 0; v < panels * P; v++) top = fmaxf(top, z0[v / P * apart + i * P + v % P]);
        for (size_t v = 0; v < panels * P; v++) {
            size_t at = v / P * apart + i * P + v % P;
            want += exp((double)z0[at] - top);
            CHECK_BELOW(fabs(z[at] - exp((double)z0[at] - top)), 2e-7);
        }
        CHECK(max[i] == top);
        CHECK_BELOW(fabs(sum[i] / want - 1.0), 2e-7);
    }
    for (size_t p = 0; p < panels; p++) CHECK(same(z + p * apart + ROWS * P, z0 + p * apart + ROWS * P, 11 * 4));
    free(z), free(z0);
}

/* The passes over a vector, at lengths on both sides of every block of theirs. */
static void test_passes(void) {
    const rnn_kernels *k = rnn_kernels_choose();
    for (size_t count = 1; count < 150; count++) {
        float *x = random_floats(count, 1.0), *cut = floats(count), *out = floats(count);
        float max = -INFINITY, max_abs = 0.0f, weights[] = {0.5f, NAN, -2.0f};
        float *terms = random_floats(2 * count, 1.0);
        double squares = 0.0, *want = doubles(count);
        size_t least = 0;
        for (size_t i = 0; i < count; i++) {
            max = fmaxf(max, x[i]);
            max_abs = fmaxf(max_abs, fabsf(x[i]));
            squares += (double)x[i] * x[i];
            least += x[i] >= x[count / 2];
            want[i] = 0.5 * terms[i] - 2.0 * terms[count + i];
        }
        CHECK(k->max(count, x) == max && k->max_abs(count, x) == max_abs);
        CHECK_BELOW(fabs(k->sum_squares(count, x) / squares - 1.0), 1e-12);
        CHECK(k->count_at_least(count, x, x[count / 2]) == least);
        memcpy(cut, x, count * sizeof *x);
        k->cut_below(count, cut, x[count / 2]);
        for (size_t i = 0; i < count; i++) CHECK(cut[i] == (x[i] >= x[count / 2] ? x[i] : -INFINITY));
        k->weighted_sum(2, count, weights, 2, terms, count, out);
        CHECK_BELOW(rel_err(out, want, count), 1e-6);
        x[count - 1] = -INFINITY;
        CHECK(k->max_abs(count, x) == INFINITY);
        x[count - 1] = NAN;
        CHECK(k->max_abs(count, x) == INFINITY && isnan(k->sum_squares(count, x)));
        free(x), free(cut), free(out), free(terms), free(want);
    }
}

/* ---- Training ------------------------------------------------------------------------------------------------------- */

static rnn_work *work_for(const problem *p, int32_t threads) {
    rnn_work *work = NULL;
    CHECK(rnn_work_create(&p->dims, (int32_t)p->T, (int32_t)p->B, 0, threads, &work) == RNN_OK);
    return need(work);
}

static void test_plain_model_itself(void) {
    problem p = make_problem(13, 9, 6, 11, 2);
    double *q = widen(p.params, p.at.count), *grads = doubles(p.at.count), *moved = doubles(p.at.count);
    plain_loss(&p, q, 1.0, grads, NULL, NULL);
    for (int trial = 0; trial < 20; trial++) {
        double eps = 1e-5, along = 0.0, difference = 0.0;
        float *direction = random_floats(p.at.count, 1.0);
        for (size_t i = 0; i < p.at.count; i++) along += grads[i] * direction[i];
        for (int sign = -1; sign <= 1; sign += 2) {
            for (size_t i = 0; i < p.at.count; i++) moved[i] = q[i] + sign * eps * direction[i];
            difference += sign * plain_loss(&p, moved, 1.0, NULL, NULL, NULL) / (2.0 * eps);
        }
        CHECK_BELOW(fabs(difference - along) / fmax(1.0, fabs(along)), 1e-7);
        free(direction);
    }
    free(q);
    free(grads);
    free(moved);
    free_problem(&p);
}

/* Loss, per-token log-probabilities, state and every gradient tensor of problem p, for 1 and 3 threads. */
static void compare_with_plain(const problem *p, double limit) {
    size_t N = p->T * p->B, S = p->B * p->H, P = p->at.count;
    double *q = widen(p->params, P), *want = doubles(P), *want_state = doubles(S), *want_logp = doubles(N);
    double scale = 0.25, want_loss = plain_loss(p, q, scale, want, want_state, want_logp), loss = 0.0;
    float *first = NULL;
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        rnn_work *work = work_for(p, threads);
        float *grads = random_floats(P, 1.0), *state = copy_floats(p->state, S), *logp = floats(N);
        CHECK(rnn_loss(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, state, &loss, logp) ==
              RNN_OK);
        CHECK_BELOW(fabs(loss - want_loss) / fmax(want_loss, (double)N), 2e-6);
        CHECK_BELOW(rel_err(logp, want_logp, N), limit);
        CHECK_BELOW(rel_err(state, want_state, S), limit);
        memcpy(state, p->state, S * sizeof *state);
        CHECK(rnn_loss_grad(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, (float)scale,
                            state, &loss, grads) == RNN_OK);
        CHECK_BELOW(fabs(loss - want_loss) / fmax(want_loss, (double)N), 2e-6);
        CHECK_BELOW(rel_err(state, want_state, S), limit);
        CHECK_BELOW(rel_err(grads + p->at.wxh, want + p->at.wxh, p->E * p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.whh, want + p->at.whh, p->H * p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.bh, want + p->at.bh, p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.why, want + p->at.why, p->H * p->V), limit);
        CHECK_BELOW(rel_err(grads + p->at.by, want + p->at.by, p->V), limit);
        if (!first) {
            first = grads;
        } else { /* one thread owns each sum, so their number changes nothing */
            CHECK(same(first, grads, P * sizeof *grads));
            free(grads);
        }
        free(state);
        free(logp);
        rnn_work_destroy(work);
    }
    free(first);
    free(q);
    free(want);
    free(want_state);
    free(want_logp);
}

static void test_gradients(void) {
    /* No size is a multiple of a block, a panel or a register tile, and the smallest of each is there. */
    static const size_t sizes[][5] = {
        {13, 9, 6, 11, 1},     {5, 7, 3, 1, 1},     {1, 1, 1, 1, 1},      {1, 3, 2, 5, 2},
        {31, 4, 99, 13, 1},    {33, 5, 101, 13, 3}, {65, 3, 1, 7, 2},     {600, 17, 31, 3, 7},
        {1100, 3, 15, 140, 1}, {40, 3, 17, 33, 4},  {520, 50, 20, 30, 9}, {127, 6, 63, 2, 2},
        {129, 6, 64, 2, 65},   {1, 2, 100, 3, 1},   {66001, 2, 3, 5, 1}, /* parts of two blocks */
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        problem p = make_problem(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], sizes[i][4]);
        int before = checks_failed;
        compare_with_plain(&p, 1e-5);
        if (checks_failed > before) {
            printf("    at V=%zu E=%zu H=%zu T=%zu B=%zu\n", p.V, p.E, p.H, p.T, p.B);
        }
        free_problem(&p);
    }
}

/* Options that say nothing in many words: masks of 1, and candidates that are all the words there are. */
static void test_options_that_change_nothing(void) {
    problem p = make_problem(600, 17, 31, 30, 7);
    size_t P = p.at.count, S = p.B * p.H;
    float *ones = floats(p.B * (p.E + p.H)), *correction = floats(p.V);
    int32_t *all = need(malloc(p.V * sizeof *all));
    for (size_t i = 0; i < p.B * (p.E + p.H); i++) ones[i] = 1.0f;
    for (size_t v = 0; v < p.V; v++) all[v] = (int32_t)v;
    rnn_train_options options = {.input_mask = ones, .output_mask = ones};
    rnn_train_options sampled = {.candidates = all, .correction = correction, .candidate_count = (int32_t)p.V};
    float *want = floats(P), *grads = random_floats(P, 1.0), *state = copy_floats(p.state, S);
    rnn_work *work = work_for(&p, 2), *small = NULL;
    CHECK(rnn_work_create(&p.dims, (int32_t)p.T, (int32_t)p.B, (int32_t)p.V, 2, &small) == RNN_OK);
    double loss = 0.0, other = 0.0;
#define TRAIN(work_, y_, options_, grads_, loss_)                                                                      \
    (memcpy(state, p.state, S * sizeof *state), rnn_train_grad(work_, p.params, p.embeddings, p.x, y_, (int32_t)p.T,   \
                                                               (int32_t)p.B, 1.0f, options_, state, loss_, grads_))
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, (int32_t)p.T, (int32_t)p.B, 1.0f, state, &loss, want) ==
          RNN_OK);
    CHECK(TRAIN(work, p.y, &options, grads, &other) == RNN_OK && loss == other);
    CHECK(same(want, grads, P * sizeof *grads));
    CHECK(TRAIN(small, p.y, &sampled, grads, &other) == RNN_OK && loss == other);
    CHECK(same(want, grads, P * sizeof *grads));

    /* Refusals; the arithmetic of real candidates and masks is compared with torch's in Python. */
    CHECK(TRAIN(work, p.y, &sampled, grads, &other) == RNN_E_ARG);
    CHECK(TRAIN(small, p.y, &options, grads, &other) == RNN_E_ARG);
    CHECK(TRAIN(small, p.y, NULL, grads, &other) == RNN_E_NULL);
    for (int32_t count = -1; count <= 601; count += 602) {
        sampled.candidate_count = count;
        CHECK(TRAIN(small, p.y, &sampled, grads, &other) == RNN_E_DIM);
    }
    sampled.candidate_count = (int32_t)p.V - 1;
    p.y[5] = (int32_t)p.V - 1;
    CHECK(TRAIN(small, p.y, &sampled, grads, &other) == RNN_E_TOKEN);
    all[9] = 8;
    sampled.candidate_count = (int32_t)p.V;
    CHECK(TRAIN(small, p.y, &sampled, grads, &other) == RNN_E_TOKEN);
    sampled.correction = NULL;
    CHECK(TRAIN(small, p.y, &sampled, grads, &other) == RNN_E_NULL);
    CHECK(same(want, grads, P * sizeof *grads) && loss == other && same(state, p.state, S * sizeof *state));
#undef TRAIN
    rnn_work_destroy(work);
    rnn_work_destroy(small);
    free(ones), free(correction), free(all), free(want), free(grads), free(state);
    free_problem(&p);
}

static void test_extreme_logits(void) {
    for (int kind = 0; kind < 4; kind++) {
        problem p = make_problem(700, 3, 10, 20, 1);
        float *by = p.params + p.at.by;
        for (size_t v = 0; v < p.V; v++) {
            if (kind == 0) by[v] += v % 2 ? 80.0f : -80.0f;     /* logits of both signs */
            if (kind == 1) by[v] += v == 650 ? 300.0f : 0.0f;   /* one word holds all probability */
            if (kind == 2) by[v] += v < 512 ? -300.0f : 300.0f; /* a whole block of words holds none */
            if (kind == 3) by[v] = 0.0f;                        /* all equal, once Why is zero */
        }
        if (kind == 3) memset(p.params + p.at.why, 0, p.H * p.V * sizeof(float));
        compare_with_plain(&p, 2e-5);
        for (size_t n = 0; n < p.T; n++) p.y[n] = 650; /* the word that is certain: the gradient is all but zero */
        double loss = 0.0, *q = widen(p.params, p.at.count), *want = doubles(p.at.count);
        float *grads = floats(p.at.count);
        rnn_work *work = work_for(&p, 1);
        plain_loss(&p, q, 1.0, want, NULL, NULL);
        CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 20, 1, 1.0f, p.state, &loss, grads) == RNN_OK);
        double worst = 0.0;
        for (size_t i = 0; i < p.at.count; i++) worst = fmax(worst, fabs(grads[i] - want[i]));
        CHECK_BELOW(worst, 1e-4);
        rnn_work_destroy(work);
        free(grads);
        free(q);
        free(want);
        free_problem(&p);
    }
}

static void test_carried_state(void) {
    problem p = make_problem(50, 7, 12, 24, 3);
    size_t S = p.B * p.H, P = p.at.count, half = p.T / 2 * p.B;
    rnn_work *work = work_for(&p, 2);
    float *whole = copy_floats(p.state, S), *parts = copy_floats(p.state, S), *a = floats(P), *b = floats(P);
    float *logp = floats(p.T * p.B), *logp_parts = floats(p.T * p.B);
    double loss = 0.0, first = 0.0, second = 0.0;
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x, p.y, 24, 3, whole, &loss, logp) == RNN_OK);
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x, p.y, 12, 3, parts, &first, logp_parts) == RNN_OK);
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x + half, p.y + half, 12, 3, parts, &second, logp_parts + half) ==
          RNN_OK);
    CHECK_BELOW(fabs(loss - first - second), 1e-9 * loss);
    CHECK(same(whole, parts, S * sizeof *whole));
    CHECK(same(logp, logp_parts, p.T * p.B * sizeof *logp));

    memcpy(parts, p.state, S * sizeof *parts);
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 12, 3, 1.0f, parts, &first, a) == RNN_OK);
    memcpy(parts, p.state, S * sizeof *parts);
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 12, 3, 1.0f, parts, &second, b) == RNN_OK);
    CHECK(first == second && same(a, b, P * sizeof *a)); /* the same call gives the same bits */
    rnn_work_destroy(work);
    free(whole);
    free(parts);
    free(a);
    free(b);
    free(logp);
    free(logp_parts);
    free_problem(&p);
}

static void test_training_refusals(void) {
    problem p = make_problem(40, 5, 8, 600, 1); /* more than one tile, so the last tile's loss comes late */
    size_t P = p.at.count, S = p.B * p.H;
    rnn_work *work = work_for(&p, 2);
    float *grads = random_floats(P, 1.0), *grads0 = copy_floats(grads, P), *state = copy_floats(p.state, S);
    float *logp = random_floats(p.T, 1.0), *logp0 = copy_floats(logp, p.T);
    double loss = 42.0;
#define GRAD(params_, x_, y_, T_, B_, scale_)                                                                          \
    rnn_loss_grad(work, params_, p.embeddings, x_, y_, T_, B_, scale_, state, &loss, grads)
#define LOSS(params_, x_, y_, T_, B_) rnn_loss(work, params_, p.embeddings, x_, y_, T_, B_, state, &loss, logp)
    CHECK(GRAD(NULL, p.x, p.y, 600, 1, 1.0f) == RNN_E_NULL);
    CHECK(LOSS(p.params, NULL, p.y, 600, 1) == RNN_E_NULL);
    CHECK(GRAD(p.params, p.x, p.y, 601, 1, 1.0f) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 0, 1, 1.0f) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 300, 2, 1.0f) == RNN_E_DIM);
    CHECK(LOSS(p.params, p.x, p.y, -1, 1) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, NAN) == RNN_E_ARG);
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, INFINITY) == RNN_E_ARG);
    for (int which = 0; which < 2; which++) {
        int32_t *tokens = which ? p.x : p.y, kept = tokens[599];
        tokens[599] = 40;
        CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_TOKEN);
        tokens[599] = -1;
        CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_TOKEN);
        tokens[599] = kept;
    }
    size_t poisoned[] = {p.at.wxh, p.at.whh + 3, p.at.bh, p.at.why + 77, p.at.by + 39};
    for (size_t i = 0; i < 5; i++) {
        float kept = p.params[poisoned[i]];
        float poisons[] = {NAN, INFINITY, -INFINITY}; /* of an infinity, tanh and softmax may leave no trace */
        for (size_t k = 0; k < 3; k++) {
            p.params[poisoned[i]] = poisons[k];
            CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
            CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
            CHECK(GRAD(p.params, p.x, p.y, 10, 1, 1.0f) == RNN_E_NONFINITE); /* one tile */
        }
        p.params[poisoned[i]] = kept;
    }
    float *seen = p.embeddings + p.x[300] * 5 + 4, kept_seen = *seen;
    *seen = -INFINITY;
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
    *seen = kept_seen;
    state[7] = INFINITY;
    CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
    state[7] = p.state[7];
    /* A loss that is finite in the first tile, and in a later one is not: finite weights, and an overflow. */
    float kept[8];
    for (size_t i = 0; i < 8; i++) {
        kept[i] = p.params[p.at.why + i * 40];
        p.params[p.at.why + i * 40] = 1e38f;
    }
    for (size_t t = 0; t < 600; t++) p.x[t] = t < 590 ? 1 : 2;
    for (size_t j = 0; j < 5; j++) {
        p.embeddings[5 + j] = 0.0f;
        p.embeddings[10 + j] = 0.0f;
    }
    p.embeddings[10] = 1e6f; /* drives every unit to +1 or -1 */
    for (size_t j = 0; j < 8; j++) p.params[p.at.wxh + j] = fabsf(p.params[p.at.wxh + j]);
    memset(p.params + p.at.whh, 0, (64 + 8) * sizeof(float));
    int32_t status = GRAD(p.params, p.x, p.y, 600, 1, 1.0f);
    CHECK(status == RNN_E_NONFINITE);
    CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
    CHECK(loss == 42.0);
    CHECK(same(grads, grads0, P * sizeof *grads));
    CHECK(same(state, p.state, S * sizeof *state));
    CHECK(same(logp, logp0, p.T * sizeof *logp));
    for (size_t i = 0; i < 8; i++) p.params[p.at.why + i * 40] = kept[i];
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_OK); /* a refusal does no lasting harm */

    rnn_dims bad[] = {{0, 1, 1}, {1, 0, 1}, {1, 1, 0}, {-1, 1, 1}, {RNN_MAX_VOCAB + 1, 1, 1}, {1, 1 << 15, 1}};
    rnn_work *none = NULL;
    int64_t count = -1;
    for (size_t i = 0; i < 6; i++) {
        CHECK(rnn_work_create(&bad[i], 1, 1, 0, 1, &none) == RNN_E_DIM);
        CHECK(rnn_param_count(&bad[i], &count) == RNN_E_DIM);
    }
    CHECK(rnn_work_create(&p.dims, 0, 1, 0, 1, &none) == RNN_E_DIM);
    CHECK(rnn_work_create(&p.dims, RNN_MAX_TOKENS, 2, 0, 1, &none) == RNN_E_DIM);
    CHECK(rnn_work_create(&p.dims, 1, 1, 0, 0, &none) == RNN_E_ARG);
    CHECK(rnn_work_create(NULL, 1, 1, 0, 1, &none) == RNN_E_NULL);
    CHECK(none == NULL && count == -1);
    rnn_work_destroy(NULL);
    rnn_work_destroy(work);
    free(grads);
    free(grads0);
    free(state);
    free(logp);
    free(logp0);
    free_problem(&p);
#undef GRAD
#undef LOSS
}

/* ---- Optimisers ------------------------------------------------------------------------------------------------------ */

static void test_optimisers(void) {
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

static void test_optimiser_refusals(void) {
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

/* ---- Inference --------------------------------------------------------------------------------------------------------- */

static rnn_model *model_for(const problem *p, int32_t precision) {
    rnn_model *model = NULL;
    const float *q = p->params;
    CHECK(rnn_model_create(&p->dims, p->embeddings, q + p->at.wxh, q + p->at.whh, q + p->at.bh, q + p->at.why,
                           q + p->at.by, precision, 2, &model) == RNN_OK);
    return need(model);
}

static rnn_decoder *decoder_for(const rnn_model *model, int32_t streams, int32_t threads) {
    rnn_decoder *decoder = NULL;
    CHECK(rnn_decoder_create(model, streams, threads, &decoder) == RNN_OK);
    return need(decoder);
}

static void test_decode_matches_loss(void) {
    static const size_t sizes[][3] = {{700, 11, 23}, {1, 2, 3}, {31, 3, 100}, {513, 4, 1}, {1100, 4, 33}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        problem p = make_problem(sizes[s][0], sizes[s][1], sizes[s][2], 40, 1);
        memset(p.state, 0, p.H * sizeof(float));
        for (size_t t = 0; t + 1 < p.T; t++) p.y[t] = p.x[t + 1];
        double *q = widen(p.params, p.at.count), *want = doubles(p.T), *want_state = doubles(p.H);
        plain_loss(&p, q, 1.0, NULL, want_state, want);
        rnn_model *model = model_for(&p, RNN_PRECISION_F32);
        rnn_decoder *decoder = decoder_for(model, 3, 2);
        float *state = floats(p.H), *logp = floats(p.T), *logits = floats(p.V), *stepped = floats(p.H);
        int32_t *tokens = ints(p.T + 1), next = -1;
        memcpy(tokens, p.x, p.T * sizeof *tokens);
        tokens[p.T] = p.y[p.T - 1];
        CHECK(rnn_score(decoder, tokens, (int32_t)p.T + 1, state, logp) == RNN_OK);
        CHECK_BELOW(rel_err(logp, want, p.T), 1e-5);
        CHECK_BELOW(rel_err(state, want_state, p.H), 1e-5);

        /* The same token by token: prefill all but the last, then one step. */
        rnn_sampling greedy = {NAN, 0.0f, -5, -1, 0}; /* at temperature 0 the rest is not looked at */
        float last = 0.0f;
        CHECK(rnn_prefill(decoder, tokens, (int32_t)p.T - 1, stepped) == RNN_OK);
        CHECK(rnn_decode(decoder, 1, &tokens[p.T - 1], &greedy, stepped, &next, &last, logits) == RNN_OK);
        CHECK(same(stepped, state, p.H * sizeof *state));
        double sum = 0.0;
        size_t best = 0;
        for (size_t v = 0; v < p.V; v++) {
            sum += exp((double)logits[v]);
            if (logits[v] > logits[best]) best = v;
        }
        CHECK_BELOW(fabs(logits[tokens[p.T]] - log(sum) - want[p.T - 1]), 1e-5);
        CHECK((size_t)next == best);
        CHECK_BELOW(fabs(logits[next] - log(sum) - last), 1e-5);
        rnn_decoder_destroy(decoder);
        rnn_model_destroy(model);
        free(q);
        free(want);
        free(want_state);
        free(state);
        free(stepped);
        free(logp);
        free(logits);
        free(tokens);
        free_problem(&p);
    }
}

/* No token banned. */
static rnn_sampling sampling_of(double u, float temperature, int32_t top_k) {
    return (rnn_sampling){u, temperature, top_k, -1, 0};
}

/* 37 streams at once, and each alone: the same bits. Then whole generations against the loop of steps. */
static void compare_company(int32_t precision) {
    enum { STREAMS = 37, STEPS = 12 };
    problem p = make_problem(1111, 5, 29, 1, 1);
    rnn_model *model = model_for(&p, precision);
    rnn_decoder *many = decoder_for(model, STREAMS, 3), *one = decoder_for(model, 1, 1);
    float *states = floats(STREAMS * p.H), *alone = floats(STREAMS * p.H);
    float *logits = floats(STREAMS * p.V), *logits_alone = floats(STREAMS * p.V);
    int32_t tokens[STREAMS], tokens_alone[STREAMS], prompts[STREAMS * 3], lengths[STREAMS], prompt_size = 0;
    int32_t out[STREAMS * STEPS], out_lengths[STREAMS], want[STREAMS][STEPS];
    float logp[STREAMS], logp_alone[STREAMS], out_logp[STREAMS * STEPS], want_logp[STREAMS][STEPS];
    rnn_sampling sampling[STREAMS];
    double u[STREAMS * STEPS];
    for (size_t i = 0; i < STREAMS; i++) {
        lengths[i] = 1 + (int32_t)i % 3;
        int32_t *prompt = prompts + prompt_size;
        for (int32_t t = 0; t < lengths[i]; t++) prompt[t] = (int32_t)(uniform() * 1111);
        prompt_size += lengths[i];
        sampling[i] = sampling_of(NAN, i % 4 == 0 ? 0.0f : 0.5f * (float)(i % 4), i % 5 == 0 ? 10 : 0);
        sampling[i].banned = i % 3 == 0 ? (int32_t)i : -1;
        for (size_t t = 0; t < STEPS; t++) u[i * STEPS + t] = uniform();
        CHECK(rnn_prefill(one, prompt, lengths[i] - 1, states + i * p.H) == RNN_OK);
        tokens[i] = tokens_alone[i] = prompt[lengths[i] - 1];
    }
    memcpy(alone, states, STREAMS * p.H * sizeof *states);
    for (size_t t = 0; t < STEPS; t++) {
        for (size_t i = 0; i < STREAMS; i++) sampling[i].u = u[i * STEPS + t];
        CHECK(rnn_decode(many, STREAMS, tokens, sampling, states, tokens, logp, logits) == RNN_OK);
        for (size_t i = 0; i < STREAMS; i++) {
            CHECK(rnn_decode(one, 1, tokens_alone + i, sampling + i, alone + i * p.H, tokens_alone + i, logp_alone + i,
                             logits_alone + i * p.V) == RNN_OK);
            want[i][t] = tokens[i];
            want_logp[i][t] = logp[i];
        }
        CHECK(same(tokens, tokens_alone, sizeof tokens));
        CHECK(same(logp, logp_alone, sizeof logp));
        CHECK(same(states, alone, STREAMS * p.H * sizeof *states));
        CHECK(same(logits, logits_alone, STREAMS * p.V * sizeof *logits));
    }
    for (size_t i = 0; i < STREAMS; i++) sampling[i].u = NAN; /* generate takes u's place */
    int32_t stop = want[1][4];
    CHECK(rnn_generate(many, STREAMS, prompts, lengths, u, sampling, STEPS, stop, NULL, out, out_logp, out_lengths) ==
          RNN_OK);
    for (size_t i = 0; i < STREAMS; i++) {
        int32_t length = 0;
        while (length < STEPS && want[i][length++] != stop) continue;
        CHECK(out_lengths[i] == length);
        CHECK(same(out + i * STEPS, want[i], (size_t)length * sizeof *out));
        CHECK(same(out_logp + i * STEPS, want_logp[i], (size_t)length * sizeof *out_logp));
    }
    int32_t now = 1;
    CHECK(rnn_generate(many, STREAMS, prompts, lengths, u, sampling, STEPS, -1, &now, out, NULL, out_lengths) ==
          RNN_E_CANCELLED);
    CHECK(out_lengths[0] == 0);
    rnn_decoder_destroy(many);
    rnn_decoder_destroy(one);
    rnn_model_destroy(model);
    free(states);
    free(alone);
    free(logits);
    free(logits_alone);
    free_problem(&p);
}

static void test_company(void) {
    compare_company(RNN_PRECISION_F32);
    compare_company(RNN_PRECISION_BF16);
    compare_company(RNN_PRECISION_INT8);
}

/* The perplexity that a smaller copy of Why gives, beside that of float32, on logits as wide as a trained model's. */
static void test_precisions(void) {
    problem p = make_problem(3001, 5, 100, 120, 1);
    for (size_t i = 0; i < p.H * p.V; i++) p.params[p.at.why + i] *= 6.0f;
    p.params[p.at.why + 7] = 1e-39f; /* in a column of zeros, for which no scale can be found */
    for (size_t k = 1; k < p.H; k++) p.params[p.at.why + k * p.V + 7] = 0.0f;
    double mean[3] = {0.0, 0.0, 0.0};
    int32_t *tokens = ints(p.T);
    for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) {
        rnn_model *model = model_for(&p, precision);
        rnn_decoder *decoder = decoder_for(model, 1, 1);
        float *state = floats(p.H), *logp = floats(p.T);
        int32_t one = 1;
        double u[120];
        rnn_sampling plain = sampling_of(0.0, 1.0f, 0);
        int32_t length = 0;
        for (size_t t = 0; t < p.T; t++) u[t] = uniform();
        /* Text that the float32 model itself has drawn. */
        if (precision == RNN_PRECISION_F32) {
            CHECK(rnn_generate(decoder, 1, &one, &one, u, &plain, (int32_t)p.T, -1, NULL, tokens, NULL, &length) ==
                  RNN_OK);
        }
        CHECK(rnn_score(decoder, tokens, (int32_t)p.T, state, logp) == RNN_OK);
        for (size_t t = 0; t + 1 < p.T; t++) mean[precision] -= logp[t] / (double)(p.T - 1);
        rnn_decoder_destroy(decoder);
        rnn_model_destroy(model);
        free(state);
        free(logp);
    }
    CHECK_BELOW(fabs(exp(mean[RNN_PRECISION_BF16] - mean[RNN_PRECISION_F32]) - 1.0), 5e-3);
    CHECK_BELOW(fabs(exp(mean[RNN_PRECISION_INT8] - mean[RNN_PRECISION_F32]) - 1.0), 5e-3);
    free(tokens);
    free_problem(&p);
}

static void test_history_matters(void) {
    problem p = make_problem(60, 5, 8, 1, 1);
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    rnn_decoder *d = decoder_for(model, 1, 1);
    int32_t prompt[2][4] = {{1, 5, 6, 7}, {2, 5, 6, 7}}, next = 0;
    float *logits[2] = {floats(p.V), floats(p.V)};
    rnn_sampling greedy = {0.0, 0.0f, 0, -1, 0};
    for (int i = 0; i < 2; i++) {
        float *state = floats(p.H);
        CHECK(rnn_prefill(d, prompt[i], 3, state) == RNN_OK);
        CHECK(rnn_decode(d, 1, &prompt[i][3], &greedy, state, &next, NULL, logits[i]) == RNN_OK);
        free(state);
    }
    CHECK(!same(logits[0], logits[1], p.V * sizeof(float)));
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(logits[0]);
    free(logits[1]);
    free_problem(&p);
}

static void test_sampling(void) {
    problem p = make_problem(1500, 2, 3, 1, 1);
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    rnn_decoder *d = decoder_for(model, 1, 1);
    float *z = random_floats(p.V, 3.0), logp = 0.0f;
    int32_t token = -7, before = 0;
    double sum = 0.0, max = -INFINITY;
    for (size_t v = 0; v < p.V; v++) max = fmax(max, z[v]);
    for (size_t v = 0; v < p.V; v++) sum += exp(z[v] - max);

    /* The draw is where the cumulative distribution passes u: checked in double, with room for rounding. */
    for (int i = 0; i < 400; i++) {
        rnn_sampling s = sampling_of(i / 400.0, 1.0f, 0);
        CHECK(rnn_sample(d, z, &s, &token, &logp) == RNN_OK);
        double low = 0.0;
        for (int32_t v = 0; v < token; v++) low += exp(z[v] - max) / sum;
        CHECK(low <= s.u + 1e-6 && s.u < low + exp(z[token] - max) / sum + 1e-6);
        CHECK(token >= before); /* non-decreasing in u */
        CHECK_BELOW(fabs(logp - (z[token] - max - log(sum))), 1e-5);
        before = token;
    }
    /* Words that cannot be drawn are not, at either end of u and wherever they stand. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 600 || v == 700 ? 1.0f : -INFINITY;
    rnn_sampling middle = sampling_of(0.5, 1.0f, 0), below = sampling_of(0.5 - 0x1p-53, 1.0f, 0);
    CHECK(rnn_sample(d, z, &middle, &token, NULL) == RNN_OK && token == 700); /* the sum must exceed u, not reach it */
    CHECK(rnn_sample(d, z, &below, &token, NULL) == RNN_OK && token == 600);
    z[601] = 1.0f, z[700] = -INFINITY; /* the same within one block */
    CHECK(rnn_sample(d, z, &middle, &token, NULL) == RNN_OK && token == 601);
    CHECK(rnn_sample(d, z, &below, &token, NULL) == RNN_OK && token == 600);
    z[601] = -INFINITY, z[700] = 1.0f;
    rnn_sampling first = sampling_of(0.0, 1.0f, 0), last = sampling_of(1.0 - 0x1p-53, 1.0f, 0);
    CHECK(rnn_sample(d, z, &first, &token, NULL) == RNN_OK && token == 600);
    CHECK(rnn_sample(d, z, &last, &token, NULL) == RNN_OK && token == 700);
    for (size_t v = 0; v < p.V; v++) z[v] = v < 1000 ? 0.001f * (float)(v % 7) : -200.0f;
    CHECK(rnn_sample(d, z, &last, &token, NULL) == RNN_OK && token == 999);

    /* Temperature 0 and the lowest id of equals; a temperature that is all but 0; equal logits; +-80. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 900 || v == 33 ? 2.0f : -80.0f;
    rnn_sampling cold = sampling_of(0.99, 0.0f, 0), chill = sampling_of(0.7, 1e-40f, 0),
                 warm = sampling_of(0.3, 1.0f, 0);
    CHECK(rnn_sample(d, z, &cold, &token, NULL) == RNN_OK && token == 33);
    CHECK(rnn_sample(d, z, &chill, &token, NULL) == RNN_OK && token == 900);
    for (size_t v = 0; v < p.V; v++) z[v] = -80.0f;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_OK && (token == 450 || token == 449));
    CHECK_BELOW(fabs(logp + log(1500.0)), 1e-5);
    z[77] = 80.0f;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_OK && token == 77 && logp == 0.0f);

    /* top_k: the lowest ids of equals, in order of id; larger than V is all. */
    for (size_t v = 0; v < p.V; v++) z[v] = v % 100 == 50 ? 1.0f : 0.0f; /* 15 at 1, the rest at 0 */
    for (int32_t k = 1; k <= 20; k++) {
        rnn_sampling end = sampling_of(1.0 - 0x1p-53, 1.0f, k);
        CHECK(rnn_sample(d, z, &end, &token, NULL) == RNN_OK);
        CHECK(token == (k <= 15 ? 100 * k - 50 : 1450));
        rnn_sampling begin = sampling_of(0.0, 1.0f, k);
        CHECK(rnn_sample(d, z, &begin, &token, NULL) == RNN_OK);
        CHECK(token == (k <= 15 ? 50 : 0));
    }
    z[3] = -0.0f; /* equal to 0 */
    rnn_sampling sixteen = sampling_of(0.0, 1.0f, 16),
                 nineteen = sampling_of(0.1 / (19 - 15 + 15 * 2.718281828), 1.0f, 19);
    CHECK(rnn_sample(d, z, &sixteen, &token, NULL) == RNN_OK && token == 0);
    CHECK(rnn_sample(d, z, &nineteen, &token, NULL) == RNN_OK && token == 0);
    nineteen.u = 3.5 / (19 - 15 + 15 * 2.718281828);
    CHECK(rnn_sample(d, z, &nineteen, &token, NULL) == RNN_OK && token == 3);
    rnn_sampling all = sampling_of(1.0 - 0x1p-53, 1.0f, INT32_MAX);
    CHECK(rnn_sample(d, z, &all, &token, NULL) == RNN_OK && token == 1499);

    /* A banned token is not drawn: not by chance, not as the most probable, and top_k counts the others. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 9 ? 30.0f : v == 1200 ? 2.0f : v == 1300 ? 1.0f : -40.0f;
    rnn_sampling ban = {0.2, 1.0f, 0, 9, 0};
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_OK && token == 1200);
    CHECK_BELOW(fabs(logp + 28.0), 1e-5); /* of the full distribution */
    ban.u = 0.9;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 1300);
    ban.top_k = 1;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 1200);
    ban.temperature = 0.0f;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_OK && token == 1200);
    CHECK_BELOW(fabs(logp + 28.0), 1e-5);
    ban.banned = 1200;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 9);
    z[0] = 31.0f;
    ban.banned = 0;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 9);

    /* Refusals leave the outputs alone. */
    rnn_sampling bad[] = {
        sampling_of(1.0, 1.0f, 0),  sampling_of(-0.1, 1.0f, 0), sampling_of(NAN, 1.0f, 0),
        sampling_of(0.5, -1.0f, 0), sampling_of(0.5, NAN, 0),   sampling_of(0.5, INFINITY, 0),
        sampling_of(0.5, 1.0f, -1),
    };
    token = -7;
    logp = 7.0f;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(rnn_sample(d, z, bad + i, &token, &logp) == RNN_E_ARG);
    }
    z[1499] = NAN;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    z[1499] = INFINITY;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    for (size_t v = 0; v < p.V; v++) z[v] = -INFINITY;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    z[9] = 1.0f;
    ban.banned = 9;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_NONFINITE);
    ban.banned = 1500;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_TOKEN);
    ban.banned = -2;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_TOKEN);
    CHECK(rnn_sample(d, NULL, &warm, &token, &logp) == RNN_E_NULL);
    CHECK(token == -7 && logp == 7.0f);
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(z);
    free_problem(&p);
}

static void test_inference_refusals(void) {
    problem p = make_problem(20, 4, 5, 1, 1);
    float *q = p.params;
    rnn_model *none = NULL;
    rnn_decoder *no_decoder = NULL;
#define MODEL(dims_, why_, precision_, threads_)                                                                       \
    rnn_model_create(dims_, p.embeddings, q + p.at.wxh, q + p.at.whh, q + p.at.bh, why_, q + p.at.by, precision_,      \
                     threads_, &none)
    rnn_dims bad = {20, 4, 0};
    CHECK(MODEL(&bad, q + p.at.why, RNN_PRECISION_F32, 1) == RNN_E_DIM);
    CHECK(MODEL(&p.dims, NULL, RNN_PRECISION_F32, 1) == RNN_E_NULL);
    CHECK(MODEL(&p.dims, q + p.at.why, 3, 1) == RNN_E_ARG);
    CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 0) == RNN_E_ARG);
    for (size_t i = 0; i < p.at.count; i += 7) {
        float kept = q[i];
        q[i] = i % 2 ? NAN : INFINITY;
        CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 2) == RNN_E_NONFINITE);
        q[i] = kept;
    }
    p.embeddings[79] = NAN;
    CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 1) == RNN_E_NONFINITE);
    p.embeddings[79] = 0.0f;
    CHECK(none == NULL);
#undef MODEL
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    CHECK(rnn_decoder_create(model, 0, 1, &no_decoder) == RNN_E_DIM);
    CHECK(rnn_decoder_create(model, RNN_MAX_STREAMS + 1, 1, &no_decoder) == RNN_E_DIM);
    CHECK(rnn_decoder_create(model, 1, RNN_MAX_THREADS + 1, &no_decoder) == RNN_E_ARG);
    CHECK(rnn_decoder_create(NULL, 1, 1, &no_decoder) == RNN_E_NULL && no_decoder == NULL);

    rnn_decoder *d = decoder_for(model, 2, 1);
    float *states = random_floats(2 * p.H, 0.5), *states0 = copy_floats(states, 2 * p.H), logp[8] = {9.0f};
    int32_t tokens[2] = {1, 2}, next[8] = {-3, -3}, lengths[2] = {1, 1}, out_lengths[2] = {-3, -3};
    double u[8] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5};
    rnn_sampling s[2] = {sampling_of(0.5, 1.0f, 0), sampling_of(0.5, 1.0f, 0)};
    CHECK(rnn_decode(d, 3, tokens, s, states, next, logp, NULL) == RNN_E_DIM);
    CHECK(rnn_decode(d, 0, tokens, s, states, next, logp, NULL) == RNN_E_DIM);
    CHECK(rnn_decode(d, 2, tokens, s, NULL, next, logp, NULL) == RNN_E_NULL);
    tokens[1] = 20;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_TOKEN);
    CHECK(rnn_prefill(d, tokens, 2, states) == RNN_E_TOKEN);
    CHECK(rnn_score(d, tokens, 2, states, logp) == RNN_E_TOKEN);
    tokens[1] = -1;
    CHECK(rnn_generate(d, 2, tokens, lengths, u, s, 4, -1, NULL, next, logp, out_lengths) == RNN_E_TOKEN);
    tokens[1] = 2;
    s[1].u = 1.0;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_ARG);
    u[7] = NAN;
    CHECK(rnn_generate(d, 2, tokens, lengths, u, s, 4, -1, NULL, next, logp, out_lengths) == RNN_E_ARG);
    u[7] = 0.5;
    CHECK(rnn_generate(d, 2, tokens, lengths, u, s, 4, 20, NULL, next, logp, out_lengths) == RNN_E_TOKEN);
    CHECK(rnn_generate(d, 2, tokens, lengths, u, s, 0, -1, NULL, next, logp, out_lengths) == RNN_E_DIM);
    lengths[1] = 0;
    CHECK(rnn_generate(d, 2, tokens, lengths, u, s, 4, -1, NULL, next, logp, out_lengths) == RNN_E_DIM);
    CHECK(rnn_prefill(d, tokens, -1, states) == RNN_E_DIM);
    CHECK(rnn_score(d, tokens, 1, states, logp) == RNN_E_DIM);
    CHECK(same(states, states0, 2 * p.H * sizeof *states));
    states[p.H] = NAN;
    s[1].u = 0.5;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_NONFINITE);
    CHECK(rnn_prefill(d, tokens, 2, states + p.H) == RNN_E_NONFINITE);
    CHECK(rnn_score(d, tokens, 2, states + p.H, logp) == RNN_E_NONFINITE);
    CHECK(same(states, states0, p.H * sizeof *states));
    CHECK(next[0] == -3 && out_lengths[0] == -3 && logp[0] == 9.0f);
    CHECK(rnn_prefill(d, NULL, 0, states) == RNN_OK && same(states, states0, p.H * sizeof *states));
    problem lone = make_problem(1, 4, 5, 1, 1);
    rnn_model *lone_model = model_for(&lone, RNN_PRECISION_F32);
    rnn_decoder *lone_decoder = decoder_for(lone_model, 1, 1);
    rnn_sampling none_left = {0.5, 1.0f, 0, 0, 0};
    int32_t zero = 0;
    CHECK(rnn_decode(lone_decoder, 1, &zero, &none_left, states, next, NULL, NULL) == RNN_E_ARG && next[0] == -3);
    rnn_decoder_destroy(lone_decoder);
    rnn_model_destroy(lone_model);
    free_problem(&lone);
    rnn_decoder_destroy(NULL);
    rnn_model_destroy(NULL);
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(states);
    free(states0);
    free_problem(&p);
}

static void test_statuses(void) {
    CHECK(rnn_abi_version() == RNN_ABI_VERSION);
    CHECK(rnn_sizeof_dims() == 12 && rnn_sizeof_sampling() == 24 && rnn_sizeof_adamw() == 24);
    const char *wish = getenv("RNN_ISA");
    bool has_it = wish && (!strcmp(wish, "baseline") || !strcmp(wish, "reference"));
#ifdef RNN_X86_KERNELS
    has_it |= wish && !strcmp(wish, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    has_it |= wish && !strcmp(wish, "avx512") && __builtin_cpu_supports("avx512f") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl");
#endif
    CHECK(!has_it || !strcmp(rnn_kernel_name(), wish));
    for (int32_t status = -20; status <= 5; status++) CHECK(rnn_strerror(status) && *rnn_strerror(status));
    CHECK(strcmp(rnn_strerror(RNN_OK), "success") == 0);
    rnn_dims dims = {31266, 300, 100};
    int64_t count = 0;
    CHECK(rnn_param_count(&dims, &count) == RNN_OK && count == 300 * 100 + 100 * 100 + 100 + 100 * 31266 + 31266);
    CHECK(rnn_param_count(NULL, &count) == RNN_E_NULL);
}

int main(void) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        {"statuses and sizes", test_statuses},
        {"matrix products", test_products},
        {"smaller copies of a matrix", test_copies},
        {"exp and tanh", test_exp_and_tanh},
        {"softmax", test_softmax},
        {"passes over a vector", test_passes},
        {"the plain model against finite differences", test_plain_model_itself},
        {"loss, state and gradients against the plain model", test_gradients},
        {"options that change nothing", test_options_that_change_nothing},
        {"extreme logits", test_extreme_logits},
        {"two chunks with the state carried are one", test_carried_state},
        {"training refuses, and leaves outputs untouched", test_training_refusals},
        {"optimisers against double precision", test_optimisers},
        {"optimisers and norm refuse", test_optimiser_refusals},
        {"decoding and scoring match the loss", test_decode_matches_loss},
        {"a stream alone is as in company; generate is the loop of steps", test_company},
        {"smaller copies of Why cost under 0.5% of perplexity", test_precisions},
        {"the early prompt matters", test_history_matters},
        {"sampling", test_sampling},
        {"inference refuses, and leaves outputs untouched", test_inference_refusals},
    };
    int passed = 0, failed = 0;
    printf("kernels: %s\n", rnn_kernel_name());
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        checks_failed = 0;
        seed = 1 + i;
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
