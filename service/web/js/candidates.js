/* The card beside a word that was generated: the words that might have stood there, each a button from which the text
   goes on; their probabilities under the model, and those that the rule of drawing makes of them, live. */

import * as api from "./api.js";
import { html } from "./dom.js";
import { explain } from "./errors.js";
import { count } from "./format.js";
import { UNK, wordOf } from "./inspector.js";
import { percent } from "./scale.js";
import { sliders } from "./sliders.js";

const SETTLE_MS = 120; // of a pointer on its way over a text, words are not asked about

/** branch: the text.   index: of the word in it.   count: of candidates.
 * form: has the rule, which readRule() returns, or null if a field is no number.   choose(candidate): one was clicked. */
export function candidates(branch, index, { count: k, form, readRule, choose }) {
    const token = branch.tokens[index];
    const list = html("ol", { "aria-label": "most probable here" });
    const note = html("p", { class: "note", role: "status" });
    let isAsking = false;
    let isStale = false; // whether the rule has changed since it was asked about

    const known = token.top ?? [];
    const rest = known.some((word) => word.id === token.id) ? [] : [token];
    draw([...known, ...rest].map((word) => ({ ...word, probability: Math.exp(word.logprob) })));

    function draw(words) {
        const largest = Math.max(...words.flatMap(({ probability, drawn = 0 }) => [probability, drawn]));
        const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
        list.replaceChildren(...words.map((word) => row(word, largest, word.id === token.id, choose)));
        if (focused) list.querySelector(`[data-id="${focused}"]`)?.focus();
    }

    async function ask() {
        isStale = true;
        if (isAsking) return;
        isAsking = true;
        while (isStale && list.isConnected) {
            isStale = false;
            await show();
        }
        isAsking = false;
    }

    async function show() {
        const rule = readRule();
        if (!rule) {
            note.textContent = "A setting is no number: these are the model's own probabilities.";
            return;
        }
        const body = { text: branch.prefix(index), backend: branch.backend, k, ...rule };
        const weights = branch.end?.weights.name ?? branch.body.weights;
        try {
            const answer = await api.candidates({ ...body, ...(weights && { weights }) });
            draw(complete(answer));
            note.textContent =
                answer.drawable === 1
                    ? "This rule always takes the same word."
                    : `Upper bars: the model itself. Lower bars: as drawn, from ${count(answer.drawable)} words.`;
        } catch (error) {
            note.textContent = `What the rule makes of these is not known. ${explain(error)}`;
        }
    }

    /** The candidates, and if they are not among them <UNK>, which is taken out, and the word that stands here. */
    function complete({ candidates: found, unknown }) {
        const words = [...found];
        const lacks = (name) => !words.some(({ word }) => word === name);
        if (unknown !== null && lacks(UNK)) words.push({ word: UNK, probability: unknown, drawn: 0 });
        if (lacks(token.word)) words.push({ ...token, probability: Math.exp(token.logprob) });
        return words;
    }

    setTimeout(ask, SETTLE_MS);
    const start = { ...branch.rule, ...readRule() };
    return html("div", { class: "candidates" }, list, note, sliders(form, start, ask));
}

function row(word, largest, isChosen, choose) {
    const isUnknown = word.word === UNK;
    const bar = (kind, value) => {
        const element = html("span", { class: `bar ${kind}`, "aria-hidden": "true" });
        element.style.setProperty("--share", `${(100 * value) / largest}%`);
        return element;
    };
    const isKnown = word.drawn !== undefined;
    const share = (value) => (value > 0 ? percent(Math.log(value)) : "0%");
    const said = isUnknown ? " (is never drawn)" : isKnown && word.drawn === 0 ? " (left out)" : "";
    const name = html("span", { class: isUnknown ? "taken-out" : "name" }, wordOf(word));
    return html(
        "li",
        { "aria-current": isChosen ? "true" : null },
        html(
            "button",
            {
                type: "button",
                "data-id": word.id,
                disabled: isUnknown,
                title: isChosen ? "the word that stands here" : isUnknown ? null : "go on from this word",
                onclick: () => choose(word),
            },
            name,
            said,
            html("span", { class: "share" }, share(word.probability), isKnown && ` → ${share(word.drawn)}`),
            bar("own", word.probability),
            isKnown && bar("drawn", word.drawn),
        ),
    );
}
