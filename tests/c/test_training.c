/* test_training.c -- loss, gradients and optimizers, against the lesson (csrc/elman.c) and what rnnlib.h promises. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "problem.h"
#include "testing.h"
#include "tests.h"

static const int32_t precisions[] = {RNN_PRECISION_F32, RNN_PRECISION_BF16};

static rnn_work *work_for(const problem *p, int32_t precision, int32_t threads) {
    rnn_work *work = NULL;
    CHECK(rnn_work_create(&p->dims, (int32_t)p->T, (int32_t)p->B, 0, precision, threads, &work) == RNN_OK);
    return need(work);
}

void test_the_lesson_itself(void) {
    problem p = make_problem(13, 9, 6, 11, 2);
    double *q = widen(p.params, p.at.count), *grads = doubles(p.at.count), *moved = doubles(p.at.count);
    lesson_loss(&p, q, 1.0, grads, NULL, NULL);
    for (int trial = 0; trial < 20; trial++) {
        double eps = 1e-5, along = 0.0, difference = 0.0;
        float *direction = random_floats(p.at.count, 1.0);
        for (size_t i = 0; i < p.at.count; i++) along += grads[i] * direction[i];
        for (int sign = -1; sign <= 1; sign += 2) {
            for (size_t i = 0; i < p.at.count; i++) moved[i] = q[i] + sign * eps * direction[i];
            difference += sign * lesson_loss(&p, moved, 1.0, NULL, NULL, NULL) / (2.0 * eps);
        }
        CHECK_BELOW(fabs(difference - along) / fmax(1.0, fabs(along)), 1e-7);
        free(direction);
    }
    free(q);
    free(grads);
    free(moved);
    free_problem(&p);
}

/* Loss, state and every gradient tensor of problem p, for 1 and 3 threads. */
static void compare_with_lesson(const problem *p, double limit) {
    size_t N = p->T * p->B, S = p->B * p->H, P = p->at.count;
    double *q = widen(p->params, P), *want = doubles(P), *want_state = doubles(S);
    double scale = 0.25, want_loss = lesson_loss(p, q, scale, want, want_state, NULL), loss = 0.0;
    float *first = NULL;
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        rnn_work *work = work_for(p, RNN_PRECISION_F32, threads);
        float *grads = random_floats(P, 1.0), *state = copy_floats(p->state, S);
        CHECK(rnn_loss(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, state, &loss) ==
              RNN_OK);
        CHECK_BELOW(fabs(loss - want_loss) / fmax(want_loss, (double)N), 2e-6);
        CHECK_BELOW(rel_err(state, want_state, S), limit);
        memcpy(state, p->state, S * sizeof *state);
        CHECK(rnn_loss_grad(work, p->params, p->embeddings, p->x, p->y, (int32_t)p->T, (int32_t)p->B, (float)scale,
                            NULL, state, &loss, grads) == RNN_OK);
        CHECK_BELOW(fabs(loss - want_loss) / fmax(want_loss, (double)N), 2e-6);
        CHECK_BELOW(rel_err(state, want_state, S), limit);
        CHECK_BELOW(rel_err(grads + p->at.wxh, want + p->at.wxh, p->E * p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.whh, want + p->at.whh, p->H * p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.bh, want + p->at.bh, p->H), limit);
        CHECK_BELOW(rel_err(grads + p->at.why, want + p->at.why, p->H * p->V), limit);
        CHECK_BELOW(rel_err(grads + p->at.by, want + p->at.by, p->V), limit);
        if (!first) {
            first = grads;
        } else { /* one thread owns each sum, so their number changes nothing */
            CHECK(same(first, grads, P * sizeof *grads));
            free(grads);
        }
        free(state);
        rnn_work_destroy(work);
    }
    free(first);
    free(q);
    free(want);
    free(want_state);
}

