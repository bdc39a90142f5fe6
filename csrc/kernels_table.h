/* kernels_table.h -- the table of the kernels that the including file defines: rnn_kernels_<RNN_ISA>. RNN_BFLOAT16: its
 * products of bfloat16 operands, if there are any. */
#undef TABLE_NAME
#undef TABLE_NAME_OF
#undef TEXT
#undef TEXT_OF
#define TABLE_NAME(isa) TABLE_NAME_OF(isa)
#define TABLE_NAME_OF(isa) rnn_kernels_##isa
#define TEXT(isa) TEXT_OF(isa)
#define TEXT_OF(isa) #isa

const rnn_kernels TABLE_NAME(RNN_ISA) = {
    .name = TEXT(RNN_ISA),
    .panel = PANEL,
    .pack = pack,
    .multiply = multiply,
    .multiply_at = multiply_at,
    .multiply_bt = multiply_bt,
    .softmax = softmax,
    .softmax_rounded = softmax_rounded,
    .round = round_all,
    .tanh = tanh_forward,
    .tanh_backward = tanh_backward,
    .weighted_sum = weighted_sum,
    .max_abs = max_abs,
    .max = max_of,
    .tally = tally,
    .part = part,
    .exp_sum = exp_sum,
    .rows_times = rows_times,
    .wide = WIDE,
    .compress = compress,
    .rows_times_packed = rows_times_packed,
    .finish = finish,
    .sum_squares = sum_squares,
    .sgd = sgd,
    .adamw = adamw,
    .average = average,
#ifdef RNN_BFLOAT16
    .bfloat16 = RNN_BFLOAT16,
#endif
};
