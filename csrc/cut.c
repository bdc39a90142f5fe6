/* cut.c -- which tokens top_k and top_p keep.
 *
 * Either keeps the first tokens in the order of falling logits, of equal ones the lowest ids first: until their number
 * reaches top_k, or their weight its share of the whole. Nothing is sorted. The weights are what a draw has of each token
 * anyway, relative to the largest of its block. Two passes or so over them sum up what lies above some levels, and tell at
 * which weight about the target is reached; a third sums what is well above that, and picks out the few tokens that are
 * close to it. Only these are looked at one by one.
 *
 * Weights are rounded, so they may disagree with the logits about the order of tokens that are all but equal. Hence the
 * third pass keeps a margin, and among the tokens close by, the logits decide.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

static const double MARGIN = 1e-5;     /* of a weight; its own rounding is 50 times smaller */
static const double LEAST_LOG = -87.3; /* of a weight that is not 0 */

/* A search for the last token of row i that is kept. Weights are relative to that of the largest token of the row; the size
 * of a set of tokens is their number or their weight. */
typedef struct search {
    rnn_decoder *d;
    size_t i;
    const float *z;     /* (V) */
    const float *share; /* (blocks) */
    bool counts;        /* whether sizes are numbers of tokens */
    double target;      /* the size that is to be reached */
    double total;       /* of all tokens that may be kept */
} search;

/* A logarithm of weight, and the size of what weighs at least as much. */
typedef struct point {
    double log_weight, size;
} point;