void test_gradients(void) {
    /* No size is a multiple of a block, a panel or a register tile, and the smallest of each is there. */
    static const size_t sizes[][5] = {
        {13, 9, 6, 11, 1},
        {5, 7, 3, 1, 1},
        {1, 1, 1, 1, 1},
        {1, 3, 2, 5, 2},
        {31, 4, 99, 13, 1},
        {33, 5, 101, 13, 3},
        {65, 3, 1, 7, 2},
        {600, 17, 31, 3, 7},
        {1100, 3, 15, 140, 1},
        {40, 3, 17, 33, 4},
        {520, 50, 20, 30, 9},
        {127, 6, 63, 2, 2},
        {129, 6, 64, 2, 65},
        {1, 2, 100, 3, 1},
        {130 * RNN_BLOCK + 7, 2, 3, 5, 1}, /* output.c adds up its blocks in parts of two; the last is alone */
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        problem p = make_problem(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], sizes[i][4]);
        int before = checks_failed;
        compare_with_lesson(&p, 1e-5);
        if (checks_failed > before) {
            printf("    at V=%zu E=%zu H=%zu T=%zu B=%zu\n", p.V, p.E, p.H, p.T, p.B);
        }
        free_problem(&p);
    }
}

/* out = params, a buffer of P floats, by words. */
static float *by_words(const problem *p, const float *params) {
    float *out = copy_floats(params, p->at.count);
    for (size_t i = 0; i <= p->H; i++) {
        for (size_t v = 0; v < p->V; v++) out[p->at.why + v * (p->H + 1) + i] = params[p->at.why + i * p->V + v];
    }
    return out;
}

/* Masks of 1, and candidates that are the whole vocabulary. */
static void regularization_that_changes_nothing(int32_t precision) {
    problem p = make_problem(600, 17, 31, 30, 7);
    size_t P = p.at.count, S = p.B * p.H;
    float *ones = floats(p.B * (p.E + p.H)), *correction = floats(p.V);
    int32_t *all = need(malloc(p.V * sizeof *all));
    for (size_t i = 0; i < p.B * (p.E + p.H); i++) ones[i] = 1.0f;
    for (size_t v = 0; v < p.V; v++) all[v] = (int32_t)v;
    rnn_regularization masks = {.input_mask = ones, .output_mask = ones};
    rnn_regularization sampled = {.candidates = all, .correction = correction, .candidate_count = (int32_t)p.V};
    float *want = floats(P), *grads = random_floats(P, 1.0), *state = copy_floats(p.state, S);
    rnn_work *work = work_for(&p, precision, 2), *small = NULL;
    CHECK(rnn_work_create(&p.dims, (int32_t)p.T, (int32_t)p.B, (int32_t)p.V, precision, 2, &small) == RNN_OK);
    double loss = 0.0, other = 0.0;
    float *params = by_words(&p, p.params), *rows;
#define GRAD(work_, y_, regularization_, grads_, loss_)                                                                \
    (memcpy(state, p.state, S * sizeof *state),                                                                        \
     rnn_loss_grad(work_, (work_) == work ? p.params : params, p.embeddings, p.x, y_, (int32_t)p.T, (int32_t)p.B,      \
                   1.0f, regularization_, state, loss_, grads_))
    CHECK(GRAD(work, p.y, NULL, want, &loss) == RNN_OK);
    CHECK(GRAD(work, p.y, &masks, grads, &other) == RNN_OK && loss == other);
    CHECK(same(want, grads, P * sizeof *grads));
    CHECK(GRAD(small, p.y, &sampled, grads, &other) == RNN_OK && loss == other);
    rows = by_words(&p, want);
    CHECK(same(rows, grads, P * sizeof *grads));

    /* Refusals; the arithmetic of real candidates and masks is compared with torch's in Python. */
    CHECK(GRAD(work, p.y, &sampled, grads, &other) == RNN_E_ARG);
    CHECK(GRAD(small, p.y, &masks, grads, &other) == RNN_E_ARG);
    CHECK(GRAD(small, p.y, NULL, grads, &other) == RNN_E_ARG);
    for (int32_t count = -1; count <= 601; count += 602) {
        sampled.candidate_count = count;
        CHECK(GRAD(small, p.y, &sampled, grads, &other) == RNN_E_DIM);
    }
    sampled.candidate_count = (int32_t)p.V - 1;
    p.y[5] = (int32_t)p.V - 1;
    CHECK(GRAD(small, p.y, &sampled, grads, &other) == RNN_E_TOKEN);
    all[9] = 8;
    sampled.candidate_count = (int32_t)p.V;
    CHECK(GRAD(small, p.y, &sampled, grads, &other) == RNN_E_TOKEN);
    sampled.correction = NULL;
    CHECK(GRAD(small, p.y, &sampled, grads, &other) == RNN_E_NULL);
    CHECK(same(rows, grads, P * sizeof *grads) && loss == other && same(state, p.state, S * sizeof *state));
#undef GRAD
    free(params);
    free(rows);
    rnn_work_destroy(work);
    rnn_work_destroy(small);
    free(ones), free(correction), free(all), free(want), free(grads), free(state);
    free_problem(&p);
}

