/* fuzz_rnnlib.c -- libFuzzer on every function of rnnlib.h that takes sizes or ids: `make fuzz`.
 *
 * An input is read as a list of choices: which group of functions, then sizes, ids and numbers, most of them small and
 * right, some at or past a limit, some NaN or infinite. Every buffer is as long as the header says and not a byte
 * longer, so that AddressSanitizer sees what leaves it. Beyond not crashing, each call must keep the header's promises:
 * a refusal leaves the outputs untouched, a success writes tokens of the vocabulary and finite numbers.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rnnlib.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- Choices ------------------------------------------------------------------------------------------------------- */

static const uint8_t *input;
static size_t left;

static uint8_t byte(void) {
    if (left == 0) return 0;
    left--;
    return *input++;
}

static bool odd(void) { return byte() > 240; } /* one in seventeen: the choice that is out of the ordinary */

static int32_t any_int(void) {
    static const int32_t edges[] = {
        INT32_MIN,
        INT32_MIN + 1,
        -2,
        -1,
        0,
        1,
        2,
        575,
        576,
        577,
        RNN_MAX_SEQUENCES,
        RNN_MAX_SEQUENCES + 1,
        (1 << 14),
        (1 << 14) + 1,
        (1 << 24) - 1,
        (1 << 24),
        (1 << 24) + 1,
        RNN_MAX_THREADS,
        RNN_MAX_THREADS + 1,
        INT32_MAX - 1,
        INT32_MAX,
    };
    return edges[byte() % (sizeof edges / sizeof *edges)];
}

static int32_t number(int32_t least, int32_t most) { /* in range, now and then not */
    return odd() ? any_int() : least + byte() % (most - least + 1);
}

static float odd_float(void) {
    static const float edges[] = {NAN,    INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e19f, -1e19f,
                                  1e-40f, -1e-40f,  -0.0f,     1e-30f,  1.0f,     -1.0f};
    return edges[byte() % (sizeof edges / sizeof *edges)];
}

static float real(float scale) { return odd() ? odd_float() : scale * ((float)byte() - 128.0f) / 128.0f; }

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    REQUIRE(memory);
    return memory;
}

static void *blank(size_t bytes) { return memset(allocate(bytes), 0xA5, bytes); }

static bool is_blank(const void *memory, size_t bytes) {
    const uint8_t *b = memory;
    for (size_t i = 0; i < bytes; i++) {
        if (b[i] != 0xA5) return false;
    }
    return true;
}

/* Numbers that repeat after 61: an input of some hundred bytes fills any buffer. */
static float *floats(size_t count, float scale) {
    float *x = allocate(count * sizeof *x), pattern[61];
    for (size_t i = 0; i < 61; i++) pattern[i] = scale * ((float)byte() - 128.0f) / 128.0f;
    for (size_t i = 0; i < count; i++) x[i] = pattern[i % 61];
    if (count && odd()) x[byte() * 7919u % count] = odd_float();
    return x;
}

static int32_t *tokens(size_t count, int32_t V) {
    int32_t *x = allocate(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = (int32_t)byte() % V;
    if (count && odd()) x[byte() % count] = any_int();
    if (count && byte() == 7) x[count - 1] = V;
    return x;
}

static bool all_finite(const float *x, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return false;
    }
    return true;
}

static void *or_null(void *pointer) { return byte() == 255 ? NULL : pointer; }

/* ---- Sizes --------------------------------------------------------------------------------------------------------- */

