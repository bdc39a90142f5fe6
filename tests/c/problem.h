/* problem.h -- a random model and chunk of text, and what the lesson, csrc/elman.c, computes from them. */
#ifndef RNN_PROBLEM_H
#define RNN_PROBLEM_H

#include "elman.h"
#include "internal.h"
#include "rnnlib.h"

/* params: as rnnlib.h lays them out.  state: (B, H), before the chunk.  x, y: (T, B). */
typedef struct problem {
    size_t V, E, H, T, B;
    rnn_dims dims;
    rnn_offsets at;
    float *params, *embeddings, *state;
    int32_t *x, *y;
} problem;

problem make_problem(size_t V, size_t E, size_t H, size_t T, size_t B);
void free_problem(problem *p);

/* The summed loss of p with the parameters q (P), by elman.c, one batch row after the other.
 *   grads: (P) += scale * dloss/dq, or NULL   state: (B, H) = that after the chunk, or NULL
 *   logp: (T, B) = log-probability of each y, or NULL */
double lesson_loss(const problem *p, double *q, double scale, double *grads, double *state, double *logp);

#endif
