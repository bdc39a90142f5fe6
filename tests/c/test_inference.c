/* test_inference.c -- decoding, scoring and sampling, against the loss and what rnnlib.h promises. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "problem.h"
#include "testing.h"
#include "tests.h"

static rnn_model *model_for(const problem *p, int32_t precision) {
    rnn_model *model = NULL;
    const float *q = p->params;
    CHECK(rnn_model_create(&p->dims, p->embeddings, q + p->at.wxh, q + p->at.whh, q + p->at.bh, q + p->at.why,
                           q + p->at.by, precision, 2, &model) == RNN_OK);
    return need(model);
}

static rnn_decoder *decoder_for(const rnn_model *model, int32_t sequences, int32_t threads) {
    rnn_decoder *decoder = NULL;
    CHECK(rnn_decoder_create(model, sequences, threads, &decoder) == RNN_OK);
    return need(decoder);
}

void test_decode_matches_loss(void) {
    static const size_t sizes[][4] = {{700, 11, 23, 40}, {1, 2, 3, 40},     {31, 3, 100, 40},
                                      {577, 4, 1, 40},   {1100, 4, 33, 40}, {2707, 3, 98, 70}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        problem p = make_problem(sizes[s][0], sizes[s][1], sizes[s][2], sizes[s][3], 1);
        memset(p.state, 0, p.H * sizeof(float));
        for (size_t t = 0; t + 1 < p.T; t++) p.y[t] = p.x[t + 1];
        double *q = widen(p.params, p.at.count), *want = doubles(p.T), *want_state = doubles(p.H);
        lesson_loss(&p, q, 1.0, NULL, want_state, want);
        rnn_model *model = model_for(&p, RNN_PRECISION_F32);
        rnn_decoder *decoder = decoder_for(model, 3, 2);
        float *state = floats(p.H), *logp = floats(p.T), *logits = floats(p.V), *stepped = floats(p.H);
        int32_t *tokens = ints(p.T + 1), next = -1;
        memcpy(tokens, p.x, p.T * sizeof *tokens);
        tokens[p.T] = p.y[p.T - 1];
        CHECK(rnn_score(decoder, tokens, (int32_t)p.T + 1, state, logp) == RNN_OK);
        CHECK_BELOW(rel_err(logp, want, p.T), 1e-5);
        CHECK_BELOW(rel_err(state, want_state, p.H), 1e-5);

        /* The same token by token: prefill all but the last, then one step. */
        rnn_sampling greedy = {.u = NAN, .top_k = -5, .banned = -1}; /* at temperature 0 the rest is not looked at */
        float last = 0.0f;
        CHECK(rnn_prefill(decoder, tokens, (int32_t)p.T - 1, stepped) == RNN_OK);
        CHECK(rnn_decode(decoder, 1, &tokens[p.T - 1], &greedy, stepped, &next, &last, logits) == RNN_OK);
        CHECK(same(stepped, state, p.H * sizeof *state));
        float *again = floats(p.V);
        CHECK(rnn_logits(decoder, 1, state, again) == RNN_OK && same(again, logits, p.V * sizeof *logits));
        free(again);
        double sum = 0.0;
        size_t best = 0;
        for (size_t v = 0; v < p.V; v++) {
            sum += exp((double)logits[v]);
            if (logits[v] > logits[best]) best = v;
        }
        CHECK_BELOW(fabs(logits[tokens[p.T]] - log(sum) - want[p.T - 1]), 1e-5);
        CHECK((size_t)next == best);
        CHECK_BELOW(fabs(logits[next] - log(sum) - last), 1e-5);
        rnn_decoder_destroy(decoder);
        rnn_model_destroy(model);
        free(q);
        free(want);
        free(want_state);
        free(state);
        free(stepped);
        free(logp);
        free(logits);
        free(tokens);
        free_problem(&p);
    }
}

