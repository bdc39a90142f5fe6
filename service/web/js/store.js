/* What the service has: its weights and its back ends. Every view reads it here, and hears when it changes. */

import * as api from "./api.js";

const followers = [];

/** weights: as GET /weights has them; null before they are known.   initial: the name of the default. */
export const store = { weights: null, initial: null, backends: ["c", "torch"] };

const withdrawn = new Set(); // back ends that could not answer

export const onStore = (follower) => followers.push(follower);

/** Ask the service anew. Raises the errors of the api. */
export async function refresh() {
    const [listed, backends] = await Promise.all([api.listWeights(), api.listBackends()]);
    const present = backends.filter((backend) => !withdrawn.has(backend));
    const news = {
        weights: listed.weights,
        initial: listed.default,
        backends: present.length > 0 ? present : backends,
    };
    if (JSON.stringify(news) === JSON.stringify(store)) return; // a view drawn anew would lose the keyboard's focus
    Object.assign(store, news);
    for (const follow of followers) follow();
}

/** Offer a back end no more that could not answer, as long as another is left. Returns whether one is.
 *
 * The list of models may name what cannot run: C without its library, or anything while there are no weights. */
export function withdraw(backend) {
    const rest = store.backends.filter((name) => name !== backend);
    if (rest.length === 0) return false;
    withdrawn.add(backend);
    store.backends = rest;
    for (const follow of followers) follow();
    return true;
}

/** Fill a <select> with the weights that can be used. What is selected stays so. */
export function fillSelect(select) {
    if (store.weights === null) return;
    const usable = store.weights.filter((weights) => !weights.problem).map((weights) => weights.name);
    const selected = select.value;
    const options = usable.map((name) => new Option(name));
    if (selected && !usable.includes(selected)) options.push(new Option(`${selected} (not here)`, selected));
    select.replaceChildren(
        new Option(store.initial ? `${store.initial} (the default)` : "the default", ""),
        ...options,
    );
    select.value = selected;
}
