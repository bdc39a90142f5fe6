/* test_precision.c -- training with products of bfloat16 operands, against a model in double with the same operands. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rounded.h"
#include "testing.h"
#include "tests.h"

/* The Euclidean norm of the difference over that of what is wanted: roundings that fall the other way are few, and each
 * is as large as a rounding. */
static double distance(const float *got, const double *want, size_t count) {
    double difference = 0.0, size = 1e-6; /* of V = 1, the gradient is 0 */
    for (size_t i = 0; i < count; i++) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(difference / size);
}

static double worst_tensor(const problem *p, const float *got, const double *want) {
    const rnn_offsets *at = &p->at;
    size_t ends[] = {at->wxh, at->whh, at->bh, at->why, at->by, at->count};
    double worst = 0.0;
    for (size_t i = 0; i < 5; i++) {
        double here = distance(got + ends[i], want + ends[i], ends[i + 1] - ends[i]);
        worst = here <= worst ? worst : here; /* a NaN is kept */
        if (isnan(here)) return here;
    }
    return worst;
}

/* Loss, state and every gradient tensor, for 1 and 3 threads. Of a few numbers that should be rounded the same, one may fall
 * the other way, and a short chunk shows it: hence two limits. Returns whether all of them have agreed to float32. */
static bool compare_with_rounded(const problem *p) {
    size_t N = p->T * p->B, S = p->B * p->H, P = p->at.count;
    double *want = doubles(P), *exact = doubles(P), *want_state = doubles(S), loss = 0.0;
    double want_loss = rounded_loss(p, 0.25, true, want, want_state);
    rounded_loss(p, 0.25, false, exact, NULL);
    float *first = NULL;
    double limit = N * p->H > 1000 ? 5e-3 : 2e-2;
    bool agree = true;
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        rnn_work *work = NULL;
        CHECK(rnn_work_create(&p->dims, (int32_t)p->T, (int32_t)p->B, 0, RNN_PRECISION_BF16, threads, &work) == RNN_OK);
        float *grads = random_floats(P, 1.0), *state = copy_floats(p->state, S);
        CHECK(rnn_loss(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, state, &loss) ==
              RNN_OK);
        double loss_error = fabs(loss - want_loss) / fmax(want_loss, (double)N);
        memcpy(state, p->state, S * sizeof *state);
        CHECK(rnn_loss_grad(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, 0.25f, NULL,
                            state, &loss, grads) == RNN_OK);
        loss_error = worse(loss_error, fabs(loss - want_loss) / fmax(want_loss, (double)N));
        double state_error = distance(state, want_state, S), grad_error = worst_tensor(p, grads, want);
        CHECK_BELOW(loss_error, 1e-4);
        CHECK_BELOW(state_error, 3e-3);
        CHECK_BELOW(grad_error, 5e-3);
        CHECK_BELOW(worst_tensor(p, grads, exact), limit);
        agree = agree && loss_error < 1e-6 && state_error < 1e-6 && grad_error < 1e-5;
        if (!first) {
            first = grads;
        } else { /* one thread owns each sum, so their number changes nothing */
            CHECK(same(first, grads, P * sizeof *grads));
            free(grads);
        }
        free(state);
        rnn_work_destroy(work);
    }
    free(first), free(want), free(exact), free(want_state);
    return agree;
}

void test_rounded_gradients(void) {
    /* No size is a multiple of a block, a panel, a band or a tile, and the smallest of each is there. */
    static const size_t sizes[][5] = {
        {13, 9, 6, 11, 1},     {5, 7, 3, 1, 1},      {1, 1, 1, 1, 1},      {1, 3, 2, 5, 2},
        {31, 4, 99, 13, 1},    {33, 5, 101, 13, 3},  {65, 3, 1, 7, 2},     {600, 17, 31, 3, 7},
        {1100, 3, 15, 140, 1}, {40, 3, 17, 33, 4},   {520, 50, 20, 30, 9}, {127, 6, 63, 2, 2},
        {129, 6, 64, 2, 65},   {1, 2, 100, 3, 1},    {40001, 2, 3, 5, 1},  /* parts of more than one block */
        {97, 130, 33, 41, 33}, {577, 33, 410, 7, 3}, {45, 11, 70, 70, 10}, /* more than one tile */
    };
    start_numbers(1);
    size_t count = sizeof sizes / sizeof *sizes, agreed = 0;
    for (size_t i = 0; i < count; i++) {
        problem p = make_problem(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], sizes[i][4]);
        int before = checks_failed;
        agreed += compare_with_rounded(&p);
        if (checks_failed > before) printf("    at V=%zu E=%zu H=%zu T=%zu B=%zu\n", p.V, p.E, p.H, p.T, p.B);
        free_problem(&p);
    }
    CHECK(2 * agreed >= count);
}

