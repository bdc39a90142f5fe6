/* The service as functions. They throw the errors of errors.js. */

import { authorised } from "./access.js";
import { BROKEN, LOST, Refused, Unreachable } from "./errors.js";
import { events } from "./sse.js";

const BUSY_MS = 8; // of work on a stream, after which the page may draw, and react to a click on Stop

/** {default, weights: [...]} */
export const listWeights = () => json("weights", { access: "user" });

/** Return the names of the back ends that this service offers; all of them if it has no weights. */
export async function listBackends() {
    const models = await json("v1/models", { access: "user" });
    const names = new Set(models.data.map((model) => model.id.split("/")[0]));
    return ["c", "torch"].filter((name) => names.size === 0 || names.has(name));
}

export const score = (body, signal) => json("score", { method: "POST", body, signal, access: "user" });

/** Return the most characters of a text to score, which the service's description of itself tells. */
export async function scoreLimit() {
    const { components } = await json("openapi.json", { access: "user" });
    return components.schemas.ScoreRequest.properties.text.maxLength;
}

export const candidates = (body) => json("candidates", { method: "POST", body, access: "user" });

export const inspect = (body, signal) => json("inspect", { method: "POST", body, signal, access: "user" });

export const unit = (name, number, backend) => about(name, `units/${number}`, { backend });
export const neighbours = (name, word, backend) => about(name, "neighbours", { backend, word });

function about(name, what, query) {
    return json(`weights/${encodeURIComponent(name)}/${what}?${new URLSearchParams(query)}`, { access: "user" });
}

export const deleteWeights = (name) =>
    json(`weights/${encodeURIComponent(name)}`, { method: "DELETE", access: "admin" });

/** Continue a prompt: call `onToken` with each token as it arrives, and return the stream's last event. */
export async function generate(backend, body, { signal, onToken }) {
    const response = await request(`generate/${backend}`, {
        method: "POST",
        body: { ...body, stream: true },
        signal,
        access: "user",
    });
    let end = null;
    let since = performance.now();
    for await (const event of events(response.body)) {
        if (performance.now() - since > BUSY_MS) {
            if (!document.hidden) await new Promise((resolve) => setTimeout(resolve)); // a hidden page waits long for a turn
            since = performance.now();
        }
        if (event.data === "[DONE]") return end;
        const data = JSON.parse(event.data);
        if (event.name === "error") throw new Refused(data.status, data);
        if (data.token) onToken(data.token);
        else end = data;
    }
    throw new Unreachable(BROKEN);
}

/** Upload a form. options: {signal, onProgress(sent, total)}. */
export const uploadWeights = (form, options) =>
    authorised("admin", (authorization) => send(form, authorization, options));

/** fetch() does not report how much has been sent; XMLHttpRequest does. */
function send(form, authorization, { signal, onProgress }) {
    return new Promise((resolve, reject) => {
        const exchange = new XMLHttpRequest();
        exchange.open("POST", "weights");
        for (const [name, value] of Object.entries(authorization)) exchange.setRequestHeader(name, value);
        exchange.upload.onprogress = (event) => onProgress(event.loaded, event.total);
        exchange.onerror = () => reject(new Unreachable(LOST));
        exchange.onabort = () => reject(new DOMException("cancelled", "AbortError"));
        exchange.onload = () => {
            const body = parsed(exchange.responseText);
            if (exchange.status === 201) resolve(body);
            else reject(new Refused(exchange.status, body, exchange.getResponseHeader("retry-after")));
        };
        signal.addEventListener("abort", () => exchange.abort(), { once: true });
        exchange.send(form);
    });
}

async function json(path, options) {
    const response = await request(path, options);
    const text = await reach(response.text());
    return text ? JSON.parse(text) : null;
}

function request(path, { method = "GET", body, signal, access }) {
    return authorised(access, async (authorization) => {
        const headers = { ...authorization, ...(body && { "content-type": "application/json" }) };
        const response = await reach(fetch(path, { method, headers, body: JSON.stringify(body), signal }));
        if (response.ok) return response;
        throw new Refused(response.status, parsed(await reach(response.text())), response.headers.get("retry-after"));
    });
}

/** Await a promise of fetch(), whose TypeError means that there was no answer. */
async function reach(promise) {
    try {
        return await promise;
    } catch (error) {
        throw error instanceof TypeError ? new Unreachable(LOST) : error;
    }
}

function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        return null;
    }
}
