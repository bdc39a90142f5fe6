/* kernels_pointwise.h -- what is done to one number at a time: softmax, tanh, sums, updates. Included by kernels.c alone. */
#ifndef RNN_KERNELS_POINTWISE_H
#define RNN_KERNELS_POINTWISE_H

#include "internal.h"
#include "vector.h"

/* To bfloat16, nearest, ties to even; a NaN stays one. */
INLINE vec rounded(vec x) {
    uvec bits = (uvec)x;
    uvec nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    return choose((ivec)(bits & INT32_MAX) > 0x7f800000, (vec)(bits | 0x400000), (vec)nearest);
}

static void round_all(size_t count, float *x) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) store(x + i, rounded(load(x + i)));
    vec rest = rounded(load_part(x + i, count - i, 0.0f));
    memcpy(x + i, &rest, (count - i) * sizeof *x);
}

INLINE void softmax_of(bool whole, size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum) {
    for (size_t i = 0; i < m; i++) {
        float *row = z + i * PANEL;
        vec top[TILE_VECS];
        UNROLL for (size_t j = 0; j < TILE_VECS; j++) top[j] = load(row + j * LANES);
        for (size_t p = 1; p < panels; p++) {
            UNROLL for (size_t j = 0; j < TILE_VECS; j++) top[j] = larger(top[j], load(row + p * z_panel + j * LANES));
        }
        UNROLL for (size_t j = 1; j < TILE_VECS; j++) top[0] = larger(top[0], top[j]);
        float shift = max_of_lanes(top[0]);
        float powers = whole ? ceilf(shift * 1.44269504088896341f) : 0.0f;
        /* ln 2 in two pieces, as in exp_of(): the first product and difference are exact. */
        float coarse = powers * 0.693359375f, fine = powers * -2.12194440e-4f;
        dvec total[2] = {{0}, {0}};
        for (size_t p = 0; p < panels; p++) {
            /* The sum is in double from here on: of the 2 to 4 numbers that it takes in at a time, none is larger
             * than 1, and their own sum is as good as they are. */
            vec here = {0};
            UNROLL for (size_t j = 0; j < TILE_VECS; j++) {
                float *at = row + p * z_panel + j * LANES;
                vec e = exp_of(whole ? load(at) - coarse - fine : load(at) - shift);
                store(at, whole ? rounded(e) : e);
                here += e;
            }
            dvec low, high;
            widen(here, &low, &high);
            total[0] += low;
            total[1] += high;
        }
        max[i] = whole ? powers : shift;
        sum[i] = sum_of_doubles(total[0] + total[1]);
    }
}

static void softmax(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum) {
    softmax_of(false, m, panels, z, z_panel, max, sum);
}

static void softmax_rounded(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum) {
    softmax_of(true, m, panels, z, z_panel, max, sum);
}

static void tanh_forward(size_t count, float *x) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) store(x + i, tanh_of(load(x + i)));
    vec rest = tanh_of(load_part(x + i, count - i, 0.0f));
    memcpy(x + i, &rest, (count - i) * sizeof *x);
}

static void tanh_backward(size_t count, const float *restrict h, float *restrict d) {
    for (size_t i = 0; i < count; i++) d[i] *= 1.0f - h[i] * h[i];
}

static void weighted_sum(size_t terms, size_t count, const float *weights, size_t weight_step, const float *x,
                         size_t x_step, float *restrict out) {
    for (size_t i = 0; i < count; i++) out[i] = 0.0f;
    for (size_t b = 0; b < terms; b++) {
        float weight = weights[b * weight_step];
        const float *restrict term = x + b * x_step;
        for (size_t i = 0; i < count; i++) out[i] += weight * term[i];
    }
}

static float max_abs(size_t count, const float *x) {
    ivec largest = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) largest = larger_int(largest, (ivec)load(x + i) & INT32_MAX);
    largest = larger_int(largest, (ivec)load_part(x + i, count - i, 0.0f) & INT32_MAX);
    return magnitude_of(largest);
}

