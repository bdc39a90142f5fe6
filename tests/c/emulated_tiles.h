/* emulated_tiles.h -- the tile instructions that kernels_amx.c uses, on plain arrays: with -DRNN_EMULATED_TILES that file
 * runs on processors that have none. As the instruction set reference describes them, with what a program may get wrong:
 * an instruction before LDTILECFG or after TILERELEASE, or a configuration that does not fit, ends the program. */
#ifndef RNN_EMULATED_TILES_H
#define RNN_EMULATED_TILES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct {
    tile_config config;
    unsigned char data[8][16][64];
} tiles; /* palette 0: none configured */

static inline void tiles_require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "emulated tiles: not true: %s\n", what);
    abort();
}
#define TILES_REQUIRE(condition) tiles_require(condition, #condition)

static inline void CONFIGURE(tile_config config) {
    TILES_REQUIRE(config.palette == 1 && config.start_row == 0);
    for (int i = 0; i < 14; i++) TILES_REQUIRE(config.reserved[i] == 0);
    for (int i = 0; i < 16; i++) {
        TILES_REQUIRE(config.rows[i] <= (i < 8 ? 16 : 0) && config.row_bytes[i] <= (i < 8 ? 64 : 0));
        TILES_REQUIRE((config.rows[i] == 0) == (config.row_bytes[i] == 0));
    }
    memset(&tiles, 0, sizeof tiles);
    tiles.config = config;
}

static inline void RELEASE(void) { memset(&tiles, 0, sizeof tiles); }

static inline void ZERO(int tile) {
    TILES_REQUIRE(tiles.config.rows[tile] > 0);
    memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

static inline void LOAD(int tile, const void *from, size_t stride) {
    TILES_REQUIRE(tiles.config.rows[tile] > 0);
    memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
    for (size_t i = 0; i < tiles.config.rows[tile]; i++) {
        memcpy(tiles.data[tile][i], (const char *)from + i * stride, tiles.config.row_bytes[tile]);
    }
}

static inline void STORE(int tile, void *to, size_t stride) {
    TILES_REQUIRE(tiles.config.rows[tile] > 0);
    for (size_t i = 0; i < tiles.config.rows[tile]; i++) {
        memcpy((char *)to + i * stride, tiles.data[tile][i], tiles.config.row_bytes[tile]);
    }
}

/* C += A B, the pairs of k each in a sum of its own. */
static inline void MULTIPLY(int c, int a, int b) {
    const tile_config *config = &tiles.config;
    TILES_REQUIRE(c != a && c != b && a != b);
    TILES_REQUIRE(config->rows[c] > 0 && config->rows[a] == config->rows[c]);
    TILES_REQUIRE(config->row_bytes[b] == config->row_bytes[c] && config->row_bytes[a] == 4 * config->rows[b]);
    for (size_t i = 0; i < config->rows[c]; i++) {
        rnn_bfloat16 left[32], right[32];
        float sums[2][16] = {{0}}, out[16];
        memcpy(left, tiles.data[a][i], sizeof left);
        for (size_t k = 0; k < config->rows[b]; k++) {
            memcpy(right, tiles.data[b][k], sizeof right);
            for (size_t j = 0; j < 32; j++) {
                sums[j % 2][j / 2] += rnn_widen_bfloat16(left[2 * k + j % 2]) * rnn_widen_bfloat16(right[j]);
            }
        }
        memcpy(out, tiles.data[c][i], sizeof out);
        for (size_t j = 0; j < 16; j++) out[j] += sums[0][j] + sums[1][j];
        memcpy(tiles.data[c][i], out, sizeof out);
    }
}

#endif
