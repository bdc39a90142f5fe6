/* fixed_run.c -- one fixed training run, and what the model then writes, through public functions only.
 *
 * Prints every number on a line of its own, "name value", so that the runs of two systems can be compared
 * (tests/platforms.py). Linked against the shared library, not against its objects: so its exports are tested too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rnnlib.h"

enum { V = 700, E = 21, H = 37, T = 12, B = 3, STEPS = 8, WORDS = 40, P = E * H + H * H + H + H * V + V };

/* What the library refuses ends the run: there is then nothing to compare. */
static void need(int32_t status, const char *what) {
    if (status != RNN_OK) {
        fprintf(stderr, "%s: %s\n", what, rnn_strerror(status));
        exit(1);
    }
}

/* Knuth's MMIX generator: the same numbers on every system, unlike rand(). */
static double uniform(void) {
    static uint64_t seed = 1;
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static void fill(float *x, size_t count, double scale) {
    for (size_t i = 0; i < count; i++) x[i] = (float)(scale * (uniform() - 0.5));
}

static float params[P], grads[P], m[P], v[P], embeddings[V * E], state[B * H];
static int32_t x[T * B], y[T * B];

static void train(void) {
    static const rnn_dims dims = {V, E, H};
    rnn_work *work = NULL;
    need(rnn_work_create(&dims, T, B, 0, RNN_PRECISION_F32, 2, &work), "rnn_work_create");
    rnn_adamw options = {0.01f, 0.9f, 0.999f, 1e-8f, 0.01f, 0};
    for (int step = 1; step <= STEPS; step++) {
        for (int i = 0; i < T * B; i++) {
            x[i] = (int32_t)(uniform() * V);
            y[i] = (x[i] * 7 + 3) % V; /* something that can be learned */
        }
        double loss, norm;
        need(rnn_loss_grad(work, params, embeddings, x, y, T, B, 1.0f / (T * B), NULL, state, &loss, grads),
             "rnn_loss_grad");
        need(rnn_grad_norm(grads, P, 2, &norm), "rnn_grad_norm");
        printf("loss%d %.9g\nnorm%d %.9g\n", step, loss / (T * B), step, norm);
        options.step = step;
        if (step % 2) {
            need(rnn_adamw_update(params, grads, m, v, P, 1.0f, &options, 2), "rnn_adamw_update");
        } else {
            need(rnn_sgd_update(params, grads, NULL, P, 1.0f, 0.1f, 0.0f, 2), "rnn_sgd_update");
        }
    }
    double loss;
    need(rnn_loss(work, params, embeddings, x, y, T, B, state, &loss), "rnn_loss");
    printf("loss %.9g\n", loss / (T * B));
    for (int i = 0; i < B * H; i += 11) printf("state%d %.9g\n", i, (double)state[i]);
    for (int i = 0; i < P; i += 997) printf("param%d %.9g\n", i, (double)params[i]);
    rnn_work_destroy(work);
}

static void generate(int32_t precision) {
    static const rnn_dims dims = {V, E, H};
    const float *wxh = params, *whh = wxh + E * H, *bh = whh + H * H, *why = bh + H, *by = why + H * V;
    rnn_model *model = NULL;
    rnn_decoder *decoder = NULL;
    need(rnn_model_create(&dims, embeddings, wxh, whh, bh, why, by, precision, 2, &model), "rnn_model_create");
    need(rnn_decoder_create(model, 2, 2, &decoder), "rnn_decoder_create");
    rnn_sampling sampling[] = {{.temperature = 0.8f, .top_k = 20, .banned = 1, .top_p = 0.9f}, {.banned = -1}};
    int32_t tokens[] = {5, 38}, out[WORDS];
    float states[2 * H] = {0}, logp[2];
    for (int i = 0; i < WORDS; i++) {
        for (int j = 0; j < 2; j++) sampling[j].u = uniform();
        need(rnn_decode(decoder, 2, tokens, sampling, states, tokens, logp, NULL), "rnn_decode");
        for (int j = 0; j < 2; j++) {
            printf("p%d.token%d.%d %d\np%d.logp%d.%d %.9g\n", (int)precision, j, i, (int)tokens[j], (int)precision, j,
                   i, (double)logp[j]);
        }
        out[i] = tokens[0];
    }
    float score[WORDS - 1], start[H] = {0};
    need(rnn_score(decoder, out, WORDS, start, score), "rnn_score");
    for (int i = 0; i < WORDS - 1; i++) printf("p%d.score%d %.9g\n", (int)precision, i, (double)score[i]);
    rnn_decoder_destroy(decoder);
    rnn_model_destroy(model);
}

int main(void) {
    if (rnn_abi_version() != RNN_ABI_VERSION) {
        fprintf(stderr, "the library has ABI version %d, its header %d\n", (int)rnn_abi_version(), RNN_ABI_VERSION);
        return 1;
    }
    fill(params, P, 0.3);
    fill(embeddings, V * E, 3.0);
    train();
    for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) generate(precision);
    return 0;
}
