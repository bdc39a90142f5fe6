/* What the service has: its weights and its back ends. Every view reads it here and is notified of changes. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { clear, tell } from "./notice.js";

const followers = [];

/** weights: those of GET /weights; null until they are known.   initial: the name of the default. */
export const store = { weights: null, initial: null, backends: ["c", "torch"] };

const withdrawn = new Set(); // back ends that could not answer

/** Call `follower` now if the service has answered, and whenever something changes. */
export function onStore(follower) {
    followers.push(follower);
    if (store.weights !== null) follower();
}

/** Ask the service again. If it does not answer, the top of the page says so, and offers to try again. */
export async function refresh() {
    const notice = byId("service-notice");
    try {
        await read();
        clear(notice);
    } catch (error) {
        tell(notice, error, refresh);
    }
}

async function read() {
    const [listed, backends] = await Promise.all([api.listWeights(), api.listBackends()]);
    const present = backends.filter((backend) => !withdrawn.has(backend));
    const news = {
        weights: listed.weights,
        initial: listed.default,
        backends: present.length > 0 ? present : backends,
    };
    if (JSON.stringify(news) === JSON.stringify(store)) return; // drawing a view again would lose the keyboard's focus
    Object.assign(store, news);
    for (const follow of followers) follow();
}

/** Stop offering a back end that could not answer, if another is left. Returns whether one is.
 *
 * The list of models may name back ends that cannot run: C without its library, or any while there are no weights. */
export function withdraw(backend) {
    const rest = store.backends.filter((name) => name !== backend);
    if (rest.length === 0) return false;
    withdrawn.add(backend);
    store.backends = rest;
    for (const follow of followers) follow();
    return true;
}

/** Fill a <select> with the usable weights, and keep what is selected. none: what choosing none of them means. */
export function fillSelect(select, none = store.initial ? `${store.initial} (the default)` : "the default") {
    if (store.weights === null) return;
    const usable = store.weights.filter((weights) => !weights.problem).map((weights) => weights.name);
    const selected = select.value;
    const options = usable.map((name) => new Option(name));
    if (selected && !usable.includes(selected)) options.push(new Option(`${selected} (not here)`, selected));
    select.replaceChildren(new Option(none, ""), ...options);
    select.value = selected;
}
