/* kernels.c -- the fast kernels. Compiled without options it gives those of the baseline instruction set; on x86 it is
 * compiled twice more, with -DRNN_ISA=avx2 and -DRNN_ISA=avx512 and the compiler's flags for them. kernels_reference.c
 * has the same kernels as plain loops. */
#include "kernels_decode.h"
#include "kernels_matrix.h"
#include "kernels_pointwise.h"

#ifndef RNN_ISA
#define RNN_ISA baseline
#endif
#include "kernels_table.h"

#ifdef RNN_BFLOAT16_KERNELS /* beside those of AVX-512: the same kernels, and products of bfloat16 operands */
#undef RNN_ISA
#define RNN_ISA avx512bf16
#define RNN_BFLOAT16 &rnn_bfloat16_dots
#include "kernels_table.h"
#undef RNN_ISA
#undef RNN_BFLOAT16
#define RNN_ISA amx
#define RNN_BFLOAT16 &rnn_bfloat16_tiles
#include "kernels_table.h"
#endif
