/* model.c -- prepares weights for inference. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* The largest magnitude of count values, or infinity if one is not finite. */
static float largest(const rnn_kernels *k, const float *x, size_t count, int threads) {
    enum { PIECE = 1 << 16 };
    size_t pieces = rnn_ceil_div(count, PIECE);
    float max = 0.0f;
    RNN_OMP(parallel for num_threads(threads) schedule(static) reduction(max : max))
    for (size_t i = 0; i < pieces; i++) {
        float here = k->max_abs(rnn_min(PIECE, count - i * PIECE), x + i * PIECE);
        max = here > max ? here : max;
    }
    (void)threads; /* used by OpenMP only */
    return max;
}

/* input (V,H) = embeddings Wxh + bh */
static int32_t project_vocabulary(rnn_model *m, size_t E, const float *embeddings, const float *wxh, const float *bh,
                                  int threads) {
    enum { ROWS = 128 };
    const rnn_kernels *k = m->kernels;
    size_t H = m->H, tiles = rnn_ceil_div(m->V, ROWS), panels = m->stride / k->panel;
    size_t tile = ROWS * m->stride;
    void *memory;
    float *packed = rnn_aligned_alloc((E * m->stride + (size_t)threads * tile) * sizeof(float), &memory);
    if (!packed) return RNN_E_NOMEM;
    k->pack(wxh, H, E, H, 0.0f, packed);
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t i = 0; i < tiles; i++) {
        size_t v0 = i * ROWS, rows = rnn_min(ROWS, m->V - v0);
        float *out = packed + E * m->stride + rnn_thread() * tile;
        k->multiply(rows, E, panels, embeddings + v0 * E, E, packed, out, m->stride, k->panel, false);
        for (size_t v = 0; v < rows; v++) {
            for (size_t j = 0; j < H; j++) m->input[(v0 + v) * H + j] = out[v * m->stride + j] + bh[j];
        }
    }
    free(memory);
    return RNN_OK;
}

static void lay_out(rnn_model *m, rnn_arena *arena) {
    m->input = rnn_arena_take(arena, m->V * m->H, sizeof(float));
    m->whh = rnn_arena_take(arena, m->H * m->stride, sizeof(float));
    if (m->precision == RNN_PRECISION_F32) return;
    if (m->bfloat16) {
        m->pairs = rnn_arena_take(arena, rnn_ceil_div(m->V, RNN_BAND) * m->pairs_panel, sizeof *m->pairs);
        return;
    }
    m->packed = rnn_arena_take(arena, rnn_ceil_div(m->V, m->kernels->wide) * m->packed_size, sizeof *m->packed);
    m->scale = rnn_arena_take(arena, m->V, sizeof(float));
}

/* The copy of Why that bfloat16 kernels read in its place. */
static void pair_why(rnn_model *m, int threads) {
    size_t panels = rnn_ceil_div(m->V, RNN_BAND);
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t p = 0; p < panels; p++) {
        const float *why = m->why + p * RNN_BAND;
        size_t cols = rnn_min(RNN_BAND, m->V - p * RNN_BAND);
        rnn_bfloat16 *panel = m->pairs + p * m->pairs_panel;
        for (size_t i = 0; i < m->H; i++) {
            rnn_bfloat16 *pairs = panel + i / 2 * 2 * RNN_BAND + i % 2;
            for (size_t v = 0; v < cols; v++) pairs[2 * v] = rnn_round_bfloat16(why[i * m->V + v]);
        }
    }
    (void)threads; /* used by OpenMP only */
}

/* The copy that the other kernels read, with RNN_PRECISION_BF16 and _INT8. */
static void compress_why(rnn_model *m, int threads) {
    const rnn_kernels *k = m->kernels;
    size_t copies = rnn_ceil_div(m->V, k->wide);
    RNN_OMP(parallel for num_threads(threads) schedule(static))
    for (size_t i = 0; i < copies; i++) {
        size_t v0 = i * k->wide;
        k->compress(m->precision, m->why + v0, m->V, m->H, rnn_min(k->wide, m->V - v0), m->packed + i * m->packed_size,
                    m->scale + v0);
    }
    (void)threads; /* used by OpenMP only */
}

/* Whether a sum of H products with |h| <= 1, plus a bias, stays finite. */
static bool is_bounded(size_t H, float weight, float bias) {
    return (double)weight * (double)H + (double)bias < (double)FLT_MAX;
}

int32_t rnn_model_create(const rnn_dims *dims, const float *embeddings, const float *wxh, const float *whh,
                         const float *bh, const float *why, const float *by, int32_t precision, int32_t threads,
                         rnn_model **model) {
    if (!dims || !embeddings || !wxh || !whh || !bh || !why || !by || !model) return RNN_E_NULL;
    int32_t status = rnn_check_dims(dims);
    if (status) return status;
    if (precision < RNN_PRECISION_F32 || precision > RNN_PRECISION_INT8) return RNN_E_ARG;
    status = rnn_check_threads(threads);
    if (status) return status;

    rnn_model m = {.kernels = rnn_kernels_choose(), .why = why, .by = by, .precision = precision};
    const rnn_kernels *k = m.kernels;
    size_t E = (size_t)dims->embed;
    m.V = (size_t)dims->vocab;
    m.H = (size_t)dims->hidden;
    m.stride = rnn_round_up(m.H, k->panel);
    if (precision == RNN_PRECISION_BF16 && k->bfloat16) {
        m.bfloat16 = k->bfloat16;
        m.depth = rnn_round_up(m.H, k->bfloat16->depth);
        m.pairs_panel = RNN_BAND * m.depth;
    }
    m.packed_size = m.H * k->wide / (precision == RNN_PRECISION_BF16 ? 2 : 4);

    float weight = largest(k, why, m.H * m.V, threads);
    if (precision == RNN_PRECISION_BF16) weight *= 1.0f + 1.0f / 256.0f; /* rounding adds no more */
    if (!isfinite(largest(k, embeddings, m.V * E, threads)) || !isfinite(k->max_abs(E * m.H, wxh)) ||
        !isfinite(k->max_abs(m.H, bh)) || !is_bounded(m.H, weight, k->max_abs(m.V, by))) {
        return RNN_E_NONFINITE;
    }

    rnn_arena arena = {0};
    rnn_arena_take(&arena, 1, sizeof m);
    lay_out(&m, &arena);
    if (arena.overflow) return RNN_E_NOMEM;
    rnn_model *made = rnn_aligned_alloc(arena.used, &m.memory);
    if (!made) return RNN_E_NOMEM;
    arena = (rnn_arena){.base = (char *)made};
    rnn_arena_take(&arena, 1, sizeof m);
    lay_out(&m, &arena);
    *made = m;

    status = project_vocabulary(made, E, embeddings, wxh, bh, threads);
    if (!status && !is_bounded(m.H, k->max_abs(m.H * m.H, whh), largest(k, m.input, m.V * m.H, threads))) {
        status = RNN_E_NONFINITE;
    }
    if (status) {
        rnn_model_destroy(made);
        return status;
    }
    k->pack(whh, m.H, m.H, m.H, 0.0f, made->whh);
    if (made->packed) compress_why(made, threads);
    if (made->pairs) pair_why(made, threads);
    *model = made;
    return RNN_OK;
}

void rnn_model_destroy(rnn_model *model) {
    if (model) free(model->memory);
}
