/* sample.c -- from logits to a token. */
#include <math.h>
#include <string.h>

#include "internal.h"

int32_t rnn_check_sampling(const rnn_model *model, const rnn_sampling *s) {
    if (!(s->temperature >= 0.0f) || !isfinite(s->temperature)) return RNN_E_ARG;
    if (s->banned < -1 || (s->banned >= 0 && (size_t)s->banned >= model->V)) return RNN_E_TOKEN;
    if (s->banned >= 0 && model->V == 1) return RNN_E_ARG;
    if (s->temperature == 0.0f) return RNN_OK;
    return s->u >= 0.0 && s->u < 1.0 && s->top_k >= 0 ? RNN_OK : RNN_E_ARG; /* a NaN fails both comparisons */
}

/* The float that is number `order` in the order of all floats, -0 and 0 apart. */
static float float_at(int32_t order) {
    int32_t bits = order < 0 ? order ^ INT32_MAX : order;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int32_t order_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

/* z (V) = -inf for all but the k largest; of equal ones the lowest ids stay. The k-th largest is found by bisection in
 * the order of all floats: at most 32 counts, each a pass at the speed of memory. */
static void keep_largest(const rnn_kernels *kernels, float *z, size_t V, size_t k, float max) {
    int64_t low = order_of(-INFINITY), high = order_of(max); /* k or more are >= low, fewer than k are > high */
    size_t kept = V;                                         /* are >= low */
    while (low < high && kept > k) {
        int64_t middle = low + (high - low + 1) / 2;
        size_t found = kernels->count_at_least(V, z, float_at((int32_t)middle));
        if (found >= k) {
            low = middle;
            kept = found;
        } else {
            high = middle - 1;
        }
    }
    float least = float_at((int32_t)low);
    kernels->cut_below(V, z, least);
    for (size_t v = V; kept > k && v-- > 0;) {
        if (z[v] != least) continue;
        z[v] = -INFINITY;
        kept--;
    }
}

static size_t first_equal(const float *z, size_t V, float value) {
    for (size_t v = 0; v < V; v++) {
        if (z[v] == value) return v;
    }
    return 0;
}

/* The first v at which the running sum of e (V) exceeds u times their sum. Whole blocks are passed by their sums; one is
 * found, because u * total < total in doubles too. Within it, rounding may leave the running sum short of its target:
 * then it is the last v with e > 0. */
static size_t inverse_cdf(const float *e, const double *sums, size_t V, double u) {
    double total = 0.0, sum = 0.0;
    size_t blocks = rnn_ceil_div(V, RNN_BLOCK), block = 0, found = 0;
    for (size_t b = 0; b < blocks; b++) total += sums[b];
    for (; block + 1 < blocks && sum + sums[block] <= u * total; block++) sum += sums[block];
    for (size_t v = block * RNN_BLOCK; v < rnn_min(V, (block + 1) * RNN_BLOCK); v++) {
        if (!(e[v] > 0.0f)) continue;
        found = v;
        sum += e[v];
        if (sum > u * total) break;
    }
    return found;
}

/* e (V) = exp((z - max) * beta), with their sums by block. Returns log of the sum of all. */
static double exponentials(rnn_decoder *d, size_t thread, const float *z, float max, float beta, float **e,
                           double **sums) {
    size_t V = d->model->V, blocks = d->row / RNN_BLOCK;
    double total = 0.0;
    *e = d->exps + thread * d->row;
    *sums = d->sums + thread * blocks;
    d->model->kernels->exp_sums(V, z, max, beta, *e, *sums);
    for (size_t b = 0; b < blocks; b++) total += (*sums)[b];
    return log(total);
}

float rnn_log_softmax(rnn_decoder *d, size_t thread, const float *z, int32_t token) {
    float *e, max = d->model->kernels->max(d->model->V, z);
    double *sums;
    return (float)((double)z[token] - max - exponentials(d, thread, z, max, 1.0f, &e, &sums));
}

int32_t rnn_draw(rnn_decoder *d, size_t thread, const float *logits, const rnn_sampling *sampling, float *logp) {
    const rnn_kernels *k = d->model->kernels;
    size_t V = d->model->V, token, top_k = (size_t)sampling->top_k;
    const float *z = logits; /* those that may be drawn */
    bool cuts = sampling->temperature > 0.0f && top_k > 0 && top_k < V;
    if (cuts || sampling->banned >= 0) {
        float *cut = d->cut + thread * d->row;
        memcpy(cut, logits, V * sizeof *cut);
        if (sampling->banned >= 0) cut[sampling->banned] = -INFINITY;
        if (cuts) keep_largest(k, cut, V, top_k, k->max(V, cut));
        z = cut;
    }
    float max = k->max(V, z);
    if (sampling->temperature == 0.0f) {
        token = first_equal(z, V, max);
    } else {
        float *e;
        double *sums;
        /* Below 1e-30 the reciprocal would overflow, and any difference of floats already gives probability 0. */
        float beta = 1.0f / fmaxf(sampling->temperature, 1e-30f);
        double log_sum = exponentials(d, thread, z, max, beta, &e, &sums);
        token = inverse_cdf(e, sums, V, sampling->u);
        if (logp && z == logits && beta == 1.0f) { /* the common case: these are the sums that rnn_log_softmax makes */
            *logp = (float)((double)z[token] - max - log_sum);
            return (int32_t)token;
        }
    }
    if (logp) *logp = rnn_log_softmax(d, thread, logits, (int32_t)token);
    return (int32_t)token;
}

int32_t rnn_sample(rnn_decoder *decoder, const float *logits, const rnn_sampling *sampling, int32_t *token,
                   float *logp) {
    if (!decoder || !logits || !sampling || !token) return RNN_E_NULL;
    int32_t status = rnn_check_sampling(decoder->model, sampling);
    if (status) return status;
    size_t V = decoder->model->V;
    bool possible = false;
    for (size_t v = 0; v < V; v++) {
        if (!(logits[v] < INFINITY)) return RNN_E_NONFINITE; /* -inf is fine: a word that cannot be drawn */
        possible |= logits[v] > -INFINITY && (int32_t)v != sampling->banned;
    }
    if (!possible) return RNN_E_NONFINITE;
    *token = rnn_draw(decoder, 0, logits, sampling, logp);
    return RNN_OK;
}
