// The table of a collection's documents.

import { empty, errorNotice, h } from "../dom.js";
import { collectionPath, get, segment } from "../api.js";
import { ago, count } from "../format.js";
import { openDocument } from "../document.js";
import { deleteDocument } from "./deletion.js";
import { KINDS } from "./upload.js";

const PAGE = 50;

export function documentTable(collection) {
  const proof = h("div", {});
  const place = h("div", { class: "stack" });
  const element = h("div", { class: "stack" }, proof, place);
  refresh();
  return { element, refresh };

  async function refresh() {
    try {
      const { documents, next_after: after } = await page("");
      if (!documents.length) return place.replaceChildren(empty("No documents yet", `Drop files above: ${KINDS}.`));
      const body = h("tbody", {}, documents.map(row));
      const more = h("button", { type: "button", class: "plain" }, "Show more");
      let from = after;
      more.addEventListener("click", async () => {
        const next = await page(from);
        body.append(...next.documents.map(row));
        from = next.next_after;
        more.hidden = !from;
      });
      more.hidden = !from;
      place.replaceChildren(
        h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {},
          h("th", { scope: "col" }, "Name"), h("th", { scope: "col", class: "number" }, "Passages"), h("th", { scope: "col", class: "number extra" }, "Tokens"),
          h("th", { scope: "col" }, "Added"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Acts")))), body)),
        h("div", { class: "row" }, more));
    } catch (error) {
      place.replaceChildren(errorNotice(error));
    }
  }

  function page(after) {
    const behind = after ? `&after=${segment(after)}` : "";
    return get(`${collectionPath(collection)}/documents?limit=${PAGE}${behind}`);
  }

  function row(document) {
    return h("tr", {},
      h("td", {}, h("button", { type: "button", class: "link", onclick: () => openDocument(collection, document) }, document.name)),
      h("td", { class: "number" }, count(document.num_passages)), h("td", { class: "number extra" }, count(document.num_tokens)),
      h("td", { class: "still" }, ago(document.created_at)),
      h("td", { class: "acts" }, h("button", { type: "button", class: "danger small", "aria-label": `Delete ${document.name}`,
        onclick: () => deleteDocument(collection, document, proof, refresh) }, "Delete")));
  }
}
