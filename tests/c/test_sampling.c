/* test_sampling.c -- which tokens are drawn from, against a sort in double precision. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "problem.h"
#include "testing.h"
#include "tests.h"

/* A decoder for rows of V logits; what its model has learned is not used. */
typedef struct sampler {
    problem p;
    rnn_model *model;
    rnn_decoder *decoder;
} sampler;

static sampler make_sampler(size_t V) {
    sampler s = {.p = make_problem(V, 1, 1, 1, 1)};
    const float *q = s.p.params;
    CHECK(rnn_model_create(&s.p.dims, s.p.embeddings, q + s.p.at.wxh, q + s.p.at.whh, q + s.p.at.bh, q + s.p.at.why,
                           q + s.p.at.by, RNN_PRECISION_F32, 1, &s.model) == RNN_OK);
    CHECK(rnn_decoder_create(need(s.model), 1, 1, &s.decoder) == RNN_OK);
    need(s.decoder);
    return s;
}

static void free_sampler(sampler *s) {
    rnn_decoder_destroy(s->decoder);
    rnn_model_destroy(s->model);
    free_problem(&s->p);
}

/* A caller may have threads of its own. Each has a decoder, whose scratch memory is for one thread. */
void test_sampling_in_threads_of_the_caller(void) {
    enum { V = 5000, THREADS = 4 };
    sampler s = make_sampler(V);
    float *z = random_floats(V, 2.0);
    int32_t tokens[THREADS], want = -1;
    rnn_sampling draw = {.u = 0.7, .temperature = 1.0f, .top_k = 40, .top_p = 0.9f, .banned = -1};
    CHECK(rnn_sample(s.decoder, z, &draw, &want, NULL) == RNN_OK);
    RNN_OMP(parallel for num_threads(THREADS) schedule(static, 1))
    for (int i = 0; i < THREADS; i++) {
        rnn_decoder *own = NULL;
        CHECK(rnn_decoder_create(s.model, 1, 1, &own) == RNN_OK);
        CHECK(rnn_sample(need(own), z, &draw, tokens + i, NULL) == RNN_OK);
        rnn_decoder_destroy(own);
    }
    for (int i = 0; i < THREADS; i++) CHECK(tokens[i] == want);
    free(z);
    free_sampler(&s);
}

static const float *sorted_logits; /* what `order` compares; qsort takes no context */

static int order(const void *a, const void *b) {
    int32_t v = *(const int32_t *)a, w = *(const int32_t *)b;
    float x = sorted_logits[v], y = sorted_logits[w];
    return x > y ? -1 : x < y ? 1 : v < w ? -1 : 1;
}

/* The tokens by rank, and of each its weight beside the largest. */
static void rank_tokens(const float *z, size_t V, double temperature, int32_t *by_rank, double *weight) {
    for (size_t v = 0; v < V; v++) by_rank[v] = (int32_t)v;
    sorted_logits = z;
    qsort(by_rank, V, sizeof *by_rank, order);
    for (size_t v = 0; v < V; v++) weight[v] = exp(((double)z[v] - (double)z[by_rank[0]]) / temperature);
}

/* How many tokens are kept, were the share that they must hold `slack` larger. */
static size_t kept_tokens(const int32_t *by_rank, const double *weight, size_t V, int32_t top_k, float top_p,
                          double slack) {
    size_t most = top_k > 0 && (size_t)top_k < V ? (size_t)top_k : V, kept = 0;
    double whole = 0.0, sum = 0.0;
    for (size_t r = 0; r < most; r++) whole += weight[by_rank[r]];
    if (top_p == 1.0f) return most;
    while (kept < most && (kept == 0 || sum < (double)top_p * whole * (1.0 + slack))) sum += weight[by_rank[kept++]];
    return kept;
}

/* Weights of the tokens that can be drawn, in order of id: (V + 1) sums of those before each token, and of all. */
static double *sums_of(const double *weight, const int32_t *rank, size_t V, size_t kept) {
    double *sums = doubles(V + 1);
    for (size_t v = 0; v < V; v++) sums[v + 1] = sums[v] + ((size_t)rank[v] < kept ? weight[v] : 0.0);
    return sums;
}

/* Whether u, up to rounding, falls on token v. */
static bool falls_on(const double *sums, size_t V, double u, size_t v) {
    double total = sums[V];
    return sums[v] / total <= u + 1e-5 && u <= sums[v + 1] / total + 1e-5;
}

/* Whether u, up to rounding, can fall on a token that is not kept. */
static bool falls_outside(const double *sums, const double *weight, const int32_t *rank, size_t V, size_t kept,
                          double u) {
    for (size_t v = 0; v < V; v++) {
        if ((size_t)rank[v] >= kept && weight[v] > 0.0 && falls_on(sums, V, u, v)) return true;
    }
    return false;
}

