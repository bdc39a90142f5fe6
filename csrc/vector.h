/* vector.h -- short vectors of floats, and exp and tanh of them. For the files of kernels.
 *
 * The vectors are the compiler's own (GCC and clang "vector extensions"): one source for every processor. LANES follows
 * from the instruction set that the file is being compiled for, and a * b + c becomes one fused multiply-add where
 * there is one (-ffp-contract=fast; nothing else of fast-math).
 */
#ifndef RNN_VECTOR_H
#define RNN_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__aarch64__) && defined(__clang__)
#include <arm_neon.h>
#endif

/* LANES floats fill a register. A tile of TILE_ROWS by TILE_VECS vectors fills the registers (kernels_matrix.h). */
#if defined(__AVX512F__) /* 32 registers of 16 */
#define LANES 16
#define TILE_ROWS 8
#define TILE_VECS 3
#elif defined(__AVX2__) /* 16 registers of 8 */
#define LANES 8
#define TILE_ROWS 6
#define TILE_VECS 2
#elif defined(__aarch64__) /* 32 registers of 4 */
#define LANES 4
#define TILE_ROWS 6
#define TILE_VECS 4
#else /* 16 registers of 4, as x86-64 has without extensions */
#define LANES 4
#define TILE_ROWS 4
#define TILE_VECS 2
#endif
#define PANEL (TILE_VECS * LANES)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
/* The same in memory: at any address, and whatever the memory's declared type. */
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t uvec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
/* Half as many doubles fill a register, so sums in double take a pair. */
typedef float half_vec __attribute__((vector_size(2 * LANES)));
typedef double dvec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE void store(float *p, vec x) { *(vec_at *)p = x; }
/* x (count <= LANES), filled up. */
INLINE vec load_part(const float *x, size_t count, float fill) {
    float part[LANES];
    for (size_t i = 0; i < LANES; i++) part[i] = fill;
    for (size_t i = 0; i < count; i++) part[i] = x[i];
    return load(part);
}

/* c + a * b, rounded once where the processor can. clang for arm64, and gcc from 13 on for x86, fuse the two only where
 * they expect a gain, and sums over k would then differ from tile to tile; the intrinsic leaves them no choice. */
INLINE vec multiply_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vec)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__) && defined(__clang__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return c + a * b;
#endif
}

INLINE vec splat(float x) { return x - (vec){0}; } /* x - 0 is x, -0 included: the compiler just broadcasts */
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
/* a > b ? a : b, so b where one is a NaN: what the x86 instruction does, which gcc does not make of choose(). */
#if defined(__AVX512F__)
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__SSE__)
INLINE vec larger(vec a, vec b) { return (vec)_mm_max_ps((__m128)a, (__m128)b); }
#else
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }
#endif

/* The two halves of x as doubles. */
INLINE void widen(vec x, dvec *low, dvec *high) {
    half_vec half[2];
    memcpy(half, &x, sizeof x);
    *low = __builtin_convertvector(half[0], dvec);
    *high = __builtin_convertvector(half[1], dvec);
}

/* The bits of floats without their signs order as the floats do, with infinity and then NaNs above all. */
INLINE ivec larger_int(ivec a, ivec b) {
    ivec mask = a > b;
    return (mask & a) | (~mask & b);
}

INLINE int32_t magnitude_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & INT32_MAX;
}

/* The largest of the magnitudes whose bits are given, infinity for a NaN. */
INLINE float magnitude_of(ivec bits) {
    int32_t most = 0;
    for (int i = 0; i < LANES; i++) most = bits[i] > most ? bits[i] : most;
    float x;
    memcpy(&x, &most, sizeof x);
    return isnan(x) ? INFINITY : x;
}

/* The sums of neighbouring lanes: those of a, then those of b. */
INLINE vec fold(vec a, vec b) {
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
#if defined(__clang__)
    return __builtin_shufflevector(a, b, EVEN) + __builtin_shufflevector(a, b, ODD);
#else
    return __builtin_shuffle(a, b, (ivec){EVEN}) + __builtin_shuffle(a, b, (ivec){ODD});
#endif
}

/* Bit i says whether lane i of a comparison is true. */
INLINE uint32_t lanes_of(ivec mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE__)
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(mask[i] & 1) << i;
    return bits;
#endif
}

/* Bit i says whether lane i is at least `level`. */
INLINE uint32_t lanes_at_least(vec x, float level) {
#if defined(__AVX512F__) /* gcc would make a vector of it first */
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(level), _CMP_GE_OQ);
#else
    return lanes_of(x >= level);
#endif
}

INLINE double sum_of_doubles(dvec x) {
    double sum = 0.0;
    for (int i = 0; i < LANES / 2; i++) sum += x[i];
    return sum;
}

INLINE float max_of_lanes(vec x) {
    float max = x[0];
    for (int i = 1; i < LANES; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* exp(x) for x <= 88, with a relative error below 2e-7; 0 where the result would be smaller than any normal float
 * (x < -87.33); NaN for a NaN of arithmetic, whose low bits are 0.
 *     x = n ln 2 + r,  |r| <= ln 2 / 2:  exp(x) = 2^n exp(r)
 * with ln 2 in two pieces (Cody & Waite 1980), and for exp(r) the polynomial of degree 6 with the least largest relative
 * error, 2e-9, among those that are 1 at 0. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, from
 * where it moves into the exponent. */
INLINE vec exp_of(vec x) {
    const float round = 0x1.8p23f;
    vec shifted = x * 1.44269504088896341f + round;
    vec n = shifted - round;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = r * 0x1.6ae724p-10f + 0x1.126794p-7f;
    p = p * r + 0x1.555822p-5f;
    p = p * r + 0x1.55541ap-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ivec scaled = (ivec)((uvec)p + ((uvec)shifted << 23)); /* p 2^n */
    return (vec)(~(ivec)(x < -87.33f) & scaled);
}

/* tanh(x), with an absolute error below 1e-7; NaN as for exp. A polynomial (Cephes) where 1 - 2 / (exp(2x) + 1) would
 * cancel. */
INLINE vec tanh_of(vec x) {
    vec size = (vec)((ivec)x & INT32_MAX);
    vec sign = (vec)((ivec)x & INT32_MIN);
    size = choose(size > 10.0f, splat(10.0f), size); /* tanh is 1 from 9.1 on */
    vec large = 1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f);
    vec z = x * x;
    vec p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    vec small = p * z * x + x;
    return choose(size < 0.625f, small, (vec)((ivec)large | (ivec)sign));
}

#endif
