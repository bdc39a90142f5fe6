/* train.c -- one chunk: the checks, then hidden.c and output.c in order. */
#include <math.h>
#include <string.h>

#include "internal.h"

static int32_t check_chunk(const rnn_work *w, const int32_t *x, const int32_t *y, int32_t steps, int32_t batch) {
    if (steps < 1 || (size_t)steps > w->max_steps || batch < 1 || (size_t)batch > w->max_batch) return RNN_E_DIM;
    size_t N = (size_t)steps * (size_t)batch;
    for (size_t n = 0; n < N; n++) {
        /* A negative id is larger than V once it is unsigned. */
        if ((uint32_t)x[n] >= w->V || (uint32_t)y[n] >= w->V) return RNN_E_TOKEN;
    }
    return RNN_OK;
}

static void copy_state(const rnn_work *w, size_t T, size_t B, float *state) {
    for (size_t b = 0; b < B; b++) {
        memcpy(state + b * w->H, w->hidden + (T * B + b) * w->stride, w->H * sizeof *state);
    }
}

int32_t rnn_loss(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                 int32_t steps, int32_t batch, float *state, double *loss, float *token_logp) {
    if (!work || !params || !embeddings || !x || !y || !state || !loss) return RNN_E_NULL;
    int32_t status = check_chunk(work, x, y, steps, batch);
    if (status) return status;
    size_t T = (size_t)steps, B = (size_t)batch;
    if (!rnn_hidden_forward(work, params, embeddings, x, T, B, state)) return RNN_E_NONFINITE;
    double sum = rnn_output_loss(work, params, y, B, T * B);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    *loss = sum;
    for (size_t n = 0; token_logp && n < T * B; n++) token_logp[n] = (float)work->logp[n];
    copy_state(work, T, B, state);
    return RNN_OK;
}

int32_t rnn_loss_grad(rnn_work *work, const float *params, const float *embeddings, const int32_t *x, const int32_t *y,
                      int32_t steps, int32_t batch, float scale, float *state, double *loss, float *grads) {
    if (!work || !params || !embeddings || !x || !y || !state || !loss || !grads) return RNN_E_NULL;
    int32_t status = check_chunk(work, x, y, steps, batch);
    if (status) return status;
    if (!isfinite(scale)) return RNN_E_ARG;
    size_t T = (size_t)steps, B = (size_t)batch;
    if (!rnn_hidden_forward(work, params, embeddings, x, T, B, state)) return RNN_E_NONFINITE;
    double sum = rnn_output_loss_grad(work, params, y, B, T * B, scale, grads);
    if (!isfinite(sum)) return RNN_E_NONFINITE;
    rnn_hidden_backward(work, params, embeddings, x, T, B, grads);
    *loss = sum;
    copy_state(work, T, B, state);
    return RNN_OK;
}
