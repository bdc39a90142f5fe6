/* Texts of the generate view. Each is a branch: a prompt, its words, and where it left another text, if it did. */

const OWN_TEMPERATURE = { c: 1, torch: 0 };
const EOS = "<EOS>";

export class Branch {
    tokens = []; // all after the prompt: those shared with the parent, the chosen one, and what was written from there
    children = [];
    figures = null; // {firstTokenMs, tokensPerSecond, waitedMs}
    ending = ""; // how it ended
    end = null; // the last event of its stream
    unknown = []; // words of the prompt that the vocabulary lacks

    /** prompt: what the person wrote.   body: of the request, whose prompt also has the words up to the place `at`.
     * shared: the tokens up to there. */
    constructor(backend, prompt, body, parent = null, shared = []) {
        this.backend = backend;
        this.prompt = prompt;
        this.body = body;
        this.parent = parent;
        this.tokens.push(...shared);
        this.at = shared.length - 1; // the place of the chosen word, where it left its parent
    }

    get isEmpty() {
        return this.tokens.length === this.at + 1;
    }

    /** Forget what a first attempt wrote, before another does. */
    restart() {
        this.tokens.length = this.at + 1;
        this.figures = this.end = null;
        this.ending = "";
    }

    get rule() {
        return ruleOf(this.body, this.backend);
    }

    get root() {
        return this.parent ? this.parent.root : this;
    }

    /** The text, as it would be copied, up to a number of its tokens. */
    text(count = this.tokens.length) {
        return textOf(this.prompt, this.tokens.slice(0, count)).trimEnd();
    }

    /** The text as the model reads it, up to a number of its tokens. */
    prefix(count) {
        const text = textOf(this.prompt, this.tokens.slice(0, count));
        return text.endsWith("\n") ? `${text.trimEnd()} .` : text; // white space at the end of a prompt ends no sentence
    }

    /** Mean bits of surprise of the words that the model wrote here. */
    get bitsPerWord() {
        const written = this.tokens.slice(this.at + 1);
        return -written.reduce((sum, token) => sum + token.logprob, 0) / Math.LN2 / written.length;
    }
}

function textOf(prompt, tokens) {
    const pieces = [prompt.trim()];
    for (const { word } of tokens) {
        const isFirst = /(^|\n)$/.test(pieces.at(-1));
        pieces.push(word === EOS ? "\n" : `${isFirst ? "" : " "}${word}`);
    }
    return pieces.join("");
}

/** How words are drawn: {temperature, top_k, top_p}, with the back end's own temperature where none is given. */
export function ruleOf(body, backend) {
    const { temperature = OWN_TEMPERATURE[backend], top_k = 0, top_p = 1 } = body;
    return { temperature, top_k, top_p };
}

export const isGreedy = ({ temperature, top_k: topK }) => temperature === 0 || topK === 1;

/** Return the rule in words. */
export function inWords(rule) {
    if (isGreedy(rule)) return "always the most probable word";
    const { temperature, top_k: topK, top_p: topP } = rule;
    return (
        `drawn at temperature ${temperature}` +
        (topK ? ` from the ${topK} most probable` : "") +
        (topP < 1 ? ` ${topK ? "and of those" : "from"} the first that hold ${Math.round(100 * topP)}%` : "")
    );
}
