/* A text that a model writes, as tinted words.

   Each sentence is a block of its own, so that the browser lays out only one sentence again when a word arrives, not the
   whole text. At 10,000 words that is the difference between a smooth page and a frozen one. */

import { html } from "./dom.js";
import * as inspector from "./inspector.js";
import { roving } from "./roving.js";
import { step } from "./scale.js";

const EOS = "<EOS>";

export class Words {
    #given = html("span", { class: "given" });
    #tokens = new Map(); // by element
    #sentence = sentence(this.#given); // the open one; null after its end
    #take; // makes a word one of those that the arrow keys reach
    #card;
    #isQuiet = false; // whether a word gets the focus without its card

    /** label: what the text is, for screen readers.   card(index) returns what the card of a word has; null for a list of
     * the most probable words. */
    constructor(label, card = null) {
        this.#card = card;
        this.element = html("p", {
            class: "words",
            role: "group",
            "aria-label": label,
            onfocusin: (event) => this.#show(event.target),
            onfocusout: inspector.leave,
            onpointerover: (event) => this.#show(event.target),
            onpointerout: inspector.hideSoon,
        });
        this.element.append(this.#sentence);
        this.#take = roving(this.element);
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
        const word = html(
            "button",
            {
                type: "button",
                class: isSpecial ? "word special" : "word",
                "data-step": step(token.logprob),
                "aria-label": isEnd ? "end of sentence" : null,
            },
            isEnd ? "¶" : token.word,
        );
        this.#take(word);
        this.#append(word);
        if (isEnd) this.#sentence = null;
        this.#tokens.set(word, token);
    }

    #append(element) {
        if (!this.#sentence) this.element.append((this.#sentence = sentence()));
        this.#sentence.append(" ", element);
    }

    #show(target) {
        const token = this.#tokens.get(target);
        if (!token || this.#isQuiet || inspector.stay(target)) return;
        const index = [...this.#tokens.keys()].indexOf(target);
        inspector.show(target, token, { body: this.#card?.(index) });
    }

    /** The place of the word that has the focus; -1 if none has. */
    get focused() {
        return [...this.#tokens.keys()].indexOf(document.activeElement);
    }

    /** Give a word the focus, without its card. */
    focus(index) {
        this.#isQuiet = true;
        [...this.#tokens.keys()][index]?.focus({ preventScroll: true });
        this.#isQuiet = false;
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
