/* The upload: choosing or dropping a file, its progress, and the service's reasons if it refuses. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { isStop } from "./errors.js";
import { clearComplaints, complain } from "./fields.js";
import { bytes } from "./format.js";
import { clear, notify, tell } from "./notice.js";
import { refresh } from "./store.js";

const form = byId("upload-form");
const field = form.elements;
const notice = byId("upload-notice");
const drop = byId("drop");
let running = null; // the AbortController of the upload in progress
let isSent = false; // whether all of its file has been sent

export function start() {
    form.addEventListener("submit", submit);
    byId("upload-cancel").addEventListener("click", () => running?.abort());
    drop.addEventListener("dragover", (event) => {
        event.preventDefault();
        drop.classList.add("over");
    });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        if (event.dataTransfer.files.length > 0) field.file.files = event.dataTransfer.files;
    });
}

function submit(event) {
    event.preventDefault();
    clearComplaints(form);
    clear(notice);
    const [file] = field.file.files;
    if (file) upload(file);
    else complain(form, [{ field: "file", message: "must be chosen first" }]);
}

async function upload(file) {
    const data = new FormData();
    if (field.name.value.trim()) data.set("name", field.name.value.trim());
    if (field.overwrite.checked) data.set("overwrite", "true");
    data.set("file", file);
    running = new AbortController();
    showRunning(true);
    try {
        const added = await api.uploadWeights(data, { signal: running.signal, onProgress: progress });
        form.reset();
        const renamed = added.renamed_from === null ? "" : `, named ${added.name} here`;
        const what = `${added.renamed_from ?? added.name} is ${added.replaced ? "replaced" : "added"}${renamed}`;
        notify(notice, `${what}. It can be used at once.`, { kind: "done" });
        refresh();
    } catch (error) {
        refuse(error, file);
    } finally {
        running = null;
        showRunning(false);
    }
}

function refuse(error, file) {
    if (isStop(error)) {
        const rest = isSent ? ". If the service had just accepted the file, the list has it." : ", and nothing of it is kept.";
        notify(notice, `The upload was cancelled${rest}`, { kind: "done" });
        if (isSent) refresh();
    } else if (error.code === "weights_exist") {
        notify(notice, "There are weights of this name already. Choose another name, or tick the box to replace them.");
    } else if (error.code === "invalid_weights") {
        notify(notice, `The service refused ${file.name}, and says: “${error.message}”.`);
    } else tell(notice, error, () => upload(file));
}

function progress(sent, total) {
    isSent = sent === total;
    const bar = byId("upload-bar");
    byId("upload-progress").hidden = false;
    bar.max = total;
    if (!isSent) {
        bar.value = sent;
        byId("upload-state").textContent = `${bytes(sent)} of ${bytes(total)} sent`;
    } else {
        bar.removeAttribute("value"); // nobody knows how long the checks take
        byId("upload-state").textContent = "All sent. The service checks every number and tries each back end.";
    }
}

function showRunning(isRunning) {
    byId("upload-go").disabled = isRunning;
    byId("upload-cancel").hidden = !isRunning;
    isSent = false;
    byId("upload-progress").hidden = true; // until something is sent: the token may have to be asked for
    byId("upload-bar").value = 0;
    byId("upload-state").textContent = "";
}
