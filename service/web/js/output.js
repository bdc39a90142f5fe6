/* One back end's card in the generate view: its text as it arrives, its figures, its buttons. */

import * as api from "./api.js";
import { NAMES } from "./backends.js";
import { copy } from "./clipboard.js";
import { curl } from "./curl.js";
import { announce, html } from "./dom.js";
import { isStop } from "./errors.js";
import { count, milliseconds, plural, rounded } from "./format.js";
import { clear, tell } from "./notice.js";
import { Words } from "./words.js";

const OWN_TEMPERATURE = { c: 1, torch: 0 };
const NOTABLE_MS = 250;
const FIGURES_MS = 250; // between two updates of the figures while a text is generated
const ENDINGS = {
    eos: "ended its sentence",
    length: "reached its length",
    stop: "came to a stop word",
    stopped: "stopped",
    failed: "failed",
};

export class Output {
    #on;
    #words = null;
    #body = null; // of the last request
    #request = null; // in progress: {abort, started, times, figured}, the times those of its tokens
    #notice = html("div");
    #way = html("p");
    #state = html("p", { class: "state" });
    #text = html("div", { class: "text" });
    #figures = html("dl", { class: "figures" });
    #again = html("button", { type: "button", onclick: () => (this.isRunning ? this.stop() : this.#on.regenerate()) });
    #tools;

    /** on: change(), when generating starts or ends; end(end), with the last event; refused(error), which returns whether
     * it shows the refusal elsewhere; regenerate(); keepSeed(seed). */
    constructor(backend, on) {
        this.backend = backend;
        this.#on = on;
        const copyText = html(
            "button",
            { type: "button", onclick: () => copy(this.#words.text, copyText) },
            "Copy text",
        );
        const copyCurl = html("button", { type: "button", onclick: () => copy(this.#curl(), copyCurl) }, "Copy curl");
        this.#tools = html("div", { class: "tools", hidden: true }, this.#again, copyText, copyCurl);
        const title = html("h3", { id: `output-${backend}` }, NAMES[backend]);
        this.element = html(
            "article",
            { class: "panel output", "aria-labelledby": title.id, "data-backend": backend },
            html("header", {}, title, this.#way, this.#state),
            this.#notice,
            this.#text,
            html("footer", {}, this.#figures, this.#tools),
        );
        this.#reset();
    }

    get isRunning() {
        return this.#request !== null;
    }

    /** Continue a prompt. body: of POST /generate, with a seed. */
    async generate(body) {
        this.stop();
        const request = { abort: new AbortController(), started: performance.now(), times: [], figured: 0 };
        this.#begin(body, request);
        try {
            const end = await api.generate(this.backend, body, {
                signal: request.abort.signal,
                onToken: (token) => this.#add(token, request),
            });
            if (this.#request !== request) return; // it was stopped while its last event was on its way
            const [choice] = end.choices;
            this.#words.begin(body.prompt, choice.unknown_words);
            this.#finish(choice.finish_reason);
            this.#showFigures(end.timings.first_token_ms, end.timings.tokens_per_second, end.timings.queue_ms);
            this.#on.end(end);
        } catch (error) {
            if (this.#request !== request) return; // it was stopped, and stop() has said so
            this.#finish(isStop(error) ? "stopped" : "failed");
            if (this.#on.refused(error)) this.#reset();
            else tell(this.#notice, error, () => this.generate(body));
        }
    }

    /** Stop generating at once; the words stay. */
    stop() {
        if (!this.isRunning) return;
        this.#request.abort.abort();
        this.#finish("stopped");
    }

    /** Empty the card. */
    #reset() {
        this.#text.replaceChildren(html("p", { class: "empty" }, "Its words will appear here."));
        this.#figures.replaceChildren();
        this.#tools.hidden = true;
        this.#way.textContent = "";
        this.#state.textContent = "";
    }

    #begin(body, request) {
        this.#request = request;
        this.#body = body;
        this.#words = new Words(`Text of the ${NAMES[this.backend]} model`);
        this.#words.begin(body.prompt, []);
        this.#words.busy = true;
        clear(this.#notice);
        this.#text.replaceChildren(this.#words.element);
        this.#figures.replaceChildren();
        this.#tools.hidden = false;
        this.#again.textContent = "Stop";
        this.#way.textContent = way(body.temperature ?? OWN_TEMPERATURE[this.backend], body.top_k);
        this.#state.textContent = "waiting for the first word"; // its weights may have to be loaded
        this.#on.change();
    }

    #add(token, request) {
        if (this.#request !== request) return;
        const now = performance.now();
        if (request.times.push(now) === 1) this.#state.textContent = "writing";
        this.#words.add(token);
        if (now - request.figured < FIGURES_MS) return;
        request.figured = now;
        this.#showMeasured(request);
    }

    #finish(ending) {
        const request = this.#request;
        this.#request = null;
        this.#words.busy = false;
        this.#again.textContent = "Regenerate";
        this.#state.textContent = ENDINGS[ending];
        this.#showMeasured(request);
        announce(`${NAMES[this.backend]}: ${plural(this.#words.count, "word")}, ${ENDINGS[ending]}`);
        this.#on.change();
    }

    /** Show figures measured here, until the service sends its own. */
    #showMeasured({ started, times }) {
        if (times.length === 0) return;
        const seconds = (times.at(-1) - times[0]) / 1000;
        this.#showFigures(times[0] - started, seconds > 0 ? (times.length - 1) / seconds : null);
    }

    /** waitedMs: the part of the time to the first token before work began: in a queue, or loading weights. */
    #showFigures(firstTokenMs, tokensPerSecond, waitedMs = 0) {
        const { seed } = this.#body;
        const keep = html(
            "button",
            {
                type: "button",
                class: "link",
                "aria-label": `keep the seed ${seed}`,
                onclick: () => this.#on.keepSeed(seed),
            },
            "keep",
        );
        this.#figures.replaceChildren(
            figure(waitedMs > NOTABLE_MS ? "first token, with loading" : "first token", milliseconds(firstTokenMs)),
            figure("tokens/s", rounded(tokensPerSecond)),
            figure("tokens", count(this.#words.count)),
            figure("seed", String(seed), " ", !this.isRunning && keep),
        );
    }

    #curl() {
        return curl(`generate/${this.backend}`, { ...this.#body, stream: true });
    }
}

function way(temperature, topK) {
    if (temperature === 0 || topK === 1) return "always the most probable word";
    return `drawn at temperature ${temperature}${topK ? ` from the ${topK} most probable` : ""}`;
}

/** Return a figure and its name, for a <dl class="figures">. */
export function figure(name, ...value) {
    return html("div", {}, html("dt", {}, name), html("dd", {}, ...value));
}
