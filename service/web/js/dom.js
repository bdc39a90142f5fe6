/* Elements made from data. Text goes in as text nodes and nothing is parsed as HTML, so that no word of a model, a file
   or a person can become markup. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an HTML element. attributes: an `on...` function listens; true gives an empty attribute, null and false none. */
export function html(tag, attributes = {}, ...children) {
    return furnish(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
    return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function furnish(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function") node.addEventListener(name.slice(2), value);
        else if (value === true) node.setAttribute(name, "");
        else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
    return node;
}

/** Announce `text` to screen readers. */
export function announce(text) {
    byId("announcer").textContent = text;
}
