// One question answered by a blend and by a full prefill, one after the other, so that neither slows the other.

import { announce, empty, errorNotice, h } from "../dom.js";
import { answer } from "../api.js";
import { count, counted, milliseconds, operations, share, significant } from "../format.js";
import { asker } from "../ask/asker.js";
import { Answer } from "../ask/answer.js";
import { fallback, figure } from "../ask/view.js";
import { OUTCOMES } from "../reasons.js";
import { difference } from "./difference.js";
import { divergenceView, meanKl } from "./divergence.js";

const SIDES = [["blend", "Blend"], ["none", "Full prefill"]];
const MAX_TOKENS = 128;

export function compareView(query, leaving) {
  const result = h("div", { class: "rows" });
  const view = h("div", { class: "view" },
    h("div", { class: "view-head" }, h("h1", {}, "Blend against full"),
      h("p", {}, "The same question over the same passages: first blended, then prefilled in full without any cache. Both choose their likeliest tokens.")),
    result);
  asker(query, { onAsk, label: "Compare", more: false })
    .then(({ form, question, stop }) => {
      if (!form) return result.append(empty("There is no collection yet", "Make one ", h("a", { href: "#/collections" }, "in Collections"), "."));
      result.before(form);
      leaving.addEventListener("abort", stop);
      question.focus({ preventScroll: true });
    })
    .catch((error) => result.append(errorNotice(error)));
  return view;

  async function onAsk(collection, request, signal) {
    const sides = SIDES.map(([reuse, title]) => new Side(collection, reuse, title));
    const verdict = h("div", {});
    const below = h("div", {});
    result.replaceChildren(verdict, h("div", { class: "halves" }, sides.map((side) => side.element)), below);
    try {
      for (const side of sides) {
        announce(`${side.title} answers`);
        await side.ask(request, signal);
      }
      const [blend, full] = sides;
      const words = difference(blend.whole.answer, full.whole.answer);
      blend.mark(words.one, "only", "only the blend says");
      full.mark(words.other, "only full", "only the full prefill says");
      verdict.replaceChildren(saved(blend.whole, full.whole, words));
      const { divergence } = blend.whole.report;
      below.replaceChildren(...(divergence ? [divergenceView(divergence)] : []));
      announce(words.same ? "Both answers are the same" : "The answers differ");
    } catch (error) {
      sides.forEach((side) => side.answer.element.setAttribute("aria-busy", "false"));
      if (error.name !== "AbortError") verdict.replaceChildren(errorNotice(error));
    }
  }
}

class Side {
  constructor(collection, reuse, title) {
    Object.assign(this, { collection, reuse, title });
    this.answer = new Answer(collection);
    this.answer.element.setAttribute("aria-busy", "false");
    this.facts = h("p", { class: "muted small" }, "waits");
    this.notices = h("div", {});
    this.element = h("section", { class: "section", "aria-label": title }, h("div", { class: "section-head" }, h("h2", {}, title), this.facts), this.answer.element, this.notices);
  }

  async ask(request, signal) {
    this.facts.textContent = "answers";
    this.answer.element.setAttribute("aria-busy", "true");
    this.whole = await answer(this.collection, { ...request, reuse: this.reuse, temperature: 0, max_tokens: MAX_TOKENS, report_divergence: this.reuse === "blend" }, { signal, onText: (text) => this.answer.add(text) });
    const { report } = this.whole;
    this.answer.end(this.whole.answer);
    this.facts.textContent = `${OUTCOMES[report.outcome]}, first token after ${milliseconds(report.ttft_ms ?? 0)}`;
    if (this.reuse === "blend" && report.reason) this.notices.replaceChildren(fallback(report.reason));
  }

  mark(words, kind, said) {
    if (!words.length) return;
    this.answer.element.replaceChildren(...words.map(([text, own]) => (own
      ? [text.slice(0, text.length - text.trimStart().length), h("span", { class: kind }, h("span", { class: "unseen" }, ` [${said}:] `), text.trimStart())]
      : [text])).flat());
  }
}

function saved(blend, full, words) {
  const computed = ({ report }) => report.recomputed_tokens + report.prompt_tokens - report.context_tokens;
  const [ours, theirs] = [blend.report.ttft_ms, full.report.ttft_ms];
  const sooner = ours !== null && theirs !== null;
  const tokens = computed(full) - computed(blend);
  const { divergence, flops } = blend.report;
  return h("div", { class: "stack" },
    h("dl", { class: "figures" },
      sooner && figure("Time to first token", `${(ours <= theirs ? theirs / ours : ours / theirs).toFixed(1)}× ${ours <= theirs ? "sooner" : "later"}`, ` blended: ${milliseconds(ours)} against ${milliseconds(theirs)}`),
      figure("Prompt tokens not computed", count(Math.max(0, tokens)), ` of ${count(computed(full))}, ${share(Math.max(0, tokens), computed(full))}`),
      flops && figure("FLOPs saved", share(Math.max(0, flops.full_prefill - flops.computed), flops.full_prefill), ` up to the first token: ${operations(flops.computed)} in place of ${operations(flops.full_prefill)}`),
      figure("Answers", words.same ? "the same" : `${share(words.shared, words.longest)} alike`, words.same ? "" : ` ${count(words.shared)} of ${count(words.longest)} words, in order`),
      divergence && figure("KL to full prefill", significant(meanKl(divergence)), ` nats a token, the mean of ${counted(divergence.kls.length, "token")}; ${count(divergence.agrees.filter(Boolean).length)} of them agree`)),
    blend.report.outcome === "prefix_hit" && h("div", { class: "notice" }, h("p", {}, "This prompt had been answered just before, and vLLM’s own prefix cache still held its context: the blend’s time is that of a cache hit. Ask something else to time a blend.")));
}
