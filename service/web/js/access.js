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
const ACCEPTING = [404, 409, 422]; // refusals of something else, after the token was accepted

const tokens = { user: "", admin: "" };
const accepted = { user: false, admin: false }; // whether the service has accepted the token
let isRequired = false; // whether the service has refused a request without a token
const asking = { user: null, admin: null }; // one question at a time, however many requests wait for the answer
const declined = { user: 0, admin: 0 }; // questions that were closed without a token
const watchers = [];
let lastQuestion = Promise.resolve(); // both kinds share a dialog, so they take turns

export const holdsAdmin = () => accepted.admin;
export const requiresToken = () => isRequired;

/** Call `watcher` whenever a token is accepted or forgotten, or turns out to be required. */
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
        const before = declined[kind];
        try {
            const answer = await attempt(used ? { authorization: `Bearer ${used}` } : {});
            accept(holder(kind), used);
            return answer;
        } catch (error) {
            if (!UNAUTHORISED.includes(error.status)) {
                if (ACCEPTING.includes(error.status)) accept(holder(kind), used);
                throw error;
            }
            if (kind === "user") noteRequired();
            if (declined[kind] !== before) throw error; // another request has asked meanwhile, for nothing
            if (used !== tokenFor(kind)) continue; // or with success
            if (used) keep(holder(kind), "");
            await ask(kind, used ? "The service does not know this token." : "", error);
        }
    }
}

/** Whose token a request sends: the admin token also serves a user, once it is known to be right. */
const holder = (kind) => (kind === "user" && (tokens.user || !accepted.admin) ? "user" : "admin");
const tokenFor = (kind) => tokens[holder(kind)];

function keep(kind, token) {
    tokens[kind] = token;
    accepted[kind] = false;
    notify();
}

function accept(kind, token) {
    if (!token || token !== tokens[kind] || accepted[kind]) return;
    accepted[kind] = true;
    notify();
}

function noteRequired() {
    if (isRequired) return;
    isRequired = true;
    notify();
}

function notify() {
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
            if (!answer) declined[kind] += 1;
            resolve(answer);
        };
    });
}
