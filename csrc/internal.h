/* internal.h -- what the files of the library share. Nothing here is exported.
 *
 * Sizes have the letters of rnnlib.h: V words, E embedding, H hidden; N = T * B is the number of tokens of a chunk.
 *
 * All files build on three ideas:
 *
 *   Panels    A right-hand matrix (K, columns) is packed into panels: `panel` columns wide, each stored as K rows of
 *             `panel` floats one after the other; the last one is padded with zeros. A kernel reads it from front to
 *             back (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication").
 *   Blocks    The vocabulary is cut into blocks of RNN_BLOCK words. A block is the unit of parallel work, and sums over
 *             blocks are taken in their order, so a result does not depend on the number of threads.
 *   A row of hidden state is stored as [h, 1, 0 ...], `stride` floats long: the 1 makes the bias one more row of the
 *             matrix. Whh and bh are neighbours in the parameters, and so are Why and by: each pair *is* that taller
 *             matrix, and the gradient of a bias is the last row of a matrix product.
 */
#ifndef RNN_INTERNAL_H
#define RNN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bfloat16.h"
#include "rnnlib.h"

#ifdef _OPENMP
#include <omp.h>
#define RNN_OMP(...) RNN_PRAGMA(omp __VA_ARGS__)
#define RNN_PRAGMA(...) _Pragma(#__VA_ARGS__)
static inline size_t rnn_thread(void) { return (size_t)omp_get_thread_num(); }
#else
#define RNN_OMP(...)
static inline size_t rnn_thread(void) { return 0; }
#endif

enum {
    RNN_BLOCK =
        576, /* words of a block: whole panels of any width (48, 64 ...), and with its logits it fits an L2 cache */
    RNN_GROUP = 16,      /* sequences that one pass over Why serves at inference */
    RNN_SCORE_ROWS = 48, /* tokens whose logits rnn_score has at a time: whole register tiles (4, 6 or 8 rows) */
    RNN_LEVELS = 3,      /* levels that a tally compares with at a time */
    RNN_ALIGN = 64,      /* bytes: a cache line, and the widest vector register */
    RNN_SKEW = 256,      /* floats between panels of logits, so that they do not all fall on the same cache sets */
};

static inline size_t rnn_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t rnn_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t rnn_ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
static inline size_t rnn_round_up(size_t a, size_t b) { return rnn_ceil_div(a, b) * b; }

/* ---- Kernels: the inner loops, once per instruction set --------------------------------------------------------- */

/* What one step of AdamW multiplies with: m = beta1 m + rest1 g, v = beta2 v + rest2 g^2,
 * p = keep p - rate m / (root sqrt(v) + epsilon). */
typedef struct rnn_adamw_factors {
    double beta1, rest1, beta2, rest2, keep, rate, root, epsilon;
} rnn_adamw_factors;

/* Where a cut splits the logits of a row, and what their weights exp((z - max) * beta) are relative to. */
typedef struct rnn_split {
    float low, high, max, beta;
} rnn_split;

/* The tokens that a cut looks at one by one, in order of id. */
typedef struct rnn_found {
    int32_t *tokens;
    float *logits, *weights;
} rnn_found;

