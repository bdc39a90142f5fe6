/* cut.c -- which tokens top_k and top_p keep.
 *
 * Both keep the first tokens in order of falling logits, and of equal ones those with the lowest ids: top_k keeps so many,
 * and top_p as many as it takes for their weights exp((logit - max) / temperature) to reach its share of the whole.
 * Nothing is sorted, and the row's weights are not stored. The cut is estimated from a sample of the row. One pass over the
 * row then sums the weights well above the estimate and collects the few tokens close to it, among which the cut is found
 * exactly (as in SELECT by Floyd & Rivest 1975). If it is not among them, the pass is repeated further up or down: four
 * passes in all, then one that collects every token.
 *
 * Most draws with top_p need no cut: rnn_share_has sums what is more probable than one token, block by block, until the
 * answer is certain.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    LINE = 16,         /* neighbouring tokens of a sample: a cache line */
    STEP = 18,         /* a sample has one line in STEP, from each block alike */
    ESTIMATES = 5,     /* passes over the sample, at most */
    INDIVIDUALS = 512, /* up to so many tokens are looked at one by one, without a sample */
};

static const double LEAST_LOG = -87.0; /* of a weight that is not 0 */

/* A search for the last token of a row that is kept. The size of a set of tokens is their number or their weight. */
typedef struct search {
    rnn_row row;
    bool counts;   /* whether sizes are numbers of tokens */
    double target; /* the size that is to be reached */
    double all;    /* of all tokens, whether they may be kept or not */
} search;

/* A logit, the size of what is kept down to it, and its depth: about linear in the logit, and rising where that falls. */
typedef struct point {
    double z, size, depth;
} point;

typedef struct curve {
    point points[2 + ESTIMATES * RNN_LEVELS]; /* in order of falling z */
    size_t count;
} curve;

static rnn_found own_found(const rnn_decoder *d) {
    size_t start = rnn_thread() * d->found_size;
    return (rnn_found){d->found.tokens + start, d->found.logits + start, d->found.weights + start};
}

/* ---- The estimate -------------------------------------------------------------------------------------------------- */

/* For a number, its logarithm; for a weight, minus the logarithm of the weight that is not kept. */
static double depth_of(const search *s, double size) {
    const double least = 1e-30; /* the sample may have none, or more than there is */
    return s->counts ? logf((float)fmax(size, least)) : -logf((float)fmax(s->all - size, least));
}

static void add_point(const search *s, curve *c, double z, double size) {
    size_t j = c->count++;
    for (; j > 0 && c->points[j - 1].z < z; j--) c->points[j] = c->points[j - 1];
    c->points[j] = (point){z, size, depth_of(s, size)};
}

/* The first point, after the first of all, down to which `size` is kept, or the last. */
static const point *point_below(const curve *c, double size) {
    size_t j = 1;
    while (j + 1 < c->count && c->points[j].size < size) j++;
    return c->points + j;
}

/* The logit down to which `size` is kept: infinity where not even the largest is. */
static float level_at(const search *s, const curve *c, double size) {
    const point *below = point_below(c, size), *above = below - 1;
    if (size <= above->size) return INFINITY; /* it is then the first */
    if (size >= below->size || !(below->depth > above->depth)) return (float)below->z;
    return (float)(above->z +
                   (below->z - above->z) * (depth_of(s, size) - above->depth) / (below->depth - above->depth));
}

/* Whether the curve has a point within `distance` of `size`. */
static bool is_known(const curve *c, double size, double distance) {
    const point *below = point_below(c, size), *above = below - 1;
    return size - above->size < distance || below->size - size < distance;
}

/* Copies the sample of the row. Every block has its part, for ids are often in order of frequency. */
static size_t take_sample(const search *s, float *sample) {
    const rnn_decoder *d = s->row.d;
    size_t count = 0, turn = 0;
    for (size_t b = 0; b < d->blocks; b++) {
        const float *z = rnn_drawn_block(d, s->row.i, s->row.z, b);
        size_t lines = rnn_min(RNN_BLOCK, d->model->V - b * RNN_BLOCK) / LINE;
        for (size_t line = 0; line < lines; line += STEP, turn++) {
            size_t own = line + turn * 7 % STEP; /* so that no period of the ids is the sample's */
            if (own >= lines) continue;
            memcpy(sample + count, z + own * LINE, LINE * sizeof *sample);
            count += LINE;
        }
    }
    return count;
}

