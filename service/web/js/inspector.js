/* The card beside a word: the five most probable words at its place, as bars. One card serves the whole page. */

import { byId, html } from "./dom.js";
import { bits, percent } from "./scale.js";

const ENTER = ["Enter", "ArrowDown"]; // into a card that has buttons
const LEAVE_MS = 150; // time to move the pointer from the word into its card (WCAG 1.4.13)
const GAP = 8;
const EOS = "<EOS>";
export const UNK = "<UNK>"; // never generated

/** Return the name of a token. */
export const wordOf = (token) => (token.word === EOS ? "¶ end of sentence" : token.word);
export const signOf = (token) => (token.word === EOS ? "¶" : token.word);

const card = byId("inspector");
let shown = null; // the word's element
let timer = 0;

card.addEventListener("pointerenter", () => clearTimeout(timer));
card.addEventListener("pointerleave", hideSoon);
card.addEventListener("keydown", walk);
card.addEventListener("focusout", leave);
addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (ENTER.includes(event.key) && shown !== null && event.target === shown) enter(event);
});
document.addEventListener("pointerdown", (event) => event.target.closest(".inspector, .word") ?? hide());
addEventListener("scroll", follow, { passive: true });
addEventListener("resize", follow);
new ResizeObserver(follow).observe(card); // its contents may come later

/** Show the probabilities at `token`, whose word is `element`. note: a line below them.   body: what the card has instead
 * of a list. */
export function show(element, token, { note = null, body = null } = {}) {
    clearTimeout(timer);
    if (shown === element) return;
    hide();
    shown = element;
    element.setAttribute("aria-describedby", card.id);
    card.replaceChildren(head(token), body ?? list(token));
    if (note) card.append(html("p", { class: "note" }, note));
    card.role = body ? "dialog" : "tooltip";
    card.ariaLabel = body ? `Words in place of ${wordOf(token)}` : null;
    card.showPopover();
    place(element.getBoundingClientRect());
}

/** Keep the card if it is beside `element`. Returns whether it is. */
export function stay(element) {
    if (shown !== element) return false;
    clearTimeout(timer);
    return true;
}

/** Hide the card when the pointer leaves, unless the word has the keyboard's focus or was tapped. */
export function hideSoon() {
    clearTimeout(timer);
    if (shown !== document.activeElement && !card.contains(document.activeElement)) timer = setTimeout(hide, LEAVE_MS);
}

export function hide() {
    clearTimeout(timer);
    if (!shown) return;
    shown.removeAttribute("aria-describedby");
    shown = null;
    card.hidePopover();
}

/** Hide the card if the focus leaves both it and its word. */
export function leave(event) {
    if (event.relatedTarget !== shown && !card.contains(event.relatedTarget)) hide();
}

/** Give the focus back to the word, if the card has it, and hide the card. */
function close() {
    if (card.contains(document.activeElement)) shown?.focus();
    hide();
}

const controls = () => [...card.querySelectorAll("button:enabled, input")];

function enter(event) {
    const first = card.querySelector("[aria-current] button:enabled") ?? controls()[0];
    if (!first) return;
    event.preventDefault();
    first.focus();
}

/** Up and down go from button to button. Tab leaves the card at its ends, and goes on from the word. */
function walk(event) {
    const all = controls();
    const at = all.indexOf(event.target);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && event.target.type !== "range") {
        event.preventDefault();
        all[at + step]?.focus();
    }
    if (event.key === "Tab" && at === (event.shiftKey ? 0 : all.length - 1)) shown.focus();
}

function head(token) {
    return html(
        "p",
        { class: "head" },
        html("b", {}, wordOf(token)),
        html("span", {}, `${percent(token.logprob)} · ${bits(token.logprob).toFixed(1)} bits`),
    );
}

function list(token) {
    const top = token.top ?? [];
    const widest = Math.max(...top.map((word) => word.logprob), token.logprob);
    const rows = top.map((word) => row(word, widest, word.id === token.id));
    if (!top.some((word) => word.id === token.id)) rows.push(row(token, widest, true, "beyond"));
    return html("ol", { "aria-label": "most probable here" }, ...rows);
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
    const isOut = word.bottom < 0 || word.top > innerHeight;
    if (isOut && !card.contains(document.activeElement)) hide();
    else place(word);
}

/** Place the card below the word if there is room, else above or beside it, and inside the window. */
function place(word) {
    const { width, height } = card.getBoundingClientRect();
    const across = document.documentElement.clientWidth;
    const isRoomBelow = word.bottom + height + 2 * GAP <= innerHeight;
    const isRoomAbove = word.top >= height + 2 * GAP;
    const isBeside = !isRoomBelow && !isRoomAbove && width + word.width + 3 * GAP <= across;
    const right = word.right + GAP;
    const beside = right + width + GAP <= across ? right : word.left - width - GAP;
    const above = word.top - height - GAP;
    const left = isBeside ? beside : word.left;
    const top = isBeside ? word.top : isRoomBelow || !isRoomAbove ? word.bottom + GAP : above;
    card.style.left = `${Math.max(GAP, Math.min(left, across - width - GAP))}px`;
    card.style.top = `${Math.max(GAP, Math.min(top, innerHeight - height - GAP))}px`;
}