static void fuzz_sizes(void) {
    rnn_dims dims = {number(1, 40), number(1, 40), number(1, 40)};
    int64_t count = -1;
    int32_t status = rnn_param_count(or_null(&dims), or_null(&count));
    REQUIRE(status == RNN_OK ? count > 0 : count == -1);
    REQUIRE(rnn_strerror(any_int()) && rnn_strerror(status));
    char type[] = {(char)byte(), (char)byte(), (char)byte(), '\0'}; /* no struct has so short a name */
    REQUIRE(rnn_sizeof(type) == 0 && rnn_sizeof("rnn_words") == sizeof(rnn_words));
    /* A guarded range is not read, so it may be any. */
    void *place = (void *)((uintptr_t)byte() << (byte() % 56));
    status = rnn_guard_add(place, odd() ? SIZE_MAX - byte() : (size_t)byte() << (byte() % 56));
    REQUIRE(rnn_guard_lost(place) == 0);
    if (status == RNN_OK) rnn_guard_remove(place);
    /* A workspace of any size: it is made, or refused, or there is no memory for it. */
    rnn_work *work = NULL;
    status =
        rnn_work_create(or_null(&dims), number(1, 9), number(1, 9), number(0, 9), number(-1, 3), number(1, 3), &work);
    REQUIRE((status == RNN_OK) == (work != NULL));
    rnn_work_destroy(work);
    /* No model can be made of sizes that are out of range, and nothing is read to find that out. */
    if (status == RNN_E_DIM && rnn_param_count(&dims, &count) == RNN_E_DIM) {
        float one = 1.0f;
        rnn_model *model = NULL;
        REQUIRE(rnn_model_create(&dims, &one, &one, &one, &one, &one, &one, 0, 1, &model) == RNN_E_DIM && !model);
    }
}

/* ---- Training ------------------------------------------------------------------------------------------------------ */

/* Handles are made once for each of these sizes, and then used by millions of inputs. */
static const rnn_dims sizes[] = {{1, 1, 1}, {2, 3, 1}, {13, 9, 6}, {31, 4, 17}, {40, 20, 33}, {577, 3, 2}};
enum { SIZES = sizeof sizes / sizeof *sizes, MAX_STEPS = 6, MAX_BATCH = 4, MAX_SEQUENCES = 18 };

