/* train.c -- one chunk: the checks, then hidden.c and output.c in order. */
#include <math.h>
#include <string.h>

#include "internal.h"

/* x are words, y columns of the output layer. */
static int32_t check_chunk(const rnn_work *w, const int32_t *x, const int32_t *y, int32_t steps, int32_t batch,
                           size_t columns) {
    if (steps < 1 || (size_t)steps > w->max_steps || batch < 1 || (size_t)batch > w->max_batch) return RNN_E_DIM;
    size_t N = (size_t)steps * (size_t)batch;
    for (size_t n = 0; n < N; n++) {
        /* A negative id is larger than V once it is unsigned. */
        if ((uint32_t)x[n] >= w->V || (uint32_t)y[n] >= columns) return RNN_E_TOKEN;
    }
    return RNN_OK;
}

static int32_t check_options(const rnn_work *w, const rnn_train_options *options, int32_t batch) {
    size_t B = (size_t)batch;
    if (options->input_mask && !isfinite(w->kernels->max_abs(B * w->E, options->input_mask))) return RNN_E_NONFINITE;
    if (options->output_mask && !isfinite(w->kernels->max_abs(B * w->H, options->output_mask))) return RNN_E_NONFINITE;
    if (!w->sampled) return RNN_OK;
    if (!options->correction) return RNN_E_NULL;
    if (options->candidate_count < 1 || (size_t)options->candidate_count > w->max_columns) return RNN_E_DIM;
    int64_t before = -1;
    for (int32_t c = 0; c < options->candidate_count; c++) {
        if (options->candidates[c] <= before) return RNN_E_TOKEN;
        before = options->candidates[c];
    }
    return before < (int64_t)w->V ? RNN_OK : RNN_E_TOKEN;
}

static void copy_state(const rnn_work *w, size_t T, size_t B, float *state) {
    for (size_t b = 0; b < B; b++) {
        memcpy(state + b * w->H, w->hidden + (T * B + b) * w->stride, w->H * sizeof *state);
    }
}

int32_t rnn_loss(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                 int32_t steps, int32_t batch, float *state, double *loss, float *token_logp) {
    if (!work || !params || !embeddings || !x || !y || !state || !loss) return RNN_E_NULL;
    if (work->sampled) return RNN_E_ARG;
    int32_t status = check_chunk(work, x, y, steps, batch, work->V);
    if (status) return status;
    size_t T = (size_t)steps, B = (size_t)batch;
    rnn_inputs in = {.embeddings = embeddings, .x = x, .T = T, .B = B};
    if (!rnn_hidden_forward(work, &in, params, state)) return RNN_E_NONFINITE;
    rnn_output out = {
        .why = params + work->at.why,
        .columns = work->V,
        .hidden = work->hidden + B * work->stride,
        .y = y,
        .bound = 1.0,
    };
    double sum = rnn_output_pass(work, &out, T * B);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    *loss = sum;
    for (size_t n = 0; token_logp && n < T * B; n++) token_logp[n] = (float)work->logp[n];
    copy_state(work, T, B, state);
    return RNN_OK;
}

int32_t rnn_loss_grad(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                      int32_t steps, int32_t batch, float scale, float *state, double *loss, float *grads) {
    rnn_train_options plain = {0};
    return rnn_train_grad(work, params, embeddings, x, y, steps, batch, scale, &plain, state, loss, grads);
}

/* rows (N, stride) = rows [h, 1, 0 ...] with h times its stream's mask (B, H). */
static void drop(const rnn_work *w, const float *mask, const float *hidden, size_t N, size_t B, float *rows) {
    for (size_t n = 0; n < N; n++) {
        const float *from = hidden + n * w->stride;
        float *to = rows + n * w->stride;
        for (size_t i = 0; i < w->H; i++) to[i] = from[i] * mask[n % B * w->H + i];
        if (to != from) memcpy(to + w->H, from + w->H, (w->stride - w->H) * sizeof *to);
    }
}

int32_t rnn_train_grad(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                       int32_t steps, int32_t batch, float scale, const rnn_train_options *options, float *state,
                       double *loss, float *grads) {
    if (!work || !params || !embeddings || !x || !y || !options || !state || !loss || !grads) return RNN_E_NULL;
    if ((options->candidates != NULL) != work->sampled) return RNN_E_ARG;
    size_t columns = work->sampled ? (size_t)options->candidate_count : work->V;
    int32_t status = check_chunk(work, x, y, steps, batch, columns);
    if (!status) status = check_options(work, options, batch);
    if (status) return status;
    if (!isfinite(scale)) return RNN_E_ARG;
    size_t T = (size_t)steps, B = (size_t)batch, N = T * B;
    rnn_inputs in = {.embeddings = embeddings, .mask = options->input_mask, .x = x, .T = T, .B = B};
    if (!rnn_hidden_forward(work, &in, params, state)) return RNN_E_NONFINITE;

    rnn_output out = {
        .why = params + work->at.why,
        .dwhy = grads + work->at.why,
        .columns = columns,
        .hidden = work->hidden + B * work->stride,
        .y = y,
        .bound = 1.0,
        .scale = scale,
    };
    if (work->sampled) {
        rnn_candidates_gather(work, out.why, options);
        out.why = work->candidates;
        out.dwhy = work->dcandidates;
    }
    if (options->output_mask) {
        drop(work, options->output_mask, out.hidden, N, B, work->dropped);
        out.hidden = work->dropped;
        out.bound = fmax(1.0, work->kernels->max_abs(B * work->H, options->output_mask));
    }
    double sum = rnn_output_pass(work, &out, N);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    if (options->output_mask) drop(work, options->output_mask, work->dhidden, N, B, work->dhidden);
    if (work->sampled) rnn_candidates_scatter(work, options, grads + work->at.why);

    rnn_hidden_backward(work, &in, params, grads);
    *loss = sum;
    copy_state(work, T, B, state);
    return RNN_OK;
}
