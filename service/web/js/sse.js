/* Server-sent events from a response's body (https://html.spec.whatwg.org/multipage/server-sent-events.html).
   EventSource would do it, but it can neither POST nor send a token. */

import { BROKEN, Unreachable } from "./errors.js";

/** Yield {name, data} for each event. Comments, which keep proxies from closing the connection, are dropped. */
export async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let pending = "";
    for (;;) {
        const { done, value } = await read(reader);
        if (done) return;
        const parts = (pending + value).split("\n\n");
        pending = parts.pop();
        for (const part of parts) {
            const event = parse(part);
            if (event.data) yield event;
        }
    }
}

async function read(reader) {
    try {
        return await reader.read();
    } catch (error) {
        throw error.name === "AbortError" ? error : new Unreachable(BROKEN);
    }
}

function parse(part) {
    const event = { name: "message", data: "" };
    for (const line of part.split("\n")) {
        if (line.startsWith("data: ")) event.data += line.slice("data: ".length);
        if (line.startsWith("event: ")) event.name = line.slice("event: ".length);
    }
    return event;
}