void test_regularization_that_changes_nothing(void) {
    for (size_t i = 0; i < 2; i++) regularization_that_changes_nothing(precisions[i]);
}

void test_extreme_logits(void) {
    for (int kind = 0; kind < 4; kind++) {
        problem p = make_problem(700, 3, 10, 20, 1);
        float *by = p.params + p.at.by;
        for (size_t v = 0; v < p.V; v++) {
            if (kind == 0) by[v] += v % 2 ? 80.0f : -80.0f;           /* logits of both signs */
            if (kind == 1) by[v] += v == 650 ? 300.0f : 0.0f;         /* one word holds all probability */
            if (kind == 2) by[v] += v < RNN_BLOCK ? -300.0f : 300.0f; /* a whole block of words holds none */
            if (kind == 3) by[v] = 0.0f;                              /* all equal, once Why is zero */
        }
        if (kind == 3) memset(p.params + p.at.why, 0, p.H * p.V * sizeof(float));
        compare_with_lesson(&p, 2e-5);
        for (size_t n = 0; n < p.T; n++) p.y[n] = 650; /* the word that is certain: the gradient is all but zero */
        double loss = 0.0, *q = widen(p.params, p.at.count), *want = doubles(p.at.count);
        float *grads = floats(p.at.count);
        rnn_work *work = work_for(&p, RNN_PRECISION_F32, 1);
        lesson_loss(&p, q, 1.0, want, NULL, NULL);
        CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 20, 1, 1.0f, NULL, p.state, &loss, grads) ==
              RNN_OK);
        double worst = 0.0;
        for (size_t i = 0; i < p.at.count; i++) worst = worse(worst, fabs(grads[i] - want[i]));
        CHECK_BELOW(worst, 1e-4);
        rnn_work_destroy(work);
        free(grads);
        free(q);
        free(want);
        free_problem(&p);
    }
}

static void carried_state(int32_t precision) {
    problem p = make_problem(50, 7, 12, 24, 3);
    size_t S = p.B * p.H, P = p.at.count, half = p.T / 2 * p.B;
    rnn_work *work = work_for(&p, precision, 2);
    float *whole = copy_floats(p.state, S), *parts = copy_floats(p.state, S), *a = floats(P), *b = floats(P);
    double loss = 0.0, first = 0.0, second = 0.0;
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x, p.y, 24, 3, whole, &loss) == RNN_OK);
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x, p.y, 12, 3, parts, &first) == RNN_OK);
    CHECK(rnn_loss(work, p.params, p.embeddings, p.x + half, p.y + half, 12, 3, parts, &second) == RNN_OK);
    CHECK_BELOW(fabs(loss - first - second), 1e-9 * loss);
    CHECK(same(whole, parts, S * sizeof *whole));
    memcpy(parts, p.state, S * sizeof *parts);
    CHECK(rnn_advance_state(work, p.params, p.embeddings, p.x, 12, 3, parts) == RNN_OK);
    CHECK(rnn_advance_state(work, p.params, p.embeddings, p.x + half, 12, 3, parts) == RNN_OK);
    CHECK(same(whole, parts, S * sizeof *whole));

    memcpy(parts, p.state, S * sizeof *parts);
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 12, 3, 1.0f, NULL, parts, &first, a) == RNN_OK);
    memcpy(parts, p.state, S * sizeof *parts);
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 12, 3, 1.0f, NULL, parts, &second, b) == RNN_OK);
    CHECK(first == second && same(a, b, P * sizeof *a)); /* the same call gives the same bits */
    rnn_work_destroy(work);
    free(whole);
    free(parts);
    free(a);
    free(b);
    free_problem(&p);
}

