// A document in a sheet: its passages in order, one of them shown, and where the KV of each lies.

import { announce, errorNotice, h } from "./dom.js";
import { collectionPath, get, post, segment } from "./api.js";
import { ago, bytes, count, counted } from "./format.js";
import { marked } from "./ask/citations.js";

const PAGE = 200;

export function openDocument(collection, { id, name }, { passageId = null, shared = [] } = {}) {
  const list = h("div", {}, h("p", { class: "sheet-body muted" }, "Reading the document …"));
  const about = h("p", { class: "muted small" });
  const close = h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close");
  const dialog = h("dialog", { class: "sheet", "aria-labelledby": "document-title", onclick: (event) => event.target === dialog && dialog.close() },
    h("div", { class: "sheet-head" }, h("div", {}, h("h2", { id: "document-title" }, name ?? id), about), close), list);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  fill().catch((error) => list.replaceChildren(h("div", { class: "sheet-body" }, errorNotice(error))));

  async function fill() {
    const kv = readKV(collection, id);
    list.replaceChildren();
    let after = 0;
    let found = false;
    do after = await addPage(after, kv); while (passageId && !(found = list.querySelector('[aria-current="true"]')) && after);
    if (found) found.scrollIntoView({ block: "center" });
    if (passageId) announce(found ? "The cited passage is highlighted" : "The document no longer has that passage");
    more(after, kv);
    const { files, error } = await kv;
    about.textContent = error ? error.message : `${counted(list.children.length - (after ? 1 : 0), "passage")}${after ? " shown" : ""} · ${kvWords(files)}`;
  }

  async function addPage(after, kv) {
    const page = await get(`${collectionPath(collection)}/passages?document_id=${segment(id)}&after=${after}&limit=${PAGE}`);
    page.passages.forEach((passage, index) => list.append(passageElement(passage, after + index + 1, kv)));
    return page.next_after;
  }

  function more(after, kv) {
    if (!after) return;
    const button = h("button", { type: "button", class: "plain", onclick: async () => { row.remove(); more(await addPage(after, kv), kv); } }, "Show more");
    const row = h("div", { class: "sheet-body" }, button);
    list.append(row);
  }

  function passageElement(passage, number, kv) {
    const isShown = passage.passage_id === passageId;
    const where = h("span", {});
    const pin = h("button", { type: "button", class: "plain small", hidden: true });
    kv.then(({ byPassage }) => showKV(byPassage?.get(passage.passage_id) ?? [], where, pin, passage));
    return h("article", { class: "passage", "aria-current": isShown ? "true" : false },
      h("div", { class: "passage-head" }, h("strong", {}, `Passage ${count(number)}`), h("span", {}, counted(passage.num_tokens, "token")), where,
        h("span", { class: "spring" }), pin),
      h("div", { class: "passage-text" }, isShown ? marked(passage.text.trim(), shared, (word) => h("mark", {}, word)) : passage.text.trim()));
  }

  function showKV(files, where, pin, passage) {
    const tiers = [...new Set(files.map((file) => file.tier))];
    where.textContent = files.length ? `KV on ${tiers.join(" and ")}, used or stored ${ago(Math.max(...files.map((file) => file.used_at)))}` : "no KV stored";
    if (!files.length) return;
    let pinned = files.some((file) => file.pinned);
    const show = () => { pin.textContent = pinned ? "Unpin" : "Pin"; pin.setAttribute("aria-pressed", String(pinned)); };
    pin.hidden = false;
    pin.setAttribute("aria-label", `Keep the KV of this passage from eviction`);
    pin.addEventListener("click", async () => {
      try {
        await post(`v1/kv/${pinned ? "unpin" : "pin"}`, { collection, document_id: id, passage_ids: [passage.passage_id] });
        pinned = !pinned;
        show();
        announce(pinned ? "Pinned" : "Unpinned");
      } catch (error) {
        where.textContent = error.message;
      }
    });
    show();
  }
}

export const kvWords = (files) => (files.length ? `${counted(files.length, "KV file")}, ${bytes(files.reduce((sum, file) => sum + file.num_bytes, 0))}` : "no KV stored");

async function readKV(collection, id) {
  try {
    const { files } = await post("v1/kv/lookup", { collection, document_id: id });
    return { files, byPassage: Map.groupBy(files, (file) => file.passage_id) };
  } catch (error) {
    return { files: [], error };
  }
}
