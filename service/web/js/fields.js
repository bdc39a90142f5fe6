/* The fields of a form: their values in the service's terms, and its complaints beside them. */

import { byId, html } from "./dom.js";
import { sentence } from "./errors.js";

/** The text in a number field is not a number, or one too large for JavaScript. */
export class FieldError extends Error {
    constructor(field, message) {
        super(message);
        this.field = field;
    }
}

/** Return a number field's value; null if it is empty. Throws FieldError. The service checks its limits. */
export function numberOf(field) {
    if (field.validity.badInput) throw new FieldError(field, "must be a number");
    if (field.value === "") return null;
    const value = Number(field.value);
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw new FieldError(field, `must be at most ${Number.MAX_SAFE_INTEGER} here`);
    }
    return value;
}

/** Let Ctrl+Enter or Command+Enter submit the form, as elsewhere; Enter begins a new line. */
export function sendByKeyboard(field) {
    field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        field.form.requestSubmit();
    });
}

/**
 * Show what is wrong with fields of `form`: [{field: its name, message}], and move the focus to the first of them.
 * Returns whether it has all of them, each with a label. If the other back end has complained before, the focus stays:
 * the person may already be typing elsewhere.
 */
export function complain(form, complaints) {
    const isRepeated = form.querySelector(".field-error") !== null;
    let first = null;
    let isComplete = complaints.length > 0;
    for (const { field: path, message } of complaints) {
        const [name] = path.split(".");
        const field = form.elements[name];
        if (!field?.labels?.length) { // it has none if it is hidden
            isComplete = false;
            continue;
        }
        byId(`${field.id}-error`)?.remove();
        const label = field.labels[0].textContent.trim();
        const note = html("p", { class: "field-error", id: `${field.id}-error`, role: "alert" }, sentence(`${label} ${message}`));
        field.after(note);
        field.setAttribute("aria-invalid", "true");
        field.setAttribute("aria-errormessage", note.id);
        first ??= field;
    }
    if (first && !isRepeated) {
        const folded = first.closest("details");
        if (folded) folded.open = true;
        first.focus();
    }
    return isComplete;
}

export function clearComplaints(form) {
    for (const note of form.querySelectorAll(".field-error")) note.remove();
    for (const field of form.querySelectorAll("[aria-invalid]")) {
        field.removeAttribute("aria-invalid");
        field.removeAttribute("aria-errormessage");
    }
}