/* SplitMix64 of u: each of the constants stands in the paper by Steele, Lea & Flood. */
static double second_number(double u) {
    uint64_t x = (uint64_t)ldexp(u, 53) + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return ldexp((double)((x ^ (x >> 31)) >> 11), -53);
}

/* Draws all over [0,1) from z: each token is where u falls among those that top_k keeps, or, if that one is not of the share
 * top_p, where the second number falls among those that are. Without top_p, the first and the last token that can be drawn
 * are the right ones. */
static void check_draws(const sampler *s, const float *z, float temperature, int32_t top_k, float top_p) {
    size_t V = s->p.V;
    int32_t *by_rank = ints(V), *rank = ints(V), before = 0, token = -1, first = -1, last = -1;
    double *weight = doubles(V);
    rank_tokens(z, V, temperature, by_rank, weight);
    for (size_t r = 0; r < V; r++) rank[by_rank[r]] = (int32_t)r;
    size_t number = kept_tokens(by_rank, weight, V, top_k, 1.0f, 0.0);
    size_t kept = kept_tokens(by_rank, weight, V, top_k, top_p, 0.0);
    bool certain = kept == kept_tokens(by_rank, weight, V, top_k, top_p, 1e-6) &&
                   kept == kept_tokens(by_rank, weight, V, top_k, top_p, -1e-6);
    double *whole = sums_of(weight, rank, V, number), *share = sums_of(weight, rank, V, kept);
    for (size_t v = 0; v < V; v++) {
        if ((size_t)rank[v] >= number || weight[v] <= 1e-30) continue;
        if (first < 0) first = (int32_t)v;
        last = (int32_t)v;
    }
    rnn_sampling sampling = {.temperature = temperature, .top_k = top_k, .banned = -1, .top_p = top_p};
    for (int i = 0; i <= 20; i++) {
        double u = i < 20 ? i / 20.0 : 1.0 - 0x1p-53;
        float logp = 1.0f;
        sampling.u = u;
        CHECK(rnn_sample(s->decoder, z, &sampling, &token, &logp) == RNN_OK && logp <= 1e-3f);
        CHECK((size_t)rank[token] < number); /* whatever top_p rounds to */
        if (top_p == 1.0f) {
            CHECK(token >= before);
            before = token;
            if (i == 0) CHECK(token == first || (token < first && weight[token] <= 1e-30));
        }
        if (!certain) continue;
        CHECK((size_t)rank[token] < kept);
        if (falls_on(whole, V, u, (size_t)token)) continue;
        CHECK(top_p < 1.0f && falls_outside(whole, weight, rank, V, kept, u));
        CHECK(falls_on(share, V, second_number(u), (size_t)token));
    }
    /* The largest u draws the last token, unless its weight is lost beside the others. None after it weighs more than 0 in
     * float, but for one of less than 1e-30 that some kernels, with denormal numbers, still have. */
    if (top_p == 1.0f && weight[last] > 1e-6 * whole[V]) {
        CHECK(token == last || (token > last && weight[token] <= 1e-30));
    }
    free(by_rank), free(rank), free(weight), free(whole), free(share);
}

enum { KINDS = 12 };

/* Logits of a kind: as a trained model has them, as an untrained one, with ties, with words that cannot be drawn, far apart,
 * or arranged to mislead whoever looks at only some of them. */
static float *logits_of(int kind, size_t V) {
    float *z = random_floats(V, kind == 1 ? 0.05 : 3.0);
    for (size_t v = 0; v < V; v++) {
        if (kind == 0) z[v] -= logf((float)(v + 1));
        if (kind == 2) z[v] = rintf(z[v]); /* ties in all blocks */
        if (kind == 3) z[v] = 1.25f;       /* nothing but one */
        if (kind == 4) z[v] *= 30.0f;      /* most weights vanish */
        if (kind == 5 && v % 3) z[v] = -INFINITY;
        if (kind == 6) z[v] = v % 100 == 50 ? 1.0f : -80.0f;
        if (kind == 7) z[v] = v == V / 2 ? 250.0f : -250.0f;                     /* one word has it all */
        if (kind == 8) z[v] = v % 2 ? 80.0f : -80.0f;                            /* many have it, and equally */
        if (kind == 9) z[v] = v < V / 3 ? 2.0f : 1.0f;                           /* a cut lies within equal ones */
        if (kind == 10) z[v] = v / 288 % 2 ? 3.0f : -0.001f * (float)(v % 288);  /* a sample of lines misleads */
        if (kind == 11) z[v] = (v * 7919 % 16 ? 0.0f : 5.0f) + 1e-6f * (float)v; /* all but equal */
    }
    return z;
}

