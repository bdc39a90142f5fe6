/* Pearson's correlation, and which hidden units go together by it. */

/** Return r of two lists of numbers, from -1 to 1; null where one of them does not vary. */
export function pearson(a, b) {
    const [x, y] = [centred(a), centred(b)];
    const scale = Math.sqrt(dot(x, x) * dot(y, y));
    return scale > 1e-9 ? dot(x, y) / scale : null;
}

/** Compare every unit of `state` (words, units) with `unit` over the words first to last.
 *
 * Returns {unit, r} of the others, the largest r first; null where `unit` does not vary. */
export function alike(state, unit, first, last) {
    const rows = state.slice(first, last + 1);
    const column = (index) => rows.map((row) => row[index]);
    const own = column(unit);
    if (pearson(own, own) === null) return null;
    return state[0]
        .map((_, index) => ({ unit: index, r: index === unit ? null : pearson(own, column(index)) }))
        .filter(({ r }) => r !== null)
        .sort((a, b) => b.r - a.r);
}

function centred(values) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return values.map((value) => value - mean);
}

const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
