/* The generate view: a prompt, how to continue it, and the back ends side by side or one of them. */

import * as address from "./address.js";
import { NAMES, offer } from "./backends.js";
import { inWords, ruleOf } from "./branch.js";
import { candidates } from "./candidates.js";
import { byId, html } from "./dom.js";
import { isBackendMissing, sentence } from "./errors.js";
import { FieldError, clearComplaints, complain, numberOf, sendByKeyboard } from "./fields.js";
import { clear, notify } from "./notice.js";
import { Output } from "./output.js";
import * as runs from "./runs.js";
import { legend } from "./scale.js";
import { fillSelect, onStore, store, withdraw } from "./store.js";
import { marked } from "./words.js";

const TOP = 8; // words that the card beside a word shows
const HASH_CHARS = 16; // of a weights file, in a link
const WIDE = matchMedia("(min-width: 48rem)");
const SEEN_PX = 160; // of the cards below the form; if less of them is in sight, the page scrolls to them

const form = byId("generate-form");
const field = form.elements;
const notice = byId("generate-notice");
const outputs = ["c", "torch"].map(
    (backend) =>
        new Output(backend, {
            change: showRunning,
            written: runs.keep,
            end: ended,
            refused: (error) => isMissing(backend, error) || complain(form, error.fields ?? []),
            regenerate: () => generate([backend], freshSeed()),
            keepSeed,
            card: (branch, index, choose) => candidates(branch, index, { count: TOP, form, readRule, choose }),
            settings: () => reading(() => settings(null)),
            link,
        }),
);
let opened = ""; // the link to a text that was opened last

export function start() {
    byId("settings").open = WIDE.matches;
    byId("generate-legend").append(legend("probability"));
    byId("outputs").append(...outputs.map((output) => output.element));
    byId("generate-stop").addEventListener("click", stop);
    form.addEventListener("submit", submit);
    form.addEventListener("change", showOutputs);
    for (const kind of ["input", "change"]) form.addEventListener(kind, leaveLink, { capture: true });
    runs.start(restore);
    sendByKeyboard(field.prompt);
    byId("examples").addEventListener("click", useExample);
    onStore(() => {
        fillSelect(field.weights);
        showOutputs();
    });
    showOutputs();
}

/** The form was filled from the address. A link to a text writes it again. */
export function show() {
    showOutputs();
    if (!field.file.value || location.hash === opened) return;
    opened = location.hash;
    generate(shown(), null);
}

/** What is changed now is no longer what the link was to. */
function leaveLink() {
    field.file.value = "";
}

function submit(event) {
    event.preventDefault();
    generate(shown(), null);
}

function useExample(event) {
    if (!(event.target instanceof HTMLButtonElement)) return;
    field.prompt.value = event.target.textContent;
    leaveLink();
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
    return reading(() => {
        if (!field.prompt.value.trim()) throw new FieldError(field.prompt, "must have a word to go on from");
        return { prompt: field.prompt.value, ...settings(seed) };
    });
}

/** Return what `read` returns; null, with a note beside the field, if a field cannot be read. */
function reading(read) {
    try {
        return read();
    } catch (error) {
        if (!(error instanceof FieldError)) throw error;
        complain(form, [{ field: error.field.name, message: error.message }]);
        return null;
    }
}

/** Return the body of a request, but for its prompt. Throws FieldError. */
function settings(seed) {
    return given({
        max_tokens: numberOf(field.max_tokens) ?? Number(field.max_tokens.defaultValue),
        ...rule(),
        seed: seed ?? numberOf(field.seed) ?? freshSeed(),
        stop: phrases(field.stop.value),
        ignore_eos: field.ignore_eos.checked || null,
        weights: field.weights.value || null,
        top_logprobs: TOP,
    });
}

const rule = () => ({
    temperature: numberOf(field.temperature),
    top_k: numberOf(field.top_k),
    top_p: numberOf(field.top_p),
});

/** Return the rule by which words are drawn; null if one of its fields cannot be read. */
function readRule() {
    try {
        return given(rule());
    } catch {
        return null;
    }
}

const given = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));

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
    leaveLink();
    byId("settings").open = true;
    field.seed.focus();
    address.write();
}

/** A text is complete. */
function ended(branch) {
    showUnknown(branch.unknown);
    const { name, sha256 } = branch.end.weights;
    if (field.file.value === "" || sha256.startsWith(field.file.value)) return;
    notify(notice, `The weights file “${name}” is not the one that the link was made with: the text may be another.`, {
        kind: "plain",
    });
}

/** Return the address that writes a text again: with its seed, and with the hash of its weights file. */
function link(branch) {
    const { body, end, backend } = branch;
    const state = {
        prompt: body.prompt,
        backend,
        weights: end?.weights.name ?? body.weights ?? "",
        file: end?.weights.sha256.slice(0, HASH_CHARS) ?? "",
        temperature: body.temperature ?? "",
        top_k: body.top_k ?? "",
        top_p: body.top_p ?? "",
        max_tokens: body.max_tokens,
        seed: body.seed ?? "",
        stop: body.stop?.join(", ") ?? "",
        ignore_eos: body.ignore_eos ? "true" : "",
    };
    const texts = Object.entries(state).map(([name, value]) => [name, String(value)]);
    return new URL(address.link("generate", Object.fromEntries(texts)), location.href).href;
}

/** Put a text of the list back on screen. */
function restore(branch) {
    const output = outputs.find(({ backend }) => backend === branch.backend);
    if (output.element.hidden) {
        field.backend.value = branch.backend;
        address.write();
        showOutputs();
    }
    output.stop();
    output.restore(branch);
    output.element.scrollIntoView({ block: "nearest" });
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
    showDifference(visible);
}

/** Say when the back ends, side by side, draw their words by different rules. */
function showDifference(visible) {
    const read = readRule();
    const [one, other] = visible.map((backend) => inWords(ruleOf(read ?? {}, backend)));
    byId("generate-rules").textContent =
        read && other && one !== other
            ? `The rules differ: ${NAMES.c} is ${one}; ${NAMES.torch} takes ${other}. Set a temperature to give both the same.`
            : "";
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
