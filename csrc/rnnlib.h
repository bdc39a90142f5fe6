/* rnnlib.h -- an Elman recurrent language model: training, scoring and generation on the CPU.
 *
 *     h_t = tanh(x_t Wxh + h_{t-1} Whh + bh)      x_t = embeddings[token_t]
 *     p_t = softmax(h_t Why + by)
 *     loss = sum_t -log p_t[y_t]                  y_t is the token after token_t: the caller shifts, once
 *
 * This header is the manual and the contract; elman.c has the same model in plain loops. What holds everywhere:
 *
 *   Layout    Matrices are row-major, (in, out): Wxh (E,H)  Whh (H,H)  bh (H)  Why (H,V)  by (V).
 *             V words, E embedding size, H hidden units, T time steps, B batch rows: texts trained side by side.
 *             A chunk of text is time-major: x[t * B + b] is step t of batch row b.
 *   Parameters and gradients are one flat float buffer each, in the order Wxh, Whh, bh, Why, by.
 *             The embeddings (V,E) are frozen: they are an input, never a parameter.
 *   By words  With a sampled softmax, which touches few words at a step, the buffers end with (V,H+1) instead of Why, by:
 *             row v is word v's column of Why, and then its by.
 *   Memory    The caller owns every buffer that it passes. Handles come from rnn_*_create and are released by
 *             rnn_*_destroy. Only the *_create functions allocate.
 *   Errors    Every int32_t function returns a status: RNN_OK (0) or a negative RNN_E_*. Arguments are checked first;
 *             a call that fails leaves the caller's output buffers untouched. Nothing prints, exits or keeps global
 *             state, except the guard of mapped files.
 *   Random    numbers are arguments: uniforms in [0,1). The library has no generator.
 *   Kernels   The inner loops exist for several instruction sets. Each handle uses the best that the processor has, or
 *             the one that the environment variable RNN_ISA names: amx, avx512bf16, avx512, avx2, baseline, or
 *             reference (plain loops, slow). If RNN_ISA is anything else, or the processor lacks it, the best is used:
 *             rnn_kernel_name says which. Results differ between instruction sets by rounding; for each of them they
 *             are the same from run to run, and for any number of threads.
 *   Threads   A handle that is not const belongs to one caller at a time. An rnn_model is read-only once created, and
 *             any number of threads may share it. `threads` is how many OpenMP threads one call may use.
 */
#ifndef RNNLIB_H
#define RNNLIB_H

#include <stddef.h>
#include <stdint.h>

#if !defined(_WIN32)
#define RNN_API __attribute__((visibility("default"))) /* the rest is built with -fvisibility=hidden */
#elif defined(RNN_BUILD)
#define RNN_API __declspec(dllexport)
#else
#define RNN_API __declspec(dllimport)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version, status codes, limits ---------------------------------------------------------------------------- */

#define RNN_ABI_VERSION 5 /* +1 on any change that code built against the old header would notice */

/* One table gives the codes and the messages. Append only: a released number keeps its meaning, and -7 is retired. */
#define RNN_STATUS_MAP(X)                                                                                              \
    X(OK, 0, "success")                                                                                                \
    X(E_NULL, -1, "a required pointer is NULL")                                                                        \
    X(E_DIM, -2, "a size is out of range")                                                                             \
    X(E_TOKEN, -3, "a token id is outside the vocabulary")                                                             \
    X(E_NOMEM, -4, "out of memory")                                                                                    \
    X(E_NONFINITE, -5, "a value is not finite (NaN or inf)")                                                           \
    X(E_ARG, -6, "an option is out of range")

#define RNN_STATUS_ENUM(name, value, text) RNN_##name = (value),
enum { RNN_STATUS_MAP(RNN_STATUS_ENUM) };
#undef RNN_STATUS_ENUM

