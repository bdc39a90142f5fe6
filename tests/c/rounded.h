/* rounded.h -- the lesson's model again, with the operands of every product rounded to bfloat16. */
#ifndef RNN_ROUNDED_H
#define RNN_ROUNDED_H

#include "problem.h"

/* As lesson_loss, of p's own parameters. Sums are in double, and only operands are rounded. rounded_e: also round the
 * exponentials of the softmax, and the hidden rows times their factors, which are operands in the library. */
double rounded_loss(const problem *p, double scale, bool rounded_e, double *grads, double *state);

#endif
