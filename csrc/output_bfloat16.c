/* output_bfloat16.c -- the output layer of output.c, with products of bfloat16 operands.
 *
 *     z = h Why + by      e = 2^(z log2(e) - shift)      s = sum_v e      f = scale / s
 *     dh = f (e Why^T) - scale Why[:,y]      d[Why; by] = (f [h, 1])^T e - scale [h, 1]^T onehot(y)
 *
 * The operands h, Why, e and f h are rounded to bfloat16; everything else is float32. The target's own share of the
 * gradient, scale (p_y - 1), is kept out of the products and computed in float32: when p_y is near 1, rounding e would
 * cost more than the gradient is worth.
 *
 *   One shift   bfloat16 has the range of float32, so exponentials can be relative to any number near the largest logit.
 *               The first guess is the logit of the target, which the loss needs anyway. No pass looks for a maximum, and
 *               as all blocks share the shift, their sums simply add up. If a logit of some row lies too far above the
 *               guess (HEADROOM), the tile is computed again with the largest logit as the row's shift. Shifts are whole
 *               numbers: a power of two does not change how e is rounded, so the results do not depend on the shift.
 *   Two copies  of e come out of one pass: one by rows, which Why^T multiplies at once, and one in pairs of rows, which is
 *               kept until s is known and then gives the gradient of Why.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    HEADROOM = 60,     /* with e <= 2^60 and up to 2^24 words, a sum of e Why stays below 2^127 while |Why| < 2^40 */
    STREAMED = 2 << 20 /* more exponentials than this are stored past the caches */
};

/* One tile: tokens n0 to n0 + rows of a chunk. */
typedef struct tile {
    const rnn_output *out;
    const float *hidden;      /* (rows, stride) */
    const rnn_bfloat16 *left; /* (rows, ld): the same, rounded */
    const int32_t *y;         /* (rows) */
    size_t rows, padded;      /* padded: rows rounded up to `depth`; the e of the additional rows are 0 */
    size_t blocks, parts;
} tile;

static size_t cols_of(const rnn_work *w, const tile *t, size_t block) {
    return rnn_min(w->bf.block, t->out->columns - block * w->bf.block);
}

/* The exponentials of one block, in pairs. */
static rnn_bfloat16 *pairs_of(const rnn_work *w, size_t block) {
    return w->bf.pairs + block * (w->bf.block / RNN_BAND) * w->bf.pairs_panel;
}

/* Row n: the target's logit and column of Why, and the first guess at the shift. */
static void start_row(rnn_work *w, const tile *t, size_t n) {
    const rnn_output *out = t->out;
    rnn_bfloat16_work *bf = &w->bf;
    if (n >= t->rows) { /* e becomes 0, whatever the logits are */
        bf->shift[n] = FLT_MAX;
        return;
    }
    const float *column = out->why + t->y[n], *next = out->why + t->y[n + 1 < t->rows ? n + 1 : n];
    float z = 0.0f, *target_why = bf->target_why + n * w->H;
    /* The numbers of a column lie far apart: fetch those of the next one early. */
    for (size_t i = 0; i <= w->H; i++) __builtin_prefetch(next + i * out->columns, 0, 2);
    for (size_t i = 0; i < w->H; i++) {
        target_why[i] = rnn_widen_bfloat16(rnn_round_bfloat16(column[i * out->columns]));
        z += target_why[i] * rnn_widen_bfloat16(t->left[n * bf->ld + i]);
    }
    bf->target[n] = z + column[w->H * out->columns];
    bf->shift[n] = rintf(bf->target[n] * 1.44269504088896341f);
}

