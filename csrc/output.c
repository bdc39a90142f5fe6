/* output.c -- the output layer and its loss, forward and backward, without the (N,V) logits.
 *
 *     z_n = [h_n, 1] [Why; by]      lse_n = log sum_v exp(z_nv)      loss = sum_n lse_n - z_n[y_n]
 *     p_nv = exp(z_nv - lse_n)      d_nv = scale * (p_nv - [v = y_n])
 *     dh_n = sum_v d_nv Why[:,v]    d[Why; by] = sum_n [h_n, 1]^T d_n
 *
 * The gradient needs lse_n, which needs the whole vocabulary, so the obvious program goes over the vocabulary twice
 * and computes each logit twice (Cut Cross-Entropy, Wijmans et al. 2024), for 8NHV operations. This one takes 6NHV:
 *
 *   Tiles     It takes `rows` tokens at a time and keeps the exponentials of that tile: a buffer about as large as Why,
 *             which stays in the last-level cache whatever the length of the sequence.
 *   Blocks    Each block of the vocabulary shifts by its own maximum m_nb (the "split" form of the online softmax,
 *             Milakov & Gimelshein 2018): e_nv = exp(z_nv - m_nb), s_nb = sum of them, u_nb = sum_v e_nv Why[:,v].
 *             No block waits for another. Once all are done, lse_n = log sum_b s_nb exp(m_nb), and the factor
 *             f_nb = exp(m_nb - lse_n) corrects each block for its own shift: p_nv = f_nb e_nv, so
 *                 dh_n = scale * (sum_b f_nb u_nb - Why[:,y_n])
 *                 d[Why; by] of block b = sum_n (scale f_nb [h_n, 1])^T (e_n - [v = y_n] / f_nb)
 *   Parts     With a large vocabulary, the u_nb of all blocks are as large as Why itself. So neighbouring blocks are added
 *             up as one part while they are in the cache, each shifted by the largest maximum so far.
 *
 * With w->rounded, the operands h, Why, e and f h are rounded to bfloat16, as output_bfloat16.c explains: maxima are then
 * whole powers of 2, and the target's own share of the gradient is kept out of the products.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "internal.h"

/* One tile: tokens n0 to n0 + rows of a chunk. */
typedef struct tile {
    const rnn_output *out;
    const float *hidden;  /* (rows, stride) */
    const float *operand; /* (rows, stride): the same, or rounded */
    const int32_t *y;     /* (rows) */
    size_t rows, blocks;
} tile;

/* The distance from panel to panel in the logits of a block. */
static size_t panel_step(const rnn_work *w, size_t rows) { return rows * w->kernels->panel + RNN_SKEW; }

/* Where logit v of a block's row n lies among its panels. */
static size_t logit_at(const rnn_work *w, size_t rows, size_t n, size_t v) {
    size_t panel = w->kernels->panel;
    return v / panel * panel_step(w, rows) + n * panel + v % panel;
}

/* sum (rows, stride), shifted by sum_max, += own, shifted by own_max: the larger one becomes the shift of both. */
static void add_to_part(const rnn_work *w, size_t rows, const float *own_max, const float *own, float *sum_max,
                        float *sum) {
    for (size_t n = 0; n < rows; n++, own += w->stride, sum += w->stride) {
        float max = fmaxf(own_max[n], sum_max[n]);
        float unit = (float)w->unit;
        float own_share = expf(unit * (own_max[n] - max)), sum_share = expf(unit * (sum_max[n] - max));
        for (size_t i = 0; i < w->H; i++) sum[i] = sum_share * sum[i] + own_share * own[i];
        sum_max[n] = max;
    }
}

/* The logits of one block, each row's maximum and the sum of its exponentials, which take the place of the logits.
 * With a gradient, also what the block adds to dh. */
