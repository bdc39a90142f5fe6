/* What must be known before the first paint: which view the address names, and the theme that was chosen. It is a classic
   script in the head, so that nothing is painted as another view, or in another theme, and then painted again.

   It also asks for all modules of the view at once. A browser that finds them one import after another waits for the
   network at each. tests/page/test_page_modules.py compares the lists with the imports. */

{
    const MODULES = {
        page: "access address api dom errors format inspector notice scale sse store theme",
        generate: "backends branch candidates clipboard curl fields figures generate output roving runs sliders tree words",
        score: "backends clipboard comparison curl fields figures history own-text roving score",
        inside: "backends correlation fields inside inside-heat inside-memory inside-state inside-weights inside-why inside-words",
        weights: "backends chart confirm fields files history upload weights",
    };

    const root = document.documentElement;
    const named = new URLSearchParams(location.hash.slice(1)).get("view");
    root.dataset.view = ["score", "inside", "weights"].includes(named) ? named : "generate";
    try {
        const theme = localStorage.getItem("theme");
        if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    } catch {
        // Storage is forbidden, and the theme is the system's.
    }
    addEventListener("submit", (event) => {
        event.preventDefault(); // modules send forms
        if (!("started" in event.target.dataset)) event.target.dataset.early = ""; // app.js sends it once it can
    });
    for (const name of `${MODULES.page} ${MODULES[root.dataset.view]}`.split(" ")) {
        const link = document.createElement("link");
        link.rel = "modulepreload";
        link.href = `web/js/${name}.js`;
        document.head.append(link);
    }
}
