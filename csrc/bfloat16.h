/* bfloat16.h -- products of operands rounded to bfloat16, summed in float32: the kernels for processors that have
 * instructions for it. Everywhere else the float32 kernels multiply rounded operands, which gives the same sums to
 * rounding (output.c, hidden.c).
 *
 *   Left operands   (m, K) are rows of bfloat16, at the strides that rnn_left holds.
 *   Right operands  (K, columns) lie in panels of 16 columns: panel[k / 2][column][k % 2]. The pairs along the summed index
 *                   are what VDPBF16PS and TDPBF16PS multiply at a time.
 *   Padding         Sums run over K rounded up to `depth`; what fills up is zero on at least one side and finite on the
 *                   other. Rows of a left operand and of C exist up to a multiple of RNN_BAND; those of C beyond m are
 *                   overwritten with anything.
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
    RNN_STRIP_ROWS = 32,    /* rows whose logits are held at a time */
    RNN_BFLOAT16_SKEW = 32, /* elements between rows whose length is a power of two: they must not share cache sets */
};

/* Rounded to nearest, ties to even; a NaN stays one. */
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

/* Of 32 shuffled columns, the one at a place: the unpack instructions take four words from each eighth of their operands,
 * so they are handed the columns 0-3 16-19 4-7 20-23 8-11 24-27 12-15 28-31, and return 0-15 and 16-31. */
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
    size_t depth;   /* what K is rounded up to: 2, or 32 with tiles */
    size_t columns; /* logits of a row held at a time, and columns of a gradient; a multiple of 32 */

    void (*begin)(void); /* before a thread's products, */
    void (*end)(void);   /* and after them */

    /* C (m, 16 * panels) = A (m, K) B; += with add. K a multiple of depth. */
    void (*multiply)(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                     size_t ldc, bool add);

    /* rows (m, cols) = x (m, cols) rounded. Returns the largest magnitude of the rows, infinity when one is not finite. */
    float (*round_rows)(size_t m, size_t cols, const float *x, size_t ldx, rnn_bfloat16 *rows, size_t ld);

    /* Right operands from w (K, cols), rows ldw apart: b itself, and unless bt is NULL its transpose. Columns are filled up
     * to a multiple of 32 with zeros, and so is K. With `shuffled`, each 32 columns of b, and so the sums over bt, come in
     * the order that exponentials() needs. Returns the largest rounded magnitude, as round_rows does. */
    float (*pack)(const float *w, size_t ldw, size_t K, size_t cols, bool shuffled, rnn_bfloat16 *b, size_t b_panel,
                  rnn_bfloat16 *bt, size_t bt_panel);

    /* A left operand in tiles, K of each band: its element (i, n) is x[n * ldx + i] * factor[n], for m rows and cols columns
     * of x, filled up with zeros to whole tiles. factor NULL: 1. */
    void (*transpose)(size_t m, size_t cols, const float *x, size_t ldx, const float *factor, rnn_bfloat16 *out,
                      size_t K);

    /* A right operand from rows (m, cols), ld apart: the sum runs over the rows. cols a multiple of 32; m is filled up with
     * zeros to a multiple of 32. */
    void (*interleave)(size_t m, size_t cols, const rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *b, size_t b_panel);

    /* e = 2^((z + bias) log2(e) - shift) of m (even) rows of cols (a multiple of 32) shuffled columns. To sum (m, 16) is
     * added what each row's e sum up to, in 16 pieces; most (m, 16) likewise is raised to the largest exponents. Unless rows
     * is NULL, e is rounded into rows (m, cols), shuffled, and into pairs, a right operand that is summed over rows and whose
     * columns are in order; with `stream`, those go past the caches, and can be read after end(). */
    void (*exponentials)(size_t m, size_t cols, const float *z, size_t ldz, const float *bias, const float *shift,
                         rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *pairs, size_t pairs_panel, bool stream,
                         float *sum, float *most);
} rnn_bfloat16_kernels;

extern const rnn_bfloat16_kernels rnn_bfloat16_dots, rnn_bfloat16_tiles; /* x86 only */

/* kernels_amx.c: the products by tiles, for processors that have AMX, once the system has allowed it. */
void rnn_tiles_begin(void);
void rnn_tiles_end(void);
void rnn_tiles_multiply(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                        size_t ldc, bool add);

#endif
