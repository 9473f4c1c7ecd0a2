// Passages by their ids, as the store has them: the document that holds each, where it is found, and the passage's words.

import { h } from "../dom.js";
import { collectionPath, get, segment } from "../api.js";
import { openDocument } from "../document.js";

const READ = 20; // documents, to learn which of them hold the passages wanted; of more, a passage's id is all there is

// By passage id, its text and a document that holds it.
export async function homes(collection, ids) {
  const wanted = new Set(ids);
  const found = new Map();
  const { documents } = await get(`${collectionPath(collection)}/documents?limit=${READ}`);
  for (const document of documents) {
    if (found.size === wanted.size) break;
    const page = await get(`${collectionPath(collection)}/passages?document_id=${segment(document.id)}&limit=1000`);
    for (const { passage_id: id, text } of page.passages) if (wanted.has(id) && !found.has(id)) found.set(id, { document, text });
  }
  return found;
}

export function passageName(collection, known, id) {
  const home = known.get(id);
  if (!home) return h("span", { class: "mono" }, id.slice(0, 16));
  return [h("button", { type: "button", class: "link", onclick: () => openDocument(collection, home.document, { passageId: id }) }, home.document.name),
    h("span", { class: "muted small cut" }, home.text.trim())];
}