static void fuzz_training(void) {
    static rnn_work *works[SIZES][2][2];
    size_t which = byte() % SIZES;
    uint8_t kind = byte();
    bool sampled = kind % 2, rounded = kind / 2 % 2;
    rnn_dims dims = sizes[which];
    int32_t V = dims.vocab, E = dims.embed, H = dims.hidden, max_steps = MAX_STEPS, max_batch = MAX_BATCH;
    int64_t P = 0;
    REQUIRE(rnn_param_count(&dims, &P) == RNN_OK);
    int32_t most = sampled ? (V + 1) / 2 : 0; /* candidates */
    rnn_work *work = works[which][sampled][rounded];
    int32_t precision = rounded ? RNN_PRECISION_BF16 : RNN_PRECISION_F32;
    if (!work) REQUIRE(rnn_work_create(&dims, max_steps, max_batch, most, precision, 1, &work) == RNN_OK);
    works[which][sampled][rounded] = work;
    int32_t steps = number(1, max_steps), batch = number(1, max_batch);
    bool fits = steps >= 1 && steps <= max_steps && batch >= 1 && batch <= max_batch;
    size_t B = fits ? (size_t)batch : 1, N = fits ? (size_t)steps * B : 1, S = B * (size_t)H;
    float scale = real(1.0f), size = byte() < 200 ? 0.5f : 1e4f;
    float *params = floats((size_t)P, size), *embeddings = floats((size_t)(V * E), size);
    float *state = floats(S, 0.5f), *state0 = allocate(S * sizeof *state);
    float *grads = blank((size_t)P * sizeof *grads);
    int32_t *x = tokens(N, V), *y = tokens(N, V);
    memcpy(state0, state, S * sizeof *state);
    double loss;
    memset(&loss, 0xA5, sizeof loss);

    int32_t status = rnn_loss(work, or_null(params), embeddings, x, y, steps, batch, state, &loss);
    REQUIRE(!sampled || status != RNN_OK);
    REQUIRE(fits || status != RNN_OK);
    if (status == RNN_OK) {
        REQUIRE(isfinite(loss) && loss >= -1e-3 && all_finite(state, S));
    } else {
        REQUIRE(is_blank(&loss, sizeof loss));
        REQUIRE(memcmp(state, state0, S * sizeof *state) == 0);
    }

    float *advanced = allocate(S * sizeof *advanced);
    memcpy(advanced, state0, S * sizeof *advanced);
    int32_t moved = rnn_advance_state(work, params, embeddings, x, steps, batch, advanced);
    REQUIRE(status != RNN_OK || (moved == RNN_OK && memcmp(state, advanced, S * sizeof *state) == 0));
    REQUIRE(moved == RNN_OK || memcmp(advanced, state0, S * sizeof *state) == 0);

    memcpy(state, state0, S * sizeof *state);
    double plain = loss;
    memset(&loss, 0xA5, sizeof loss);
    int32_t again =
        rnn_loss_grad(work, params, embeddings, x, y, steps, batch, scale, NULL, state, &loss, or_null(grads));
    if (again == RNN_OK) {
        REQUIRE(status != RNN_OK || fabs(loss - plain) <= 1e-3 * (1.0 + fabs(plain)));
    } else {
        REQUIRE(is_blank(&loss, sizeof loss) && is_blank(grads, (size_t)P * sizeof *grads));
        REQUIRE(memcmp(state, state0, S * sizeof *state) == 0);
    }

    /* With dropout, and with candidates: every second word, or fewer, or some that are none. */
    memcpy(state, state0, S * sizeof *state);
    memset(&loss, 0xA5, sizeof loss);
    memset(grads, 0xA5, (size_t)P * sizeof *grads);
    int32_t count = sampled ? 1 + byte() % most : 0;
    float *input_mask = byte() % 2 ? floats(B * (size_t)E, 2.0f) : NULL;
    float *output_mask = byte() % 2 ? floats(S, 2.0f) : NULL, *correction = floats((size_t)count, 4.0f);
    int32_t *candidates = allocate((size_t)count * sizeof *candidates);
    for (int32_t i = 0; i < count; i++) candidates[i] = 2 * i;
    if (count && odd()) candidates[byte() % count] = any_int();
    for (size_t i = 0; count && i < N; i++) y[i] = odd() ? any_int() : y[i] % count;
    rnn_regularization r = {input_mask, output_mask, candidates, correction, odd() ? any_int() : count, 0};
    if (r.candidate_count > count) r.candidate_count = odd() ? INT32_MAX : most + 1; /* never read */
    if (sampled ? odd() : byte() < 200) r.candidates = NULL;
    if (byte() == 5) r.correction = NULL;
    again = rnn_loss_grad(work, params, embeddings, x, y, steps, batch, scale, or_null(&r), state, &loss, grads);
    if (again == RNN_OK) {
        REQUIRE(isfinite(loss) && all_finite(state, S));
    } else {
        REQUIRE(is_blank(&loss, sizeof loss) && memcmp(state, state0, S * sizeof *state) == 0);
        REQUIRE(is_blank(grads, (size_t)P * sizeof *grads));
    }
    free(input_mask), free(output_mask), free(correction), free(candidates), free(advanced);
    free(params), free(embeddings), free(state), free(state0), free(grads), free(x), free(y);
}

static void fuzz_optimizers(void) {
    size_t count = (size_t)byte() * (byte() % 8u);
    int64_t told = odd() ? -1 - byte() : (int64_t)count;
    float *params = floats(count, 1.0f), *grads = floats(count, 1.0f), *m = floats(count, 1.0f);
    float *v = floats(count, 1.0f), *before = allocate(count * sizeof *before);
    memcpy(before, params, count * sizeof *before);
    double norm = -1.0;
    int32_t threads = number(1, 3), status = rnn_grad_norm(or_null(grads), told, threads, &norm);
    REQUIRE(status == RNN_OK ? isfinite(norm) && norm >= 0.0 : norm == -1.0);
    float grad_scale = real(1.0f), lr = real(1.0f), momentum = real(1.0f);
    status = rnn_sgd_update(params, grads, or_null(v), told, grad_scale, lr, momentum, threads);
    REQUIRE(status == RNN_OK || memcmp(params, before, count * sizeof *before) == 0);
    memcpy(before, params, count * sizeof *before);
    rnn_adamw options = {real(1.0f), real(1.0f), real(1.0f), real(1.0f), real(1.0f), number(1, 9)};
    status = rnn_adamw_update(params, grads, m, or_null(v), told, grad_scale, or_null(&options), threads);
    REQUIRE(status == RNN_OK || memcmp(params, before, count * sizeof *before) == 0);
    float rate = real(1.0f);
    memcpy(before, params, count * sizeof *before);
    status = rnn_average_update(params, or_null(grads), told, rate, threads);
    REQUIRE(status == RNN_OK ? rate >= 0.0f && rate <= 1.0f : memcmp(params, before, count * sizeof *before) == 0);
    free(params), free(grads), free(m), free(v), free(before);
}

