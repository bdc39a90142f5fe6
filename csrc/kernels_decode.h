/* kernels_decode.h -- one hidden row times Why, as given or from a smaller copy. Included by kernels.c alone.
 *
 * Such a product reads every weight once: it is as fast as memory is, and a copy with half or a quarter of the bytes is
 * up to two or four times as fast. A copy consists of wide panels, of WIDE columns, each K rows one after the other; a
 * 32-bit word holds a weight of two columns (bfloat16: the upper half of a float, rounded to even) or of four (int8,
 * with one scale per column), LANES apart: so shifts and masks alone take a vector of words apart.
 */
#ifndef RNN_KERNELS_DECODE_H
#define RNN_KERNELS_DECODE_H

#include "internal.h"
#include "kernels_matrix.h"
#include "vector.h"

#define WIDE (4 * LANES)

static uint32_t bfloat16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static void compress(int32_t precision, const float *w, size_t ld, size_t K, size_t cols, uint32_t *words,
                     float *scale) {
    size_t row = precision == RNN_PRECISION_BF16 ? 2 * LANES : LANES; /* words */
    memset(words, 0, K * row * sizeof *words);
    for (size_t j = 0; j < cols; j++) {
        float max = 0.0f;
        for (size_t k = 0; k < K; k++) max = fmaxf(max, fabsf(w[k * ld + j]));
        float step = max / 127.0f; /* of int8; 0 when it is too small for a float, and then so is the column */
        scale[j] = precision == RNN_PRECISION_BF16 ? 1.0f : step;
        for (size_t k = 0; k < K; k++) {
            float x = w[k * ld + j];
            if (precision == RNN_PRECISION_BF16) {
                words[k * row + j / (2 * LANES) * LANES + j % LANES] |= bfloat16_of(x) << (j / LANES % 2 * 16);
            } else if (step > 0.0f) {
                /* A tiny step is a rounded one, so the quotient can exceed 127. */
                int32_t q = (int32_t)fmaxf(-127.0f, fminf(127.0f, rintf(x / step)));
                words[k * row + j % LANES] |= ((uint32_t)q & 0xff) << (j / LANES * 8);
            }
        }
    }
}

/* One row of a wide panel. */
INLINE void expand_row(int32_t precision, const uint32_t *words, vec out[4]) {
    uvec a = *(const uvec_at *)words;
    if (precision == RNN_PRECISION_BF16) {
        uvec b = *(const uvec_at *)(words + LANES);
        out[0] = (vec)(a << 16);
        out[1] = (vec)(a & 0xffff0000u);
        out[2] = (vec)(b << 16);
        out[3] = (vec)(b & 0xffff0000u);
    } else {
        UNROLL for (size_t j = 0; j < 4; j++) {
            out[j] = __builtin_convertvector((ivec)(a << (24 - 8 * (uint32_t)j)) >> 24, vec);
        }
    }
}

/* Rows of A at a time: their sums, a row of weights and a broadcast fit the registers. */
#define WORD_ROWS (TILE_ROWS * TILE_VECS >= 24 ? 6 : 2)

INLINE void words_tile(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *words,
                       float *c, size_t ldc) {
    vec acc[WORD_ROWS][4];
    UNROLL for (size_t i = 0; i < m; i++) { UNROLL for (size_t j = 0; j < 4; j++) acc[i][j] = (vec){0}; }
    for (size_t k = 0; k < K; k++) {
        vec row[4];
        expand_row(precision, words, row);
        UNROLL for (size_t i = 0; i < m; i++) {
            UNROLL for (size_t j = 0; j < 4; j++) acc[i][j] = multiply_add(splat(a[i * lda + k]), row[j], acc[i][j]);
        }
        words += precision == RNN_PRECISION_BF16 ? 2 * LANES : LANES;
    }
    UNROLL for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t j = 0; j < 4; j++) store(c + i * ldc + j * LANES, acc[i][j]);
    }
}

INLINE void words_down(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *words,
                       float *c, size_t ldc) {
    for (; m >= WORD_ROWS; m -= WORD_ROWS) {
        words_tile(WORD_ROWS, precision, K, a, lda, words, c, ldc);
        a += WORD_ROWS * lda;
        c += WORD_ROWS * ldc;
    }
#define WORDS_CASE(rows)                                                                                               \
    case rows:                                                                                                         \
        words_tile(rows, precision, K, a, lda, words, c, ldc);                                                         \
        break;
    switch (m) {
        WORDS_CASE(1)
#if TILE_ROWS * TILE_VECS >= 24
        WORDS_CASE(2)
        WORDS_CASE(3)
        WORDS_CASE(4)
        WORDS_CASE(5)
#endif
    }
#undef WORDS_CASE
}

static void rows_times_words(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *words,
                             float *c, size_t ldc) {
    if (precision == RNN_PRECISION_BF16) {
        words_down(m, RNN_PRECISION_BF16, K, a, lda, words, c, ldc);
    } else {
        words_down(m, RNN_PRECISION_INT8, K, a, lda, words, c, ldc);
    }
}

/* Columns at a time: enough of them for whole cache lines, few enough for the sums to stay in registers. */
#define ROW_VECS (TILE_ROWS * TILE_VECS >= 24 ? 16 : 8)

/* One row of A, in strips of columns wider than a tile. */
static void row_unpacked(size_t K, const float *h, const float *w, size_t ld, size_t cols, float *z) {
    size_t v = 0;
    for (; v + ROW_VECS * LANES <= cols; v += ROW_VECS * LANES) {
        vec acc[ROW_VECS];
        UNROLL for (size_t j = 0; j < ROW_VECS; j++) acc[j] = (vec){0};
        for (size_t k = 0; k < K; k++) {
            const float *row = w + k * ld + v;
            UNROLL for (size_t j = 0; j < ROW_VECS; j++) {
                /* The next columns of this row: no processor foresees K streams. */
                if (j * LANES % 16 == 0) __builtin_prefetch(row + (ROW_VECS + j) * LANES);
                acc[j] = multiply_add(splat(h[k]), load(row + j * LANES), acc[j]);
            }
        }
        UNROLL for (size_t j = 0; j < ROW_VECS; j++) store(z + v + j * LANES, acc[j]);
    }
    if (v < cols) multiply_unpacked(1, K, cols - v, h, K, w + v, ld, z + v, cols);
}

static void rows_times(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t ldb,
                       float *c, size_t ldc) {
    if (m == 1) {
        row_unpacked(K, a, b, ldb, cols, c);
    } else {
        multiply_unpacked(m, K, cols, a, lda, b, ldb, c, ldc);
    }
}

static void scale_and_add(size_t count, const float *scale, const float *bias, float *z) {
    for (size_t i = 0; i < count; i++) z[i] = z[i] * scale[i] + bias[i];
}

static void add(size_t count, const float *bias, float *z) {
    for (size_t i = 0; i < count; i++) z[i] += bias[i];
}

static void finish(size_t count, const float *scale, const float *bias, float *z) {
    if (scale) {
        scale_and_add(count, scale, bias, z);
    } else {
        add(count, bias, z);
    }
}

#endif
