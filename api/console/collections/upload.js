// Files on their way in: dropped or chosen, one job an upload, its progress by passage as the service tells it.

import { announce, errorNotice, h } from "../dom.js";
import { ApiError, collectionPath, events, segment, upload } from "../api.js";
import { count, counted, milliseconds } from "../format.js";

export const KINDS = "txt, md, html, pdf, docx, pptx, xlsx, csv";
const ACCEPTED = ".txt,.text,.rst,.md,.markdown,.html,.htm,.xhtml,.pdf,.docx,.pptx,.xlsx,.csv";
const REFUSED = [400, 413, 415]; // for what a file is

export function dropZone(collection, { onChange }) {
  const input = h("input", { type: "file", id: "files", multiple: true, accept: ACCEPTED, onchange: () => { begin([...input.files]); input.value = ""; } });
  const zone = h("div", { class: "drop moves", role: "group", "aria-label": "Upload documents" },
    h("span", {}, "Drop documents here, or "), input, h("label", { for: "files" }, "choose files"), h("span", { class: "small" }, KINDS));
  const jobs = h("div", { class: "stack" });
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", (event) => zone.contains(event.relatedTarget) || zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("over"); begin([...event.dataTransfer.files]); });
  return h("div", { class: "stack" }, zone, jobs);

  // All files together, or one by one where one of them is refused.
  async function begin(files) {
    if (!files.length) return;
    const shown = new JobProgress(files.map((file) => file.name));
    jobs.prepend(shown.element);
    try {
      const form = new FormData();
      for (const file of files) form.append("files", file);
      let job = await upload(`${collectionPath(collection)}/documents`, form);
      shown.draw(job);
      for await (const [name, data] of events("GET", `${collectionPath(collection)}/jobs/${segment(job.id)}/events`)) {
        if (name === "error") throw new Error(data.error.message);
        shown.draw((job = data));
      }
      announce(job.status === "succeeded" ? "The documents are in" : "The upload ended with errors");
    } catch (error) {
      if (files.length > 1 && error instanceof ApiError && REFUSED.includes(error.status)) {
        shown.element.remove();
        for (const file of files) await begin([file]);
        return;
      }
      shown.fail(error);
    }
    onChange();
  }
}

class JobProgress {
  constructor(names) {
    this.title = h("strong", {}, names.length === 1 ? names[0] : `${names[0]} and ${counted(names.length - 1, "other")}`);
    this.state = h("span", { class: "muted" }, "sending");
    this.encoded = h("div", { class: "part" });
    this.reused = h("div", { class: "part reused" });
    this.deferred = h("div", { class: "part deferred" });
    this.track = h("div", { class: "track", role: "progressbar", "aria-label": "Passages", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "0" }, this.encoded, this.reused, this.deferred);
    this.more = h("div", {});
    this.element = h("div", { class: "meter" }, h("div", { class: "meter-head" }, this.title, this.state), this.track, this.more);
  }

  draw(job) {
    const total = job.passages_total;
    let from = 0;
    for (const [part, passages] of [[this.encoded, job.passages_encoded], [this.reused, job.passages_reused], [this.deferred, job.passages_deferred]]) {
      const to = from + (total ? (100 * passages) / total : 0);
      part.hidden = to === from;
      part.style.setProperty("--from", `${from}%`);
      part.style.setProperty("--to", `${to}%`);
      from = to;
    }
    this.track.setAttribute("aria-valuenow", String(Math.round(from)));
    const told = [[job.passages_encoded, "encoded"], [job.passages_reused, "stored already"], [job.passages_deferred, "left to their first use"]]
      .filter(([passages]) => passages).map(([passages, what]) => `${count(passages)} ${what}`);
    const ended = { succeeded: `done in ${milliseconds(job.seconds * 1000)}`, failed: "failed", queued: "queued", running: total ? "encoding" : "reading" }[job.status];
    this.state.textContent = [total ? `${counted(total, "passage")}: ${told.join(", ") || "none encoded yet"}` : null, ended].filter(Boolean).join(" · ");
    const failures = Object.entries(job.failures);
    if (job.status !== "failed") return;
    this.more.replaceChildren(h("div", { class: "notice bad", role: "alert" }, h("strong", {}, failures.length ? "Some documents were not taken" : "The job failed"),
      failures.map(([id, why]) => h("p", {}, h("b", {}, id), `: ${why}`)), job.error && !failures.length && h("p", {}, job.error)));
  }

  fail(error) {
    this.state.textContent = "failed";
    this.more.replaceChildren(errorNotice(error));
  }
}
