// KL to full prefill against the recompute ratio, by what passages were encoded behind; both as measured.

import { h, svg } from "../dom.js";
import { significant } from "../format.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [720, 330, 54, 44, 32, 16];
const NAMES = { fits: "fits where it stands", document: "behind its own document", neutral: "behind a neutral text" };

export function curve({ kinds, target_kl: target }) {
  const points = Object.values(kinds).flatMap((kind) => kind.curve);
  const positive = points.flatMap((point) => [point.kl, point.kl_upper95]).concat(target).filter((value) => value > 0);
  const [low, high] = [Math.floor(Math.log10(Math.min(...positive))), Math.ceil(Math.log10(Math.max(...positive)))];
  const widest = Math.max(...points.map((point) => point.recompute_ratio), 0.1);
  const x = (ratio) => LEFT + (ratio / widest) * (WIDTH - LEFT - RIGHT);
  const y = (kl) => TOP + ((high - Math.max(low, Math.log10(Math.max(kl, 1e-12)))) / Math.max(1, high - low)) * (HEIGHT - TOP - BOTTOM);
  const decades = Array.from({ length: high - low + 1 }, (_, index) => low + index);
  const grid = decades.flatMap((power) => [svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(10 ** power), y2: y(10 ** power) }),
    svg("text", { x: LEFT - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, significant(10 ** power))]);
  const ticks = Array.from({ length: 5 }, (_, index) => (index * widest) / 4).map((ratio) => svg("text", { x: x(ratio), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, significant(ratio)));
  const lines = Object.entries(kinds).map(([kind, { curve: own, recompute_ratio: chosen }]) => svg("g", { class: `kind-${kind}` },
    own.map((point) => svg("line", { class: "bound", x1: x(point.recompute_ratio), x2: x(point.recompute_ratio), y1: y(point.kl), y2: y(point.kl_upper95), "stroke-dasharray": "none" })),
    svg("path", { class: "kind", d: own.map((point, index) => `${index ? "L" : "M"}${x(point.recompute_ratio)} ${y(point.kl)}`).join("") }),
    own.map((point) => svg("circle", { class: `point ${point.recompute_ratio === chosen ? "chosen" : ""}`, cx: x(point.recompute_ratio), cy: y(point.kl), r: point.recompute_ratio === chosen ? 5.5 : 3.5 }))));
  const summary = Object.entries(kinds).map(([kind, { recompute_ratio: chosen }]) => `${NAMES[kind]}: ${chosen === null ? "no ratio meets the target" : `ratio ${significant(chosen)}`}`).join("; ");
  return h("figure", { class: "curve stack" },
    h("ul", { class: "legend" }, Object.keys(kinds).map((kind) => h("li", {}, svg("svg", { class: "key", viewBox: "0 0 26 8", "aria-hidden": "true" }, svg("path", { class: `kind kind-${kind}`, d: "M0 4 H26" })), NAMES[kind])),
      h("li", { class: "about" }, "a filled point is the ratio that is used")),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `KL to full prefill by recompute ratio, target ${significant(target)} nats. ${summary}` },
      grid, ticks, svg("line", { class: "target", x1: LEFT, x2: WIDTH - RIGHT, y1: y(target), y2: y(target) }),
      svg("text", { x: WIDTH - RIGHT, y: y(target) - 5, "text-anchor": "end" }, `target ${significant(target)}`), lines,
      svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "recompute ratio"),
      svg("text", { x: 4, y: 13 }, "KL, nats")));
}
