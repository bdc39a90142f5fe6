/* hidden_bfloat16.c -- the recurrence of hidden.c, with products of bfloat16 operands.
 *
 *     forward   h_t = tanh(x_t Wxh + bh + h_{t-1} Whh)
 *     backward  a_t = (dh_t + a_{t+1} Whh^T) * (1 - h_t^2)
 *               dWxh^T = sum_t a_t^T x_t      d[Whh; bh]^T = sum_t a_t^T [h_{t-1}, 1]
 *
 * The operands x, h, a, Wxh and Whh are rounded; sums, biases, tanh and the carried state are float32. The gradients are
 * computed transposed: they then share the left operand, and rows serve as right operands as they are.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

/* hidden (N, stride) = embeddings[x] Wxh + bh. Returns the largest magnitude that it has read. */
static float project_inputs(rnn_work *w, const rnn_inputs *in, const float *params, float *hidden) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t N = in->T * in->B, tiles = rnn_ceil_div(N, RNN_GATHER), E = w->E, H = w->H, stride = w->stride;
    size_t panel = RNN_BAND * bf->ld_inputs;
    const float *bh = params + w->at.bh;
    float largest = k->pack(params + w->at.wxh, H, E, H, false, bf->wxh, panel, NULL, 0);
    largest = fmaxf(largest, w->kernels->max_abs(H, bh));
    RNN_OMP(parallel for num_threads(w->threads) schedule(static) reduction(max : largest))
    for (size_t tile = 0; tile < tiles; tile++) {
        size_t n0 = tile * RNN_GATHER, rows = rnn_min(RNN_GATHER, N - n0);
        float *gathered = w->gathered + rnn_thread() * RNN_GATHER * E, *out = hidden + n0 * stride;
        rnn_bfloat16 *inputs = bf->inputs + rnn_thread() * RNN_GATHER * bf->ld_inputs;
        rnn_gather_inputs(in, E, n0, rows, 0, E, gathered);
        largest = fmaxf(largest, k->round_rows(rows, E, gathered, E, inputs, bf->ld_inputs));
        for (size_t n = 0; n < rows; n++) {
            memcpy(out + n * stride, bh, H * sizeof *bh);
            memset(out + n * stride + H, 0, (stride - H) * sizeof *out);
        }
        k->begin();
        k->multiply(rows, rnn_ceil_div(H, RNN_BAND), rnn_round_up(E, k->depth), rnn_left_rows(inputs, bf->ld_inputs),
                    bf->wxh, panel, out, stride, true);
        k->end();
    }
    return largest;
}

/* The batch rows that one thread takes through time. */
typedef struct share {
    size_t b0, rows;
    float *sums;         /* (rows, stride): a product with Whh */
    rnn_bfloat16 *after; /* (rows, ld): a_{t+1} */
} share;

/* Products may overwrite rows up to a whole band, so each share has a band to spare. */
static share share_of(const rnn_work *w, size_t B, size_t shares, size_t i) {
    size_t b0 = B * i / shares, at = b0 + RNN_BAND * i;
    return (share){
        .b0 = b0,
        .rows = B * (i + 1) / shares - b0,
        .sums = w->bf.sums + at * w->stride,
        .after = w->bf.after + at * w->bf.ld,
    };
}

static void add_rows(size_t rows, size_t stride, size_t H, const float *sums, float *to) {
    for (size_t n = 0; n < rows; n++) {
        for (size_t i = 0; i < H; i++) to[n * stride + i] += sums[n * stride + i];
    }
}

/* now (rows, stride) += left (rows, H) times Whh or its transpose. */
static void add_product(const rnn_work *w, const share *s, const rnn_bfloat16 *left, const rnn_bfloat16 *right,
                        float *now) {
    const rnn_bfloat16_kernels *k = w->bf.kernels;
    size_t H = w->H;
    k->multiply(s->rows, rnn_ceil_div(H, RNN_BAND), rnn_round_up(H, k->depth), rnn_left_rows(left, w->bf.ld), right,
                RNN_BAND * rnn_round_up(H, RNN_TILE_DEPTH), s->sums, w->stride, false);
    add_rows(s->rows, w->stride, H, s->sums, now);
}

bool rnn_bfloat16_hidden_forward(rnn_work *w, const rnn_inputs *in, const float *params, const float *state) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t T = in->T, B = in->B, H = w->H, stride = w->stride, panel = RNN_BAND * rnn_round_up(H, RNN_TILE_DEPTH);
    float largest = project_inputs(w, in, params, w->hidden + B * stride);
    largest = fmaxf(largest, k->pack(params + w->at.whh, H, H, H, false, bf->whh, panel, bf->whh_t, panel));
    largest = fmaxf(largest, w->kernels->max_abs(B * H, state));
    if (!isfinite(largest)) return false; /* tanh would hide an infinity, and the loss with it */
    for (size_t b = 0; b < B; b++) {
        float *row = w->hidden + b * stride;
        memcpy(row, state + b * H, H * sizeof *row);
        memset(row + H, 0, (stride - H) * sizeof *row);
        row[H] = 1.0f;
    }
    /* Rounding a finite state may overflow. */
    if (!isfinite(k->round_rows(B, H + 1, w->hidden, stride, bf->hidden, bf->ld))) return false;
    size_t shares = rnn_min(B, (size_t)w->threads);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t i = 0; i < shares; i++) {
        share s = share_of(w, B, shares, i);
        k->begin();
        for (size_t t = 0; t < T; t++) {
            rnn_bfloat16 *before = bf->hidden + (t * B + s.b0) * bf->ld, *rounded = before + B * bf->ld;
            float *now = w->hidden + ((t + 1) * B + s.b0) * stride;
            add_product(w, &s, before, bf->whh, now);
            w->kernels->tanh(s.rows * stride, now);
            for (size_t b = 0; b < s.rows; b++) now[b * stride + H] = 1.0f;
            k->round_rows(s.rows, H + 1, now, stride, rounded, bf->ld);
        }
        k->end();
    }
    /* The output layer also reads rows beyond the last; they must be finite. */
    memset(bf->hidden + (T + 1) * B * bf->ld, 0, RNN_STRIP_ROWS * bf->ld * sizeof *bf->hidden);
    return isfinite(w->kernels->max_abs(B * stride, w->hidden + T * B * stride));
}