/* One block: adds its exponentials to the sums of its part, and with a gradient to the part's e Why^T. */
static void block_forward(rnn_work *w, const tile *t, size_t part, size_t block, bool gradient) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t thread = rnn_thread(), H = w->H, V = t->out->columns;
    size_t v0 = block * bf->block, cols = cols_of(w, t, block), padded = rnn_round_up(cols, 32);
    size_t panel = RNN_BAND * rnn_round_up(H, RNN_TILE_DEPTH), panel_t = RNN_BAND * bf->block;
    size_t ld = rnn_round_up(H, RNN_BAND), ld_e = bf->block + RNN_BFLOAT16_SKEW;
    rnn_bfloat16 *why = bf->why + thread * bf->why_size, *e = bf->e + thread * bf->e_size;
    rnn_bfloat16 *why_t = bf->why_t + thread * bf->why_t_size;
    bool stream = bf->pairs_size > STREAMED;
    float *bias = bf->bias + thread * bf->block, *z = bf->logits + thread * RNN_STRIP_ROWS * k->columns;
    const float *by = t->out->why + H * V + v0;
    float largest = k->pack(t->out->why + v0, V, H, cols, true, why, panel, gradient ? why_t : NULL, panel_t);
    bf->block_largest[block] = fmaxf(largest, w->kernels->max_abs(cols, by));
    for (size_t v = 0; v < padded; v++) { /* padding gets a bias of -inf, so that its e is 0 */
        size_t column = v / 32 * 32 + rnn_shuffled_column(v % 32);
        bias[v] = column < cols ? by[column] : -INFINITY;
    }
    for (size_t c0 = 0; c0 < t->padded; c0 += RNN_CHUNK) {
        size_t chunk = rnn_min(RNN_CHUNK, t->padded - c0);
        for (size_t r = c0; r < c0 + chunk; r += RNN_STRIP_ROWS) {
            size_t m = rnn_min(RNN_STRIP_ROWS, t->padded - r);
            size_t pieces = (part * bf->rows + r) * RNN_BAND;
            for (size_t v = 0; v < padded; v += k->columns) {
                size_t here = rnn_min(k->columns, padded - v);
                k->multiply(m, here / RNN_BAND, rnn_round_up(H, k->depth), rnn_left_rows(t->left + r * bf->ld, bf->ld),
                            why + v / RNN_BAND * panel, panel, z, k->columns, false);
                k->exponentials(m, here, z, k->columns, bias + v, bf->shift + r,
                                gradient ? e + (r - c0) * ld_e + v : NULL, ld_e,
                                pairs_of(w, block) + v / RNN_BAND * bf->pairs_panel + r * RNN_BAND, bf->pairs_panel,
                                stream, bf->sum + pieces, bf->most + pieces);
            }
        }
        if (!gradient) continue;
        k->multiply(chunk, ld / RNN_BAND, padded, rnn_left_rows(e, ld_e), why_t, panel_t,
                    bf->dhidden + (part * bf->rows + c0) * ld, ld, block % bf->part_blocks != 0);
    }
}

/* All blocks of one tile. */
static void blocks_forward(rnn_work *w, const tile *t, bool gradient) {
    rnn_bfloat16_work *bf = &w->bf;
    RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
    for (size_t part = 0; part < t->parts; part++) {
        bf->kernels->begin();
        for (size_t i = part * bf->rows * RNN_BAND; i < (part * bf->rows + t->padded) * RNN_BAND; i++) {
            bf->sum[i] = 0.0f;
            bf->most[i] = -INFINITY;
        }
        size_t end = rnn_min(t->blocks, (part + 1) * bf->part_blocks);
        for (size_t b = part * bf->part_blocks; b < end; b++) block_forward(w, t, part, b, gradient);
        bf->kernels->end();
    }
}

/* Row n, once all blocks are done: sums up its e and computes log p. Returns whether its shift was near enough. If
 * not, corrects the shift, and logp stays as it was. */
static bool finish_row(rnn_work *w, const tile *t, size_t n, double *logp) {
    rnn_bfloat16_work *bf = &w->bf;
    float tops[RNN_BAND], most = -INFINITY;
    double sums[RNN_BAND] = {0.0}, sum = 0.0;
    for (size_t i = 0; i < RNN_BAND; i++) tops[i] = -INFINITY;
    for (size_t part = 0; part < t->parts; part++) {
        size_t pieces = (part * bf->rows + n) * RNN_BAND;
        for (size_t i = 0; i < RNN_BAND; i++) {
            float top = bf->most[pieces + i];
            tops[i] = top > tops[i] ? top : tops[i];
            sums[i] += bf->sum[pieces + i];
        }
    }
    for (size_t i = 0; i < RNN_BAND; i++) {
        most = tops[i] > most ? tops[i] : most;
        sum += sums[i];
    }
    if (most > (float)HEADROOM) {
        bf->shift[n] += ceilf(most);
        return false;
    }
    bf->row_sum[n] = sum;
    /* The target's logit was summed in another order, so the difference can exceed 0 by a rounding. */
    double difference = bf->target[n] - (bf->shift[n] + log2(sum)) * 0.69314718055994530942;
    *logp = difference > 0.0 ? 0.0 : difference;
    return true;
}