void test_carried_state(void) {
    for (size_t i = 0; i < 2; i++) carried_state(precisions[i]);
}

static void training_refusals(int32_t precision) {
    problem p = make_problem(40, 5, 8, 600, 1); /* more than one tile, so the last tile's loss comes late */
    size_t P = p.at.count, S = p.B * p.H;
    rnn_work *work = work_for(&p, precision, 2);
    float *grads = random_floats(P, 1.0), *grads0 = copy_floats(grads, P), *state = copy_floats(p.state, S);
    double loss = 42.0;
#define GRAD(params_, x_, y_, T_, B_, scale_)                                                                          \
    rnn_loss_grad(work, params_, p.embeddings, x_, y_, T_, B_, scale_, NULL, state, &loss, grads)
#define LOSS(params_, x_, y_, T_, B_) rnn_loss(work, params_, p.embeddings, x_, y_, T_, B_, state, &loss)
    CHECK(GRAD(NULL, p.x, p.y, 600, 1, 1.0f) == RNN_E_NULL);
    CHECK(LOSS(p.params, NULL, p.y, 600, 1) == RNN_E_NULL);
    CHECK(GRAD(p.params, p.x, p.y, 601, 1, 1.0f) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 0, 1, 1.0f) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 300, 2, 1.0f) == RNN_E_DIM);
    CHECK(LOSS(p.params, p.x, p.y, -1, 1) == RNN_E_DIM);
    CHECK(rnn_advance_state(work, p.params, NULL, p.x, 600, 1, state) == RNN_E_NULL);
    CHECK(rnn_advance_state(work, p.params, p.embeddings, p.x, 601, 1, state) == RNN_E_DIM);
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, NAN) == RNN_E_ARG);
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, INFINITY) == RNN_E_ARG);
    for (int which = 0; which < 2; which++) {
        int32_t *tokens = which ? p.x : p.y, kept = tokens[599];
        tokens[599] = 40;
        CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_TOKEN);
        if (which) CHECK(rnn_advance_state(work, p.params, p.embeddings, p.x, 600, 1, state) == RNN_E_TOKEN);
        tokens[599] = -1;
        CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_TOKEN);
        tokens[599] = kept;
    }
    size_t poisoned[] = {p.at.wxh, p.at.whh + 3, p.at.bh, p.at.why + 77, p.at.by + 39};
    for (size_t i = 0; i < 5; i++) {
        float kept = p.params[poisoned[i]];
        float poisons[] = {NAN, INFINITY, -INFINITY}; /* of an infinity, tanh and softmax may leave no trace */
        for (size_t k = 0; k < 3; k++) {
            p.params[poisoned[i]] = poisons[k];
            CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
            CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
            CHECK(GRAD(p.params, p.x, p.y, 10, 1, 1.0f) == RNN_E_NONFINITE); /* one tile */
        }
        p.params[poisoned[i]] = kept;
    }
    float *seen = p.embeddings + p.x[300] * 5 + 4, kept_seen = *seen;
    *seen = -INFINITY;
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
    *seen = kept_seen;
    state[7] = INFINITY;
    CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
    CHECK(rnn_advance_state(work, p.params, p.embeddings, p.x, 600, 1, state) == RNN_E_NONFINITE);
    CHECK(state[0] == p.state[0]);
    state[7] = p.state[7];
    if (precision == RNN_PRECISION_BF16) { /* finite, until it is rounded */
        float *operands[] = {p.params + p.at.wxh, p.params + p.at.whh + 3, p.params + p.at.why + 77, seen};
        for (size_t i = 0; i < 4; i++) {
            float kept = *operands[i];
            *operands[i] = -3.4e38f;
            CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
            CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
            *operands[i] = kept;
        }
        state[7] = 3.4e38f;
        CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
        state[7] = p.state[7];
    }
    /* A loss that is finite in the first tile, and in a later one is not: finite weights, and an overflow. */
    float kept[8];
    for (size_t i = 0; i < 8; i++) {
        kept[i] = p.params[p.at.why + i * 40];
        p.params[p.at.why + i * 40] = 1e38f;
    }
    for (size_t t = 0; t < 600; t++) p.x[t] = t < 590 ? 1 : 2;
    for (size_t j = 0; j < 5; j++) {
        p.embeddings[5 + j] = 0.0f;
        p.embeddings[10 + j] = 0.0f;
    }
    p.embeddings[10] = 1e6f; /* drives every unit to +1 or -1 */
    for (size_t j = 0; j < 8; j++) p.params[p.at.wxh + j] = fabsf(p.params[p.at.wxh + j]);
    memset(p.params + p.at.whh, 0, (64 + 8) * sizeof(float));
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_E_NONFINITE);
    CHECK(LOSS(p.params, p.x, p.y, 600, 1) == RNN_E_NONFINITE);
    CHECK(loss == 42.0);
    float mask[8];
    for (size_t i = 0; i < 8; i++) {
        mask[i] = 100.0f; /* dropout keeps 1 unit of 100 */
        p.params[p.at.why + i * 40] = 1e36f;
    }
    rnn_regularization dropout = {.output_mask = mask};
    CHECK(rnn_loss_grad(work, p.params, p.embeddings, p.x, p.y, 600, 1, 1.0f, &dropout, state, &loss, grads) ==
          RNN_E_NONFINITE);
    if (precision == RNN_PRECISION_BF16) { /* a logit of 2.9e38 is finite, and log2(e) times as much is not */
        for (size_t i = 0; i < 8; i++) p.params[p.at.why + i * 40] = 3.6e37f;
        int32_t status = GRAD(p.params, p.x, p.y, 600, 1, 1.0f);
        CHECK(status == RNN_E_NONFINITE || status == RNN_OK); /* kernels shift in powers of e, or of 2 */
        if (status == RNN_OK) {
            memcpy(grads, grads0, P * sizeof *grads);
            memcpy(state, p.state, S * sizeof *state);
        }
    }
    CHECK(same(grads, grads0, P * sizeof *grads));
    CHECK(same(state, p.state, S * sizeof *state));
    for (size_t i = 0; i < 8; i++) p.params[p.at.why + i * 40] = kept[i];
    CHECK(GRAD(p.params, p.x, p.y, 600, 1, 1.0f) == RNN_OK); /* a refusal does no lasting harm */

    rnn_work_destroy(work);
    free(grads);
    free(grads0);
    free(state);
    free_problem(&p);