static void block_forward(rnn_work *w, const tile *t, size_t block, bool gradient) {
    const rnn_kernels *k = w->kernels;
    size_t V = t->out->columns, v0 = block * RNN_BLOCK, cols = rnn_min(RNN_BLOCK, V - v0);
    size_t K = w->H + 1, rows = t->rows;
    size_t panel = k->panel, panels = rnn_ceil_div(cols, panel);
    float *packed = w->why + rnn_thread() * K * RNN_BLOCK;
    size_t step = panel_step(w, rows);
    float *z = w->logits + (gradient ? block : rnn_thread()) * w->slot;
    /* A word that is not there has a bias of -inf, so its exponential is 0. */
    w->block_largest[block] = k->pack(t->out->why + v0, V, K, cols, -INFINITY, packed);
    if (w->rounded) {
        k->round(1, w->block_largest + block);
        for (size_t p = 0; p < panels; p++) k->round(w->H * panel, packed + p * K * panel); /* and not the biases */
    }
    k->multiply(rows, K, panels, t->operand, w->stride, packed, z, panel, step, false);
    for (size_t n = 0; n < rows; n++) {
        size_t v = (size_t)t->y[n] - v0;
        if (v >= cols) continue; /* also when y lies before the block: the difference has wrapped around */
        w->target[n] = z[logit_at(w, rows, n, v)];
        for (size_t i = 0; gradient && i < w->H; i++) {
            w->target_why[n * w->stride + i] = packed[(v / panel * K + i) * panel + v % panel];
        }
    }
    (w->rounded ? k->softmax_rounded : k->softmax)(rows, panels, z, step, w->block_max + block * w->rows,
                                                   w->block_sum + block * w->rows);
    if (!gradient) return;
    bool first = block % w->part_blocks == 0;
    size_t part = block / w->part_blocks;
    float *sum = w->dhidden_part + part * w->rows * w->stride;
    float *own = first ? sum : w->dhidden_own + rnn_thread() * w->rows * w->stride;
    k->multiply_bt(rows, w->H, panels, z, step, packed, K * panel, own, w->stride);
    if (first) {
        memcpy(w->part_max + part * w->rows, w->block_max + block * w->rows, rows * sizeof(float));
    } else {
        add_to_part(w, rows, w->block_max + block * w->rows, own, w->part_max + part * w->rows, sum);
    }
}

/* No factor is smaller than this: 1 / f_nb must stay finite, and e^-60 is invisible in any gradient. */
#define LEAST_FACTOR 8.75651076269652e-27 /* exp(-60) */

/* The exponential of row n's target. */
static float *target_at(const rnn_work *w, const tile *t, size_t n) {
    size_t y = (size_t)t->y[n];
    return w->logits + y / RNN_BLOCK * w->slot + logit_at(w, t->rows, n, y % RNN_BLOCK);
}

/* Row n once all blocks are done: its log-sum-exp and log p, and with dh (stride) also the factors and dL/dh. */
static void row_forward(rnn_work *w, const tile *t, size_t n, double *logp, float *dh) {
    size_t blocks = t->blocks;
    double max = w->block_max[n], sum = 0.0;
    for (size_t b = 1; b < blocks; b++) max = fmax(max, w->block_max[b * w->rows + n]);
    for (size_t b = 0; b < blocks; b++) {
        double share = exp(w->unit * (w->block_max[b * w->rows + n] - max));
        sum += w->block_sum[b * w->rows + n] * share;
        w->factor[b * w->rows + n] = (float)share;
    }
    w->lse[n] = w->unit * max + log(sum);
    /* Exponentials are relative to a rounded maximum, so the difference of huge logits can exceed 0 by a rounding. */
    double difference = w->target[n] - w->lse[n];
    *logp = difference > 0.0 ? 0.0 : difference;
    if (!dh) return;
    size_t H = w->H, stride = w->stride;
    for (size_t b = 0; b < blocks; b++) {
        float *factor = w->factor + b * w->rows + n;
        *factor = (float)fmax(*factor / sum, LEAST_FACTOR);
    }
    size_t parts = rnn_ceil_div(blocks, w->part_blocks);
    for (size_t p = 0; p < parts; p++) {
        w->part_factor[p * w->rows + n] = (float)exp(w->unit * w->part_max[p * w->rows + n] - w->lse[n]);
    }
    w->kernels->weighted_sum(parts, H, w->part_factor + n, w->rows, w->dhidden_part + n * stride, w->rows * stride, dh);
    float own = 1.0f; /* of the target's column */
    if (w->rounded) {
        float *e = target_at(w, t, n);
        w->rest[n] = (float)-expm1(*logp);
        own = w->factor[(size_t)t->y[n] / RNN_BLOCK * w->rows + n] * *e + w->rest[n];
        *e = 0.0f;
    }
    for (size_t i = 0; i < H; i++) dh[i] = t->out->scale * (dh[i] - own * w->target_why[n * stride + i]);
    memset(dh + H, 0, (stride - H) * sizeof *dh);
}

