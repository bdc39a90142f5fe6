/* kernels_bfloat16.c -- the kernels of bfloat16.h with AVX-512 and its VDPBF16PS. kernels_amx.c multiplies by tiles. */
#include "bfloat16.h"

#ifdef RNN_X86_KERNELS

#include <immintrin.h>

#include "internal.h"
#include "vector.h"

/* The first `count` lanes, of any count. */
INLINE __mmask16 lanes(size_t count) { return (__mmask16)(count >= 16 ? 0xffffu : (1u << count) - 1u); }

/* 32 values in order: low, then high. */
INLINE __m512i round_two(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* The largest of 32 magnitudes of bfloat16, as a float: infinity for NaN. */
INLINE float largest_of(__m512i packed) {
    uint16_t magnitude[32], most = 0;
    memcpy(magnitude, &packed, sizeof magnitude);
    for (size_t i = 0; i < 32; i++) most = magnitude[i] > most ? magnitude[i] : most;
    return rnn_widen_bfloat16(most < 0x7f80 ? most : 0x7f80);
}
INLINE __m512i magnitudes(__m512i packed) { return _mm512_and_si512(packed, _mm512_set1_epi16(0x7fff)); }

/* ---- Products ------------------------------------------------------------------------------------------------------ */

enum {
    TALL = 8,      /* rows, and */
    BROAD = 3,     /* panels of C, fill the registers */
    LONGEST = 256, /* k of three panels that stay in the L1 cache */
};

INLINE int32_t pair_at(const rnn_bfloat16 *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return pair;
}

/* m <= TALL rows, within a band, times n <= BROAD panels. */
INLINE void dot_tile(size_t m, size_t n, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                     size_t ldc, bool add) {
    __m512 acc[TALL][BROAD];
    UNROLL for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t j = 0; j < n; j++) {
            acc[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
        }
    }
    for (size_t k = 0; k < K; k += RNN_TILE_DEPTH, a.at += a.tile) {
        size_t end = rnn_min(RNN_TILE_DEPTH, K - k);
        for (size_t p = 0; p < end; p += 2, b += 32) {
            __m512i row[BROAD];
            UNROLL for (size_t j = 0; j < n; j++) {
                row[j] = _mm512_loadu_si512(b + j * b_panel);
                __builtin_prefetch(b + (n + j) * b_panel); /* of the next panels: they may come from memory */
            }
            UNROLL for (size_t i = 0; i < m; i++) {
                __m512i pair = _mm512_set1_epi32(pair_at(a.at + i * a.row + p));
                UNROLL for (size_t j = 0; j < n; j++) {
                    acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)pair, (__m512bh)row[j]);
                }
            }
        }
    }
    UNROLL for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t j = 0; j < n; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, acc[i][j]);
    }
}

INLINE void dots_down(size_t m, size_t n, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                      size_t ldc, bool add) {
    for (size_t i = 0; i < m;) {
        rnn_left rows = a;
        rows.at += i / RNN_BAND * a.band + i % RNN_BAND * a.row;
        float *out = c + i * ldc;
#define DOT_ROWS_CASE(rows_)                                                                                           \
    if (m - i >= rows_) {                                                                                              \
        dot_tile(rows_, n, K, rows, b, b_panel, out, ldc, add);                                                        \
        i += rows_;                                                                                                    \
        continue;                                                                                                      \
    }
        DOT_ROWS_CASE(8)
        DOT_ROWS_CASE(4)
        DOT_ROWS_CASE(2)
        DOT_ROWS_CASE(1)
#undef DOT_ROWS_CASE
    }
}

static void multiply(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                     size_t ldc, bool add) {
    for (size_t k = 0; k < K; k += LONGEST, a.at += LONGEST / RNN_TILE_DEPTH * a.tile, add = true) {
        size_t here = rnn_min(LONGEST, K - k);
        const rnn_bfloat16 *panel = b + k * RNN_BAND;
        for (size_t p = 0; p < panels;) {
            float *out = c + p * RNN_BAND;
            switch (panels - p == 4 ? 2 : rnn_min(3, panels - p)) { /* 4 are two and two */
            case 3:
                dots_down(m, 3, here, a, panel + p * b_panel, b_panel, out, ldc, add);
                p += 3;
                break;
            case 2:
                dots_down(m, 2, here, a, panel + p * b_panel, b_panel, out, ldc, add);
                p += 2;
                break;
            default:
                dots_down(m, 1, here, a, panel + p * b_panel, b_panel, out, ldc, add);
                p += 1;
            }
        }
    }
}

