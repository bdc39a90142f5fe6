/* A text as tinted words. The text is one stop of the Tab key; in it, the arrow keys go from word to word. */

import { html } from "./dom.js";
import * as inspector from "./inspector.js";
import { percent, step } from "./scale.js";

const EOS = "<EOS>";
const MOVES = {
    ArrowRight: (index) => index + 1,
    ArrowLeft: (index) => index - 1,
    Home: () => 0,
    End: (index, last) => last,
};

export class Words {
    #given = html("span", { class: "given" });
    #tokens = new Map(); // by element

    /** label: what the text is, for those who do not see it. */
    constructor(label) {
        this.element = html("p", {
            class: "words",
            role: "group",
            "aria-label": label,
            onkeydown: (event) => this.#move(event),
            onfocusin: (event) => this.#show(event.target),
            onfocusout: inspector.hide,
            onpointerover: (event) => this.#show(event.target),
            onpointerout: inspector.hideSoon,
        });
        this.element.append(this.#given);
    }

    get count() {
        return this.#tokens.size;
    }

    /** Whether more is to come. */
    set busy(value) {
        this.element.classList.toggle("busy", value);
    }

    /** What stood before the first word; those of its words that the vocabulary lacks are marked. */
    begin(text, unknown) {
        this.#given.replaceChildren(...marked(text, unknown));
    }

    add(token) {
        const isEnd = token.word === EOS;
        const isSpecial = isEnd || token.word.startsWith("<");
        const word = html(
            "button",
            {
                type: "button",
                class: isSpecial ? "word special" : "word",
                "data-step": step(token.logprob),
                "aria-label": isEnd ? "end of sentence" : null,
                tabindex: this.count === 0 ? 0 : -1,
            },
            isEnd ? "¶" : token.word,
        );
        this.element.append(" ", word);
        if (isEnd) this.element.append(html("br"));
        this.#tokens.set(word, token);
    }

    /** The text, as it would be copied. */
    get text() {
        const pieces = [this.#given.textContent.trim()];
        for (const { word } of this.#tokens.values()) {
            const isFirst = /(^|\n)$/.test(pieces.at(-1));
            pieces.push(word === EOS ? "\n" : `${isFirst ? "" : " "}${word}`);
        }
        return pieces.join("").trimEnd();
    }

    #show(target) {
        const token = this.#tokens.get(target);
        if (token) inspector.show(target, token);
    }

    #move(event) {
        const words = [...this.#tokens.keys()];
        const move = MOVES[event.key];
        const from = words.indexOf(event.target);
        if (!move || from < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        const to = words[Math.max(0, Math.min(words.length - 1, move(from, words.length - 1)))];
        words[from].tabIndex = -1;
        to.tabIndex = 0;
        to.focus();
    }
}

/** `text` in pieces, with a mark around each unknown word. Words are runs of letters, as the model's are. */
export function marked(text, unknown) {
    const lacking = new Set(unknown);
    return text
        .split(/([A-Za-z]+)/)
        .map((piece) => (lacking.has(piece) ? html("mark", { title: "not in the vocabulary" }, piece) : piece));
}

/** One line on a word, for a list. */
export function listed(token) {
    return html(
        "li",
        {},
        html("b", { "data-step": step(token.logprob) }, inspector.wordOf(token)),
        ` ${percent(token.logprob)}`,
    );
}
