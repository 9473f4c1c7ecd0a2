// Deleting, with proof: what the store held of it before, and what it holds after, each as the service answered.

import { announce, errorNotice, h } from "../dom.js";
import { ApiError, collectionPath, documentPath, get, post, remove } from "../api.js";
import { bytes, count, counted } from "../format.js";

const TRIES = 20;
const WAIT_MS = 250;

export async function deleteDocument(collection, document, place, onGone) {
  await proven(document.name, place, { collection, document_id: document.id }, documentPath(collection, document.id), onGone);
}

export async function deleteCollection(name, place) {
  await proven(name, place, { collection: name }, collectionPath(name), () => {});
}

async function proven(name, place, selection, url, onGone) {
  try {
    const [held, before] = await Promise.all([post("v1/kv/lookup", selection), get("v1/kv/stats")]).catch((error) => {
      if (error.status === 403) return [null, null]; // who may delete may not look into the store: there is no proof then
      throw error;
    });
    if (!(await confirmed(name, held?.files ?? null))) return;
    await remove(url);
    const gone = await get(url).then(() => "it is still there", (error) => (error instanceof ApiError && error.status === 404 ? "not found (404)" : error.message));
    place.replaceChildren(held ? proof(name, held.files, gone, before, await settled(before, held.files))
      : h("div", { class: "notice", role: "status" }, h("strong", {}, `${name} is deleted`), h("p", {}, `Asked for again: ${gone}. What the store held of it is not this key’s to see.`)));
    announce(`${name} is deleted`);
    onGone();
  } catch (error) {
    place.replaceChildren(errorNotice(error));
  }
}

// KV goes behind the answer where an encode was under way: look again until as many files have gone as there were.
async function settled(before, files) {
  const wanted = total(before) - files.length;
  let after = await get("v1/kv/stats");
  for (let tries = 0; tries < TRIES && total(after) > wanted; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    after = await get("v1/kv/stats");
  }
  return after;
}

const total = (stats) => stats.tiers.reduce((sum, tier) => sum + tier.num_files, 0);

function proof(name, files, gone, before, after) {
  const rows = before.tiers.map((tier) => {
    const own = files.filter((file) => file.tier === tier.name);
    const now = after.tiers.find((each) => each.name === tier.name) ?? tier;
    return h("tr", {}, h("th", { scope: "row", class: "plain-row" }, tier.name),
      h("td", { class: "number" }, `${count(own.length)} · ${bytes(own.reduce((sum, file) => sum + file.num_bytes, 0))}`),
      h("td", { class: "number" }, `${count(tier.num_files)} · ${bytes(tier.used_bytes)}`), h("td", { class: "number" }, `${count(now.num_files)} · ${bytes(now.used_bytes)}`));
  });
  const left = files.length - (total(before) - total(after));
  return h("div", { class: `notice ${left > 0 ? "" : "good"}`, role: "status" },
    h("strong", {}, `${name} is deleted`),
    h("p", {}, `Asked for again: ${gone}. ${files.length ? `It had ${counted(files.length, "KV file")}.` : "It had no KV stored."}`),
    left > 0 && h("p", {}, `The store has ${counted(left, "file")} more than that leaves: passages that other documents hold too keep theirs, and what was stored meanwhile counts as well.`),
    left < 0 && h("p", {}, `${counted(-left, "file")} more went than were looked up here: KV that was encoded behind its text goes with it, and the store may have evicted some meanwhile.`),
    h("div", { class: "wide" }, h("table", {}, h("caption", {}, "Files and bytes, as the store told them"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Tier"), h("th", { scope: "col", class: "number" }, "of it, before"),
      h("th", { scope: "col", class: "number" }, "tier before"), h("th", { scope: "col", class: "number" }, "tier now"))), h("tbody", {}, rows))));
}

function confirmed(name, files) {
  return new Promise((resolve) => {
    let sure = false;
    const dialog = h("dialog", { class: "box", "aria-labelledby": "sure-title" }, h("div", { class: "sheet-body stack" },
      h("h2", { id: "sure-title" }, `Delete ${name}?`),
      h("p", { class: "muted" }, files === null ? "Its text, its vectors and its KV will be gone." : files.length ? `Its text, its vectors and ${counted(files.length, "KV file")} of ${bytes(files.reduce((sum, file) => sum + file.num_bytes, 0))} will be gone.` : "Its text and its vectors will be gone; no KV of it is stored."),
      h("div", { class: "row" }, h("button", { type: "button", class: "danger", onclick: () => { sure = true; dialog.close(); } }, "Delete"),
        h("button", { type: "button", class: "plain", autofocus: true, onclick: () => dialog.close() }, "Keep it"))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(sure); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
