// The passages of a collection whose KV was used last. How often is not counted: `num_uses` is what the eviction policy has left of it.

import { errorNotice, h } from "../dom.js";
import { collectionPath, get, post, segment } from "../api.js";
import { ago, bytes, count } from "../format.js";
import { openDocument } from "../document.js";
import { collectionSelect } from "../collections/names.js";

const SHOWN = 15;
const READ = 20; // documents, to learn which of them hold the passages shown; of more, a passage's id is all there is

export function lastUsed() {
  const place = h("div", {}, h("p", { class: "muted small" }, "Looking …"));
  const chooser = h("div", {});
  const section = h("section", { class: "section", "aria-labelledby": "last-used-title" }, h("div", { class: "section-head" }, h("h2", { id: "last-used-title" }, "Used last"), chooser), place);
  collectionSelect(null)
    .then(({ select, collections }) => {
      if (!collections.length) return place.replaceChildren(h("p", { class: "muted small" }, "There is no collection yet."));
      chooser.append(h("div", { class: "asker-foot bare" }, select));
      select.addEventListener("change", () => fill(select.value));
      return fill(select.value);
    })
    .catch((error) => place.replaceChildren(errorNotice(error)));
  return section;

  async function fill(collection) {
    try {
      const { files, missing } = await post("v1/kv/lookup", { collection });
      const last = byLastUse(files).slice(0, SHOWN);
      place.replaceChildren(files.length ? table(collection, last, await homes(collection, last), files) : h("p", { class: "muted small" }, `No KV of this collection is stored; ${count(missing.length)} passages have none.`));
    } catch (error) {
      place.replaceChildren(errorNotice(error));
    }
  }
}

function byLastUse(files) {
  const passages = [...Map.groupBy(files, (file) => file.passage_id)].map(([id, own]) => ({
    id, used: Math.max(...own.map((file) => file.used_at)),
    tiers: [...new Set(own.map((file) => file.tier))], bytes: own.reduce((sum, file) => sum + file.num_bytes, 0), pinned: own.some((file) => file.pinned),
  }));
  return passages.sort((one, other) => other.used - one.used);
}

// By passage id, its text and a document that holds it.
async function homes(collection, passages) {
  const wanted = new Set(passages.map((each) => each.id));
  const found = new Map();
  const { documents } = await get(`${collectionPath(collection)}/documents?limit=${READ}`);
  for (const document of documents) {
    if (found.size === wanted.size) break;
    const page = await get(`${collectionPath(collection)}/passages?document_id=${segment(document.id)}&limit=1000`);
    for (const { passage_id: id, text } of page.passages) if (wanted.has(id) && !found.has(id)) found.set(id, { document, text });
  }
  return found;
}

function table(collection, passages, known, files) {
  const all = new Set(files.map((file) => file.passage_id)).size;
  const name = ({ id }) => {
    const home = known.get(id);
    if (!home) return h("span", { class: "mono" }, id.slice(0, 16));
    return [h("button", { type: "button", class: "link", onclick: () => openDocument(collection, home.document, { passageId: id }) }, home.document.name),
      h("span", { class: "muted small cut" }, home.text.trim())];
  };
  return h("div", { class: "wide" }, h("table", {},
    h("caption", {}, `${count(passages.length)} of ${count(all)} passages with stored KV`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Passage"), h("th", { scope: "col" }, "Used or stored"), h("th", { scope: "col" }, "On"), h("th", { scope: "col", class: "number" }, "Bytes"))),
    h("tbody", {}, passages.map((each) => h("tr", {}, h("td", {}, name(each), each.pinned && h("span", { class: "tag set" }, "pinned")),
      h("td", { class: "still" }, ago(each.used)), h("td", { class: "still" }, each.tiers.join(", ")), h("td", { class: "number" }, bytes(each.bytes)))))));
}
