/* test_rnnlib.c -- the C library against the lesson, csrc/elman.c, and against its own promises.
 *
 * Links the library's objects, so that the kernels can be tested one by one. Runs with whatever RNN_ISA asks for.
 */
#include <stdlib.h>
#include <string.h>

#include "rnnlib.h"
#include "testing.h"
#include "tests.h"

static void test_statuses(void) {
    CHECK(rnn_abi_version() == RNN_ABI_VERSION);
    CHECK(rnn_sizeof("rnn_dims") == 12 && rnn_sizeof("rnn_sampling") == 32 + sizeof(void *) &&
          rnn_sizeof("rnn_adamw") == 24);
    CHECK(rnn_sizeof("rnn_regularization") == sizeof(rnn_regularization));
    CHECK(rnn_sizeof("rnn_words") == sizeof(rnn_words) && rnn_sizeof("rnn_bias") == 8);
    CHECK(rnn_sizeof("rnn_work") == 0 && rnn_sizeof("") == 0 && rnn_sizeof(NULL) == 0);
    const char *wish = getenv("RNN_ISA");
    bool has_it = wish && (!strcmp(wish, "baseline") || !strcmp(wish, "reference"));
#ifdef RNN_X86_KERNELS
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    has_it |= wish && !strcmp(wish, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    has_it |= wish && !strcmp(wish, "avx512") && avx512;
    has_it |= wish && !strcmp(wish, "avx512bf16") && avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    CHECK(!has_it || !strcmp(rnn_kernel_name(), wish));
    for (int32_t status = -20; status <= 5; status++) CHECK(rnn_strerror(status) && *rnn_strerror(status));
    CHECK(strcmp(rnn_strerror(RNN_OK), "success") == 0);
    rnn_dims dims = {31266, 300, 100};
    int64_t count = 0;
    CHECK(rnn_param_count(&dims, &count) == RNN_OK && count == 300 * 100 + 100 * 100 + 100 + 100 * 31266 + 31266);
    CHECK(rnn_param_count(NULL, &count) == RNN_E_NULL);
}

static const test tests[] = {
    {"statuses and sizes", test_statuses},
    {"matrix products", test_products},
    {"smaller copies of a matrix", test_copies},
    {"exp and tanh", test_exp_and_tanh},
    {"softmax", test_softmax},
    {"passes over a vector", test_passes},
    {"what is above a level", test_levels},
    {"rounding to bfloat16", test_rounding_to_bfloat16},
    {"products of bfloat16 operands", test_bfloat16_products},
    {"bfloat16 operands", test_bfloat16_operands},
    {"exponentials in bfloat16", test_bfloat16_exponentials},
    {"the lesson against finite differences", test_the_lesson_itself},
    {"loss, state and gradients against the lesson", test_gradients},
    {"regularization that changes nothing", test_regularization_that_changes_nothing},
    {"extreme logits", test_extreme_logits},
    {"gradients of rounded operands against double precision", test_rounded_gradients},
    {"extreme logits with rounded operands", test_rounded_extreme_logits},
    {"two chunks with the state carried are one", test_carried_state},
    {"training refuses, and leaves outputs untouched", test_training_refusals},
    {"optimizers against double precision", test_optimizers},
    {"optimizers and norm refuse", test_optimizer_refusals},
    {"decoding and scoring match the loss", test_decode_matches_loss},
    {"scores of a text in parts", test_score_in_parts},
    {"a sequence does not depend on the others of its call", test_company},
    {"smaller copies of Why cost under 0.5% of perplexity", test_precisions},
    {"generation matches the lesson", test_generation_matches_the_lesson},
    {"the early prompt matters", test_history_matters},
    {"sampling", test_sampling},
    {"what top_k and top_p keep", test_cuts},
    {"biases and penalties", test_biases},
    {"sampling in threads of the caller", test_sampling_in_threads_of_the_caller},
    {"inference refuses, and leaves outputs untouched", test_inference_refusals},
    {"a weight too large for its copy", test_a_weight_too_large_for_its_copy},
    {"some words are updated as all are", test_some_words_are_updated_as_all_are},
    {"updates of some words refuse", test_words_that_are_refused},
    {"logits of states rounded to bfloat16", test_rounded_logits},
    {"no word is more than certain", test_no_word_is_more_than_certain},
};

int main(void) {
    printf("kernels: %s\n", rnn_kernel_name());
    return run_tests(tests, sizeof tests / sizeof *tests);
}
