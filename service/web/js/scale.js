/* The scale of probability, and its legend. A step of colour is two bits of surprise: a word four times less probable.
   The colours themselves are in styles/theme.css. */

import { html } from "./dom.js";

const STEPS = 7;
const BITS_PER_STEP = 2;
const LABELS = {
    probability: ["25%+", "6%+", "1.6%+", "0.4%+", "0.1%+", "0.02%+", "less"],
    surprise: ["0–2 bits", "2–4", "4–6", "6–8", "8–10", "10–12", "12+"],
};
const CAPTIONS = {
    probability:
        "How probable the model found each word, before temperature and top-k. Point at a word, tap it, or walk to it " +
        "with the arrow keys, for the most probable there. Choose one of them, and the text goes on from it.",
    surprise:
        "How much each word surprised the model: a bit for each halving of its probability. Point at a word, tap it, " +
        "or walk to it with the arrow keys, for the five that it expected most.",
};

/** Convert the natural logarithm of a probability to bits of surprise. */
export const bits = (logprob) => Math.max(0, -logprob / Math.LN2);

export const step = (logprob) => Math.min(STEPS - 1, Math.floor(bits(logprob) / BITS_PER_STEP));

export function percent(logprob) {
    const value = 100 * Math.exp(logprob);
    if (value < 0.0001) return "under 0.0001%";
    const digits = value >= 99.5 ? 3 : 2;
    return `${value.toLocaleString("en", { minimumSignificantDigits: digits, maximumSignificantDigits: digits })}%`;
}

/** kind: "probability" or "surprise". */
export function legend(kind) {
    const steps = LABELS[kind].map((label, index) => html("li", { "data-step": index }, label));
    return html("figure", { class: "legend" }, html("ol", {}, ...steps), html("figcaption", {}, CAPTIONS[kind]));
}
