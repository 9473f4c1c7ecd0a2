// The box for a question: collection, options, and a button that stops what it started.

import { h, newId } from "../dom.js";
import { collectionSelect } from "../collections/names.js";

export async function asker(query, { onAsk, label, more = true }) {
  const { select, collections } = await collectionSelect(query.get("c"));
  if (!collections.length) return { form: null };
  const question = h("textarea", { name: "question", rows: "1", required: true, maxlength: "32768", "aria-label": "Question",
    placeholder: "Ask this collection", value: query.get("q") ?? "" });
  const button = h("button", { class: "main" }, label);
  const fields = more ? choices() : null;
  const options = fields && h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": fields.element.id,
    onclick: () => options.setAttribute("aria-expanded", String(!(fields.element.hidden = !fields.element.hidden))) }, "Options");
  let running = null;
  const form = h("form", { class: "asker", onsubmit: submit },
    question,
    h("div", { class: "asker-foot" }, select, options, h("span", { class: "spring" }), button),
    fields?.element);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  return { form, question, stop: () => running?.abort() };

  async function submit(event) {
    event.preventDefault();
    if (running) return running.abort();
    running = new AbortController();
    button.textContent = "Stop";
    try {
      await onAsk(select.value, { question: question.value.trim(), ...fields?.values() }, running.signal);
    } finally {
      running = null;
      button.textContent = label;
    }
  }
}

function choices() {
  const number = (name, label, attributes) => [name, h("label", { class: "field" }, h("span", {}, label), h("input", { type: "number", name, ...attributes }))];
  const pick = (name, label, ...values) => [name, h("label", { class: "field" }, h("span", {}, label), h("select", { name }, values.map(([value, text]) => h("option", { value }, text))))];
  const all = [
    number("top_k", "Passages", { min: "1", max: "64", value: "8" }),
    number("max_tokens", "Answer tokens, at most", { min: "1", max: "8192", value: "256" }),
    number("recompute_ratio", "Recompute ratio", { min: "0", max: "1", step: "any", placeholder: "the model’s own" }),
    pick("mode", "Retrieval", ["", "the collection’s"], ["hybrid", "by meaning and words"], ["vector", "by meaning"], ["keyword", "by words"]),
    pick("order", "Order of passages", ["", "the collection’s"], ["rank", "as retrieved"], ["document", "by document"], ["fit", "where KV fits"]),
    pick("reuse", "Reuse", ["blend", "blend"], ["prefix_cache", "prefix cache only"], ["none", "none: full prefill"]),
  ];
  const element = h("div", { class: "choices", id: newId("choices"), hidden: true }, all.map(([, field]) => field));
  const values = () => Object.fromEntries(all.flatMap(([name, field]) => {
    const input = field.querySelector("input, select");
    if (input.value === "") return [];
    return [[name, input.type === "number" ? Number(input.value) : input.value]];
  }));
  return { element, values };
}
