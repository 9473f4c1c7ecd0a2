// How far each of a blend's answer tokens is from what full prefill holds in its place.

import { h } from "../dom.js";
import { count, significant } from "../format.js";
import { TokenRow } from "../token_row.js";

export const meanKl = ({ kls }) => kls.reduce((sum, kl) => sum + kl, 0) / kls.length;

class AnswerTokens extends TokenRow {
  constructor({ kls, agrees, texts }) {
    super("The blend’s answer by token");
    Object.assign(this, { kls, agrees, texts });
    const most = Math.max(...kls);
    const words = kls.map((kl, token) =>
      TokenRow.word(token, texts[token], agrees[token] ? "agrees" : "departs", { "--rank": (most > 0 ? kl / most : 0).toFixed(2) }));
    this.fill(0, words, "Point at a word, or go by arrow keys, to see its divergence.");
  }

  about(token) {
    return [
      h("b", {}, JSON.stringify(this.texts[token])), ` token ${count(token + 1)}: KL `, h("b", {}, significant(this.kls[token])),
      this.agrees[token] ? ", both hold the same token likeliest" : ", full prefill holds another token likeliest",
    ];
  }
}

export function divergenceView(divergence) {
  const tokens = new AnswerTokens(divergence);
  return h("section", { class: "section", "aria-label": "Divergence by token" },
    h("div", { class: "section-head" }, h("h2", {}, "Divergence by token"),
      h("p", { class: "muted small" }, "KL of full prefill’s distribution to the blend’s, given the blend’s answer up to there, in nats: the darker the bar above a word, the larger.")),
    tokens.element, tokens.readout);
}
