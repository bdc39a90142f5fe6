/* A text as tinted words. The text is one stop of the Tab key; in it, the arrow keys go from word to word.

   Each sentence is a block of its own: a word that comes then makes the browser lay out one sentence anew, and not all
   of the text. At 10,000 words that is the difference between a smooth page and one that stands still. */

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
    #sentence = sentence(this.#given); // that goes on; null after its end
    #stop = null; // the word that Tab comes to

    /** label: what the text is, for those who do not see it. */
    constructor(label) {
        this.element = html("p", {
            class: "words",
            role: "group",
            "aria-label": label,
            onkeydown: (event) => this.#move(event),
            onfocusin: (event) => this.#enter(event.target),
            onfocusout: inspector.hide,
            onclick: (event) => event.target.focus(), // Safari gives a button no focus when it is clicked or tapped
            onpointerover: (event) => this.#show(event.target),
            onpointerout: inspector.hideSoon,
        });
        this.element.append(this.#sentence);
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
                tabindex: -1,
            },
            isEnd ? "¶" : token.word,
        );
        if (!this.#stop) this.#stopAt(word);
        if (!this.#sentence) this.element.append((this.#sentence = sentence()));
        this.#sentence.append(" ", word);
        if (isEnd) this.#sentence = null;
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

    #enter(target) {
        if (this.#tokens.has(target)) this.#stopAt(target);
        this.#show(target);
    }

    #stopAt(word) {
        if (this.#stop) this.#stop.tabIndex = -1;
        this.#stop = word;
        word.tabIndex = 0;
    }

    #move(event) {
        const words = [...this.#tokens.keys()];
        const move = MOVES[event.key];
        const from = words.indexOf(event.target);
        if (!move || from < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        words[Math.max(0, Math.min(words.length - 1, move(from, words.length - 1)))].focus();
    }
}

const sentence = (...children) => html("span", { class: "sentence" }, ...children);

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
