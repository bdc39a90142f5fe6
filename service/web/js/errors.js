/* What can go wrong with a request. An AbortError is a stop that was asked for. */

import { plural } from "./format.js";

/** The service answered with an error: an RFC 9457 problem, or whatever a proxy in between sends (problem: null). */
export class Refused extends Error {
    constructor(status, problem, retryAfter = null) {
        super(problem?.detail ?? `The service answered with the error ${status} and no reason.`);
        this.status = status;
        this.code = problem?.code ?? "unknown";
        this.fields = Array.isArray(problem?.errors) ? problem.errors : []; // {field, message} of a validation
        this.retryAfter = Number(retryAfter) || null; // seconds
    }
}

/** There was no answer, or it broke off. */
export class Unreachable extends Error {}

export const LOST = "The connection to the service is lost: it may have stopped, or the network may be down.";
export const BROKEN = "The connection broke off before the answer was complete.";

export const isStop = (error) => error.name === "AbortError";
export const isBackendMissing = (error) => error.status === 501;

const PASSING = [408, 429, 500, 502, 503, 504];
export const isRetryable = (error) => error instanceof Unreachable || PASSING.includes(error.status);

/** Return what happened, and what to do, in a sentence. */
export function explain(error) {
    if (error.status === 429 && error.retryAfter) {
        return `The service is busy. Try again in ${plural(error.retryAfter, "second")}.`;
    }
    if (error.code === "unauthorized") return "The service requires its token, and none was given.";
    if (error instanceof Refused || error instanceof Unreachable) return sentence(error.message);
    throw error; // a bug of this page: show it in the console
}

/** Add a capital and a full stop. */
export function sentence(text) {
    const begun = text.charAt(0).toUpperCase() + text.slice(1);
    return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
