// The card that shows a cited passage while the pointer or the focus is on its number.

import { h, newId } from "../dom.js";
import { marked } from "./citations.js";

const GAP = 6;

// Gives `button` a card of `source`. It stays while the pointer is over it, and goes with Escape.
export function giveCard(button, source, shared) {
  let card = null;
  let leaving = 0;

  function open() {
    clearTimeout(leaving);
    if (card) return;
    card = h(
      "div",
      { class: "card", role: "tooltip", id: newId("card"), onmouseenter: () => clearTimeout(leaving), onmouseleave: close },
      h("div", { class: "card-head" }, h("span", {}, source.document_name ?? "Passage"),
        h("span", {}, source.score === null ? "" : `score ${source.score.toFixed(2)}`)),
      h("div", { class: "passage-text" }, marked(source.text.trim(), shared, (word) => h("mark", {}, word))),
    );
    document.getElementById("view").append(card);
    button.setAttribute("aria-describedby", card.id);
    button.setAttribute("aria-expanded", "true");
    const at = button.getBoundingClientRect();
    const own = card.getBoundingClientRect();
    const above = at.bottom + GAP + own.height > innerHeight && at.top > own.height + GAP;
    card.style.left = `${scrollX + Math.max(16, Math.min(at.left, innerWidth - own.width - 16))}px`;
    card.style.top = `${scrollY + (above ? at.top - own.height - GAP : at.bottom + GAP)}px`;
    addEventListener("keydown", onEscape, true);
  }

  function shut() {
    removeEventListener("keydown", onEscape, true);
    card?.remove();
    card = null;
    button.removeAttribute("aria-describedby");
    button.setAttribute("aria-expanded", "false");
  }

  function close() {
    clearTimeout(leaving);
    leaving = setTimeout(shut, 120);
  }

  function onEscape(event) {
    if (event.key === "Escape") shut();
  }

  button.setAttribute("aria-expanded", "false");
  for (const [name, does] of [["mouseenter", open], ["mouseleave", close], ["focus", open], ["blur", close], ["click", shut]]) {
    button.addEventListener(name, does);
  }
}
