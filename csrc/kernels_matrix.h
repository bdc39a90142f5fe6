/* kernels_matrix.h -- matrix products. Only kernels.c includes this.
 *
 * A tile of C, TILE_ROWS rows by TILE_VECS vectors, stays in registers for the whole sum over k: per
 * step TILE_VECS loads of B and TILE_ROWS broadcasts of A feed TILE_ROWS * TILE_VECS multiply-adds, which is what
 * makes the arithmetic, and not the loads, the limit (Goto & van de Geijn 2008). A panel of B is as wide as the tile, so
 * it is read from front to back, and out of the L1 cache for all tiles but the first.
 */
#ifndef RNN_KERNELS_MATRIX_H
#define RNN_KERNELS_MATRIX_H

#include "internal.h"
#include "vector.h"

/* What a tile of C is made from: element (i, k) of A is a[i * a_row + k * a_k]; row k of B begins at b + k * b_row. */
typedef struct operands {
    const float *a;
    size_t a_row, a_k;
    const float *b;
    size_t b_row;
} operands;

/* acc = the first m rows of A times PANEL columns of B. */
INLINE void tile_sum(size_t m, size_t K, operands in, vec acc[TILE_ROWS][TILE_VECS]) {
    UNROLL for (size_t i = 0; i < m; i++) { UNROLL for (size_t j = 0; j < TILE_VECS; j++) acc[i][j] = (vec){0}; }
    for (size_t k = 0; k < K; k++) {
        vec row[TILE_VECS];
        UNROLL for (size_t j = 0; j < TILE_VECS; j++) row[j] = load(in.b + j * LANES);
        UNROLL for (size_t i = 0; i < m; i++) {
            UNROLL for (size_t j = 0; j < TILE_VECS; j++) acc[i][j] =
                multiply_add(splat(in.a[i * in.a_row]), row[j], acc[i][j]);
        }
        in.a += in.a_k;
        in.b += in.b_row;
    }
}

/* One tile of C, its rows c_row apart; of its columns only the first cols are touched. */
INLINE void tile_of(size_t m, size_t K, operands in, float *c, size_t c_row, size_t cols, bool add) {
    vec acc[TILE_ROWS][TILE_VECS];
    UNROLL for (size_t i = 0; i < m; i++) { /* C comes from far away, and is wanted only after the sum */
        UNROLL for (size_t j = 0; j < PANEL; j += 16) __builtin_prefetch(c + i * c_row + j, 1);
    }
    tile_sum(m, K, in, acc);
    if (cols >= PANEL) {
        UNROLL for (size_t i = 0; i < m; i++) {
            UNROLL for (size_t j = 0; j < TILE_VECS; j++) {
                float *at = c + i * c_row + j * LANES;
                store(at, add ? load(at) + acc[i][j] : acc[i][j]);
            }
        }
        return;
    }
    for (size_t i = 0; i < m; i++) {
        float row[PANEL];
        memcpy(row, acc[i], sizeof row);
        for (size_t j = 0; j < cols; j++) c[i * c_row + j] = add ? c[i * c_row + j] + row[j] : row[j];
    }
}

/* A column of tiles: m rows of C, as many as there are. Each height up to TILE_ROWS has its own unrolled code. */
INLINE void tiles_down(size_t m, size_t K, operands in, float *c, size_t c_row, size_t cols, bool add) {
    for (; m >= TILE_ROWS; m -= TILE_ROWS) {
        tile_of(TILE_ROWS, K, in, c, c_row, cols, add);
        in.a += TILE_ROWS * in.a_row;
        c += TILE_ROWS * c_row;
    }
#define TILE_CASE(rows)                                                                                                \
    case rows:                                                                                                         \
        tile_of(rows, K, in, c, c_row, cols, add);                                                                     \
        break;
    switch (m) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
#if TILE_ROWS > 4
        TILE_CASE(4)
        TILE_CASE(5)
#endif
#if TILE_ROWS > 6
        TILE_CASE(6)
        TILE_CASE(7)
#endif
    }
#undef TILE_CASE
}

static void multiply(size_t m, size_t K, size_t panels, const float *a, size_t lda, const float *b, float *c,
                     size_t c_row, size_t c_panel, bool add) {
    operands in = {.a = a, .a_row = lda, .a_k = 1, .b = b, .b_row = PANEL};
    for (size_t p = 0; p < panels; p++, in.b += K * PANEL, c += c_panel) tiles_down(m, K, in, c, c_row, PANEL, add);
}

static void multiply_at(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t b_row,
                        size_t b_panel, float *c, size_t ldc, bool add) {
    operands in = {.a = a, .a_row = 1, .a_k = lda, .b = b, .b_row = b_row};
    for (size_t j = 0; j < cols; j += PANEL, in.b += b_panel) {
        tiles_down(m, K, in, c + j, ldc, rnn_min(PANEL, cols - j), add);
    }
}

/* Sums of products of rows of A with rows of B, both along the panels: m <= DOT_ROWS times n <= DOT_COLS of them, each
 * in a vector of its own whose lanes are added up at the end. So neither matrix need be transposed. */
