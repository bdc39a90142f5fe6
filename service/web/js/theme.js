/* Light or dark: the system's choice, or the button's. That choice is all that this page ever stores. */

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const KEY = "theme";

export function start(button) {
    show(button, stored());
    button.addEventListener("click", () => {
        const theme = NEXT[document.documentElement.dataset.theme ?? "auto"];
        show(button, theme);
        try {
            localStorage.setItem(KEY, theme);
        } catch {
            // If storage is forbidden, the choice lasts until the page is closed.
        }
    });
}

function stored() {
    try {
        return localStorage.getItem(KEY);
    } catch {
        return null;
    }
}

function show(button, theme) {
    const known = Object.hasOwn(NEXT, theme ?? "") ? theme : "auto";
    if (known === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = known;
    button.textContent = `Theme: ${known}`;
}
