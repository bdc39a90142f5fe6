/* bfloat16.h -- products of bfloat16 operands, summed in float32, for processors that have instructions for them. On
 * other processors the float32 kernels multiply the same rounded operands; the sums agree to the rounding of float32.
 *
 *   Left operands   (m, K) are rows of bfloat16, with the strides of an rnn_left.
 *   Right operands  (K, columns) are panels of 16 columns: panel[k / 2][column][k % 2]. VDPBF16PS and TDPBF16PS multiply
 *                   such pairs along the summed index.
 *   Padding         Sums run over K rounded up to `depth`: one side of the padding is zero, the other finite. The rows of
 *                   a left operand and of C exist up to a multiple of RNN_BAND. Those of C beyond m may be overwritten.
 */
#ifndef RNN_BFLOAT16_H
#define RNN_BFLOAT16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t rnn_bfloat16;

enum {
    RNN_BAND = 16,          /* rows of a tile, columns of a panel */
    RNN_TILE_DEPTH = 32,    /* k of a tile */
    RNN_STRIP_ROWS = 32,    /* rows whose logits are computed at a time */
    RNN_CHUNK = 128,        /* rows whose exponentials stay in the L2 cache until Why has multiplied them */
    RNN_TILE_TOKENS = 576,  /* the most tokens whose exponentials are kept at a time: whole strips */
    RNN_PARTS = 16,         /* of the vocabulary, at most: sums of dL/dh that are kept, and threads of a pass */
    RNN_GRADIENT_ROWS = 96, /* of dWxh or dWhh: one piece of work */
    RNN_SLAB_ROWS = 64,     /* of dWhy, in whole bands: computed, and copied out while they are in the cache */
    RNN_BFLOAT16_SKEW = 32, /* elements added to a row, so that rows do not share cache sets */
};