static void fuzz_words(void) {
    enum { STEPS = 5 };
    int32_t count = 1 + byte() % 9, width = 1 + byte() % 40;
    bool all = odd();
    int32_t id_count = all ? count : byte() % (count + 2);
    size_t size = (size_t)count * (size_t)width;
    float *params = floats(size, 1.0f), *m = floats(size, 1.0f), *v = floats(size, 1.0f), *average = floats(size, 1.0f);
    float *grads = floats((size_t)id_count * (size_t)width, 1.0f), *before = allocate(size * sizeof *before);
    memcpy(before, params, size * sizeof *before);
    int32_t *done = allocate((size_t)count * sizeof *done), *ids = allocate((size_t)id_count * sizeof *ids);
    bool *given = allocate((size_t)count * sizeof *given);
    memset(given, all, (size_t)count * sizeof *given);
    for (int32_t i = 0; i < count; i++) done[i] = odd() ? any_int() : byte() % STEPS;
    for (int32_t i = 0; i < id_count; i++) ids[i] = odd() ? any_int() : i;
    float averaging[STEPS];
    rnn_adamw options[STEPS];
    for (int32_t s = 0; s < STEPS; s++) {
        options[s] = (rnn_adamw){real(1.0f), 0.9f, 0.999f, 1e-8f, real(1.0f), odd() ? any_int() : s + 1};
        averaging[s] = odd() ? odd_float() : 0.5f;
    }
    int32_t decayed = odd() ? any_int() : number(0, width);
    rnn_words words = {or_null(params),        m,      v, odd() ? NULL : average, or_null(done), count,
                       odd() ? -width : width, decayed};
    int32_t step_count = odd() ? -1 : byte() % (STEPS + 1), threads = number(1, 3);
    int32_t status = rnn_adamw_words(or_null(&words), all ? NULL : ids, all ? any_int() : id_count, options, averaging,
                                     step_count, odd() ? NULL : grads, real(1.0f), threads);
    REQUIRE(status == RNN_OK || memcmp(params, before, size * sizeof *before) == 0);
    for (int32_t i = 0; status == RNN_OK && !all && i < id_count; i++) given[ids[i]] = true;
    for (int32_t i = 0; status == RNN_OK && i < count; i++) {
        size_t row = (size_t)i * (size_t)width;
        REQUIRE(given[i] ? done[i] == step_count
                         : memcmp(params + row, before + row, (size_t)width * sizeof *params) == 0);
    }
    free(params), free(m), free(v), free(average), free(grads), free(before), free(done), free(ids), free(given);
}

/* ---- Inference ------------------------------------------------------------------------------------------------------ */

static rnn_sampling sampling_of(int32_t V) {
    static rnn_bias biases[4]; /* of the call that is being made */
    rnn_sampling s = {
        .u = (double)byte() / 256.0, .temperature = (float)byte() / 100.0f, .top_k = byte() % 50, .banned = -1};
    s.top_p = byte() < 128 ? 1.0f : (float)(1 + byte()) / 256.0f;
    s.bias_count = byte() % 8 - 3;
    if (s.bias_count < 0 && !odd()) s.bias_count = 0;
    for (int32_t i = 0; i < s.bias_count; i++)
        biases[i] = (rnn_bias){odd() ? any_int() : (byte() % V + i) % V, real(100.0f)};
    s.biases = or_null(biases);
    if (odd()) s.top_p = odd_float();
    if (odd()) s.u = (double)odd_float();
    if (odd()) s.temperature = odd_float();
    if (odd()) s.top_k = any_int();
    if (byte() < 60) s.banned = byte() % V;
    if (odd()) s.banned = any_int();
    return s;
}

static void check_drawn(const int32_t *drawn, const float *logp, const rnn_sampling *s, size_t n, int32_t V) {
    for (size_t i = 0; i < n; i++) {
        REQUIRE(drawn[i] >= 0 && drawn[i] < V && (V == 1 || drawn[i] != s[i].banned));
        REQUIRE(logp[i] <= 1e-3f);
    }
}