/* How far the size down to the logit z may be from the sample's: some standard deviations. Of a weight, the variance is at
 * most ratio times the sum of the squares of the weights below z, so at most ratio * weight * missing. */
static double margin_at(const search *s, double ratio, double z) {
    if (s->counts) return 3.0 * sqrt(ratio * s->target);
    double weight = expf((float)fmax((z - s->row.max) * s->row.beta, LEAST_LOG)), missing = s->all - s->target;
    return fmin(1.25 * sqrt(ratio * weight * missing), 0.5 * missing);
}

/* Estimates down to which logits sizes are kept, as a curve: best near the two sizes `around` the target, between which it
 * almost always is. */
static void estimate(const search *s, curve *c, double around[2]) {
    const rnn_kernels *k = s->row.d->model->kernels;
    rnn_found room = own_found(s->row.d); /* nothing is found yet */
    float *keys = room.logits, *weights = room.weights;
    size_t count = take_sample(s, keys);
    double V = (double)s->row.d->model->V, ratio = V / (double)count, missing = s->all - s->target;
    if (!s->counts) k->exp_sum(count, keys, s->row.max, s->row.beta, weights);
    for (size_t j = 0; j < count; j++) keys[j] = -keys[j]; /* to sum what is not kept: the largest weights vary most */
    /* Of the weight that is missing, less than half is below the lowest level. */
    double lowest = s->counts ? -(double)k->max(count, keys) : s->row.max + log(0.5 * missing / V) / s->row.beta;
    lowest = fmax(fmax(lowest, s->row.max + LEAST_LOG / s->row.beta), -FLT_MAX);
    c->count = 0;
    add_point(s, c, s->row.max, s->counts ? 0.5 : 0.0);
    add_point(s, c, lowest, s->counts ? V : s->all - 0.25 * missing);
    around[0] = around[1] = s->target;
    for (int pass = 0; pass < ESTIMATES; pass++) {
        const point *below = point_below(c, s->target);
        double step = 0.15 * (below[-1].z - below->z), middle = level_at(s, c, s->target), sums[RNN_LEVELS];
        double levels[RNN_LEVELS] = {fmax(level_at(s, c, around[0]), middle + step), middle,
                                     fmin(level_at(s, c, around[1]), middle - step)};
        float compared[RNN_LEVELS];
        for (int j = 0; j < RNN_LEVELS; j++) {
            if (pass == 0) levels[j] = s->row.max + (lowest - s->row.max) * (j + 1) / (RNN_LEVELS + 1);
            compared[j] = -(float)levels[j];
        }
        k->tally(count, keys, s->counts ? NULL : weights, compared, sums);
        for (int j = 0; j < RNN_LEVELS; j++) {
            if (levels[j] >= s->row.max || levels[j] <= lowest) continue;
            add_point(s, c, levels[j], (s->counts ? V : s->all) - ratio * sums[j]);
        }
        double high = margin_at(s, ratio, level_at(s, c, s->target));
        double low = margin_at(s, ratio, level_at(s, c, around[1]));
        around[0] = s->target - high;
        around[1] = s->target + low;
        if (is_known(c, around[0], 0.5 * high) && is_known(c, around[1], 0.5 * low)) break;
    }
}

/* ---- The cut itself ------------------------------------------------------------------------------------------------- */

/* order_of numbers all floats in order, with -0 just before 0; float_at is its inverse. */
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

