/* Tokens: asked for when the service requires one, and kept only in this module's memory. They are gone when the tab is
   closed or reloaded, and they are in no storage, address, log or copied command. */

import { byId } from "./dom.js";

const TITLES = { user: "This service requires its token", admin: "Changing the weights requires the admin token" };
const TEXTS = {
    user: "It is the value of RNN_API_TOKEN that the service was started with.",
    admin: "It is the value of RNN_ADMIN_TOKEN. If that was not set, the service wrote a token to its log when it started.",
};
const IS_TOKEN = /^[\x21-\x7e]+$/; // what the service accepts and a header can hold
const UNAUTHORISED = [401, 403];

const tokens = { user: "", admin: "" };
const asking = { user: null, admin: null }; // one question at a time, however many requests wait for the answer
const watchers = [];
let lastQuestion = Promise.resolve(); // both kinds share a dialog, so they take turns

export const holdsAdmin = () => tokens.admin !== "";
export const holdsUser = () => tokens.user !== "";
export const usesToken = () => tokens.user !== "" || tokens.admin !== "";

/** Call `watcher` whenever a token is kept or forgotten. */
export const onTokens = (watcher) => watchers.push(watcher);

export function forgetAdmin() {
    keep("admin", "");
}

/** Run `attempt(headers)` with the token that `kind`, "user" or "admin", needs; ask for it if it is missing or wrong.
 *
 * Throws the service's refusal if the person gives none, or an AbortError if nothing was sent yet. */
export async function authorised(kind, attempt) {
    if (kind === "admin" && !tokens.admin) await ask(kind, "", new DOMException("no token was given", "AbortError"));
    for (;;) {
        const used = tokenFor(kind);
        try {
            return await attempt(used ? { authorization: `Bearer ${used}` } : {});
        } catch (error) {
            if (!UNAUTHORISED.includes(error.status)) throw error;
            if (used === tokenFor(kind)) await ask(kind, used ? "The service does not know this token." : "", error);
        }
    }
}

const tokenFor = (kind) => (kind === "admin" ? tokens.admin : tokens.user || tokens.admin);

function keep(kind, token) {
    tokens[kind] = token;
    for (const watcher of watchers) watcher();
}

async function ask(kind, complaint, otherwise) {
    asking[kind] ??= inTurn(() => question(kind, complaint)).finally(() => (asking[kind] = null));
    const token = await asking[kind];
    if (!token) throw otherwise;
    if (token !== tokens[kind]) keep(kind, token);
}

function inTurn(next) {
    lastQuestion = lastQuestion.then(next, next);
    return lastQuestion;
}

/** Resolves to what was typed, or to "" if the dialog was closed. */
function question(kind, complaint) {
    const dialog = byId("ask-token");
    const field = byId("token");
    const wrong = byId("token-wrong");
    byId("token-title").textContent = TITLES[kind];
    byId("token-text").textContent = TEXTS[kind];
    wrong.textContent = complaint;
    field.value = "";
    let answer = "";
    byId("token-form").onsubmit = (event) => {
        event.preventDefault();
        const typed = field.value.trim();
        wrong.textContent = IS_TOKEN.test(typed) ? "" : "A token has printable ASCII characters and no spaces.";
        if (wrong.textContent) return;
        answer = typed;
        dialog.close();
    };
    byId("token-cancel").onclick = () => dialog.close();
    dialog.showModal();
    field.focus();
    return new Promise((resolve) => {
        dialog.onclose = () => {
            field.value = "";
            resolve(answer);
        };
    });
}