void test_cuts(void) {
    static const size_t sizes[] = {1, 2, 50, 577, 1500, 9001};
    static const float shares[] = {1e-7f, 0.1f, 0.5f, 0.9f, 0.99f, 0x1.fffffep-1f, 1.0f},
                       temperatures[] = {1.0f, 0.5f, 30.0f, 1e-35f, 1e35f};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t V = sizes[i];
        sampler s = make_sampler(V);
        const int32_t counts[] = {0, 1, 5, 40, (int32_t)V - 1, INT32_MAX};
        for (int kind = 0; kind < KINDS; kind++) {
            float *z = logits_of(kind, V);
            for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
                for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
                    for (size_t p = 0; p < sizeof shares / sizeof *shares; p++) {
                        if (V > 2000 && ((k + p + t) % 7 || t > 2))
                            continue; /* a seventh, at the first three temperatures */
                        check_draws(&s, z, temperatures[t], counts[k], shares[p]);
                    }
                }
            }
            free(z);
        }
        free_sampler(&s);
    }
}

/* Drawing with biases and a ban is drawing from logits that have them; the log-probability is that of the logits as given. */
void test_biases(void) {
    enum { V = 1500 };
    sampler s = make_sampler(V);
    float *z = random_floats(V, 3.0), *changed = floats(V);
    double sum = 0.0;
    for (size_t v = 0; v < V; v++) sum += exp((double)z[v]);
    /* At both ends of blocks and of the vocabulary; the largest decide everything. */
    static const rnn_bias biases[] = {{0, 2.5f}, {3, -100.0f}, {575, 6.0f}, {576, -0.5f}, {1151, 7.0f}, {1499, 6.5f}};
    for (int32_t count = 0; count <= 6; count++) {
        for (int i = 0; i < 40; i++) {
            int32_t banned = i % 3 == 0 ? 1151 : -1, token = -1, want = -2;
            float logp = 1.0f;
            memcpy(changed, z, V * sizeof *z);
            for (int32_t j = 0; j < count; j++) changed[biases[j].token] += biases[j].value;
            if (banned >= 0) changed[banned] = -INFINITY;
            rnn_sampling plain = {.u = i / 40.0,
                                  .temperature = i % 5 == 0   ? 0.0f
                                                 : i % 5 == 1 ? 0.7f
                                                              : 1.0f,
                                  .banned = -1};
            plain.top_k = i % 4 == 1 ? 20 : 0;
            plain.top_p = i % 4 > 1 ? 0.8f : 1.0f;
            rnn_sampling biased = plain;
            biased.biases = biases, biased.bias_count = count, biased.banned = banned;
            CHECK(rnn_sample(s.decoder, z, &biased, &token, &logp) == RNN_OK);
            CHECK(rnn_sample(s.decoder, changed, &plain, &want, NULL) == RNN_OK);
            CHECK(token == want);
            CHECK_BELOW(fabs(logp - ((double)z[token] - log(sum))), 1e-5);
        }
    }
    /* A bias of -100 all but bans, and one of 100 all but takes nothing else, while logits are less far apart. */
    size_t best = 0;
    for (size_t v = 0; v < V; v++) best = z[v] > z[best] ? v : best;
    rnn_bias one = {(int32_t)best, -100.0f}, other = {77, 100.0f};
    rnn_sampling draw = {.u = 0.0, .temperature = 0.0f, .banned = -1, .biases = &one, .bias_count = 1, .top_p = 1.0f};
    int32_t token = -1;
    CHECK(rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_OK && token != (int32_t)best);
    draw.biases = &other, draw.temperature = 1.0f;
    for (int i = 0; i < 20; i++) {
        draw.u = (i + 0.5) / 20.0;
        CHECK(rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_OK && token == 77);
    }

    const rnn_bias bad[][2] = {{{5, 1.0f}, {5, 1.0f}},     {{6, 1.0f}, {5, 1.0f}}, {{-1, 1.0f}, {5, 1.0f}},
                               {{5, 1.0f}, {V, 1.0f}},     {{5, NAN}, {6, 1.0f}},  {{5, 2e6f}, {6, 1.0f}},
                               {{5, 1.0f}, {6, -INFINITY}}};
    token = -7;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        rnn_sampling refused = {
            .temperature = i % 2 ? 0.0f : 1.0f, .banned = -1, .top_p = 1.0f, .biases = bad[i], .bias_count = 2};
        CHECK(rnn_sample(s.decoder, z, &refused, &token, NULL) == (i < 4 ? RNN_E_TOKEN : RNN_E_ARG));
    }
    draw.bias_count = -1;
    CHECK(rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_E_ARG);
    draw.bias_count = 1, draw.biases = NULL;
    CHECK(rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_E_ARG);
    draw.bias_count = 0;
    static const float shares[] = {0.0f, -0.1f, 1.0001f, NAN, INFINITY};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        draw.top_p = shares[i];
        CHECK(rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_E_ARG);
    }
    draw.temperature = 0.0f; /* top_p is then not looked at */
    CHECK(token == -7 && rnn_sample(s.decoder, z, &draw, &token, NULL) == RNN_OK && token == (int32_t)best);
    free(z), free(changed);
    free_sampler(&s);
}