/* The largest logit in from..to down to which the tokens found, with `above` for those above them, reach the target. */
static float least_logit(const search *s, rnn_found found, size_t count, double above, float from, float to) {
    int64_t low = order_of(from), high = order_of(to);
    while (low < high) {
        int64_t middle[RNN_LEVELS];
        float levels[RNN_LEVELS];
        double sizes[RNN_LEVELS];
        for (size_t j = 0; j < RNN_LEVELS; j++) {
            middle[j] = high - (high - low) * (int64_t)j / (RNN_LEVELS + 1);
            levels[j] = float_at(middle[j]);
        }
        s->row.d->model->kernels->tally(count, found.logits, s->counts ? NULL : found.weights, levels, sizes);
        size_t j = 0;
        while (j < RNN_LEVELS && above + sizes[j] < s->target) j++;
        if (j > 0) high = middle[j - 1] - 1;
        if (j < RNN_LEVELS) low = middle[j];
    }
    return float_at(low);
}

/* The last of the tokens found that have the logit `least` and are kept: by their ids, until the target is reached. */
static int32_t last_token(const search *s, rnn_found found, size_t count, double above, float least) {
    const float level[RNN_LEVELS] = {INFINITY, nextafterf(least, INFINITY), INFINITY};
    double sizes[RNN_LEVELS], reached;
    s->row.d->model->kernels->tally(count, found.logits, s->counts ? NULL : found.weights, level, sizes);
    reached = above + sizes[1];
    int32_t last = -1;
    for (size_t j = 0; j < count && reached < s->target; j++) {
        if (found.logits[j] != least) continue;
        last = found.tokens[j];
        reached += s->counts ? 1.0 : (double)found.weights[j];
    }
    return last;
}

/* Sums what is at least `high` into draw_sum, and looks at the tokens down to `low` one by one. Returns 0 if the last one
 * that is kept is among these; -1 if it is above them, 1 if it is below, and all of them are kept. */
static int settle(const search *s, float low, float high, rnn_cut *cut) {
    const rnn_decoder *d = s->row.d;
    const rnn_kernels *k = d->model->kernels;
    const float *draw_max = d->draw_max + s->row.i * d->blocks;
    rnn_split split = {.low = low, .high = high, .max = s->row.max, .beta = s->row.beta};
    rnn_found found = own_found(d);
    double *sums = d->draw_sum + s->row.i * d->blocks, above = 0.0;
    size_t count = 0, number = 0;
    for (size_t b = 0; b < d->blocks; b++) {
        size_t v0 = b * RNN_BLOCK, size = rnn_min(RNN_BLOCK, d->model->V - v0);
        sums[b] = 0.0;
        if (draw_max[b] < low) continue;
        count = k->part(size, rnn_drawn_block(d, s->row.i, s->row.z, b), v0, &split, sums + b,
                        s->counts ? &number : NULL, found, count);
        above += sums[b];
    }
    if (s->counts) above = (double)number;
    if (above >= s->target) return -1;
    double weight = k->exp_sum(count, found.logits, s->row.max, s->row.beta, found.weights);
    bool reaches = above + (s->counts ? (double)count : weight) >= s->target;
    *cut = (rnn_cut){.least = -INFINITY, .last = -1};
    if (reaches) {
        cut->least = least_logit(s, found, count, above, low, fminf(high, s->row.max));
        cut->last = last_token(s, found, count, above, cut->least);
    }
    for (size_t j = 0; j < count;) {
        size_t b = (size_t)found.tokens[j] / RNN_BLOCK, end = (b + 1) * RNN_BLOCK;
        double sum = 0.0;
        for (; j < count && (size_t)found.tokens[j] < end; j++) { /* no branch: none could be foreseen */
            sum += (float)rnn_keeps(*cut, found.logits[j], (size_t)found.tokens[j]) * found.weights[j];
        }
        sums[b] += sum;
    }
    return reaches ? 0 : 1;
}

