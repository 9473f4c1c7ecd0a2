// The dialog that asks for the API key, once; the browser forgets it with the tab.

import { h } from "./dom.js";
import { hasKey, onKeyWanted, setKey } from "./api.js";

let asking = null;

export function setUpKey() {
  const button = document.getElementById("key-button");
  const show = () => (button.textContent = hasKey() ? "Key set" : "Key");
  button.addEventListener("click", () => ask("The key is sent with every request of this tab, and kept nowhere else."));
  onKeyWanted(() => ask(hasKey() ? "The service does not take the key that you gave." : "This service wants an API key."));
  show();

  function ask(reason) {
    asking ??= new Promise((resolve) => {
      const input = h("input", { type: "password", name: "key", id: "key-input", autocomplete: "off", required: true, spellcheck: "false" });
      const forget = h("button", { type: "button", class: "plain", hidden: !hasKey(), onclick: () => end(() => setKey(null)) }, "Forget it");
      const form = h(
        "form",
        { class: "sheet-body stack", onsubmit: (event) => { event.preventDefault(); end(() => setKey(input.value.trim())); } },
        h("h2", { id: "key-title" }, "API key"),
        h("p", { class: "muted small" }, reason),
        h("label", { class: "field", for: "key-input" }, h("span", {}, "Key"), input),
        h("div", { class: "row" }, h("button", { class: "main" }, "Use it"), forget,
          h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel")),
      );
      const dialog = h("dialog", { class: "box", "aria-labelledby": "key-title" }, form);
      let changed = false;
      const end = (change) => { change(); changed = true; dialog.close(); };
      dialog.addEventListener("close", () => { dialog.remove(); asking = null; show(); resolve(changed && hasKey()); });
      document.body.append(dialog);
      dialog.showModal();
    });
    return asking;
  }
}
