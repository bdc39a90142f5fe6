/* test_threads.c -- one model shared by many threads, and models that are replaced while they are used.
 *
 * Worth most under a race detector (make test-threads: ThreadSanitizer); on its own it compares results.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "rnnlib.h"
#include "testing.h"

enum { V = 1100, E = 7, H = 19, SEQUENCES = 5, LENGTH = 12, WORKERS = 4, ROUNDS = 12, VERSIONS = 6 };

/* ---- Weights, and what a thread does with a model ------------------------------------------------------------------ */

typedef struct weights {
    float embeddings[V * E], wxh[E * H], whh[H * H], bh[H], why[H * V], by[V];
} weights;

static weights *make_weights(uint64_t seed) {
    weights *w = need(malloc(sizeof *w));
    float *x = (float *)w;
    for (size_t i = 0; i < sizeof *w / sizeof *x; i++) x[i] = (float)(2.0 * uniform_after(&seed) - 1.0);
    return w;
}

static rnn_model *make_model(const weights *w, int32_t precision, int32_t threads) {
    rnn_dims dims = {V, E, H};
    rnn_model *model = NULL;
    CHECK(rnn_model_create(&dims, w->embeddings, w->wxh, w->whh, w->bh, w->why, w->by, precision, threads, &model) ==
          RNN_OK);
    return model;
}

typedef struct result {
    int32_t tokens[LENGTH * SEQUENCES];
    float logp[LENGTH * SEQUENCES], scores[LENGTH - 1], states[SEQUENCES * H], logits[SEQUENCES * V];
} result;

/* Every call of a decoder. */
static void use_model(const rnn_model *model, int32_t threads, result *r) {
    int32_t tokens[SEQUENCES];
    rnn_sampling sampling[SEQUENCES];
    uint64_t seed = 7;
    memset(r, 0, sizeof *r);
    rnn_decoder *decoder = NULL;
    CHECK(rnn_decoder_create(model, SEQUENCES, threads, &decoder) == RNN_OK);
    if (!decoder) return;
    for (int32_t i = 0; i < SEQUENCES; i++) {
        int32_t first = 3 * i;
        tokens[i] = V - 1 - i;
        sampling[i] = (rnn_sampling){.u = 0.5, .temperature = i % 2 ? 1.0f : 0.0f, .top_p = i == 1 ? 0.3f : 1.0f};
        sampling[i].top_k = i == 3 ? 40 : 0;
        sampling[i].banned = i == 4 ? 9 : -1;
        CHECK(rnn_prefill(decoder, &first, 1, r->states + i * H) == RNN_OK);
    }
    for (int32_t t = 0; t < LENGTH; t++) {
        for (int32_t i = 0; i < SEQUENCES; i++) sampling[i].u = uniform_after(&seed);
        CHECK(rnn_decode(decoder, SEQUENCES, tokens, sampling, r->states, tokens, r->logp + t * SEQUENCES, NULL) ==
              RNN_OK);
        memcpy(r->tokens + t * SEQUENCES, tokens, sizeof tokens);
    }
    CHECK(rnn_logits(decoder, SEQUENCES, r->states, r->logits) == RNN_OK);
    CHECK(rnn_score(decoder, r->tokens, LENGTH, r->states, r->scores) == RNN_OK);
    rnn_decoder_destroy(decoder);
}

/* ---- One model, many decoders --------------------------------------------------------------------------------------- */

typedef struct share {
    const rnn_model *model;
    const result *want;
    int32_t threads;
} share;

static void *share_model(void *argument) {
    const share *s = argument;
    result *got = need(malloc(sizeof *got));
    for (int i = 0; i < ROUNDS; i++) {
        use_model(s->model, s->threads, got);
        CHECK(memcmp(got, s->want, sizeof *got) == 0);
    }
    free(got);
    return NULL;
}

static void run_workers(void *(*work)(void *), void *argument) {
    pthread_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        if (pthread_create(&workers[i], NULL, work, argument)) exit(2);
    }
    for (int i = 0; i < WORKERS; i++) pthread_join(workers[i], NULL);
}