/* The cut at which the target is reached; draw_sum is then of what is kept. */
static rnn_cut find(const search *s) {
    rnn_cut cut;
    if (s->target <= 1.0) { /* what the largest logit counts for, be it a number or a weight */
        settle(s, s->row.max, INFINITY, &cut);
        return cut;
    }
    if (s->row.d->model->V > INDIVIDUALS) {
        curve c;
        double around[2];
        estimate(s, &c, around);
        float low = level_at(s, &c, around[1]), high = level_at(s, &c, around[0]);
        /* Sums are rounded differently from pass to pass, and could send it up and down forever: hence a limit. */
        for (double further = 4.0; further < 1000.0; further *= 4.0) {
            int side = settle(s, low, high, &cut);
            if (side == 0 || (side > 0 && low == -FLT_MAX)) return cut;
            if (side < 0) {
                low = high;
                high = level_at(s, &c, s->target - further * (s->target - around[0]));
                if (!(high > low)) high = INFINITY;
            } else {
                high = low;
                low = level_at(s, &c, s->target + further * (around[1] - s->target));
                if (!(low < high)) low = -FLT_MAX;
            }
        }
    }
    settle(s, -FLT_MAX, INFINITY, &cut); /* looks at every token */
    return cut;
}

double rnn_weight_of(const rnn_row *row) {
    const double *sums = row->d->draw_sum + row->i * row->d->blocks;
    double total = 0.0;
    for (size_t b = 0; b < row->d->blocks; b++) total += sums[b] * row->share[b];
    return total;
}

static rnn_cut find_in(const rnn_row *row, const search *s) {
    rnn_cut cut = find(s);
    for (size_t b = 0; b < row->d->blocks; b++) row->share[b] = 1.0f;
    return cut;
}

rnn_cut rnn_keep_number(const rnn_row *row, size_t number) {
    search s = {.row = *row, .counts = true, .target = (double)number, .all = (double)row->d->model->V};
    return find_in(row, &s);
}

static bool is_looser(rnn_cut a, rnn_cut b) { return a.least < b.least || (a.least == b.least && a.last > b.last); }

rnn_cut rnn_keep_share(const rnn_row *row, float top_p, double all, size_t number, const rnn_cut *within) {
    search s = {.row = *row, .target = (double)top_p * rnn_weight_of(row), .all = all};
    if (!within) return find_in(row, &s);
    rnn_cut cut;
    if (number > INDIVIDUALS || settle(&s, fmaxf(within->least, -FLT_MAX), INFINITY, &cut) != 0) cut = find(&s);
    return is_looser(cut, *within) ? rnn_keep_number(row, number) : cut; /* looser by rounding */
}

/* ---- One token ------------------------------------------------------------------------------------------------------ */

/* The weight of tokens v to v + count, all of one block, whose logit is at least `level`. */
static double weight_from(const rnn_row *row, size_t v, size_t count, float level) {
    const rnn_decoder *d = row->d;
    const float *z = rnn_drawn_block(d, row->i, row->z, v / RNN_BLOCK) + v % RNN_BLOCK;
    rnn_split split = {.low = level, .high = level, .max = row->max, .beta = row->beta};
    double sum;
    d->model->kernels->part(count, z, v, &split, &sum, NULL, own_found(d), 0); /* finds none between the two */
    return sum;
}

/* The token belongs to it if those before it, of larger logits or equal ones and lower ids, weigh less than the share. Blocks
 * are summed until what the others weigh cannot change the answer. */
bool rnn_share_has(const rnn_row *row, float top_p, size_t token) {
    const rnn_decoder *d = row->d;
    const double *sums = d->draw_sum + row->i * d->blocks;
    const float *draw_max = d->draw_max + row->i * d->blocks;
    double rest = rnn_weight_of(row), target = (double)top_p * rest, before = 0.0;
    size_t own = token / RNN_BLOCK;
    float z = rnn_drawn_block(d, row->i, row->z, own)[token % RNN_BLOCK], above = nextafterf(z, INFINITY);
    for (size_t b = 0; b < d->blocks && before < target && before + rest >= target; b++) {
        size_t v = b * RNN_BLOCK, end = rnn_min(v + RNN_BLOCK, d->model->V);
        rest -= sums[b] * row->share[b];
        if (draw_max[b] < z) continue;
        if (b == own) {
            before += weight_from(row, v, token - v, z);
            v = token;
        }
        before += weight_from(row, v, end - v, b < own ? z : above);
    }
    return before < target;
}
