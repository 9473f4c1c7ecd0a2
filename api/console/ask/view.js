// Ask a collection: the answer with its sources, and how its context came about.

import { announce, empty, errorNotice, h, prose } from "../dom.js";
import { answer } from "../api.js";
import { count, counted, milliseconds, share } from "../format.js";
import { OUTCOMES, plainReason } from "../reasons.js";
import { Answer, inPromptOrder, sourceList } from "./answer.js";
import { asker } from "./asker.js";
import { orderChart } from "./order.js";
import { tokenStrip } from "./strip.js";
import { waterfall } from "./waterfall.js";

export function askView(query, leaving) {
  const result = h("div", { class: "rows" });
  const view = h("div", { class: "view" }, h("div", { class: "view-head" }, h("h1", {}, "Ask")), result);
  asker(query, { onAsk, label: "Ask" })
    .then(({ form, question, stop }) => {
      if (!form) {
        return result.append(empty("There is no collection yet", "Make one and drop your documents on it, ", h("a", { href: "#/collections" }, "in Collections"), "."));
      }
      result.before(form);
      leaving.addEventListener("abort", stop);
      question.focus({ preventScroll: true });
      if (question.value) form.requestSubmit();
    })
    .catch((error) => result.append(errorNotice(error)));
  return view;

  async function onAsk(collection, request, signal) {
    const shown = new Answer(collection);
    const sources = h("div", {}, h("p", { class: "muted small" }, "Looking for passages …"));
    const below = h("div", { class: "rows" });
    const notices = h("div", {});
    const beside = h("div", { class: "rows" });
    const order = h("div", {});
    result.replaceChildren(
      h("div", { class: "columns" },
        h("div", { class: "rows" }, h("section", { class: "stack", "aria-label": "Answer" }, shown.element, notices, shown.how), beside),
        h("section", { class: "stack", "aria-label": "Sources" }, h("h2", {}, "Sources"), sources, order)),
      below);
    announce("Answering");
    try {
      const whole = await answer(collection, { ...request, report_tokens: true }, {
        signal,
        onSources(found) {
          shown.setSources(found);
          sources.replaceChildren(found.length ? sourceList(collection, found) : h("p", { class: "muted small" }, "No passage was found."));
        },
        onText: (text) => shown.add(text),
      });
      shown.end(whole.answer);
      announce(`The answer is complete. First token after ${milliseconds(whole.report.ttft_ms ?? 0)}.`);
      beside.replaceChildren(h("section", { class: "section", "aria-labelledby": "fall-title" }, h("h2", { id: "fall-title" }, "Until the first token"), waterfall(whole)));
      order.replaceChildren(orderChart(whole.sources, inPromptOrder(whole.sources)));
      below.replaceChildren(context(whole));
    } catch (error) {
      shown.end();
      if (error.name !== "AbortError") notices.replaceChildren(errorNotice(error));
      else notices.replaceChildren(h("div", { class: "notice" }, h("strong", {}, "Stopped"), h("p", {}, "vLLM was told to stop as well.")));
      if (!shown.sources.length) sources.replaceChildren(h("p", { class: "muted small" }, "None."));
    }
  }
}

function context(whole) {
  const { report } = whole;
  const saved = report.context_tokens - report.recomputed_tokens;
  const slow = report.passages.flatMap((passage) => passage.passed_over ?? []); // of each passage passed over, the tier
  const missed = report.missed_passages - slow.length;
  return h("section", { class: "section", "aria-labelledby": "context-title" },
    h("div", { class: "section-head" }, h("h2", { id: "context-title" }, "Its context, token by token"),
      h("p", { class: "muted small" }, `${OUTCOMES[report.outcome]}${report.calibrated ? ", held to the model’s calibration" : ""}`)),
    report.reason && fallback(report.reason),
    h("dl", { class: "figures" },
      figure("First token", report.ttft_ms === null ? "–" : milliseconds(report.ttft_ms)),
      figure("Not computed again", share(saved, report.context_tokens), ` ${count(saved)} of ${counted(report.context_tokens, "context token")}`),
      figure("Computed anew", count(report.recomputed_tokens), report.selected_tokens ? ` ${report.selected_tokens === report.recomputed_tokens ? "all" : `${count(report.selected_tokens)} of them`} chosen by the ${report.selector ?? "selector"}` : " tokens"),
      missed > 0 && figure("Without stored KV", count(missed), missed === 1 ? " passage" : " passages"),
      slow.length > 0 && figure("Passed over", count(slow.length), ` ${slow.length === 1 ? "passage" : "passages"} on ${[...new Set(slow)].join(" and ")}, slower to load than to compute`)),
    report.tokens ? tokenStrip(report) : h("p", { class: "muted small" }, "vLLM’s connector did not tell the fate of each token."));
}

export const figure = (name, value, more = "") => h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)));

export function fallback(reason) {
  const { title, more } = plainReason(reason);
  return h("div", { class: "notice" }, h("strong", {}, title), more && h("p", {}, prose(more)), h("p", { class: "said" }, `In the report’s words: ${reason}`));
}