#define DOT_ROWS (TILE_ROWS * TILE_VECS >= 24 ? 4 : TILE_ROWS / 2)
#define DOT_COLS (TILE_ROWS * TILE_VECS >= 24 ? 6 : 4)

/* Each pair of count vectors becomes one. After log2(LANES) times, a vector holds the sums of LANES of them, in order. */
INLINE size_t fold_pairs(vec *acc, size_t count) {
    acc[count] = (vec){0};
    UNROLL for (size_t i = 0; i < (count + 1) / 2; i++) acc[i] = fold(acc[2 * i], acc[2 * i + 1]);
    return (count + 1) / 2;
}

INLINE void dot_tile(size_t m, size_t n, size_t panels, const float *a, size_t a_panel, const float *b, size_t b_panel,
                     float *c, size_t ldc) {
    vec acc[DOT_ROWS * DOT_COLS + 1]; /* (m, n) */
    UNROLL for (size_t i = 0; i < m * n; i++) acc[i] = (vec){0};
    for (size_t p = 0; p < panels; p++) {
        for (size_t v = 0; v < PANEL; v += LANES) {
            vec column[DOT_ROWS];
            UNROLL for (size_t i = 0; i < m; i++) column[i] = load(a + i * PANEL + v);
            UNROLL for (size_t j = 0; j < n; j++) {
                vec row = load(b + j * PANEL + v);
                UNROLL for (size_t i = 0; i < m; i++) acc[i * n + j] = multiply_add(column[i], row, acc[i * n + j]);
            }
        }
        a += a_panel;
        b += b_panel;
    }
    size_t left = fold_pairs(acc, fold_pairs(acc, m * n));
    if (LANES >= 8) left = fold_pairs(acc, left);
    if (LANES >= 16) left = fold_pairs(acc, left);
    float sums[DOT_ROWS * DOT_COLS + LANES]; /* (m, n) */
    UNROLL for (size_t i = 0; i < left; i++) store(sums + i * LANES, acc[i]);
    UNROLL for (size_t i = 0; i < m; i++) memcpy(c + i * ldc, sums + i * n, n * sizeof *c);
}

INLINE void dot_tile_any(size_t m, size_t n, size_t panels, const float *a, size_t a_panel, const float *b,
                         size_t b_panel, float *c, size_t ldc) {
#define DOT_CASE(cols)                                                                                                 \
    case cols:                                                                                                         \
        dot_tile(m, cols, panels, a, a_panel, b, b_panel, c, ldc);                                                     \
        break;
    switch (n) {
        DOT_CASE(1)
        DOT_CASE(2)
        DOT_CASE(3)
        DOT_CASE(4)
#if TILE_ROWS * TILE_VECS >= 24
        DOT_CASE(5)
        DOT_CASE(6)
#endif
    }
#undef DOT_CASE
}

static void multiply_bt(size_t m, size_t n, size_t panels, const float *a, size_t a_panel, const float *b,
                        size_t b_panel, float *c, size_t ldc) {
    for (size_t j = 0; j < n; j += DOT_COLS) {
        size_t cols = rnn_min(DOT_COLS, n - j), i = 0;
        const float *rows_of_b = b + j * PANEL;
        for (; i + DOT_ROWS <= m; i += DOT_ROWS) {
            dot_tile_any(DOT_ROWS, cols, panels, a + i * PANEL, a_panel, rows_of_b, b_panel, c + i * ldc + j, ldc);
        }
        for (; i < m; i++) {
            dot_tile_any(1, cols, panels, a + i * PANEL, a_panel, rows_of_b, b_panel, c + i * ldc + j, ldc);
        }
    }
}

static float pack(const float *w, size_t ld, size_t K, size_t cols, float fill, float *panels) {
    enum { AHEAD = 8 }; /* rows: they lie far apart, so the processor does not foresee the next one */
    ivec largest = {0};
    size_t whole = cols / PANEL, rest = cols % PANEL;
    for (size_t k = 0; k < K; k++, w += ld) {
        for (size_t j = 0; k + AHEAD < K && j < cols; j += 16) __builtin_prefetch(w + AHEAD * ld + j);
        float *out = panels + k * PANEL;
        for (size_t p = 0; p < whole; p++, out += K * PANEL) {
            UNROLL for (size_t j = 0; j < PANEL; j += LANES) {
                vec x = load(w + p * PANEL + j);
                store(out + j, x);
                largest = larger_int(largest, (ivec)x & INT32_MAX);
            }
        }
        if (rest) {
            float last[PANEL];
            for (size_t j = 0; j < PANEL; j++) last[j] = k + 1 == K ? fill : 0.0f;
            for (size_t j = 0; j < rest; j++) {
                last[j] = w[whole * PANEL + j];
                largest[0] = magnitude_bits(last[j]) > largest[0] ? magnitude_bits(last[j]) : largest[0];
            }
            memcpy(out, last, sizeof last);
        }
    }
    return magnitude_of(largest);
}

#endif
