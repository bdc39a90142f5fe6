/* A text as tinted words. The text is one stop of the Tab key; inside it, the arrow keys move from word to word.

   Each sentence is a block of its own, so that the browser lays out only one sentence again when a word arrives, not the
   whole text. At 10,000 words that is the difference between a smooth page and a frozen one. */

import { html } from "./dom.js";
import * as inspector from "./inspector.js";
import { percent, step } from "./scale.js";

const EOS = "<EOS>";
const UNREAD = { dropped: "not read by the model", unknown: "not in the vocabulary, and not read" };
const MOVES = {
    ArrowRight: (index) => index + 1,
    ArrowLeft: (index) => index - 1,
    Home: () => 0,
    End: (index, last) => last,
};

export class Words {
    #given = html("span", { class: "given" });
    #tokens = new Map(); // by element
    #sentence = sentence(this.#given); // the open one; null after its end
    #stop = null; // the word that Tab moves to

    /** label: what the text is, for screen readers. */
    constructor(label) {
        this.element = html("p", {
            class: "words",
            role: "group",
            "aria-label": label,
            onkeydown: (event) => this.#move(event),
            onfocusin: (event) => this.#enter(event.target),
            onfocusout: inspector.hide,
            onclick: (event) => event.target.focus(), // Safari does not focus a button that is clicked or tapped
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

    /** Show the prompt before the first word, and mark those of its words that the vocabulary lacks. */
    begin(text, unknown) {
        this.#given.replaceChildren(...marked(text, unknown));
    }

    add(token) {
        const isEnd = token.word === EOS;
        const isSpecial = isEnd || token.word.startsWith("<");
        const title = token.kind === "unknown" ? "not in the vocabulary: read as <UNK>" : null;
        const word = html(
            "button",
            {
                type: "button",
                class: isSpecial ? "word special" : "word",
                "data-step": step(token.logprob),
                "aria-label": isEnd ? "end of sentence" : null,
                title,
                tabindex: -1,
            },
            isEnd ? "¶" : token.word,
        );
        if (!this.#stop) this.#stopAt(word);
        this.#append(word);
        if (isEnd) this.#sentence = null;
        this.#tokens.set(word, token);
    }

    /** Show a piece of the text that the model does not read. kind: why, "dropped" or "unknown". */
    skip(text, kind) {
        this.#append(html("span", { class: "unread", title: UNREAD[kind] }, text));
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

    #append(element) {
        if (!this.#sentence) this.element.append((this.#sentence = sentence()));
        this.#sentence.append(" ", element);
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

/** Return `text` in pieces, with a mark around each unknown word. */
export function marked(text, unknown) {
    const lacking = new Set(unknown);
    return text
        .split(/([A-Za-z]+)/)
        .map((piece) => (lacking.has(piece) ? html("mark", { title: "not in the vocabulary" }, piece) : piece));
}

/** Return a line about a word, for a list. */
export function listed(token) {
    return html(
        "li",
        {},
        html("b", { "data-step": step(token.logprob) }, inspector.wordOf(token)),
        ` ${percent(token.logprob)}`,
    );
}
