/* The start of the page: which of its views is shown, and what the service has. A view's modules are loaded when it is
   shown for the first time. */

import { onTokens, requiresToken } from "./access.js";
import * as address from "./address.js";
import { byId } from "./dom.js";
import * as inspector from "./inspector.js";
import { notify } from "./notice.js";
import { onStore, refresh, store } from "./store.js";
import * as theme from "./theme.js";

const VIEWS = {
    generate: { form: "generate-form", load: () => import("./generate.js") },
    score: { form: "score-form", load: () => import("./score.js") },
    inside: { form: "inside-form", load: () => import("./inside.js") },
    weights: { form: "chart-form", load: () => import("./weights.js") },
};
const TITLE = document.title;
const started = new Map(); // by view, the promise of its module

/** Show the view that the address names. */
async function show() {
    const current = address.view();
    inspector.hide();
    document.documentElement.dataset.view = current;
    for (const link of document.querySelectorAll("nav a[data-view]")) {
        if (link.dataset.view === current) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
    }
    address.read();
    showWelcome();
    document.title = `${byId(`${current}-title`).textContent} · ${TITLE}`;
    const view = await start(current);
    if (view && address.view() === current) view.show();
}

/** Return the module of a view, loaded and started; null if the service does not answer. */
function start(name) {
    if (!started.has(name)) started.set(name, load(name));
    return started.get(name);
}

async function load(name) {
    let view;
    try {
        view = await VIEWS[name].load();
    } catch {
        const text = "This part of the page could not be loaded: the connection to the service is lost.";
        notify(byId("service-notice"), text, { action: { label: "Reload the page", run: () => location.reload() } });
        return null; // a browser keeps the failure, so only reloading tries again
    }
    view.start();
    const form = byId(VIEWS[name].form);
    form.dataset.started = "";
    if ("early" in form.dataset) form.requestSubmit(); // it was sent before there was a module to send it
    return view;
}

/** Make the address of a view's link when it is followed, so that it leads to the view as it was left. */
function follow(event) {
    const link = event.target.closest("a[data-view]");
    if (link) link.href = address.link(link.dataset.view);
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
for (const [name, { form }] of Object.entries(VIEWS)) address.bind(name, byId(form));
for (const kind of ["pointerdown", "focusin", "click"]) document.querySelector("nav").addEventListener(kind, follow);
onStore(showWelcome);
address.onChange(() => {
    show();
    if (address.view() === "weights") refresh(); // a trainer may have written a file meanwhile
});
show();
refresh();
