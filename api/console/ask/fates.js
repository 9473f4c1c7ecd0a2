// The four fates of a context token: their names, and the patterns that tell them apart without colour.

import { h, svg } from "../dom.js";
import { count } from "../format.js";

export const FATES = {
  exact: "taken as it is",
  reused: "from stored passage KV",
  recomputed: "stored, but chosen and computed anew",
  fresh: "computed: no stored KV was used",
};

const pattern = (name, size, ...marks) =>
  svg("pattern", { id: `pattern-${name}`, width: size, height: size, patternUnits: "userSpaceOnUse" },
    svg("rect", { width: size, height: size, class: `ground-${name}` }), marks);

export const patterns = () => svg("defs", {},
  pattern("reused", 5, svg("circle", { cx: 2.5, cy: 2.5, r: 0.9, class: "figure-dot" })),
  pattern("recomputed", 6, svg("path", { d: "M-1 7 L7 -1 M-1 1 L1 -1 M5 7 L7 5", class: "figure-stroke", "stroke-width": 1.4 })),
  pattern("fresh", 5, svg("path", { d: "M0 1.5 H5", class: "figure-stroke", "stroke-width": 1.4 })));

export function legend(counts) {
  return h("ul", { class: "legend" }, Object.entries(FATES).map(([fate, about]) =>
    h("li", {}, svg("svg", { class: "swatch", viewBox: "0 0 18 12", "aria-hidden": "true" }, svg("rect", { width: 18, height: 12, rx: 2, class: `fate-${fate}` })),
      h("span", {}, h("b", {}, count(counts[fate] ?? 0)), ` ${fate} `, h("span", { class: "about" }, about)))));
}
