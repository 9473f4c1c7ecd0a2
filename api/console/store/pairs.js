// Which passages of a collection its prompts bring together, the heaviest pairs first.

import { h } from "../dom.js";
import { post } from "../api.js";
import { count } from "../format.js";
import { homes, passageName } from "./passages.js";

const SHOWN = 15;

export async function hottestPairs(collection) {
  const { pairs } = await post("v1/kv/pairs", { collection, limit: SHOWN });
  if (!pairs.length) return h("p", { class: "muted small" }, "No prompt has brought two passages together yet.");
  const known = await homes(collection, pairs.flatMap(({ before, passage }) => [before, passage]));
  return h("div", { class: "stack" },
    h("div", { class: "wide" }, h("table", {},
      h("caption", {}, `Hottest pairs: ${count(pairs.length)}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Passage"), h("th", { scope: "col" }, "Directly behind"), h("th", { scope: "col", class: "number" }, "Count"))),
      h("tbody", {}, pairs.map(({ before, passage, count: weight }) => h("tr", {},
        h("td", {}, passageName(collection, known, passage)), h("td", {}, passageName(collection, known, before)), h("td", { class: "number" }, weight.toFixed(1))))))),
    h("p", { class: "muted small" }, "A prompt in which they stand so counts 1, one that only retrieves both 0.3; a count is halved with every 2,000 prompts since. Neighbours in a document are not counted."));
}
