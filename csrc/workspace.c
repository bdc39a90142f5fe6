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

/* ---- The workspace of training ------------------------------------------------------------------------------------- */

/* The most bytes of exponentials that are kept; those of the fewest tokens that go together may need more. */
#define KEPT ((size_t)256 << 20)

/* Sets how many tokens have their logits in memory at a time. Each tile reads Why and updates its gradient once, so more is
 * better, until the logits of a block and its panels fill the L2 cache: 264 rows of a block are 594 KiB, of 1 MiB on
 * today's servers. From 254,000 words on there are fewer rows. */
static void size_output(rnn_work *w) {
    w->blocks = rnn_ceil_div(w->max_columns, RNN_BLOCK);
    w->part_blocks = rnn_max(1, w->blocks / 64);
    size_t rows = KEPT / (w->blocks * RNN_BLOCK * sizeof(float));
    w->rows = rnn_min(w->max_steps * w->max_batch, rnn_max(8, rnn_min(rows, 264)));
    w->slot = w->rows * RNN_BLOCK + RNN_SKEW * (RNN_BLOCK / w->kernels->panel);
}

static void lay_out_output(rnn_work *w, rnn_arena *arena) {
    size_t threads = (size_t)w->threads, f = sizeof(float);
    /* A loss without gradient holds one block of logits per thread. */
    size_t slots = rnn_max(w->blocks, threads), parts = rnn_ceil_div(w->blocks, w->part_blocks);
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
    w->rest = rnn_arena_take(arena, w->rows, f);
    w->block_largest = rnn_arena_take(arena, w->blocks, f);
}

/* Blocks whose packed matrices, and a chunk of exponentials, fill the L2 cache; and as many rows as take the memory that
 * float32 takes, at half the bytes. */
static void size_bfloat16(rnn_work *w) {
    rnn_bfloat16_work *bf = &w->bf;
    size_t tokens = rnn_round_up(w->max_steps * w->max_batch, RNN_STRIP_ROWS);
    bf->ld = rnn_round_up(w->H + 1, RNN_TILE_DEPTH) + RNN_BFLOAT16_SKEW;
    bf->ld_inputs = rnn_round_up(w->E, RNN_TILE_DEPTH);
    bf->block = rnn_round_up(w->H <= 400 ? 512 : 256, bf->kernels->columns);
    bf->blocks = rnn_ceil_div(w->max_columns, bf->block);
    bf->part_blocks = rnn_ceil_div(bf->blocks, RNN_PARTS);
    bf->parts = rnn_ceil_div(bf->blocks, bf->part_blocks);
    size_t rows = KEPT / (bf->blocks * bf->block * sizeof(rnn_bfloat16)) / RNN_STRIP_ROWS * RNN_STRIP_ROWS;
    bf->rows = rnn_min(tokens, rnn_max(RNN_STRIP_ROWS, rnn_min(rows, RNN_TILE_TOKENS)));
    bf->pairs_panel = bf->rows * RNN_BAND + 2 * RNN_BFLOAT16_SKEW;
    bf->pairs_size = bf->blocks * (bf->block / RNN_BAND) * bf->pairs_panel;
    bf->why_size = bf->block * rnn_round_up(w->H, RNN_TILE_DEPTH);
    bf->why_t_size = bf->block * rnn_round_up(w->H, RNN_BAND);
    bf->e_size = RNN_CHUNK * (bf->block + RNN_BFLOAT16_SKEW);
    bf->dw_size = rnn_round_up(w->H, RNN_BAND) * RNN_GRADIENT_ROWS;
    bf->slab_size = RNN_SLAB_ROWS * bf->kernels->columns;
}

