/* elman.c -- the whole model in plain loops and double precision.
 *
 *     h_t = tanh(x_t Wxh + h_{t-1} Whh + bh)      x_t = embeddings[token_t]
 *     p_t = softmax(h_t Why + by)
 *     L   = sum_t -log p_t[y_t]                   y_t is the token after token_t
 *
 * docs/lesson.md walks through this file, and `make lesson` trains the model (lesson.c). The tests hold the fast library
 * against it. It is meant to be read, not to be fast. Gradients accumulate (+=): a parameter is used at every step, and
 * its gradient is the sum of what the steps contribute.
 */
#include "elman.h"

#include <math.h>
#include <string.h>

size_t elman_count(size_t V, size_t E, size_t H) { return E * H + H * H + H + H * V + V; }

elman elman_on(size_t V, size_t E, size_t H, const double *embeddings, double *parameters) {
    elman m = {.V = V, .E = E, .H = H, .embeddings = embeddings, .wxh = parameters};
    m.whh = m.wxh + E * H;
    m.bh = m.whh + H * H;
    m.why = m.bh + H;
    m.by = m.why + H * V;
    return m;
}

/* 1. Embed: a token becomes the vector x (E) that stands for it. */
const double *elman_embed(const elman *m, int32_t token) { return m->embeddings + (size_t)token * m->E; }

/* 2. One step forward: h = tanh(x Wxh + h_prev Whh + bh). */
void elman_step(const elman *m, const double *x, const double *h_prev, double *h) {
    for (size_t j = 0; j < m->H; j++) {
        double a = m->bh[j];
        for (size_t i = 0; i < m->E; i++) a += x[i] * m->wxh[i * m->H + j];
        for (size_t i = 0; i < m->H; i++) a += h_prev[i] * m->whh[i * m->H + j];
        h[j] = tanh(a);
    }
}

/* 3. Output forward: log p = z - log sum exp(z), z = h Why + by. The largest z is taken out, so that no exp overflows. */
void elman_output(const elman *m, const double *h, double *logp) {
    double max = -INFINITY, sum = 0.0;
    for (size_t v = 0; v < m->V; v++) logp[v] = m->by[v];
    for (size_t i = 0; i < m->H; i++) {
        for (size_t v = 0; v < m->V; v++) logp[v] += h[i] * m->why[i * m->V + v];
    }
    for (size_t v = 0; v < m->V; v++) max = fmax(max, logp[v]);
    for (size_t v = 0; v < m->V; v++) sum += exp(logp[v] - max);
    for (size_t v = 0; v < m->V; v++) logp[v] -= max + log(sum);
}

/* 4. The loss of the step is -logp[y]. */

/* 5. Output backward: dz = p - onehot(y), dWhy += h^T dz, dby += dz, dh += dz Why^T. */
void elman_output_backward(const elman *m, const double *h, const double *logp, int32_t y, elman *grad, double *dh) {
    for (size_t v = 0; v < m->V; v++) {
        double dz = exp(logp[v]) - (v == (size_t)y);
        grad->by[v] += dz;
        for (size_t i = 0; i < m->H; i++) {
            grad->why[i * m->V + v] += h[i] * dz;
            dh[i] += m->why[i * m->V + v] * dz;
        }
    }
}

/* 6. One step backward: da = dh * (1 - h^2), dWxh += x^T da, dWhh += h_prev^T da, dbh += da, dh_prev += da Whh^T. */
void elman_step_backward(const elman *m, const double *x, const double *h_prev, const double *h, const double *dh,
                         elman *grad, double *dh_prev) {
    for (size_t j = 0; j < m->H; j++) {
        double da = dh[j] * (1.0 - h[j] * h[j]);
        grad->bh[j] += da;
        for (size_t i = 0; i < m->E; i++) grad->wxh[i * m->H + j] += x[i] * da;
        for (size_t i = 0; i < m->H; i++) {
            grad->whh[i * m->H + j] += h_prev[i] * da;
            dh_prev[i] += m->whh[i * m->H + j] * da;
        }
    }
}

/* A sequence: forward through time, then backward through time (BPTT, Werbos 1990). */
double elman_loss(const elman *m, const int32_t *x, const int32_t *y, size_t T, size_t first, double *h, double *logp,
                  double *dh, elman *grad) {
    size_t V = m->V, H = m->H;
    double loss = 0.0;
    for (size_t t = 0; t < T; t++) {
        elman_step(m, elman_embed(m, x[t]), h + t * H, h + (t + 1) * H);
        elman_output(m, h + (t + 1) * H, logp + t * V);
        if (t >= first) loss -= logp[t * V + (size_t)y[t]];
    }
    if (!grad) return loss;
    memset(dh, 0, (T + 1) * H * sizeof *dh);
    for (size_t t = T; t-- > 0;) { /* h[t+1] acts on the loss of its own step, and on every later one through h[t+2] */
        if (t >= first) elman_output_backward(m, h + (t + 1) * H, logp + t * V, y[t], grad, dh + (t + 1) * H);
        elman_step_backward(m, elman_embed(m, x[t]), h + t * H, h + (t + 1) * H, dh + (t + 1) * H, grad, dh + t * H);
    }
    return loss;
}

/* 7. Update: a step of gradient descent on all parameters, which begin at Wxh. */
void elman_update(elman *m, const elman *grad, double rate) {
    for (size_t i = 0; i < elman_count(m->V, m->E, m->H); i++) m->wxh[i] -= rate * grad->wxh[i];
}

/* 8. Sample from the cumulative distribution: the first token at which the sum of the probabilities exceeds u in [0,1). */
int32_t elman_sample(const double *logp, size_t V, double u) {
    double sum = 0.0;
    size_t v = 0;
    while (v < V - 1 && (sum += exp(logp[v])) <= u) v++; /* if rounding leaves the sum short of 1, the last token */
    return (int32_t)v;
}

/* 9. Generate: feed a token, draw the next, feed that. */
void elman_generate(const elman *m, int32_t token, const double *u, size_t count, double *h, double *logp,
                    int32_t *out) {
    for (size_t t = 0; t < count; t++, h += m->H) {
        elman_step(m, elman_embed(m, token), h, h + m->H);
        elman_output(m, h + m->H, logp);
        token = out[t] = elman_sample(logp, m->V, u[t]);
    }
}
