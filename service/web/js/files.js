/* The list of the weights files: which of them it shows, in what order, and a row for each. */

import { NAMES } from "./backends.js";
import { html } from "./dom.js";
import { bytes, count, date, dateAndTime, rounded } from "./format.js";
import { bestPerplexity, unigramPerplexity } from "./history.js";

const COLUMNS = [
    ["File"],
    ["Trained by"],
    ["Corpus"],
    ["Vocabulary", "number"],
    ["Hidden", "number"],
    ["Size", "number"],
    ["Date", "number"],
    ["Best validation perplexity", "number"],
];

const by = (value) => (a, b) => value(a) - value(b);
const ORDERS = {
    name: () => 0, // as the service lists them
    perplexity: by((weights) => bestPerplexity(weights) ?? Number.MAX_VALUE),
    date: by((weights) => -weights.modified),
    size: by((weights) => -weights.size),
};

/** Return the files that have `filter` in what the list says of them, in the order of that name. */
export function arranged(files, filter, order) {
    const wanted = filter.trim().toLowerCase();
    const says = (weights) => [weights.name, NAMES[weights.trained_by], corpus(weights)].join("\n").toLowerCase();
    return files.filter((weights) => says(weights).includes(wanted)).toSorted(ORDERS[order] ?? ORDERS.name);
}

/** The list as a table. title(weights): the content of a row's head.   remove(weights): asks, and removes.
 *
 * Narrow pages lay the table out in blocks, and some browsers then forget that it is a table: hence the roles. */
export function list(files, { title, remove }) {
    const heads = COLUMNS.map(([name, kind]) => html("th", { role: "columnheader", scope: "col", class: kind }, name));
    const last = html("th", { role: "columnheader", scope: "col" }, html("span", { class: "visually-hidden" }, "Remove"));
    return html(
        "table",
        { class: "files", role: "table", "aria-label": "Weights files" },
        html("thead", { role: "rowgroup" }, html("tr", { role: "row" }, ...heads, last)),
        html("tbody", { role: "rowgroup" }, ...files.map((weights) => row(weights, title(weights), remove))),
    );
}

function row(weights, title, remove) {
    const button = html(
        "button",
        { type: "button", "aria-label": `Delete ${weights.name}`, onclick: () => remove(weights) },
        "Delete",
    );
    return html(
        "tr",
        { role: "row", "data-name": weights.name },
        html("th", { role: "rowheader", scope: "row" }, title),
        ...(weights.problem ? [problem(weights)] : described(weights)),
        html("td", { role: "cell", class: "actions" }, button),
    );
}

function problem(weights) {
    const span = COLUMNS.length - 1;
    const reason = `It cannot be used: “${weights.problem}”.`;
    return html("td", { role: "cell", class: "problem", colspan: span }, reason);
}

function described(weights) {
    const values = [
        trainedBy(weights),
        corpus(weights) || "–",
        `${count(weights.vocabulary)} words`,
        count(weights.hidden_size),
        bytes(weights.size),
        html("time", { title: dateAndTime(weights.modified) }, date(weights.modified)),
        perplexities(weights),
    ];
    return values.map((value, index) => {
        const [label, kind] = COLUMNS[index + 1];
        return html("td", { role: "cell", class: kind, "data-label": label }, value);
    });
}

function trainedBy(weights) {
    const name = NAMES[weights.trained_by] ?? "–";
    const members = weights.config?.ensemble;
    return Array.isArray(members) ? html("span", {}, name, " ", html("small", {}, `ensemble of ${members.length}`)) : name;
}

function corpus(weights) {
    const name = weights.config?.corpus;
    return typeof name === "string" ? name : "";
}

/** Return the best perplexity, and beside it those that it can be measured by. */
function perplexities(weights) {
    const unigram = unigramPerplexity(weights);
    const yardsticks = `uniform ${count(weights.vocabulary)}${unigram === null ? "" : `, unigram ${rounded(unigram)}`}`;
    return html("span", {}, html("b", {}, rounded(bestPerplexity(weights))), " ", html("small", {}, yardsticks));
}
