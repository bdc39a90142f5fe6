/* The score view: how much each word of a person's own text surprises the model, and the text's perplexity; or which of
   two weights files predicts each word better. */

import * as api from "./api.js";
import { offer } from "./backends.js";
import { copy } from "./clipboard.js";
import { Comparison } from "./comparison.js";
import { curl } from "./curl.js";
import { announce, byId, html } from "./dom.js";
import { isBackendMissing } from "./errors.js";
import { clearComplaints, complain, sendByKeyboard } from "./fields.js";
import { figure } from "./figures.js";
import { count, rounded } from "./format.js";
import { bestPerplexity, unigramPerplexity } from "./history.js";
import { wordOf } from "./inspector.js";
import { clear, tell } from "./notice.js";
import { kinds, ownText, pieces } from "./own-text.js";
import { legend, percent, step } from "./scale.js";
import { fillSelect, onStore, store, withdraw } from "./store.js";

const TOP = 5;
const SURPRISES = 6; // words of a text that are listed

const form = byId("score-form");
const field = form.elements;
const notice = byId("score-notice");
const result = byId("score-result");
const key = byId("score-legend");
let running = null; // the AbortController of the request in progress
let limit = null; // the most characters of a text, once the service has said so

export function start() {
    key.append(legend("surprise"));
    form.addEventListener("submit", submit);
    field.text.addEventListener("input", showCount);
    sendByKeyboard(field.text);
    onStore(() => {
        fillSelect(field.weights);
        fillSelect(field.other, "no other file");
        show();
    });
    askLimit();
}

/** The form was filled from the address, or the service has other back ends. */
export function show() {
    offer(form, byId("score-backends"));
    showCount();
}

async function askLimit() {
    try {
        limit = await api.scoreLimit();
        showCount();
    } catch {
        // The count is shown without it, and the service itself refuses a text that is too long.
    }
}

const lengthOf = (text) => [...text].length; // in code points, as the service counts

function showCount() {
    const length = lengthOf(field.text.value);
    byId("text-count").textContent = limit ? `${count(length)} of ${count(limit)} characters` : `${count(length)} characters`;
    byId("text-count").classList.toggle("over", limit !== null && length > limit);
}

function submit(event) {
    event.preventDefault();
    clearComplaints(form);
    const complaint = complaintAbout(field.text.value);
    if (complaint) {
        complain(form, [{ field: "text", message: complaint }]);
        return;
    }
    const [weights, other] = [field.weights.value, field.other.value];
    if (other && other === (weights || store.initial)) {
        complain(form, [{ field: "other", message: "must be another file" }]);
        return;
    }
    const body = { text: field.text.value, backend: field.backend.value, top_logprobs: TOP, ...(weights && { weights }) };
    score(body, other);
}

function complaintAbout(text) {
    if (!text.trim()) return "must have a word to score";
    const length = lengthOf(text);
    if (limit !== null && length > limit) return `must have at most ${count(limit)} characters, got ${count(length)}`;
    return null;
}

/** Score a text, and by another file, too, if `other` names one. What is on the page stays until the reply has come. */
async function score(body, other) {
    running?.abort();
    const abort = (running = new AbortController());
    clear(notice);
    result.setAttribute("aria-busy", "true");
    try {
        const bodies = [body, ...(other ? [{ ...body, weights: other }] : [])];
        const replies = await Promise.all(bodies.map((each) => api.score(each, abort.signal)));
        if (running === abort) display(replies, body);
    } catch (error) {
        if (running !== abort) return;
        abort.abort(); // of two, the one that has not failed
        if (isBackendMissing(error)) withdraw(body.backend);
        if (!complain(form, error.fields ?? [])) tell(notice, error, () => score(body, other));
    } finally {
        if (running === abort) result.removeAttribute("aria-busy");
    }
}

function display([scored, other], body) {
    const text = pieces(body.text, scored.tokens);
    const compared = other ? new Comparison(scored, other) : null;
    const command = html("button", { type: "button", onclick: () => copy(curl("score", body), command) }, "Copy curl");
    key.replaceChildren(compared ? compared.legend() : legend("surprise"));
    result.replaceChildren(
        html(
            "article",
            { class: "panel", "data-backend": scored.backend },
            ...(compared ? [compared.summary()] : figures(scored)),
            kinds(text, listing(scored.weights.name)?.tokenizer),
            ownText("The text, word by word", text, {
                paint: (token) => (compared ? compared.paint(token) : { "data-step": step(token.logprob) }),
                note: (token) => (compared ? compared.note(token) : null),
            }),
            !compared && surprises(text.found),
            html("div", { class: "tools" }, command),
        ),
    );
    announce(compared ? result.querySelector(".verdict b, p.verdict").textContent : `Perplexity ${rounded(scored.perplexity)}`);
}

function figures(scored) {
    const read = scored.tokens.filter((token) => token.id !== null);
    return [
        html(
            "dl",
            { class: "figures large" },
            figure("perplexity", rounded(scored.perplexity)),
            figure("nats per token", rounded(scored.loss)),
            figure("bits per token", rounded(scored.loss / Math.LN2)),
            figure("tokens", count(read.length)),
            figure("weights", scored.weights.name),
        ),
        yardsticks(scored.weights.name),
    ];
}

/** Return what GET /weights says of a file, if it is known. */
function listing(name) {
    return store.weights?.find((each) => each.name === name);
}

/** Return what the perplexity can be measured by: other ways to predict, and the model on the text that it was tried on. */
function yardsticks(name) {
    const weights = listing(name);
    if (!weights || weights.problem) return null;
    const [best, unigram] = [bestPerplexity(weights), unigramPerplexity(weights)];
    const others = [
        best !== null && `this model ${rounded(best)}`,
        unigram !== null && `one that knows only how common each word is ${rounded(unigram)}`,
    ].filter(Boolean);
    return html(
        "p",
        { class: "hint yardsticks" },
        `To compare: a model that knows nothing has ${count(weights.vocabulary)}, its number of words.`,
        others.length > 0 && ` On the validation text, ${others.join(", and ")}.`,
    );
}

function surprises(found) {
    const read = found.filter(({ token }) => token.id !== null);
    const worst = read.sort((a, b) => a.token.logprob - b.token.logprob).slice(0, SURPRISES);
    return html(
        "section",
        { class: "surprises", "aria-labelledby": "surprises-title" },
        html("h3", { id: "surprises-title" }, "What surprised it most"),
        html("ol", {}, ...worst.map(listed)),
    );
}

function listed({ token, own }) {
    const name = token.kind === "unknown" ? own : wordOf(token);
    return html("li", {}, html("b", { "data-step": step(token.logprob) }, name), ` ${percent(token.logprob)}`);
}
