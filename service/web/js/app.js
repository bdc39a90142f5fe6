/* The start of the page: its views, which of them is shown, and what the service has. */

import { onTokens, requiresToken } from "./access.js";
import * as address from "./address.js";
import { byId } from "./dom.js";
import * as generate from "./generate.js";
import * as inside from "./inside.js";
import * as inspector from "./inspector.js";
import { clear, tell } from "./notice.js";
import * as score from "./score.js";
import { onStore, refresh, store } from "./store.js";
import * as theme from "./theme.js";
import * as upload from "./upload.js";
import * as weights from "./weights.js";

const VIEWS = { generate, score, inside, weights };
const TITLE = document.title;

function show() {
    const current = address.view();
    inspector.hide();
    for (const link of document.querySelectorAll("nav a[data-view]")) {
        const { view } = link.dataset;
        byId(view).hidden = view !== current;
        if (view === current) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
    }
    address.read();
    VIEWS[current].show();
    showWelcome();
    document.title = `${byId(`${current}-title`).textContent} · ${TITLE}`;
}

/** Make the address of a view's link when it is followed, so that it leads to the view as it was left. */
function follow(event) {
    const link = event.target.closest("a[data-view]");
    if (link) link.href = address.link(link.dataset.view);
}

async function load() {
    const notice = byId("service-notice");
    try {
        await refresh();
        clear(notice);
    } catch (error) {
        tell(notice, error, load);
    }
}

/** Show what to do with a service that has no weights; the weights view says so itself. */
function showWelcome() {
    byId("welcome").hidden = address.view() === "weights" || store.weights?.length !== 0;
}

/** Jump within the page without changing the address, which holds only the state. */
function skip(event) {
    event.preventDefault();
    byId("main").focus();
}

/** Say which links need the token: a browser sends none when it opens a link. */
function noteLinks() {
    byId("docs-note").textContent = requiresToken() ? " (trying it out needs the token)" : "";
    byId("metrics-note").textContent = requiresToken() ? " (needs the token in a header)" : "";
}

onTokens(noteLinks);
theme.start(byId("theme"));
byId("skip").addEventListener("click", skip);
for (const view of [...Object.values(VIEWS), upload]) view.start();
for (const kind of ["pointerdown", "focusin", "click"]) document.querySelector("nav").addEventListener(kind, follow);
onStore(showWelcome);
address.onChange(() => {
    show();
    if (address.view() === "weights") load(); // a trainer may have written a file meanwhile
});
show();
load();
