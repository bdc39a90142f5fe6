/* What the service has: its weights and its back ends. Every view reads it here, and hears when it changes. */

import * as api from "./api.js";

const followers = [];

/** weights: as GET /weights has them; null before they are known.   initial: the name of the default. */
export const store = { weights: null, initial: null, backends: ["c", "torch"] };

export const onStore = (follower) => followers.push(follower);

/** Ask the service anew. Raises the errors of the api. */
export async function refresh() {
    const [listed, backends] = await Promise.all([api.listWeights(), api.listBackends()]);
    const news = { weights: listed.weights, initial: listed.default, backends };
    if (JSON.stringify(news) === JSON.stringify(store)) return; // a view drawn anew would lose the keyboard's focus
    Object.assign(store, news);
    for (const follow of followers) follow();
}

/** Fill a <select> with the weights that can be used. What is selected stays so. */
export function fillSelect(select) {
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