static float max_of(size_t count, const float *x) {
    vec top[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    size_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        UNROLL for (size_t j = 0; j < 4; j++) top[j] = larger(load(x + i + j * LANES), top[j]);
    }
    for (; i + LANES <= count; i += LANES) top[0] = larger(load(x + i), top[0]);
    top[0] = larger(load_part(x + i, count - i, -INFINITY), top[0]);
    return max_of_lanes(larger(larger(top[0], top[1]), larger(top[2], top[3])));
}

static size_t count_at_least(size_t count, const float *x, float least) {
    uint32_t found = 0; /* count is at most RNN_MAX_VOCAB */
    for (size_t i = 0; i < count; i++) found += x[i] >= least;
    return found;
}

static void cut_below(size_t count, float *x, float least) {
    for (size_t i = 0; i < count; i++) x[i] = x[i] >= least ? x[i] : -INFINITY;
}

/* The sum of exp((z - max) * beta); e as well when it is wanted. */
INLINE double exp_sum_of(size_t count, const float *z, float max, float beta, float *e, bool wanted) {
    dvec total[2] = {{0}, {0}}, low, high;
    size_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        vec here = {0}; /* as in softmax */
        UNROLL for (size_t j = 0; j < 4; j++) {
            vec x = exp_of((load(z + i + j * LANES) - max) * beta);
            if (wanted) store(e + i + j * LANES, x);
            here += x;
        }
        widen(here, &low, &high);
        total[0] += low;
        total[1] += high;
    }
    for (; i < count; i += LANES) {
        size_t part = rnn_min(LANES, count - i);
        vec x = exp_of((load_part(z + i, part, -INFINITY) - max) * beta);
        if (wanted) memcpy(e + i, &x, part * sizeof *e);
        widen(x, &low, &high);
        total[0] += low;
        total[1] += high;
    }
    return sum_of_doubles(total[0] + total[1]);
}

static double exp_sum(size_t count, const float *z, float max, float beta, float *e) {
    return e ? exp_sum_of(count, z, max, beta, e, true) : exp_sum_of(count, z, max, beta, NULL, false);
}

static double sum_squares(size_t count, const float *x) {
    dvec total[2] = {{0}, {0}}, low, high;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        widen(load(x + i), &low, &high);
        total[0] += low * low;
        total[1] += high * high;
    }
    widen(load_part(x + i, count - i, 0.0f), &low, &high);
    return sum_of_doubles(total[0] + low * low + (total[1] + high * high));
}

static void sgd(size_t count, float *restrict p, const float *restrict g, float *restrict v, float grad_scale, float lr,
                float momentum) {
    if (!v) {
        float rate = lr * grad_scale;
        for (size_t i = 0; i < count; i++) p[i] -= rate * g[i];
        return;
    }
    for (size_t i = 0; i < count; i++) {
        v[i] = momentum * v[i] + grad_scale * g[i];
        p[i] -= lr * v[i];
    }
}

static void adamw(size_t count, float *restrict p, const float *restrict g, float *restrict m, float *restrict v,
                  float grad_scale, const rnn_adamw *options) {
    double unbias1 = 1.0 - pow(options->beta1, options->step), unbias2 = 1.0 - pow(options->beta2, options->step);
    float beta1 = options->beta1, beta2 = options->beta2, epsilon = options->epsilon;
    float rest1 = (float)(1.0 - options->beta1), rest2 = (float)(1.0 - options->beta2);
    float keep = (float)(1.0 - (double)options->lr * options->weight_decay);
    float step = (float)(options->lr / unbias1), root = (float)(1.0 / sqrt(unbias2));
    for (size_t i = 0; i < count; i++) {
        float grad = grad_scale * g[i];
        m[i] = beta1 * m[i] + rest1 * grad;
        v[i] = beta2 * v[i] + rest2 * (grad * grad);
        p[i] = keep * p[i] - step * m[i] / (sqrtf(v[i]) * root + epsilon);
    }
}

#endif
