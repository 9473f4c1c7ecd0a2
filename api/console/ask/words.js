// A window of the context as words, each with its fate and the rank of its score.

import { h } from "../dom.js";
import { count, significant } from "../format.js";
import { FATES } from "./fates.js";

export class Words {
  constructor(tokens, fates) {
    this.tokens = tokens;
    this.fates = fates;
    this.ranks = ranks(tokens.scores);
    this.at = 0;
    this.element = h("div", { class: "words", tabindex: "0", role: "group", "aria-label": "Words of the tokens shown; arrow keys go from token to token" });
    this.readout = h("p", { class: "readout", role: "status" });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.element.addEventListener("mouseover", (event) => event.target.dataset.token && this.tell(Number(event.target.dataset.token)));
  }

  show(start, size) {
    this.start = start;
    this.size = size;
    this.at = start;
    const known = this.tokens.texts.length > 0;
    this.element.replaceChildren(...(known ? Array.from({ length: size }, (_, index) => this.word(start + index)) : ["The service gave no words."]));
    this.element.scrollTop = 0;
    this.readout.replaceChildren("Point at a word, or go by arrow keys, to see its fate and score.");
  }

  word(token) {
    const rank = this.ranks.places[token];
    const shade = rank === undefined ? {} : { "--rank": ((1 - (rank - 1) / this.ranks.count) ** 4).toFixed(2) };
    return h("span", { class: `word ${this.fates[token]}`, "data-token": String(token), vars: shade }, visible(this.tokens.texts[token]));
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
    const word = this.element.children[token - this.start];
    word?.classList.add("at");
    const passage = this.tokens.passages.findIndex(([from, to]) => token >= from && token < to);
    const score = this.tokens.scores[token];
    const rank = this.ranks.places[token];
    this.readout.replaceChildren(
      h("b", {}, JSON.stringify(this.tokens.texts[token])),
      ` token ${count(token + 1)}, ${passage < 0 ? "of the preamble" : `of passage ${passage + 1}`}: `,
      h("b", {}, this.fates[token]), `, ${FATES[this.fates[token]]}`,
      rank === undefined ? "" : `; score ${significant(score)}, rank ${count(rank)} of ${count(this.ranks.count)}`);
  }
}

const visible = (text) => text.replaceAll("\n", "↵\u200b").replaceAll("\t", "⇥");

function ranks(scores) {
  const scored = scores.flatMap((score, token) => (score === null ? [] : [[score, token]]));
  scored.sort(([one], [other]) => other - one);
  const places = {};
  scored.forEach(([, token], index) => (places[token] = index + 1));
  return { places, count: scored.length };
}
