/* A question before something is lost. */

import { byId } from "./dom.js";

/** Resolves to whether the person agreed. The careful answer has the focus, and closing the dialog means no. */
export function confirm({ title, text, yes, no }) {
    const dialog = byId("confirm");
    byId("confirm-title").textContent = title;
    byId("confirm-text").textContent = text;
    byId("confirm-yes").textContent = yes;
    byId("confirm-no").textContent = no;
    let isSure = false;
    byId("confirm-yes").onclick = () => {
        isSure = true;
        dialog.close();
    };
    byId("confirm-no").onclick = () => dialog.close();
    dialog.showModal();
    byId("confirm-no").focus();
    return new Promise((resolve) => (dialog.onclose = () => resolve(isSure)));
}
