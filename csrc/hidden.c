/* hidden.c -- the recurrence, forward and backward through time.
 *
 *     forward   h_t = tanh(x_t Wxh + bh + h_{t-1} Whh)
 *     backward  a_t = (dh_t + a_{t+1} Whh^T) * (1 - h_t^2)        the gradient before tanh (Werbos 1990)
 *               dWxh = sum_t x_t^T a_t    dWhh = sum_t h_{t-1}^T a_t    dbh = sum_t a_t
 *
 * Only the products with Whh wait for the step before. All x_t Wxh are one matrix product ahead of the sweep, and
 * each of the three gradients is one matrix product after it. Batch rows are independent, so each thread takes its own
 * through all of time, without a barrier between steps.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

void rnn_gather_inputs(const rnn_inputs *in, size_t E, size_t n0, size_t rows, size_t e0, size_t e1, float *out) {
    size_t width = e1 - e0;
    for (size_t n = n0; n < n0 + rows; n++, out += width) {
        memcpy(out, in->embeddings + (size_t)in->x[n] * E + e0, width * sizeof *out);
        if (!in->mask) continue;
        const float *mask = in->mask + n % in->B * E + e0;
        for (size_t e = 0; e < width; e++) out[e] *= mask[e];
    }
}

/* Packs a matrix (K, H), rounded if products are of rounded operands. Returns the largest magnitude in it. */
static float pack(const rnn_work *w, const float *matrix, size_t K, float *packed) {
    const rnn_kernels *k = w->kernels;
    float largest = k->pack(matrix, w->H, K, w->H, 0.0f, packed);
    if (w->rounded) {
        k->round(K * w->stride, packed);
        k->round(1, &largest);
    }
    return largest;
}

/* Copies rows n0 to n0 + rows of hidden to operand, rounded. If nothing is rounded, the two are the same. */
static void copy_to_operand(const rnn_work *w, size_t n0, size_t rows) {
    if (!w->rounded) return;
    float *operand = w->operand + n0 * w->stride;
    memcpy(operand, w->hidden + n0 * w->stride, rows * w->stride * sizeof *operand);
    w->kernels->round(rows * w->stride, operand);
}

/* hidden (N, stride) = embeddings[x] Wxh + bh, in the place where the sweep finds it. Returns the largest magnitude of
 * what it has read. */
static float project_inputs(rnn_work *w, const rnn_inputs *in, const float *params, float *hidden) {
    const rnn_kernels *k = w->kernels;
    const float *bh = params + w->at.bh;
    size_t N = in->T * in->B;
    size_t tiles = rnn_ceil_div(N, RNN_GATHER), E = w->E, H = w->H, stride = w->stride;
    float largest = pack(w, params + w->at.wxh, E, w->wxh);
    largest = fmaxf(largest, k->max_abs(H, bh));
    RNN_OMP(parallel for num_threads(w->threads) schedule(static) reduction(max : largest))
    for (size_t tile = 0; tile < tiles; tile++) {
        size_t n0 = tile * RNN_GATHER, rows = rnn_min(RNN_GATHER, N - n0);
        float *inputs = w->gathered + rnn_thread() * RNN_GATHER * E, *out = hidden + n0 * stride;
        rnn_gather_inputs(in, E, n0, rows, 0, E, inputs);
        if (w->rounded) k->round(rows * E, inputs);
        largest = fmaxf(largest, k->max_abs(rows * E, inputs));
        for (size_t n = 0; n < rows; n++) {
            memcpy(out + n * stride, bh, H * sizeof *bh);
            memset(out + n * stride + H, 0, (stride - H) * sizeof *out);
        }
        k->multiply(rows, E, rnn_ceil_div(H, k->panel), inputs, E, w->wxh, out, stride, k->panel, true);
    }
    return largest;
}

