// What of one collection's passages is used: last, and together.

import { errorNotice, h } from "../dom.js";
import { collectionSelect } from "../collections/names.js";
import { lastUsed } from "./last_used.js";
import { hottestPairs } from "./pairs.js";

export function collectionUse(chosen) {
  const place = h("div", { class: "rows" }, h("p", { class: "muted small" }, "Looking …"));
  const chooser = h("div", {});
  collectionSelect(chosen)
    .then(({ select, collections }) => {
      if (!collections.length) return place.replaceChildren(h("p", { class: "muted small" }, "There is no collection yet."));
      chooser.append(h("div", { class: "asker-foot bare" }, select));
      select.addEventListener("change", () => fill(select.value));
      return fill(select.value);
    })
    .catch((error) => place.replaceChildren(errorNotice(error)));
  return h("section", { class: "section", "aria-labelledby": "use-title" },
    h("div", { class: "section-head" }, h("h2", { id: "use-title" }, "In one collection"), chooser), place);

  async function fill(collection) {
    const tables = await Promise.all([lastUsed, hottestPairs].map((table) => table(collection).catch(errorNotice)));
    place.replaceChildren(...tables);
  }
}