/* d[Why; by] of one block: = of the first tile, += of the others. */
static void block_backward(rnn_work *w, const tile *t, size_t block, bool add) {
    const rnn_kernels *k = w->kernels;
    size_t V = t->out->columns, v0 = block * RNN_BLOCK, cols = rnn_min(RNN_BLOCK, V - v0);
    size_t K = w->H + 1, stride = w->stride;
    float *scaled = w->scaled + rnn_thread() * w->rows * stride, *dwhy = t->out->dwhy + v0;
    float *e = w->logits + block * w->slot;
    for (size_t n = 0; n < t->rows; n++) {
        float factor = t->out->scale * w->factor[block * w->rows + n];
        for (size_t i = 0; i < K; i++) scaled[n * stride + i] = factor * t->hidden[n * stride + i];
        if (w->rounded || (size_t)t->y[n] - v0 >= cols) continue;
        double shortfall = w->lse[n] - w->block_max[block * w->rows + n];
        float *target = target_at(w, t, n);
        *target = (float)(*target - fmin(exp(shortfall), 1.0 / LEAST_FACTOR));
    }
    if (w->rounded) k->round(t->rows * stride, scaled);
    k->multiply_at(K, t->rows, cols, scaled, stride, e, k->panel, panel_step(w, t->rows), dwhy, V, add);
    for (size_t n = 0; w->rounded && n < t->rows; n++) {
        size_t v = (size_t)t->y[n] - v0;
        float own = t->out->scale * w->rest[n];
        for (size_t i = 0; v < cols && i < K; i++) dwhy[i * V + v] -= own * t->operand[n * stride + i];
    }
}

/* All blocks of one tile, then all of its rows. Returns the tile's sum of -log p. */
static double tile_forward(rnn_work *w, const tile *t, size_t n0, bool gradient) {
    size_t parts = rnn_ceil_div(t->blocks, w->part_blocks);
    RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
    for (size_t p = 0; p < parts; p++) {
        size_t end = rnn_min(t->blocks, (p + 1) * w->part_blocks);
        for (size_t b = p * w->part_blocks; b < end; b++) block_forward(w, t, b, gradient);
    }
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t n = 0; n < t->rows; n++) {
        float *dh = gradient ? w->dhidden + (n0 + n) * w->stride : NULL;
        row_forward(w, t, n, w->logp + n0 + n, dh);
    }
    double loss = 0.0;
    for (size_t n = 0; n < t->rows; n++) loss -= w->logp[n0 + n];
    return loss;
}

/* The tile that begins at token n0. Tiles are about equal, and whole numbers of register tiles (4, 6 or 8 rows). */
static tile tile_at(const rnn_work *w, const rnn_output *out, size_t N, size_t n0) {
    size_t tiles = rnn_ceil_div(N, w->rows), rows = rnn_min(rnn_round_up(rnn_ceil_div(N, tiles), 24), w->rows);
    return (tile){
        .out = out,
        .hidden = out->hidden + n0 * w->stride,
        .operand = out->operand + n0 * w->stride,
        .y = out->y + n0,
        .rows = rnn_min(rows, N - n0),
        .blocks = rnn_ceil_div(out->columns, RNN_BLOCK),
    };
}

/* The largest magnitude in Why and by, infinity if one is not finite; known after the forward pass of a tile. */
static double largest_weight(const rnn_work *w, size_t blocks) {
    double largest = 0.0;
    for (size_t b = 0; b < blocks; b++) largest = fmax(largest, w->block_largest[b]);
    return largest;
}

static double loss_only(rnn_work *w, const rnn_output *out, size_t N) {
    double loss = 0.0;
    for (size_t n0 = 0; n0 < N;) {
        tile t = tile_at(w, out, N, n0);
        loss += tile_forward(w, &t, n0, false);
        n0 += t.rows;
    }
    /* A bias of -inf would be a probability of 0 and leave no trace in the loss, but it is not a finite weight. */
    return isfinite(largest_weight(w, rnn_ceil_div(out->columns, RNN_BLOCK))) ? loss : NAN;
}

double rnn_output_pass(rnn_work *w, const rnn_output *out, size_t N) {
    if (!out->dwhy) return loss_only(w, out, N);
    double loss = 0.0;
    for (size_t n0 = 0; n0 < N;) {
        tile t = tile_at(w, out, N, n0);
        loss += tile_forward(w, &t, n0, true);
        double largest = largest_weight(w, t.blocks);
        if (!isfinite(loss) || !isfinite(largest)) return NAN;
        /* No |h| exceeds `bound`, so no logit exceeds that times the sum of a column's weights. If that may overflow,
         * the loss of a later tile may turn out not finite, and then dwhy must not have been written. Half, since a
         * shift may be in powers of 2, and log2(e) times as large. */
        if (n0 == 0 && N > t.rows && largest * (double)(w->H + 1) * out->bound > (double)FLT_MAX / 2.0) {
            if (!isfinite(loss_only(w, out, N))) return NAN;
            tile_forward(w, &t, n0, true);
        }
        RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
        for (size_t b = 0; b < t.blocks; b++) block_backward(w, &t, b, n0 > 0);
        n0 += t.rows;
    }
    return loss;
}
