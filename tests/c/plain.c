/* plain.c -- see plain.h. One loop for each sum, as the formulas have it: nothing here is fast. */
#include "plain.h"

#include <math.h>
#include <stdlib.h>

#include "testing.h"

problem make_problem(size_t V, size_t E, size_t H, size_t T, size_t B) {
    problem p = {.V = V, .E = E, .H = H, .T = T, .B = B};
    p.dims = (rnn_dims){(int32_t)V, (int32_t)E, (int32_t)H};
    p.at = rnn_param_offsets(V, E, H);
    p.params = random_floats(p.at.count, 1.0 / sqrt((double)H));
    for (size_t i = 0; i < E * H; i++) p.params[i] *= (float)sqrt((double)H / (double)E);
    p.embeddings = random_floats(V * E, 1.0);
    p.state = random_floats(B * H, 0.3);
    p.x = random_tokens(T * B, V);
    p.y = random_tokens(T * B, V);
    return p;
}

void free_problem(problem *p) {
    free(p->params);
    free(p->embeddings);
    free(p->state);
    free(p->x);
    free(p->y);
}

double plain_loss(const problem *p, const double *q, double scale, double *grads, double *state, double *logp) {
    size_t V = p->V, E = p->E, H = p->H, B = p->B, T = p->T;
    const double *wxh = q + p->at.wxh, *whh = q + p->at.whh, *bh = q + p->at.bh, *why = q + p->at.why;
    const double *by = q + p->at.by;
    double *h = doubles((T + 1) * B * H), *dh = doubles((T + 1) * B * H), *prob = doubles(V), loss = 0.0;
    for (size_t i = 0; i < B * H; i++) h[i] = p->state[i];
    for (size_t n = 0; n < T * B; n++) {
        const double *before = h + n * H;
        double *now = h + (n + B) * H, max = -INFINITY, sum = 0.0;
        const float *input = p->embeddings + (size_t)p->x[n] * E;
        for (size_t j = 0; j < H; j++) {
            double a = bh[j];
            for (size_t i = 0; i < E; i++) a += input[i] * wxh[i * H + j];
            for (size_t i = 0; i < H; i++) a += before[i] * whh[i * H + j];
            now[j] = tanh(a);
        }
        for (size_t v = 0; v < V; v++) {
            prob[v] = by[v];
            for (size_t i = 0; i < H; i++) prob[v] += now[i] * why[i * V + v];
            max = fmax(max, prob[v]);
        }
        for (size_t v = 0; v < V; v++) sum += exp(prob[v] - max);
        double lse = max + log(sum), here = prob[p->y[n]] - lse;
        loss -= here;
        if (logp) logp[n] = here;
        for (size_t v = 0; grads && v < V; v++) {
            double d = scale * (exp(prob[v] - lse) - ((size_t)p->y[n] == v));
            grads[p->at.by + v] += d;
            for (size_t i = 0; i < H; i++) {
                grads[p->at.why + i * V + v] += now[i] * d;
                dh[(n + B) * H + i] += d * why[i * V + v];
            }
        }
    }
    for (size_t n = T * B; grads && n-- > 0;) {
        const double *before = h + n * H, *now = h + (n + B) * H;
        const float *input = p->embeddings + (size_t)p->x[n] * E;
        for (size_t j = 0; j < H; j++) {
            double a = dh[(n + B) * H + j] * (1.0 - now[j] * now[j]);
            grads[p->at.bh + j] += a;
            for (size_t i = 0; i < E; i++) grads[p->at.wxh + i * H + j] += input[i] * a;
            for (size_t i = 0; i < H; i++) {
                grads[p->at.whh + i * H + j] += before[i] * a;
                dh[n * H + i] += a * whh[i * H + j];
            }
        }
    }
    for (size_t i = 0; state && i < B * H; i++) state[i] = h[T * B * H + i];
    free(h);
    free(dh);
    free(prob);
    return loss;
}
