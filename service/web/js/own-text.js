/* A person's own text, as it was written, with what the model makes of each piece: the words that it reads are buttons,
   in a colour that the caller chooses, and what it does not read is struck through.

   Each line is a block of its own. */

import { html } from "./dom.js";
import * as inspector from "./inspector.js";
import { roving } from "./roving.js";

const TITLES = {
    dropped: "not read by the model",
    unknown: "not in the vocabulary, and not read",
    unknownRead: "not in the vocabulary: read as <UNK>",
    sentence_end: "end of a sentence",
};

/** Pair each token of a score with its piece of `text`. The service counts code points, JavaScript counts in halves of some. */
export function pieces(text, tokens) {
    const characters = [...text];
    const slice = (start, end) => characters.slice(start, end).join("");
    let at = 0;
    const found = tokens.map((token) => {
        const before = slice(at, token.start);
        at = token.end;
        return { token, before, own: slice(token.start, token.end) };
    });
    return { found, after: slice(at) };
}

/** The text as an element. paint(token): the attributes of a word that the model reads.
 * note(token): what its card says below the list; null for nothing. */
export function ownText(label, { found, after }, { paint, note = () => null }) {
    const tokens = new Map(); // by element
    const show = ({ target }) => tokens.has(target) && inspector.show(target, tokens.get(target), { note: note(tokens.get(target)) });
    const element = html("div", {
        class: "words own",
        role: "group",
        "aria-label": label,
        onfocusin: show,
        onfocusout: inspector.hide,
        onpointerover: show,
        onpointerout: inspector.hideSoon,
    });
    const take = roving(element);
    let line = newLine();

    function newLine() {
        const block = html("span", { class: "line" });
        element.append(block);
        return block;
    }
    function space(text) {
        const [first, ...rest] = text.split("\n");
        line.append(first);
        for (const next of rest) {
            line = newLine();
            line.append(next);
        }
    }
    for (const { token, before, own } of found) {
        space(before);
        const isBreak = own === "\n"; // a line end that ends a sentence
        if (token.id === null) {
            line.append(html("s", { class: `unread ${token.kind}`, title: TITLES[token.kind] }, own));
        } else {
            const word = html(
                "button",
                {
                    type: "button",
                    class: `word ${token.kind}`,
                    title: token.kind === "unknown" ? TITLES.unknownRead : null,
                    "aria-label": token.kind === "sentence_end" ? TITLES.sentence_end : null,
                    ...paint(token),
                },
                isBreak ? "" : own,
            );
            take(word);
            tokens.set(word, token);
            line.append(word);
        }
        if (isBreak) line = newLine();
    }
    space(after);
    return element;
}

/** What the pieces of the text are, each kind with its number and its mark. tokenizer: that of the model. */
export function kinds({ found }, tokenizer) {
    const number = (test) => found.filter(test).length;
    const known = number(({ token }) => token.kind === "known");
    const ends = number(({ token }) => token.kind === "sentence_end");
    const asUnknown = number(({ token }) => token.kind === "unknown" && token.id !== null);
    const unread = number(({ token }) => token.kind === "unknown" && token.id === null);
    const dropped = number(({ token }) => token.kind === "dropped");
    const unknown = "not in the vocabulary";
    return html(
        "ul",
        { class: "kinds", "aria-label": "What the text is made of" },
        kind(known, html("span", { class: "word known" }, "word"), "in the vocabulary"),
        kind(ends, html("span", { class: "word sentence_end" }), "ends of sentences, each read as <EOS>"),
        asUnknown > 0 && kind(asUnknown, html("span", { class: "word unknown" }, "word"), `${unknown}, read as <UNK>`),
        unread > 0 && kind(unread, html("s", { class: "unread unknown" }, "word"), `${unknown}, and not read`),
        dropped > 0 && kind(dropped, html("s", { class: "unread" }, "1999"), `dropped: numbers, marks, and words ${unreadable(tokenizer)}`),
    );
}

/** Which words a tokenizer drops. It is not known while the list of weights is not. */
function unreadable(tokenizer = "") {
    if (tokenizer.startsWith("unicode")) return "with a digit or symbol inside";
    return tokenizer ? "with any character but the letters A to Z" : "with characters that the model does not read";
}

function kind(number, sample, meaning) {
    return html("li", {}, html("b", {}, number.toLocaleString("en")), " ", sample, ` ${meaning}`);
}
