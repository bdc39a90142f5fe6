/* The weights view: the list of the files, and the learning curves of those that are ticked. */

import * as access from "./access.js";
import * as api from "./api.js";
import { NAMES } from "./backends.js";
import { chart, series } from "./chart.js";
import { confirm } from "./confirm.js";
import { byId, html } from "./dom.js";
import { bytes, count, date, dateAndTime, rounded } from "./format.js";
import { bestPerplexity, points } from "./history.js";
import { clear, notify, tell } from "./notice.js";
import { onStore, refresh, store } from "./store.js";
import * as upload from "./upload.js";

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

const notice = byId("weights-notice");
const form = byId("chart-form");
const left = new Set(); // names left out of the chart
let drawnWidth = 0; // of the chart, in pixels

export function start() {
    upload.start();
    form.addEventListener("change", drawChart);
    byId("forget").addEventListener("click", access.forgetAdmin);
    access.onTokens(() => (byId("held").hidden = !access.holdsAdmin()));
    onStore(show);
    new ResizeObserver(() => byId("chart").clientWidth !== drawnWidth && drawChart()).observe(byId("chart"));
}

export function show() {
    if (store.weights === null) return;
    const isEmpty = store.weights.length === 0;
    byId("weights-list").replaceChildren(isEmpty ? nothing() : list(store.weights));
    byId("curves").hidden = isEmpty;
    drawChart();
}

function nothing() {
    return html(
        "p",
        { class: "panel empty" },
        "There are no weights yet. Train some with ",
        html("code", {}, "make train"),
        ", or add a file below.",
    );
}

// Narrow pages lay the table out in blocks, and some browsers then forget that it is a table: hence the roles.
function list(files) {
    const heads = COLUMNS.map(([name, kind]) => html("th", { role: "columnheader", scope: "col", class: kind }, name));
    return html(
        "table",
        { class: "files", role: "table", "aria-label": "Weights files" },
        html("thead", { role: "rowgroup" }, html("tr", { role: "row" }, ...heads, lastHead())),
        html("tbody", { role: "rowgroup" }, ...files.map(row)),
    );
}

function lastHead() {
    return html("th", { role: "columnheader", scope: "col" }, html("span", { class: "visually-hidden" }, "Remove"));
}

function row(weights, index) {
    const name = html("th", { role: "rowheader", scope: "row" }, title(weights, index));
    const remove = html(
        "button",
        { type: "button", "aria-label": `Delete ${weights.name}`, onclick: () => removeFile(weights) },
        "Delete",
    );
    const actions = html("td", { role: "cell", class: "actions" }, remove);
    const facts = weights.problem ? [problem(weights)] : described(weights);
    return html("tr", { role: "row", "data-name": weights.name }, name, ...facts, actions);
}

function title(weights, index) {
    const tag = weights.name === store.initial && html("span", { class: "tag" }, "default");
    if (weights.problem || points(weights, "epoch").length === 0) return html("span", {}, weights.name, tag);
    const box = html("input", {
        type: "checkbox",
        "aria-label": `Show the curve of ${weights.name}`,
        onchange: choose,
    });
    box.checked = !left.has(weights.name);
    function choose() {
        if (box.checked) left.delete(weights.name);
        else left.add(weights.name);
        drawChart();
    }
    return html("label", { class: "compare", "data-series": series(index) }, box, html("span", {}, weights.name, tag));
}

function problem(weights) {
    const span = COLUMNS.length - 1;
    const reason = `It cannot be used: “${weights.problem}”.`;
    return html("td", { role: "cell", class: "problem", colspan: span }, reason);
}

function described(weights) {
    const corpus = weights.config?.corpus;
    const values = [
        NAMES[weights.trained_by] ?? "–",
        typeof corpus === "string" ? corpus : "–",
        `${count(weights.vocabulary)} words`,
        count(weights.hidden_size),
        bytes(weights.size),
        html("time", { title: dateAndTime(weights.modified) }, date(weights.modified)),
        rounded(bestPerplexity(weights)),
    ];
    return values.map((value, index) => {
        const [label, kind] = COLUMNS[index + 1];
        const isBest = index === values.length - 1;
        return html("td", { role: "cell", class: isBest ? `${kind} best` : kind, "data-label": label }, value);
    });
}

function drawChart() {
    const place = byId("chart");
    if (store.weights === null || place.clientWidth === 0) return; // the view is not shown
    const files = store.weights
        .map((weights, index) => ({ weights, index }))
        .filter(({ weights }) => !weights.problem && !left.has(weights.name));
    const isUnfolded = place.querySelector("details")?.open ?? false;
    drawnWidth = place.clientWidth;
    place.replaceChildren(chart(files, form.elements.against.value, { width: drawnWidth, isUnfolded }));
}

async function removeFile(weights) {
    clear(notice);
    const isSure = await confirm({
        title: `Delete ${weights.name}?`,
        text: `The file (${bytes(weights.size)}) is removed from the service's folder. This cannot be undone.`,
        yes: "Delete",
        no: "Keep it",
    });
    if (!isSure) return;
    try {
        await api.deleteWeights(weights.name);
        left.delete(weights.name);
        await refresh();
        notify(notice, `${weights.name} is deleted.`, { kind: "done" });
        byId("main").focus(); // the button that had it is gone
    } catch (error) {
        tell(notice, error, () => removeFile(weights));
    }
}
