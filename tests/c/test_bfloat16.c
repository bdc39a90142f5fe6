/* test_bfloat16.c -- the kernels of bfloat16.h one by one, against plain sums in double; those that RNN_ISA says. */
#include "bfloat16.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "testing.h"
#include "tests.h"

static rnn_bfloat16 *words(size_t count) { return need(calloc(count + 1, sizeof(rnn_bfloat16))); }

static rnn_bfloat16 *random_words(size_t count) {
    rnn_bfloat16 *x = words(count);
    for (size_t i = 0; i < count; i++) x[i] = rnn_round_bfloat16((float)(2.0 * uniform() - 1.0));
    return x;
}

static double left_at(rnn_left a, size_t i, size_t k) {
    return rnn_widen_bfloat16(
        a.at[i / RNN_BAND * a.band + i % RNN_BAND * a.row + k / RNN_TILE_DEPTH * a.tile + k % RNN_TILE_DEPTH]);
}

static double right_at(const rnn_bfloat16 *b, size_t panel, size_t k, size_t j) {
    return rnn_widen_bfloat16(b[j / RNN_BAND * panel + (k / 2 * RNN_BAND + j % RNN_BAND) * 2 + k % 2]);
}

void test_rounding_to_bfloat16(void) {
    for (int trial = 0; trial < 100000; trial++) {
        float x = (float)ldexp(2.0 * uniform() - 1.0, (int)(uniform() * 200.0) - 100);
        float rounded = rnn_widen_bfloat16(rnn_round_bfloat16(x));
        /* 8 bits of precision: the nearest is at most half of the last one away. */
        CHECK(fabs((double)rounded - x) <= ldexp(1.0, ilogb(x) - 8));
    }
    struct {
        float x, rounded;
    } known[] = {
        {0x1.01p0f, 0x1.00p0f},
        {0x1.03p0f, 0x1.04p0f},
        {0x1.010002p0f, 0x1.02p0f}, /* ties to even, and beyond one */
        {0x1.ffp0f, 0x1p1f},
        {-0x1.03p0f, -0x1.04p0f},
        {0.0f, 0.0f},
        {0x1.fefffep127f, 0x1.fep127f},
        {0x1.ffp127f, INFINITY},
        {INFINITY, INFINITY},
        {-INFINITY, -INFINITY},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        CHECK(rnn_widen_bfloat16(rnn_round_bfloat16(known[i].x)) == known[i].rounded);
    }
    uint32_t nan_bits[] = {0x7f800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u};
    for (size_t i = 0; i < 4; i++) {
        float x;
        memcpy(&x, nan_bits + i, sizeof x);
        CHECK(isnan(rnn_widen_bfloat16(rnn_round_bfloat16(x))));
    }
}

/* C = A B and C += A B, with A in rows or tiles. */
static void compare_product(const rnn_bfloat16_kernels *k, size_t m, size_t panels, size_t K, bool tiles) {
    size_t tall = rnn_round_up(m, RNN_BAND), deep = rnn_round_up(K, RNN_TILE_DEPTH), cols = panels * RNN_BAND;
    size_t ld = deep + RNN_BFLOAT16_SKEW, panel = RNN_BAND * deep + 64, ldc = cols + 3;
    rnn_bfloat16 *at = random_words(tall * ld), *b = random_words(panels * panel);
    float *c = random_floats((tall + 1) * ldc, 1.0), *c0 = copy_floats(c, (tall + 1) * ldc);
    rnn_left a = tiles ? rnn_left_tiles(at, deep) : rnn_left_rows(at, ld);
    for (int add = 0; add <= 1; add++) {
        k->begin();
        k->multiply(m, panels, K, a, b, panel, c, ldc, add);
        k->end();
        double worst = 0.0;
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < cols; j++) {
                double want = add ? c0[i * ldc + j] : 0.0;
                for (size_t n = 0; n < K; n++) want += left_at(a, i, n) * right_at(b, panel, n, j);
                worst = worse(worst, fabs(c[i * ldc + j] - want));
            }
        }
        CHECK_BELOW(worst, 2e-6 * sqrt((double)K) + 1e-6);
        for (size_t i = 0; i < tall; i++) CHECK(same(c + i * ldc + cols, c0 + i * ldc + cols, 3 * sizeof *c));
        CHECK(same(c + tall * ldc, c0 + tall * ldc, ldc * sizeof *c));
        memcpy(c0, c, (tall + 1) * ldc * sizeof *c);
    }
    free(at), free(b), free(c), free(c0);
}

