/* lesson.c -- trains the model of elman.c to write text letter by letter: `make lesson`; docs/lesson.md explains it.
 *
 *     lesson [RATE] <TEXT     RATE: the learning rate, 0.003 by default
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "elman.h"

enum { E = 32, H = 100, T = 20, EPOCHS = 4, FAR = 30, LONG = 20 + FAR, PLACES = 300, SAMPLE = 400 };
static double h[(SAMPLE + 1) * H], dh[(LONG + 1) * H], *logp; /* as elman_loss takes them; logp for LONG steps */

static double uniform(void) { /* in [0,1): Knuth's MMIX generator, the same on every system */
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

static double *uniforms(size_t count, double size) { /* in [-size,size) */
    double *x = malloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = size * (2.0 * uniform() - 1.0);
    return x;
}

/* The derivative by the first weight of each matrix: from BPTT, and as (L(w + eps) - L(w - eps)) / 2 eps. */
static void check_gradient(elman *m, elman *grad, const int32_t *text) {
    const char *names[] = {"Wxh", "Whh", "bh", "Why", "by"};
    double *weights[] = {m->wxh, m->whh, m->bh, m->why, m->by}, loss[2], eps = 1e-5;
    elman_loss(m, text, text + 1, T, 0, h, logp, dh, grad);
    printf("gradient check         BPTT   differences   relative error\n");
    for (int k = 0; k < 5; k++) {
        double *w = weights[k], kept = *w, bptt = grad->wxh[w - m->wxh];
        for (int i = 0; i < 2; i++) {
            *w = kept + (i ? eps : -eps);
            loss[i] = elman_loss(m, text, text + 1, T, 0, h, logp, NULL, NULL);
        }
        *w = kept;
        double differences = (loss[1] - loss[0]) / (2.0 * eps);
        double error = differences == bptt ? 0.0 : fabs(differences / bptt - 1.0); /* both may be 0 */
        printf("  dL/d%-3s %17.10f %13.10f %13.0e\n", names[k], bptt, differences, error);
    }
}

/* The mean loss of a text that is read in chunks of T steps; with grad, the model learns from each chunk. */
static double read_text(elman *m, elman *grad, double rate, const int32_t *text, size_t count) {
    double loss = 0.0;
    size_t n = 0;
    memset(h, 0, H * sizeof *h);
    for (; n + T < count; n += T) {
        if (grad) memset(grad->wxh, 0, elman_count(m->V, E, H) * sizeof *grad->wxh);
        loss += elman_loss(m, text + n, text + n + 1, T, 0, h, logp, dh, grad);
        if (grad) elman_update(m, grad, rate);
        memcpy(h, h + T * H, H * sizeof *h); /* the state goes on to the next chunk; the gradient does not come back */
    }
    return loss / (double)n;
}

static double norm(const double *x) {
    double sum = 0.0;
    for (size_t i = 0; i < H; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* signal[k] = |dL_t/dh_{t-k}| / |dL_t/dh_t| for k = 0 .. FAR, the mean over places t of a text; L_t is the loss of step t
 * only. Returns the mean of 1 - h_t^2. */
static double measure_signal(elman *m, elman *grad, const int32_t *text, size_t count, double *signal) {
    double slope = 0.0, *last = dh + LONG * H;
    memset(signal, 0, (FAR + 1) * sizeof *signal);
    for (int place = 0; place < PLACES; place++) {
        const int32_t *x = text + (size_t)(uniform() * (double)(count - LONG));
        memset(h, 0, H * sizeof *h);
        elman_loss(m, x, x + 1, LONG, LONG - 1, h, logp, dh, grad);
        for (size_t k = 0; k <= FAR; k++) signal[k] += norm(last - k * H) / norm(last) / PLACES;
        slope += (1.0 - pow(norm(h + LONG * H), 2) / H) / PLACES;
    }
    return slope;
}

int main(int argc, char **argv) {
    char *end = "";
    double rate = argc > 1 ? strtod(argv[1], &end) : 0.003, before[FAR + 1], after[FAR + 1], u[SAMPLE];
    int32_t *text = NULL, id_of[256], out[SAMPLE];
    int byte, byte_of[256];
    size_t V = 0, N = 0;
    if (*end || !(rate > 0.0 && rate < 1e9))
        return fputs("lesson: the learning rate must be a number above 0, such as 0.003\n", stderr), 2;
    memset(id_of, -1, sizeof id_of);
    while ((byte = getchar()) != EOF) { /* the tokens are the bytes that occur, numbered as they come */
        if (N % 65536 == 0) text = realloc(text, (N + 65536) * sizeof *text);
        if (id_of[byte] < 0) id_of[byte] = (int32_t)V, byte_of[V++] = byte;
        text[N++] = id_of[byte];
    }
    if (N < 20 * LONG) return fputs("lesson: give it a text of 1,000 bytes or more on standard input\n", stderr), 2;
    size_t P = elman_count(V, E, H), train = N * 9 / 10;
    double *parameters = uniforms(P, 1.0 / sqrt(H)), *embeddings = uniforms(V * E, sqrt(3.0));
    elman m = elman_on(V, E, H, embeddings, parameters);
    elman grad = elman_on(V, E, H, m.embeddings, calloc(P, sizeof(double)));
    logp = malloc(LONG * V * sizeof *logp);

    check_gradient(&m, &grad, text);
    double slope_before = measure_signal(&m, &grad, text, train, before);
    printf("\nepoch    loss  perplexity    of unseen text: loss  perplexity\n");
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        double loss = read_text(&m, &grad, rate, text, train);
        double unseen = read_text(&m, NULL, 0.0, text + train, N - train);
        printf("%5d %7.3f %11.1f %23.3f %11.1f\n", epoch, loss, exp(loss), unseen, exp(unseen));
        fflush(stdout);
    }
    double slope_after = measure_signal(&m, &grad, text, train, after);
    printf("\n                     before training        after\n");
    for (int k = 0; k <= FAR; k += k < 5 ? 1 : 5)
        printf("signal %2d steps back %16.1e %12.1e\n", k, before[k], after[k]);
    printf("mean of 1 - h^2 %20.2f %12.2f\n\n", slope_before, slope_after);

    for (size_t t = 0; t < SAMPLE; t++) u[t] = uniform();
    memset(h, 0, H * sizeof *h);
    elman_generate(&m, text[0], u, SAMPLE, h, logp, out);
    putchar(byte_of[text[0]]);
    for (size_t t = 0; t < SAMPLE; t++) putchar(byte_of[out[t]]);
    putchar('\n');
    return 0;
}
