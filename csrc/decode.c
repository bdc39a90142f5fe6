/* decode.c -- prompts and steps.
 *
 * A step reads all of Why for 2HV operations, so memory bounds its speed, and several sequences cost little more than
 * one. The sequences of a call therefore go through Why in groups. The result of a sequence is computed in the same
 * order whatever else is in its group: it is the same to the bit.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- The decoder's memory ------------------------------------------------------------------------------------------ */

static void lay_out_draws(rnn_decoder *d, rnn_arena *arena) {
    size_t f = sizeof(float);
    d->logits = rnn_arena_take(arena, RNN_GROUP * d->row, f);
    d->changed = rnn_arena_take(arena, RNN_GROUP * d->row, f);
    d->share = rnn_arena_take(arena, RNN_GROUP * d->blocks, f);
    d->block_max = rnn_arena_take(arena, RNN_GROUP * d->blocks, f);
    d->draw_max = rnn_arena_take(arena, RNN_GROUP * d->blocks, f);
    d->block_sum = rnn_arena_take(arena, RNN_GROUP * d->blocks, sizeof(double));
    d->draw_sum = rnn_arena_take(arena, RNN_GROUP * d->blocks, sizeof(double));
    d->is_changed = rnn_arena_take(arena, RNN_GROUP * d->blocks, sizeof *d->is_changed);
    size_t found = (size_t)d->threads * d->found_size;
    d->found.tokens = rnn_arena_take(arena, found, sizeof *d->found.tokens);
    d->found.logits = rnn_arena_take(arena, found, f);
    d->found.weights = rnn_arena_take(arena, found, f);
}

static void lay_out(rnn_decoder *d, rnn_arena *arena) {
    const rnn_model *m = d->model;
    size_t states = rnn_max(d->max_sequences, RNN_GROUP); /* rnn_logits takes a group at a time */
    d->state = rnn_arena_take(arena, states * m->stride, sizeof(float));
    d->next = rnn_arena_take(arena, states * m->stride, sizeof(float));
    d->rounded = rnn_arena_take(arena, m->precision == RNN_PRECISION_BF16 ? RNN_GROUP * m->stride : 0, sizeof(float));
    rnn_arena draws = *arena, score = *arena;
    lay_out_draws(d, &draws);
    rnn_lay_out_score(d, &score, draws.used - arena->used);
    arena->used = rnn_max(draws.used, score.used);
    arena->overflow = draws.overflow || score.overflow;
}

int32_t rnn_decoder_create(const rnn_model *model, int32_t max_sequences, int32_t threads, rnn_decoder **decoder) {
    if (!model || !decoder) return RNN_E_NULL;
    if (max_sequences < 1 || max_sequences > RNN_MAX_SEQUENCES) return RNN_E_DIM;
    int32_t status = rnn_check_threads(threads);
    if (status) return status;
    rnn_decoder d = {.model = model, .max_sequences = (size_t)max_sequences, .threads = threads};
    d.blocks = rnn_ceil_div(model->V, RNN_BLOCK);
    d.row = d.blocks * RNN_BLOCK;
    d.found_size = d.row + RNN_ALIGN / sizeof(float);
    rnn_arena arena = {0};
    rnn_arena_take(&arena, 1, sizeof d);
    lay_out(&d, &arena);
    if (arena.overflow) return RNN_E_NOMEM;
    rnn_decoder *made = rnn_aligned_alloc(arena.used, &d.memory);
    if (!made) return RNN_E_NOMEM;
    arena = (rnn_arena){.base = (char *)made};
    rnn_arena_take(&arena, 1, sizeof d);
    lay_out(&d, &arena);
    *made = d;
    *decoder = made;
    return RNN_OK;
}

void rnn_decoder_destroy(rnn_decoder *decoder) {
    if (decoder) free(decoder->memory);
}

/* ---- One step -------------------------------------------------------------------------------------------------------- */

int32_t rnn_check_tokens(const rnn_model *m, const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if ((uint32_t)tokens[i] >= m->V) return RNN_E_TOKEN; /* so is a negative one, once unsigned */
    }
    return RNN_OK;
}

