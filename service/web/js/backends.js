/* The two back ends: their names, and the choice of one in a form. What the service lacks cannot be chosen, and a note
   says why. */

import { store } from "./store.js";

export const NAMES = { c: "C", torch: "PyTorch" };

/** Let `form` choose among the service's back ends; if the chosen one is gone, choose the first of the rest.
 *
 * note: the element that says what is missing. */
export function offer(form, note) {
    const choices = [...form.elements.backend];
    for (const choice of choices) {
        const wanted = choice.value === "both" ? Object.keys(NAMES) : [choice.value];
        choice.disabled = !wanted.every((backend) => store.backends.includes(backend));
    }
    if (choices.some((choice) => choice.checked && choice.disabled)) {
        form.elements.backend.value = store.backends[0];
    }
    const missing = Object.keys(NAMES).filter((backend) => !store.backends.includes(backend));
    note.textContent = missing.map((backend) => `${NAMES[backend]} is not offered by this service.`).join(" ");
}
