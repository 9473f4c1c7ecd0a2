// All collections, and one of them with its documents.

import { empty, errorNotice, h } from "../dom.js";
import { collectionPath, get, post } from "../api.js";
import { counted, day } from "../format.js";
import { deleteCollection } from "./deletion.js";
import { documentTable } from "./documents.js";
import { dropZone } from "./upload.js";

export function collectionsView(query) {
  const name = query.get("c");
  const body = h("div", { class: "view" }, h("p", { class: "muted" }, "Looking …"));
  (name === null ? all() : one(name)).then((parts) => body.replaceChildren(...parts), (error) => body.replaceChildren(head(name), errorNotice(error)));
  return body;
}

const head = (name, ...more) => h("div", { class: "view-head" }, name !== null && h("p", { class: "small" }, h("a", { href: "#/collections" }, "Collections")), h("h1", {}, name ?? "Collections"), more);

async function all() {
  const { collections } = await get("v1/collections");
  const list = h("div", { class: "listed" }, collections.map((each) =>
    h("a", { href: `#/collections?c=${encodeURIComponent(each.name)}` }, h("strong", {}, each.name),
      h("span", { class: "muted small" }, `${counted(each.num_documents, "document")}, ${counted(each.num_passages, "passage")}`))));
  return [
    head(null, h("p", {}, "A collection’s documents are split into passages, and each passage’s KV is computed once, as they come in.")),
    collections.length ? list : empty("Nothing here yet", "Name a collection below, then drop your documents on it."),
    creation(),
  ];
}

function creation() {
  const field = (label, input) => h("label", { class: "field" }, h("span", {}, label), input);
  const name = h("input", { name: "name", required: true, maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*", placeholder: "handbook", spellcheck: "false",
    title: "Letters, digits, dots, dashes and underscores, beginning with a letter or digit" });
  const tokens = h("input", { name: "passage_tokens", type: "number", min: "32", max: "2048", value: "256" });
  const failed = h("div", {});
  const form = h("form", { class: "stack", onsubmit: create },
    h("div", { class: "choices-row" }, field("Name", name), field("Tokens a passage", tokens), h("button", { class: "main" }, "Create")), failed);
  return h("section", { class: "section", "aria-labelledby": "create-title" }, h("h2", { id: "create-title" }, "New collection"), form);

  async function create(event) {
    event.preventDefault();
    try {
      await post("v1/collections", { name: name.value.trim(), passage_tokens: Number(tokens.value) });
      location.hash = `#/collections?c=${encodeURIComponent(name.value.trim())}`;
    } catch (error) {
      failed.replaceChildren(errorNotice(error));
    }
  }
}

async function one(name) {
  const collection = await get(collectionPath(name));
  const documents = documentTable(name);
  const result = h("div", {});
  return [
    head(name, h("p", { class: "small" }, `Made ${day(collection.created_at)} for ${modelName(collection.model)}; passages of up to ${counted(collection.passage_tokens, "token")}, encoded behind ${behind(collection.warm_context)}.`)),
    dropZone(name, { onChange: documents.refresh }),
    h("section", { class: "section", "aria-labelledby": "documents-title" },
      h("div", { class: "section-head" }, h("h2", { id: "documents-title" }, "Documents"), h("a", { class: "small", href: `#/ask?c=${encodeURIComponent(name)}` }, "Ask this collection")),
      documents.element),
    h("section", { class: "section", "aria-labelledby": "limits-title" }, h("h2", { id: "limits-title" }, "Delete"),
      h("p", { class: "muted small" }, "Deletes the documents, their vectors and every file of their KV."),
      h("div", { class: "row" }, h("button", { type: "button", class: "danger", onclick: () => deleteCollection(name, result) }, "Delete this collection")), result),
  ];
}

const modelName = (model) => model.split("/").filter(Boolean).pop();
const behind = (warm) => ({ document: "the text that precedes them in their own document", neutral: "a neutral text" })[warm] ?? "the collection’s own text";
