/* The card beside a word: the five most probable words at its place, as bars. One card serves the whole page. */

import { byId, html } from "./dom.js";
import { bits, percent } from "./scale.js";

const LEAVE_MS = 150; // time to move the pointer from the word into its card (WCAG 1.4.13)
const GAP = 8;
const EOS = "<EOS>";
const UNK = "<UNK>"; // never generated

/** Return the name of a token. */
export const wordOf = (token) => (token.word === EOS ? "¶ end of sentence" : token.word);

const card = byId("inspector");
let shown = null; // the word's element
let timer = 0;

card.addEventListener("pointerenter", () => clearTimeout(timer));
card.addEventListener("pointerleave", hideSoon);
addEventListener("keydown", (event) => event.key === "Escape" && hide());
document.addEventListener("pointerdown", (event) => event.target.closest(".inspector, .word") ?? hide());
addEventListener("scroll", follow, { passive: true });
addEventListener("resize", follow);

/** Show the probabilities at `token`, whose word is `element`. note: a line below them, or null. */
export function show(element, token, note = null) {
    clearTimeout(timer);
    if (shown === element) return;
    hide();
    shown = element;
    element.setAttribute("aria-describedby", card.id);
    card.replaceChildren(...content(token));
    if (note) card.append(html("p", { class: "note" }, note));
    card.showPopover();
    place(element.getBoundingClientRect());
}

/** Hide the card when the pointer leaves, unless the word has the keyboard's focus or was tapped. */
export function hideSoon() {
    clearTimeout(timer);
    if (shown !== document.activeElement) timer = setTimeout(hide, LEAVE_MS);
}

export function hide() {
    clearTimeout(timer);
    if (!shown) return;
    shown.removeAttribute("aria-describedby");
    shown = null;
    card.hidePopover();
}

function content(token) {
    const head = html(
        "p",
        { class: "head" },
        html("b", {}, wordOf(token)),
        html("span", {}, `${percent(token.logprob)} · ${bits(token.logprob).toFixed(1)} bits`),
    );
    const top = token.top ?? [];
    const widest = Math.max(...top.map((word) => word.logprob), token.logprob);
    const rows = top.map((word) => row(word, widest, word.id === token.id));
    if (!top.some((word) => word.id === token.id)) rows.push(row(token, widest, true, "beyond"));
    return [head, html("ol", { "aria-label": "most probable here" }, ...rows)];
}

function row(word, widest, isChosen, kind = null) {
    const bar = html("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", `${100 * Math.exp(word.logprob - widest)}%`);
    return html(
        "li",
        { class: kind, "aria-current": isChosen ? "true" : null },
        html("span", {}, wordOf(word), word.word === UNK && !isChosen && " (is never drawn)"),
        html("span", {}, percent(word.logprob)),
        bar,
    );
}

/** Keep the card beside its word when the page scrolls. */
function follow() {
    if (!shown) return;
    const word = shown.getBoundingClientRect();
    if (word.bottom < 0 || word.top > innerHeight) hide();
    else place(word);
}

/** Place the card below the word if there is room, else above, and inside the window. */
function place(word) {
    const { width, height } = card.getBoundingClientRect();
    const left = Math.max(GAP, Math.min(word.left, document.documentElement.clientWidth - width - GAP));
    const below = word.bottom + GAP;
    const top = below + height > innerHeight && word.top > height + GAP ? word.top - height - GAP : below;
    card.style.left = `${left}px`;
    card.style.top = `${top}px`;
}
