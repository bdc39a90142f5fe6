/* Sliders for the rule by which words are drawn. They move the number fields of a form, which hold the rule. */

import { html } from "./dom.js";

const TOP_KS = [1, 2, 3, 4, 5, 8, 10, 20, 50, 100, 1000, 0]; // 0, at the end: all words

/** A slider counts steps: `value(step)` is what the field gets, `step(value)` the nearest to what it has. */
const SCALES = {
    temperature: {
        label: "Temperature",
        last: 40,
        value: (step) => step / 20,
        step: (value) => Math.round(20 * value),
        say: (value) => (value === 0 ? "0: the most probable" : String(value)),
    },
    top_k: {
        label: "Top-k",
        last: TOP_KS.length - 1,
        value: (step) => TOP_KS[step],
        step: (value) => (value === 0 ? TOP_KS.length - 1 : TOP_KS.findLastIndex((k) => k > 0 && k <= value)),
        say: (value) => (value === 0 ? "all words" : String(value)),
    },
    top_p: {
        label: "Top-p",
        last: 20,
        value: (step) => Math.max(0.01, step / 20),
        step: (value) => Math.round(20 * value),
        say: (value) => (value === 1 ? "all words" : `${Math.round(100 * value)}%`),
    },
};

/** Return sliders for the fields of `form`. rule: what they show at first; moved() is called after each move. */
export function sliders(form, rule, moved) {
    const rows = Object.entries(SCALES).map(([name, scale]) => row(form.elements[name], scale, rule[name], moved));
    return html("div", { class: "sliders" }, ...rows);
}

function row(field, { label, last, value, step, say }, initial, moved) {
    const output = html("span", { "aria-hidden": "true" }, say(initial));
    const range = html("input", {
        type: "range",
        "aria-label": `${label} of the bars`,
        "aria-valuetext": say(initial),
        min: 0,
        max: last,
        value: Math.max(0, Math.min(last, step(initial))),
        oninput: () => {
            const chosen = value(Number(range.value));
            field.value = chosen;
            field.dispatchEvent(new Event("input", { bubbles: true }));
            output.textContent = say(chosen);
            range.setAttribute("aria-valuetext", say(chosen));
            moved();
        },
    });
    return html("label", {}, html("span", {}, label), range, output);
}
