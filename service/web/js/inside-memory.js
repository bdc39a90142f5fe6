/* What the model remembers: how strongly each earlier word still acts, and how long a replaced word is felt. */

import { html } from "./dom.js";
import { plural, rounded } from "./format.js";
import { nameOf } from "./inside-words.js";

/** The part's content. compare(text) is called with another second sentence. */
export function memory(seen, compare) {
    return [fading(seen), ...replaced(seen, compare)];
}

function fading({ influences, words }) {
    const nearest = influences.at(-1);
    const largest = Math.max(...influences.map((influence) => influence.gradient), 1e-300);
    const rows = influences.map((influence) =>
        html(
            "tr",
            {},
            html("th", { scope: "row" }, nameOf(words[influence.position])),
            bar(influence.gradient / largest, "with"),
            bar(influence.jacobian / nearest.jacobian, "without"),
        ),
    );
    return html(
        "table",
        { class: "fading" },
        html("caption", {}, "How strongly each word still acts on the prediction"),
        html(
            "thead",
            {},
            html("tr", {}, ...["word", "gradient, of the largest", "Jacobian, of the last"].map((name) =>
                html("th", { scope: "col" }, name),
            )),
        ),
        html("tbody", {}, ...rows),
    );
}

function bar(share, kind) {
    const element = html("span", { class: `bar ${kind}`, "aria-hidden": "true" });
    element.style.setProperty("--share", `${Math.min(100, 100 * share)}%`);
    return html("td", {}, element, html("span", { class: "value" }, `${rounded(100 * share, 2)}%`));
}

function replaced({ memory: compared }, compare) {
    const shown = compared.words.slice(1).map((word) => (word === "<EOS>" ? "." : word)).join(" ").replaceAll(" .", ".");
    let asked = shown;
    const ask = () => {
        if (field.value !== asked) compare((asked = field.value));
    };
    const field = html("input", {
        id: "inside-other",
        type: "text",
        spellcheck: "false",
        "data-keep": "other",
        value: shown,
        onchange: ask,
        onkeydown: (event) => event.key === "Enter" && ask(),
    });
    const start = compared.changed === null ? 0 : compared.differences[compared.changed];
    const cells = compared.differences.map((difference, position) => {
        const word = html("span", { class: "inside-word felt" }, nameOf(compared.words[position]));
        const share = start > 0 ? difference / start : 0;
        word.style.setProperty("--share", `${Math.round(45 * Math.min(1, share))}%`);
        word.title = `the states differ by ${rounded(100 * share, 2)}% of what they did at the changed word`;
        return word;
    });
    return [
        html("label", { for: "inside-other" }, "The same sentence, with a word changed"),
        field,
        html("p", { class: "inside-text", role: "group", "aria-label": "How much the states differ" }, ...cells),
        html("p", { role: "status" }, verdict(compared)),
    ];
}

function verdict({ changed, forgotten_after: after, differences, words }) {
    if (changed === null) return "The two sentences read the same: change a word.";
    const word = nameOf(words[changed]);
    if (after !== null) return `${plural(after, "word")} after “${word}”, less than 1% of the difference is left: it is forgotten.`;
    const left = rounded((100 * differences.at(-1)) / differences[changed], 2);
    return `At the end of the sentence, ${left}% of the difference that “${word}” made is left.`;
}