void test_rounded_extreme_logits(void) {
    static const float most[] = {80.0f, 250.0f};
    start_numbers(1);
    for (int kind = 0; kind < 5; kind++) {
        for (size_t size = 0; size < 2; size++) {
            problem p = make_problem(700, 3, 10, 20, 1);
            float *by = p.params + p.at.by;
            for (size_t v = 0; v < p.V; v++) {
                if (kind == 0) by[v] += v % 2 ? most[size] : -most[size];    /* logits of both signs */
                if (kind == 1) by[v] += v == 650 ? 2.0f * most[size] : 0.0f; /* one word holds all probability */
                if (kind == 2) by[v] += v < 600 ? -most[size] : most[size];  /* a whole block of words holds none */
                if (kind == 3) by[v] = size ? 0.0f : most[0];                /* all equal, once Why is zero */
                if (kind == 4) by[v] += v == 1 ? most[size] : -most[size];   /* likewise, far below what follows */
            }
            if (kind == 3) memset(p.params + p.at.why, 0, p.H * p.V * sizeof(float));
            int before = checks_failed;
            compare_with_rounded(&p);
            for (size_t n = 0; n < p.T; n++) p.y[n] = 650; /* the word that is certain: the gradient is all but zero */
            double loss = 0.0, *want = doubles(p.at.count), worst = 0.0;
            float *grads = floats(p.at.count);
            rnn_work *work = NULL;
            CHECK(rnn_work_create(&p.dims, 20, 1, 0, RNN_PRECISION_BF16, 1, &work) == RNN_OK);
            rounded_loss(&p, 1.0, false, want, NULL);
            CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 20, 1, 1.0f, NULL, p.state, &loss, grads) ==
                  RNN_OK);
            for (size_t i = 0; i < p.at.count; i++) worst = worse(worst, fabs(grads[i] - want[i]));
            CHECK_BELOW(worst, kind == 1 ? 1e-4 : 0.2);
            if (checks_failed > before) printf("    with logits of kind %d, %g\n", kind, most[size]);
            rnn_work_destroy(work);
            free(grads), free(want);
            free_problem(&p);
        }
    }
}

/* Logits of n states whose numbers, like those of Why, are rounded, but their sums are not; from tiny to huge. */
static void compare_logits(size_t V, size_t H, int32_t n, float size) {
    problem p = make_problem(V, 2, H, 1, 1);
    float *why = p.params + p.at.why, *by = p.params + p.at.by, *states = random_floats((size_t)n * H, 1.0);
    float *logits = floats((size_t)n * V), *one = floats(V);
    for (size_t i = 0; i < (H + 1) * V; i++) why[i] *= size; /* by as well */
    for (size_t i = 0; i < (size_t)n * H; i++) states[i] = tanhf(states[i]);
    states[0] = 1.0f, states[H - 1] = -1.0f;
    rnn_model *model = NULL;
    rnn_decoder *decoder = NULL;
    CHECK(rnn_model_create(&p.dims, p.embeddings, p.params + p.at.wxh, p.params + p.at.whh, p.params + p.at.bh, why, by,
                           RNN_PRECISION_BF16, 2, &model) == RNN_OK);
    CHECK(rnn_decoder_create(need(model), 1, 3, &decoder) == RNN_OK);
    CHECK(rnn_logits(need(decoder), n, states, logits) == RNN_OK);
    double worst = 0.0;
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t v = 0; v < V; v++) {
            double sum = by[v], magnitude = fabs(by[v]) + 1e-30;
            for (size_t k = 0; k < H; k++) {
                double term = (double)rnn_widen_bfloat16(rnn_round_bfloat16(states[i * H + k])) *
                              rnn_widen_bfloat16(rnn_round_bfloat16(why[k * V + v]));
                sum += term;
                magnitude += fabs(term);
            }
            worst = worse(worst, fabs(logits[i * V + v] - sum) / magnitude);
        }
        CHECK(rnn_logits(decoder, 1, states + i * H, one) == RNN_OK && same(one, logits + i * V, V * sizeof *one));
    }
    CHECK_BELOW(worst, 1e-6); /* without rounding the states it would be 1e-3 */
    rnn_decoder_destroy(decoder);
    rnn_model_destroy(model);
    free(states), free(logits), free(one);
    free_problem(&p);
}

void test_rounded_logits(void) {
    compare_logits(1, 1, 1, 1.0f);
    compare_logits(31, 2, 3, 250.0f);
    compare_logits(577, 33, 17, 1.0f); /* a block and one word; a group and one sequence */
    compare_logits(1111, 100, 37, 80.0f);
    compare_logits(65, 257, 16, 1e-30f);
    compare_logits(640, 301, 8, 1e30f);
}

void test_no_word_is_more_than_certain(void) {
    start_numbers(2);
    for (int trial = 0; trial < 40; trial++) {
        problem p = make_problem(40, 3, 10, 4, 1);
        for (size_t v = 0; v < p.V; v++) p.params[p.at.by + v] = -1e6f;
        p.params[p.at.by + 7] = (float)(1e6 * uniform());
        for (size_t n = 0; n < p.T; n++) p.y[n] = 7;
        for (int32_t precision = RNN_PRECISION_F32; precision <= RNN_PRECISION_BF16; precision++) {
            double loss = -1.0;
            rnn_work *work = NULL;
            float *state = copy_floats(p.state, p.H);
            CHECK(rnn_work_create(&p.dims, 4, 1, 0, precision, 1, &work) == RNN_OK);
            CHECK(rnn_loss(work, p.params, p.embeddings, p.x, p.y, 4, 1, state, &loss) == RNN_OK);
            CHECK(loss >= 0.0 && loss < 1.0);
            rnn_work_destroy(work);
            free(state);
        }
        free_problem(&p);
    }
}
