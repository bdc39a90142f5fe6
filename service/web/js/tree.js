/* The texts that branch off from one, as a tree. Its arrow keys are those of every tree (the ARIA practices' tree view):
   up and down through all, left to the parent, right to the first child. The text that has the focus is shown. */

import { html } from "./dom.js";
import { signOf } from "./inspector.js";
import { rounded } from "./format.js";
import { percent } from "./scale.js";

const WORDS = 4; // of a text that stand in its label
const MOVES = {
    ArrowDown: (items, item) => items[items.indexOf(item) + 1],
    ArrowUp: (items, item) => items[items.indexOf(item) - 1],
    ArrowLeft: (items, item) => item.parentElement.closest('[role="treeitem"]'),
    ArrowRight: (items, item) => item.querySelector('[role="treeitem"]'),
    Home: (items) => items[0],
    End: (items) => items.at(-1),
};

/** root: a branch.   shown: the one on screen.   show(branch): put another there. */
export function tree(root, shown, show) {
    const element = html("ul", {
        role: "tree",
        class: "branches",
        "aria-label": "Texts that branch off",
        onkeydown: (event) => {
            const items = [...element.querySelectorAll('[role="treeitem"]')];
            const item = event.target.closest('[role="treeitem"]');
            const next = MOVES[event.key]?.(items, item);
            if (!Object.hasOwn(MOVES, event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
            event.preventDefault();
            next?.focus();
        },
    });
    element.append(item(root, shown, (branch, target) => {
        if (target.getAttribute("aria-selected") === "true") return;
        for (const other of element.querySelectorAll('[role="treeitem"]')) {
            other.setAttribute("aria-selected", other === target ? "true" : "false");
            other.tabIndex = other === target ? 0 : -1;
        }
        show(branch);
    }));
    return element;
}

function item(branch, shown, select) {
    const element = html(
        "li",
        {
            role: "treeitem",
            tabindex: branch === shown ? 0 : -1,
            "aria-selected": branch === shown ? "true" : "false",
            "aria-expanded": branch.children.length > 0 ? "true" : null,
            onfocus: () => select(branch, element),
            onclick: (event) => {
                event.stopPropagation();
                element.focus();
            },
        },
        html("span", { class: "label" }, ...label(branch)),
        branch.children.length > 0 &&
            html("ul", { role: "group" }, ...branch.children.map((child) => item(child, shown, select))),
    );
    return element;
}

function label(branch) {
    const { parent, at, tokens } = branch;
    const written = tokens.slice(at + 1, at + 1 + WORDS).map(signOf).join(" ");
    const bits = branch.isEmpty ? "" : ` ${rounded(branch.bitsPerWord, 2)} bits a word`;
    if (!parent) return [html("b", {}, "first text"), ` ${written} …`, html("span", { class: "value" }, bits)];
    const [chosen, instead] = [tokens[at], parent.tokens[at]];
    const before = at > 0 ? `after “${signOf(tokens[at - 1])}”: ` : "";
    return [
        before,
        html("b", {}, signOf(chosen)),
        ` ${percent(chosen.logprob)}, not ${signOf(instead)} ${percent(instead.logprob)}`,
        ` → ${written} …`,
        html("span", { class: "value" }, bits),
    ];
}