/* No two pointers of a call may alias unless the text says "in place". */
typedef struct rnn_kernels {
    const char *name;
    size_t panel; /* columns of a panel; divides RNN_BLOCK */

    /* panels (ceil(cols / panel), K, panel) = w (K, cols), rows ld apart. The columns that pad the last panel are 0,
     * but `fill` in the last row. Returns the largest magnitude in w, or infinity if a value is not finite. */
    float (*pack)(const float *w, size_t ld, size_t K, size_t cols, float fill, float *panels);

    /* C (m, panels * panel) = A (m, K) times packed panels; += with add. Row i of panel p of C lies at
     * c + p * c_panel + i * c_row. Every row is summed over k = 0, 1, 2 ... in that order, whatever m is. */
    void (*multiply)(size_t m, size_t K, size_t panels, const float *a, size_t lda, const float *b, float *c,
                     size_t c_row, size_t c_panel, bool add);

    /* C (m, cols) = A^T B; += with add.  A (K, m), rows lda apart. Row k of panel p of B lies at
     * b + p * b_panel + k * b_row. Of C, rows ldc apart, no more than cols columns are touched. */
    void (*multiply_at)(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t b_row,
                        size_t b_panel, float *c, size_t ldc, bool add);

    /* C (m, n) = A B^T, summed over all columns of the panels.  A has m rows of panels a_panel apart, B n of b_panel. */
    void (*multiply_bt)(size_t m, size_t n, size_t panels, const float *a, size_t a_panel, const float *b,
                        size_t b_panel, float *c, size_t ldc);

    /* In place, z = exp(z - max): m rows of panels z_panel apart, with each row's max (m), and the sum (m) of its
     * exponentials. softmax_rounded is for products of bfloat16 operands: z = 2^(z log2(e) - max), with max a whole number,
     * so that z is rounded to bfloat16 the same whatever max is; the sum is of what is not rounded. */
    void (*softmax)(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum);
    void (*softmax_rounded)(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum);

    void (*round)(size_t count, float *x); /* in place, to bfloat16 (rnn_round_bfloat16) */

    void (*tanh)(size_t count, float *x);                          /* in place */
    void (*tanh_backward)(size_t count, const float *h, float *d); /* in place, d *= 1 - h * h */

    /* out (count) = sum over terms b of weights[b * weight_step] * x[b * x_step ...] */
    void (*weighted_sum)(size_t terms, size_t count, const float *weights, size_t weight_step, const float *x,
                         size_t x_step, float *out);

    float (*max_abs)(size_t count, const float *x); /* infinity when a value is not finite */
    float (*max)(size_t count, const float *x);     /* ignores NaNs */

    /* sums[j] = the sum of the values, or with NULL the number, of those (count) whose key is at least levels[j]. */
    void (*tally)(size_t count, const float *keys, const float *values, const float levels[RNN_LEVELS],
                  double sums[RNN_LEVELS]);

    /* Splits z (count), the logits of tokens `first` and on: of those that are at least split->high, writes the sum of
     * exp((z - max) * beta), and adds their number to `above`, unless that is NULL; appends the others that are at least
     * split->low, which is finite, to the found_count ones of `found`, without their weights. Returns how many those are
     * then. */
    size_t (*part)(size_t count, const float *z, size_t first, const rnn_split *split, double *sum, size_t *above,
                   rnn_found found, size_t found_count);

    /* Returns the sum of exp((z - max) * beta) over count values, and writes each term to e unless e is NULL. */
    double (*exp_sum)(size_t count, const float *z, float max, float beta, float *e);

    /* C (m, cols) = A (m, K) times B (K, cols) unpacked, rows ldb apart, plus bias (cols) in each row: for so few rows of A
     * that packing B would cost more than it saves. Each row is summed as in multiply, to the same bits. */
    void (*rows_times)(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t ldb,
                       const float *bias, float *c, size_t ldc);

    /* compress makes a smaller copy of w (K, cols <= wide), with a precision of rnnlib.h: K packed rows, and a scale
     * for each column. rows_times_packed is C (m, wide) = A (m, K) times the copy, without the scales; each row has the
     * same bits whatever m is. */
    size_t wide; /* columns of a copy; divides RNN_BLOCK */
    void (*compress)(int32_t precision, const float *w, size_t ld, size_t K, size_t cols, uint32_t *packed,
                     float *scale);
    void (*rows_times_packed)(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *packed,
                              float *c, size_t ldc);
    /* In place, z = z * scale + bias. scale: NULL for 1. */
    void (*finish)(size_t count, const float *scale, const float *bias, float *z);

    double (*sum_squares)(size_t count, const float *x);
    void (*sgd)(size_t count, float *p, const float *g, float *v, float grad_scale, float lr, float momentum);
    void (*adamw)(size_t count, float *p, const float *g, float *m, float *v, float grad_scale,
                  const rnn_adamw_factors *factors);
    void (*average)(size_t count, float *average, const float *p, float rate);

    const rnn_bfloat16_kernels *bfloat16; /* products of bfloat16 operands; NULL: the kernels above multiply them */
} rnn_kernels;

/* The best kernels for this processor, or those that the environment variable RNN_ISA names. */
const rnn_kernels *rnn_kernels_choose(void);

extern const rnn_kernels rnn_kernels_amx, rnn_kernels_avx512bf16, rnn_kernels_avx512, rnn_kernels_avx2; /* x86 only */
extern const rnn_kernels rnn_kernels_baseline, rnn_kernels_reference;

/* ---- Memory: one allocation per handle --------------------------------------------------------------------------- */

/* Hands out the pieces of one allocation. If base is NULL it only counts: the function that lays out a handle runs twice,
 * first to learn the size, then to set the pointers. */
typedef struct rnn_arena {
    char *base;
    size_t used;
    bool overflow; /* the pieces together do not fit a size_t */
} rnn_arena;

void *rnn_arena_take(rnn_arena *arena, size_t count, size_t size);