bool rnn_hidden_forward(rnn_work *w, const rnn_inputs *in, const float *params, const float *state) {
    const rnn_kernels *k = w->kernels;
    size_t T = in->T, B = in->B, H = w->H, stride = w->stride, panels = rnn_ceil_div(H, k->panel);
    float largest = project_inputs(w, in, params, w->hidden + B * stride);
    largest = fmaxf(largest, pack(w, params + w->at.whh, H, w->whh));
    largest = fmaxf(largest, k->max_abs(B * H, state));
    /* tanh would hide an infinity: neither the state nor the loss would show it. */
    if (!isfinite(largest)) return false;
    for (size_t b = 0; b < B; b++) {
        float *row = w->hidden + b * stride;
        memcpy(row, state + b * H, H * sizeof *row);
        memset(row + H, 0, (stride - H) * sizeof *row);
        row[H] = 1.0f;
    }
    copy_to_operand(w, 0, B);
    if (!isfinite(k->max_abs(B * stride, w->operand))) return false; /* rounding may overflow */
    size_t shares = rnn_min(B, (size_t)w->threads);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t share = 0; share < shares; share++) {
        size_t b0 = B * share / shares, mine = B * (share + 1) / shares - b0;
        for (size_t t = 0; t < T; t++) {
            const float *before = w->operand + (t * B + b0) * stride;
            float *now = w->hidden + ((t + 1) * B + b0) * stride;
            k->multiply(mine, H, panels, before, stride, w->whh, now, stride, k->panel, true);
            k->tanh(mine * stride, now);
            for (size_t b = 0; b < mine; b++) now[b * stride + H] = 1.0f;
            copy_to_operand(w, (t + 1) * B + b0, mine);
        }
    }
    /* A sum of finite numbers may still have become inf - inf. A NaN stays in its batch row, so the last step shows it. */
    return isfinite(k->max_abs(B * stride, w->hidden + T * B * stride));
}

/* dhidden: from dL/dh_t of the output layer to the gradient before tanh, for every t. */
static void sweep_back(rnn_work *w, const float *whh, size_t T, size_t B) {
    const rnn_kernels *k = w->kernels;
    size_t H = w->H, stride = w->stride, panels = rnn_ceil_div(H, k->panel);
    for (size_t i = 0; i < H; i++) {
        for (size_t j = 0; j < H; j++) w->transposed[j * H + i] = whh[i * H + j];
    }
    pack(w, w->transposed, H, w->whh_t);
    size_t shares = rnn_min(B, (size_t)w->threads);
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t share = 0; share < shares; share++) {
        size_t b0 = B * share / shares, mine = B * (share + 1) / shares - b0;
        for (size_t t = T; t-- > 0;) {
            float *now = w->dhidden + (t * B + b0) * stride;
            const float *after = now + B * stride;
            if (t + 1 < T) k->multiply(mine, H, panels, after, stride, w->whh_t, now, stride, k->panel, true);
            k->tanh_backward(mine * stride, w->hidden + ((t + 1) * B + b0) * stride, now);
            if (w->rounded) k->round(mine * stride, now); /* from now on only an operand */
        }
    }
}

void rnn_hidden_backward(rnn_work *w, const rnn_inputs *in, const float *params, float *grads) {
    enum { ROWS = 48 }; /* of a gradient, as one piece of work */
    const rnn_kernels *k = w->kernels;
    size_t T = in->T, B = in->B, N = T * B, E = w->E, H = w->H, stride = w->stride, panel = k->panel;
    sweep_back(w, params + w->at.whh, T, B);
    size_t input_shares = rnn_ceil_div(E, ROWS), shares = input_shares + rnn_ceil_div(H + 1, ROWS);
    RNN_OMP(parallel for num_threads(w->threads) schedule(dynamic))
    for (size_t share = 0; share < shares; share++) {
        bool is_input = share < input_shares;
        size_t i0 = (is_input ? share : share - input_shares) * ROWS;
        size_t m = rnn_min(ROWS, (is_input ? E : H + 1) - i0);
        float *inputs = w->gathered + rnn_thread() * RNN_GATHER * E;
        float *out = grads + (is_input ? w->at.wxh : w->at.whh) + i0 * H;
        for (size_t n0 = 0; n0 < N; n0 += RNN_GATHER) {
            size_t rows = rnn_min(RNN_GATHER, N - n0);
            const float *a = w->operand + n0 * stride + i0; /* h_{t-1} stands one step before a_t */
            if (is_input) {
                rnn_gather_inputs(in, E, n0, rows, i0, i0 + m, inputs);
                if (w->rounded) k->round(rows * m, inputs);
                a = inputs;
            }
            k->multiply_at(m, rows, H, a, is_input ? m : stride, w->dhidden + n0 * stride, stride, panel, out, H,
                           n0 > 0);
        }
    }
}
