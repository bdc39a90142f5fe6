/* The same request as a command. */

import { requiresToken } from "./access.js";

/** Return a command for a POSIX shell. It does not contain the token, which the shell should have in a variable. */
export function curl(path, body) {
    const lines = [`curl -N ${quoted(new URL(path, document.baseURI).href)}`, "-H 'content-type: application/json'"];
    if (requiresToken()) lines.push('-H "authorization: Bearer $RNN_API_TOKEN"');
    lines.push(`-d ${quoted(JSON.stringify(body))}`);
    return lines.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
