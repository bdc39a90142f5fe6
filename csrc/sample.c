/* sample.c -- from logits to a token. */
#include <math.h>
#include <string.h>

#include "internal.h"

static int32_t check_biases(size_t V, const rnn_sampling *s) {
    if (s->bias_count < 0 || (s->bias_count > 0 && !s->biases)) return RNN_E_ARG;
    int32_t before = -1;
    for (int32_t j = 0; j < s->bias_count; j++) {
        rnn_bias bias = s->biases[j];
        if (bias.token <= before || (size_t)bias.token >= V) return RNN_E_TOKEN;
        if (!(fabsf(bias.value) <= RNN_MAX_BIAS)) return RNN_E_ARG; /* a NaN fails it too */
        before = bias.token;
    }
    return RNN_OK;
}

int32_t rnn_check_sampling(const rnn_model *model, const rnn_sampling *s) {
    if (!(s->temperature >= 0.0f) || !isfinite(s->temperature)) return RNN_E_ARG;
    if (s->banned < -1 || (s->banned >= 0 && (size_t)s->banned >= model->V)) return RNN_E_TOKEN;
    if (s->banned >= 0 && model->V == 1) return RNN_E_ARG;
    int32_t status = check_biases(model->V, s);
    if (status || s->temperature == 0.0f) return status;
    bool in_range = s->u >= 0.0 && s->u < 1.0 && s->top_k >= 0 && s->top_p > 0.0f && s->top_p <= 1.0f;
    return in_range ? RNN_OK : RNN_E_ARG; /* a NaN fails the comparisons */
}

static size_t first_equal(const float *z, size_t count, float value) {
    for (size_t v = 0; v < count; v++) {
        if (z[v] == value) return v;
    }
    return 0;
}

/* Below 1e-30 the reciprocal would overflow, and any difference of floats already gives probability 0. */
static float beta_of(const rnn_sampling *s) { return 1.0f / fmaxf(s->temperature, 1e-30f); }

