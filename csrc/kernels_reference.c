/* kernels_reference.c -- the kernels as plain loops: what the fast ones are tested against (RNN_ISA=reference). */
#include <math.h>
#include <string.h>

#include "internal.h"

enum { PANEL = 8, WIDE = 16 };

static float max_abs(size_t count, const float *x) {
    float max = 0.0f;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return INFINITY;
        max = fmaxf(max, fabsf(x[i]));
    }
    return max;
}

static float pack(const float *w, size_t ld, size_t K, size_t cols, float fill, float *panels) {
    float max = 0.0f;
    for (size_t k = 0; k < K; k++) {
        for (size_t j = 0; j < rnn_round_up(cols, PANEL); j++) {
            float filled = k + 1 == K ? fill : 0.0f;
            panels[(j / PANEL * K + k) * PANEL + j % PANEL] = j < cols ? w[k * ld + j] : filled;
        }
        max = fmaxf(max, max_abs(cols, w + k * ld));
    }
    return max;
}

static void multiply(size_t m, size_t K, size_t panels, const float *a, size_t lda, const float *b, float *c,
                     size_t c_row, size_t c_panel, bool add) {
    for (size_t p = 0; p < panels; p++) {
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < PANEL; j++) {
                double sum = 0.0;
                for (size_t k = 0; k < K; k++) sum += (double)a[i * lda + k] * b[(p * K + k) * PANEL + j];
                float *out = c + p * c_panel + i * c_row + j;
                *out = (float)(add ? *out + sum : sum);
            }
        }
    }
}

static void multiply_at(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t b_row,
                        size_t b_panel, float *c, size_t ldc, bool add) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < cols; j++) {
            double sum = 0.0;
            const float *column = b + j / PANEL * b_panel + j % PANEL;
            for (size_t k = 0; k < K; k++) sum += (double)a[k * lda + i] * column[k * b_row];
            c[i * ldc + j] = (float)(add ? c[i * ldc + j] + sum : sum);
        }
    }
}

static void multiply_bt(size_t m, size_t n, size_t panels, const float *a, size_t a_panel, const float *b,
                        size_t b_panel, float *c, size_t ldc) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t p = 0; p < panels; p++) {
                for (size_t v = 0; v < PANEL; v++) {
                    sum += (double)a[p * a_panel + i * PANEL + v] * b[p * b_panel + j * PANEL + v];
                }
            }
            c[i * ldc + j] = (float)sum;
        }
    }
}

static float max_of(size_t count, const float *x) {
    float max = x[0];
    for (size_t i = 1; i < count; i++) max = fmaxf(max, x[i]);
    return max;
}

static void softmax(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum) {
    for (size_t i = 0; i < m; i++) {
        float top = -INFINITY;
        double total = 0.0;
        for (size_t p = 0; p < panels; p++) top = fmaxf(top, max_of(PANEL, z + p * z_panel + i * PANEL));
        for (size_t p = 0; p < panels; p++) {
            for (size_t j = 0; j < PANEL; j++) {
                float *at = z + p * z_panel + i * PANEL + j;
                *at = expf(*at - top);
                total += *at;
            }
        }
        max[i] = top;
        sum[i] = total;
    }
}

static void softmax_rounded(size_t m, size_t panels, float *z, size_t z_panel, float *max, double *sum) {
    const double log2e = 1.4426950408889634;
    for (size_t i = 0; i < m; i++) {
        float top = -INFINITY;
        double total = 0.0;
        for (size_t p = 0; p < panels; p++) top = fmaxf(top, max_of(PANEL, z + p * z_panel + i * PANEL));
        max[i] = (float)ceil(top * log2e);
        for (size_t p = 0; p < panels; p++) {
            for (size_t j = 0; j < PANEL; j++) {
                float *at = z + p * z_panel + i * PANEL + j;
                float e = (float)exp2(*at * log2e - max[i]);
                *at = rnn_widen_bfloat16(rnn_round_bfloat16(e));
                total += e;
            }
        }
        sum[i] = total;
    }
}

static void round_all(size_t count, float *x) {
    for (size_t i = 0; i < count; i++) x[i] = rnn_widen_bfloat16(rnn_round_bfloat16(x[i]));
}

static void tanh_forward(size_t count, float *x) {
    for (size_t i = 0; i < count; i++) x[i] = tanhf(x[i]);
}

static void tanh_backward(size_t count, const float *h, float *d) {
    for (size_t i = 0; i < count; i++) d[i] *= 1.0f - h[i] * h[i];
}

static void weighted_sum(size_t terms, size_t count, const float *weights, size_t weight_step, const float *x,
                         size_t x_step, float *out) {
    for (size_t i = 0; i < count; i++) {
        double sum = 0.0;
        for (size_t b = 0; b < terms; b++) sum += (double)weights[b * weight_step] * x[b * x_step + i];
        out[i] = (float)sum;
    }
}

