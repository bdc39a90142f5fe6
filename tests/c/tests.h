/* tests.h -- the tests of test_rnnlib.c's program, by file. */
#ifndef RNN_TESTS_H
#define RNN_TESTS_H

/* test_kernels.c */
void test_products(void);
void test_copies(void);
void test_exp_and_tanh(void);
void test_softmax(void);
void test_passes(void);
void test_levels(void);

/* test_bfloat16.c */
void test_rounding_to_bfloat16(void);
void test_bfloat16_products(void);
void test_bfloat16_operands(void);
void test_bfloat16_exponentials(void);

/* test_precision.c */
void test_rounded_gradients(void);
void test_rounded_extreme_logits(void);
void test_rounded_logits(void);
void test_no_word_is_more_than_certain(void);

/* test_training.c */
void test_the_lesson_itself(void);
void test_gradients(void);
void test_regularization_that_changes_nothing(void);
void test_extreme_logits(void);
void test_carried_state(void);
void test_training_refusals(void);

/* test_optimizers.c */
void test_some_words_are_updated_as_all_are(void);
void test_words_that_are_refused(void);
void test_optimizers(void);
void test_optimizer_refusals(void);

/* test_sampling.c */
void test_cuts(void);
void test_biases(void);
void test_sampling_in_threads_of_the_caller(void);

/* test_inference.c */
void test_decode_matches_loss(void);
void test_score_in_parts(void);
void test_company(void);
void test_precisions(void);
void test_generation_matches_the_lesson(void);
void test_history_matters(void);
void test_sampling(void);
void test_inference_refusals(void);
void test_a_weight_too_large_for_its_copy(void);

#endif
