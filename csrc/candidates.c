/* candidates.c -- the columns of a sampled softmax: out of Why and by, and back into their gradient.
 *
 * The candidates are copied to a matrix of their own, and the output layer works on it as on any other. So there is one
 * output layer, and sampling costs two passes over (H + 1) * candidates numbers and one over the gradient.
 */
#include <string.h>

#include "internal.h"

void rnn_candidates_gather(rnn_work *w, const float *why, const rnn_regularization *r) {
    size_t count = (size_t)r->candidate_count, H = w->H;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t i = 0; i <= H; i++) {
        const float *from = why + i * w->V;
        float *to = w->candidates + i * count;
        for (size_t c = 0; c < count; c++) to[c] = from[r->candidates[c]];
        for (size_t c = 0; i == H && c < count; c++) to[c] += r->correction[c]; /* row H is by */
    }
}

void rnn_candidates_scatter(rnn_work *w, const rnn_regularization *r, float *dwhy) {
    size_t count = (size_t)r->candidate_count;
    RNN_OMP(parallel for num_threads(w->threads) schedule(static))
    for (size_t i = 0; i <= w->H; i++) {
        const float *from = w->dcandidates + i * count;
        float *to = dwhy + i * w->V;
        memset(to, 0, w->V * sizeof *to);
        for (size_t c = 0; c < count; c++) to[r->candidates[c]] = from[c];
    }
}
