/* Figures: numbers with their names. */

import { html } from "./dom.js";

/** Return a figure and its name, for a <dl class="figures">. */
export function figure(name, ...value) {
    return html("div", {}, html("dt", {}, name), html("dd", {}, ...value));
}
