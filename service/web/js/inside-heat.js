/* The hidden state as a heat map: a row for each unit, a column for each word. A click chooses a unit; dragging sideways
   brushes a range of words. */

import { html, svg } from "./dom.js";
import { nameOf } from "./inside-words.js";

const MAX_UNITS = 256; // rows that are drawn; more are thinned out
const MAX_LABELS = 24; // words that are written under their columns
const DRAG_PX = 5; // a pointer that moves less chooses a unit
const ABOVE = [30, 120, 200]; // the colours of the first two curves
const BELOW = [215, 110, 30];

export class Heat {
    #canvas;
    #units;
    #marks = svg("svg", { class: "marks", "aria-hidden": "true", preserveAspectRatio: "none" });

    /** on: choose(unit); brush(first, last), the words of a range, while it is dragged. */
    constructor({ words, state, hidden_size: size }, on) {
        const step = Math.ceil(size / MAX_UNITS);
        this.#units = Array.from({ length: Math.ceil(size / step) }, (_, row) => row * step);
        this.#canvas = html("canvas", {
            class: "heat",
            width: words.length,
            height: this.#units.length,
            role: "img",
            "aria-label": `The hidden state: ${size} units by ${words.length} words`,
        });
        this.#marks.setAttribute("viewBox", `0 0 ${words.length} ${this.#units.length}`);
        this.#paint(state);
        this.#listen(on);
        this.element = html(
            "div",
            { class: "heat-map" },
            step > 1 && html("p", { class: "hint" }, `One unit in ${step} is drawn.`),
            html("div", { class: "heat-place" }, this.#canvas, this.#marks),
            labels(words),
        );
    }

    /** Frame the words first to last, and underline the rows of units: the chosen one, and those like it. */
    mark(first, last, chosen, others) {
        const height = this.#units.length;
        const row = (unit, kind) => {
            const at = this.#units.findLastIndex((drawn) => drawn <= unit) + 0.5;
            return svg("line", { x1: first, x2: last + 1, y1: at, y2: at, class: kind });
        };
        this.#marks.replaceChildren(
            svg("rect", { x: first, y: 0, width: last + 1 - first, height, class: "brushed" }),
            ...others.map((unit) => row(unit, "alike")),
            row(chosen, "chosen"),
        );
    }

    /** A pixel for each unit and word; the style sheet makes them large. */
    #paint(state) {
        const { width, height } = this.#canvas;
        const context = this.#canvas.getContext("2d");
        const image = context.createImageData(width, height);
        for (const [row, unit] of this.#units.entries()) {
            for (let column = 0; column < width; column++) {
                const value = state[column][unit];
                const at = 4 * (row * width + column);
                image.data.set(value > 0 ? ABOVE : BELOW, at);
                image.data[at + 3] = Math.round(255 * Math.abs(value));
            }
        }
        context.putImageData(image, 0, 0);
    }

    #listen({ choose, brush }) {
        let from = null; // where the pointer was pressed
        let isDragged = false;
        const column = (x) => this.#cell(x, "left", "width", this.#canvas.width);
        this.#canvas.addEventListener("pointerdown", (event) => {
            if (!event.isPrimary || event.button !== 0) return;
            [from, isDragged] = [event.clientX, false];
            this.#canvas.setPointerCapture(event.pointerId);
        });
        this.#canvas.addEventListener("pointermove", (event) => {
            if (from === null || !event.isPrimary) return;
            isDragged ||= Math.abs(event.clientX - from) > DRAG_PX;
            if (isDragged) brush(...[column(from), column(event.clientX)].sort((a, b) => a - b));
        });
        this.#canvas.addEventListener("pointerup", (event) => {
            if (from !== null && !isDragged) choose(this.#units[this.#cell(event.clientY, "top", "height", this.#canvas.height)]);
            from = null;
        });
        this.#canvas.addEventListener("pointercancel", () => (from = null)); // the finger scrolls the page
    }

    /** Return which of `count` columns or rows a place in the window belongs to. */
    #cell(place, start, size, count) {
        const box = this.#canvas.getBoundingClientRect();
        return Math.max(0, Math.min(count - 1, Math.floor(((place - box[start]) / box[size]) * count)));
    }
}

/** The words under their columns; of a long text, some of them. */
function labels(words) {
    const step = Math.ceil(words.length / MAX_LABELS);
    const row = html("p", { class: "heat-words", "aria-hidden": "true" });
    row.style.setProperty("--columns", words.length);
    row.append(...words.map((word, index) => html("span", {}, index % step === 0 ? nameOf(word) : "")));
    return row;
}
