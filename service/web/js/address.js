/* The page's state in its address: #view=generate&prompt=The%20king&seed=7. It stands in the fragment, which browsers
   keep to themselves: no prompt reaches a log of the service or of a proxy through a link.

   A form's fields are its state, and its HTML has their defaults; only what differs from them is in the address. */

const forms = {}; // by view
const defaults = {};
const followers = [];

/** Return the view that the address names; "generate" if it names none. */
export function view() {
    const name = parameters().get("view");
    return Object.hasOwn(forms, name ?? "") ? name : "generate";
}

/** Keep the address and a view's form in step. */
export function bind(name, form) {
    forms[name] = form;
    defaults[name] = fields(form);
    for (const kind of ["input", "change"]) {
        // A form's fields may stand outside of it, where their events do not pass it.
        document.addEventListener(kind, (event) => event.target.form === form && write());
    }
}

/** Call `follower` when the person follows a link or goes back. */
export const onChange = (follower) => followers.push(follower);

/** Write the state of the view's form to the address, without a new entry in the browser's history. */
export function write() {
    history.replaceState(null, "", link(view()));
}

/** Return the address of a view with its form as it is, or with other values of its fields. */
export function link(name, values = fields(forms[name])) {
    const state = new URLSearchParams({ view: name });
    for (const [key, value] of Object.entries(values)) {
        if (value !== defaults[name][key]) state.set(key, value);
    }
    return `#${state}`;
}

/** Fill the view's form from the address. */
export function read() {
    const name = view();
    const state = parameters();
    for (const [key, initial] of Object.entries(defaults[name])) {
        set(forms[name].elements[key], state.get(key) ?? initial);
    }
}

addEventListener("popstate", () => {
    for (const follow of followers) follow();
});

const parameters = () => new URLSearchParams(location.hash.slice(1));

/** Return the values of a form's fields by name; "" for a box that is not ticked. */
function fields(form) {
    const values = {};
    for (const field of form.elements) {
        if (!field.name || field.type === "file") continue;
        if (field.type === "checkbox") values[field.name] = field.checked ? field.value : "";
        else if (field.type !== "radio" || field.checked) values[field.name] = field.value;
    }
    return values;
}

function set(field, value) {
    if (field.type === "checkbox") {
        field.checked = field.value === value;
        return;
    }
    // A choice that is not listed (weights that are gone, or not loaded yet) is kept, for the service to judge.
    if (field instanceof HTMLSelectElement && ![...field.options].some((option) => option.value === value)) {
        field.add(new Option(value));
    }
    field.value = value;
}