/* The float that is number `order` in the order of all floats, -0 and 0 apart. */
static float float_at(int64_t order) {
    int32_t bits = (int32_t)(order < 0 ? order ^ INT32_MAX : order);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int32_t order_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

static const float *weights_of(const search *s) { return s->d->weights + s->i * s->d->row; }

/* What the numbers of tokens, or the weights that are still missing, are about exponential in: the logarithm of weight. */
static double linear(const search *s, double size) {
    return s->counts ? log(size) : log(s->total - size > 1e-9 * s->total ? s->total - size : 1e-9 * s->total);
}

/* About where between two points the target is reached. */
static double interpolate(const search *s, point high, point low) {
    double from = linear(s, high.size), part = (linear(s, s->target) - from) / (linear(s, low.size) - from);
    part = part > 0.0 ? part < 1.0 ? part : 1.0 : 0.0; /* a NaN is 0 */
    return high.log_weight + (low.log_weight - high.log_weight) * part;
}

/* Moves the points, of which `high` falls short of the target and `low` does not, to two of the three log weights that lie
 * `step` apart around `middle`. */
static void enclose(const search *s, double middle, double step, point *high, point *low) {
    float levels[RNN_LEVELS];
    double sizes[RNN_LEVELS];
    for (size_t j = 0; j < RNN_LEVELS; j++) levels[j] = (float)exp(middle + step * (1.0 - (double)j));
    const float *weights = weights_of(s);
    s->d->model->kernels->tally(s->d->model->V, weights, s->counts ? NULL : weights, s->share, levels, sizes);
    for (size_t j = 0; j < RNN_LEVELS; j++) {
        point here = {middle + step * (1.0 - (double)j), sizes[j]};
        if (here.size >= s->target) {
            if (here.log_weight > low->log_weight) *low = here;
            return;
        }
        if (here.log_weight < high->log_weight && here.size > 0.0) *high = here;
    }
}

/* The largest logit at which the tokens found, and those above them, reach the target. */
static float least_logit(const search *s, size_t found, double above) {
    const rnn_decoder *d = s->d;
    size_t start = rnn_thread() * d->row;
    const float *logits = d->found_logits + start, *values = s->counts ? NULL : d->found_weights + start;
    int64_t low = INT32_MAX, high = INT32_MIN;
    for (size_t j = 0; j < found; j++) {
        int32_t here = order_of(logits[j]);
        low = here < low ? here : low;
        high = here > high ? here : high;
    }
    while (low < high) {
        int64_t middle[RNN_LEVELS];
        float levels[RNN_LEVELS];
        double sizes[RNN_LEVELS];
        for (size_t j = 0; j < RNN_LEVELS; j++) {
            middle[j] = high - (high - low) * (int64_t)j / (RNN_LEVELS + 1);
            levels[j] = float_at(middle[j]);
        }
        d->model->kernels->tally(found, logits, values, NULL, levels, sizes);
        size_t j = 0;
        while (j < RNN_LEVELS && above + sizes[j] < s->target) j++;
        if (j > 0) high = middle[j - 1] - 1;
        if (j < RNN_LEVELS) low = middle[j];
    }
    return float_at(low);
}

/* Sums up what weighs at least `high` into draw_sum, and looks at the tokens down to `low` one by one. Whether the last one
 * that is kept is safely among these; everything is kept where even all tokens fall short of the target. */
static bool settle(const search *s, double low, double high, rnn_cut *cut) {
    const rnn_decoder *d = s->d;
    size_t start = rnn_thread() * d->row, number;
    const float *weights = weights_of(s);
    int32_t *tokens = d->found_tokens + start;
    float *logits = d->found_logits + start, *found_weights = d->found_weights + start;
    double *sums = d->draw_sum + s->i * d->blocks, above = 0.0, last_weight = 0.0;
    size_t found =
        d->model->kernels->part(d->model->V, weights, s->share, (float)low, (float)high, sums, &number, tokens);
    for (size_t b = 0; b < d->blocks; b++) above += sums[b] * s->share[b];
    if (s->counts) above = (double)number;
    if (above >= s->target || found == 0) return false;
    for (size_t j = 0; j < found; j++) {
        size_t token = (size_t)tokens[j], b = token / RNN_BLOCK;
        logits[j] = rnn_drawn_block(d, s->i, s->z, b)[token - b * RNN_BLOCK];
        found_weights[j] = weights[token] * s->share[b];
    }
    *cut = (rnn_cut){.least = least_logit(s, found, above), .last = -1};
    double reached = above;
    for (size_t j = 0; j < found; j++) { /* without branches, which no processor could foresee */
        reached += logits[j] > cut->least ? (s->counts ? 1.0 : (double)found_weights[j]) : 0.0;
    }
    for (size_t j = 0; j < found && reached < s->target; j++) {
        if (logits[j] != cut->least) continue;
        cut->last = tokens[j];
        last_weight = found_weights[j];
        reached += s->counts ? 1.0 : last_weight;
    }
    bool reaches = reached >= s->target && last_weight * (1.0 - MARGIN) >= low;
    if (last_weight * (1.0 + MARGIN) > high || (low > 0.0 && !reaches)) return false;
    for (size_t j = 0; j < found;) {
        size_t b = (size_t)tokens[j] / RNN_BLOCK;
        double sum = 0.0;
        for (; j < found && (size_t)tokens[j] < (b + 1) * RNN_BLOCK; j++) {
            sum += rnn_keeps(*cut, logits[j], (size_t)tokens[j]) ? weights[tokens[j]] : 0.0f;
        }
        sums[b] += sum;
    }
    return true;
}

static double whole(const search *s) {
    double total = 0.0;
    for (size_t b = 0; b < s->d->blocks; b++) total += s->d->draw_sum[s->i * s->d->blocks + b] * s->share[b];
    return total;
}

/* Looks at the tokens around the log weight at which the target is reached: at those between the points where they are few
 * or that is not yet known well, otherwise at the nearest. */
static bool settle_between(const search *s, point high, point low, bool all, rnn_cut *cut) {
    double from = high.log_weight, to = low.log_weight;
    if (!all) {
        double guess = interpolate(s, high, low), margin = 0.05 * (from - to);
        from = guess + margin < from ? guess + margin : from;
        to = guess - margin > to ? guess - margin : to;
    }
    return settle(s, exp(to) * (1.0 - 2.0 * MARGIN), exp(from) * (1.0 + 2.0 * MARGIN), cut);
}

/* The cut at which the target is reached; draw_sum is then that of what is kept. */
static rnn_cut find(const search *s) {
    enum { PASSES = 8, FEW = 64 };
    const double narrow = 0.6; /* over which interpolation errs by about a hundredth */
    double V = (double)s->d->model->V, missing = s->total - s->target;
    point high = {0.0, 1.0}, low = {LEAST_LOG, V}; /* the largest token, at least, weighs 1 */
    rnn_cut cut;
    if (!s->counts) {
        /* Tokens that weigh less than this hold, all together, less than half of what may be missing. */
        double least = log(0.5 * missing / V);
        low = (point){least > LEAST_LOG ? least : LEAST_LOG, s->total - 0.25 * missing};
    }
    if (s->target <= high.size) {
        low = high;
    } else {
        double tokens = V; /* between the points, at most */
        for (int pass = 0; pass < PASSES; pass++) {
            double width = high.log_weight - low.log_weight;
            tokens = (low.size - high.size) / (s->counts ? 1.0 : exp(low.log_weight));
            if (width < narrow || tokens < FEW) break;
            double middle = pass == 0 ? -0.5 * width : interpolate(s, high, low);
            enclose(s, middle, (pass == 0 ? 0.25 : 0.1) * width, &high, &low);
        }
        if (tokens >= FEW && settle_between(s, high, low, false, &cut)) return cut;
    }
    if (settle_between(s, high, low, true, &cut)) return cut;
    settle(s, 0.0, INFINITY, &cut);
    return cut;
}

static bool is_looser(rnn_cut a, rnn_cut b) { return a.least < b.least || (a.least == b.least && a.last > b.last); }

rnn_cut rnn_cut_row(rnn_decoder *d, size_t i, const float *z, const float *share, const rnn_sampling *sampling) {
    search by_number = {.d = d, .i = i, .z = z, .share = share, .counts = true, .target = (double)sampling->top_k};
    search by_weight = {.d = d, .i = i, .z = z, .share = share, .counts = false};
    rnn_cut cut = {.least = -INFINITY, .last = -1};
    bool numbered = sampling->top_k > 0 && (size_t)sampling->top_k < d->model->V;
    if (numbered) cut = find(&by_number);
    if (sampling->top_p == 1.0f) return cut;
    by_weight.total = whole(&by_weight); /* of what top_k has kept */
    by_weight.target = (double)sampling->top_p * by_weight.total;
    rnn_cut weighed = find(&by_weight);
    return numbered && is_looser(weighed, cut) ? find(&by_number) : weighed; /* looser by rounding */
}
