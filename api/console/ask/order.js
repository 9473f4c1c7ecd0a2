// The order in which passages were retrieved, beside the one in which the model read them.

import { h, svg } from "../dom.js";
import { counted } from "../format.js";

const STEP = 24;
const LEFT = 96;
const RIGHT = 264;

export function orderChart(retrieved, served) {
  if (!retrieved.length) return h("p", { class: "muted small" }, "Nothing was retrieved.");
  const places = retrieved.map((source) => served.indexOf(source));
  const moved = places.filter((place, rank) => place !== rank).length;
  if (!moved) return h("p", { class: "muted small" }, `The ${counted(retrieved.length, "passage")} stand in the prompt as they were retrieved, the best one first.`);
  const y = (index) => 30 + index * STEP;
  const summary = places.map((place, rank) => `retrieved ${rank + 1}, served ${place + 1}`).join("; ");
  const rows = places.flatMap((place, rank) => {
    const kind = place === rank ? "" : "moved";
    return [
      svg("line", { x1: LEFT, y1: y(rank), x2: RIGHT, y2: y(place), class: kind }),
      svg("circle", { cx: LEFT, cy: y(rank), r: 4, class: kind }), svg("circle", { cx: RIGHT, cy: y(place), r: 4, class: kind }),
      svg("text", { x: LEFT - 12, y: y(rank) + 4, "text-anchor": "end" }, String(rank + 1)),
      svg("text", { x: RIGHT + 12, y: y(place) + 4 }, `${place + 1}`)];
  });
  return h("div", { class: "order stack" },
    svg("svg", { viewBox: `0 0 360 ${y(retrieved.length)}`, role: "img", "aria-label": summary },
      svg("text", { x: LEFT, y: 11, "text-anchor": "middle", class: "head" }, "retrieved"),
      svg("text", { x: RIGHT, y: 11, "text-anchor": "middle", class: "head" }, "served"), rows),
    h("p", { class: "muted small" }, `${counted(moved, "passage stands", "passages stand")} elsewhere than retrieved, by the order that the request or its collection names.`));
}
