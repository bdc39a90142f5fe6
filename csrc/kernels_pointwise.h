/* kernels_pointwise.h -- elementwise work: softmax, tanh, sums, updates. Only kernels.c includes this. */
#ifndef RNN_KERNELS_POINTWISE_H
#define RNN_KERNELS_POINTWISE_H

#include <float.h>

#include "internal.h"
#include "vector.h"

/* To bfloat16, nearest, ties to even; not for NaN. */
INLINE vec nearest(vec x) {
    uvec bits = (uvec)x;
    return (vec)((bits + (bits >> 16 & 1) + 0x7fff) & 0xffff0000u);
}
/* The same, and a NaN stays one. */
INLINE vec rounded(vec x) {
    uvec bits = (uvec)x;
    return choose((ivec)(bits & INT32_MAX) > 0x7f800000, (vec)(bits | 0x400000), nearest(x));
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
            /* From here on the sum is in double. The 2 to 4 numbers that are added in float first are at most 1, so their sum
             * is as accurate as they are. */
            vec here = {0};
            UNROLL for (size_t j = 0; j < TILE_VECS; j++) {
                float *at = row + p * z_panel + j * LANES;
                vec e = exp_of(whole ? load(at) - coarse - fine : load(at) - shift);
                store(at, whole ? nearest(e) : e); /* a NaN shows in the sum */
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

/* `level` for a block of numbers relative to a share; what it separates is not 0. */
INLINE float level_within(float level, float share) {
    float own = level / share;
    return own > FLT_MIN ? own : FLT_MIN;
}

INLINE vec load_some(const float *x, size_t count, float fill) {
    return count < LANES ? load_part(x, count, fill) : load(x);
}

/* The value in the lanes where the key is at least `level`, 0 in the others. */
INLINE vec at_least(vec key, vec value, float level) { return (vec)((key >= level) & (ivec)value); }

INLINE void tally_block(size_t count, const float *keys, const float *values, const float levels[RNN_LEVELS],
                        vec sum[RNN_LEVELS]) {
    UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) sum[j] = (vec){0};
    size_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) { /* four at a time, or each addition would wait for the last */
        vec key[4], value[4];
        UNROLL for (size_t n = 0; n < 4; n++) {
            key[n] = load(keys + i + n * LANES);
            value[n] = values ? load(values + i + n * LANES) : splat(1.0f);
        }
        UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) {
            sum[j] += (at_least(key[0], value[0], levels[j]) + at_least(key[1], value[1], levels[j])) +
                      (at_least(key[2], value[2], levels[j]) + at_least(key[3], value[3], levels[j]));
        }
    }
    for (; i < count; i += LANES) {
        vec key = load_some(keys + i, count - i, -INFINITY);
        vec value = values ? load_some(values + i, count - i, 0.0f) : splat(1.0f);
        UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) sum[j] += at_least(key, value, levels[j]);
    }
}

static void tally(size_t count, const float *keys, const float *values, const float *shares,
                  const float levels[RNN_LEVELS], double sums[RNN_LEVELS]) {
    vec total[RNN_LEVELS], here[RNN_LEVELS];
    UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) total[j] = (vec){0};
    for (size_t start = 0; start < count; start += RNN_BLOCK) {
        size_t size = rnn_min(RNN_BLOCK, count - start);
        float share = shares ? shares[start / RNN_BLOCK] : 1.0f, own[RNN_LEVELS];
        if (shares && share < levels[RNN_LEVELS - 1]) continue;
        for (size_t j = 0; j < RNN_LEVELS; j++) own[j] = shares ? level_within(levels[j], share) : levels[j];
        if (!values) {
            tally_block(size, keys + start, NULL, own, here);
        } else if (values == keys) {
            tally_block(size, keys + start, keys + start, own, here);
        } else {
            tally_block(size, keys + start, values + start, own, here);
        }
        UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) total[j] += values ? here[j] * share : here[j];
    }
    UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) {
        dvec low, high;
        widen(total[j], &low, &high);
        sums[j] = sum_of_doubles(low + high);
    }
}

INLINE size_t take_places(ivec mask, size_t start, int32_t *places, size_t found) {
    for (uint32_t lanes = lanes_of(mask); lanes; lanes &= lanes - 1) {
        places[found++] = (int32_t)(start + (size_t)__builtin_ctz(lanes));
    }
    return found;
}

static size_t part(size_t count, const float *x, const float *shares, float low, float high, double *sums,
                   size_t *above, int32_t *places) {
    ivec number = {0};
    size_t found = 0;
    for (size_t start = 0; start < count; start += RNN_BLOCK) {
        size_t size = rnn_min(RNN_BLOCK, count - start);
        float share = shares[start / RNN_BLOCK];
        sums[start / RNN_BLOCK] = 0.0;
        if (!(share > 0.0f) || share < low) continue;
        float own_low = level_within(low, share), own_high = level_within(high, share);
        vec total = {0};
        size_t i = 0;
        for (; i + 4 * LANES <= size; i += 4 * LANES) {
            vec here[4], taken[4];
            ivec between[4];
            UNROLL for (size_t n = 0; n < 4; n++) {
                here[n] = load(x + start + i + n * LANES);
                ivec up = here[n] >= own_high;
                taken[n] = (vec)(up & (ivec)here[n]);
                number -= up; /* a true lane is -1 */
                between[n] = (here[n] >= own_low) & ~up;
            }
            total += (taken[0] + taken[1]) + (taken[2] + taken[3]);
            if (!lanes_of((between[0] | between[1]) | (between[2] | between[3]))) continue;
            UNROLL for (size_t n = 0; n < 4; n++) found = take_places(between[n], start + i + n * LANES, places, found);
        }
        for (; i < size; i += LANES) {
            vec here = load_some(x + start + i, size - i, -INFINITY);
            ivec up = here >= own_high;
            total += (vec)(up & (ivec)here);
            number -= up;
            found = take_places((here >= own_low) & ~up, start + i, places, found);
        }
        dvec a, b;
        widen(total, &a, &b);
        sums[start / RNN_BLOCK] = sum_of_doubles(a + b);
    }
    *above = 0;
    for (size_t j = 0; j < LANES; j++) *above += (size_t)number[j];
    return found;
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
                  float grad_scale, const rnn_adamw_factors *f) {
    float beta1 = (float)f->beta1, beta2 = (float)f->beta2, rest1 = (float)f->rest1, rest2 = (float)f->rest2;
    float keep = (float)f->keep, rate = (float)f->rate, root = (float)f->root, epsilon = (float)f->epsilon;
    for (size_t i = 0; i < count; i++) {
        float grad = grad_scale * g[i];
        m[i] = beta1 * m[i] + rest1 * grad;
        v[i] = beta2 * v[i] + rest2 * (grad * grad);
        p[i] = keep * p[i] - rate * m[i] / (sqrtf(v[i]) * root + epsilon);
    }
}

static void average(size_t count, float *restrict mean, const float *restrict p, float rate) {
    for (size_t i = 0; i < count; i++) mean[i] -= rate * (mean[i] - p[i]);
}

#endif
