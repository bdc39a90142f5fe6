/* score.c -- how probable a text is.
 *
 * Here the next token is known, so a tile of tokens goes through the hidden layer first and then through the output layer
 * together. Multiply-adds then limit the speed, not memory: each block of Why is read once for the whole tile, and packed
 * if the tile is long enough to pay for it. Of a block's logits, only the largest, the sum of the exponentials, and that of
 * the token that follows are kept. Every row is summed in the same order as in a step, so a log-probability has the same
 * bits however a text is cut into calls.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    MOST_ROWS = 512,    /* of a tile */
    PACKED_ROWS = 33,   /* with fewer rows, packing a block takes longer than it saves */
    IN_CACHE = 1 << 20, /* bytes: a Why up to this size stays in the L2 cache, and packing it gains nothing */
};

void rnn_lay_out_score(rnn_decoder *d, rnn_arena *arena, size_t size) {
    rnn_score_work *s = &d->score;
    const rnn_model *m = d->model;
    size_t threads = (size_t)d->threads, f = sizeof(float), begin = arena->used;
    bool rounds = m->precision == RNN_PRECISION_BF16,
         packs = m->precision == RNN_PRECISION_F32 && m->V * m->H * f > IN_CACHE;
    float *why = rnn_arena_take(arena, packs ? threads * m->H * RNN_BLOCK : 0, f);
    s->why = packs ? why : NULL;
    s->logits = rnn_arena_take(arena, threads * RNN_SCORE_ROWS * RNN_BLOCK, f);
    s->share = rnn_arena_take(arena, threads * d->blocks, f);
    size_t used = arena->used - begin + 5 * RNN_ALIGN,
           row = ((rounds ? 2 : 1) * m->stride + d->blocks + 1) * f + d->blocks * sizeof(double);
    s->rows = rnn_max(RNN_SCORE_ROWS, rnn_min(MOST_ROWS, size > used ? (size - used) / row / RNN_BAND * RNN_BAND : 0));
    s->hidden = rnn_arena_take(arena, s->rows * m->stride, f);
    s->rounded = rnn_arena_take(arena, rounds ? s->rows * m->stride : 0, f);
    s->max = rnn_arena_take(arena, s->rows * d->blocks, f);
    s->sum = rnn_arena_take(arena, s->rows * d->blocks, sizeof(double));
    s->target = rnn_arena_take(arena, s->rows, f);
}

/* Block b of a tile of n tokens, of which `following` are the next ones. */
static void measure_block(rnn_decoder *d, size_t n, rnn_operand operand, const int32_t *following, size_t b) {
    const rnn_model *m = d->model;
    const rnn_kernels *k = m->kernels;
    rnn_score_work *s = &d->score;
    size_t v0 = b * RNN_BLOCK, cols = rnn_min(RNN_BLOCK, m->V - v0);
    float *logits = s->logits + rnn_thread() * RNN_SCORE_ROWS * RNN_BLOCK;
    float *why = s->why && n >= PACKED_ROWS ? s->why + rnn_thread() * m->H * RNN_BLOCK : NULL;
    if (why) k->pack(m->why + v0, m->V, m->H, cols, 0.0f, why);
    for (size_t n0 = 0; n0 < n; n0 += RNN_SCORE_ROWS) {
        size_t rows = rnn_min(RNN_SCORE_ROWS, n - n0);
        if (why) {
            k->multiply(rows, m->H, rnn_ceil_div(cols, k->panel), operand.rows + n0 * m->stride, m->stride, why, logits,
                        RNN_BLOCK, k->panel, false);
        } else {
            rnn_project_block(m, n0, rows, operand, b, logits, RNN_BLOCK);
        }
        for (size_t i = 0; i < rows; i++) {
            size_t at = (n0 + i) * d->blocks + b, target = (size_t)following[n0 + i] - v0; /* wraps around below v0 */
            float *z = logits + i * RNN_BLOCK;
            if (why) k->finish(cols, NULL, m->by + v0, z);
            s->max[at] = k->max(cols, z);
            s->sum[at] = k->exp_sum(cols, z, s->max[at], 1.0f, NULL);
            if (target < cols) s->target[n0 + i] = z[target];
        }
    }
}

/* logp (n) of the tokens after a tile of n. */
static void score_tile(rnn_decoder *d, size_t n, const int32_t *following, float *logp) {
    const rnn_score_work *s = &d->score;
    size_t blocks = d->blocks;
    rnn_operand operand = rnn_operand_of(d->model, n, s->hidden, s->rounded);
    RNN_OMP(parallel num_threads(d->threads)) {
        RNN_OMP(for schedule(dynamic))
        for (size_t b = 0; b < blocks; b++) measure_block(d, n, operand, following, b);
        RNN_OMP(for schedule(static))
        for (size_t i = 0; i < n; i++) {
            double lse = rnn_log_sum_exp(d->model->kernels, blocks, s->max + i * blocks, s->sum + i * blocks,
                                         s->share + rnn_thread() * blocks);
            logp[i] = (float)(s->target[i] - lse);
        }
    }
}

int32_t rnn_score(rnn_decoder *decoder, const int32_t *tokens, int32_t count, float *state, float *logp) {
    if (!decoder || !tokens || !state || !logp) return RNN_E_NULL;
    if (count < 2 || count > RNN_MAX_TOKENS) return RNN_E_DIM;
    rnn_decoder *d = decoder;
    const rnn_model *m = d->model;
    int32_t status = rnn_check_tokens(m, tokens, (size_t)count);
    if (status) return status;
    float *hidden = d->score.hidden;
    size_t N = (size_t)count - 1;
    if (!rnn_load_states(m, 1, state, d->state)) return RNN_E_NONFINITE;
    for (size_t n0 = 0; n0 < N; n0 += d->score.rows) {
        size_t n = rnn_min(d->score.rows, N - n0);
        for (size_t i = 0; i < n; i++) {
            rnn_advance(m, 1, tokens + n0 + i, i ? hidden + (i - 1) * m->stride : d->state, hidden + i * m->stride);
        }
        if (n0 == 0 && !rnn_rows_are_finite(m, n, hidden)) return RNN_E_NONFINITE;
        score_tile(d, n, tokens + n0 + 1, logp + n0);
        memcpy(d->state, hidden + (n - 1) * m->stride, m->stride * sizeof(float));
    }
    rnn_store_states(m, 1, d->state, state);
    return RNN_OK;
}
