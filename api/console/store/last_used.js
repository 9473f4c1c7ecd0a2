// The passages of a collection whose KV was used last. How often is not counted: `num_uses` is what the eviction policy has left of it.

import { h } from "../dom.js";
import { post } from "../api.js";
import { ago, bytes, count } from "../format.js";
import { homes, passageName } from "./passages.js";

const SHOWN = 15;

export async function lastUsed(collection) {
  const { files, missing } = await post("v1/kv/lookup", { collection });
  if (!files.length) return h("p", { class: "muted small" }, `No KV of this collection is stored; ${count(missing.length)} passages have none.`);
  const passages = byLastUse(files);
  const shown = passages.slice(0, SHOWN);
  return table(collection, shown, passages.length, await homes(collection, shown.map((each) => each.id)));
}

function byLastUse(files) {
  const passages = [...Map.groupBy(files, (file) => file.passage_id)].map(([id, own]) => ({
    id, used: Math.max(...own.map((file) => file.used_at)),
    tiers: [...new Set(own.map((file) => file.tier))], bytes: own.reduce((sum, file) => sum + file.num_bytes, 0), pinned: own.some((file) => file.pinned),
  }));
  return passages.sort((one, other) => other.used - one.used);
}

function table(collection, passages, total, known) {
  return h("div", { class: "wide" }, h("table", {},
    h("caption", {}, `Used last: ${count(passages.length)} of ${count(total)} passages with stored KV`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Passage"), h("th", { scope: "col" }, "Used or stored"), h("th", { scope: "col" }, "On"), h("th", { scope: "col", class: "number" }, "Bytes"))),
    h("tbody", {}, passages.map((each) => h("tr", {}, h("td", {}, passageName(collection, known, each.id), each.pinned && h("span", { class: "tag set" }, "pinned")),
      h("td", { class: "still" }, ago(each.used)), h("td", { class: "still" }, each.tiers.join(", ")), h("td", { class: "number" }, bytes(each.bytes)))))));
}
