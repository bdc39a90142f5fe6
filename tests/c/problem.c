/* problem.c -- see problem.h. */
#include "problem.h"

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

double lesson_loss(const problem *p, double *q, double scale, double *grads, double *state, double *logp) {
    size_t T = p->T, B = p->B, V = p->V, H = p->H, P = p->at.count;
    double *embeddings = widen(p->embeddings, V * p->E), *sum = doubles(P), loss = 0.0;
    double *h = doubles((T + 1) * H), *dh = doubles((T + 1) * H), *all_logp = doubles(T * V);
    elman m = elman_on(V, p->E, H, embeddings, q), grad = elman_on(V, p->E, H, embeddings, sum);
    int32_t *x = ints(T), *y = ints(T);
    for (size_t b = 0; b < B; b++) {
        for (size_t t = 0; t < T; t++) x[t] = p->x[t * B + b], y[t] = p->y[t * B + b];
        for (size_t i = 0; i < H; i++) h[i] = p->state[b * H + i];
        loss += elman_loss(&m, x, y, T, 0, h, all_logp, dh, grads ? &grad : NULL);
        for (size_t i = 0; state && i < H; i++) state[b * H + i] = h[T * H + i];
        for (size_t t = 0; logp && t < T; t++) logp[t * B + b] = all_logp[t * V + (size_t)y[t]];
    }
    for (size_t i = 0; grads && i < P; i++) grads[i] += scale * sum[i];
    free(embeddings), free(sum), free(h), free(dh), free(all_logp), free(x), free(y);
    return loss;
}
