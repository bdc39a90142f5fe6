/* The weights view: the list of the files, and the learning curves of those that are ticked. */

import * as access from "./access.js";
import * as api from "./api.js";
import { SERIES, chart } from "./chart.js";
import { confirm } from "./confirm.js";
import { byId, html } from "./dom.js";
import { arranged, list } from "./files.js";
import { bytes, count } from "./format.js";
import { points } from "./history.js";
import { clear, notify, tell } from "./notice.js";
import { onStore, refresh, store } from "./store.js";
import * as upload from "./upload.js";

const MANY = 8; // files, from which on the list can be sorted and filtered

const notice = byId("weights-notice");
const form = byId("chart-form"); // its fields for the list stand above that
const field = form.elements;
const boxes = new Map(); // by name, of the files that have a curve and are listed
const left = new Set(); // names that were left out of the chart
const chosen = new Map(); // names in the chart, and the series of each: its colour, line and marker
let drawnWidth = 0; // of the chart, in pixels

export function start() {
    upload.start();
    field.against.addEventListener("change", drawChart);
    field.filter.addEventListener("input", showList);
    field.order.addEventListener("change", showList);
    byId("untick").addEventListener("click", untick);
    byId("forget").addEventListener("click", access.forgetAdmin);
    access.onTokens(() => (byId("held").hidden = !access.holdsAdmin()));
    onStore(show);
    new ResizeObserver(() => byId("chart").clientWidth !== drawnWidth && drawChart()).observe(byId("chart"));
}

export function show() {
    if (store.weights === null) return;
    const isEmpty = store.weights.length === 0;
    byId("curves").hidden = byId("about-list").hidden = isEmpty;
    byId("list-tools").hidden = store.weights.length < MANY && !field.filter.value;
    fill();
    showList();
    drawChart();
}

/** Choose what is in the chart: all files that have a curve and were not left out, as far as there are series. */
function fill() {
    const names = store.weights.filter(hasCurve).map((weights) => weights.name);
    for (const name of chosen.keys()) if (!names.includes(name)) chosen.delete(name);
    for (const name of names) if (!left.has(name)) add(name);
}

function add(name) {
    if (chosen.has(name)) return;
    const taken = new Set(chosen.values());
    const free = Array.from({ length: SERIES }, (_, series) => series).find((series) => !taken.has(series));
    if (free !== undefined) chosen.set(name, free);
}

const hasCurve = (weights) => !weights.problem && points(weights, "epoch").length > 0;

function showList() {
    const place = byId("weights-list");
    boxes.clear();
    if (store.weights.length === 0) {
        place.replaceChildren(nothing());
        return;
    }
    const files = arranged(store.weights, field.filter.value, field.order.value);
    place.classList.toggle("long", files.length > MANY);
    const isAll = files.length === store.weights.length;
    byId("listed").textContent = isAll ? "" : `${count(files.length)} of ${count(store.weights.length)} files`;
    place.replaceChildren(
        files.length > 0
            ? list(files, { title, remove })
            : html("p", { class: "panel empty" }, `No file here has “${field.filter.value.trim()}” in its name or corpus.`),
    );
    showChosen();
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

/** Return the head of a file's row: its name, and the box that chooses its curve if it has one. */
function title(weights) {
    const { name } = weights;
    const tag = name === store.initial && html("span", { class: "tag" }, "default");
    if (!hasCurve(weights)) return html("span", {}, name, tag);
    const box = html("input", { type: "checkbox", "aria-label": `Show the curve of ${name}`, onchange: choose });
    function choose() {
        if (box.checked) {
            left.delete(name);
            add(name);
        } else leaveOut(name);
        showChosen();
        drawChart();
    }
    boxes.set(name, box);
    return html("label", { class: "compare" }, box, html("span", {}, name, tag));
}

function leaveOut(name) {
    left.add(name);
    chosen.delete(name);
}

function untick() {
    for (const name of [...chosen.keys(), ...boxes.keys()]) leaveOut(name);
    showChosen();
    drawChart();
}

function showChosen() {
    const isFull = chosen.size === SERIES;
    for (const [name, box] of boxes) {
        box.checked = chosen.has(name);
        box.disabled = isFull && !box.checked;
        if (box.checked) box.parentElement.dataset.series = chosen.get(name);
        else delete box.parentElement.dataset.series;
    }
    byId("full").hidden = !isFull;
}

function drawChart() {
    const place = byId("chart");
    if (store.weights === null || place.clientWidth === 0) return; // the view is not shown
    const files = store.weights
        .filter((weights) => chosen.has(weights.name))
        .map((weights) => ({ weights, series: chosen.get(weights.name) }));
    const isUnfolded = place.querySelector("details")?.open ?? false;
    drawnWidth = place.clientWidth;
    place.replaceChildren(chart(files, field.against.value, { width: drawnWidth, isUnfolded }));
}

async function remove(weights) {
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
    } catch (error) {
        tell(notice, error, () => remove(weights));
        return;
    }
    left.delete(weights.name);
    notify(notice, `${weights.name} is deleted.`, { kind: "done" });
    await refresh();
    byId("main").focus(); // the button that had it is gone
}
