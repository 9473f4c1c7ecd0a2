// The model: how it is held to its calibration, what the gate decided, what the live guard found.

import { errorNotice, h, prose } from "../dom.js";
import { get, readiness } from "../api.js";
import { count, counted, day, share, significant } from "../format.js";
import { figure } from "../ask/view.js";
import { readMetrics } from "../store/prometheus.js";
import { curve } from "./curve.js";

export function modelView() {
  const body = h("div", { class: "view" }, h("p", { class: "muted" }, "Looking …"));
  const none = (error) => ({ error });
  const known = async () => {
    const state = await readiness();
    const isMeasured = ["calibrated", "unable"].includes(state?.calibration?.status);
    return [state, isMeasured ? await get("v1/calibration").catch(none) : null];
  };
  Promise.all([known(), readMetrics().catch(none)])
    .then(([[state, calibration], metrics]) =>
      body.replaceChildren(...[head(state), held(state?.calibration), calibration && measured(calibration), gate(metrics), guard(state?.guard)].filter(Boolean)));
  return body;
}

function head(state) {
  const engines = state?.engines ?? [];
  const text = engines.map((engine, index) => `Server ${index + 1} ${!engine.healthy ? "does not answer" : engine.control ? "answers, and blends" : "answers, but without kvblend’s connector: nothing is reused"}.`).join(" ");
  return h("div", { class: "view-head" }, h("h1", {}, "Model"), h("p", {}, text || "The service does not answer."));
}

const HELD = {
  calibrated: ["Held to its calibration", "Answers are blended at the smallest ratios that were measured to keep within the target."],
  uncalibrated: ["Not calibrated", "It is blended at the default ratio, and how near its answers are to full prefill’s is not known. `kvblend calibrate` measures it."],
  unable: ["Served by full prefill", "No ratio keeps its answers within the target, so nothing is blended."],
};
const KINDS = { fits: "fits where it stands", document: "behind its own document", neutral: "behind a neutral text" };

function held(state) {
  if (!state) return null;
  const [title, text] = HELD[state.status];
  return h("section", { class: "section", "aria-labelledby": "held-title" }, h("h2", { id: "held-title" }, title), h("p", { class: "muted" }, prose(state.warning ?? text)),
    state.recompute_ratios && h("dl", { class: "figures" }, figure("Target KL", `${significant(state.target_kl)}`, " nats, the mean at most"),
      Object.entries(state.recompute_ratios).map(([kind, ratio]) => figure(`Ratio: ${KINDS[kind] ?? kind}`, ratio === null || ratio === undefined ? "all" : significant(ratio)))));
}

function measured(calibration) {
  const section = (...parts) => h("section", { class: "section", "aria-labelledby": "curve-title" }, h("h2", { id: "curve-title" }, "Calibration"), ...parts);
  if (calibration.error) return section(errorNotice(calibration.error));
  return section(
    h("p", { class: "muted small" }, `${counted(calibration.num_questions, "question")} over ${counted(calibration.num_passages, "passage")} of ${Math.round(calibration.passage_tokens)} tokens, in ${calibration.dtype}, by the selector ${calibration.selector}, ${day(calibration.created_at)}. Bars end at the upper 95% bound of the mean, which has to meet the target.`),
    curve(calibration), curveTable(calibration));
}

function curveTable(calibration) {
  const rows = Object.entries(calibration.kinds).flatMap(([kind, { curve: points }]) => points.map((point) => h("tr", {}, h("th", { scope: "row", class: "plain-row" }, KINDS[kind]),
    [point.recompute_ratio, point.kl, point.kl_upper95].map((number) => h("td", { class: "number" }, significant(number))),
    [point.agreement, point.first_agreement].map((part) => h("td", { class: "number" }, share(part, 1))))));
  return h("details", {}, h("summary", { class: "small" }, "The same as a table"), h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Passages"),
    ["Ratio", "KL", "Upper bound", "Same token", "Same first token"].map((name) => h("th", { scope: "col", class: "number" }, name)))), h("tbody", {}, rows))));
}

const VERDICTS = {
  calibrated: "blended, held to the calibration", uncalibrated: "blended at a ratio that no calibration vouches for", unable: "prefilled: the model cannot meet its target",
  target: "prefilled: the request’s own target could not be met", cost: "prefilled: a blend was not expected to be sooner",
};

function gate(metrics) {
  const decisions = metrics.error ? {} : metrics.by("kvblend_gate_decisions_total", "decision");
  const all = Object.values(decisions).reduce((sum, own) => sum + own, 0);
  return h("section", { class: "section", "aria-labelledby": "gate-title" }, h("h2", { id: "gate-title" }, "The gate"),
    metrics.error ? errorNotice(metrics.error) : all === 0 ? h("p", { class: "muted small" }, "It has decided on no prompt since the service’s start.")
      : h("div", { class: "wide" }, h("table", {}, h("caption", {}, `${counted(all, "prompt")} with passages since the service’s start`), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Decision"), h("th", { scope: "col", class: "number" }, "Prompts"), h("th", { scope: "col", class: "number" }, "Share"))),
        h("tbody", {}, Object.entries(decisions).map(([name, own]) => h("tr", {}, h("th", { scope: "row", class: "plain-row" }, VERDICTS[name] ?? name), h("td", { class: "number" }, count(own)), h("td", { class: "number" }, share(own, all))))))));
}

function guard(state) {
  const none = !state ? "It is off: set `KVBLEND_GUARD_RATIO` to have a share of the answers compared with full prefill’s while vLLM idles." : state.num_compared === 0 ? "It has compared no answer yet." : null;
  return h("section", { class: "section", "aria-labelledby": "guard-title" }, h("h2", { id: "guard-title" }, "The live guard"),
    none ? h("p", { class: "muted small" }, prose(none)) : [
      state.misses_target && h("div", { class: "notice bad", role: "alert" }, h("strong", {}, "Answers miss their target"), h("p", {}, "Those compared last are farther from full prefill’s than the calibration promised. Calibrate the model again, or raise the ratio.")),
      h("dl", { class: "figures" }, figure("Compared", count(state.num_compared)), figure("Mean KL", significant(state.mean_kl), " nats to full prefill"), figure("Same likeliest token", share(state.agreement, 1)),
        figure("Same first token", share(state.first_agreement, 1)), state.mean_target_kl !== null && figure("Held to", significant(state.mean_target_kl), ` nats, found ${significant(state.mean_held_kl)}`))]);
}
