/* status.c -- version, sizes, limits and messages. */
#include <string.h>

#include "internal.h"

int32_t rnn_abi_version(void) { return RNN_ABI_VERSION; }

size_t rnn_sizeof(const char *type) {
    if (!type) return 0;
    if (!strcmp(type, "rnn_dims")) return sizeof(rnn_dims);
    if (!strcmp(type, "rnn_regularization")) return sizeof(rnn_regularization);
    if (!strcmp(type, "rnn_adamw")) return sizeof(rnn_adamw);
    if (!strcmp(type, "rnn_words")) return sizeof(rnn_words);
    if (!strcmp(type, "rnn_bias")) return sizeof(rnn_bias);
    if (!strcmp(type, "rnn_sampling")) return sizeof(rnn_sampling);
    return 0;
}

const char *rnn_strerror(int32_t status) {
    switch (status) {
#define RNN_STATUS_CASE(name, value, text)                                                                             \
    case value:                                                                                                        \
        return text;
        RNN_STATUS_MAP(RNN_STATUS_CASE)
#undef RNN_STATUS_CASE
    default:
        return "unknown status";
    }
}

int32_t rnn_check_dims(const rnn_dims *dims) {
    bool fits = dims->vocab >= 1 && dims->vocab <= RNN_MAX_VOCAB && dims->embed >= 1 && dims->embed <= RNN_MAX_EMBED &&
                dims->hidden >= 1 && dims->hidden <= RNN_MAX_HIDDEN;
    return fits ? RNN_OK : RNN_E_DIM;
}

int32_t rnn_check_threads(int32_t threads) { return threads < 1 || threads > RNN_MAX_THREADS ? RNN_E_ARG : RNN_OK; }

rnn_offsets rnn_param_offsets(size_t V, size_t E, size_t H) {
    rnn_offsets at;
    at.wxh = 0;
    at.whh = at.wxh + E * H;
    at.bh = at.whh + H * H;
    at.why = at.bh + H;
    at.by = at.why + H * V;
    at.count = at.by + V;
    return at;
}

int32_t rnn_param_count(const rnn_dims *dims, int64_t *count) {
    if (!dims || !count) return RNN_E_NULL;
    int32_t status = rnn_check_dims(dims);
    if (status) return status;
    int64_t V = dims->vocab, E = dims->embed, H = dims->hidden; /* a size_t of 32 bits does not hold the largest */
    *count = E * H + H * H + H + H * V + V;
    return RNN_OK;
}