static void tally(size_t count, const float *keys, const float *values, const float levels[RNN_LEVELS],
                  double sums[RNN_LEVELS]) {
    for (size_t j = 0; j < RNN_LEVELS; j++) {
        sums[j] = 0.0;
        for (size_t i = 0; i < count; i++) {
            if (keys[i] >= levels[j]) sums[j] += values ? values[i] : 1.0;
        }
    }
}

static size_t part(size_t count, const float *z, size_t first, const rnn_split *split, double *sum, size_t *above,
                   rnn_found found, size_t found_count) {
    *sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        if (!(z[i] >= split->low)) continue;
        if (z[i] >= split->high) {
            *sum += expf((z[i] - split->max) * split->beta);
            if (above) ++*above;
        } else {
            found.tokens[found_count] = (int32_t)(first + i);
            found.logits[found_count++] = z[i];
        }
    }
    return found_count;
}

static double exp_sum(size_t count, const float *z, float max, float beta, float *e) {
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        float here = expf((z[i] - max) * beta);
        if (e) e[i] = here;
        sum += here;
    }
    return sum;
}

static void rows_times(size_t m, size_t K, size_t cols, const float *a, size_t lda, const float *b, size_t ldb,
                       const float *bias, float *c, size_t ldc) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < cols; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < K; k++) sum += (double)a[i * lda + k] * b[k * ldb + j];
            c[i * ldc + j] = (float)sum + bias[j];
        }
    }
}

/* The smaller copy of a matrix: each 32-bit integer holds two or four weights of neighbouring columns. */
static void compress(int32_t precision, const float *w, size_t ld, size_t K, size_t cols, uint32_t *packed,
                     float *scale) {
    size_t bits = precision == RNN_PRECISION_BF16 ? 16 : 8, per_int = 32 / bits;
    memset(packed, 0, K * WIDE / per_int * sizeof *packed);
    for (size_t v = 0; v < cols; v++) {
        float max = 0.0f;
        for (size_t k = 0; k < K; k++) max = fmaxf(max, fabsf(w[k * ld + v]));
        scale[v] = precision == RNN_PRECISION_BF16 ? 1.0f : max / 127.0f;
        for (size_t k = 0; k < K; k++) {
            uint32_t part;
            if (precision == RNN_PRECISION_BF16) {
                part = rnn_round_bfloat16(w[k * ld + v]);
            } else {
                float quotient = scale[v] > 0.0f ? rintf(w[k * ld + v] / scale[v]) : 0.0f;
                part = (uint32_t)(int32_t)fmaxf(-127.0f, fminf(127.0f, quotient)) & 0xff;
            }
            packed[(k * WIDE + v) / per_int] |= part << (v % per_int * bits);
        }
    }
}

static float weight_of(int32_t precision, const uint32_t *packed, size_t at) {
    if (precision == RNN_PRECISION_BF16) return rnn_widen_bfloat16((rnn_bfloat16)(packed[at / 2] >> (at % 2 * 16)));
    int32_t byte = (int32_t)(packed[at / 4] >> (at % 4 * 8) & 0xff);
    return (float)(byte < 128 ? byte : byte - 256);
}

static void rows_times_packed(size_t m, int32_t precision, size_t K, const float *a, size_t lda, const uint32_t *packed,
                              float *c, size_t ldc) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < WIDE; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < K; k++) sum += (double)a[i * lda + k] * weight_of(precision, packed, k * WIDE + j);
            c[i * ldc + j] = (float)sum;
        }
    }
}

static void finish(size_t count, const float *scale, const float *bias, float *z) {
    for (size_t v = 0; v < count; v++) z[v] = (scale ? z[v] * scale[v] : z[v]) + bias[v];
}

static double sum_squares(size_t count, const float *x) {
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * x[i];
    return sum;
}

static void sgd(size_t count, float *p, const float *g, float *v, float grad_scale, float lr, float momentum) {
    for (size_t i = 0; i < count; i++) {
        float step = grad_scale * g[i];
        if (v) step = v[i] = momentum * v[i] + step;
        p[i] -= lr * step;
    }
}

static void adamw(size_t count, float *p, const float *g, float *m, float *v, float grad_scale,
                  const rnn_adamw_factors *f) {
    for (size_t i = 0; i < count; i++) {
        double grad = (double)grad_scale * g[i];
        double m1 = f->beta1 * m[i] + f->rest1 * grad, v1 = f->beta2 * v[i] + f->rest2 * grad * grad;
        p[i] = (float)(f->keep * p[i] - f->rate * m1 / (f->root * sqrt(v1) + f->epsilon));
        m[i] = (float)m1;
        v[i] = (float)v1;
    }
}

static void average(size_t count, float *mean, const float *p, float rate) {
    for (size_t i = 0; i < count; i++) mean[i] += rate * (p[i] - mean[i]);
}

#define RNN_ISA reference
#include "kernels_table.h"