/* Log-probabilities of a text from calls of at most `most` tokens. */
static void score_in_calls(const rnn_model *model, int32_t threads, const int32_t *tokens, int32_t count, int32_t most,
                           float *state, float *logp) {
    rnn_decoder *decoder = decoder_for(model, 1, threads);
    for (int32_t i = 0; i + 1 < count; i += most) {
        int32_t here = count - 1 - i < most ? count - 1 - i : most;
        CHECK(rnn_score(decoder, tokens + i, here + 1, state, logp + i) == RNN_OK);
    }
    rnn_decoder_destroy(decoder);
}

/* The same bits for any number of threads, and however a text is cut into calls: Why as it lies, or packed for long ones. */
void test_score_in_parts(void) {
    static const size_t sizes[][3] = {{2707, 5, 98}, {700, 3, 23}, {577, 4, 1}, {1, 2, 3}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) {
            if (s == 0 && precision != RNN_PRECISION_F32) break; /* slow with plain loops; only float32 packs */
            problem p = make_problem(sizes[s][0], sizes[s][1], sizes[s][2], 601, 1);
            int32_t count = (int32_t)p.T;
            rnn_model *model = model_for(&p, precision);
            float *state = floats(p.H), *logp = floats(p.T), *other_state = floats(p.H), *other = floats(p.T);
            score_in_calls(model, 1, p.x, count, count, state, logp);
            static const int32_t most[] = {17, 49, 250};
            for (size_t i = 0; i < sizeof most / sizeof *most; i++) {
                memset(other_state, 0, p.H * sizeof *state);
                score_in_calls(model, 1 + (int32_t)i % 3, p.x, count, most[i], other_state, other);
                CHECK(same(other, logp, (p.T - 1) * sizeof *logp) && same(other_state, state, p.H * sizeof *state));
            }
            rnn_model_destroy(model);
            free(state), free(logp), free(other_state), free(other);
            free_problem(&p);
        }
    }
}

/* No token banned, none cut off by its probability. */
static rnn_sampling sampling_of(double u, float temperature, int32_t top_k) {
    return (rnn_sampling){.u = u, .temperature = temperature, .top_k = top_k, .banned = -1, .top_p = 1.0f};
}

/* 37 sequences in one call, and each in a call of its own: the same bits. */
static void compare_company(int32_t precision) {
    enum { SEQUENCES = 37, STEPS = 12 };
    problem p = make_problem(1111, 5, 29, 1, 1);
    rnn_model *model = model_for(&p, precision);
    rnn_decoder *many = decoder_for(model, SEQUENCES, 3), *one = decoder_for(model, 1, 1);
    float *states = floats(SEQUENCES * p.H), *alone = floats(SEQUENCES * p.H);
    float *logits = floats(SEQUENCES * p.V), *logits_alone = floats(SEQUENCES * p.V);
    int32_t tokens[SEQUENCES], tokens_alone[SEQUENCES];
    float logp[SEQUENCES], logp_alone[SEQUENCES];
    rnn_sampling sampling[SEQUENCES];
    const rnn_bias biases[] = {{0, 5.0f}, {575, -2.0f}, {1110, 7.0f}};
    for (size_t i = 0; i < SEQUENCES; i++) {
        int32_t prompt[3], length = 1 + (int32_t)i % 3;
        for (int32_t t = 0; t < length; t++) prompt[t] = (int32_t)(uniform() * 1111);
        sampling[i] = sampling_of(NAN, i % 4 == 0 ? 0.0f : 0.5f * (float)(i % 4), i % 5 == 0 ? 10 : 0);
        sampling[i].banned = i % 3 == 0 ? (int32_t)i : -1;
        if (i % 7 < 2) sampling[i].top_p = 0.9f;
        if (i % 6 == 1) sampling[i].biases = biases, sampling[i].bias_count = 3;
        CHECK(rnn_prefill(one, prompt, length - 1, states + i * p.H) == RNN_OK);
        tokens[i] = tokens_alone[i] = prompt[length - 1];
    }
    memcpy(alone, states, SEQUENCES * p.H * sizeof *states);
    for (size_t t = 0; t < STEPS; t++) {
        for (size_t i = 0; i < SEQUENCES; i++) sampling[i].u = uniform();
        CHECK(rnn_decode(many, SEQUENCES, tokens, sampling, states, tokens, logp, logits) == RNN_OK);
        for (size_t i = 0; i < SEQUENCES; i++) {
            CHECK(rnn_decode(one, 1, tokens_alone + i, sampling + i, alone + i * p.H, tokens_alone + i, logp_alone + i,
                             logits_alone + i * p.V) == RNN_OK);
        }
        CHECK(same(tokens, tokens_alone, sizeof tokens));
        CHECK(same(logp, logp_alone, sizeof logp));
        CHECK(same(states, alone, SEQUENCES * p.H * sizeof *states));
        CHECK(same(logits, logits_alone, SEQUENCES * p.V * sizeof *logits));
        CHECK(rnn_logits(one, SEQUENCES, states, logits_alone) == RNN_OK);
        CHECK(same(logits, logits_alone, SEQUENCES * p.V * sizeof *logits));
    }
    rnn_decoder_destroy(many);
    rnn_decoder_destroy(one);
    rnn_model_destroy(model);
    free(states);
    free(alone);
    free(logits);
    free(logits_alone);
    free_problem(&p);
}

