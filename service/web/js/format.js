/* Numbers for people. */

const NUMBER = new Intl.NumberFormat("en");
const DATE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "medium" });

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const count = (value) => (isNumber(value) ? NUMBER.format(value) : "–");
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Round to `digits` significant digits; whole numbers keep all of theirs. */
export function rounded(value, digits = 3) {
    if (!isNumber(value)) return "–";
    if (Math.abs(value) >= 1e9) return value.toExponential(digits - 1);
    const decimals = Math.max(0, digits - Math.max(1, Math.ceil(Math.log10(Math.abs(value) || 1))));
    return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

export function milliseconds(value) {
    return value >= 10_000 ? `${rounded(value / 1000)} s` : `${rounded(value, 2)} ms`;
}

export function bytes(value) {
    if (value < 1000) return `${value} B`;
    const power = Math.min(3, Math.floor(Math.log10(value) / 3));
    return `${rounded(value / 1000 ** power, 2)} ${["", "kB", "MB", "GB"][power]}`;
}

export const date = (seconds) => DATE.format(new Date(seconds * 1000));
export const dateAndTime = (seconds) => TIME.format(new Date(seconds * 1000));
