/* The history that a weights file keeps of its training, as points. A file may say anything there: what is no number is
   left out. */

import { isNumber } from "./format.js";

/** {x, training, validation, isSampled} for each evaluation: the losses in nats per token (null: not known), x in `unit`,
 * which is "epoch", "tokens" or "seconds". isSampled: the training loss is that of a sampled softmax, which is lower than
 * the loss over the whole vocabulary. */
export function points(weights, unit) {
    return rows(weights)
        .filter((row) => isNumber(row[unit]))
        .map((row) => ({
            x: row[unit],
            training: loss(row.train_loss),
            validation: loss(row.validation_loss),
            isSampled: isSampled(weights, row),
        }))
        .filter((point) => point.training !== null || point.validation !== null)
        .sort((a, b) => a.x - b.x);
}

/** Return the best validation perplexity; null if the file has none. */
export function bestPerplexity(weights) {
    const found = rows(weights)
        .map((row) => row.validation_perplexity)
        .filter(isNumber);
    return found.length > 0 ? found.reduce((a, b) => Math.min(a, b)) : null;
}

/** Return the perplexity of the validation text if only the words' frequencies are known; null if the file keeps none. */
export function unigramPerplexity(weights) {
    const value = weights.config?.unigram_perplexity;
    return isNumber(value) ? value : null;
}

/** Whether a row says so or, in the file of an earlier release, the options do. */
function isSampled({ config, vocabulary }, row) {
    const candidates = config?.sampled_softmax;
    return row.train_loss_sampled ?? (isNumber(candidates) && candidates > 0 && candidates < vocabulary);
}

const rows = (weights) => weights.history ?? [];
const loss = (value) => (isNumber(value) ? value : null);