static void begin(void) {}
static void end(void) { _mm_sfence(); } /* makes streamed stores visible to other threads */

/* ---- Operands ------------------------------------------------------------------------------------------------------- */

static float round_rows(size_t m, size_t cols, const float *x, size_t ldx, rnn_bfloat16 *rows, size_t ld) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < cols; j += 32) {
            const float *from = x + i * ldx + j;
            size_t left = cols - j, second = left > 16 ? left - 16 : 0;
            __m512i packed =
                round_two(_mm512_maskz_loadu_ps(lanes(left), from), _mm512_maskz_loadu_ps(lanes(second), from + 16));
            largest = _mm512_max_epu16(largest, magnitudes(packed));
            __mmask32 mask = (__mmask32)lanes(left) | (__mmask32)lanes(second) << 16;
            _mm512_mask_storeu_epi16(rows + i * ld + j, mask, packed);
        }
    }
    return largest_of(largest);
}

/* Of 16 rows of 16 lanes of 32 bits. */
INLINE void transpose16(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (size_t i = 0; i < 16; i += 2) { /* 2 x 2 */
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (size_t i = 0; i < 16; i += 4) { /* 4 x 4 */
        UNROLL for (size_t j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    }
    UNROLL for (size_t i = 0; i < 4;
                i++) { /* lanes of 128 bits: column i + 4 q of rows 4 g .. is in lane q of r[4 g + i] */
        __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88),
                d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    UNROLL for (size_t i = 0; i < 16; i++) r[i] = t[i];
}

/* The numbers of two rows in turns: those of columns 0 to 15, and 16 to 31. */
INLINE __m512i in_turns(bool upper) {
    uint16_t place[32];
    for (uint16_t i = 0; i < 32; i++) place[i] = (uint16_t)((upper ? 16 : 0) + i / 2 + i % 2 * 32);
    __m512i order;
    memcpy(&order, place, sizeof order);
    return order;
}

/* The same of shuffled columns. */
INLINE __m512i shuffled_turns(bool upper) {
    uint16_t place[32];
    for (size_t i = 0; i < 32; i++) place[i] = (uint16_t)(rnn_shuffled_column((upper ? 16 : 0) + i / 2) + i % 2 * 32);
    __m512i order;
    memcpy(&order, place, sizeof order);
    return order;
}

/* Rounds 16 rows, from row k of K on; w points to row k. Columns are padded to a multiple of 32; rows beyond K are 0. */
INLINE __m512i round_band(const float *w, size_t ldw, size_t k, size_t K, size_t cols, rnn_bfloat16 *rows, size_t ld) {
    enum { AHEAD = 8 }; /* rows: they are far apart, so the processor does not prefetch the next one */
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < RNN_BAND; i++, k++, w += ldw, rows += ld) {
        for (size_t v = 0; v < cols; v += 32) {
            size_t left = k < K ? cols - v : 0;
            __m512 low = _mm512_maskz_loadu_ps(lanes(left), w + v);
            __m512 high = _mm512_maskz_loadu_ps(lanes(left > 16 ? left - 16 : 0), w + v + 16);
            if (k + AHEAD < K) {
                /* Into the second-level cache, which can wait for more lines at a time. */
                __builtin_prefetch(w + AHEAD * ldw + v, 0, 2);
                __builtin_prefetch(w + AHEAD * ldw + v + 16, 0, 2);
            }
            __m512i packed = round_two(low, high);
            largest = _mm512_max_epu16(largest, magnitudes(packed));
            _mm512_storeu_si512(rows + v, packed);
        }
    }
    return largest;
}

static float pack(const float *w, size_t ldw, size_t K, size_t cols, bool shuffled, rnn_bfloat16 *b, size_t b_panel,
                  rnn_bfloat16 *bt, size_t bt_panel) {
    enum { STRIP = 512 }; /* columns, or what is left of them */
    rnn_bfloat16 band[RNN_BAND * (STRIP + 32)];
    __m512i largest = _mm512_setzero_si512();
    __m512i first = shuffled ? shuffled_turns(false) : in_turns(false);
    __m512i second = shuffled ? shuffled_turns(true) : in_turns(true);
    for (size_t v0 = 0; v0 < cols; v0 += STRIP, w += STRIP) {
        size_t here = rnn_min(STRIP, cols - v0);
        for (size_t k = 0; k < rnn_round_up(K, RNN_TILE_DEPTH); k += RNN_BAND) {
            size_t ld = STRIP + 32;
            __m512i magnitude = round_band(w + k * ldw, ldw, k, K, here, band, ld);
            largest = _mm512_max_epu16(largest, magnitude);
            for (size_t v = 0; v < here; v += 32) {
                __m512i rows[RNN_BAND];
                UNROLL for (size_t i = 0; i < RNN_BAND; i++) rows[i] = _mm512_loadu_si512(band + i * ld + v);
                rnn_bfloat16 *to = b + (v0 + v) / RNN_BAND * b_panel + k * RNN_BAND;
                UNROLL for (size_t i = 0; i < RNN_BAND; i += 2, to += 32) {
                    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(rows[i], first, rows[i + 1]));
                    _mm512_storeu_si512(to + b_panel, _mm512_permutex2var_epi16(rows[i], second, rows[i + 1]));
                }
                if (!bt || k >= rnn_round_up(K, RNN_BAND)) continue;
                transpose16(rows);
                to = bt + k / RNN_BAND * bt_panel + (v0 + v) * RNN_BAND;
                for (size_t i = 0; i < RNN_BAND; i++) { /* row i has the columns 2 i and 2 i + 1, which stay together */
                    size_t place = shuffled ? i % 8 / 2 * 4 + i / 8 * 2 + i % 2 : i;
                    _mm512_storeu_si512(to + place * 32, rows[i]);
                }
            }
        }
    }
    return largest_of(largest);
}