/* Allocates zeros at a multiple of RNN_ALIGN bytes. memory: what to pass to free(). */
void *rnn_aligned_alloc(size_t size, void **memory);

/* ---- Training ------------------------------------------------------------------------------------------------------ */

/* Where each matrix begins in the flat parameter buffer. */
typedef struct rnn_offsets {
    size_t wxh, whh, bh, why, by, count;
} rnn_offsets;

rnn_offsets rnn_param_offsets(size_t V, size_t E, size_t H);

int32_t rnn_check_dims(const rnn_dims *dims);
int32_t rnn_check_threads(int32_t threads);

struct rnn_work {
    void *memory;
    const rnn_kernels *kernels;
    size_t V, E, H;
    rnn_offsets at;
    size_t max_steps, max_batch;
    int threads;
    size_t max_columns;     /* of the output layer: V, or the most candidates of a sampled softmax */
    bool sampled;           /* whether the softmax is a sampled one */
    size_t stride;          /* of a row [h, 1, 0 ...]: H + 1 rounded up to whole panels */
    bool rounded;           /* whether the float32 kernels multiply operands rounded to bfloat16 */
    size_t blocks;          /* of max_columns */
    size_t part_blocks;     /* neighbouring blocks added up as one part: so many that there are at most 127 parts */
    size_t rows;            /* tokens whose logits are held at a time: a tile */
    float *hidden;          /* (T + 1, B, stride): row 0 is the initial state */
    float *operand;         /* (T + 1, B, stride): hidden itself, or rounded */
    float *dhidden;         /* (T, B, stride): dL/dh, then the gradient before tanh */
    float *dropped;         /* (T, B, stride): hidden rows after dropout */
    float *dropped_operand; /* (T, B, stride): dropped itself, or rounded */
    float *candidates;      /* (H + 1, max_columns): the candidates' columns of [Why; by] */
    float *dcandidates;     /* likewise: their gradient */
    float *wxh, *whh;       /* packed (E, stride), (H, stride) */
    float *whh_t;           /* packed (H, stride): the transpose of Whh */
    float *transposed;      /* (H, H) */
    float *gathered;        /* (threads, RNN_GATHER, E): embeddings of a run of tokens */
    float *why;             /* (threads, H + 1, RNN_BLOCK): a packed block of [Why; by] */
    size_t slot;            /* floats for the logits of one block and tile */
    float *logits;          /* (blocks, slot): of one tile, then their exponentials */
    float *dhidden_part;    /* (parts, rows, stride): what each part adds to dhidden, but for its factor */
    float *dhidden_own;     /* (threads, rows, stride): what one block adds */
    float *part_max;        /* (parts, rows): the largest block_max of a part */
    float *part_factor;     /* (parts, rows): exp(part_max - lse) */
    float *scaled;          /* (threads, rows, stride): hidden rows times their factor */
    float *block_max;       /* (blocks, rows) */
    double *block_sum;      /* (blocks, rows); of exp(logit - block_max) */
    float *factor;          /* (blocks, rows): exp(block_max - lse) */
    double *lse;            /* (rows): log-sum-exp */
    float *target;          /* (rows): the logit of y */
    float *target_why;      /* (rows, stride): the column of Why that belongs to y */
    float *block_largest;   /* (blocks): the largest magnitude in a block of [Why; by] */
    float *rest;            /* (rows): 1 - p of y */
    double *logp;           /* (N): log p of each y */
    double unit;            /* what maxima of logits count in: 1, or ln 2 with `rounded` */
    rnn_bfloat16_work bf;   /* bf.kernels: NULL where the float32 kernels do all products */
};

/* The output layer of one call: of all words, or of the candidates of a sampled softmax. */
typedef struct rnn_output {
    const float *why;         /* (H + 1, columns): [Why; by] */
    float *dwhy;              /* likewise: its gradient; NULL: only the loss is wanted */
    size_t columns;           /* V, or the number of candidates */
    const float *hidden;      /* (N, stride) */
    const float *operand;     /* (N, stride): hidden itself, or rounded */
    const rnn_bfloat16 *left; /* (N, ld): rounded, for the kernels of bfloat16.h */
    const int32_t *y;         /* (N): the column of each target */
    double bound;             /* on |hidden|: 1, and more after dropout */
    float scale;              /* of the gradient */
} rnn_output;

enum { RNN_GATHER = 128 }; /* tokens gathered at a time */

/* What a chunk feeds to the hidden layer. */
typedef struct rnn_inputs {
    const float *embeddings; /* (V, E) */
    const float *mask;       /* (B, E), which multiplies the embeddings; NULL: none */
    const int32_t *x;        /* (T, B) */
    size_t T, B;
} rnn_inputs;

