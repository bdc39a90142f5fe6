/* kernels_decode.h -- a few hidden rows times Why, as given or from a smaller copy. Only kernels.c includes this.
 *
 * Such a product reads every weight once, so it is as fast as memory, and a copy with half or a quarter of the bytes is
 * up to two or four times as fast. A copy consists of wide panels: WIDE columns, as K packed rows one after the other.
 * A bfloat16 is the upper half of a float, rounded to even; a 32-bit integer holds those of two columns, LANES apart, so
 * that a shift and a mask turn a vector of them into two vectors of floats. An int8 has one scale per column.
 */
#ifndef RNN_KERNELS_DECODE_H
#define RNN_KERNELS_DECODE_H

#include "internal.h"
#include "kernels_matrix.h"
#include "vector.h"

#define WIDE (4 * LANES)

/* Where column j stands among the bytes of an int8 row, and vector j of a row as integers. x86 widens LANES neighbouring
 * bytes as it loads them; elsewhere shifts take apart integers that hold bytes of columns LANES apart. */
#if defined(__AVX512F__)
#define BYTE_OF(j) (j)
INLINE ivec bytes_of(const uint32_t *packed, size_t j) {
    return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(packed + j * LANES / 4)));
}
#elif defined(__AVX2__)
#define BYTE_OF(j) (j)
INLINE ivec bytes_of(const uint32_t *packed, size_t j) {
    return (ivec)_mm256_cvtepi8_epi32(_mm_loadu_si64(packed + j * LANES / 4));
}
#else
#define BYTE_OF(j) ((j) % LANES * 4 + (j) / LANES) /* little-endian */
INLINE ivec bytes_of(const uint32_t *packed, size_t j) {
    return (ivec)(*(const uvec_at *)packed << (24 - 8 * (uint32_t)j)) >> 24;
}
#endif

static void compress(int32_t precision, const float *w, size_t ld, size_t K, size_t cols, uint32_t *packed,
                     float *scale) {
    size_t row = precision == RNN_PRECISION_BF16 ? 2 * LANES : LANES; /* integers */
    memset(packed, 0, K * row * sizeof *packed);
    for (size_t j = 0; j < cols; j++) {
        float max = 0.0f;
        for (size_t k = 0; k < K; k++) max = fmaxf(max, fabsf(w[k * ld + j]));
        float step = max / 127.0f; /* of int8; 0 when it is too small for a float, and then so is the column */
        scale[j] = precision == RNN_PRECISION_BF16 ? 1.0f : step;
        for (size_t k = 0; k < K; k++) {
            float x = w[k * ld + j];
            if (precision == RNN_PRECISION_BF16) {
                packed[k * row + j / (2 * LANES) * LANES + j % LANES] |= (uint32_t)rnn_round_bfloat16(x)
                                                                         << (j / LANES % 2 * 16);
            } else if (step > 0.0f) {
                /* A tiny step has itself been rounded, so the quotient can exceed 127. */
                int32_t q = (int32_t)fmaxf(-127.0f, fminf(127.0f, rintf(x / step)));
                ((int8_t *)(packed + k * row))[BYTE_OF(j)] = (int8_t)q;
            }
        }
    }
}

/* One row of a wide panel. */
INLINE void expand_row(int32_t precision, const uint32_t *packed, vec out[4]) {
    if (precision == RNN_PRECISION_BF16) {
        uvec a = *(const uvec_at *)packed, b = *(const uvec_at *)(packed + LANES);
        out[0] = (vec)(a << 16);
        out[1] = (vec)(a & 0xffff0000u);
        out[2] = (vec)(b << 16);
        out[3] = (vec)(b & 0xffff0000u);
    } else {
        UNROLL for (size_t j = 0; j < 4; j++) out[j] = __builtin_convertvector(bytes_of(packed, j), vec);
    }
}

/* Rows of A at a time: their sums, a row of weights and a broadcast fit the registers. */
#define PACKED_ROWS (TILE_ROWS * TILE_VECS >= 24 ? 6 : 2)

INLINE void packed_tile(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *packed,
                        float *c, size_t ldc) {
    vec acc[PACKED_ROWS][4];
    UNROLL for (size_t i = 0; i < m; i++) { UNROLL for (size_t j = 0; j < 4; j++) acc[i][j] = (vec){0}; }
    for (size_t k = 0; k < K; k++) {
        vec row[4];
        expand_row(precision, packed, row);
        UNROLL for (size_t i = 0; i < m; i++) {
            UNROLL for (size_t j = 0; j < 4; j++) acc[i][j] = multiply_add(splat(a[i * lda + k]), row[j], acc[i][j]);
        }
        packed += precision == RNN_PRECISION_BF16 ? 2 * LANES : LANES;
    }
    UNROLL for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t j = 0; j < 4; j++) store(c + i * ldc + j * LANES, acc[i][j]);
    }
}

INLINE void packed_down(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *packed,
                        float *c, size_t ldc) {
    for (; m >= PACKED_ROWS; m -= PACKED_ROWS) {
        packed_tile(PACKED_ROWS, precision, K, a, lda, packed, c, ldc);
        a += PACKED_ROWS * lda;
        c += PACKED_ROWS * ldc;
    }
#define PACKED_CASE(rows)                                                                                              \
    case rows:                                                                                                         \
        packed_tile(rows, precision, K, a, lda, packed, c, ldc);                                                       \
        break;
    switch (m) {
        PACKED_CASE(1)
#if TILE_ROWS * TILE_VECS >= 24
        PACKED_CASE(2)
        PACKED_CASE(3)
        PACKED_CASE(4)
        PACKED_CASE(5)
#endif
    }
#undef PACKED_CASE
}

