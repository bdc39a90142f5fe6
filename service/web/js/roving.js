/* Many words as one stop of the Tab key: inside it, the arrow keys, Home and End move from word to word. */

const MOVES = {
    ArrowRight: (index) => index + 1,
    ArrowLeft: (index) => index - 1,
    Home: () => 0,
    End: (index, last) => last,
};

/** Make the `.word` elements of `text` one stop. Returns a function that takes in a new word: Tab moves to the first. */
export function roving(text) {
    let stop = null; // the word that Tab moves to

    function stopAt(word) {
        if (stop) stop.tabIndex = -1;
        stop = word;
        word.tabIndex = 0;
    }

    text.addEventListener("keydown", (event) => {
        const move = MOVES[event.key];
        if (!move || !event.target.matches(".word") || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        const words = [...text.querySelectorAll(".word")];
        words[Math.max(0, Math.min(words.length - 1, move(words.indexOf(event.target), words.length - 1)))].focus();
    });
    text.addEventListener("focusin", (event) => event.target.matches(".word") && stopAt(event.target));
    text.addEventListener("click", (event) => event.target.focus()); // Safari does not focus a button that is clicked
    return (word) => {
        if (stop) word.tabIndex = -1;
        else stopAt(word);
    };
}
