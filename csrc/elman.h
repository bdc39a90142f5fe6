/* elman.h -- the model in plain loops and double precision: see elman.c. */
#ifndef ELMAN_H
#define ELMAN_H

#include <stddef.h>
#include <stdint.h>

/* The model, and in the same shape the gradient of a loss with respect to it. Matrices are (in, out), row by row. */
typedef struct elman {
    size_t V, E, H;           /* tokens (words, letters), embedding size, hidden units */
    const double *embeddings; /* (V,E): frozen, so no gradient */
    double *wxh, *whh, *bh;   /* (E,H) (H,H) (H) */
    double *why, *by;         /* (H,V) (V) */
} elman;

/* The number of parameters, and a model on `parameters` (that many): Wxh, Whh, bh, Why, by, one after the other. */
size_t elman_count(size_t V, size_t E, size_t H);
elman elman_on(size_t V, size_t E, size_t H, const double *embeddings, double *parameters);

const double *elman_embed(const elman *m, int32_t token);
void elman_step(const elman *m, const double *x, const double *h_prev, double *h);
void elman_output(const elman *m, const double *h, double *logp);
void elman_output_backward(const elman *m, const double *h, const double *logp, int32_t y, elman *grad, double *dh);
void elman_step_backward(const elman *m, const double *x, const double *h_prev, const double *h, const double *dh,
                         elman *grad, double *dh_prev);

/* The loss of a sequence, and its gradient.
 *   in      x, y (T): tokens, and what follows each;  first: the losses of the steps before it do not count
 *   in/out  h (T+1,H): h[0] is the state before the sequence, h[t+1] the state after x[t]
 *   out     logp (T,V): log p of every token at every step
 *           dh (T+1,H): dL/dh;  grad: += dL/dparameters;  both NULL for the loss only
 *   Returns L = sum over t >= first of -log p_t[y_t], in nats. */
double elman_loss(const elman *m, const int32_t *x, const int32_t *y, size_t T, size_t first, double *h, double *logp,
                  double *dh, elman *grad);

void elman_update(elman *m, const elman *grad, double rate);
int32_t elman_sample(const double *logp, size_t V, double u);
/* The tokens (count) that follow `token`, drawn with the uniforms u (count).
 * h (count+1,H): h[0] is the state before;  logp (V): scratch */
void elman_generate(const elman *m, int32_t token, const double *u, size_t count, double *h, double *logp,
                    int32_t *out);

#endif