/* to (n, stride) = tanh(input[token] + from Whh); the columns after H stay 0. */
void rnn_advance(const rnn_model *m, size_t n, const int32_t *tokens, const float *from, float *to) {
    const rnn_kernels *k = m->kernels;
    size_t H = m->H, stride = m->stride;
    for (size_t i = 0; i < n; i++) {
        memcpy(to + i * stride, m->input + (size_t)tokens[i] * H, H * sizeof *to);
        memset(to + i * stride + H, 0, (stride - H) * sizeof *to);
    }
    k->multiply(n, H, stride / k->panel, from, stride, m->whh, to, stride, k->panel, true);
    k->tanh(n * stride, to);
}

/* From row to row of a bfloat16 left operand, which lies in memory for rows of floats. */
static size_t left_ld(const rnn_model *m) { return 2 * m->stride; }

rnn_operand rnn_operand_of(const rnn_model *m, size_t n, const float *hidden, float *rounded) {
    if (m->precision != RNN_PRECISION_BF16) return (rnn_operand){.rows = hidden};
    if (!m->bfloat16) {
        memcpy(rounded, hidden, n * m->stride * sizeof *rounded);
        m->kernels->round(n * m->stride, rounded);
        return (rnn_operand){.rows = rounded};
    }
    rnn_bfloat16 *left = (rnn_bfloat16 *)rounded;
    size_t ld = left_ld(m);
    m->bfloat16->round_rows(n, m->H, hidden, m->stride, left, ld);
    for (size_t i = 0; i < n; i++) memset(left + i * ld + m->H, 0, (m->depth - m->H) * sizeof *left);
    return (rnn_operand){.left = left};
}

void rnn_project_block(const rnn_model *m, size_t n0, size_t n, rnn_operand hidden, size_t b, float *z, size_t ld) {
    const rnn_kernels *k = m->kernels;
    size_t v0 = b * RNN_BLOCK, cols = rnn_min(RNN_BLOCK, m->V - v0);
    if (m->bfloat16) {
        m->bfloat16->begin();
        m->bfloat16->multiply(n, rnn_ceil_div(cols, RNN_BAND), m->depth,
                              rnn_left_rows(hidden.left + n0 * left_ld(m), left_ld(m)),
                              m->pairs + v0 / RNN_BAND * m->pairs_panel, m->pairs_panel, z, ld, false);
        m->bfloat16->end();
    } else if (!m->packed) {
        k->rows_times(n, m->H, cols, hidden.rows + n0 * m->stride, m->stride, m->why + v0, m->V, m->by + v0, z, ld);
        return;
    } else {
        for (size_t v = 0; v < cols; v += k->wide) {
            const uint32_t *packed = m->packed + (v0 + v) / k->wide * m->packed_size;
            k->rows_times_packed(n, m->precision, m->H, hidden.rows + n0 * m->stride, m->stride, packed, z + v, ld);
        }
    }
    const float *scale = m->scale ? m->scale + v0 : NULL;
    for (size_t i = 0; i < n; i++) k->finish(cols, scale, m->by + v0, z + i * ld);
}

/* The model is bounded (rnn_model_create), so from finite states all that follows is finite. */
bool rnn_rows_are_finite(const rnn_model *m, size_t n, const float *rows) {
    return isfinite(m->kernels->max_abs(n * m->stride, rows));
}

bool rnn_load_states(const rnn_model *m, size_t n, const float *states, float *rows) {
    for (size_t i = 0; i < n; i++) {
        memcpy(rows + i * m->stride, states + i * m->H, m->H * sizeof *rows);
        memset(rows + i * m->stride + m->H, 0, (m->stride - m->H) * sizeof *rows);
    }
    return rnn_rows_are_finite(m, n, rows);
}

void rnn_store_states(const rnn_model *m, size_t n, const float *rows, float *states) {
    for (size_t i = 0; i < n; i++) memcpy(states + i * m->H, rows + i * m->stride, m->H * sizeof *rows);
}

int32_t rnn_prefill(rnn_decoder *decoder, const int32_t *tokens, int32_t count, float *state) {
    if (!decoder || !state || (!tokens && count > 0)) return RNN_E_NULL;
    if (count < 0 || count > RNN_MAX_TOKENS) return RNN_E_DIM;
    const rnn_model *m = decoder->model;
    int32_t status = rnn_check_tokens(m, tokens, (size_t)count);
    if (status) return status;
    float *from = decoder->state, *to = decoder->next;
    if (!rnn_load_states(m, 1, state, from)) return RNN_E_NONFINITE;
    for (int32_t i = 0; i < count; i++) {
        rnn_advance(m, 1, tokens + i, from, to);
        float *swap = from;
        from = to;
        to = swap;
    }
    if (!rnn_rows_are_finite(m, 1, from)) return RNN_E_NONFINITE;
    rnn_store_states(m, 1, from, state);
    return RNN_OK;
}