typedef struct setting {
    rnn_decoder *decoder;
    int32_t V, H, max_sequences;
} setting;

/* Few, for speed; now and then more than fit one pass over Why. */
static int32_t sequences(setting s) {
    return byte() < 225 ? 1 + byte() % 2 % s.max_sequences : number(1, s.max_sequences);
}

static void call_sample(setting s) {
    size_t V = (size_t)s.V;
    float *logits = floats(V, 30.0f), logp = 1.0f;
    if (byte() > 200) logits[byte() % V] = -INFINITY;
    rnn_sampling sampling = sampling_of(s.V);
    int32_t token = -7;
    int32_t status = rnn_sample(s.decoder, logits, &sampling, or_null(&token), &logp);
    if (status == RNN_OK) {
        check_drawn(&token, &logp, &sampling, 1, s.V);
        REQUIRE(logits[token] > -INFINITY);
    } else {
        REQUIRE(token == -7 && logp == 1.0f);
    }
    free(logits);
}

static void call_prefill(setting s) {
    int32_t count = number(0, 20);
    size_t room = count >= 0 && count <= 20 ? (size_t)count : 1, H = (size_t)s.H;
    if (count > 20 && count <= RNN_MAX_TOKENS) count = 1; /* the header takes so many, this buffer does not */
    int32_t *ids = tokens(room, s.V);
    float *state = floats(H, 0.5f), *before = allocate(H * sizeof *before);
    memcpy(before, state, H * sizeof *before);
    int32_t status = rnn_prefill(s.decoder, ids, count, or_null(state));
    REQUIRE(status == RNN_OK ? all_finite(state, H) : memcmp(state, before, H * sizeof *before) == 0);
    free(ids), free(state), free(before);
}

static void call_decode(setting s) {
    int32_t told = sequences(s);
    size_t n = told >= 1 && told <= s.max_sequences ? (size_t)told : 1, V = (size_t)s.V, H = (size_t)s.H;
    int32_t *ids = tokens(n, s.V), *next = blank(n * sizeof *next);
    rnn_sampling *sampling = allocate(n * sizeof *sampling), first = sampling_of(s.V);
    for (size_t i = 0; i < n; i++) sampling[i] = byte() < 128 ? first : sampling_of(s.V);
    float *states = floats(n * H, 0.5f), *before = allocate(n * H * sizeof *before);
    float *logp = blank(n * sizeof *logp), *logits = byte() < 128 ? NULL : blank(n * V * sizeof *logits);
    memcpy(before, states, n * H * sizeof *before);
    int32_t status = rnn_decode(s.decoder, told, ids, sampling, states, next, logp, logits);
    if (status == RNN_OK) {
        check_drawn(next, logp, sampling, n, s.V);
        REQUIRE(all_finite(states, n * H) && (!logits || all_finite(logits, n * V)));
    } else {
        REQUIRE(is_blank(next, n * sizeof *next) && is_blank(logp, n * sizeof *logp));
        REQUIRE(memcmp(states, before, n * H * sizeof *before) == 0);
        REQUIRE(!logits || is_blank(logits, n * V * sizeof *logits));
    }
    free(ids), free(next), free(sampling), free(states), free(before), free(logp), free(logits);
}

static void call_logits(setting s) {
    int32_t told = number(1, 20);
    size_t n = told >= 1 && told <= 20 ? (size_t)told : 1, V = (size_t)s.V, H = (size_t)s.H;
    if (told > 20 && told <= RNN_MAX_TOKENS) told = 1; /* the header takes so many, these buffers do not */
    float *states = floats(n * H, 1.0f), *logits = blank(n * V * sizeof *logits);
    int32_t status = rnn_logits(s.decoder, told, or_null(states), logits);
    REQUIRE(status == RNN_OK ? all_finite(logits, n * V) : is_blank(logits, n * V * sizeof *logits));
    free(states), free(logits);
}