/* dhidden: from dL/dh_t of the output layer to the gradient before tanh, for every t. */
static void sweep_back(rnn_work *w, size_t T, size_t B) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t H = w->H, stride = w->stride, shares = rnn_min(B, (size_t)w->threads);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t i = 0; i < shares; i++) {
        share s = share_of(w, B, shares, i);
        k->begin();
        for (size_t t = T; t-- > 0;) {
            float *now = w->dhidden + (t * B + s.b0) * stride;
            if (t + 1 < T) {
                k->round_rows(s.rows, H, now + B * stride, stride, s.after, bf->ld);
                add_product(w, &s, s.after, bf->whh_t, now);
            }
            w->kernels->tanh_backward(s.rows * stride, w->hidden + ((t + 1) * B + s.b0) * stride, now);
        }
        k->end();
    }
}

/* Rows i0 to i0 + width of dWxh, or of d[Whh; bh]. */
static void gradient_rows(rnn_work *w, const rnn_inputs *in, bool is_input, size_t i0, size_t width, float *out) {
    rnn_bfloat16_work *bf = &w->bf;
    const rnn_bfloat16_kernels *k = bf->kernels;
    size_t N = in->T * in->B, H = w->H, thread = rnn_thread(), panel = RNN_BAND * RNN_GATHER;
    float *gathered = w->gathered + thread * RNN_GATHER * w->E, *dw = bf->dw + thread * bf->dw_size;
    rnn_bfloat16 *rounded = bf->rounded + thread * RNN_GATHER * RNN_GRADIENT_ROWS;
    rnn_bfloat16 *right = bf->right + thread * RNN_GATHER * RNN_GRADIENT_ROWS;
    size_t cols = rnn_round_up(width, 32);
    for (size_t n0 = 0; n0 < N; n0 += RNN_GATHER) {
        size_t rows = rnn_min(RNN_GATHER, N - n0), ld = RNN_GRADIENT_ROWS;
        const rnn_bfloat16 *from = rounded;
        if (is_input) {
            rnn_gather_inputs(in, w->E, n0, rows, i0, i0 + width, gathered);
            k->round_rows(rows, width, gathered, width, rounded, ld);
        } else { /* the row of h_{t-1} is that of a_t */
            from = bf->hidden + n0 * bf->ld + i0;
            ld = bf->ld;
        }
        k->interleave(rows, cols, from, ld, right, panel);
        rnn_left a = rnn_left_tiles(bf->gradient, rnn_round_up(N, RNN_TILE_DEPTH));
        a.at += n0 * RNN_BAND;
        k->multiply(H, cols / RNN_BAND, rnn_round_up(rows, k->depth), a, right, panel, dw, RNN_GRADIENT_ROWS, n0 > 0);
    }
    for (size_t j = 0; j < width; j++) {
        for (size_t i = 0; i < H; i++) out[j * H + i] = dw[i * RNN_GRADIENT_ROWS + j];
    }
}

void rnn_bfloat16_hidden_backward(rnn_work *w, const rnn_inputs *in, float *grads) {
    rnn_bfloat16_work *bf = &w->bf;
    size_t N = in->T * in->B, E = w->E, H = w->H, K = rnn_round_up(N, RNN_TILE_DEPTH);
    sweep_back(w, in->T, in->B);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t n = 0; n < N; n += RNN_TILE_DEPTH) {
        bf->kernels->transpose(rnn_min(RNN_TILE_DEPTH, N - n), H, w->dhidden + n * w->stride, w->stride, NULL,
                               bf->gradient + n * RNN_BAND, K);
    }
    size_t input_shares = rnn_ceil_div(E, RNN_GRADIENT_ROWS);
    size_t shares = input_shares + rnn_ceil_div(H + 1, RNN_GRADIENT_ROWS);
    RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
    for (size_t i = 0; i < shares; i++) {
        bool is_input = i < input_shares;
        size_t i0 = (is_input ? i : i - input_shares) * RNN_GRADIENT_ROWS;
        size_t width = rnn_min(RNN_GRADIENT_ROWS, (is_input ? E : H + 1) - i0);
        bf->kernels->begin();
        gradient_rows(w, in, is_input, i0, width, grads + (is_input ? w->at.wxh : w->at.whh) + i0 * H);
        bf->kernels->end();
    }
}