void test_bfloat16_products(void) {
    const rnn_bfloat16_kernels *k = rnn_kernels_choose()->bfloat16;
    if (!k) return;
    for (size_t m = 1; m <= 37; m++) compare_product(k, m, 1 + m % 7, k->depth * (1 + m % 3), m % 2);
    for (size_t panels = 1; panels <= 9; panels++) compare_product(k, 33, panels, rnn_round_up(100, k->depth), true);
    for (size_t K = k->depth; K <= 20 * k->depth; K += k->depth) compare_product(k, 17, 4, K, false);
    compare_product(k, 5, 6, 608, true); /* longer than a piece of k */
}

void test_bfloat16_operands(void) {
    const rnn_bfloat16_kernels *k = rnn_kernels_choose()->bfloat16;
    static const size_t sizes[][2] = {{1, 1}, {2, 31}, {16, 32}, {31, 33}, {33, 100}, {100, 577}, {47, 1030}};
    for (size_t s = 0; k && s < sizeof sizes / sizeof *sizes; s++) {
        size_t K = sizes[s][0], cols = sizes[s][1], ldw = cols + 5;
        size_t deep = rnn_round_up(K, RNN_TILE_DEPTH), wide = rnn_round_up(cols, 32), ld = wide + 32;
        size_t panel = RNN_BAND * deep, panel_t = RNN_BAND * wide;
        float *w = random_floats(K * ldw, 1.0), largest = 0.0f, *factor = random_floats(K, 1.0);
        rnn_bfloat16 *rows = random_words((K + 1) * ld), *rows0 = words((K + 1) * ld);
        rnn_bfloat16 *b = random_words(wide * deep), *bt = random_words(deep * wide);
        for (size_t i = 0; i < K * cols; i++) largest = fmaxf(largest, fabsf(w[i / cols * ldw + i % cols]));
        largest = rnn_widen_bfloat16(rnn_round_bfloat16(largest));
        memcpy(rows0, rows, (K + 1) * ld * sizeof *rows);
        CHECK(k->round_rows(K, cols, w, ldw, rows, ld) == largest);
        for (size_t i = 0; i < (K + 1) * ld; i++) {
            bool inside = i / ld < K && i % ld < cols;
            CHECK(rows[i] == (inside ? rnn_round_bfloat16(w[i / ld * ldw + i % ld]) : rows0[i]));
        }
#define ROUNDED(i, j) ((i) < K && (j) < cols ? rnn_widen_bfloat16(rnn_round_bfloat16(w[(i) * ldw + (j)])) : 0.0f)
        for (int shuffled = 0; shuffled <= 1; shuffled++) {
            CHECK(k->pack(w, ldw, K, cols, shuffled, b, panel, shuffled ? bt : NULL, panel_t) == largest);
            for (size_t i = 0; i < deep * wide; i++) {
                size_t row = i / wide, place = i % wide;
                size_t column = shuffled ? place / 32 * 32 + rnn_shuffled_column(place % 32) : place;
                CHECK(right_at(b, panel, row, place) == ROUNDED(row, column));
                if (!shuffled || row >= rnn_round_up(K, RNN_BAND)) continue;
                CHECK(right_at(bt, panel_t, place, row) == ROUNDED(row, column));
            }
        }
        k->pack(w, ldw, K, cols, false, b, panel, bt, panel_t);
        for (size_t i = 0; i < K * wide; i++)
            CHECK(right_at(bt, panel_t, i % wide, i / wide) == ROUNDED(i / wide, i % wide));
        for (int scaled = 0; scaled <= 1; scaled++) {
            size_t tall = rnn_round_up(cols, RNN_BAND);
            rnn_bfloat16 *left = random_words(tall * deep);
            k->transpose(K, cols, w, ldw, scaled ? factor : NULL, left, deep);
            for (size_t i = 0; i < tall * deep; i++) {
                size_t row = i / deep, n = i % deep;
                float x = row < cols && n < K ? w[n * ldw + row] * (scaled ? factor[n] : 1.0f) : 0.0f;
                CHECK(left_at(rnn_left_tiles(left, deep), row, n) == rnn_widen_bfloat16(rnn_round_bfloat16(x)));
            }
            free(left);
        }
        for (size_t i = 0; i < K; i++) memset(rows + i * ld + cols, 0, (wide - cols) * sizeof *rows);
        k->interleave(K, wide, rows, ld, b, panel);
        for (size_t i = 0; i < deep * wide; i++)
            CHECK(right_at(b, panel, i / wide, i % wide) == ROUNDED(i / wide, i % wide));
#undef ROUNDED
        float poisons[] = {NAN, INFINITY, -INFINITY, 3.4e38f}; /* the last one overflows when it is rounded */
        for (size_t i = 0; i < 4; i++) {
            w[(K - 1) * ldw + cols - 1] = poisons[i];
            CHECK(k->round_rows(K, cols, w, ldw, rows, ld) == INFINITY);
            CHECK(k->pack(w, ldw, K, cols, i % 2, b, panel, NULL, 0) == INFINITY);
        }
        free(w), free(factor), free(rows), free(rows0), free(b), free(bt);
    }
}

