/* Copying. The clipboard's interface is there only on https and on this machine's own address; elsewhere the older way
   has to do. */

import { announce, html } from "./dom.js";

const SHOWN_MS = 1600;

/** Copy `text`, and show on the button whether it worked. */
export async function copy(text, button) {
    const label = button.dataset.label ?? button.textContent;
    button.dataset.label = label;
    const said = (await write(text)) ? "Copied" : "Copying is not allowed here";
    button.textContent = said;
    announce(said);
    setTimeout(() => (button.textContent = label), SHOWN_MS);
}

async function write(text) {
    if (!navigator.clipboard) return writeTheOldWay(text);
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        return writeTheOldWay(text);
    }
}

function writeTheOldWay(text) {
    const before = document.activeElement;
    const field = html("textarea", { class: "visually-hidden", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    before?.focus();
    return copied;
}
