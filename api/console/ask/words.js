// A window of the context as words, each with its fate and the rank of its score.

import { h } from "../dom.js";
import { count, significant } from "../format.js";
import { TokenRow } from "../token_row.js";
import { FATES } from "./fates.js";

export class Words extends TokenRow {
  constructor({ tokens, passages }, fates) {
    super("Words of the tokens shown");
    this.tokens = tokens;
    this.fates = fates;
    this.passedOver = new Map(passages.filter((own) => own.passed_over).map((own) => [own.start, own.passed_over])); // tiers, by a passage's first token
    this.ranks = ranks(tokens.scores);
  }

  show(start, size) {
    const known = this.tokens.texts.length > 0;
    const words = known ? Array.from({ length: size }, (_, index) => this.word(start + index)) : ["The service gave no words."];
    this.fill(start, words, "Point at a word, or go by arrow keys, to see its fate and score.");
  }

  word(token) {
    const rank = this.ranks.places[token];
    const shade = rank === undefined ? {} : { "--rank": ((1 - (rank - 1) / this.ranks.count) ** 4).toFixed(2) };
    return TokenRow.word(token, this.tokens.texts[token], this.fates[token], shade);
  }

  about(token) {
    const passage = this.tokens.passages.findIndex(([from, to]) => token >= from && token < to);
    const tier = passage < 0 ? undefined : this.passedOver.get(this.tokens.passages[passage][0]);
    const score = this.tokens.scores[token];
    const rank = this.ranks.places[token];
    return [
      h("b", {}, JSON.stringify(this.tokens.texts[token])),
      ` token ${count(token + 1)}, ${passage < 0 ? "of the preamble" : `of passage ${passage + 1}`}: `,
      h("b", {}, this.fates[token]), `, ${FATES[this.fates[token]]}`,
      rank === undefined ? "" : `; score ${significant(score)}, rank ${count(rank)} of ${count(this.ranks.count)}`,
      tier === undefined ? "" : `; its KV on ${tier} was passed over: to load it would have taken longer`,
    ];
  }
}

function ranks(scores) {
  const scored = scores.flatMap((score, token) => (score === null ? [] : [[score, token]]));
  scored.sort(([one], [other]) => other - one);
  const places = {};
  scored.forEach(([, token], index) => (places[token] = index + 1));
  return { places, count: scored.length };
}