/* One group of sequences, from hidden rows to tokens. A thread measures each block of logits while they are in its cache;
 * then a draw looks at what was measured, and at one block. */
static void draw_group(rnn_decoder *d, size_t n, const float *hidden, const rnn_sampling *sampling, int32_t *next,
                       float *logp, float *logits) {
    size_t V = d->model->V;
    rnn_operand operand = rnn_operand_of(d->model, n, hidden, d->rounded);
    RNN_OMP(parallel num_threads(d->threads)) {
        RNN_OMP(for schedule(static))
        for (size_t b = 0; b < d->blocks; b++) {
            rnn_project_block(d->model, 0, n, operand, b, d->logits + b * RNN_BLOCK, d->row);
            for (size_t i = 0; i < n; i++) rnn_measure_block(d, i, d->logits + i * d->row, b, sampling + i);
        }
        RNN_OMP(for schedule(static))
        for (size_t i = 0; i < n; i++) {
            const float *z = d->logits + i * d->row;
            next[i] = rnn_draw(d, i, z, sampling + i, logp ? logp + i : NULL);
            if (logits) memcpy(logits + i * V, z, V * sizeof *z);
        }
    }
}

int32_t rnn_decode(rnn_decoder *decoder, int32_t n, const int32_t *tokens, const rnn_sampling *sampling, float *states,
                   int32_t *next, float *logp, float *logits) {
    if (!decoder || !tokens || !sampling || !states || !next) return RNN_E_NULL;
    rnn_decoder *d = decoder;
    const rnn_model *m = d->model;
    if (n < 1 || (size_t)n > d->max_sequences) return RNN_E_DIM;
    size_t count = (size_t)n;
    for (size_t i = 0; i < count; i++) {
        int32_t status = rnn_check_sampling(m, sampling + i);
        if (status) return status;
    }
    int32_t status = rnn_check_tokens(m, tokens, count);
    if (status) return status;
    if (!rnn_load_states(m, count, states, d->state)) return RNN_E_NONFINITE;
    rnn_advance(m, count, tokens, d->state, d->next);
    if (!rnn_rows_are_finite(m, count, d->next)) return RNN_E_NONFINITE;
    for (size_t i = 0; i < count; i += RNN_GROUP) {
        draw_group(d, rnn_min(RNN_GROUP, count - i), d->next + i * m->stride, sampling + i, next + i,
                   logp ? logp + i : NULL, logits ? logits + i * m->V : NULL);
    }
    rnn_store_states(m, count, d->next, states);
    return RNN_OK;
}

int32_t rnn_logits(rnn_decoder *decoder, int32_t n, const float *states, float *logits) {
    if (!decoder || !states || !logits) return RNN_E_NULL;
    if (n < 1 || n > RNN_MAX_TOKENS) return RNN_E_DIM;
    rnn_decoder *d = decoder;
    const rnn_model *m = d->model;
    float largest = m->kernels->max_abs((size_t)n * m->H, states);
    if (!isfinite(largest)) return RNN_E_NONFINITE;
    if (largest > 1.0f) return RNN_E_ARG; /* logits are known to be finite for what tanh gives */
    for (size_t i0 = 0; i0 < (size_t)n; i0 += RNN_GROUP) {
        size_t group = rnn_min(RNN_GROUP, (size_t)n - i0);
        rnn_load_states(m, group, states + i0 * m->H, d->next);
        rnn_operand operand = rnn_operand_of(m, group, d->next, d->rounded);
        RNN_OMP(parallel for num_threads(d->threads) schedule(static))
        for (size_t b = 0; b < d->blocks; b++)
            rnn_project_block(m, 0, group, operand, b, d->logits + b * RNN_BLOCK, d->row);
        for (size_t i = 0; i < group; i++) {
            memcpy(logits + (i0 + i) * m->V, d->logits + i * d->row, m->V * sizeof *logits);
        }
    }
    return RNN_OK;
}
