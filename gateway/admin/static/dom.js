// Elements from plain values. Text from outside is only ever text: nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button", { class: "quiet", on: { click } }, "Load")`. Children are nodes or text; empty ones are left out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else set(node, name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

/** Text with `code` in it, as nodes. */
export function rich(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** Set or remove an attribute, if it is not so already. */
export function set(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** Set the text, if it is another one: selections and screen readers are not disturbed for nothing. */
export function say(node, text) {
  const value = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== value) node.textContent = value;
  return node;
}

/** Show or hide. */
export function show(node, shown) {
  if (node.hidden === Boolean(shown)) node.hidden = !shown;
}

const rows = new WeakMap();

/** Keep one child of `parent` per item, in order. `make(item)` gives `{ node, update(item) }`; nodes stay as they are. */
export function keyed(parent, items, key, make) {
  let known = rows.get(parent);
  if (!known) rows.set(parent, (known = new Map()));
  const wanted = new Set();
  let before = parent.firstChild;
  for (const item of items) {
    const name = key(item);
    if (wanted.has(name)) continue;
    wanted.add(name);
    let row = known.get(name);
    if (!row) known.set(name, (row = make(item)));
    row.update?.(item);
    if (row.node === before) before = before.nextSibling;
    else parent.insertBefore(row.node, before);
  }
  for (const [name, row] of known) {
    if (wanted.has(name)) continue;
    row.node.remove();
    known.delete(name);
  }
}

/** A list of names and values; returns the node and a function that takes the values again. */
export function facts(names) {
  const cells = {};
  const node = h("dl", { class: "facts" });
  for (const [key, label] of Object.entries(names)) {
    const value = h("dd");
    const pair = h("div", {}, h("dt", {}, label), value);
    cells[key] = { pair, value };
    node.append(pair);
  }
  const update = (values) => {
    for (const [key, cell] of Object.entries(cells)) {
      const value = values[key];
      show(cell.pair, value !== null && value !== undefined && value !== "");
      say(cell.value, value);
    }
  };
  return { node, update };
}

/**
 * A table that nobody has to move sideways: where it is narrow each row is laid out as a list of names and values. The
 * roles are said, since browsers take them from tables that are not laid out as such.
 */
export function table(name, columns, body) {
  set(body, "role", "rowgroup");
  const heads = columns.map((each) => (each ? h("th", { scope: "col", role: "columnheader" }, each) : h("td", { role: "cell" })));
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": name },
    h("table", { role: "table" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)), body),
  );
}

/** The cells of a row of such a table. `widths` are `free` for what may wrap and `long` for whole sentences. */
export function cells(columns, values, widths = []) {
  return values.map((value, index) => h("td", { role: "cell", class: widths[index] || null, "data-label": columns[index] || null }, value));
}

/** A word with a colour. The word alone says it all. */
export function badge(text = "", kind = "") {
  const node = h("span", { class: "badge", "data-kind": kind }, text);
  return {
    node,
    update(words, colour) {
      say(node, words);
      set(node, "data-kind", colour);
    },
  };
}

const polite = () => document.getElementById("said");
const urgent = () => document.getElementById("warned");

/** Tell what an order came to, to eyes and to screen readers. */
export function tell(text, failed = false) {
  const node = failed ? urgent() : polite();
  if (!node) return;
  say(node, "");
  say(node, text);
  clearTimeout(node.timer);
  node.timer = setTimeout(() => say(node, ""), failed ? 15000 : 6000);
}

/** Ask with a dialog. `choices` are `[value, label, kind]`; gives the value, or `null` when it was left. */
export function ask(title, body, choices) {
  return new Promise((done) => {
    const buttons = choices.map(([value, label, kind]) =>
      h("button", { type: "button", class: kind ?? "quiet", on: { click: () => dialog.close(value) } }, label),
    );
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h("h3", { id: "dialog-title" }, title),
      body,
      h("div", { class: "actions" }, ...buttons),
    );
    const back = document.activeElement;
    dialog.addEventListener("close", () => {
      dialog.remove();
      back?.focus?.();
      done(dialog.returnValue || null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
