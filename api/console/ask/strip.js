// Every context token's fate in one strip, the probe's scores above it, and a window of it as words below.
//
// The window is a slider: arrow keys move it, plus and minus zoom, a click or a drag puts it there.

import { h, newId, svg } from "../dom.js";
import { count, counted } from "../format.js";
import { FATES, legend, patterns } from "./fates.js";
import { Words } from "./words.js";

const SCORES = 30;
const BAND = 24;
const LABELS = 18;
const NARROWEST = 24;
const WIDEST = 480;

export function tokenStrip(report) {
  const { tokens } = report;
  const fates = tokens.fates.flatMap(([fate, length]) => Array(length).fill(fate));
  const total = fates.length;
  const counts = Object.fromEntries(Object.keys(FATES).map((fate) => [fate, fates.filter((own) => own === fate).length]));
  const hasScores = tokens.scores.some((score) => score !== null);
  const top = hasScores ? SCORES : 0;
  const words = new Words(report, fates);
  const view = h("div", { class: "strip", tabindex: "0", role: "slider", "aria-label": "Tokens shown as words", "aria-orientation": "horizontal",
    "aria-valuemin": "0", "aria-valuemax": String(total) });
  const said = h("span", { class: "muted" });
  const id = newId("words");
  let start = 0;
  let size = Math.min(total, 120);
  let width = 0;
  let drawing = null;

  words.element.id = id;
  view.setAttribute("aria-controls", id);
  view.addEventListener("keydown", onKey);
  view.addEventListener("pointerdown", (event) => { view.setPointerCapture(event.pointerId); toPointer(event); });
  view.addEventListener("pointermove", (event) => event.buttons && toPointer(event));
  const watch = new ResizeObserver(() => { if (view.clientWidth !== width) draw(); });
  watch.observe(view);
  show(tokens.passages[0]?.[0] ?? 0);

  const zoom = (label, factor) => h("button", { type: "button", class: "plain small", "aria-label": label, onclick: () => resize(factor) }, factor < 1 ? "+" : "−");
  return h("div", { class: "stack" },
    legend(counts), view,
    h("div", { class: "strip-foot" },
      h("div", { class: "passage-jump" }, tokens.passages.length > 0 && h("span", { class: "muted" }, "Passage"), tokens.passages.map(([from, to], index) =>
        h("button", { type: "button", class: "plain small", "aria-label": `Show passage ${index + 1}`, onclick: () => { size = Math.min(to - from, WIDEST); show(from); } }, String(index + 1)))),
      h("div", { class: "row" }, said, zoom("Fewer words", 0.5), zoom("More words", 2))),
    words.element, words.readout,
    hasScores && h("p", { class: "muted small" }, "The bars above the strip are what the probe gave each token: how much the question looks at it, weighed by how well its passage fits where it stands. Above a word, the darker the bar, the higher its rank."));

  function show(from) {
    start = Math.max(0, Math.min(total - size, Math.round(from)));
    const text = `tokens ${count(start + 1)} to ${count(start + size)} of ${count(total)}`;
    view.setAttribute("aria-valuenow", String(start));
    view.setAttribute("aria-valuetext", text);
    said.textContent = text;
    words.show(start, size);
    place();
  }

  function resize(factor) {
    const middle = start + size / 2;
    size = Math.max(Math.min(NARROWEST, total), Math.min(total, WIDEST, Math.round(size * factor)));
    show(middle - size / 2);
  }

  function onKey(event) {
    const step = { ArrowLeft: -size / 4, ArrowRight: size / 4, PageUp: -size, PageDown: size, Home: -total, End: total }[event.key];
    if (step) show(start + step);
    else if (event.key === "+" || event.key === "=") resize(0.5);
    else if (event.key === "-") resize(2);
    else return;
    event.preventDefault();
  }

  function toPointer(event) {
    const at = view.getBoundingClientRect();
    show(((event.clientX - at.left) / at.width) * total - size / 2);
  }

  function draw() {
    width = view.clientWidth;
    const x = (token) => (token / total) * width;
    let from = 0;
    const runs = tokens.fates.map(([fate, length]) => {
      const rect = svg("rect", { x: x(from), y: top, width: x(length), height: BAND, class: `fate-${fate}` });
      from += length;
      return rect;
    });
    const divides = tokens.passages.map(([begin]) => svg("line", { x1: x(begin), x2: x(begin), y1: top, y2: top + BAND, class: "divide" }));
    const labels = tokens.passages
      .map(([begin, end], index) => x(end - begin) > 14 && svg("text", { x: x((begin + end) / 2), y: top + BAND + 14, "text-anchor": "middle" }, String(index + 1)));
    drawing = svg("rect", { class: "window", y: top - 2, height: BAND + 4, rx: 2 });
    const summary = `${counted(total, "context token")}: ${Object.entries(counts).map(([fate, own]) => `${count(own)} ${fate}`).join(", ")}`;
    view.replaceChildren(svg("svg", { height: top + BAND + LABELS, width, role: "img", "aria-label": summary }, patterns(), hasScores && scoreLine(x), runs, divides, labels, drawing));
    place();
  }

  // The highest score under each pixel: a mean would hide what is chosen.
  function scoreLine(x) {
    const columns = new Map();
    tokens.scores.forEach((score, token) => {
      if (score !== null) columns.set(Math.floor(x(token)), Math.max(columns.get(Math.floor(x(token))) ?? 0, score));
    });
    const highest = Math.max(...columns.values());
    const path = [...columns].map(([column, score]) => `M${column + 0.5} ${top - 4} v${-Math.max(0.5, (Math.sqrt(score / highest) * (SCORES - 6)) || 0.5).toFixed(1)}`).join("");
    return svg("path", { d: path, class: "score" });
  }

  function place() {
    if (!drawing) return;
    drawing.setAttribute("x", String((start / total) * width));
    drawing.setAttribute("width", String(Math.max(3, (size / total) * width)));
  }
}
