/* plain.h -- the model in plain double precision, which the library's results are compared with. */
#ifndef RNN_PLAIN_H
#define RNN_PLAIN_H

#include "internal.h"
#include "rnnlib.h"

/* A model, a chunk of text and the state before it. params: as rnnlib.h lays them out.  state: (B, H).  x, y: (T, B). */
typedef struct problem {
    size_t V, E, H, T, B;
    rnn_dims dims;
    rnn_offsets at;
    float *params, *embeddings, *state;
    int32_t *x, *y;
} problem;

problem make_problem(size_t V, size_t E, size_t H, size_t T, size_t B); /* by chance */
void free_problem(problem *p);

/* The summed loss of p with the parameters q (P).
 *   grads: (P) += scale * dloss/dq, or NULL   state: (B, H) = that after the chunk, or NULL
 *   logp: (T, B) = log-probability of each y, or NULL */
double plain_loss(const problem *p, const double *q, double scale, double *grads, double *state, double *logp);

#endif
