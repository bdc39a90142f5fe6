/* The texts of this session: the last few, to be put back on screen, and two of them beside each other. They are kept in
   this module's memory, and gone when the page is. */

import { NAMES } from "./backends.js";
import { inWords, isGreedy } from "./branch.js";
import { byId, html } from "./dom.js";
import { plural, rounded } from "./format.js";
import { signOf } from "./inspector.js";
import { Words } from "./words.js";

const KEPT = 8;
const PROMPT_CHARS = 40; // of a prompt, there
const WORDS = 6; // of a text that stand in the list

const NONE = "none chosen"; // of a text that the model wrote from the prompt on

let runs = []; // the newest first
let marked = []; // those that are compared, two at most
let restore = () => {};

/** restore(branch) puts a text back on screen. */
export function start(onRestore) {
    restore = onRestore;
}

/** Keep a text that was written, once, however many attempts it took. */
export function keep(branch) {
    runs = [branch, ...runs.filter((one) => one !== branch)].slice(0, KEPT);
    marked = marked.filter((one) => runs.includes(one));
    draw();
}

function draw() {
    byId("runs").hidden = runs.length < 2;
    byId("runs-list").replaceChildren(...runs.map(line));
    byId("runs-comparison").replaceChildren(...(marked.length === 2 ? comparison(...marked) : []));
}

function line(branch) {
    const words = branch.tokens.slice(0, WORDS).map(signOf).join(" ");
    const name = `${NAMES[branch.backend]}: ${words} …`;
    const box = html("input", {
        type: "checkbox",
        "aria-label": `compare ${name}`,
        onchange: () => mark(branch, box.checked),
    });
    const made = settings(branch).slice(1).map(([, value]) => value).filter((value) => value !== NONE);
    box.checked = marked.includes(branch);
    return html(
        "li",
        {},
        box,
        html(
            "div",
            {},
            html("button", { type: "button", class: "link", onclick: () => restore(branch) }, name),
            html("p", { class: "hint" }, [branch.prompt.trim().slice(0, PROMPT_CHARS), ...made].join(" · ")),
        ),
    );
}

function mark(branch, isMarked) {
    marked = marked.filter((one) => one !== branch);
    if (isMarked) marked = [...marked, branch].slice(-2);
    const focused = runs.indexOf(branch);
    draw();
    byId("runs-list").children[focused]?.querySelector("input").focus();
}

function comparison(a, b) {
    const differing = settings(a)
        .map(([name, value], index) => [name, value, settings(b)[index][1]])
        .filter(([, one, other]) => one !== other)
        .map(([name, one, other]) => `${name} (${one}; ${other})`);
    if (a.prompt.trim() !== b.prompt.trim()) differing.unshift("the prompt");
    let same = 0;
    while (same < a.tokens.length && a.tokens[same].id === b.tokens[same]?.id) same += 1;
    return [
        html(
            "p",
            { role: "status" },
            differing.length > 0 ? `They differ in ${differing.join(", ")}. ` : "Nothing differs between them. ",
            shared(same, a, b),
        ),
        html("div", { class: "outputs" }, ...[a, b].map(column)),
    ];
}

function shared(same, a, b) {
    if (same === a.tokens.length && same === b.tokens.length) return "Their words are the same.";
    return same === 0 ? "They part at the first word." : `They part after ${plural(same, "word")}.`;
}

function column(branch) {
    const words = new Words(`Text of the ${NAMES[branch.backend]} model, kept`);
    words.begin(branch.prompt, branch.unknown);
    for (const token of branch.tokens) words.add(token);
    return html(
        "article",
        { class: "panel" },
        html("p", { class: "hint" }, `${NAMES[branch.backend]}, ${rounded(branch.bitsPerWord, 2)} bits a word`),
        words.element,
    );
}

/** What made a text, as [name, value]. */
function settings(branch) {
    const { body, end, rule } = branch;
    return [
        ["back end", NAMES[branch.backend]],
        ["weights", end?.weights.name ?? body.weights ?? "the default"],
        ["rule", inWords(rule)],
        ["chosen word", branch.parent ? `“${signOf(branch.tokens[branch.at])}” at place ${branch.at + 1}` : NONE],
        ["seed", isGreedy(rule) ? "no seed" : `seed ${body.seed}`],
    ];
}
