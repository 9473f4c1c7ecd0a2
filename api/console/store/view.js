// The store: what its tiers hold, how often it had what was wanted, and what of a collection is used.

import { empty, errorNotice, h } from "../dom.js";
import { get } from "../api.js";
import { bytes, count, counted, duration, share } from "../format.js";
import { collectionUse } from "./collection.js";
import { readMetrics } from "./prometheus.js";

export function storeView(query) {
  const body = h("div", { class: "view" }, h("p", { class: "muted" }, "Looking …"));
  Promise.all([get("v1/kv/stats"), readMetrics().catch((error) => ({ error }))])
    .then(([stats, metrics]) => body.replaceChildren(head(), tiers(stats), metrics.error ? errorNotice(metrics.error) : rates(metrics), collectionUse(query.get("c"))))
    .catch((error) => body.replaceChildren(head(), errorNotice(error)));
  return body;
}

const head = () => h("div", { class: "view-head" }, h("h1", {}, "Store"), h("p", {}, "Passage KV as it lies in the tiers that all processes of this host share. Hit rates count from the service’s start."));

function tiers({ tiers: all }) {
  return h("section", { class: "section", "aria-labelledby": "tiers-title" }, h("h2", { id: "tiers-title" }, "Tiers, fastest first"),
    all.length ? all.map(tier) : empty("No tier", "The service has neither memory nor disk to store passage KV in."));
}

function tier(own) {
  const bound = own.budget_bytes;
  const to = bound ? Math.min(100, (100 * own.used_bytes) / bound) : 0;
  return h("div", { class: "meter" },
    h("div", { class: "meter-head" }, h("h3", {}, own.name), h("span", { class: "figure" }, bytes(own.used_bytes), bound ? h("span", { class: "muted" }, ` of ${bytes(bound)}, ${share(own.used_bytes, bound)}`) : h("span", { class: "muted" }, " used; others bound it"))),
    h("div", { class: "track", role: "img", "aria-label": bound ? `${share(own.used_bytes, bound)} of its bytes used` : "no bound" }, h("div", { class: "part", hidden: to === 0, vars: { "--to": `${to}%` } })),
    h("p", { class: "muted small" }, `${counted(own.num_files, "file")}, ${count(own.num_pinned)} pinned · `, h("span", { class: "mono" }, own.path)),
    own.num_evicted > 0 && h("p", { class: "muted small" }, `${counted(own.num_evicted, "file")} evicted since the tier was made, ${duration(own.evicted_idle_s / own.num_evicted)} after the last use in the mean`));
}

function rates(metrics) {
  const passages = metrics.by("kvblend_context_passages_total", "tier");
  const all = Object.values(passages).reduce((sum, own) => sum + own, 0);
  const standing = metrics.by("kvblend_standing_tokens_total", "standing");
  const tokens = Object.values(standing).reduce((sum, own) => sum + own, 0);
  const rows = [
    ...Object.entries(passages).map(([name, own]) => [name === "none" ? "had no stored KV" : `came from ${name}`, own, all, "passages of blended contexts"]),
    ...Object.entries(standing).map(([name, own]) => [STANDING[name] ?? name, own, tokens, "passage tokens of prompts"]),
    ...["lookup", "fetch"].flatMap((op) => Object.entries(metrics.by("kvblend_tier_keys_total", "tier", { op })).filter(([, keys]) => keys > 0)
      .map(([name, keys]) => [`${op === "lookup" ? "found" : "opened"} on ${name}`, metrics.sum("kvblend_tier_hits_total", { tier: name, op }), keys, "files that the service itself asked for"])),
  ];
  const table = h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, ["What", "Share", "Count", "Of"].map((name, index) => h("th", { scope: "col", class: index ? "number" : "" }, name)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "of what")))),
    h("tbody", {}, rows.map(([what, own, of, unit]) => h("tr", {}, h("th", { scope: "row", class: "plain-row" }, what), h("td", { class: "number" }, share(own, of)), h("td", { class: "number" }, count(own)), h("td", { class: "number" }, count(of)), h("td", { class: "muted small" }, unit))))));
  return h("section", { class: "section", "aria-labelledby": "rates-title" }, h("h2", { id: "rates-title" }, "Hit rates"),
    rows.length ? table : empty("Nothing counted yet", "Ask a question: each answer counts where the KV of its passages came from."));
}

const STANDING = { exact: "stand exactly as stored", fits: "fit where they stand", reused: "are stored, and do not fit", missing: "have no stored KV" };