#define RNN_MAX_VOCAB (1 << 24)     /* words */
#define RNN_MAX_EMBED (1 << 14)     /* embedding size */
#define RNN_MAX_HIDDEN (1 << 14)    /* hidden units */
#define RNN_MAX_TOKENS (1 << 24)    /* of one call: steps * batch, or the tokens of a prompt or a text to score */
#define RNN_MAX_SEQUENCES (1 << 12) /* that one decoder advances together */
#define RNN_MAX_THREADS 1024
#define RNN_MAX_BIAS 1e6f /* of a token's logit */

typedef struct rnn_dims {
    int32_t vocab, embed, hidden; /* V, E, H; each at least 1 */
} rnn_dims;

RNN_API int32_t rnn_abi_version(void);

/* The size of a struct of this header by its name, such as "rnn_dims", for a binding to compare with its mirror of it;
 * 0 for any other name. */
RNN_API size_t rnn_sizeof(const char *type);

/* The message of a status: a static string, never NULL. */
RNN_API const char *rnn_strerror(int32_t status);

/* The kernels that a handle created now would use: one of the names of RNN_ISA. A static string. */
RNN_API const char *rnn_kernel_name(void);

/* The length P of the flat parameter buffer: E*H + H*H + H + H*V + V. */
RNN_API int32_t rnn_param_count(const rnn_dims *dims, int64_t *count);

/* How exact the products are. Whatever it is, what is passed in and out is float32.
 *   RNN_PRECISION_F32   float32
 *   RNN_PRECISION_BF16  In training, both operands of every matrix product, forward and backward, are rounded to bfloat16
 *                       (8 significant bits; to nearest, ties to even) and the products summed in float32. The results
 *                       are the same, to the rounding of float32, on every instruction set; amx and avx512bf16 have
 *                       instructions for it. At inference, Why and the hidden state that multiplies it are rounded, and
 *                       nothing else.
 *   RNN_PRECISION_INT8  At inference, Why has 8 bits and a scale for each word. RNN_E_ARG in training. */
enum { RNN_PRECISION_F32 = 0, RNN_PRECISION_BF16 = 1, RNN_PRECISION_INT8 = 2 };

/* ---- Training ------------------------------------------------------------------------------------------------- */

typedef struct rnn_work rnn_work; /* the activations of one chunk; holds no parameters */

/* A workspace for chunks of up to max_steps * max_batch tokens; its size does not grow with max_steps * V.
 * max_candidates: 0, or for sampled softmax the most candidates of a chunk, at most V. The workspace then serves
 * rnn_loss_grad with candidates only, and its size does not grow with V. */
RNN_API int32_t rnn_work_create(const rnn_dims *dims, int32_t max_steps, int32_t max_batch, int32_t max_candidates,
                                int32_t precision, int32_t threads, rnn_work **work);
RNN_API void rnn_work_destroy(rnn_work *work); /* accepts NULL */

/* rnn_loss -- the loss of one chunk, without learning.
 *   in      params (P)  embeddings (V,E)  x, y (steps,batch) token ids
 *   in/out  state (batch,H): the hidden state before the first step; on return, after the last
 *   out     loss: the sum over the chunk of -log p, in nats
 *   RNN_E_NONFINITE when the loss, the state, or a weight or embedding that it depends on is not finite. */
RNN_API int32_t rnn_loss(rnn_work *work, const float *params, const float *embeddings, const int32_t *x,
                         const int32_t *y, int32_t steps, int32_t batch, float *state, double *loss);

/* rnn_advance_state -- the state after one chunk, as rnn_loss leaves it, without the output layer: a small part of the work.
 *   in, in/out  as rnn_loss
 *   RNN_E_NONFINITE when the state, or a weight or embedding that it depends on is not finite. */
RNN_API int32_t rnn_advance_state(rnn_work *work, const float *params, const float *embeddings, const int32_t *x,
                                  int32_t steps, int32_t batch, float *state);

