/* The hidden state as a heat map of units by words, and what is around one unit. */

import * as api from "./api.js";
import { html } from "./dom.js";
import { explain } from "./errors.js";
import { rounded } from "./format.js";
import { nameOf } from "./inside-words.js";

const MAX_UNITS = 256; // rows that are drawn; more are thinned out
const FEATURES = [
    ["the place in the text", (words, position) => position],
    ["a capital letter", (words, position) => Number(/^[A-Z]/.test(words[position]))],
    ["coming after “the”", (words, position) => Number(/^the$/i.test(words[position - 1] ?? ""))],
    ["the length of the word", (words, position) => (words[position] === "<EOS>" ? 0 : words[position].length)],
];

/** The part's content. */
export function state(seen, backend) {
    if (!seen.state) return [html("p", {}, "The state is drawn for texts of up to 120 words: shorten the text to see it.")];
    const step = Math.ceil(seen.hidden_size / MAX_UNITS);
    const units = Array.from({ length: Math.ceil(seen.hidden_size / step) }, (_, row) => row * step);
    const canvas = html("canvas", {
        class: "heat",
        width: seen.words.length,
        height: units.length,
        role: "img",
        "aria-label": `The hidden state: ${seen.hidden_size} units by ${seen.words.length} words`,
        onclick: (event) => {
            const { top, height } = canvas.getBoundingClientRect();
            choose(units[Math.min(units.length - 1, Math.floor(((event.clientY - top) / height) * units.length))]);
        },
    });
    const field = html("input", {
        id: "inside-unit",
        type: "number",
        min: 0,
        max: seen.hidden_size - 1,
        step: 1,
        value: 0,
        "data-keep": "unit",
        onchange: () => choose(Math.max(0, Math.min(seen.hidden_size - 1, Math.trunc(Number(field.value)) || 0))),
    });
    const about = html("div", { class: "unit", role: "status" });
    let chosen = 0;
    async function choose(unit) {
        chosen = unit;
        field.value = unit;
        const tinted = seen.words.map((word, position) => cell(word, seen.state[position][unit]));
        const text = html("p", { class: "inside-text", role: "group", "aria-label": `The text, by unit ${unit}` }, ...tinted);
        about.replaceChildren(text);
        try {
            const effects = await api.unit(seen.weights.name, unit, backend);
            if (chosen === unit) about.replaceChildren(text, correlations(seen, unit), ...lists(effects));
        } catch (error) {
            if (chosen === unit) about.replaceChildren(text, html("p", { class: "field-error" }, explain(error)));
        }
    }
    paint(canvas, seen.state, units);
    choose(0);
    return [
        step > 1 && html("p", { class: "hint" }, `One unit in ${step} is drawn.`),
        canvas,
        html("div", { class: "field narrow" }, html("label", { for: "inside-unit" }, `Unit, 0 to ${seen.hidden_size - 1}`), field),
        about,
    ].filter(Boolean);
}

/** A pixel for each unit and word; the style sheet makes them large. Colours are those of the curves. */
function paint(canvas, values, units) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    for (const [row, unit] of units.entries()) {
        for (let column = 0; column < canvas.width; column++) {
            const value = values[column][unit];
            const at = 4 * (row * canvas.width + column);
            image.data.set(value > 0 ? [30, 120, 200] : [215, 110, 30], at);
            image.data[at + 3] = Math.round(255 * Math.abs(value));
        }
    }
    context.putImageData(image, 0, 0);
}

function cell(word, value) {
    const element = html("span", { class: `inside-word ${value > 0 ? "above" : "below"}` }, nameOf(word));
    element.style.setProperty("--share", `${Math.round(45 * Math.abs(value))}%`);
    element.title = rounded(value, 2);
    return element;
}

/** How the unit goes with simple features of the text: Pearson's r, and no meaning promised. */
function correlations({ words, state }, unit) {
    const values = state.map((row) => row[unit]);
    const shown = FEATURES.map(([name, of]) => [name, pearson(values, words.map((_, position) => of(words, position)))])
        .filter(([, r]) => r !== null)
        .map(([name, r]) => `${name} ${r < 0 ? "−" : ""}${Math.abs(r).toFixed(2)}`);
    return html("p", { class: "hint" }, `Over these ${words.length} words it correlates (r) with `, shown.join(", "),
        ". So few words prove nothing: try another text.");
}

/** Pearson's correlation; null where one of the two does not vary. */
function pearson(a, b) {
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const centred = (values) => values.map((value) => value - mean(values));
    const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
    const [x, y] = [centred(a), centred(b)];
    const scale = Math.sqrt(dot(x, x) * dot(y, y));
    return scale > 1e-9 ? dot(x, y) / scale : null;
}

function lists(effects) {
    const list = (title, words) =>
        html("div", {}, html("h4", {}, title), html("p", {}, words.map((entry) => nameOf(entry.word)).join(", ")));
    return [
        html(
            "div",
            { class: "lists" },
            list("Words that drive it up", effects.raised_by),
            list("Words that drive it down", effects.lowered_by),
            list("Words it makes more probable", effects.raises),
            list("Words it makes less probable", effects.lowers),
        ),
    ];
}
