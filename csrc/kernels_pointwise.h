/* kernels_pointwise.h -- elementwise work: softmax, tanh, sums, updates. Only kernels.c includes this. */
#ifndef RNN_KERNELS_POINTWISE_H
#define RNN_KERNELS_POINTWISE_H

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
        /* ln 2 in two pieces, as in exp_of(): up to a logit of 22,000 the first product and difference are exact. */
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

static void tally(size_t count, const float *keys, const float *values, const float levels[RNN_LEVELS],
                  double sums[RNN_LEVELS]) {
    dvec total[RNN_LEVELS], low, high;
    vec here[RNN_LEVELS];
    UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) total[j] = (dvec){0};
    for (size_t start = 0; start < count; start += RNN_BLOCK) {
        size_t size = rnn_min(RNN_BLOCK, count - start);
        if (values) {
            tally_block(size, keys + start, values + start, levels, here);
        } else {
            tally_block(size, keys + start, NULL, levels, here);
        }
        UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) {
            widen(here[j], &low, &high);
            total[j] += low + high;
        }
    }
    UNROLL for (size_t j = 0; j < RNN_LEVELS; j++) sums[j] = sum_of_doubles(total[j]);
}

/* Appends to `found` the given lanes of z, of which the first is number `first`. */
INLINE size_t append_lanes(uint32_t lanes, size_t first, const float *z, rnn_found found, size_t count) {
#if defined(__AVX512F__)
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i tokens = _mm512_add_epi32(numbers, _mm512_set1_epi32((int32_t)first));
    /* Whole vectors are stored: the arrays have room for one more. */
    _mm512_storeu_si512(found.tokens + count, _mm512_maskz_compress_epi32((__mmask16)lanes, tokens));
    _mm512_storeu_ps(found.logits + count, _mm512_maskz_compress_ps((__mmask16)lanes, (__m512)load(z)));
    return count + (size_t)__builtin_popcount(lanes);
#else
    for (; lanes; lanes &= lanes - 1) {
        int lane = __builtin_ctz(lanes);
        found.tokens[count] = (int32_t)first + lane;
        found.logits[count++] = z[lane];
    }
    return count;
#endif
}

INLINE size_t part_of(size_t count, const float *z, size_t first, const rnn_split *split, double *sum, size_t *above,
                      rnn_found found, size_t found_count) {
    float low = split->low, high = split->high, max = split->max, beta = split->beta, end[4 * LANES];
    enum { AHEAD = 4096 };
    vec total = {0};
    ivec number = {0};
    for (size_t i = 0; i < count; i += 4 * LANES) {
        const float *at = z + i;
        if (i + 4 * LANES > count) {
            for (size_t n = 0; n < 4 * LANES; n++) end[n] = i + n < count ? at[n] : -INFINITY;
            at = end;
        }
        vec here[4], taken[4];
        uint32_t lanes[4], any = 0;
        UNROLL for (size_t n = 0; n < 4; n++) {
            here[n] = load(at + n * LANES);
            __builtin_prefetch(z + i + n * LANES + AHEAD); /* it has left the cache since it was computed */
            lanes[n] = lanes_at_least(here[n], low);
            any |= lanes[n];
        }
        if (!any) continue; /* nothing that costs an exponential */
        any = 0;
        UNROLL for (size_t n = 0; n < 4; n++) {
            ivec kept = here[n] >= high;
            taken[n] = (vec)(kept & (ivec)exp_of((here[n] - max) * beta));
            if (above) number -= kept; /* a true lane is -1 */
            lanes[n] &= ~lanes_at_least(here[n], high);
            any |= lanes[n];
        }
        total += (taken[0] + taken[1]) + (taken[2] + taken[3]);
        if (!any) continue;
        UNROLL for (size_t n = 0; n < 4; n++) {
            found_count = append_lanes(lanes[n], first + i + n * LANES, at + n * LANES, found, found_count);
        }
    }
    dvec a, b;
    widen(total, &a, &b);
    *sum = sum_of_doubles(a + b);
    for (size_t j = 0; above && j < LANES; j++) *above += (size_t)number[j];
    return found_count;
}

static size_t part(size_t count, const float *z, size_t first, const rnn_split *split, double *sum, size_t *above,
                   rnn_found found, size_t found_count) {
    return above ? part_of(count, z, first, split, sum, above, found, found_count)
                 : part_of(count, z, first, split, sum, NULL, found, found_count);
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