/* The random part of a training step: what it adds to the plain gradient.
 *
 *   Dropout     multiplies by a mask: 0 or 1 / (1 - rate). Each batch row has one mask, the same at every step of the
 *               chunk (Gal & Ghahramani 2016).
 *   Sampled     softmax (Bengio & Senecal 2003; Jean et al. 2015) computes the loss as if the candidates were the whole
 *               vocabulary, with `correction` added to their logits. If the correction is -log of the probability that
 *               the word is among the candidates, the loss has the same optimum as the full softmax; away from the
 *               optimum the gradients differ. */
typedef struct rnn_regularization {
    const float *input_mask;  /* (batch,E): multiplies the embeddings; NULL: no dropout */
    const float *output_mask; /* (batch,H): multiplies the hidden state as the output layer sees it; NULL: no dropout */
    const int32_t
        *candidates;         /* (candidate_count): token ids, ascending; NULL unless the workspace is for candidates */
    const float *correction; /* (candidate_count) */
    int32_t candidate_count;
    int32_t reserved; /* pads the struct to the same size everywhere; ignored */
} rnn_regularization;

/* rnn_loss_grad -- the loss of one chunk and its gradient, by back-propagation through all of its steps (Werbos 1990).
 *   Truncated BPTT is a loop over chunks that carries the state: the gradient stops at the chunk's first step.
 *   in      as rnn_loss; with sampled softmax, y holds each target's index among the candidates
 *           scale: multiplies the gradient of the *sum* (1: sum, 1 / (steps * batch): mean)
 *           regularization: NULL, or all zeros, for none
 *   in/out  state, as rnn_loss
 *   out     loss: the sum, unscaled, under the regularization
 *           grads (P): overwritten with scale * dloss/dparams
 *   With candidates, params are laid out by words, and grads, E*H + H*H + H + candidate_count * (H+1) numbers, by candidates.
 *   RNN_E_NONFINITE as rnn_loss; RNN_E_ARG when the workspace was created for candidates and there are none, or the
 *   reverse; RNN_E_TOKEN when the candidates are not ascending ids, or a y is not below candidate_count. */
RNN_API int32_t rnn_loss_grad(rnn_work *work, const float *params, const float *embeddings, const int32_t *x,
                              const int32_t *y, int32_t steps, int32_t batch, float scale,
                              const rnn_regularization *regularization, float *state, double *loss, float *grads);

/* ---- Optimizers: each is one pass over memory ------------------------------------------------------------------ */

/* The Euclidean norm of count values, summed in double; the same for any number of threads.
 * RNN_E_NONFINITE when a value is not finite. */
RNN_API int32_t rnn_grad_norm(const float *grads, int64_t count, int32_t threads, double *norm);

/* Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0):
 *   g = grad_scale * grad;   v = momentum * v + g;   p -= lr * v
 * grad_scale: the clipping factor. velocity (count): zero before the first step; NULL when momentum is 0. */
RNN_API int32_t rnn_sgd_update(float *params, const float *grads, float *velocity, int64_t count, float grad_scale,
                               float lr, float momentum, int32_t threads);

/* Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW. Decay 0 gives Adam. */
typedef struct rnn_adamw {
    float lr, beta1, beta2, epsilon, weight_decay;
    int32_t step; /* 1 for the first update */
} rnn_adamw;

/* m, v (count): the first and second moments, zero before the first step. */
RNN_API int32_t rnn_adamw_update(float *params, const float *grads, float *m, float *v, int64_t count, float grad_scale,
                                 const rnn_adamw *options, int32_t threads);

/* A moving average of the parameters: average += rate * (params - average), with rate in [0,1]. */
RNN_API int32_t rnn_average_update(float *average, const float *params, int64_t count, float rate, int32_t threads);

/* The words of a sampled softmax, each with its row of the parameters and of what an optimizer keeps. */
typedef struct rnn_words {
    float *params, *m, *v; /* (count,width) */
    float *average;        /* (count,width); NULL: none */
    int32_t *done;         /* (count): of the steps of a call, how many the word has had */
    int32_t count, width;  /* V, H + 1 */
    int32_t decayed;       /* H: so many numbers of a row decay, and the bias after them does not */
} rnn_words;

