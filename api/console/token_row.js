// Tokens as words in a row: pointing at one, or going to it by arrow keys, tells of it below.

import { h } from "./dom.js";

export class TokenRow {
  constructor(label) {
    this.start = this.size = this.at = 0;
    this.element = h("div", { class: "words", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys go from token to token` });
    this.readout = h("p", { class: "readout", role: "status" });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.element.addEventListener("mouseover", (event) => event.target.dataset.token && this.tell(Number(event.target.dataset.token)));
  }

  // `words`: an element for each token from `start` on, or one text in their place.
  fill(start, words, hint) {
    this.start = this.at = start;
    this.size = words.length;
    this.element.replaceChildren(...words);
    this.element.scrollTop = 0;
    this.readout.replaceChildren(hint);
  }

  // One token's element, of a class of its own.
  static word(token, text, kind, vars = {}) {
    return h("span", { class: `word ${kind}`, "data-token": String(token), vars }, text.replaceAll("\n", "↵\u200b").replaceAll("\t", "⇥"));
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -this.size, End: this.size }[event.key];
    if (!step) return;
    event.preventDefault();
    this.tell(Math.max(this.start, Math.min(this.start + this.size - 1, this.at + step)));
  }

  tell(token) {
    this.element.querySelector(".at")?.classList.remove("at");
    this.at = token;
    this.element.children[token - this.start]?.classList.add("at");
    this.readout.replaceChildren(...this.about(token));
  }
}
