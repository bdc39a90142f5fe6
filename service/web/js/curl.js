/* The command that asks the service the same thing. */

import { usesToken } from "./access.js";

/** A command for a POSIX shell. The token is not in it: the shell is to have it in a variable. */
export function curl(path, body) {
    const lines = [`curl -N ${quoted(new URL(path, document.baseURI).href)}`, "-H 'content-type: application/json'"];
    if (usesToken()) lines.push('-H "authorization: Bearer $RNN_API_TOKEN"');
    lines.push(`-d ${quoted(JSON.stringify(body))}`);
    return lines.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