static void call_score(setting s) {
    int32_t count = number(2, 20);
    if (count > 600 && count <= RNN_MAX_TOKENS) count = 2;
    size_t room = count >= 2 && count <= 600 ? (size_t)count : 2, H = (size_t)s.H;
    int32_t *ids = tokens(room, s.V);
    float *state = floats(H, 0.5f), *before = allocate(H * sizeof *before), *logp = blank((room - 1) * sizeof *logp);
    memcpy(before, state, H * sizeof *before);
    int32_t status = rnn_score(s.decoder, or_null(ids), count, state, logp);
    if (status == RNN_OK) {
        for (size_t i = 0; i + 1 < room; i++) REQUIRE(logp[i] <= 1e-3f);
        REQUIRE(all_finite(state, H));
    } else {
        REQUIRE(is_blank(logp, (room - 1) * sizeof *logp) && memcmp(state, before, H * sizeof *before) == 0);
    }
    free(ids), free(state), free(before), free(logp);
}

/* Weights of any kind: a model is made of them, or they are refused. What a model makes is then checked once. */
static void fuzz_models(void) {
    int32_t V = 1 + byte() % 40, E = 1 + byte() % 20, H = 1 + byte() % 40;
    rnn_dims dims = {V, E, H};
    float scale = byte() < 220 ? 0.5f : 1e20f;
    float *embeddings = floats((size_t)(V * E), scale), *wxh = floats((size_t)(E * H), scale);
    float *whh = floats((size_t)(H * H), scale), *bh = floats((size_t)H, scale);
    float *why = floats((size_t)(H * V), scale), *by = floats((size_t)V, scale);
    rnn_model *model = NULL;
    rnn_decoder *decoder = NULL;
    int32_t status =
        rnn_model_create(&dims, embeddings, wxh, or_null(whh), bh, why, by, number(0, 2), number(1, 3), &model);
    REQUIRE((status == RNN_OK) == (model != NULL));
    if (model) {
        status = rnn_decoder_create(or_null(model), number(1, 3), number(1, 3), &decoder);
        REQUIRE((status == RNN_OK) == (decoder != NULL));
    }
    if (decoder) call_decode((setting){decoder, V, H, 1});
    rnn_decoder_destroy(decoder);
    rnn_model_destroy(model);
    free(embeddings), free(wxh), free(whh), free(bh), free(why), free(by);
}

/* The decoders of models in all sizes and precisions, made once. The weights are theirs for good. */
static setting setting_of(size_t which, int32_t precision) {
    static setting settings[SIZES][3];
    setting *s = &settings[which][precision];
    if (s->decoder) return *s;
    rnn_dims dims = sizes[which];
    int64_t P = 0;
    REQUIRE(rnn_param_count(&dims, &P) == RNN_OK);
    size_t V = (size_t)dims.vocab, E = (size_t)dims.embed, H = (size_t)dims.hidden;
    float *p = allocate((size_t)P * sizeof *p), *embeddings = allocate(V * E * sizeof *p);
    for (size_t i = 0; i < (size_t)P; i++) p[i] = (float)(i * 7919 % 1009) / 1009.0f - 0.5f;
    for (size_t i = 0; i < V * E; i++) embeddings[i] = (float)(i * 6007 % 997) / 997.0f - 0.5f;
    const float *whh = p + E * H, *bh = whh + H * H, *why = bh + H, *by = why + H * V;
    rnn_model *model = NULL;
    REQUIRE(rnn_model_create(&dims, embeddings, p, whh, bh, why, by, precision, 1, &model) == RNN_OK);
    free(embeddings);
    *s = (setting){NULL, dims.vocab, dims.hidden, MAX_SEQUENCES};
    REQUIRE(rnn_decoder_create(model, MAX_SEQUENCES, 1, &s->decoder) == RNN_OK);
    return *s;
}

static void fuzz_inference(void) {
    static void (*const calls[])(setting) = {call_sample, call_prefill, call_decode, call_logits, call_score};
    size_t which = byte() % SIZES;
    setting s = setting_of(which, byte() % 3);
    calls[byte() % (sizeof calls / sizeof *calls)](s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const groups[])(void) = {fuzz_sizes,     fuzz_models,    fuzz_training,  fuzz_optimizers, fuzz_words,
                                           fuzz_inference, fuzz_inference, fuzz_inference, fuzz_inference};
    input = data;
    left = size;
    groups[byte() % (sizeof groups / sizeof *groups)]();
    return 0;
}
