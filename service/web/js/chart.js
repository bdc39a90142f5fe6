/* Learning curves, drawn as SVG: the loss of several files over epochs, tokens or seconds. On the left the loss in nats
   per token, on the right the same heights as perplexities, exp(loss). The numbers are below in a table, for whoever
   does not see the curves. */

import { html, svg } from "./dom.js";
import { count, rounded } from "./format.js";
import { points } from "./history.js";

const HEIGHT = 340;
const MARGIN = { top: 26, right: 62, bottom: 42, left: 46 };
const MARKER_LIMIT = 40; // more points than this have a marker at some only, or markers would hide the curve
const SOME = 12;
const MARKERS = [
    "M-3.8 0a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0 -7.6 0z", // disc
    "M-3.3 -3.3h6.6v6.6h-6.6z", // square
    "M0 -4.8l4.8 4.8l-4.8 4.8l-4.8 -4.8z", // diamond
    "M0 -4.6l4.8 8.2h-9.6z", // triangle
    "M0 4.6l4.8 -8.2h-9.6z", // triangle, point down
    "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", // cross
];
const COLOURS = 6;
const SAME_PX = 1; // curves that are nowhere further apart look like one
const AXIS = { epoch: "epochs", tokens: "tokens seen", seconds: "seconds of training" };
const PLACE = {
    epoch: (x) => `epoch ${count(x)}`,
    tokens: (x) => `${count(x)} tokens`,
    seconds: (x) => `${rounded(x)} s`,
};

/** How many curves can be told apart. The first six are solid lines with hollow markers, the others are dashed lines, in
 * the same colours, with filled markers of another shape. */
export const SERIES = 2 * COLOURS;

/** A chart for [{weights, series}], each with a series of its own, from 0 to SERIES - 1.
 *
 * unit: of the x axis, as in history.js.   width: in pixels.   isUnfolded: whether the table is shown. */
export function chart(files, unit, { width, isUnfolded }) {
    const curves = files
        .map(({ weights, series }) => ({ name: weights.name, series, points: points(weights, unit) }))
        .filter((curve) => curve.points.length > 0);
    if (curves.length === 0) {
        const reason =
            files.length > 0 ? "The chosen files keep no history." : "Tick files in the list to compare them.";
        return html("p", { class: "empty" }, reason);
    }
    const scales = scalesFor(curves, width);
    for (const [index, curve] of curves.entries()) {
        curve.under = curves.slice(0, index).find((other) => isSame(curve, other, scales)) ?? null;
        curve.near = svg("circle", { class: "near", r: 5, visibility: "hidden" });
        curve.value = html("span", { class: "value" });
    }
    const image = drawing(curves, unit, width, scales);
    return html(
        "figure",
        { class: "chart" },
        image,
        html("ul", { class: "keys", "aria-label": "Curves" }, ...keys(curves, image), styles()),
        table(curves, unit, isUnfolded),
    );
}

/** Whether two curves lie on each other: training is reproducible, so one may hide another, and the key says so. */
function isSame(curve, other, { x, y }) {
    const isClose = (scale, a, b) => (a === null || b === null ? a === b : Math.abs(scale(a) - scale(b)) < SAME_PX);
    return (
        curve.points.length === other.points.length &&
        curve.points.every(
            (point, index) =>
                isClose(x, point.x, other.points[index].x) &&
                isClose(y, point.validation, other.points[index].validation),
        )
    );
}

function drawing(curves, unit, width, scales) {
    const names = curves.map((curve) => curve.name).join(", ");
    const image = svg(
        "svg",
        {
            role: "img",
            "aria-label": `Loss over ${AXIS[unit]} of ${names}. The numbers are in the table below.`,
            viewBox: `0 0 ${width} ${HEIGHT}`,
            height: HEIGHT,
        },
        ...axes(scales, unit, width),
        ...curves.map((curve) => drawn(curve, scales)),
    );
    for (const kind of ["pointerdown", "pointermove"]) {
        image.addEventListener(kind, (event) => {
            const pointer = event.clientX - image.getBoundingClientRect().left;
            for (const curve of curves) read(curve, pointer, scales, unit);
        });
    }
    return image;
}

function scalesFor(curves, width) {
    const all = curves.flatMap((curve) => curve.points);
    const losses = all.flatMap((point) => [point.training, point.validation]).filter((loss) => loss !== null);
    const yTicks = ticks(least(losses), most(losses), 6);
    const from = Math.min(0, least(all.map((point) => point.x)));
    const last = most(all.map((point) => point.x));
    const to = last > from ? last : from + 1;
    const xTicks = ticks(from, to, width / 90);
    const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom];
    return {
        x: linear(from, to, left, right),
        y: linear(yTicks[0], yTicks.at(-1), bottom, top),
        xTicks: xTicks.filter((value) => value >= from && value <= to),
        yTicks,
    };
}

const least = (values) => values.reduce((a, b) => Math.min(a, b));
const most = (values) => values.reduce((a, b) => Math.max(a, b));
const linear = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

/** Return round values that span [low, high], about `wanted` of them. */
function ticks(low, high, wanted) {
    const span = high - low || Math.abs(high) || 1;
    const power = 10 ** Math.floor(Math.log10(span / wanted));
    const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => span / step <= wanted);
    const first = Math.floor(low / size + 1e-9);
    const last = Math.max(first + 1, Math.ceil(high / size - 1e-9));
    return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * size);
}

