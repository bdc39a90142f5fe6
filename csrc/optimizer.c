/* optimizer.c -- the norm of a gradient, and the updates. Each is one pass over memory, whose speed bounds it. */
#include <math.h>

#include "internal.h"

enum { SLICES = 64 }; /* pieces of a buffer: a fixed number, so that sums do not depend on the number of threads */

/* Where slice s begins; on a cache line, counted from the buffer's first element. */
static size_t slice_start(size_t count, size_t s) {
    size_t lines = rnn_ceil_div(count, RNN_ALIGN / sizeof(float));
    return rnn_min(count, lines * s / SLICES * (RNN_ALIGN / sizeof(float)));
}

static int32_t check_pass(int64_t count, int32_t threads) {
    if (count < 0 || (uint64_t)count > SIZE_MAX / sizeof(float)) return RNN_E_DIM;
    return rnn_check_threads(threads);
}

int32_t rnn_grad_norm(const float *grads, int64_t count, int32_t threads, double *norm) {
    if (!grads || !norm) return RNN_E_NULL;
    int32_t status = check_pass(count, threads);
    if (status) return status;
    const rnn_kernels *k = rnn_kernels_choose();
    double squares[SLICES], sum = 0.0;
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t s = 0; s < SLICES; s++) {
        size_t begin = slice_start((size_t)count, s), end = slice_start((size_t)count, s + 1);
        squares[s] = k->sum_squares(end - begin, grads + begin);
    }
    for (size_t s = 0; s < SLICES; s++) sum += squares[s];
    if (!isfinite(sum)) return RNN_E_NONFINITE; /* a double holds any sum of squares of finite floats */
    *norm = sqrt(sum);
    return RNN_OK;
}

static bool is_fraction(float x) { return x >= 0.0f && x < 1.0f; }

static bool is_not_negative(float x) { return x >= 0.0f && isfinite(x); }

int32_t rnn_sgd_update(float *params, const float *grads, float *velocity, int64_t count, float grad_scale, float lr,
                       float momentum, int32_t threads) {
    if (!params || !grads || (!velocity && momentum != 0.0f)) return RNN_E_NULL;
    int32_t status = check_pass(count, threads);
    if (status) return status;
    if (!isfinite(grad_scale) || !is_not_negative(lr) || !is_fraction(momentum)) return RNN_E_ARG;
    const rnn_kernels *k = rnn_kernels_choose();
    float *v = momentum != 0.0f ? velocity : NULL;
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t s = 0; s < SLICES; s++) {
        size_t begin = slice_start((size_t)count, s), end = slice_start((size_t)count, s + 1);
        k->sgd(end - begin, params + begin, grads + begin, v ? v + begin : NULL, grad_scale, lr, momentum);
    }
    return RNN_OK;
}

int32_t rnn_adamw_update(float *params, const float *grads, float *m, float *v, int64_t count, float grad_scale,
                         const rnn_adamw *options, int32_t threads) {
    if (!params || !grads || !m || !v || !options) return RNN_E_NULL;
    int32_t status = check_pass(count, threads);
    if (status) return status;
    if (!isfinite(grad_scale) || !is_not_negative(options->lr) || !is_fraction(options->beta1) ||
        !is_fraction(options->beta2) || !is_not_negative(options->epsilon) || !is_not_negative(options->weight_decay) ||
        options->step < 1) {
        return RNN_E_ARG;
    }
    const rnn_kernels *k = rnn_kernels_choose();
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t s = 0; s < SLICES; s++) {
        size_t begin = slice_start((size_t)count, s), end = slice_start((size_t)count, s + 1);
        k->adamw(end - begin, params + begin, grads + begin, m + begin, v + begin, grad_scale, options);
    }
    return RNN_OK;
}