static void transpose(size_t m, size_t cols, const float *x, size_t ldx, const float *factor, rnn_bfloat16 *out,
                      size_t K) {
    for (size_t n = 0; n < m; n += RNN_TILE_DEPTH) {
        for (size_t i = 0; i < cols; i += RNN_BAND) {
            __m512i half[2][16];
            for (size_t r = 0; r < RNN_TILE_DEPTH; r++) {
                __m512 row = _mm512_setzero_ps();
                if (n + r < m) {
                    row = _mm512_maskz_loadu_ps(lanes(cols - i), x + (n + r) * ldx + i);
                    if (factor) row = _mm512_mul_ps(row, _mm512_set1_ps(factor[n + r]));
                }
                half[r / 16][r % 16] = (__m512i)row;
            }
            transpose16(half[0]);
            transpose16(half[1]);
            rnn_bfloat16 *to = out + i * K + n * RNN_BAND;
            for (size_t r = 0; r < RNN_BAND; r++) {
                _mm512_storeu_si512(to + r * RNN_TILE_DEPTH, round_two((__m512)half[0][r], (__m512)half[1][r]));
            }
        }
    }
}

static void interleave(size_t m, size_t cols, const rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *b, size_t b_panel) {
    __m512i first = in_turns(false), second = in_turns(true);
    for (size_t n = 0; n < rnn_round_up(m, RNN_TILE_DEPTH); n += 2) {
        for (size_t v = 0; v < cols; v += 32) {
            __m512i even = _mm512_setzero_si512(), odd = even;
            if (n < m) even = _mm512_loadu_si512(rows + n * ld + v);
            if (n + 1 < m) odd = _mm512_loadu_si512(rows + (n + 1) * ld + v);
            rnn_bfloat16 *to = b + v / RNN_BAND * b_panel + n * RNN_BAND;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, first, odd));
            _mm512_storeu_si512(to + b_panel, _mm512_permutex2var_epi16(even, second, odd));
        }
    }
}

/* ---- Exponentials ------------------------------------------------------------------------------------------------------ */

/* x = 2^x, of four vectors at a time, so that their chains of operations overlap. VREDUCEPS subtracts the nearest integer;
 * VSCALEFPS multiplies by 2 to that integer, and handles under- and overflow. Between them is the minimax polynomial of
 * degree 5 for 2^r, |r| <= 1/2, among those that are 1 at 0: its relative error is below 2e-7. */
enum { FOUR = 4 };

INLINE void exp2_of(__m512 x[FOUR]) {
    const float coefficients[] = {0x1.3cea88p-7f, 0x1.c6b754p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f};
    __m512 r[FOUR], p[FOUR];
    UNROLL for (size_t j = 0; j < FOUR; j++) r[j] = _mm512_reduce_ps(x[j], 0);
    UNROLL for (size_t j = 0; j < FOUR; j++) p[j] = _mm512_set1_ps(0x1.5bba0cp-10f);
    UNROLL for (size_t c = 0; c < 5; c++) {
        UNROLL for (size_t j = 0; j < FOUR; j++) p[j] = _mm512_fmadd_ps(p[j], r[j], _mm512_set1_ps(coefficients[c]));
    }
    UNROLL for (size_t j = 0; j < FOUR; j++) x[j] = _mm512_scalef_ps(p[j], _mm512_sub_ps(x[j], r[j]));
}

