/* Why a word is predicted: earlier words as dark as the prediction changes without them, and both predictions as bars. */

import { html, svg } from "./dom.js";
import { plural, rounded } from "./format.js";
import { nameOf, percentOf } from "./inside-words.js";

const SHOWN = 8; // words of a prediction
const FAINT = 0.002; // of the strongest influence: below it, no arc

/** How much of the darkest shade an influence gets. The root lets weak ones be seen beside one that outweighs them. */
const shade = (bits, strongest) => Math.sqrt(bits / strongest);

/** The part's content. explain(position, or null for the next word) is called to explain another word. */
export function why(seen, explain) {
    const chart = html("div", { class: "with-without", "aria-live": "polite" });
    const strongest = Math.max(...seen.influences.map((influence) => influence.bits), 1e-9);
    const influences = new Map(seen.influences.map((influence) => [influence.position, influence]));
    const word = (name, position) => {
        const influence = influences.get(position);
        const isTarget = position === seen.target;
        const show = () => chart.replaceChildren(...bars(seen, influence));
        const button = html(
            "button",
            {
                type: "button",
                class: "inside-word",
                "data-keep": `why-${position}`,
                "aria-pressed": isTarget ? "true" : "false",
                "aria-disabled": position === 0 ? "true" : null,
                title: influence ? `without it, the prediction changes by ${rounded(influence.bits)} bits` : null,
                onclick: () => position > 0 && !isTarget && explain(position < seen.words.length ? position : null),
                onpointerenter: influence ? show : null,
                onfocus: influence ? show : null,
            },
            name,
        );
        button.style.setProperty("--share", `${influence ? Math.round(45 * shade(influence.bits, strongest)) : 0}%`);
        return button;
    };
    const words = seen.words.map((name, position) => word(nameOf(name), position));
    const isNext = seen.target === seen.words.length;
    words.push(word(isNext ? `${nameOf(seen.word)}?` : "next?", seen.words.length));
    chart.replaceChildren(...bars(seen, null));
    const top = seen.influences.reduce((best, one) => (one.bits > best.bits ? one : best));
    const most = `${nameOf(seen.words[top.position])}, ${plural(seen.target - top.position, "word")} before`;
    const text = html(
        "p",
        { class: "inside-text arched", role: "group", "aria-label": "The text; the pressed word is explained" },
        ...words,
    );
    arch(text, words, seen, strongest);
    const tried = seen.influences.length;
    return [
        text,
        tried < seen.target && html("p", { class: "hint" }, `Of the ${seen.target} words before it, the last ${tried} are tried.`),
        html("p", {}, "Explained: ", html("b", {}, nameOf(seen.word)), `, which has ${percentOf(Math.exp(seen.logprob))}. `,
            `It leans most on ${most}: without it, the prediction changes by ${rounded(top.bits)} bits.`),
        chart,
    ].filter(Boolean);
}

/** Arcs over the text, from each word to the one that is explained: as strong as its influence. */
function arch(text, words, { influences, target }, strongest) {
    const drawing = svg("svg", { class: "arcs", "aria-hidden": "true" });
    text.append(drawing);
    const draw = () => {
        const origin = text.getBoundingClientRect();
        const top = (word) => {
            const box = word.getBoundingClientRect();
            return [box.left - origin.left + box.width / 2, box.top - origin.top];
        };
        const [toX, toY] = top(words[target]);
        const paths = influences
            .filter(({ bits }) => bits > FAINT * strongest)
            .map(({ position, bits }) => {
                const [x, y] = top(words[position]);
                const peak = Math.min(y, toY) - Math.min(44, 12 + 0.12 * Math.abs(toX - x)); // within the text's padding
                const share = shade(bits, strongest);
                const path = `M${x},${y} C${x},${peak} ${toX},${peak} ${toX},${toY}`;
                return svg("path", { d: path, "stroke-width": 0.75 + 2.5 * share, opacity: 0.25 + 0.75 * share });
            });
        drawing.replaceChildren(...paths);
    };
    new ResizeObserver(draw).observe(text);
}

/** The prediction, and beside it what it would be without one token. */
function bars(seen, influence) {
    const without = influence && new Map(influence.distribution.map((entry) => [entry.word, entry.probability]));
    const known = new Map(seen.distribution.map((entry) => [entry.word, entry.probability]));
    const names = seen.distribution.slice(0, SHOWN).map((entry) => entry.word);
    const largest = Math.max(...known.values(), ...(without?.values() ?? []));
    const bar = (kind, value) => {
        const element = html("span", { class: `bar ${kind}`, "aria-hidden": "true" });
        element.style.setProperty("--share", `${(100 * value) / largest}%`);
        return element;
    };
    const rows = names.map((name) =>
        html(
            "li",
            {},
            html("span", { class: "name" }, nameOf(name)),
            html("span", { class: "value" }, percentOf(known.get(name)), without && ` → ${percentOf(without.get(name))}`),
            bar("with", known.get(name)),
            without && bar("without", without.get(name)),
        ),
    );
    const news = without && [...without].filter(([name]) => !known.has(name)).sort((a, b) => b[1] - a[1]);
    return [
        html("p", {}, influence ? `Without “${nameOf(seen.words[influence.position])}” (the lower bars):` : "The prediction:"),
        html("ol", {}, ...rows),
        news?.length > 0 &&
            html("p", { class: "hint" }, "Then also: ",
                news.slice(0, 3).map(([name, value]) => `${nameOf(name)} ${percentOf(value)}`).join(", ")),
    ].filter(Boolean);
}