/* The embeddings of tokens n0 to n0 + rows, columns e0 to e1, masked, one after the other into out. */
void rnn_gather_inputs(const rnn_inputs *inputs, size_t E, size_t n0, size_t rows, size_t e0, size_t e1, float *out);

/* Each pass exists twice: by the float32 kernels, and for a workspace with w->bf.kernels by those. */

/* The forward passes return whether all their inputs, and the hidden states, are finite. */
bool rnn_hidden_forward(rnn_work *w, const rnn_inputs *inputs, const float *params, const float *state);
bool rnn_bfloat16_hidden_forward(rnn_work *w, const rnn_inputs *inputs, const float *params, const float *state);
void rnn_hidden_backward(rnn_work *w, const rnn_inputs *inputs, const float *params, float *grads);
void rnn_bfloat16_hidden_backward(rnn_work *w, const rnn_inputs *inputs, float *grads);

/* log p of N targets into w->logp, and with out->dwhy the gradient: of Why and by there, of the hidden rows into
 * w->dhidden. Returns the sum of -log p, not finite when any of them, or of Why and by, is not; dwhy is then as it was. */
double rnn_output_pass(rnn_work *w, const rnn_output *out, size_t N);
double rnn_bfloat16_output_pass(rnn_work *w, const rnn_output *out, size_t N);

/* Sampled softmax: the candidates out of the words (V, H + 1) into columns, and their gradient into rows. */
void rnn_candidates_gather(rnn_work *w, const float *words, const rnn_regularization *r);
void rnn_candidates_return(rnn_work *w, const rnn_regularization *r, float *grads);

/* ---- Inference ------------------------------------------------------------------------------------------------------ */

struct rnn_model {
    void *memory;
    const rnn_kernels *kernels;
    size_t V, H;
    size_t stride; /* of a hidden row: H rounded up to whole panels */
    float *input;  /* (V, H): embeddings Wxh + bh */
    float *whh;    /* packed (H, stride) */
    int32_t precision;
    const float *why, *by;
    /* The smaller copy of Why: none in float32, and one of two. */
    uint32_t *packed; /* (V / wide, packed_size): for the kernels' rows_times_packed */
    size_t packed_size;
    float *scale;                         /* (V): of its columns */
    const rnn_bfloat16_kernels *bfloat16; /* NULL: none for this copy */
    rnn_bfloat16 *pairs;                  /* (V / RNN_BAND, pairs_panel): a right operand for these */
    size_t depth, pairs_panel;            /* depth: H as they round it up */
};

/* Hidden rows as the product with Why takes them: with RNN_PRECISION_BF16 they are rounded. */
typedef struct rnn_operand {
    const float *rows;        /* (n, stride) */
    const rnn_bfloat16 *left; /* (n, left_ld), for a model's bfloat16 kernels; else NULL */
} rnn_operand;

/* What rnn_score works with: a tile of neighbouring tokens. */
typedef struct rnn_score_work {
    size_t rows;    /* the most tokens of a tile */
    float *hidden;  /* (rows, stride) */
    float *rounded; /* (rows, stride): room for an rnn_operand */
    float *why;     /* (threads, H, RNN_BLOCK): a packed block of Why; NULL: Why is read as it lies */
    float *logits;  /* (threads, RNN_SCORE_ROWS, RNN_BLOCK) */
    float *max;     /* (rows, blocks): the largest logit of each block */
    double *sum;    /* (rows, blocks): of exp(logit - max) */
    float *target;  /* (rows): the logit of the token that follows */
    float *share;   /* (threads, blocks) */
} rnn_score_work;

struct rnn_decoder {
    void *memory;
    const rnn_model *model;
    size_t max_sequences;
    int threads;
    size_t row, blocks;   /* of logits: V rounded up to whole blocks */
    float *state;         /* (max_sequences, stride): before a step */
    float *next;          /* (max_sequences, stride): after it */
    float *rounded;       /* (RNN_GROUP, stride): room for an rnn_operand */
    rnn_score_work score; /* in the same memory as all that follows */
    /* Of a group of sequences, by row: */
    float *logits;     /* (RNN_GROUP, row) */
    float *block_max;  /* (RNN_GROUP, blocks): the largest logit */
    double *block_sum; /* (RNN_GROUP, blocks): of exp(logit - block_max) */
    float *changed;    /* (RNN_GROUP, row): logits with biases and ban, in the blocks that have any */
    bool *is_changed;  /* (RNN_GROUP, blocks): whether a block has */
    float *draw_max;   /* (RNN_GROUP, blocks): the largest logit, with biases and ban */
    double *draw_sum;  /* (RNN_GROUP, blocks): of exp((logit - draw_max) / temperature) */
    float *share;      /* (RNN_GROUP, blocks): exp((draw_max - max) / temperature) */
    size_t found_size; /* tokens that may be found, and room for a vector more */
    rnn_found found;   /* (threads, found_size) each */
};

