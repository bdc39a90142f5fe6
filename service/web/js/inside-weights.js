/* What the weights hold: the eigenvalues of the recurrence, and the neighbours of a word. */

import * as api from "./api.js";
import { html, svg } from "./dom.js";
import { explain } from "./errors.js";
import { count, plural, rounded } from "./format.js";
import { nameOf } from "./inside-words.js";

const SIZE = 240; // of the drawing, which the style sheet scales
const MARGIN = 12;
const MAX_DOTS = 300; // the largest are drawn

export function recurrence({ recurrent, effective }) {
    const place = html("div", {});
    const draw = (values) => place.replaceChildren(...circle(values));
    const box = html("input", { type: "checkbox", "data-keep": "tanh", onchange: () => draw(box.checked ? effective : recurrent) });
    draw(recurrent);
    return [
        html("label", { class: "check" }, box, html("span", {}, "As tanh weakens it on this text")),
        place,
    ];
}

function circle(values) {
    const radius = Math.max(...values.map(([x, y]) => Math.hypot(x, y)));
    const scale = (SIZE / 2 - MARGIN) / Math.max(1, radius);
    const at = (value) => SIZE / 2 + scale * value;
    const dots = values.slice(0, MAX_DOTS).map(([x, y]) => svg("circle", { cx: at(x), cy: at(-y), r: 2.5, class: "dot" }));
    return [
        svg(
            "svg",
            { class: "spectrum", viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": "Eigenvalues and the unit circle" },
            svg("circle", { cx: SIZE / 2, cy: SIZE / 2, r: scale, class: "unit-circle" }),
            ...dots,
        ),
        values.length > MAX_DOTS && html("p", { class: "hint" }, `The ${MAX_DOTS} largest of ${count(values.length)} are drawn.`),
        html("p", {}, `The largest has the magnitude ${rounded(radius)}: `, fate(radius)),
    ].filter(Boolean);
}

/** What becomes of something that lies along an eigenvalue of this magnitude. */
function fate(radius) {
    if (radius >= 1) return "along it nothing would fade, if tanh did not hold the state between −1 and 1.";
    const words = Math.max(1, Math.ceil(Math.log(0.1) / Math.log(radius)));
    return `along it, a tenth of anything is left after ${plural(words, "word")}.`;
}

export function neighbours(weights, backend, word) {
    const field = html("input", { id: "inside-word", type: "text", spellcheck: "false", value: word === "<EOS>" ? "" : word, "data-keep": "word" });
    const place = html("div", { class: "lists", role: "status" });
    async function ask() {
        const wanted = field.value.trim();
        if (!wanted) return;
        try {
            const nearest = await api.neighbours(weights, wanted, backend);
            const list = (title, words) =>
                html("div", {}, html("h4", {}, title), html("ol", {}, ...words.map((entry) =>
                    html("li", {}, nameOf(entry.word), html("span", { class: "value" }, ` ${rounded(entry.value)}`)))));
            place.replaceChildren(list("By input", nearest.by_input), list("By output", nearest.by_output));
        } catch (error) {
            place.replaceChildren(html("p", { class: "field-error" }, explain(error)));
        }
    }
    field.addEventListener("change", ask);
    ask();
    return [html("div", { class: "field narrow" }, html("label", { for: "inside-word" }, "Word"), field), place];
}
