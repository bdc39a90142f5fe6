/* train.c -- one chunk: the checks, then hidden.c and output.c in order. */
#include <math.h>
#include <string.h>

#include "internal.h"

/* x holds words, y columns of the output layer, or is NULL. */
static int32_t check_chunk(const rnn_work *w, const int32_t *x, const int32_t *y, int32_t steps, int32_t batch,
                           size_t columns) {
    if (steps < 1 || (size_t)steps > w->max_steps || batch < 1 || (size_t)batch > w->max_batch) return RNN_E_DIM;
    size_t N = (size_t)steps * (size_t)batch;
    for (size_t n = 0; n < N; n++) {
        /* A negative id is larger than V once it is unsigned. */
        if ((uint32_t)x[n] >= w->V || (y && (uint32_t)y[n] >= columns)) return RNN_E_TOKEN;
    }
    return RNN_OK;
}

static int32_t check_regularization(const rnn_work *w, const rnn_regularization *r, int32_t batch) {
    size_t B = (size_t)batch;
    if (r->input_mask && !isfinite(w->kernels->max_abs(B * w->E, r->input_mask))) return RNN_E_NONFINITE;
    if (r->output_mask && !isfinite(w->kernels->max_abs(B * w->H, r->output_mask))) return RNN_E_NONFINITE;
    if (!w->sampled) return RNN_OK;
    if (!r->correction) return RNN_E_NULL;
    if (r->candidate_count < 1 || (size_t)r->candidate_count > w->max_columns) return RNN_E_DIM;
    int64_t before = -1;
    for (int32_t c = 0; c < r->candidate_count; c++) {
        if (r->candidates[c] <= before) return RNN_E_TOKEN;
        before = r->candidates[c];
    }
    return before < (int64_t)w->V ? RNN_OK : RNN_E_TOKEN;
}

static void copy_state(const rnn_work *w, size_t T, size_t B, float *state) {
    for (size_t b = 0; b < B; b++) {
        memcpy(state + b * w->H, w->hidden + (T * B + b) * w->stride, w->H * sizeof *state);
    }
}

static bool hidden_forward(rnn_work *w, const rnn_inputs *in, const float *params, const float *state) {
    return (w->bf.kernels ? rnn_bfloat16_hidden_forward : rnn_hidden_forward)(w, in, params, state);
}

static void hidden_backward(rnn_work *w, const rnn_inputs *in, const float *params, float *grads) {
    if (w->bf.kernels) {
        rnn_bfloat16_hidden_backward(w, in, grads);
    } else {
        rnn_hidden_backward(w, in, params, grads);
    }
}

static double output_pass(rnn_work *w, const rnn_output *out, size_t N) {
    return (w->bf.kernels ? rnn_bfloat16_output_pass : rnn_output_pass)(w, out, N);
}

/* What the output layer sees of B batch rows: their hidden state, from the first step on. */
static rnn_output output_of(const rnn_work *w, const float *params, const int32_t *y, size_t B) {
    return (rnn_output){
        .why = params + w->at.why,
        .columns = w->V,
        .hidden = w->hidden + B * w->stride,
        .operand = w->operand + B * w->stride,
        .left = w->bf.kernels ? w->bf.hidden + B * w->bf.ld : NULL,
        .y = y,
        .bound = 1.0,
    };
}

int32_t rnn_loss(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                 int32_t steps, int32_t batch, float *state, double *loss) {
    if (!work || !params || !embeddings || !x || !y || !state || !loss) return RNN_E_NULL;
    if (work->sampled) return RNN_E_ARG;
    int32_t status = check_chunk(work, x, y, steps, batch, work->V);
    if (status) return status;
    size_t T = (size_t)steps, B = (size_t)batch;
    rnn_inputs in = {.embeddings = embeddings, .x = x, .T = T, .B = B};
    if (!hidden_forward(work, &in, params, state)) return RNN_E_NONFINITE;
    rnn_output out = output_of(work, params, y, B);
    double sum = output_pass(work, &out, T * B);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    *loss = sum;
    copy_state(work, T, B, state);
    return RNN_OK;
}