/* Row n: dL/dh (stride), and the factors of its e and of its target in the gradient of Why. */
static void row_backward(rnn_work *w, const tile *t, size_t n, double logp, float *dh) {
    rnn_bfloat16_work *bf = &w->bf;
    size_t H = w->H, ld = rnn_round_up(H, RNN_BAND), y = (size_t)t->y[n], column = y % bf->block;
    float factor = (float)(t->out->scale / bf->row_sum[n]), rest = (float)(t->out->scale * -expm1(logp));
    rnn_bfloat16 *e = pairs_of(w, y / bf->block) + column / RNN_BAND * bf->pairs_panel + n / 2 * 2 * RNN_BAND +
                      column % RNN_BAND * 2 + n % 2;
    float target = factor * rnn_widen_bfloat16(*e) + rest;
    *e = 0;
    bf->factor[n] = factor;
    bf->rest[n] = rest;
    memset(dh, 0, w->stride * sizeof *dh);
    for (size_t part = 0; part < t->parts; part++) {
        const float *own = bf->dhidden + (part * bf->rows + n) * ld;
        for (size_t i = 0; i < H; i++) dh[i] += own[i];
    }
    for (size_t i = 0; i < H; i++) dh[i] = factor * dh[i] - target * bf->target_why[n * H + i];
}

/* The tokens of a tile whose targets lie in one block. */
typedef struct targets {
    uint16_t tokens[RNN_TILE_TOKENS];
    size_t count;
} targets;

static void find_targets(const tile *t, size_t v0, size_t cols, targets *found) {
    found->count = 0;
    for (size_t n = 0; n < t->rows; n++) {
        if ((size_t)t->y[n] - v0 < cols) found->tokens[found->count++] = (uint16_t)n; /* wraps around below v0 */
    }
}

/* slab (rows, ld) holds the rows from i0 on and the columns from v on of the gradient: takes off the targets' own share. */
static void subtract_targets(const rnn_work *w, const tile *t, const targets *found, size_t i0, size_t rows, size_t v,
                             size_t cols, float *slab, size_t ld) {
    for (size_t m = 0; m < found->count; m++) {
        size_t n = found->tokens[m], column = (size_t)t->y[n] - v;
        if (column >= cols) continue;
        const rnn_bfloat16 *h = t->left + n * w->bf.ld + i0;
        float rest = w->bf.rest[n];
        for (size_t i = 0; i < rows; i++) slab[i * ld + column] -= rest * rnn_widen_bfloat16(h[i]);
    }
}

/* d[Why; by] of one block: = of the first tile, += of the others. */
static void block_backward(rnn_work *w, const tile *t, size_t block, bool add) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t H = w->H, V = t->out->columns, ld = k->columns;
    size_t v0 = block * bf->block, end = v0 + cols_of(w, t, block);
    float *slab = bf->slab + rnn_thread() * bf->slab_size;
    rnn_left scaled = rnn_left_tiles(bf->scaled, rnn_round_up(t->rows, RNN_TILE_DEPTH));
    targets found;
    find_targets(t, v0, end - v0, &found);
    for (size_t v = v0; v < end; v += ld) {
        size_t cols = rnn_min(ld, end - v), panels = rnn_round_up(cols, 32) / RNN_BAND;
        const rnn_bfloat16 *pairs = pairs_of(w, block) + (v - v0) / RNN_BAND * bf->pairs_panel;
        for (size_t i0 = 0; i0 <= H; i0 += RNN_SLAB_ROWS) {
            size_t rows = rnn_min(RNN_SLAB_ROWS, H + 1 - i0);
            rnn_left left = scaled;
            left.at += i0 / RNN_BAND * left.band;
            float *dwhy = t->out->dwhy + i0 * V + v;
            for (size_t i = 0; i < rows; i++) { /* they are far apart: fetch them while the product is computed */
                for (size_t j = 0; j < cols; j += 16) __builtin_prefetch(dwhy + i * V + j, 1);
            }
            k->multiply(rows, panels, t->padded, left, pairs, bf->pairs_panel, slab, ld, false);
            subtract_targets(w, t, &found, i0, rows, v, cols, slab, ld);
            for (size_t i = 0; i < rows; i++) {
                const float *from = slab + i * ld;
                float *to = dwhy + i * V;
                for (size_t j = 0; add && j < cols; j++) to[j] += from[j];
                if (!add) memcpy(to, from, cols * sizeof *to);
            }
        }
    }
}