static void lay_out_bfloat16(rnn_work *w, rnn_arena *arena) {
    rnn_bfloat16_work *bf = &w->bf;
    size_t tokens = w->max_steps * w->max_batch, threads = (size_t)w->threads;
    size_t f = sizeof(float), half = sizeof(rnn_bfloat16);
    size_t deep = rnn_round_up(w->H, RNN_TILE_DEPTH), step = w->max_batch + RNN_BAND * threads;
    bf->hidden = rnn_arena_take(arena, (tokens + w->max_batch + RNN_STRIP_ROWS) * bf->ld, half);
    bf->dropped = rnn_arena_take(arena, (tokens + RNN_STRIP_ROWS) * bf->ld, half);
    bf->inputs = rnn_arena_take(arena, threads * RNN_GATHER * bf->ld_inputs, half);
    bf->wxh = rnn_arena_take(arena, deep * bf->ld_inputs, half);
    bf->whh = rnn_arena_take(arena, deep * deep, half);
    bf->whh_t = rnn_arena_take(arena, deep * deep, half);
    bf->sums = rnn_arena_take(arena, step * w->stride, f);
    bf->after = rnn_arena_take(arena, step * bf->ld, half);
    bf->gradient = rnn_arena_take(arena, rnn_round_up(w->H, RNN_BAND) * rnn_round_up(tokens, RNN_TILE_DEPTH), half);
    bf->rounded = rnn_arena_take(arena, threads * RNN_GATHER * RNN_GRADIENT_ROWS, half);
    bf->right = rnn_arena_take(arena, threads * RNN_GATHER * RNN_GRADIENT_ROWS, half);
    bf->dw = rnn_arena_take(arena, threads * bf->dw_size, f);

    bf->pairs = rnn_arena_take(arena, bf->pairs_size, half);
    bf->dhidden = rnn_arena_take(arena, bf->parts * bf->rows * rnn_round_up(w->H, RNN_BAND), f);
    bf->shift = rnn_arena_take(arena, bf->rows, f);
    bf->most = rnn_arena_take(arena, bf->parts * bf->rows * RNN_BAND, f);
    bf->sum = rnn_arena_take(arena, bf->parts * bf->rows * RNN_BAND, f);
    bf->row_sum = rnn_arena_take(arena, bf->rows, sizeof(double));
    bf->factor = rnn_arena_take(arena, bf->rows, f);
    bf->rest = rnn_arena_take(arena, bf->rows, f);
    bf->target = rnn_arena_take(arena, bf->rows, f);
    bf->target_why = rnn_arena_take(arena, bf->rows * w->H, f);
    bf->block_largest = rnn_arena_take(arena, bf->blocks, f);
    bf->scaled = rnn_arena_take(arena, rnn_round_up(w->H + 1, RNN_BAND) * bf->rows, half);
    bf->why = rnn_arena_take(arena, threads * bf->why_size, half);
    bf->why_t = rnn_arena_take(arena, threads * bf->why_t_size, half);
    bf->e = rnn_arena_take(arena, threads * bf->e_size, half);
    bf->bias = rnn_arena_take(arena, threads * bf->block, f);
    bf->logits = rnn_arena_take(arena, threads * RNN_STRIP_ROWS * bf->kernels->columns, f);
    bf->slab = rnn_arena_take(arena, threads * bf->slab_size, f);
}

static void lay_out(rnn_work *w, rnn_arena *arena) {
    size_t tokens = w->max_steps * w->max_batch, f = sizeof(float);
    /* A product by tiles overwrites rows up to a whole band. */
    w->hidden = rnn_arena_take(arena, (tokens + w->max_batch + RNN_BAND) * w->stride, f);
    w->dhidden = rnn_arena_take(arena, tokens * w->stride, f);
    w->dropped = rnn_arena_take(arena, tokens * w->stride, f);
    w->operand = w->hidden;
    w->dropped_operand = w->dropped;
    if (w->rounded) {
        w->operand = rnn_arena_take(arena, (tokens + w->max_batch) * w->stride, f);
        w->dropped_operand = rnn_arena_take(arena, tokens * w->stride, f);
    }
    w->gathered = rnn_arena_take(arena, (size_t)w->threads * RNN_GATHER * w->E, f);
    w->logp = rnn_arena_take(arena, tokens, sizeof(double));
    size_t sampled = w->sampled ? (w->H + 1) * w->max_columns : 0;
    w->candidates = rnn_arena_take(arena, sampled, f);
    w->dcandidates = rnn_arena_take(arena, sampled, f);
    if (w->bf.kernels) {
        lay_out_bfloat16(w, arena);
        return;
    }
    w->wxh = rnn_arena_take(arena, w->E * w->stride, f);
    w->whh = rnn_arena_take(arena, w->H * w->stride, f);
    w->whh_t = rnn_arena_take(arena, w->H * w->stride, f);
    w->transposed = rnn_arena_take(arena, w->H * w->H, f);
    lay_out_output(w, arena);
}

int32_t rnn_work_create(const rnn_dims *dims, int32_t max_steps, int32_t max_batch, int32_t max_candidates,
                        int32_t precision, int32_t threads, rnn_work **work) {
    if (!dims || !work) return RNN_E_NULL;
    int32_t status = rnn_check_dims(dims);
    if (status) return status;
    if (max_candidates < 0 || max_candidates > dims->vocab) return RNN_E_DIM;
    if (max_steps < 1 || max_batch < 1 || (int64_t)max_steps * max_batch > RNN_MAX_TOKENS) return RNN_E_DIM;
    if (precision != RNN_PRECISION_F32 && precision != RNN_PRECISION_BF16) return RNN_E_ARG;
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
    if (precision == RNN_PRECISION_BF16) w.bf.kernels = w.kernels->bfloat16;
    w.rounded = precision == RNN_PRECISION_BF16 && !w.bf.kernels;
    w.unit = w.rounded ? 0.69314718055994530942 : 1.0;
    (w.bf.kernels ? size_bfloat16 : size_output)(&w);

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
