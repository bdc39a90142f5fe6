/* rounded.c -- see rounded.h. */
#include "rounded.h"

#include <math.h>
#include <stdlib.h>

#include "bfloat16.h"
#include "testing.h"

static double rounded(double x) { return rnn_widen_bfloat16(rnn_round_bfloat16((float)x)); }

static double *rounded_copy(const float *x, size_t count) {
    double *copy = doubles(count);
    for (size_t i = 0; i < count; i++) copy[i] = rounded(x[i]);
    return copy;
}

/* The output layer of one token: its -log p; grads and dh (H) += the gradient. q: the parameters, h (H), both rounded. */
static double output_layer(const problem *p, const double *q, const double *h, const double *exact_h, size_t y,
                           double scale, bool rounded_e, double *z, double *grads, double *dh) {
    size_t V = p->V, H = p->H;
    const double *why = q + p->at.why, log2e = 1.4426950408889634;
    double sum = 0.0;
    for (size_t v = 0; v < V; v++) {
        z[v] = p->params[p->at.by + v];
        for (size_t i = 0; i < H; i++) z[v] += h[i] * why[i * V + v];
    }
    double max = -INFINITY;
    for (size_t v = 0; v < V; v++) max = fmax(max, z[v]);
    double shift = rint(max * log2e); /* of no matter, as long as it is a whole number */
    for (size_t v = 0; v < V; v++) sum += exp2(z[v] * log2e - shift);
    double logp = z[y] - (shift + log2(sum)) / log2e, factor = scale / sum, rest = scale * -expm1(logp);
    for (size_t v = 0; grads && v < V; v++) {
        double e = exp2(z[v] * log2e - shift);
        if (rounded_e) e = rounded(e);
        for (size_t i = 0; i <= H; i++) { /* row H: the biases */
            double left = i < H ? h[i] : 1.0, scaled = factor * (i < H ? exact_h[i] : 1.0);
            double d = v == y ? -rest * left : (rounded_e ? rounded(scaled) : factor * left) * e;
            grads[p->at.why + i * V + v] += d;
            if (i < H) dh[i] += (v == y ? -rest : factor * e) * why[i * V + v];
        }
    }
    return -logp;
}

double rounded_loss(const problem *p, double scale, bool rounded_e, double *grads, double *state) {
    size_t E = p->E, H = p->H, B = p->B, N = p->T * p->B;
    double *q = rounded_copy(p->params, p->at.count), *embeddings = rounded_copy(p->embeddings, p->V * E);
    double *h = doubles((N + B) * H), *exact_h = doubles((N + B) * H), *dh = doubles((N + B) * H), *z = doubles(p->V);
    const double *wxh = q + p->at.wxh, *whh = q + p->at.whh;
    double loss = 0.0;
    for (size_t i = 0; i < B * H; i++) exact_h[i] = p->state[i];
    for (size_t i = 0; i < B * H; i++) h[i] = rounded(exact_h[i]);
    for (size_t n = 0; n < N; n++) {
        const double *before = h + n * H, *input = embeddings + (size_t)p->x[n] * E;
        double *now = h + (n + B) * H, *exact = exact_h + (n + B) * H;
        for (size_t j = 0; j < H; j++) {
            double a = p->params[p->at.bh + j];
            for (size_t i = 0; i < E; i++) a += input[i] * wxh[i * H + j];
            for (size_t i = 0; i < H; i++) a += before[i] * whh[i * H + j];
            exact[j] = tanh(a);
            now[j] = rounded(exact[j]);
        }
        loss += output_layer(p, q, now, exact, (size_t)p->y[n], scale, rounded_e, z, grads, dh + (n + B) * H);
    }
    for (size_t n = N; grads && n-- > 0;) {
        const double *before = h + n * H, *exact = exact_h + (n + B) * H;
        const double *input = embeddings + (size_t)p->x[n] * E;
        for (size_t j = 0; j < H; j++) {
            double a = rounded(dh[(n + B) * H + j] * (1.0 - exact[j] * exact[j]));
            grads[p->at.bh + j] += a;
            for (size_t i = 0; i < E; i++) grads[p->at.wxh + i * H + j] += input[i] * a;
            for (size_t i = 0; i < H; i++) {
                grads[p->at.whh + i * H + j] += before[i] * a;
                dh[n * H + i] += a * whh[i * H + j];
            }
        }
    }
    for (size_t i = 0; state && i < B * H; i++) state[i] = exact_h[N * H + i];
    free(q), free(embeddings), free(h), free(exact_h), free(dh), free(z);
    return loss;
}