void test_company(void) {
    compare_company(RNN_PRECISION_F32);
    compare_company(RNN_PRECISION_BF16);
    compare_company(RNN_PRECISION_INT8);
}

/* The perplexity that a smaller copy of Why gives, beside that of float32, on logits as wide as a trained model's. */
void test_precisions(void) {
    problem p = make_problem(3001, 5, 100, 120, 1);
    for (size_t i = 0; i < p.H * p.V; i++) p.params[p.at.why + i] *= 6.0f;
    p.params[p.at.why + 7] = 1e-39f; /* in a column of zeros, for which no scale can be found */
    for (size_t k = 1; k < p.H; k++) p.params[p.at.why + k * p.V + 7] = 0.0f;
    double mean[3] = {0.0, 0.0, 0.0};
    int32_t *tokens = ints(p.T);
    for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) {
        rnn_model *model = model_for(&p, precision);
        rnn_decoder *decoder = decoder_for(model, 1, 1);
        float *state = floats(p.H), *logp = floats(p.T);
        /* Text that the float32 model itself has drawn. */
        for (size_t t = 0; t < p.T && precision == RNN_PRECISION_F32; t++) {
            rnn_sampling plain = sampling_of(uniform(), 1.0f, 0);
            int32_t before = t ? tokens[t - 1] : 1;
            CHECK(rnn_decode(decoder, 1, &before, &plain, state, tokens + t, NULL, NULL) == RNN_OK);
        }
        memset(state, 0, p.H * sizeof *state);
        CHECK(rnn_score(decoder, tokens, (int32_t)p.T, state, logp) == RNN_OK);
        for (size_t t = 0; t + 1 < p.T; t++) mean[precision] -= logp[t] / (double)(p.T - 1);
        rnn_decoder_destroy(decoder);
        rnn_model_destroy(model);
        free(state);
        free(logp);
    }
    CHECK_BELOW(fabs(exp(mean[RNN_PRECISION_BF16] - mean[RNN_PRECISION_F32]) - 1.0), 5e-3);
    CHECK_BELOW(fabs(exp(mean[RNN_PRECISION_INT8] - mean[RNN_PRECISION_F32]) - 1.0), 5e-3);
    free(tokens);
    free_problem(&p);
}

/* The same words as the lesson, from the same weights and uniforms. */
void test_generation_matches_the_lesson(void) {
    enum { COUNT = 60 };
    problem p = make_problem(700, 11, 23, 1, 1);
    for (size_t i = 0; i < p.H * p.V; i++) p.params[p.at.why + i] *= 4.0f; /* words that differ in probability */
    double *q = widen(p.params, p.at.count), *embeddings = widen(p.embeddings, p.V * p.E), u[COUNT];
    double *h = doubles((COUNT + 1) * p.H), *want_logp = doubles(p.V);
    int32_t want[COUNT], token = 5;
    elman m = elman_on(p.V, p.E, p.H, embeddings, q);
    for (size_t t = 0; t < COUNT; t++) u[t] = uniform();
    elman_generate(&m, token, u, COUNT, h, want_logp, want);

    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    rnn_decoder *decoder = decoder_for(model, 1, 1);
    float *state = floats(p.H), logp = 0.0f;
    for (size_t t = 0; t < COUNT; t++) {
        rnn_sampling sampling = sampling_of(u[t], 1.0f, 0);
        CHECK(rnn_decode(decoder, 1, &token, &sampling, state, &token, &logp, NULL) == RNN_OK);
        CHECK(token == want[t]);
    }
    CHECK_BELOW(fabs(logp - want_logp[token]), 1e-5);
    CHECK_BELOW(rel_err(state, h + COUNT * p.H, p.H), 1e-5);
    rnn_decoder_destroy(decoder);
    rnn_model_destroy(model);
    free(q), free(embeddings), free(h), free(want_logp), free(state);
    free_problem(&p);
}

