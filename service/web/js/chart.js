/* Learning curves, drawn as SVG: the loss of several files over epochs, tokens or seconds. On the left the loss in nats
   per token, on the right the same heights as perplexities, exp(loss). The numbers are below in a table, for whoever
   does not see the curves. */

import { html, svg } from "./dom.js";
import { count, rounded } from "./format.js";
import { points } from "./history.js";

const HEIGHT = 340;
const MARGIN = { top: 26, right: 62, bottom: 42, left: 46 };
const MARKER_LIMIT = 40; // more points than this, and markers would hide the curve
const MARKERS = ["circle", "square", "diamond", "triangle"];
const COLOURS = 6;
const SAME_PX = 1; // curves that are nowhere further apart look like one
const AXIS = { epoch: "epochs", tokens: "tokens seen", seconds: "seconds of training" };
const PLACE = {
    epoch: (x) => `epoch ${count(x)}`,
    tokens: (x) => `${count(x)} tokens`,
    seconds: (x) => `${rounded(x)} s`,
};

/** Return the colour of the file of this index, for `data-series`. */
export const series = (index) => index % COLOURS;

/** A chart for [{weights, index}], where index chooses the colour and marker.
 *
 * unit: of the x axis, as in history.js.   width: in pixels.   isUnfolded: whether the table is shown. */
export function chart(files, unit, { width, isUnfolded }) {
    const curves = files
        .map(({ weights, index }) => ({ name: weights.name, index, points: points(weights, unit) }))
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
    return html(
        "figure",
        { class: "chart" },
        drawing(curves, unit, width, scales),
        html("ul", { class: "keys", "aria-label": "Curves" }, ...curves.map(key), styles()),
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
    const markers = evaluated.length > MARKER_LIMIT ? [] : evaluated;
    return svg(
        "g",
        { "data-series": series(curve.index) },
        line("training", "curve training"),
        line("validation", curve.under ? "curve over" : "curve"),
        ...markers.map((point) => marker(curve.index, x(point.x), y(point.validation))),
        curve.near,
    );
}

function marker(index, cx, cy) {
    const [x, y] = [Number(cx.toFixed(1)), Number(cy.toFixed(1))];
    switch (MARKERS[index % MARKERS.length]) {
        case "circle":
            return svg("circle", { class: "marker", cx: x, cy: y, r: 3.5 });
        case "square":
            return svg("rect", { class: "marker", x: x - 3.2, y: y - 3.2, width: 6.4, height: 6.4 });
        case "diamond":
            return svg("path", { class: "marker", d: `M${x} ${y - 4.6}l4.6 4.6l-4.6 4.6l-4.6 -4.6z` });
        default:
            return svg("path", { class: "marker", d: `M${x} ${y - 4.6}l4.6 8h-9.2z` });
    }
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

function described({ training, validation }) {
    const parts = [];
    if (validation !== null) parts.push(`validation ${rounded(validation, 4)} (perplexity ${perplexity(validation)})`);
    if (training !== null) parts.push(`training ${rounded(training, 4)}`);
    return parts.join(", ");
}

function key(curve) {
    const sample = svg(
        "svg",
        { viewBox: "0 0 36 12", height: 12, "aria-hidden": "true" },
        svg("line", { class: curve.under ? "curve over" : "curve", x1: 0, x2: 36, y1: 6, y2: 6 }),
        marker(curve.index, 18, 6),
    );
    const note = curve.under && ` (lies on ${curve.under.name})`;
    return html(
        "li",
        { "data-series": series(curve.index) },
        sample,
        html("span", {}, html("b", {}, curve.name), note, " ", curve.value),
    );
}

/** Return the key of the two kinds of line. */
function styles() {
    const sample = svg(
        "svg",
        { viewBox: "0 0 36 12", height: 12, "aria-hidden": "true" },
        svg("line", { class: "curve training", x1: 2, x2: 36, y1: 6, y2: 6 }),
    );
    return html(
        "li",
        { "data-series": 5 },
        sample,
        html("span", {}, "dotted: on the training text; the others: on the validation text. Point at the chart to read it."),
    );
}

function table(curves, unit, isUnfolded) {
    const cell = (value) => html("td", {}, rounded(value, 4));
    const lines = curves.flatMap((curve) =>
        curve.points.map((point) =>
            html(
                "tr",
                {},
                html("th", { scope: "row" }, curve.name),
                html("td", {}, count(point.x)),
                cell(point.validation),
                cell(point.training),
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
