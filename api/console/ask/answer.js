// An answer as it streams, each sentence with the numbers of the passages it stands on.

import { h } from "../dom.js";
import { openDocument } from "../document.js";
import { giveCard } from "./card.js";
import { finder, ownCitations, ownPieces, sentences } from "./citations.js";

export class Answer {
  constructor(collection) {
    this.collection = collection;
    this.text = "";
    this.sources = [];
    this.find = () => null;
    this.shown = []; // what each sentence said when it was drawn
    this.element = h("div", { class: "answer", "aria-live": "polite", "aria-busy": "true" });
    this.how = h("p", { class: "muted small" });
  }

  setSources(sources) {
    this.sources = inPromptOrder(sources);
    this.find = finder(this.sources);
    this.shown = [];
    this.draw();
  }

  add(text) {
    this.text += text;
    this.draw();
  }

  end(text) {
    this.text = text ?? this.text;
    this.element.setAttribute("aria-busy", "false");
    this.shown = [];
    this.draw(true);
    const cited = this.element.querySelectorAll(".cite").length;
    if (!this.text) this.element.append(h("span", { class: "muted" }, "The model gave an empty answer."));
    this.how.textContent = !this.text || !this.sources.length ? "" : ownCitations(this.text, this.sources).length
      ? "The numbers are the model’s own: they name passages by their place in its prompt."
      : cited > 0
        ? "The numbers were placed by this page: each names the passage that shares most of the sentence’s telling words."
        : "No passage shares enough words with any sentence of this answer to be named beside it.";
  }

  // Sentences that have not changed keep their elements, so that a card over one stays while the next is written.
  draw(ended = false) {
    const all = sentences(this.text);
    const own = ownCitations(this.text, this.sources);
    all.forEach((sentence, index) => {
      const whole = ended || index < all.length - 1;
      const pieces = own.length ? ownPieces(sentence, own) : null;
      const state = JSON.stringify([sentence.segment, whole, pieces]);
      if (this.shown[index] === state) return;
      const element = this.sentence(sentence.segment, whole, pieces);
      const before = this.element.children[index];
      before ? before.replaceWith(element) : this.element.append(element);
      this.shown[index] = state;
    });
    while (this.element.children.length > all.length) this.element.lastElementChild.remove();
  }

  sentence(sentence, whole, pieces) {
    if (pieces) return h("span", {}, pieces.map((piece) => (typeof piece === "number" ? this.cite(piece, []) : piece)));
    const found = whole ? this.find(sentence) : null;
    if (!found) return h("span", {}, sentence);
    const text = sentence.trimEnd();
    const last = text.match(/\S*$/)[0]; // the number does not begin a line
    return h("span", {}, text.slice(0, text.length - last.length), h("span", { class: "kept" }, last, this.cite(found.number, found.shared)), sentence.slice(text.length));
  }

  cite(number, shared) {
    const source = this.sources[number - 1];
    const label = `Source ${number}: ${source.document_name ?? "passage"}`;
    const button = h("button", { type: "button", class: "cite", "aria-label": label }, String(number));
    button.addEventListener("click", () => openSource(this.collection, source, shared));
    giveCard(button, source, shared);
    return button;
  }
}

// Passages are numbered by their place in the prompt, as the model sees them.
export const inPromptOrder = (sources) => [...sources].sort((one, other) => (one.place ?? 0) - (other.place ?? 0));

export const openSource = (collection, source, shared = []) =>
  openDocument(collection, { id: source.document_id, name: source.document_name }, { passageId: source.passage_id, shared });

export function sourceList(collection, sources) {
  return h("ol", { class: "sources" }, inPromptOrder(sources).map((source, index) =>
    h("li", {}, h("button", { type: "button", class: "source", onclick: () => openSource(collection, source) },
      h("span", { class: "n" }, String(index + 1)),
      h("span", { class: "name" }, h("span", {}, source.document_name ?? "Passage"),
        h("span", {}, source.score === null ? "" : source.score.toFixed(2))),
      h("span", { class: "snippet" }, source.text.trim())))));
}