/* One tile forward. Returns its sum of -log p. */
static double tile_forward(rnn_work *w, const tile *t, size_t n0, bool gradient) {
    rnn_bfloat16_work *bf = &w->bf;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t n = 0; n < t->padded; n++) start_row(w, t, n);
    bool done = false;
    for (int attempt = 0; attempt < 2 && !done; attempt++) {
        blocks_forward(w, t, gradient);
        done = true;
        RNN_OMP(parallel for num_threads(w->threads) schedule(static) reduction(&& : done))
        for (size_t n = 0; n < t->rows; n++) done = finish_row(w, t, n, w->logp + n0 + n) && done;
    }
    if (!done) return NAN; /* a logit is not finite */
    double loss = 0.0;
    for (size_t n = 0; n < t->rows; n++) loss -= w->logp[n0 + n];
    if (!gradient || !isfinite(loss)) return loss;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t n = 0; n < t->rows; n++) row_backward(w, t, n, w->logp[n0 + n], w->dhidden + (n0 + n) * w->stride);
    size_t K = rnn_round_up(t->rows, RNN_TILE_DEPTH);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t n = 0; n < t->rows; n += RNN_TILE_DEPTH) {
        bf->kernels->transpose(rnn_min(RNN_TILE_DEPTH, t->rows - n), w->H + 1, t->hidden + n * w->stride, w->stride,
                               bf->factor + n, bf->scaled + n * RNN_BAND, K);
    }
    return loss;
}

static tile tile_at(const rnn_work *w, const rnn_output *out, size_t N, size_t n0) {
    const rnn_bfloat16_work *bf = &w->bf;
    size_t tiles = rnn_ceil_div(N, bf->rows), rows = rnn_round_up(rnn_ceil_div(N, tiles), RNN_STRIP_ROWS);
    rows = rnn_min(rows, N - n0);
    size_t blocks = rnn_ceil_div(out->columns, bf->block);
    return (tile){
        .out = out,
        .hidden = out->hidden + n0 * w->stride,
        .left = out->left + n0 * bf->ld,
        .y = out->y + n0,
        .rows = rows,
        .padded = rnn_round_up(rows, bf->kernels->depth),
        .blocks = blocks,
        .parts = rnn_ceil_div(blocks, bf->part_blocks),
    };
}

static double largest_weight(const rnn_work *w, size_t blocks) {
    double largest = 0.0;
    for (size_t b = 0; b < blocks; b++) largest = fmax(largest, w->bf.block_largest[b]);
    return largest;
}

static double loss_only(rnn_work *w, const rnn_output *out, size_t N) {
    double loss = 0.0;
    size_t blocks = 0;
    for (size_t n0 = 0; n0 < N;) {
        tile t = tile_at(w, out, N, n0);
        loss += tile_forward(w, &t, n0, false);
        n0 += t.rows;
        blocks = t.blocks;
    }
    return isfinite(largest_weight(w, blocks)) ? loss : NAN; /* a bias of -inf is a probability of 0, and no weight */
}

double rnn_bfloat16_output_pass(rnn_work *w, const rnn_output *out, size_t N) {
    if (!out->dwhy) return loss_only(w, out, N);
    double loss = 0.0;
    for (size_t n0 = 0; n0 < N;) {
        tile t = tile_at(w, out, N, n0);
        loss += tile_forward(w, &t, n0, true);
        double largest = largest_weight(w, t.blocks);
        if (!isfinite(loss) || !isfinite(largest)) return NAN;
        /* As in output.c: where a logit may overflow, a later tile's loss must be known before dwhy is written. */
        if (n0 == 0 && N > t.rows && largest * (double)(w->H + 1) * out->bound > (double)FLT_MAX / 2.0) {
            if (!isfinite(loss_only(w, out, N))) return NAN;
            tile_forward(w, &t, n0, true);
        }
        RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
        for (size_t b = 0; b < t.blocks; b++) {
            w->bf.kernels->begin();
            block_backward(w, &t, b, n0 > 0);
            w->bf.kernels->end();
        }
        n0 += t.rows;
    }
    return loss;
}