void test_history_matters(void) {
    problem p = make_problem(60, 5, 8, 1, 1);
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    rnn_decoder *d = decoder_for(model, 1, 1);
    int32_t prompt[2][4] = {{1, 5, 6, 7}, {2, 5, 6, 7}}, next = 0;
    float *logits[2] = {floats(p.V), floats(p.V)};
    rnn_sampling greedy = sampling_of(0.0, 0.0f, 0);
    for (int i = 0; i < 2; i++) {
        float *state = floats(p.H);
        CHECK(rnn_prefill(d, prompt[i], 3, state) == RNN_OK);
        CHECK(rnn_decode(d, 1, &prompt[i][3], &greedy, state, &next, NULL, logits[i]) == RNN_OK);
        free(state);
    }
    CHECK(!same(logits[0], logits[1], p.V * sizeof(float)));
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(logits[0]);
    free(logits[1]);
    free_problem(&p);
}

void test_sampling(void) {
    problem p = make_problem(1500, 2, 3, 1, 1);
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    rnn_decoder *d = decoder_for(model, 1, 1);
    float *z = random_floats(p.V, 3.0), logp = 0.0f;
    int32_t token = -7, before = 0;
    double sum = 0.0, max = -INFINITY;
    for (size_t v = 0; v < p.V; v++) max = fmax(max, z[v]);
    for (size_t v = 0; v < p.V; v++) sum += exp(z[v] - max);

    /* The draw is where the cumulative distribution passes u: checked in double, with room for rounding. */
    for (int i = 0; i < 400; i++) {
        rnn_sampling s = sampling_of(i / 400.0, 1.0f, 0);
        CHECK(rnn_sample(d, z, &s, &token, &logp) == RNN_OK);
        double low = 0.0;
        for (int32_t v = 0; v < token; v++) low += exp(z[v] - max) / sum;
        CHECK(low <= s.u + 1e-6 && s.u < low + exp(z[token] - max) / sum + 1e-6);
        CHECK(token >= before); /* non-decreasing in u */
        CHECK_BELOW(fabs(logp - (z[token] - max - log(sum))), 1e-5);
        before = token;
    }
    /* Words that cannot be drawn are not, at either end of u and wherever they stand. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 600 || v == 700 ? 1.0f : -INFINITY;
    rnn_sampling middle = sampling_of(0.5, 1.0f, 0), below = sampling_of(0.5 - 0x1p-53, 1.0f, 0);
    CHECK(rnn_sample(d, z, &middle, &token, NULL) == RNN_OK && token == 700); /* the sum must exceed u, not reach it */
    CHECK(rnn_sample(d, z, &below, &token, NULL) == RNN_OK && token == 600);
    z[601] = 1.0f, z[700] = -INFINITY; /* the same within one block */
    CHECK(rnn_sample(d, z, &middle, &token, NULL) == RNN_OK && token == 601);
    CHECK(rnn_sample(d, z, &below, &token, NULL) == RNN_OK && token == 600);
    z[601] = -INFINITY, z[700] = 1.0f;
    rnn_sampling first = sampling_of(0.0, 1.0f, 0), last = sampling_of(1.0 - 0x1p-53, 1.0f, 0);
    CHECK(rnn_sample(d, z, &first, &token, NULL) == RNN_OK && token == 600);
    CHECK(rnn_sample(d, z, &last, &token, NULL) == RNN_OK && token == 700);
    for (size_t v = 0; v < p.V; v++) z[v] = v < 1000 ? 0.001f * (float)(v % 7) : -200.0f;
    CHECK(rnn_sample(d, z, &last, &token, NULL) == RNN_OK && token == 999);

    /* Temperature 0 and the lowest id of equals; a temperature that is all but 0; equal logits; +-80. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 900 || v == 33 ? 2.0f : -80.0f;
    rnn_sampling cold = sampling_of(0.99, 0.0f, 0), chill = sampling_of(0.7, 1e-40f, 0),
                 warm = sampling_of(0.3, 1.0f, 0);
    CHECK(rnn_sample(d, z, &cold, &token, NULL) == RNN_OK && token == 33);
    CHECK(rnn_sample(d, z, &chill, &token, NULL) == RNN_OK && token == 900);
    for (size_t v = 0; v < p.V; v++) z[v] = -80.0f;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_OK && (token == 450 || token == 449));
    CHECK_BELOW(fabs(logp + log(1500.0)), 1e-5);
    z[77] = 80.0f;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_OK && token == 77 && logp == 0.0f);

    /* top_k: the lowest ids of equals, in order of id; larger than V is all. */
    for (size_t v = 0; v < p.V; v++) z[v] = v % 100 == 50 ? 1.0f : 0.0f; /* 15 at 1, the rest at 0 */
    for (int32_t k = 1; k <= 20; k++) {
        rnn_sampling end = sampling_of(1.0 - 0x1p-53, 1.0f, k);
        CHECK(rnn_sample(d, z, &end, &token, NULL) == RNN_OK);
        CHECK(token == (k <= 15 ? 100 * k - 50 : 1450));
        rnn_sampling begin = sampling_of(0.0, 1.0f, k);
        CHECK(rnn_sample(d, z, &begin, &token, NULL) == RNN_OK);
        CHECK(token == (k <= 15 ? 50 : 0));
    }
    z[3] = -0.0f; /* equal to 0 */
    rnn_sampling sixteen = sampling_of(0.0, 1.0f, 16),
                 nineteen = sampling_of(0.1 / (19 - 15 + 15 * 2.718281828), 1.0f, 19);
    CHECK(rnn_sample(d, z, &sixteen, &token, NULL) == RNN_OK && token == 0);
    CHECK(rnn_sample(d, z, &nineteen, &token, NULL) == RNN_OK && token == 0);
    nineteen.u = 3.5 / (19 - 15 + 15 * 2.718281828);
    CHECK(rnn_sample(d, z, &nineteen, &token, NULL) == RNN_OK && token == 3);
    rnn_sampling all = sampling_of(1.0 - 0x1p-53, 1.0f, INT32_MAX);
    CHECK(rnn_sample(d, z, &all, &token, NULL) == RNN_OK && token == 1499);

    /* A banned token is not drawn: not by chance, not as the most probable, and top_k counts the others. */
    for (size_t v = 0; v < p.V; v++) z[v] = v == 9 ? 30.0f : v == 1200 ? 2.0f : v == 1300 ? 1.0f : -40.0f;
    rnn_sampling ban = sampling_of(0.2, 1.0f, 0);
    ban.banned = 9;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_OK && token == 1200);
    CHECK_BELOW(fabs(logp + 28.0), 1e-5); /* of the full distribution */
    ban.u = 0.9;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 1300);
    ban.top_k = 1;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 1200);
    ban.temperature = 0.0f;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_OK && token == 1200);
    CHECK_BELOW(fabs(logp + 28.0), 1e-5);
    ban.banned = 1200;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 9);
    z[0] = 31.0f;
    ban.banned = 0;
    CHECK(rnn_sample(d, z, &ban, &token, NULL) == RNN_OK && token == 9);

    /* Refusals leave the outputs alone. */
    rnn_sampling bad[] = {
        sampling_of(1.0, 1.0f, 0),  sampling_of(-0.1, 1.0f, 0), sampling_of(NAN, 1.0f, 0),
        sampling_of(0.5, -1.0f, 0), sampling_of(0.5, NAN, 0),   sampling_of(0.5, INFINITY, 0),
        sampling_of(0.5, 1.0f, -1),
    };
    token = -7;
    logp = 7.0f;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(rnn_sample(d, z, bad + i, &token, &logp) == RNN_E_ARG);
    }
    z[1499] = NAN;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    z[1499] = INFINITY;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    for (size_t v = 0; v < p.V; v++) z[v] = -INFINITY;
    CHECK(rnn_sample(d, z, &warm, &token, &logp) == RNN_E_NONFINITE);
    z[9] = 1.0f;
    ban.banned = 9;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_NONFINITE);
    ban.banned = 1500;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_TOKEN);
    ban.banned = -2;
    CHECK(rnn_sample(d, z, &ban, &token, &logp) == RNN_E_TOKEN);
    CHECK(rnn_sample(d, NULL, &warm, &token, &logp) == RNN_E_NULL);
    CHECK(token == -7 && logp == 7.0f);
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(z);
    free_problem(&p);
}