/* The tokens that top_k and top_p keep: those whose logit is above `least`, and up to `last` those that have it. */
typedef struct rnn_cut {
    float least;
    int32_t last;
} rnn_cut;

static inline bool rnn_keeps(rnn_cut cut, float z, size_t token) {
    return (z > cut.least) | ((z == cut.least) & ((int64_t)token <= cut.last)); /* no branch */
}

/* A row of a group's logits, whose blocks have all been measured. */
typedef struct rnn_row {
    rnn_decoder *d;
    size_t i;
    const float *z;  /* (V): as the model gives them */
    float max, beta; /* the largest logit, with biases and ban; 1 / temperature */
    float *share;    /* (blocks): what draw_sum of each block counts for: 1 once it is relative to max */
} rnn_row;

/* Cuts of a row. draw_sum is then of what is kept, and relative to max; share is 1. */
rnn_cut rnn_keep_number(const rnn_row *row, size_t number);

/* The share top_p of all tokens; or of what `within` keeps, which rnn_keep_number has just given for this row and number.
 * all: the weight of all tokens, before any cut. */
rnn_cut rnn_keep_share(const rnn_row *row, float top_p, double all, size_t number, const rnn_cut *within);

/* Whether a token is among the first that hold the share top_p of what draw_sum is of. */
bool rnn_share_has(const rnn_row *row, float top_p, size_t token);

/* The weight that draw_sum is of. */
double rnn_weight_of(const rnn_row *row);

/* Block b of row i, with biases and ban. */
static inline const float *rnn_drawn_block(const rnn_decoder *d, size_t i, const float *z, size_t b) {
    return (d->is_changed[i * d->blocks + b] ? d->changed + i * d->row : z) + b * RNN_BLOCK;
}

int32_t rnn_check_sampling(const rnn_model *model, const rnn_sampling *sampling);

/* Measures one block of logits z (V), row i of a group, for a draw: its part of block_max to draw_sum. */
void rnn_measure_block(rnn_decoder *d, size_t i, const float *z, size_t block, const rnn_sampling *sampling);

/* Draws from logits z (V), row i, whose blocks have all been measured. They are finite or -inf, and at least one that may
 * be drawn is not -inf. */
int32_t rnn_draw(rnn_decoder *d, size_t i, const float *z, const rnn_sampling *sampling, float *logp);

/* log sum exp of logits, from each block's largest and its sum of exp(logit - largest). share (blocks) is overwritten. */
double rnn_log_sum_exp(const rnn_kernels *k, size_t blocks, const float *max, const double *sum, float *share);

/* Rows of hidden state (n, stride), and states (n, H) as the caller has them. To load them returns whether they are finite:
 * tanh would hide an infinity. */
bool rnn_load_states(const rnn_model *m, size_t n, const float *states, float *rows);
void rnn_store_states(const rnn_model *m, size_t n, const float *rows, float *states);
bool rnn_rows_are_finite(const rnn_model *m, size_t n, const float *rows);
int32_t rnn_check_tokens(const rnn_model *m, const int32_t *tokens, size_t count);

/* to (n, stride) = the rows after one step from `from`. */
void rnn_advance(const rnn_model *m, size_t n, const int32_t *tokens, const float *from, float *to);

/* Returns n hidden rows (n, stride) as the left operand of a product with Why. If they must be rounded, the result lies in
 * `rounded` (n to whole bands, stride), which is otherwise not used. */
rnn_operand rnn_operand_of(const rnn_model *m, size_t n, const float *hidden, float *rounded);

/* z (n, RNN_BLOCK) = block b of the logits of n hidden rows, from row n0 of the operand on. Rows of z are ld apart, and
 * those up to whole bands of RNN_BAND may be overwritten. */
void rnn_project_block(const rnn_model *m, size_t n0, size_t n, rnn_operand hidden, size_t b, float *z, size_t ld);

/* Hands out the memory of rnn_score, for tiles of as many tokens as fit `size` bytes. */
void rnn_lay_out_score(rnn_decoder *d, rnn_arena *arena, size_t size);

#endif
