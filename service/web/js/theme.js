/* Light or dark: as the system says, or as the button says. The choice is all that this page ever stores. */

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
            // Storage may be forbidden; the choice then holds until the page is left.
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