static void rows_times_packed(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *packed,
                              float *c, size_t ldc) {
    if (precision == RNN_PRECISION_BF16) {
        packed_down(m, RNN_PRECISION_BF16, K, a, lda, packed, c, ldc);
    } else {
        packed_down(m, RNN_PRECISION_INT8, K, a, lda, packed, c, ldc);
    }
}

/* The product with Why as it lies goes in strips of its columns. The rows of A, in groups of about equal height and at
 * most STRIP_ROWS, take turns at each strip: the fewer rows, the wider the strip, so that the sums fill the registers.
 * Every width divides RNN_BLOCK. */
#if TILE_ROWS * TILE_VECS >= 24
#define STRIP_ROWS 8
#define STRIP_VECS(rows) ((rows) <= 2 ? 12 : (rows) <= 4 ? 6 : (rows) <= 6 ? 4 : 3)
#elif TILE_ROWS * TILE_VECS >= 12
#define STRIP_ROWS 6
#define STRIP_VECS(rows) ((rows) == 1 ? 8 : (rows) <= 3 ? 4 : (rows) == 4 ? 3 : 2)
#else
#define STRIP_ROWS 4
#define STRIP_VECS(rows) ((rows) == 1 ? 8 : (rows) == 2 ? 4 : 2)
#endif

typedef struct row_product {
    size_t m, K;
    const float *a; /* (m, K), rows lda apart */
    size_t lda;
    const float *b; /* (K, columns), rows ldb apart */
    size_t ldb;
    const float *bias;
    float *c; /* (m, columns), rows ldc apart */
    size_t ldc;
} row_product;

/* Rows i to i + m, columns v to v + vecs * LANES, of C = A B + bias. */
INLINE void strip_of(size_t m, size_t vecs, row_product p, size_t i, size_t v) {
    vec acc[STRIP_ROWS][12];
    const float *a = p.a + i * p.lda, *b = p.b + v;
    float *c = p.c + i * p.ldc + v;
    UNROLL for (size_t r = 0; r < m; r++) { UNROLL for (size_t j = 0; j < vecs; j++) acc[r][j] = (vec){0}; }
    for (size_t k = 0; k < p.K; k++, b += p.ldb) {
        vec row[12];
        UNROLL for (size_t j = 0; j < vecs; j++) {
            row[j] = load(b + j * LANES);
            /* The first group fetches the next columns of this row: no processor foresees K streams. */
            if (i == 0 && j * LANES % 16 == 0) __builtin_prefetch(b + (vecs + j) * LANES);
        }
        UNROLL for (size_t r = 0; r < m; r++) {
            UNROLL for (size_t j = 0; j < vecs; j++) {
                acc[r][j] = multiply_add(splat(a[r * p.lda + k]), row[j], acc[r][j]);
            }
        }
    }
    UNROLL for (size_t j = 0; j < vecs; j++) {
        vec bias = load(p.bias + v + j * LANES);
        UNROLL for (size_t r = 0; r < m; r++) store(c + r * p.ldc + j * LANES, acc[r][j] + bias);
    }
}

/* One strip of all rows: groups of `rows`, then groups of one fewer. */
INLINE void strip_down(size_t rows, size_t vecs, row_product p, size_t v) {
    size_t groups = rnn_ceil_div(p.m, rows), tall = p.m - groups * (rows - 1), i = 0;
    for (size_t g = 0; g < tall; g++, i += rows) strip_of(rows, vecs, p, i, v);
    if (rows > 1) {
        for (; i < p.m; i += rows - 1) strip_of(rows - 1, vecs, p, i, v);
    }
}

INLINE void strips_across(size_t rows, row_product p, size_t cols) {
    size_t width = STRIP_VECS(rows) * LANES, v = 0;
    for (; v + width <= cols; v += width) strip_down(rows, STRIP_VECS(rows), p, v);
    /* The last vector overlaps the one before it: a load must not pass the end of B's last row. */
    for (; v < cols; v += LANES) strip_down(rows, 1, p, rnn_min(v, cols - LANES));
}

static void rows_times(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t ldb,
                       const float *bias, float *c, size_t ldc) {
    row_product p = {.m = m, .K = K, .a = a, .lda = lda, .b = b, .ldb = ldb, .bias = bias, .c = c, .ldc = ldc};
    if (cols < LANES) {
        for (size_t i = 0; i < m; i++) {
            vec acc = {0};
            for (size_t k = 0; k < K; k++) {
                acc = multiply_add(splat(a[i * lda + k]), load_part(b + k * ldb, cols, 0.0f), acc);
            }
            acc += load_part(bias, cols, 0.0f);
            memcpy(c + i * ldc, &acc, cols * sizeof *c);
        }
        return;
    }
#define STRIP_CASE(rows)                                                                                               \
    case rows:                                                                                                         \
        strips_across(rows, p, cols);                                                                                  \
        break;
    switch (rnn_ceil_div(m, rnn_ceil_div(m, STRIP_ROWS))) {
        STRIP_CASE(1)
        STRIP_CASE(2)
        STRIP_CASE(3)
        STRIP_CASE(4)
#if STRIP_ROWS > 4
        STRIP_CASE(5)
        STRIP_CASE(6)
#endif
#if STRIP_ROWS > 6
        STRIP_CASE(7)
        STRIP_CASE(8)
#endif
    }
#undef STRIP_CASE
}

static void finish(size_t count, const float *scale, const float *bias, float *z) {
    for (size_t i = 0; i < count; i++) z[i] = (scale ? z[i] * scale[i] : z[i]) + bias[i];
}

#endif
