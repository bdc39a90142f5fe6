/* The inside view: why the model predicts a word, what it remembers of a text, and what its weights hold. */

import * as address from "./address.js";
import * as api from "./api.js";
import { offer } from "./backends.js";
import { announce, byId, html } from "./dom.js";
import { isBackendMissing } from "./errors.js";
import { clearComplaints, complain, sendByKeyboard } from "./fields.js";
import { memory } from "./inside-memory.js";
import { neighbours, recurrence } from "./inside-weights.js";
import { state } from "./inside-state.js";
import { why } from "./inside-why.js";
import { clear, tell } from "./notice.js";
import { fillSelect, onStore, store, withdraw } from "./store.js";

const STATE_WORDS = 120; // of a text whose hidden states are drawn

const form = byId("inside-form");
const field = form.elements;
const notice = byId("inside-notice");
const parts = byId("inside-parts");
let running = null; // the AbortController of the request that goes on
let asked = ""; // the body of the last one

export function start() {
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        field.target.value = field.other.value = "";
        address.write();
        run();
    });
    sendByKeyboard(field.text);
    for (const link of byId("inside-map").querySelectorAll("button")) {
        link.addEventListener("click", () => open(link.dataset.part));
        for (const kind of ["pointerenter", "focus"]) link.addEventListener(kind, () => point(link.dataset.part));
        for (const kind of ["pointerleave", "blur"]) link.addEventListener(kind, () => point(null));
    }
    onStore(() => {
        fillSelect(field.weights);
        show();
    });
}

/** Bring the part that a symbol of the equations stands for into view. */
function open(id) {
    byId(id)?.scrollIntoView({ block: "start" });
    byId(`${id}-title`)?.focus({ preventScroll: true });
}

/** Frame the part that is pointed at in the equations; null: none. */
function point(id) {
    for (const one of parts.children) one.classList.toggle("pointed", one.id === id);
}

/** A first visit shows the prepared example at once. */
export function show() {
    offer(form, byId("inside-backends"));
    if (address.view() === "inside" && store.weights?.length > 0 && asked !== JSON.stringify(body())) run();
}

function body() {
    const { text, target, other, weights, backend } = field;
    return {
        text: text.value,
        backend: backend.value,
        state: text.value.split(/\s+/).length <= STATE_WORDS,
        spectrum: true,
        ...(target.value && { target: Number(target.value) }),
        ...(other.value.trim() && { other: other.value }),
        ...(weights.value && { weights: weights.value }),
    };
}

async function run() {
    clearComplaints(form);
    if (!field.text.value.trim()) {
        complain(form, [{ field: "text", message: "must have a word to look at" }]);
        return;
    }
    const wanted = body();
    asked = JSON.stringify(wanted);
    running?.abort();
    const abort = (running = new AbortController());
    parts.setAttribute("aria-busy", "true");
    try {
        const seen = await api.inspect(wanted, abort.signal);
        if (running !== abort) return;
        clear(notice);
        display(seen, wanted);
    } catch (error) {
        if (running !== abort) return;
        if (isBackendMissing(error)) withdraw(wanted.backend);
        if (!complain(form, error.fields ?? [])) tell(notice, error, run);
    } finally {
        if (running === abort) parts.removeAttribute("aria-busy");
    }
}

function display(seen, wanted) {
    const focused = document.activeElement; // the same control has the focus when it is drawn again
    parts.replaceChildren(
        part("inside-why", "Why this word", why(seen, explain),
            "Each earlier word is as dark, and its arc as strong, as the prediction would change without it. Point at a " +
            "word, or walk to it with Tab, to see below what the model would expect instead.",
            "click a word in the middle, and the words before it explain that one."),
        part("inside-memory", "How far it remembers", memory(seen, compare),
            "A word reaches the prediction only through the hidden state, which every later word overwrites in part: the " +
            "further back, the shorter its bars. Below them the sentence stands again with a word changed, as dark as the " +
            "two states differ.",
            "change an early word, then a late one, and compare after how many words it is forgotten."),
        part("inside-recurrence", "The recurrence", recurrence(seen.spectrum),
            "Each dot is an eigenvalue of Whh: what lies along it is multiplied by it at every word. Inside the circle it " +
            "fades, the faster the nearer to the centre, and so the bars of the memory shrink.",
            "tick the box to see what tanh leaves of it on this text."),
        part("inside-state", "The state", state(seen, wanted.backend),
            "Each row is a hidden unit and each column a word: blue is above 0, orange below. Below, the text takes the " +
            "colours of one unit, and beside it stand the words that drive it and those that it makes more probable.",
            "drag over a few words of the map, and see which units do there what yours does."),
        part("inside-neighbours", "Neighbours", neighbours(seen.weights.name, wanted.backend, seen.words.at(-1)),
            "Words are near by input if the model hears them alike: they push the state in the same direction. They are " +
            "near by output if it says them in the same places.",
            "a name, then a verb: the two lists often differ."),
    );
    if (focused?.dataset.keep) restore(focused, wanted);
    announce(`The word explained is ${seen.word}`);
}

/** Give the control that takes the place of `old` its focus, and what was typed since the request. */
function restore(old, wanted) {
    const control = parts.querySelector(`[data-keep="${old.dataset.keep}"]`);
    control?.focus();
    if (control && old.dataset.keep === "other" && old.value !== (wanted.other ?? old.defaultValue)) control.value = old.value;
}

/** text: two sentences on what one sees.   suggestion: something to try. */
function part(id, title, content, text, suggestion) {
    const heading = html("h3", { id: `${id}-title`, tabindex: -1 }, title);
    return html(
        "section",
        { class: "panel inside-part", id, "aria-labelledby": heading.id },
        heading,
        html("p", { class: "hint" }, text),
        html("p", { class: "hint try" }, html("span", { class: "lead" }, "Try: "), suggestion),
        ...content,
    );
}

/** Explain another word. target: its position; null for the next one. */
function explain(target) {
    field.target.value = target ?? "";
    address.write();
    run();
}

/** Compare the states with those of another text. */
function compare(other) {
    field.other.value = other;
    address.write();
    run();
}
