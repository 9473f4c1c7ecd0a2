// From the question to the first token: what each step took, as the service and the connector measured it.

import { h } from "../dom.js";
import { count, milliseconds } from "../format.js";

export function waterfall({ report, retrieve_ms: retrieve }) {
  if (report.ttft_ms === null) return h("p", { class: "muted small" }, "No token came, so there is nothing to show.");
  const { load, probe, repair } = report.steps_ms;
  const tiers = Object.entries(report.tiers).map(([tier, tokens]) => `${count(tokens)} tokens from ${tier}`).join(", ");
  const rest = Math.max(0, report.ttft_ms - load - probe - repair);
  const steps = [["Retrieve", retrieve ?? 0, "", "embed, search, order"]];
  if (report.outcome === "blended") steps.push(["Load", load, "reused", tiers], ["Probe", probe, "", ""], ["Repair", repair, "recomputed", `${count(report.recomputed_tokens)} tokens`]);
  steps.push([report.outcome === "blended" ? "Question" : "Prefill", rest, "rest",
    report.outcome === "blended" ? "what remains of the time to first token: the question’s own prefill, and waiting" : "vLLM’s own prefill, and waiting"]);
  const all = steps.reduce((sum, [, ms]) => sum + ms, 0);
  let passed = 0;
  const rows = steps.flatMap(([name, ms, kind, note]) => {
    const bar = h("div", { class: `bar ${kind}`, vars: { "--from": `${(100 * passed) / all}%`, "--to": `${(100 * (passed + ms)) / all}%` } });
    passed += ms;
    return [h("span", {}, name), h("div", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "number" }, milliseconds(ms)), note && h("span", { class: "note" }, note)];
  });
  return h("div", { class: "fall" }, rows, h("strong", {}, "Together"), h("span", {}), h("strong", { class: "number" }, milliseconds(all)));
}
