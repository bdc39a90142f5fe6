/* workspace.c -- memory: the arena, and the workspace of training. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void *rnn_arena_take(rnn_arena *arena, size_t count, size_t size) {
    size_t limit = SIZE_MAX / 2 - arena->used;
    if (arena->overflow || count > limit / size) {
        arena->overflow = true;
        return NULL;
    }
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += rnn_round_up(count * size, RNN_ALIGN);
    return piece;
}

void *rnn_aligned_alloc(size_t size, void **memory) {
    *memory = calloc(1, size + RNN_ALIGN);
    if (!*memory) return NULL;
    size_t past = (size_t)((uintptr_t)*memory % RNN_ALIGN);
    return (char *)*memory + (RNN_ALIGN - past);
}

/* Tokens whose logits are held at a time. Each tile reads Why and updates its gradient once, so more is better, until the
 * logits of a block and its panels fill the L2 cache: 264 rows of a block are 594 KiB, of 1 MiB on today's servers. From
 * 254,000 words on there are fewer rows, so that all blocks take no more than 256 MiB. */
static size_t tile_rows(size_t tokens, size_t columns) {
    size_t rows = ((size_t)256 << 20) / (columns * sizeof(float));
    return rnn_min(tokens, rnn_max(8, rnn_min(rows, 264)));
}

static void lay_out(rnn_work *w, rnn_arena *arena) {
    size_t tokens = w->max_steps * w->max_batch, threads = (size_t)w->threads, f = sizeof(float);
    /* A loss without gradient holds one block of logits per thread. */
    size_t slots = rnn_max(w->blocks, threads), parts = rnn_ceil_div(w->blocks, w->part_blocks);
    w->hidden = rnn_arena_take(arena, (tokens + w->max_batch) * w->stride, f);
    w->dhidden = rnn_arena_take(arena, tokens * w->stride, f);
    w->dropped = rnn_arena_take(arena, tokens * w->stride, f);
    w->wxh = rnn_arena_take(arena, w->E * w->stride, f);
    w->whh = rnn_arena_take(arena, w->H * w->stride, f);
    w->whh_t = rnn_arena_take(arena, w->H * w->stride, f);
    w->transposed = rnn_arena_take(arena, w->H * w->H, f);
    w->gathered = rnn_arena_take(arena, threads * RNN_GATHER * w->E, f);
    w->why = rnn_arena_take(arena, threads * (w->H + 1) * RNN_BLOCK, f);
    w->logits = rnn_arena_take(arena, slots * w->slot, f);
    w->dhidden_part = rnn_arena_take(arena, parts * w->rows * w->stride, f);
    w->dhidden_own = rnn_arena_take(arena, threads * w->rows * w->stride, f);
    w->part_max = rnn_arena_take(arena, parts * w->rows, f);
    w->part_factor = rnn_arena_take(arena, parts * w->rows, f);
    w->scaled = rnn_arena_take(arena, threads * w->rows * w->stride, f);
    w->block_max = rnn_arena_take(arena, w->blocks * w->rows, f);
    w->block_sum = rnn_arena_take(arena, w->blocks * w->rows, sizeof(double));
    w->factor = rnn_arena_take(arena, w->blocks * w->rows, f);
    w->lse = rnn_arena_take(arena, w->rows, sizeof(double));
    w->target = rnn_arena_take(arena, w->rows, f);
    w->target_why = rnn_arena_take(arena, w->rows * w->stride, f);
    w->block_largest = rnn_arena_take(arena, w->blocks, f);
    w->logp = rnn_arena_take(arena, tokens, sizeof(double));
    size_t sampled = w->sampled ? (w->H + 1) * w->max_columns : 0;
    w->candidates = rnn_arena_take(arena, sampled, f);
    w->dcandidates = rnn_arena_take(arena, sampled, f);
}

int32_t rnn_work_create(const rnn_dims *dims, int32_t max_steps, int32_t max_batch, int32_t max_candidates,
                        int32_t threads, rnn_work **work) {
    if (!dims || !work) return RNN_E_NULL;
    int32_t status = rnn_check_dims(dims);
    if (status) return status;
    if (max_candidates < 0 || max_candidates > dims->vocab) return RNN_E_DIM;
    if (max_steps < 1 || max_batch < 1 || (int64_t)max_steps * max_batch > RNN_MAX_TOKENS) return RNN_E_DIM;
    status = rnn_check_threads(threads);
    if (status) return status;

    rnn_work w = {.kernels = rnn_kernels_choose(), .threads = threads};
    w.V = (size_t)dims->vocab;
    w.E = (size_t)dims->embed;
    w.H = (size_t)dims->hidden;
    w.at = rnn_param_offsets(w.V, w.E, w.H);
    w.max_steps = (size_t)max_steps;
    w.max_batch = (size_t)max_batch;
    w.stride = rnn_round_up(w.H + 1, w.kernels->panel);
    w.sampled = max_candidates > 0;
    w.max_columns = w.sampled ? (size_t)max_candidates : w.V;
    w.blocks = rnn_ceil_div(w.max_columns, RNN_BLOCK);
    w.part_blocks = rnn_max(1, w.blocks / 64);
    w.rows = tile_rows(w.max_steps * w.max_batch, w.blocks * RNN_BLOCK);

    w.slot = w.rows * RNN_BLOCK + RNN_SKEW * (RNN_BLOCK / w.kernels->panel);

    rnn_arena arena = {0};
    rnn_arena_take(&arena, 1, sizeof w);
    lay_out(&w, &arena);
    if (arena.overflow) return RNN_E_NOMEM;
    void *memory;
    rnn_work *made = rnn_aligned_alloc(arena.used, &memory);
    if (!made) return RNN_E_NOMEM;
    w.memory = memory;
    arena = (rnn_arena){.base = (char *)made};
    rnn_arena_take(&arena, 1, sizeof w);
    lay_out(&w, &arena);
    *made = w;
    *work = made;
    return RNN_OK;
}

void rnn_work_destroy(rnn_work *work) {
    if (work) free(work->memory);
}
