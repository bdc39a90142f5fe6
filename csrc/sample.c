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

static size_t first_equal(const float *z, size_t count, float value) {
    for (size_t v = 0; v < count; v++) {
        if (z[v] == value) return v;
    }
    return 0;
}

/* Below 1e-30 the reciprocal would overflow, and any difference of floats already gives probability 0. */
static float beta_of(const rnn_sampling *s) { return 1.0f / fmaxf(s->temperature, 1e-30f); }

static bool cuts(const rnn_decoder *d, const rnn_sampling *s) {
    return s->temperature > 0.0f && s->top_k > 0 && (size_t)s->top_k < d->model->V;
}

/* One block of z (V) without the banned token, which takes a copy in `kept`. */
static const float *block_of(const float *z, size_t v0, size_t count, int32_t banned, float kept[RNN_BLOCK]) {
    size_t at = (size_t)banned - v0; /* wraps around when it is not of this block, or -1 */
    if (banned < 0 || at >= count) return z + v0;
    memcpy(kept, z + v0, count * sizeof *kept);
    kept[at] = -INFINITY;
    return kept;
}

/* A block's largest logit, and the sum of exp((z - max) * beta); 0 when nothing in it can be drawn. */
static double measure(const rnn_kernels *k, const float *z, size_t count, float beta, float *max) {
    *max = k->max(count, z);
    return *max > -INFINITY ? k->exp_sum(count, z, *max, beta, NULL) : 0.0;
}

void rnn_measure_block(rnn_decoder *d, size_t i, const float *z, size_t block, const rnn_sampling *s) {
    const rnn_kernels *k = d->model->kernels;
    size_t v0 = block * RNN_BLOCK, count = rnn_min(RNN_BLOCK, d->model->V - v0), at = i * d->blocks + block;
    float kept[RNN_BLOCK], beta = beta_of(s);
    z = block_of(z, v0, count, s->banned, kept);
    d->block_sum[at] = measure(k, z, count, 1.0f, d->block_max + at);
    if (s->temperature > 0.0f && beta != 1.0f && !cuts(d, s)) {
        d->tempered[at] = measure(k, z, count, beta, d->block_max + at);
    }
}

/* share (blocks) = exp((block_max - max) * beta): what the sums of each block count for beside the others. */
static float *shares_of(rnn_decoder *d, size_t i, float max, float beta) {
    float *share = d->share + i * d->blocks;
    d->model->kernels->exp_sum(d->blocks, d->block_max + i * d->blocks, max, beta, share);
    return share;
}

/* log sum exp of row i of the logits z (V), the banned token included. */
static double log_sum_exp(rnn_decoder *d, size_t i, const float *z, int32_t banned) {
    const double *sums = d->block_sum + i * d->blocks;
    float max = d->model->kernels->max(d->blocks, d->block_max + i * d->blocks);
    const float *share = shares_of(d, i, max, 1.0f);
    double total = 0.0;
    for (size_t b = 0; b < d->blocks; b++) total += sums[b] * share[b];
    double lse = max + log(total);
    if (banned < 0 || z[banned] == -INFINITY) return lse;
    double high = fmax(lse, z[banned]), low = fmin(lse, z[banned]);
    return high + log1p(exp(low - high));
}

float rnn_log_softmax(rnn_decoder *d, size_t i, const float *z, int32_t token) {
    return (float)(z[token] - log_sum_exp(d, i, z, -1));
}

/* The first v at which the running sum of exp((z - max) / temperature) exceeds u times their sum. Whole blocks are passed
 * by their sums; one is found, because u * total < total in doubles too. Within it, rounding may leave the running sum
 * short of its target: then it is the last v whose term is not 0. */
static size_t inverse_cdf(rnn_decoder *d, size_t i, const float *z, const double *sums, float max,
                          const rnn_sampling *s, int32_t banned) {
    float beta = beta_of(s), e[RNN_BLOCK], kept[RNN_BLOCK];
    const float *share = shares_of(d, i, max, beta);
    double total = 0.0, sum = 0.0;
    size_t block = 0, found = 0;
    for (size_t b = 0; b < d->blocks; b++) total += sums[b] * share[b];
    for (; block + 1 < d->blocks && sum + sums[block] * share[block] <= s->u * total; block++) {
        sum += sums[block] * share[block];
    }
    size_t v0 = block * RNN_BLOCK, count = rnn_min(RNN_BLOCK, d->model->V - v0);
    const float *z_block = block_of(z, v0, count, banned, kept);
    d->model->kernels->exp_sum(count, z_block, d->block_max[i * d->blocks + block], beta, e);
    for (size_t v = 0; v < count; v++) {
        if (!(e[v] > 0.0f)) continue;
        found = v0 + v;
        sum += (double)e[v] * share[block];
        if (sum > s->u * total) break;
    }
    return found;
}

/* The logits that top_k leaves, for which block_max and tempered are measured anew. */
static const float *cut_row(rnn_decoder *d, size_t i, const float *z, float max, const rnn_sampling *s) {
    const rnn_kernels *k = d->model->kernels;
    size_t V = d->model->V;
    float *cut = d->cut + i * d->row;
    memcpy(cut, z, V * sizeof *cut);
    if (s->banned >= 0) cut[s->banned] = -INFINITY;
    keep_largest(k, cut, V, (size_t)s->top_k, max);
    for (size_t b = 0; b < d->blocks; b++) {
        size_t v0 = b * RNN_BLOCK, at = i * d->blocks + b;
        d->tempered[at] = measure(k, cut + v0, rnn_min(RNN_BLOCK, V - v0), beta_of(s), d->block_max + at);
    }
    return cut;
}

int32_t rnn_draw(rnn_decoder *d, size_t i, const float *z, const rnn_sampling *s, float *logp) {
    const float *block_max = d->block_max + i * d->blocks;
    float max = d->model->kernels->max(d->blocks, block_max);
    double lse = logp ? log_sum_exp(d, i, z, s->banned) : 0.0;
    size_t token;
    if (s->temperature == 0.0f) {
        float kept[RNN_BLOCK];
        size_t v0 = first_equal(block_max, d->blocks, max) * RNN_BLOCK;
        size_t count = rnn_min(RNN_BLOCK, d->model->V - v0);
        token = v0 + first_equal(block_of(z, v0, count, s->banned, kept), count, max);
    } else if (cuts(d, s)) {
        const float *cut = cut_row(d, i, z, max, s);
        token = inverse_cdf(d, i, cut, d->tempered + i * d->blocks, max, s, -1);
    } else {
        const double *sums = beta_of(s) == 1.0f ? d->block_sum : d->tempered;
        token = inverse_cdf(d, i, z, sums + i * d->blocks, max, s, s->banned);
    }
    if (logp) *logp = (float)(z[token] - lse);
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
    for (size_t b = 0; b < decoder->blocks; b++) rnn_measure_block(decoder, 0, logits, b, sampling);
    *token = rnn_draw(decoder, 0, logits, sampling, logp);
    return RNN_OK;
}