void test_inference_refusals(void) {
    problem p = make_problem(20, 4, 5, 1, 1);
    float *q = p.params;
    rnn_model *none = NULL;
    rnn_decoder *no_decoder = NULL;
#define MODEL(dims_, why_, precision_, threads_)                                                                       \
    rnn_model_create(dims_, p.embeddings, q + p.at.wxh, q + p.at.whh, q + p.at.bh, why_, q + p.at.by, precision_,      \
                     threads_, &none)
    rnn_dims bad = {20, 4, 0};
    CHECK(MODEL(&bad, q + p.at.why, RNN_PRECISION_F32, 1) == RNN_E_DIM);
    CHECK(MODEL(&p.dims, NULL, RNN_PRECISION_F32, 1) == RNN_E_NULL);
    CHECK(MODEL(&p.dims, q + p.at.why, 3, 1) == RNN_E_ARG);
    CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 0) == RNN_E_ARG);
    for (size_t i = 0; i < p.at.count; i += 7) {
        float kept = q[i];
        q[i] = i % 2 ? NAN : INFINITY;
        CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 2) == RNN_E_NONFINITE);
        q[i] = kept;
    }
    size_t sums[] = {p.at.whh, p.at.why}; /* finite weights, whose sum with 5 units of 1 is not */
    for (size_t i = 0; i < 2; i++) {
        float kept = q[sums[i]];
        q[sums[i]] = 1e38f;
        CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 1) == RNN_E_NONFINITE);
        q[sums[i]] = kept;
    }
    p.embeddings[79] = NAN;
    CHECK(MODEL(&p.dims, q + p.at.why, RNN_PRECISION_F32, 1) == RNN_E_NONFINITE);
    p.embeddings[79] = 0.0f;
    CHECK(none == NULL);