#define RNN_MAX_STEPS 64 /* of one call */

/* rnn_adamw_words -- rnn_adamw_update of some words, when they are needed.
 *   A step moves every word, even one whose gradient is 0. This call takes each of the given words through the steps that
 *   it has missed, as if its gradient had been 0 at them, and so gives the numbers that rnn_adamw_update would,
 *   with weight_decay 0 for those that do not decay.
 *   in      ids (id_count): ascending; NULL: all words, and id_count is ignored
 *           steps (step_count): the options of each; averaging (step_count): the rate of rnn_average_update after each, 0
 *           for no update; NULL if there is no average
 *           grads (id_count,width): the gradient at the last of the steps, which no given word has had; NULL: 0
 *   in/out  words; on return, done is step_count for those given
 *   RNN_E_TOKEN when the ids are not ascending ids; RNN_E_ARG when a word has done more steps than it could. */
RNN_API int32_t rnn_adamw_words(const rnn_words *words, const int32_t *ids, int32_t id_count, const rnn_adamw *steps,
                                const float *averaging, int32_t step_count, const float *grads, float grad_scale,
                                int32_t threads);

/* ---- Inference ------------------------------------------------------------------------------------------------- */

typedef struct rnn_model rnn_model;     /* weights prepared for inference: read-only, shared */
typedef struct rnn_decoder rnn_decoder; /* scratch memory to advance sequences with: one per caller */

/* precision: how the model stores Why, as given or as a smaller copy that a step reads faster. In RNN_PRECISION_BF16 the
 * hidden state that multiplies it is rounded as well.
 * Checks that every weight is finite and that no logit can overflow (else RNN_E_NONFINITE), and computes
 * embeddings Wxh + bh (V,H) once, so that a step needs neither.
 * The model keeps the pointers by and, in RNN_PRECISION_F32, why (no copy: they may be memory-mapped): the caller keeps
 * those arrays alive and unchanged until rnn_model_destroy. The other arrays are not needed after the call. */
RNN_API int32_t rnn_model_create(const rnn_dims *dims, const float *embeddings, const float *wxh, const float *whh,
                                 const float *bh, const float *why, const float *by, int32_t precision, int32_t threads,
                                 rnn_model **model);
RNN_API void rnn_model_destroy(rnn_model *model); /* accepts NULL */

/* Scratch memory for up to max_sequences sequences at a time. The model must outlive its decoders. */
RNN_API int32_t rnn_decoder_create(const rnn_model *model, int32_t max_sequences, int32_t threads,
                                   rnn_decoder **decoder);
RNN_API void rnn_decoder_destroy(rnn_decoder *decoder); /* accepts NULL */

/* What is added to the logit of one token before it is drawn from. */
typedef struct rnn_bias {
    int32_t token;
    float value; /* from -RNN_MAX_BIAS to RNN_MAX_BIAS */
} rnn_bias;

/* How the next token is drawn from logits z, in this order:
 *
 *   1  biases are added to z, and the banned token is left out
 *   2  at temperature 0 the largest is the token, of equal ones the lowest id; what follows is then not used
 *   3  p = softmax(z / temperature)
 *   4  the top_k most probable tokens are kept, of equal ones the lowest ids
 *   5  the token is the first of these, in order of id, at which the running sum of their probabilities, in double,
 *      exceeds u times their total
 *   6  top_p: the nucleus is the fewest of these, most probable first and of equal ones the lowest ids, that hold top_p of
 *      that total. If the token is outside it, 5 is repeated over the nucleus with another number for u: the upper 53 bits,
 *      times 2^-53, of the first output of SplitMix64 seeded with floor(u * 2^53). So each token of the nucleus is drawn in
 *      proportion to its probability.
 *
 * A bias is an addition and nothing else: -100 bans a token in all but name, since logits are seldom as far apart.
 * RNN_E_TOKEN when banned is neither -1 nor a token, or the biases are not in ascending order of token, each once;
 * RNN_E_ARG when the banned token is the only one (V = 1). */