function axes({ x, y, xTicks, yTicks }, unit, width) {
    const [left, right, bottom] = [MARGIN.left, width - MARGIN.right, HEIGHT - MARGIN.bottom];
    const text = (content, at) => svg("text", at, content);
    return [
        ...yTicks.flatMap((value) => [
            svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
            text(rounded(value, 2), { x: left - 8, y: y(value) + 4, "text-anchor": "end" }),
            text(perplexity(value), { x: right + 8, y: y(value) + 4 }),
        ]),
        ...xTicks.map((value) => text(compact(value), { x: x(value), y: bottom + 18, "text-anchor": "middle" })),
        svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
        text("loss, nats per token", { x: 0, y: 12 }),
        text("perplexity", { x: width, y: 12, "text-anchor": "end" }),
        text(AXIS[unit], { x: (left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }),
    ];
}

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const compact = (value) => COMPACT.format(value);
const perplexity = (loss) => rounded(Math.exp(Math.min(loss, 700)));

function drawn(curve, { x, y }) {
    const line = (kind, name) => {
        const found = curve.points.filter((point) => point[kind] !== null);
        const path = found.map((point) => `${x(point.x).toFixed(1)},${y(point[kind]).toFixed(1)}`).join(" ");
        return svg("polyline", { class: name, points: path });
    };
    const evaluated = curve.points.filter((point) => point.validation !== null);
    const every = evaluated.length > MARKER_LIMIT ? Math.ceil(evaluated.length / SOME) : 1;
    const marked = evaluated.filter((_, index) => index % every === 0);
    return svg(
        "g",
        { "data-series": curve.series },
        line("training", "curve training"),
        line("validation", curve.under ? "curve over" : "curve"),
        ...marked.map((point) => marker(curve.series, x(point.x), y(point.validation))),
        curve.near,
    );
}

function marker(series, x, y) {
    const shape = MARKERS[series < COLOURS ? series : (series + COLOURS / 2) % COLOURS];
    return svg("path", { class: "marker", d: shape, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
}

/** Show the curve's point nearest to the pointer in its key, and mark it. */
function read({ points, near, value }, pointer, { x, y }, unit) {
    const distance = (point) => Math.abs(x(point.x) - pointer);
    const point = points.reduce((best, other) => (distance(other) < distance(best) ? other : best));
    near.setAttribute("cx", x(point.x));
    near.setAttribute("cy", y(point.validation ?? point.training));
    near.setAttribute("visibility", "visible");
    value.textContent = `${PLACE[unit](point.x)}: ${described(point)}`;
}

function described({ training, validation, isSampled }) {
    const parts = [];
    if (validation !== null) parts.push(`validation ${rounded(validation, 4)} (perplexity ${perplexity(validation)})`);
    if (training !== null) parts.push(`training ${trainingLoss({ training, isSampled })}`);
    return parts.join(", ");
}

const trainingLoss = ({ training, isSampled }) => rounded(training, 4) + (isSampled ? " (sampled)" : "");

/** Return a key for each curve. Pointing at a key fades the other curves; clicking it keeps them faded. */
function keys(curves, image) {
    let kept = null;
    function show(series) {
        for (const group of image.querySelectorAll("g")) {
            group.classList.toggle("faded", series !== null && Number(group.dataset.series) !== series);
        }
    }
    return curves.map((curve) => {
        const name = html("button", { type: "button", class: "link", "aria-pressed": "false", onclick: keep }, curve.name);
        function keep() {
            kept = kept === curve.series ? null : curve.series;
            for (const button of name.closest("ul").querySelectorAll("button")) {
                button.setAttribute("aria-pressed", String(button === name && kept !== null));
            }
            show(kept);
        }
        const note = curve.under && ` (lies on ${curve.under.name})`;
        return html(
            "li",
            {
                "data-series": curve.series,
                onpointerenter: () => show(curve.series),
                onpointerleave: () => show(kept),
            },
            sample(curve),
            html("span", {}, name, note, " ", curve.value),
        );
    });
}

function sample(curve) {
    return svg(
        "svg",
        { viewBox: "0 0 36 12", height: 12, "aria-hidden": "true" },
        svg("line", { class: curve.under ? "curve over" : "curve", x1: 0, x2: 36, y1: 6, y2: 6 }),
        marker(curve.series, 18, 6),
    );
}

/** Return the key of the two kinds of line. */
function styles() {
    const dots = svg(
        "svg",
        { viewBox: "0 0 36 12", height: 12, "aria-hidden": "true" },
        svg("line", { class: "curve training", x1: 2, x2: 36, y1: 6, y2: 6 }),
    );
    return html(
        "li",
        {},
        dots,
        html(
            "span",
            {},
            "dotted: on the training text; the others: on the validation text. Point at the chart to read it. Point at a " +
                "name, or click it, to fade the other curves.",
        ),
    );
}

function table(curves, unit, isUnfolded) {
    const cell = (text) => html("td", {}, text);
    const lines = curves.flatMap((curve) =>
        curve.points.map((point) =>
            html(
                "tr",
                {},
                html("th", { scope: "row" }, curve.name),
                html("td", {}, count(point.x)),
                cell(rounded(point.validation, 4)),
                cell(point.training === null ? rounded(null, 4) : trainingLoss(point)),
            ),
        ),
    );
    const heads = ["file", AXIS[unit], "validation loss", "training loss"].map((head) =>
        html("th", { scope: "col" }, head),
    );
    const body = html("tbody");
    for (const line of lines) body.append(line); // one by one: a long history would be too many arguments
    return html(
        "details",
        { open: isUnfolded },
        html("summary", {}, "The numbers"),
        html(
            "div",
            { class: "numbers", tabindex: 0, role: "region", "aria-label": "The curves' numbers" },
            html("table", {}, html("thead", {}, html("tr", {}, ...heads)), body),
        ),
    );
}
