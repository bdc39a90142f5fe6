/* Notices: what went wrong, and a button that offers to try again. */

import { html } from "./dom.js";
import { explain, isRetryable, isStop } from "./errors.js";

/** Show a notice in `place`, instead of what is there. action: {label, run}. */
export function notify(place, text, { kind = "error", action = null } = {}) {
    const button = action && html("button", { type: "button", onclick: action.run }, action.label);
    place.replaceChildren(
        html(
            "div",
            { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" },
            html("p", {}, text),
            button,
        ),
    );
}

export function clear(place) {
    place.replaceChildren();
}

/** Show a failure in `place`; offer `retry` if it may pass. A stop that was asked for is not shown. */
export function tell(place, error, retry) {
    if (isStop(error)) return;
    notify(place, explain(error), { action: isRetryable(error) ? { label: "Try again", run: retry } : null });
}