/* Rounds to nearest, ties to even. NaN stays NaN. */
static inline rnn_bfloat16 rnn_round_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (rnn_bfloat16)(bits >> 16 | 0x40u);
    return (rnn_bfloat16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float rnn_widen_bfloat16(rnn_bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* Returns which of 32 columns is at `place` in the shuffled order. The unpack instructions interleave four numbers of each
 * 128 bits: from the order 0-3 16-19 4-7 20-23 8-11 24-27 12-15 28-31 they return the columns 0-15 and 16-31 in order. */
static inline size_t rnn_shuffled_column(size_t place) { return place / 8 * 4 + place % 8 / 4 * 16 + place % 4; }

/* Element (i, k) lies at at[i / 16 * band + i % 16 * row + k / 32 * tile + k % 32]. */
typedef struct rnn_left {
    const rnn_bfloat16 *at;
    size_t row, band, tile;
} rnn_left;

/* Plain rows, ld apart. */
static inline rnn_left rnn_left_rows(const rnn_bfloat16 *at, size_t ld) {
    return (rnn_left){at, ld, RNN_BAND * ld, RNN_TILE_DEPTH};
}

/* Whole tiles one after the other, K (a multiple of 32) of each band: what `transpose` writes. */
static inline rnn_left rnn_left_tiles(const rnn_bfloat16 *at, size_t K) {
    return (rnn_left){at, RNN_TILE_DEPTH, RNN_BAND * K, RNN_BAND * RNN_TILE_DEPTH};
}

/* No two pointers of a call may alias. */
typedef struct rnn_bfloat16_kernels {
    size_t depth;   /* K is rounded up to a multiple of this: 2, or 32 with tiles */
    size_t columns; /* logits of a row that are computed at a time, and columns of a gradient: a multiple of 32 */

    void (*begin)(void); /* a thread calls begin before its products and end after them */
    void (*end)(void);

    /* C (m, 16 * panels) = A (m, K) B, or += with add. K is a multiple of depth. */
    void (*multiply)(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                     size_t ldc, bool add);

    /* rows (m, cols) = x (m, cols), rounded. Returns the largest magnitude in rows, infinity if a value is not finite. */
    float (*round_rows)(size_t m, size_t cols, const float *x, size_t ldx, rnn_bfloat16 *rows, size_t ld);

    /* Makes right operands of w (K, cols), whose rows are ldw apart: b is w and bt, unless it is NULL, the transpose. Both
     * are padded with zeros to multiples of 32. `shuffled` puts each 32 columns in the order that exponentials() needs.
     * Returns the largest magnitude after rounding, as round_rows does. */
    float (*pack)(const float *w, size_t ldw, size_t K, size_t cols, bool shuffled, rnn_bfloat16 *b, size_t b_panel,
                  rnn_bfloat16 *bt, size_t bt_panel);

    /* Makes a left operand in tiles, K in each band, of the transpose of x (m, cols): element (i, n) is
     * x[n * ldx + i] * factor[n]. It is padded with zeros to whole tiles. factor: NULL for 1. */
    void (*transpose)(size_t m, size_t cols, const float *x, size_t ldx, const float *factor, rnn_bfloat16 *out,
                      size_t K);

    /* Makes a right operand of rows (m, cols), ld apart, to be summed over the rows. cols is a multiple of 32; m is padded
     * with zeros to one. */
    void (*interleave)(size_t m, size_t cols, const rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *b, size_t b_panel);

    /* e = 2^((z + bias) log2(e) - shift), for m rows (even) and cols shuffled columns (a multiple of 32). Adds each row's e
     * to the 16 partial sums in sum (m, 16), and raises most (m, 16) to the largest exponents. Unless rows is NULL, also
     * stores e rounded, twice: in rows (m, cols), shuffled, and in pairs, in order, as a right operand to be summed over
     * the rows. `stream` sends pairs past the caches; they can be read after end(). */
    void (*exponentials)(size_t m, size_t cols, const float *z, size_t ldz, const float *bias, const float *shift,
                         rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *pairs, size_t pairs_panel, bool stream,
                         float *sum, float *most);
} rnn_bfloat16_kernels;

extern const rnn_bfloat16_kernels rnn_bfloat16_dots, rnn_bfloat16_tiles; /* x86 only */

/* What a workspace holds for these kernels. Shapes of operands are given without their padding. */
typedef struct rnn_bfloat16_work {
    const rnn_bfloat16_kernels *kernels;
    /* The hidden layer: */
    size_t ld, ld_inputs;   /* of a row of hidden state [h, 1, 0 ...], and of an input */
    rnn_bfloat16 *hidden;   /* (T + 1, B, ld), then RNN_STRIP_ROWS rows of zeros: rnn_work's hidden, rounded */
    rnn_bfloat16 *dropped;  /* (T, B, ld), likewise: hidden rows after dropout */
    rnn_bfloat16 *inputs;   /* (threads, RNN_GATHER, ld_inputs) */
    rnn_bfloat16 *wxh;      /* right operands: (E, H), */
    rnn_bfloat16 *whh;      /* (H, H), */
    rnn_bfloat16 *whh_t;    /* and its transpose */
    float *sums;            /* (B + a band for each thread, stride): the product with Whh of one step */
    rnn_bfloat16 *after;    /* (likewise, ld): the gradient before tanh of the step after */
    rnn_bfloat16 *gradient; /* a left operand (H, N): the gradient before tanh of all steps */
    rnn_bfloat16 *rounded;  /* (threads, RNN_GATHER, RNN_GRADIENT_ROWS): columns of inputs */
    rnn_bfloat16 *right;    /* (threads): a right operand of them */
    float *dw;              /* (threads, H, RNN_GRADIENT_ROWS): rows of a gradient, transposed */
    /* The output layer: */
    size_t block, blocks;      /* words of a block; blocks of max_columns */
    size_t part_blocks, parts; /* a part: neighbouring blocks whose sums are added up */
    size_t rows;               /* the most tokens of a tile */
    rnn_bfloat16 *pairs; /* (blocks, block / RNN_BAND, pairs_panel): the exponentials of a tile, a right operand */
    size_t pairs_panel, pairs_size;
    float *dhidden;            /* (parts, rows, H to whole bands): exponentials times Why^T */
    float *shift;              /* (rows): exponents are relative to this; whole numbers */
    float *most;               /* (parts, rows, RNN_BAND): the largest exponents */
    float *sum;                /* (parts, rows, RNN_BAND): partial sums of exponentials */
    double *row_sum;           /* (rows) */
    float *factor;             /* (rows): of a row's exponentials in the gradient */
    float *rest;               /* (rows): scale (1 - p) of y */
    float *target;             /* (rows): the logit of y */
    float *target_why;         /* (rows, H): the column of Why that belongs to y */
    float *block_largest;      /* (blocks): the largest magnitude in a block of [Why; by] */
    rnn_bfloat16 *scaled;      /* a left operand (H + 1, rows): hidden rows times their factor */
    rnn_bfloat16 *why, *why_t; /* (threads): right operands, a block of Why and its transpose */
    rnn_bfloat16 *e;           /* (threads, chunk, block): exponentials by rows */
    float *bias;               /* (threads, block) */
    float *logits;             /* (threads, RNN_STRIP_ROWS, columns of the kernels) */
    float *slab;               /* (threads, RNN_SLAB_ROWS, columns of the kernels) */
    size_t dw_size, why_size, why_t_size, e_size, slab_size; /* per thread */
} rnn_bfloat16_work;

/* kernels_amx.c: the products by tiles, where dispatch.c has found that the process may use them. */
void rnn_tiles_begin(void);
void rnn_tiles_end(void);
void rnn_tiles_multiply(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                        size_t ldc, bool add);

#endif
