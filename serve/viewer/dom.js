// Elements without markup in strings: texts of files and of the server only ever become text.

export const byId = (id) => document.getElementById(id);

/** An element with attributes, then children: elements or texts. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A copy of a template's only element. */
export function copyOf(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/** A table with a caption, heads and rows of texts or elements. */
export function table(caption, heads, rows) {
  return element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))),
  );
}
