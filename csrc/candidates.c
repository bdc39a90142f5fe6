/* candidates.c -- the candidates of a sampled softmax: out of the words, and their gradient back.
 *
 * Words are rows, so that a step reads and writes only the memory of its candidates. The output layer wants columns: the
 * candidates are copied to a matrix of their own, on which it works as on any other.
 */
#include "internal.h"

enum { ROWS = 16 }; /* that are transposed together: a cache line of the other side */

void rnn_candidates_gather(rnn_work *w, const float *words, const rnn_regularization *r) {
    size_t count = (size_t)r->candidate_count, H = w->H;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t c0 = 0; c0 < count; c0 += ROWS) {
        size_t rows = rnn_min(ROWS, count - c0);
        const float *from[ROWS];
        for (size_t c = 0; c < rows; c++) from[c] = words + (size_t)r->candidates[c0 + c] * (H + 1);
        for (size_t i = 0; i <= H; i++) {
            float *to = w->candidates + i * count + c0;
            for (size_t c = 0; c < rows; c++) to[c] = from[c][i];
        }
        for (size_t c = c0; c < c0 + rows; c++) w->candidates[H * count + c] += r->correction[c];
    }
}

void rnn_candidates_return(rnn_work *w, const rnn_regularization *r, float *grads) {
    size_t count = (size_t)r->candidate_count, H = w->H;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t c0 = 0; c0 < count; c0 += ROWS) {
        size_t rows = rnn_min(ROWS, count - c0);
        for (size_t i = 0; i <= H; i++) {
            const float *from = w->dcandidates + i * count + c0;
            for (size_t c = 0; c < rows; c++) grads[(c0 + c) * (H + 1) + i] = from[c];
        }
    }
}