/* Two rows of logits. The unpack instructions make pairs of them, which is why the columns are shuffled. */
INLINE void two_rows(bool keep, bool stream, size_t cols, const float *z, size_t ldz, const float *bias,
                     const float *shift, rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *pairs, size_t pairs_panel,
                     float *sum, float *most) {
    const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 shift0 = _mm512_set1_ps(shift[0]), shift1 = _mm512_set1_ps(shift[1]);
    __m512 sum0 = _mm512_loadu_ps(sum), sum1 = _mm512_loadu_ps(sum + 16);
    __m512 most0 = _mm512_loadu_ps(most), most1 = _mm512_loadu_ps(most + 16);
    for (size_t v = 0; v < cols; v += 32) {
        __m512 e[FOUR], b[2]; /* two vectors of each row */
        UNROLL for (size_t j = 0; j < 2; j++) b[j] = _mm512_loadu_ps(bias + v + 16 * j);
        UNROLL for (size_t j = 0; j < FOUR; j++) {
            e[j] = _mm512_add_ps(_mm512_loadu_ps(z + j / 2 * ldz + v + j % 2 * 16), b[j % 2]);
        }
        UNROLL for (size_t j = 0; j < FOUR; j++) e[j] = _mm512_fmsub_ps(e[j], log2e, j < 2 ? shift0 : shift1);
        UNROLL for (size_t j = 0; j < 2; j++) {
            most0 = _mm512_max_ps(most0, e[j]);
            most1 = _mm512_max_ps(most1, e[j + 2]);
        }
        exp2_of(e);
        sum0 = _mm512_add_ps(sum0, _mm512_add_ps(e[0], e[1]));
        sum1 = _mm512_add_ps(sum1, _mm512_add_ps(e[2], e[3]));
        if (!keep) continue;
        __m512i packed0 = round_two(e[0], e[1]), packed1 = round_two(e[2], e[3]);
        _mm512_storeu_si512(rows + v, packed0);
        _mm512_storeu_si512(rows + ld + v, packed1);
        __m512i low = _mm512_unpacklo_epi16(packed0, packed1), high = _mm512_unpackhi_epi16(packed0, packed1);
        if (stream) {
            _mm512_stream_si512((void *)pairs, low);
            _mm512_stream_si512((void *)(pairs + pairs_panel), high);
        } else {
            _mm512_storeu_si512(pairs, low);
            _mm512_storeu_si512(pairs + pairs_panel, high);
        }
        pairs += 2 * pairs_panel;
    }
    _mm512_storeu_ps(sum, sum0);
    _mm512_storeu_ps(sum + 16, sum1);
    _mm512_storeu_ps(most, most0);
    _mm512_storeu_ps(most + 16, most1);
}

static void exponentials(size_t m, size_t cols, const float *z, size_t ldz, const float *bias, const float *shift,
                         rnn_bfloat16 *rows, size_t ld, rnn_bfloat16 *pairs, size_t pairs_panel, bool stream,
                         float *sum, float *most) {
    for (size_t i = 0; i < m; i += 2, z += 2 * ldz, shift += 2, sum += 2 * RNN_BAND, most += 2 * RNN_BAND) {
        if (!rows) {
            two_rows(false, false, cols, z, ldz, bias, shift, NULL, 0, NULL, 0, sum, most);
            continue;
        }
        if (stream) {
            two_rows(true, true, cols, z, ldz, bias, shift, rows, ld, pairs, pairs_panel, sum, most);
        } else {
            two_rows(true, false, cols, z, ldz, bias, shift, rows, ld, pairs, pairs_panel, sum, most);
        }
        rows += 2 * ld;
        pairs += 2 * RNN_BAND;
    }
}

#define SHARED                                                                                                         \
    .round_rows = round_rows, .pack = pack, .transpose = transpose, .interleave = interleave,                          \
    .exponentials = exponentials

const rnn_bfloat16_kernels rnn_bfloat16_dots = {
    .depth = 2,
    .columns = 96,
    .begin = begin,
    .end = end,
    .multiply = multiply,
    SHARED,
};

const rnn_bfloat16_kernels rnn_bfloat16_tiles = {
    .depth = RNN_TILE_DEPTH,
    .columns = 128,
    .begin = rnn_tiles_begin,
    .end = rnn_tiles_end,
    .multiply = rnn_tiles_multiply,
    SHARED,
};

#endif
