/* kernels_amx.c -- products by tiles: the AMX of Intel's servers since 2023.
 *
 * A tile register holds 16 rows of 64 bytes. TDPBF16PS multiplies a tile of A (16 rows, 32 k) by one of B (16 pairs of k, 16
 * columns) and adds the product to a tile of C (16 x 16 floats): 16,384 operations in 16 cycles. With two by two tiles of C,
 * each product needs only one load.
 *
 * The instructions are inline assembly. So no compiler has to know them, no flag for them leaks into other files, and the
 * compiler neither moves nor drops stores that they read: gcc 12 believes that LDTILECFG reads 8 bytes of its 64, and that
 * its tile loads read none. tests/c/emulated_tiles.h has the same instructions on plain arrays, to test this file anywhere.
 */
#include "bfloat16.h"

#ifdef RNN_X86_KERNELS

#include "vector.h"

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#ifdef RNN_EMULATED_TILES
#include RNN_EMULATED_TILES
#else
#define CONFIGURE(config) __asm__ volatile("ldtilecfg %0" ::"m"(config))
#define RELEASE() __asm__ volatile("tilerelease")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define LOAD(tile, from, bytes) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"(bytes) : "memory")
#define STORE(tile, to, bytes) __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(bytes) : "memory")
#define MULTIPLY(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c::)
#endif

void rnn_tiles_begin(void) {
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = RNN_BAND;
    }
    CONFIGURE(config);
}

void rnn_tiles_end(void) {
    _mm_sfence(); /* makes the stores that exponentials() streams visible to other threads */
    RELEASE();
}

/* Tiles 0 to 3: up to two by two of C. 4 and 5: A. 6 and 7: B. */
INLINE void tiles_of(bool two_down, bool two_across, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel,
                     float *c, size_t ldc, bool add) {
    size_t c_bytes = ldc * sizeof *c, a_bytes = a.row * sizeof *a.at, b_bytes = 64;
    float *below = c + RNN_BAND * ldc;
    if (add) {
        LOAD(0, c, c_bytes);
        if (two_across) LOAD(1, c + RNN_BAND, c_bytes);
        if (two_down) LOAD(2, below, c_bytes);
        if (two_down && two_across) LOAD(3, below + RNN_BAND, c_bytes);
    } else {
        ZERO(0);
        ZERO(1);
        ZERO(2);
        ZERO(3);
    }
    for (size_t k = 0; k < K; k += RNN_TILE_DEPTH, a.at += a.tile, b += RNN_TILE_DEPTH * RNN_BAND) {
        LOAD(4, a.at, a_bytes); /* all loads first: a twentieth faster than between the products */
        LOAD(6, b, b_bytes);
        if (two_across) LOAD(7, b + b_panel, b_bytes);
        if (two_down) LOAD(5, a.at + a.band, a_bytes);
        MULTIPLY(0, 4, 6);
        if (two_across) MULTIPLY(1, 4, 7);
        if (two_down) MULTIPLY(2, 5, 6);
        if (two_down && two_across) MULTIPLY(3, 5, 7);
    }
    STORE(0, c, c_bytes);
    if (two_across) STORE(1, c + RNN_BAND, c_bytes);
    if (two_down) STORE(2, below, c_bytes);
    if (two_down && two_across) STORE(3, below + RNN_BAND, c_bytes);
}

void rnn_tiles_multiply(size_t m, size_t panels, size_t K, rnn_left a, const rnn_bfloat16 *b, size_t b_panel, float *c,
                        size_t ldc, bool add) {
    for (size_t p = 0; p < panels; p += 2) {
        bool two_across = panels - p > 1;
        for (size_t i = 0; i < m; i += 2 * RNN_BAND) {
            bool two_down = m - i > RNN_BAND;
            rnn_left rows = a;
            rows.at += i / RNN_BAND * a.band;
            const rnn_bfloat16 *right = b + p * b_panel;
            float *out = c + i * ldc + p * RNN_BAND;
            if (two_down && two_across) {
                tiles_of(true, true, K, rows, right, b_panel, out, ldc, add);
            } else if (two_down) {
                tiles_of(true, false, K, rows, right, b_panel, out, ldc, add);
            } else if (two_across) {
                tiles_of(false, true, K, rows, right, b_panel, out, ldc, add);
            } else {
                tiles_of(false, false, K, rows, right, b_panel, out, ldc, add);
            }
        }
    }
}

#endif
