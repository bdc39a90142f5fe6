/* One back end's card in the generate view: a text as it arrives, its figures, its buttons, and the texts that branch off
   from it. What is on screen stays until the first word of another text has come. */

import * as api from "./api.js";
import { NAMES } from "./backends.js";
import { Branch, inWords, isGreedy, ruleOf } from "./branch.js";
import { copy } from "./clipboard.js";
import { curl } from "./curl.js";
import { announce, html } from "./dom.js";
import { isStop } from "./errors.js";
import { figure } from "./figures.js";
import { count, milliseconds, plural, rounded } from "./format.js";
import * as inspector from "./inspector.js";
import { clear, tell } from "./notice.js";
import { tree } from "./tree.js";
import { Words } from "./words.js";

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
    #shown = null; // the branch on screen
    #words = null; // its words
    #request = null; // in progress: {branch, abort, started, times, figured}, the times those of its tokens
    #notice = html("div");
    #way = html("p");
    #state = html("p", { class: "state" });
    #text = html("div", { class: "text" });
    #tree = html("div");
    #figures = html("dl", { class: "figures" });
    #again = html("button", { type: "button", onclick: () => (this.isRunning ? this.stop() : this.#on.regenerate()) });
    #copies;
    #tools;

    /** on: change(), when generating starts or ends; written(branch), when a text has ended or was stopped; end(branch), when it is
     * complete; refused(error), which returns
     * whether it shows the refusal elsewhere; regenerate(); keepSeed(seed); card(branch, index, choose), the contents of
     * the card beside a word; settings(), the body of a request but for its prompt, or null; link(branch). */
    constructor(backend, on) {
        this.backend = backend;
        this.#on = on;
        const copier = (label, text) => {
            const button = html("button", { type: "button", onclick: () => copy(text(this.#shown), button) }, label);
            return button;
        };
        this.#copies = [
            copier("Copy text", (branch) => branch.text()),
            copier("Copy link", (branch) => on.link(branch)),
            copier("Copy curl", (branch) => curl(`generate/${backend}`, { ...branch.body, stream: true })),
        ];
        this.#tools = html("div", { class: "tools", hidden: true }, this.#again, ...this.#copies);
        const title = html("h3", { id: `output-${backend}` }, NAMES[backend]);
        this.element = html(
            "article",
            { class: "panel output", "aria-labelledby": title.id, "data-backend": backend },
            html("header", {}, title, this.#way, this.#state),
            this.#notice,
            this.#text,
            this.#tree,
            html("footer", {}, this.#figures, this.#tools),
        );
        this.#text.append(html("p", { class: "empty" }, "Its words will appear here."));
    }

    get isRunning() {
        return this.#request !== null;
    }

    /** Continue a prompt. body: of POST /generate, with a seed. */
    generate(body) {
        const { seed, ...others } = body;
        const sent = isGreedy(ruleOf(body, this.backend)) ? others : body; // no seed changes the most probable word
        return this.#write(new Branch(this.backend, body.prompt, sent));
    }

    /** Go on from another word at a place of the text on screen. */
    #branch(parent, index, word) {
        const settings = this.#on.settings();
        if (!settings) return;
        const token = { ...parent.tokens[index], id: word.id, word: word.word, logprob: Math.log(word.probability) };
        const branch = new Branch(this.backend, parent.prompt, {}, parent, [...parent.tokens.slice(0, index), token]);
        const weights = parent.end?.weights.name ?? parent.body.weights;
        const { seed, ...others } = { ...settings, ...(weights && { weights }), prompt: branch.prefix(index + 1) };
        branch.body = isGreedy(ruleOf(others, this.backend)) ? others : { ...others, seed };
        branch.unknown = parent.unknown;
        this.#words.focus(index);
        this.#write(branch);
    }

    async #write(branch) {
        this.stop();
        const request = { branch, abort: new AbortController(), started: performance.now(), times: [], figured: 0 };
        this.#begin(request);
        try {
            const end = await api.generate(this.backend, branch.body, {
                signal: request.abort.signal,
                onToken: (token) => this.#add(token, request),
            });
            if (this.#request !== request) return; // it was stopped while its last event was on its way
            const isWordless = request.times.length === 0;
            if (isWordless) branch.restart();
            const [choice] = end.choices;
            const { first_token_ms: firstTokenMs, tokens_per_second: tokensPerSecond, queue_ms: waitedMs } = end.timings;
            branch.end = end;
            branch.figures = { firstTokenMs, tokensPerSecond, waitedMs };
            if (!branch.parent) branch.unknown = choice.unknown_words;
            if (isWordless || this.#shown !== branch) this.#enter(branch);
            this.#words.begin(branch.prompt, branch.unknown);
            this.#finish(choice.finish_reason);
            this.#on.end(branch);
        } catch (error) {
            if (this.#request !== request) return; // it was stopped, and stop() has said so
            this.#finish(isStop(error) ? "stopped" : "failed");
            if (this.#on.refused(error)) this.#showState();
            else tell(this.#notice, error, () => this.#write(branch));
        }
    }

    /** Stop generating at once; the words stay. */
    stop() {
        if (!this.isRunning) return;
        this.#request.abort.abort();
        this.#finish("stopped");
    }

    /** Put a branch on screen. */
    show(branch) {
        const place = this.#words?.focused ?? -1;
        this.#shown = branch;
        this.#words = new Words(`Text of the ${NAMES[this.backend]} model`, (index) =>
            this.#on.card(branch, index, (word) => {
                inspector.hide();
                this.#branch(branch, index, word);
            }),
        );
        this.#words.begin(branch.prompt, branch.unknown);
        for (const token of branch.tokens) this.#words.add(token);
        this.#words.busy = this.#request?.branch === branch;
        this.#text.replaceChildren(this.#words.element);
        if (place >= 0) this.#words.focus(place);
        this.#way.textContent = inWords(branch.rule);
        this.#showState();
        this.#showFigures();
        this.#showTools();
    }

    /** Put a branch of another text on screen, with its tree. */
    restore(branch) {
        this.show(branch);
        this.#showTree();
    }

    #begin(request) {
        this.#request = request;
        clear(this.#notice);
        if (!this.#shown) this.#way.textContent = inWords(request.branch.rule);
        this.#showState();
        this.#showTools();
        this.#on.change();
    }

    #add(token, request) {
        const { branch } = request;
        if (this.#request !== request) return;
        const now = performance.now();
        if (request.times.push(now) === 1) {
            branch.restart(); // only now: until its first word, an attempt that failed stays on screen
            this.#enter(branch);
        }
        branch.tokens.push(token);
        if (this.#shown === branch) this.#words.add(token);
        if (now - request.figured < FIGURES_MS) return;
        request.figured = now;
        this.#measure(request);
    }

    /** The first word of a branch has come. */
    #enter(branch) {
        if (branch.parent && !branch.parent.children.includes(branch)) branch.parent.children.push(branch);
        this.show(branch);
        this.#showTree();
    }

    #finish(ending) {
        const request = this.#request;
        const { branch } = request;
        this.#request = null;
        if (this.#words) this.#words.busy = false;
        if (request.times.length > 0 || branch.end) branch.ending = ENDINGS[ending];
        if (!this.#shown) this.#way.textContent = "";
        this.#measure(request);
        this.#showState(ENDINGS[ending]);
        this.#showTools();
        this.#showTree();
        announce(`${NAMES[this.backend]}: ${plural(branch.tokens.length, "word")}, ${ENDINGS[ending]}`);
        this.#on.change();
        if (!branch.isEmpty) this.#on.written(branch);
    }

    /** state: how the last request ended, if that is to be shown. */
    #showState(state = this.#shown?.ending ?? "") {
        const { branch, times } = this.#request ?? {};
        // Its weights may have to be loaded before its first word.
        const progress = branch && (times.length === 0 ? "waiting for the first word" : "writing");
        this.#state.textContent = progress ?? state;
    }

    #showTools() {
        this.#tools.hidden = !this.#shown && !this.isRunning;
        this.#again.textContent = this.isRunning ? "Stop" : "Regenerate";
        for (const button of this.#copies) button.hidden = !this.#shown;
    }

    #showTree() {
        const root = this.#shown?.root;
        if (!root || root.children.length === 0) {
            this.#tree.replaceChildren();
            return;
        }
        const hadFocus = this.#tree.contains(document.activeElement);
        this.#tree.replaceChildren(tree(root, this.#shown, (branch) => this.show(branch)));
        if (hadFocus) this.#tree.querySelector('[tabindex="0"]').focus();
    }

    /** Take the figures measured here, until the service sends its own. */
    #measure({ branch, started, times }) {
        if (times.length > 0 && !branch.end) {
            const seconds = (times.at(-1) - times[0]) / 1000;
            branch.figures = {
                firstTokenMs: times[0] - started,
                tokensPerSecond: seconds > 0 ? (times.length - 1) / seconds : null,
                waitedMs: 0,
            };
        }
        this.#showFigures();
    }

    #showFigures() {
        const { figures, body, rule, tokens } = this.#shown ?? {};
        if (!figures) {
            this.#figures.replaceChildren();
            return;
        }
        // waitedMs: the part of the time to the first token before work began: in a queue, or loading weights.
        const { firstTokenMs, tokensPerSecond, waitedMs } = figures;
        this.#figures.replaceChildren(
            figure(waitedMs > NOTABLE_MS ? "first token, with loading" : "first token", milliseconds(firstTokenMs)),
            figure("tokens/s", rounded(tokensPerSecond)),
            figure("tokens", count(tokens.length)),
            ...(isGreedy(rule) ? [] : [this.#seed(body.seed)]),
        );
    }

    #seed(seed) {
        const onclick = () => this.#on.keepSeed(seed);
        const keep = html("button", { type: "button", class: "link", "aria-label": `keep the seed ${seed}`, onclick }, "keep");
        return figure("seed", String(seed), " ", !this.isRunning && keep);
    }
}