/* The first of the biases whose token is at least `token`. */
static int32_t first_bias(const rnn_sampling *s, size_t token) {
    int32_t low = 0, high = s->bias_count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((size_t)s->biases[middle].token < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* One block of z (V) with biases and ban: where it has any, a copy. */
static const float *drawn_block(rnn_decoder *d, size_t i, const float *z, size_t block, const rnn_sampling *s) {
    size_t v0 = block * RNN_BLOCK, count = rnn_min(RNN_BLOCK, d->model->V - v0);
    size_t ban = (size_t)s->banned - v0; /* wraps around when it is not of this block, or -1 */
    int32_t bias = first_bias(s, v0);
    bool biased = bias < s->bias_count && (size_t)s->biases[bias].token < v0 + count;
    bool banned = s->banned >= 0 && ban < count;
    d->is_changed[i * d->blocks + block] = biased || banned;
    if (!biased && !banned) return z + v0;
    float *changed = d->changed + i * d->row + v0;
    memcpy(changed, z + v0, count * sizeof *changed);
    for (; bias < s->bias_count && (size_t)s->biases[bias].token < v0 + count; bias++) {
        changed[(size_t)s->biases[bias].token - v0] += s->biases[bias].value;
    }
    if (banned) changed[ban] = -INFINITY;
    return changed;
}

/* A block's largest logit, and the sum of exp((z - max) * beta); 0 when nothing in it can be drawn. */
static double measure(const rnn_kernels *k, const float *z, size_t count, float beta, float *max) {
    *max = k->max(count, z);
    return *max > -INFINITY ? k->exp_sum(count, z, *max, beta, NULL) : 0.0;
}

void rnn_measure_block(rnn_decoder *d, size_t i, const float *z, size_t block, const rnn_sampling *s) {
    const rnn_kernels *k = d->model->kernels;
    size_t v0 = block * RNN_BLOCK, count = rnn_min(RNN_BLOCK, d->model->V - v0), at = i * d->blocks + block;
    const float *drawn = drawn_block(d, i, z, block, s);
    float beta = beta_of(s);
    d->block_sum[at] = measure(k, z + v0, count, 1.0f, d->block_max + at);
    if (drawn == z + v0 && (beta == 1.0f || s->temperature == 0.0f)) {
        d->draw_max[at] = d->block_max[at];
        d->draw_sum[at] = d->block_sum[at];
    } else {
        d->draw_sum[at] = measure(k, drawn, count, beta, d->draw_max + at);
    }
}

/* share (blocks) = exp((max of each block - max) * beta): what the sums of each block count for beside the others. */
static float *shares_of(rnn_decoder *d, size_t i, const float *block_max, float max, float beta) {
    float *share = d->share + i * d->blocks;
    d->model->kernels->exp_sum(d->blocks, block_max, max, beta, share);
    return share;
}

double rnn_log_sum_exp(const rnn_kernels *k, size_t blocks, const float *max, const double *sum, float *share) {
    float most = k->max(blocks, max);
    k->exp_sum(blocks, max, most, 1.0f, share);
    double total = 0.0;
    for (size_t b = 0; b < blocks; b++) total += sum[b] * share[b];
    return most + log(total);
}

static double log_sum_exp(rnn_decoder *d, size_t i) {
    size_t at = i * d->blocks;
    return rnn_log_sum_exp(d->model->kernels, d->blocks, d->block_max + at, d->block_sum + at, d->share + at);
}

static size_t greedy(const rnn_decoder *d, size_t i, const float *z, float max) {
    size_t block = first_equal(d->draw_max + i * d->blocks, d->blocks, max), v0 = block * RNN_BLOCK;
    return v0 + first_equal(rnn_drawn_block(d, i, z, block), rnn_min(RNN_BLOCK, d->model->V - v0), max);
}

/* The first v at which the running sum of exp((z - max) / temperature) exceeds u times their sum, over all tokens or those
 * that the cut keeps. Whole blocks are passed by their sums; one is found, because u * total < total in doubles too. Within
 * it, rounding may leave the running sum short of its target: then it is the last v whose term is not 0. */
static size_t inverse_cdf(const rnn_row *row, double u, const rnn_cut *cut) {
    const rnn_decoder *d = row->d;
    const double *sums = d->draw_sum + row->i * d->blocks;
    const float *share = row->share;
    double target = u * rnn_weight_of(row), sum = 0.0;
    size_t block = 0, found = 0;
    for (; block + 1 < d->blocks && sum + sums[block] * share[block] <= target; block++) {
        sum += sums[block] * share[block];
    }
    size_t v0 = block * RNN_BLOCK, count = rnn_min(RNN_BLOCK, d->model->V - v0);
    const float *drawn = rnn_drawn_block(d, row->i, row->z, block);
    float terms[RNN_BLOCK], shift = cut ? row->max : d->draw_max[row->i * d->blocks + block];
    d->model->kernels->exp_sum(count, drawn, shift, row->beta, terms);
    for (size_t v = 0; v < count; v++) {
        if (!(terms[v] > 0.0f) || (cut && !rnn_keeps(*cut, drawn[v], v0 + v))) continue;
        found = v0 + v;
        sum += (double)terms[v] * share[block];
        if (sum > target) break;
    }
    return found;
}

/* A number in [0,1) that looks unrelated to u: SplitMix64 of floor(u * 2^53) (Steele, Lea & Flood 2014). */
static double second_number(double u) {
    uint64_t x = (uint64_t)(u * 0x1p53) + 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

/* A draw from all tokens is in the nucleus at least top_p of the time, and seeing that is cheaper than finding where the
 * nucleus ends. The others are drawn again, from the nucleus, so each of its tokens gains in proportion. */
static size_t draw_weighted(const rnn_row *row, const rnn_sampling *s) {
    double all = rnn_weight_of(row);
    size_t V = row->d->model->V, number = s->top_k > 0 ? rnn_min((size_t)s->top_k, V) : V;
    rnn_cut by_number;
    const rnn_cut *within = NULL;
    if (number < V) {
        by_number = rnn_keep_number(row, number);
        within = &by_number;
    }
    size_t token = inverse_cdf(row, s->u, within);
    if (s->top_p == 1.0f || rnn_share_has(row, s->top_p, token)) return token;
    rnn_cut by_share = rnn_keep_share(row, s->top_p, all, number, within);
    return inverse_cdf(row, second_number(s->u), &by_share);
}

int32_t rnn_draw(rnn_decoder *d, size_t i, const float *z, const rnn_sampling *s, float *logp) {
    const float *draw_max = d->draw_max + i * d->blocks;
    rnn_row row = {.d = d, .i = i, .z = z, .max = d->model->kernels->max(d->blocks, draw_max), .beta = beta_of(s)};
    double lse = logp ? log_sum_exp(d, i) : 0.0;
    size_t token;
    if (s->temperature == 0.0f) {
        token = greedy(d, i, z, row.max);
    } else {
        row.share = shares_of(d, i, draw_max, row.max, row.beta);
        token = draw_weighted(&row, s);
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
    RNN_OMP(parallel num_threads(1)) /* in which rnn_thread() is 0, also where the caller has several threads */
    *token = rnn_draw(decoder, 0, logits, sampling, logp);
    return RNN_OK;
}
