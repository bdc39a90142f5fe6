/* The score view: how much each word of a text surprises the model, and the text's perplexity. */

import * as api from "./api.js";
import { offer } from "./backends.js";
import { copy } from "./clipboard.js";
import { curl } from "./curl.js";
import { announce, byId, html } from "./dom.js";
import { isBackendMissing } from "./errors.js";
import { clearComplaints, complain, sendByKeyboard } from "./fields.js";
import { count, rounded } from "./format.js";
import { clear, tell } from "./notice.js";
import { figure } from "./output.js";
import { legend } from "./scale.js";
import { fillSelect, onStore, withdraw } from "./store.js";
import { Words, listed, marked } from "./words.js";

const TOP = 5;
const SURPRISES = 6; // words of a text that are listed

const form = byId("score-form");
const field = form.elements;
const notice = byId("score-notice");
const result = byId("score-result");
let running = null; // the AbortController of the request in progress

export function start() {
    byId("score-legend").append(legend("surprise"));
    form.addEventListener("submit", submit);
    sendByKeyboard(field.text);
    onStore(() => {
        fillSelect(field.weights);
        show();
    });
}

/** Offer the service's back ends. */
export function show() {
    offer(form, byId("score-backends"));
}

function submit(event) {
    event.preventDefault();
    clearComplaints(form);
    if (!field.text.value.trim()) {
        complain(form, [{ field: "text", message: "must have a word to score" }]);
        return;
    }
    const weights = field.weights.value;
    score({ text: field.text.value, backend: field.backend.value, top_logprobs: TOP, ...(weights && { weights }) });
}

async function score(body) {
    running?.abort();
    const abort = (running = new AbortController());
    clear(notice);
    result.setAttribute("aria-busy", "true");
    try {
        const scored = await api.score(body, abort.signal);
        if (running === abort) display(scored, body);
    } catch (error) {
        if (running !== abort) return;
        if (isBackendMissing(error)) withdraw(body.backend);
        if (!complain(form, error.fields ?? [])) tell(notice, error, () => score(body));
    } finally {
        if (running === abort) result.removeAttribute("aria-busy");
    }
}

function display(scored, body) {
    const words = new Words("The text, word by word");
    const characters = [...body.text]; // the service counts code points
    for (const token of scored.tokens) {
        if (token.id === null) words.skip(characters.slice(token.start, token.end).join(""), token.kind);
        else words.add(token);
    }
    const read = scored.tokens.filter((token) => token.id !== null);
    const command = html("button", { type: "button", onclick: () => copy(curl("score", body), command) }, "Copy curl");
    result.replaceChildren(
        html(
            "article",
            { class: "panel" },
            html(
                "dl",
                { class: "figures large" },
                figure("perplexity", rounded(scored.perplexity)),
                figure("nats per token", rounded(scored.loss)),
                figure("bits per token", rounded(scored.loss / Math.LN2)),
                figure("tokens", count(read.length)),
                figure("weights", scored.weights.name),
            ),
            scored.unknown_words.length > 0 && unknownNote(scored.unknown_words),
            words.element,
            surprises(read),
            html("div", { class: "tools" }, command),
        ),
    );
    announce(`Perplexity ${rounded(scored.perplexity)}`);
}

function unknownNote(words) {
    return html("p", { class: "unknown-note" }, "Not in the vocabulary: ", ...marked(words.join(", "), words));
}

function surprises(tokens) {
    const worst = [...tokens].sort((a, b) => a.logprob - b.logprob).slice(0, SURPRISES);
    return html(
        "section",
        { class: "surprises", "aria-labelledby": "surprises-title" },
        html("h3", { id: "surprises-title" }, "What surprised it most"),
        html("ol", {}, ...worst.map(listed)),
    );
}
