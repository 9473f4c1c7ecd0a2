// What belongs to the whole page: which view shows, the theme, and whether the service is ready.

import { announce } from "./dom.js";
import { readiness } from "./api.js";
import { counted } from "./format.js";
import { setUpKey } from "./key.js";
import { askView } from "./ask/view.js";
import { compareView } from "./compare/view.js";
import { collectionsView } from "./collections/view.js";
import { storeView } from "./store/view.js";
import { modelView } from "./model/view.js";

const VIEWS = {
  ask: ["Ask", askView], compare: ["Blend against full", compareView], collections: ["Collections", collectionsView],
  store: ["Store", storeView], model: ["Model", modelView],
};
const THEMES = ["system", "light", "dark"];
const LOOK_EVERY_MS = 15_000;

let leave = () => {};

function show() {
  const [, name = "", query = ""] = location.hash.match(/^#\/([a-z]*)\??(.*)$/) ?? [];
  const [title, view] = VIEWS[name] ?? VIEWS.ask;
  const leaving = new AbortController();
  leave();
  leave = () => leaving.abort();
  for (const link of document.querySelectorAll(".rail nav a")) {
    const own = link.getAttribute("href") === `#/${name in VIEWS ? name : "ask"}`;
    own ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  document.title = `${title} · kvblend`;
  const main = document.getElementById("view");
  main.replaceChildren(view(new URLSearchParams(query), leaving.signal));
  if (document.activeElement !== document.body) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  announce(title);
}

function setUpTheme() {
  const button = document.getElementById("theme");
  let chosen = localStorage.getItem("kvblend-theme") ?? "system";
  const apply = () => {
    document.documentElement.dataset.theme = chosen;
    button.textContent = `Theme: ${chosen}`;
  };
  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    localStorage.setItem("kvblend-theme", chosen);
    apply();
  });
  apply();
}

async function look() {
  const state = await readiness();
  const ready = state?.engines?.filter((engine) => engine.healthy).length ?? 0;
  const mute = state?.engines?.filter((engine) => engine.healthy && !engine.control).length ?? 0;
  const text = state === null ? "The service does not answer" : state.error ? "A key is needed to see its state" : ready === 0 ? "vLLM does not answer" : mute === ready
    ? "Ready; nothing is reused" : `Ready · ${counted(ready, "vLLM server")}`;
  const place = document.getElementById("state");
  place.dataset.state = ready > 0 ? "ready" : "unavailable";
  place.querySelector(".state-text").textContent = text;
  place.setAttribute("aria-label", text);
}

setUpTheme();
setUpKey();
addEventListener("hashchange", show);
show();
look();
setInterval(look, LOOK_EVERY_MS);