static void test_shared_model(void) {
    weights *w = make_weights(1);
    result *want = need(malloc(sizeof *want));
    for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) {
        for (int32_t threads = 1; threads <= 2; threads++) {
            rnn_model *model = make_model(w, precision, threads);
            use_model(model, 1, want);
            share s = {model, want, threads};
            run_workers(share_model, &s);
            rnn_model_destroy(model);
        }
    }
    free(want);
    free(w);
}

/* ---- Models that are replaced while they are used --------------------------------------------------------------------- */

typedef struct version {
    weights *weights;
    rnn_model *model;
    result want;
    int users; /* under `lock`; dropping the last one destroys the version */
} version;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static version *current;
static int stop_workers;

static version *make_version(uint64_t seed) {
    version *v = need(malloc(sizeof *v));
    v->weights = make_weights(seed);
    v->model = make_model(v->weights, RNN_PRECISION_F32, 1);
    use_model(v->model, 1, &v->want);
    v->users = 1; /* being current */
    return v;
}

static void drop(version *v) {
    pthread_mutex_lock(&lock);
    int left = --v->users;
    pthread_mutex_unlock(&lock);
    if (left) return;
    rnn_model_destroy(v->model);
    free(v->weights);
    free(v);
}

static void *use_current(void *argument) {
    int *uses = argument;
    result *got = need(malloc(sizeof *got));
    for (;;) {
        pthread_mutex_lock(&lock);
        version *v = stop_workers ? NULL : current;
        if (v) {
            v->users++;
            (*uses)++;
        }
        pthread_mutex_unlock(&lock);
        if (!v) break;
        use_model(v->model, 1, got);
        CHECK(memcmp(got, &v->want, sizeof *got) == 0);
        drop(v);
    }
    free(got);
    return NULL;
}

static void *replace(void *argument) {
    (void)argument;
    for (uint64_t i = 0; i < VERSIONS; i++) {
        version *next = make_version(100 + i);
        pthread_mutex_lock(&lock);
        version *old = current;
        current = next;
        pthread_mutex_unlock(&lock);
        drop(old);
    }
    pthread_mutex_lock(&lock);
    stop_workers = 1;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void test_replacement(void) {
    int uses = 0;
    pthread_t replacer;
    current = make_version(99);
    stop_workers = 0;
    if (pthread_create(&replacer, NULL, replace, NULL)) exit(2);
    run_workers(use_current, &uses);
    pthread_join(replacer, NULL);
    CHECK(uses > 0);
    CHECK(current->users == 1); /* everybody has given back what they took */
    drop(current);
    current = NULL;
}

/* ---- Training: each thread its own workspace, the parameters shared and only read -------------------------------------- */

static void *train(void *argument) {
    const weights *w = argument;
    enum { STEPS = 9, BATCH = 3 };
    rnn_dims dims = {V, E, H};
    rnn_work *work = NULL;
    int32_t x[STEPS * BATCH], y[STEPS * BATCH];
    float state[BATCH * H] = {0};
    double loss = 0.0, first = 0.0;
    float *grads = need(malloc(sizeof *w));
    for (int32_t i = 0; i < STEPS * BATCH; i++) {
        x[i] = i;
        y[i] = V - 1 - i;
    }
    CHECK(rnn_work_create(&dims, STEPS, BATCH, 0, RNN_PRECISION_F32, 2, &work) == RNN_OK);
    for (int i = 0; i < ROUNDS && work; i++) {
        memset(state, 0, sizeof state);
        CHECK(rnn_loss_grad(work, w->wxh, w->embeddings, x, y, STEPS, BATCH, 1.0f, NULL, state, &loss, grads) ==
              RNN_OK);
        first = i ? first : loss;
        CHECK(loss == first);
    }
    rnn_work_destroy(work);
    free(grads);
    return NULL;
}

static void test_training(void) {
    weights *w = make_weights(5); /* from wxh on it is laid out as the flat parameters are */
    run_workers(train, w);
    free(w);
}

static const test tests[] = {
    {"many decoders on one model", test_shared_model},
    {"models replaced under load", test_replacement},
    {"many workspaces on the same parameters", test_training},
};

int main(void) { return run_tests(tests, sizeof tests / sizeof *tests); }