void test_bfloat16_exponentials(void) {
    const rnn_bfloat16_kernels *k = rnn_kernels_choose()->bfloat16;
    enum { ROWS = 6, COLS = 96, LDZ = 100, LD = 128, PANEL = 16 * 8 };
    float *z = random_floats(ROWS * LDZ, 10.0), *bias = random_floats(COLS, 3.0), *most = floats(ROWS * RNN_BAND);
    float shift[ROWS] = {0.0f, 10.0f, -7.0f, 60.0f, 3e38f, 1.0f}, *sum = random_floats(ROWS * RNN_BAND, 1.0);
    float *sum0 = copy_floats(sum, ROWS * RNN_BAND);
    void *memory;
    rnn_bfloat16 *rows = words(ROWS * LD), *pairs = rnn_aligned_alloc(COLS / RNN_BAND * PANEL * sizeof *pairs, &memory);
    bias[3] = -INFINITY;                                      /* a word that is not there */
    for (size_t j = 0; j < COLS; j++) z[5 * LDZ + j] = 25.0f; /* all equal, but for the biases */
    for (int kind = 0; k && kind < 3; kind++) {               /* sums only; kept; kept past the caches */
        for (size_t i = 0; i < ROWS * RNN_BAND; i++) most[i] = -INFINITY;
        memcpy(sum, sum0, ROWS * RNN_BAND * sizeof *sum);
        k->begin();
        k->exponentials(ROWS, COLS, z, LDZ, bias, shift, kind ? rows : NULL, LD, pairs, PANEL, kind == 2, sum, most);
        k->end();
        for (size_t i = 0; i < ROWS; i++) {
            double want_sum = 0.0, want_most = -INFINITY, got_sum = 0.0, got_most = -INFINITY;
            for (size_t j = 0; j < RNN_BAND; j++) {
                got_sum += (double)sum[i * RNN_BAND + j] - sum0[i * RNN_BAND + j];
                got_most = fmax(got_most, most[i * RNN_BAND + j]);
            }
            for (size_t j = 0; j < COLS; j++) {
                double x = ((double)z[i * LDZ + j] + bias[j]) * 1.4426950408889634 - shift[i], want = exp2(x);
                size_t column = j / 32 * 32 + rnn_shuffled_column(j % 32);
                want_sum += want;
                want_most = fmax(want_most, x);
                if (!kind) continue;
                double row = rnn_widen_bfloat16(rows[i * LD + j]), pair = right_at(pairs, PANEL, i, column);
                CHECK(row == pair);
                CHECK_BELOW(fabs(row - want), (1.0 / 256.0 + 2e-5) * want + 1e-37);
            }
            CHECK_BELOW(fabs(got_sum - want_sum), 1e-5 * want_sum + 1e-6);
            CHECK_BELOW(fabs(got_most - want_most), 2e-7 * (fabs(want_most) + fabs((double)shift[i])) + 1e-5);
        }
    }
    free(z), free(bias), free(most), free(sum), free(sum0), free(rows), free(memory);
}
