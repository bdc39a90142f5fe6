/* Two weights files on one text: by how many bits one predicts each word better than the other, and the sum. */

import { html } from "./dom.js";
import { bits, percent } from "./scale.js";
import { count, plural, rounded } from "./format.js";

const STEPS = [0.5, 2, 4]; // bits; below the first, a word is even
const LABELS = ["4+ bits", "2–4", "0.5–2", "even", "0.5–2", "2–4", "4+ bits"];

/** Compare the replies of /score for one text. Words that one of the two files lacks are not compared: <UNK> is easier to
 * guess than the word that it stands for. */
export class Comparison {
    #leads = new Map(); // by token of the first reply: the other's bits minus its own
    #others = new Map(); // and the other's token

    constructor(first, other) {
        this.names = [first.weights.name, other.weights.name];
        const read = (token) => token.id !== null && token.kind !== "unknown";
        const place = (token) => `${token.start}-${token.end}`;
        const theirs = new Map(other.tokens.filter(read).map((token) => [place(token), token]));
        this.sums = [0, 0]; // bits
        this.left = 0; // words that only one file reads
        for (const token of first.tokens.filter((token) => token.kind !== "dropped")) {
            const match = read(token) && theirs.get(place(token));
            if (!match) {
                this.left += 1;
                continue;
            }
            const [own, others] = [token, match].map(({ logprob }) => -logprob / Math.LN2);
            this.#leads.set(token, others - own);
            this.#others.set(token, match);
            this.sums[0] += own;
            this.sums[1] += others;
        }
    }

    /** Return the attributes of a word: data-lead is from -3, where the other file is far ahead, to 3. */
    paint(token) {
        const lead = this.#leads.get(token);
        if (lead === undefined) return { class: `word ${token.kind} uncompared` };
        return { "data-lead": Math.sign(lead) * STEPS.filter((step) => Math.abs(lead) >= step).length };
    }

    /** Return the line of a word's card. */
    note(token) {
        const lead = this.#leads.get(token);
        if (lead === undefined) return "Not compared: one of the two files lacks this word.";
        const [name, other] = this.names;
        const { logprob } = this.#others.get(token);
        const ahead = lead >= 0 ? name : other;
        const difference = Math.abs(lead) < STEPS[0] ? "the two are even" : `${ahead} is ahead by ${rounded(Math.abs(lead), 2)} bits`;
        return `${other}: ${percent(logprob)} · ${bits(logprob).toFixed(1)} bits; ${difference}.`;
    }

    /** Return the sums as a table, and who wins. */
    summary() {
        const leads = [...this.#leads.values()];
        const [name, other] = this.names;
        if (leads.length === 0) return html("p", { class: "verdict" }, "The two files read no word of this text in common.");
        const ahead = leads.filter((lead) => lead >= STEPS[0]).length;
        const behind = leads.filter((lead) => lead <= -STEPS[0]).length;
        const even = leads.length - ahead - behind;
        const gap = this.sums[1] - this.sums[0];
        const verdict =
            Math.abs(gap) < STEPS[0]
                ? "The two predict this text equally well."
                : `${gap > 0 ? name : other} predicts this text better: ${rounded(Math.abs(gap))} bits less in sum.`;
        const row = (title, values) =>
            html("tr", {}, html("th", { scope: "row" }, title), ...values.map((value) => html("td", {}, value)));
        const mean = (sum) => sum / leads.length;
        return html(
            "div",
            { class: "verdict" },
            html("p", {}, html("b", {}, verdict)),
            html(
                "table",
                {},
                html("thead", {}, html("tr", {}, html("td"), ...this.names.map((title) => html("th", { scope: "col" }, title)))),
                html(
                    "tbody",
                    {},
                    row("words predicted better", [count(ahead), count(behind)]),
                    row("bits in sum", this.sums.map((sum) => rounded(sum, 4))),
                    row("bits per word", this.sums.map((sum) => rounded(mean(sum)))),
                    row("perplexity", this.sums.map((sum) => rounded(2 ** mean(sum)))),
                ),
            ),
            html(
                "p",
                { class: "hint" },
                `Of the ${count(leads.length)} words and sentence ends that both read, ${count(even)} are even, within half a bit.`,
                this.left > 0 && ` ${plural(this.left, "other")} that one of them does not know ${this.left === 1 ? "is" : "are"} left out.`,
            ),
        );
    }

    legend() {
        const [name, other] = this.names;
        return html(
            "figure",
            { class: "legend" },
            html("ol", {}, ...LABELS.map((label, index) => html("li", { "data-lead": 3 - index }, label))),
            html(
                "figcaption",
                {},
                `By how many bits one file predicts a word better. On the left ${name}; on the right, underlined, ${other}. ` +
                    "Point at a word, tap it, or walk to it with the arrow keys, for both its probabilities.",
            ),
        );
    }
}
