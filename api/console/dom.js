// Elements by function call. Attributes that begin with "on" are listeners; false and null leave an attribute out.

const SVG = "http://www.w3.org/2000/svg";

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, own] of Object.entries(value)) element.style.setProperty(key, own);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

// Say it to who hears the page and does not see it.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

export function errorNotice(error) {
  return h("div", { class: "notice bad", role: "alert" }, h("strong", {}, error.title ?? "It failed"), h("p", {}, error.message));
}

// A sentence with what stands between backticks as code.
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

export const empty = (title, ...text) => h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, ...text));

let lastId = 0;
export const newId = (stem) => `${stem}-${(lastId += 1)}`;
