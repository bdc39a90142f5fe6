/* optimizer.c -- the norm of a gradient, and the updates. Each is one pass over memory, whose speed bounds it; but for that
 * of the words of a sampled softmax, which reads only those that are needed and replays what they have missed. */
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

static bool is_rate(float x) { return x >= 0.0f && x <= 1.0f; }

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

static bool is_valid(const rnn_adamw *o) {
    return is_not_negative(o->lr) && is_fraction(o->beta1) && is_fraction(o->beta2) && is_not_negative(o->epsilon) &&
           is_not_negative(o->weight_decay) && o->step >= 1;
}

static rnn_adamw_factors factors_of(const rnn_adamw *o) {
    double lr = o->lr, beta1 = o->beta1, beta2 = o->beta2;
    return (rnn_adamw_factors){
        .beta1 = beta1,
        .rest1 = 1.0 - beta1,
        .beta2 = beta2,
        .rest2 = 1.0 - beta2,
        .keep = 1.0 - lr * o->weight_decay,
        .rate = lr / (1.0 - pow(beta1, o->step)),
        .root = 1.0 / sqrt(1.0 - pow(beta2, o->step)),
        .epsilon = o->epsilon,
    };
}

int32_t rnn_adamw_update(float *params, const float *grads, float *m, float *v, int64_t count, float grad_scale,
                         const rnn_adamw *options, int32_t threads) {
    if (!params || !grads || !m || !v || !options) return RNN_E_NULL;
    int32_t status = check_pass(count, threads);
    if (status) return status;
    if (!isfinite(grad_scale) || !is_valid(options)) return RNN_E_ARG;
    const rnn_kernels *k = rnn_kernels_choose();
    rnn_adamw_factors factors = factors_of(options);
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t s = 0; s < SLICES; s++) {
        size_t begin = slice_start((size_t)count, s), end = slice_start((size_t)count, s + 1);
        k->adamw(end - begin, params + begin, grads + begin, m + begin, v + begin, grad_scale, &factors);
    }
    return RNN_OK;
}

int32_t rnn_average_update(float *average, const float *params, int64_t count, float rate, int32_t threads) {
    if (!average || !params) return RNN_E_NULL;
    int32_t status = check_pass(count, threads);
    if (status) return status;
    if (!is_rate(rate)) return RNN_E_ARG;
    const rnn_kernels *k = rnn_kernels_choose();
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t s = 0; s < SLICES; s++) {
        size_t begin = slice_start((size_t)count, s), end = slice_start((size_t)count, s + 1);
        k->average(end - begin, average + begin, params + begin, rate);
    }
    return RNN_OK;
}

/* last: how many steps a word may have had. */
static int32_t check_words(const rnn_words *words, const int32_t *ids, int32_t id_count, int32_t last) {
    int64_t before = -1;
    for (int32_t i = 0; i < id_count; i++) {
        int32_t id = ids ? ids[i] : i;
        if (id <= before || id >= words->count) return RNN_E_TOKEN;
        before = id;
        if (words->done[id] < 0 || words->done[id] > last) return RNN_E_ARG;
    }
    return RNN_OK;
}

int32_t rnn_adamw_words(const rnn_words *words, const int32_t *ids, int32_t id_count, const rnn_adamw *steps,
                        const float *averaging, int32_t step_count, const float *grads, float grad_scale,
                        int32_t threads) {
    static const float zeros[RNN_MAX_HIDDEN + 1];
    if (!words || !words->params || !words->m || !words->v || !words->done || !steps) return RNN_E_NULL;
    if (words->average && !averaging) return RNN_E_NULL;
    if (!ids) id_count = words->count;
    if (words->count < 1 || words->count > RNN_MAX_VOCAB || id_count < 0 || id_count > words->count) return RNN_E_DIM;
    if (words->width < 1 || words->width > RNN_MAX_HIDDEN + 1) return RNN_E_DIM;
    if (words->decayed < 0 || words->decayed > words->width) return RNN_E_DIM;
    if (step_count < 0 || step_count > RNN_MAX_STEPS) return RNN_E_DIM;
    int32_t status = rnn_check_threads(threads);
    if (!status) status = check_words(words, ids, id_count, grads ? step_count - 1 : step_count);
    if (status) return status;
    if (!isfinite(grad_scale)) return RNN_E_ARG;
    rnn_adamw_factors factors[RNN_MAX_STEPS], undecayed[RNN_MAX_STEPS];
    for (int32_t s = 0; s < step_count; s++) {
        if (!is_valid(steps + s) || (words->average && !is_rate(averaging[s]))) return RNN_E_ARG;
        factors[s] = undecayed[s] = factors_of(steps + s);
        undecayed[s].keep = 1.0;
    }
    const rnn_kernels *k = rnn_kernels_choose();
    size_t width = (size_t)words->width, decayed = (size_t)words->decayed;
    RNN_OMP(parallel for num_threads(threads) schedule(dynamic, 64))
    for (int32_t i = 0; i < id_count; i++) {
        size_t id = (size_t)(ids ? ids[i] : i), at = id * width;
        float *p = words->params + at, *average = words->average ? words->average + at : NULL;
        for (int32_t s = words->done[id]; s < step_count; s++) {
            const float *g = grads && s == step_count - 1 ? grads + (size_t)i * width : zeros;
            float *m = words->m + at, *v = words->v + at;
            k->adamw(decayed, p, g, m, v, grad_scale, factors + s);
            k->adamw(width - decayed, p + decayed, g + decayed, m + decayed, v + decayed, grad_scale, undecayed + s);
            if (average && averaging[s] > 0.0f) k->average(width, average, p, averaging[s]);
        }
        words->done[id] = step_count;
    }
    return RNN_OK;
}