typedef struct rnn_sampling {
    double u;               /* in [0,1) */
    float temperature;      /* 0: greedy */
    int32_t top_k;          /* 0, or V and more: all tokens */
    int32_t banned;         /* a token that is never drawn, such as <UNK>; -1: none */
    float top_p;            /* in (0,1]; 1: all tokens */
    const rnn_bias *biases; /* (bias_count): kept by the caller until the call returns; NULL for none */
    int32_t bias_count;
    int32_t reserved; /* pads the struct to the same size everywhere; ignored */
} rnn_sampling;

/* rnn_sample -- one draw from logits (V); -inf is a token that cannot be drawn.
 *   out     token;  logp: log softmax(logits)[token], of the logits as they are given; may be NULL
 *   RNN_E_NONFINITE when a logit is NaN or +inf, or all but the banned one are -inf. */
RNN_API int32_t rnn_sample(rnn_decoder *decoder, const float *logits, const rnn_sampling *sampling, int32_t *token,
                           float *logp);

/* rnn_prefill -- feeds tokens (count) through the hidden layer of one sequence, without the output layer.
 *   in/out  state (H): zeros for a new sequence. count may be 0. */
RNN_API int32_t rnn_prefill(rnn_decoder *decoder, const int32_t *tokens, int32_t count, float *state);

/* rnn_decode -- one step of n sequences in one pass over Why: feeds each its token and draws its next.
 *   in      tokens (n)  sampling (n)
 *   in/out  states (n,H)
 *   out     next (n): the tokens drawn;  logp (n): their log-probabilities, may be NULL
 *           logits (n,V): as the model gives them, before anything that sampling does; may be NULL
 *   The result of a sequence does not depend on the other sequences of the call. */
RNN_API int32_t rnn_decode(rnn_decoder *decoder, int32_t n, const int32_t *tokens, const rnn_sampling *sampling,
                           float *states, int32_t *next, float *logp, float *logits);

/* rnn_logits -- the logits of n hidden states, n up to RNN_MAX_TOKENS.
 *   in      states (n,H), as rnn_prefill and rnn_decode leave them: RNN_E_ARG when a value is outside -1..1
 *   out     logits (n,V) */
RNN_API int32_t rnn_logits(rnn_decoder *decoder, int32_t n, const float *states, float *logits);

/* rnn_score -- log p(tokens[i+1] | tokens[0..i]) for i = 0 .. count-2.
 *   in/out  state (H): before the first token; on return, after tokens[count-2]. count is at least 2.
 *   out     logp (count-1) */
RNN_API int32_t rnn_score(rnn_decoder *decoder, const int32_t *tokens, int32_t count, float *state, float *logp);

/* ---- Mapped files ----------------------------------------------------------------------------------------------- */

/* A mapped file loses pages when it is truncated or its disk fails. Reading a lost page raises SIGBUS, which ends the
 * process. In a guarded range, the lost page and all pages after it read as zeros instead, and rnn_guard_lost returns 1.
 * The first call installs a SIGBUS handler for the whole process; a fault outside every guarded range goes to the
 * handler that was installed before, for good: should it not end the process, the next call installs the guard again. On
 * Windows, which does not let a mapped file be truncated, the calls do nothing.
 *   memory, size: what mmap returned, and its length.
 *   RNN_E_ARG when memory is not the start of a page; RNN_E_NOMEM when 4,096 ranges are guarded already. */
RNN_API int32_t rnn_guard_add(const void *memory, size_t size);
RNN_API void rnn_guard_remove(const void *memory);  /* call it before munmap; accepts an address that is not guarded */
RNN_API int32_t rnn_guard_lost(const void *memory); /* 1 when pages of the range were lost, else 0 */

#ifdef __cplusplus
}
#endif
#endif