int32_t rnn_advance_state(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, int32_t steps,
                          int32_t batch, float *state) {
    if (!work || !params || !embeddings || !x || !state) return RNN_E_NULL;
    int32_t status = check_chunk(work, x, NULL, steps, batch, 0);
    if (status) return status;
    size_t T = (size_t)steps, B = (size_t)batch;
    rnn_inputs in = {.embeddings = embeddings, .x = x, .T = T, .B = B};
    if (!hidden_forward(work, &in, params, state)) return RNN_E_NONFINITE;
    copy_state(work, T, B, state);
    return RNN_OK;
}

/* rows (N, stride) = rows [h, 1, 0 ...] with h times the mask of its batch row (B, H). */
static void drop(const rnn_work *w, const float *mask, const float *hidden, size_t N, size_t B, float *rows) {
    for (size_t n = 0; n < N; n++) {
        const float *from = hidden + n * w->stride;
        float *to = rows + n * w->stride;
        for (size_t i = 0; i < w->H; i++) to[i] = from[i] * mask[n % B * w->H + i];
        if (to != from) memcpy(to + w->H, from + w->H, (w->stride - w->H) * sizeof *to);
    }
}

/* Dropout: the output layer sees the masked rows. */
static void drop_hidden(rnn_work *w, const float *mask, size_t N, size_t B, rnn_output *out) {
    const rnn_bfloat16_work *bf = &w->bf;
    drop(w, mask, out->hidden, N, B, w->dropped);
    out->hidden = w->dropped;
    out->operand = w->dropped_operand;
    out->left = bf->dropped;
    out->bound = fmax(1.0, w->kernels->max_abs(B * w->H, mask));
    if (bf->kernels) {
        bf->kernels->round_rows(N, w->H + 1, w->dropped, w->stride, bf->dropped, bf->ld);
        memset(bf->dropped + N * bf->ld, 0, RNN_STRIP_ROWS * bf->ld * sizeof *bf->dropped);
    } else if (w->rounded) {
        memcpy(w->dropped_operand, w->dropped, N * w->stride * sizeof *w->dropped);
        w->kernels->round(N * w->stride, w->dropped_operand);
    }
}

int32_t rnn_loss_grad(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                      int32_t steps, int32_t batch, float scale, const rnn_regularization *regularization, float *state,
                      double *loss, float *grads) {
    static const rnn_regularization none = {0};
    const rnn_regularization *r = regularization ? regularization : &none;
    if (!work || !params || !embeddings || !x || !y || !state || !loss || !grads) return RNN_E_NULL;
    if ((r->candidates != NULL) != work->sampled) return RNN_E_ARG;
    size_t columns = work->sampled ? (size_t)r->candidate_count : work->V;
    int32_t status = check_chunk(work, x, y, steps, batch, columns);
    if (!status) status = check_regularization(work, r, batch);
    if (status) return status;
    if (!isfinite(scale)) return RNN_E_ARG;
    size_t T = (size_t)steps, B = (size_t)batch, N = T * B;
    rnn_inputs in = {.embeddings = embeddings, .mask = r->input_mask, .x = x, .T = T, .B = B};
    if (!hidden_forward(work, &in, params, state)) return RNN_E_NONFINITE;

    rnn_output out = output_of(work, params, y, B);
    out.dwhy = grads + work->at.why;
    out.columns = columns;
    out.scale = scale;
    if (work->sampled) {
        rnn_candidates_gather(work, out.why, r);
        out.why = work->candidates;
        out.dwhy = work->dcandidates;
    }
    if (r->output_mask) drop_hidden(work, r->output_mask, N, B, &out);
    double sum = output_pass(work, &out, N);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    if (r->output_mask) drop(work, r->output_mask, work->dhidden, N, B, work->dhidden);
    if (work->sampled) rnn_candidates_return(work, r, grads + work->at.why);

    hidden_backward(work, &in, params, grads);
    *loss = sum;
    copy_state(work, T, B, state);
    return RNN_OK;
}