#undef MODEL
    rnn_model *model = model_for(&p, RNN_PRECISION_F32);
    CHECK(rnn_decoder_create(model, 0, 1, &no_decoder) == RNN_E_DIM);
    CHECK(rnn_decoder_create(model, RNN_MAX_SEQUENCES + 1, 1, &no_decoder) == RNN_E_DIM);
    CHECK(rnn_decoder_create(model, 1, RNN_MAX_THREADS + 1, &no_decoder) == RNN_E_ARG);
    CHECK(rnn_decoder_create(NULL, 1, 1, &no_decoder) == RNN_E_NULL && no_decoder == NULL);

    rnn_decoder *d = decoder_for(model, 2, 1);
    float *states = random_floats(2 * p.H, 0.5), *states0 = copy_floats(states, 2 * p.H), logp[2] = {9.0f};
    int32_t tokens[2] = {1, 2}, next[2] = {-3, -3};
    rnn_sampling s[2] = {sampling_of(0.5, 1.0f, 0), sampling_of(0.5, 1.0f, 0)};
    CHECK(rnn_decode(d, 3, tokens, s, states, next, logp, NULL) == RNN_E_DIM);
    CHECK(rnn_decode(d, 0, tokens, s, states, next, logp, NULL) == RNN_E_DIM);
    CHECK(rnn_decode(d, 2, tokens, s, NULL, next, logp, NULL) == RNN_E_NULL);
    tokens[1] = 20;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_TOKEN);
    CHECK(rnn_prefill(d, tokens, 2, states) == RNN_E_TOKEN);
    CHECK(rnn_score(d, tokens, 2, states, logp) == RNN_E_TOKEN);
    tokens[1] = -1;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_TOKEN);
    tokens[1] = 2;
    s[1].u = 1.0;
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_ARG);
    CHECK(rnn_prefill(d, tokens, -1, states) == RNN_E_DIM);
    CHECK(rnn_score(d, tokens, 1, states, logp) == RNN_E_DIM);
    CHECK(same(states, states0, 2 * p.H * sizeof *states));
    states[p.H] = 1.5f;
    CHECK(rnn_logits(d, 2, states, logp) == RNN_E_ARG);
    CHECK(rnn_logits(d, 0, states, logp) == RNN_E_DIM && rnn_logits(d, 1, states, NULL) == RNN_E_NULL);
    states[p.H] = NAN;
    s[1].u = 0.5;
    CHECK(rnn_logits(d, 2, states, logp) == RNN_E_NONFINITE);
    CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_NONFINITE);
    CHECK(rnn_prefill(d, tokens, 2, states + p.H) == RNN_E_NONFINITE);
    CHECK(rnn_score(d, tokens, 2, states + p.H, logp) == RNN_E_NONFINITE);
    /* tanh hides an infinity, and a NaN that no arithmetic makes. */
    uint32_t hidden[] = {0x7f800000, 0xff800000, 0x7fc00001, 0x7f800001, 0x7fffffff, 0xffc00003};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        memcpy(states + p.H, hidden + i, sizeof *states);
        CHECK(rnn_decode(d, 2, tokens, s, states, next, logp, NULL) == RNN_E_NONFINITE);
        CHECK(rnn_prefill(d, tokens, 2, states + p.H) == RNN_E_NONFINITE);
        CHECK(rnn_score(d, tokens, 2, states + p.H, logp) == RNN_E_NONFINITE);
    }
    CHECK(same(states, states0, p.H * sizeof *states));
    CHECK(next[0] == -3 && logp[0] == 9.0f);
    CHECK(rnn_prefill(d, NULL, 0, states) == RNN_OK && same(states, states0, p.H * sizeof *states));
    problem lone = make_problem(1, 4, 5, 1, 1);
    rnn_model *lone_model = model_for(&lone, RNN_PRECISION_F32);
    rnn_decoder *lone_decoder = decoder_for(lone_model, 1, 1);
    rnn_sampling none_left = {.u = 0.5, .temperature = 1.0f, .banned = 0, .top_p = 1.0f};
    int32_t zero = 0;
    CHECK(rnn_decode(lone_decoder, 1, &zero, &none_left, states, next, NULL, NULL) == RNN_E_ARG && next[0] == -3);
    rnn_decoder_destroy(lone_decoder);
    rnn_model_destroy(lone_model);
    free_problem(&lone);
    rnn_decoder_destroy(NULL);
    rnn_model_destroy(NULL);
    rnn_decoder_destroy(d);
    rnn_model_destroy(model);
    free(states);
    free(states0);
    free_problem(&p);
}

/* With one hidden unit a weight may be as large as a float, and bfloat16 would round it to infinity. */
void test_a_weight_too_large_for_its_copy(void) {
    problem p = make_problem(3, 4, 1, 1, 1);
    float *q = p.params;
    q[p.at.why] = 3.4e38f;
    for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_INT8; precision++) {
        rnn_model *model = NULL;
        int32_t status = rnn_model_create(&p.dims, p.embeddings, q + p.at.wxh, q + p.at.whh, q + p.at.bh, q + p.at.why,
                                          q + p.at.by, precision, 1, &model);
        CHECK(status == (precision == RNN_PRECISION_BF16 ? RNN_E_NONFINITE : RNN_OK));
        rnn_model_destroy(model);
    }
    free_problem(&p);
}
