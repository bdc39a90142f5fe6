/* The generate view: a prompt, how to continue it, and the back ends side by side or one of them. */

import * as address from "./address.js";
import { NAMES, offer } from "./backends.js";
import { byId, html } from "./dom.js";
import { isBackendMissing, sentence } from "./errors.js";
import { FieldError, clearComplaints, complain, numberOf, sendByKeyboard } from "./fields.js";
import { clear, notify } from "./notice.js";
import { Output } from "./output.js";
import { legend } from "./scale.js";
import { fillSelect, onStore, store, withdraw } from "./store.js";
import { marked } from "./words.js";

const TOP = 5; // words that the card beside a word shows
const WIDE = matchMedia("(min-width: 48rem)");
const SEEN_PX = 160; // of the cards below the form; if less of them is in sight, the page scrolls to them

const form = byId("generate-form");
const field = form.elements;
const notice = byId("generate-notice");
const outputs = ["c", "torch"].map(
    (backend) =>
        new Output(backend, {
            change: showRunning,
            end: (end) => showUnknown(end.choices[0].unknown_words),
            refused: (error) => isMissing(backend, error) || complain(form, error.fields ?? []),
            regenerate: () => generate([backend], freshSeed()),
            keepSeed,
        }),
);

export function start() {
    byId("settings").open = WIDE.matches;
    byId("generate-legend").append(legend("probability"));
    byId("outputs").append(...outputs.map((output) => output.element));
    byId("generate-stop").addEventListener("click", stop);
    form.addEventListener("submit", submit);
    form.addEventListener("change", showOutputs);
    sendByKeyboard(field.prompt);
    byId("examples").addEventListener("click", useExample);
    onStore(() => {
        fillSelect(field.weights);
        showOutputs();
    });
    showOutputs();
}

/** The form was filled from the address. */
export const show = showOutputs;

function submit(event) {
    event.preventDefault();
    generate(shown(), null);
}

function useExample(event) {
    if (!(event.target instanceof HTMLButtonElement)) return;
    field.prompt.value = event.target.textContent;
    address.write();
    form.requestSubmit();
}

/** Run the back ends, all with the same seed. seed: null takes the form's, or draws one if it has none. */
function generate(backends, seed) {
    clearComplaints(form);
    clear(notice);
    showUnknown([]);
    const body = readBody(seed);
    if (!body) return;
    for (const output of outputs) {
        if (backends.includes(output.backend)) output.generate(body);
    }
    if (byId("outputs").getBoundingClientRect().top > innerHeight - SEEN_PX) byId("generate-legend").scrollIntoView();
}

/** Return whether `error` means that the service lacks the back end; if so, offer only the other one. */
function isMissing(backend, error) {
    const isAlone = shown().length === 1;
    if (!isBackendMissing(error) || !withdraw(backend)) return false;
    const [rest] = store.backends;
    const action = isAlone && { label: `Generate with ${NAMES[rest]}`, run: () => form.requestSubmit() };
    notify(notice, sentence(error.message), { kind: "plain", action });
    return true;
}

/** Return the body of the request; null, with a note beside the field, if a field cannot be read. */
function readBody(seed) {
    try {
        if (!field.prompt.value.trim()) throw new FieldError(field.prompt, "must have a word to go on from");
        const body = {
            prompt: field.prompt.value,
            max_tokens: numberOf(field.max_tokens) ?? Number(field.max_tokens.defaultValue),
            temperature: numberOf(field.temperature),
            top_k: numberOf(field.top_k),
            seed: seed ?? numberOf(field.seed) ?? freshSeed(),
            stop: phrases(field.stop.value),
            ignore_eos: field.ignore_eos.checked || null,
            weights: field.weights.value || null,
            top_logprobs: TOP,
        };
        return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
    } catch (error) {
        if (!(error instanceof FieldError)) throw error;
        complain(form, [{ field: error.field.name, message: error.message }]);
        return null;
    }
}

function phrases(text) {
    const found = text
        .split(",")
        .map((phrase) => phrase.trim())
        .filter(Boolean);
    return found.length > 0 ? found : null;
}

const freshSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function keepSeed(seed) {
    field.seed.value = seed;
    byId("settings").open = true;
    field.seed.focus();
    address.write();
}

function stop() {
    for (const output of outputs) output.stop();
    byId("generate-go").focus({ preventScroll: true });
}

/** Return the chosen back ends that the service has. */
function shown() {
    const asked = field.backend.value;
    return store.backends.filter((backend) => asked === "both" || asked === backend);
}

function showOutputs() {
    offer(form, byId("generate-backends"));
    const visible = shown();
    for (const output of outputs) {
        output.element.hidden = !visible.includes(output.backend);
        if (output.element.hidden) output.stop();
    }
}

/** Show one button, Generate or Stop, and keep the keyboard's focus on it. */
function showRunning() {
    const isRunning = outputs.some((output) => output.isRunning);
    const [go, end] = [byId("generate-go"), byId("generate-stop")];
    const hadFocus = document.activeElement === (isRunning ? go : end);
    go.hidden = isRunning;
    end.hidden = !isRunning;
    if (hadFocus) (isRunning ? end : go).focus({ preventScroll: true }); // the person may be reading further down
}

function showUnknown(words) {
    const note = byId("unknown-note");
    note.replaceChildren();
    if (words.length === 0) return;
    const list = words.flatMap((word, index) => [index ? ", " : "", html("span", {}, ...marked(word, [word]))]);
    note.append("Not in the vocabulary: ", ...list, ". The model reads <UNK> instead, or nothing.");
}
