/* The fields of a form: their values as the service wants them, and its complaints beside them. */

import { byId, html } from "./dom.js";
import { sentence } from "./errors.js";

/** Something typed in that is no number at all, or one that JavaScript cannot carry. */
export class FieldError extends Error {
    constructor(field, message) {
        super(message);
        this.field = field;
    }
}

/** A number field's value; null where it is empty. Raises FieldError. Its limits are the service's matter. */
export function numberOf(field) {
    if (field.validity.badInput) throw new FieldError(field, "must be a number");
    if (field.value === "") return null;
    const value = Number(field.value);
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw new FieldError(field, `must be at most ${Number.MAX_SAFE_INTEGER} here`);
    }
    return value;
}

/** Enter makes a line in a text field; with Ctrl or Command it sends the form, as elsewhere. */
export function sendByKeyboard(field) {
    field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        field.form.requestSubmit();
    });
}

/** Show what is wrong with fields of `form`: [{field: its name, message}]. Returns whether all of them were found. */
export function complain(form, complaints) {
    let first = null;
    let isComplete = complaints.length > 0;
    for (const [name, message] of gathered(complaints)) {
        const field = form.elements[name];
        if (!(field instanceof HTMLElement)) {
            isComplete = false;
            continue;
        }
        byId(`${field.id}-error`)?.remove(); // two back ends may complain of the same
        const label = field.labels[0].textContent.trim();
        const note = html("p", { class: "field-error", id: `${field.id}-error`, role: "alert" }, told(label, message));
        field.after(note);
        field.setAttribute("aria-invalid", "true");
        field.setAttribute("aria-errormessage", note.id);
        first ??= field;
    }
    const folded = first?.closest("details");
    if (folded) folded.open = true;
    first?.focus();
    return isComplete;
}

export function clearComplaints(form) {
    for (const note of form.querySelectorAll(".field-error")) note.remove();
    for (const field of form.querySelectorAll("[aria-invalid]")) {
        field.removeAttribute("aria-invalid");
        field.removeAttribute("aria-errormessage");
    }
}

/** One message for a field. Of a field that takes a text or a list ("stop.list.0"), the service complains of both. */
function gathered(complaints) {
    const messages = new Map();
    for (const { field, message } of complaints) {
        const name = field.split(".")[0];
        const isOfType = message.startsWith("Input should be a valid");
        if (!messages.has(name) || (messages.get(name).isOfType && !isOfType))
            messages.set(name, { message, isOfType });
    }
    return [...messages].map(([name, { message }]) => [name, message]);
}

function told(label, message) {
    const plain = message.replace(/^(Input|String|List) should /, "must ").replace(/ after validation, not \d+$/, "");
    return sentence(`${label} ${plain}`);
}