#undef GRAD
#undef LOSS
}

void test_training_refusals(void) {
    for (size_t i = 0; i < 2; i++) training_refusals(precisions[i]);
    rnn_dims good = {40, 5, 8};
    rnn_dims bad[] = {{0, 1, 1}, {1, 0, 1}, {1, 1, 0}, {-1, 1, 1}, {RNN_MAX_VOCAB + 1, 1, 1}, {1, 1 << 15, 1}};
    rnn_work *none = NULL;
    int64_t count = -1;
    for (size_t i = 0; i < 6; i++) {
        CHECK(rnn_work_create(&bad[i], 1, 1, 0, RNN_PRECISION_F32, 1, &none) == RNN_E_DIM);
        CHECK(rnn_param_count(&bad[i], &count) == RNN_E_DIM);
    }
    CHECK(rnn_work_create(&good, 0, 1, 0, RNN_PRECISION_F32, 1, &none) == RNN_E_DIM);
    CHECK(rnn_work_create(&good, RNN_MAX_TOKENS, 2, 0, RNN_PRECISION_F32, 1, &none) == RNN_E_DIM);
    CHECK(rnn_work_create(&good, 1, 1, 0, RNN_PRECISION_F32, 0, &none) == RNN_E_ARG);
    CHECK(rnn_work_create(&good, 1, 1, 0, RNN_PRECISION_INT8, 1, &none) == RNN_E_ARG);
    CHECK(rnn_work_create(&good, 1, 1, 0, -1, 1, &none) == RNN_E_ARG);
    CHECK(rnn_work_create(NULL, 1, 1, 0, RNN_PRECISION_F32, 1, &none) == RNN_E_NULL);
    CHECK(none == NULL && count == -1);
    rnn_work_destroy(NULL);
}
