/* The hidden state: its heat map, what is around one unit, and which units behave like it. */

import * as api from "./api.js";
import { alike, pearson } from "./correlation.js";
import { html } from "./dom.js";
import { explain } from "./errors.js";
import { rounded } from "./format.js";
import { Heat } from "./inside-heat.js";
import { nameOf } from "./inside-words.js";

const LISTED = 6; // units that behave most alike
const FEWEST = 3; // words over which units are compared: over two, all go together
const FEW = 10; // words over which many units go together by chance
const FEATURES = [
    ["the place in the text", (words, position) => position],
    ["a capital letter", (words, position) => Number(/^[A-Z]/.test(words[position]))],
    ["coming after “the”", (words, position) => Number(/^the$/i.test(words[position - 1] ?? ""))],
    ["the length of the word", (words, position) => (words[position] === "<EOS>" ? 0 : words[position].length)],
];

let chosen = 0; // the unit: it stays when another text is looked into

/** The part's content. */
export function state(seen, backend) {
    if (!seen.state) return [html("p", {}, "The state is drawn for texts of up to 120 words: shorten the text to see it.")];
    const range = { first: 0, last: seen.words.length - 1 };
    const about = html("div", { class: "unit", role: "status" });
    const similar = html("div", { class: "alike", role: "status" });
    const field = html("input", {
        id: "inside-unit",
        type: "number",
        min: 0,
        max: seen.hidden_size - 1,
        step: 1,
        "data-keep": "unit",
        onchange: () => choose(Math.trunc(Number(field.value)) || 0),
    });
    const heat = new Heat(seen, { choose, brush });
    const [from, to] = ["first", "last"].map((end) =>
        html(
            "select",
            {
                id: `inside-${end}`,
                "data-keep": end,
                onchange: () => brush(...[from, to].map((select) => Number(select.value)).sort((a, b) => a - b)),
            },
            ...seen.words.map((word, position) => new Option(`${position} ${nameOf(word)}`, position)),
        ),
    );
    async function choose(unit) {
        chosen = Math.max(0, Math.min(seen.hidden_size - 1, unit));
        const asked = (field.value = chosen);
        const tinted = seen.words.map((word, position) => cell(word, seen.state[position][asked]));
        const text = html("p", { class: "inside-text", role: "group", "aria-label": `The text, by unit ${asked}` }, ...tinted);
        about.replaceChildren(text);
        compare();
        try {
            const effects = await api.unit(seen.weights.name, asked, backend);
            if (chosen === asked) about.replaceChildren(text, correlations(seen, asked), ...lists(effects));
        } catch (error) {
            if (chosen === asked) about.replaceChildren(text, html("p", { class: "field-error" }, explain(error)));
        }
    }
    function brush(first, last) {
        Object.assign(range, { first, last });
        compare();
    }
    function compare() {
        [from.value, to.value] = [range.first, range.last];
        const found = companions(seen.state, range);
        heat.mark(range.first, range.last, chosen, found.units);
        similar.replaceChildren(...found.content((unit) => choose(unit)));
    }
    choose(chosen);
    const labelled = (label, control) => html("div", { class: "field" }, html("label", { for: control.id }, label), control);
    return [
        heat.element,
        html(
            "div",
            { class: "state-choices" },
            labelled(`Unit, 0 to ${seen.hidden_size - 1}`, field),
            labelled("From word", from),
            labelled("To word", to),
        ),
        similar,
        about,
    ];
}

/** The units that go with the chosen one, and against it, over a range of words: {units, content(choose)}. */
function companions(state, { first, last }) {
    const count = last - first + 1;
    const say = (text) => ({ units: [], content: () => [html("p", {}, text)] });
    if (count < FEWEST) return say("Take three words or more: over fewer, all units go together.");
    const found = alike(state, chosen, first, last);
    if (found === null) return say(`Unit ${chosen} has the same value at all of these words.`);
    const together = found.filter(({ r }) => r > 0).slice(0, LISTED);
    const against = found.filter(({ r }) => r < 0).slice(-LISTED).reverse();
    const content = (choose) => [
        html("h4", {}, `Units like ${chosen}, over ${count} words`),
        ...[["Rise and fall with it (r):", together], ["Do the opposite (r):", against]].map(([label, units]) =>
            html("p", { class: "companions" }, label, " ", ...(units.length > 0 ? units.map((one) => companion(one, choose)) : ["none"])),
        ),
        count < FEW && html("p", { class: "hint" }, "Over so few words, many units go together by chance."),
    ].filter(Boolean);
    return { units: [...together, ...against].map(({ unit }) => unit), content };
}

function companion({ unit, r }, choose) {
    return html(
        "button",
        { type: "button", class: "companion", "data-keep": `unit-${unit}`, onclick: () => choose(unit) },
        `unit ${unit} `,
        html("span", { class: "value" }, signed(r)),
    );
}

const signed = (r) => `${r < 0 ? "−" : ""}${Math.abs(r).toFixed(2)}`;

function cell(word, value) {
    const element = html("span", { class: `inside-word ${value > 0 ? "above" : "below"}` }, nameOf(word));
    element.style.setProperty("--share", `${Math.round(45 * Math.abs(value))}%`);
    element.title = rounded(value, 2);
    return element;
}

/** How the unit goes with simple features of the text: r, and no meaning promised. */
function correlations({ words, state }, unit) {
    const values = state.map((row) => row[unit]);
    const shown = FEATURES.map(([name, of]) => [name, pearson(values, words.map((_, position) => of(words, position)))])
        .filter(([, r]) => r !== null)
        .map(([name, r]) => `${name} ${signed(r)}`);
    return html("p", { class: "hint" }, `Over these ${words.length} words it correlates (r) with `, shown.join(", "),
        ". So few words prove nothing: try another text.");
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
