// The select of a collection, shared by the views that ask one.

import { h } from "../dom.js";
import { get } from "../api.js";

const LAST = "kvblend-collection";

export async function collectionSelect(wanted) {
  const { collections } = await get("v1/collections");
  const last = wanted ?? sessionStorage.getItem(LAST);
  const select = h("select", { "aria-label": "Collection", onchange: () => sessionStorage.setItem(LAST, select.value) },
    collections.map((each) => h("option", { value: each.name, selected: each.name === last }, each.name)));
  return { select, collections };
}
