// Building and updating elements. Text is only ever inserted as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button", { class: "quiet", on: { click } }, "Load")`. Children are nodes or text; empty ones are skipped. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element. */
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

/** Text with `code` in backticks, as nodes. */
export function rich(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** Set or remove an attribute, if it differs. */
export function set(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** Set the text, if it differs: selections and screen readers are not disturbed. */
export function setText(node, text) {
  const value = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== value) node.textContent = value;
  return node;
}

export function show(node, shown) {
  if (node.hidden === Boolean(shown)) node.hidden = !shown;
}

const rows = new WeakMap();

/** Keep one child of `parent` per item, in order. `make(item)` returns `{ node, update(item) }`; nodes are reused. */
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

/** A list of names and values: its node, and `update(values)`. Empty values are hidden. */
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
      setText(cell.value, value);
    }
  };
  return { node, update };
}

/**
 * A table that never scrolls sideways: on narrow screens each row is laid out as a list of names and values. Roles are
 * explicit, since browsers drop them for tables that are not laid out as such.
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

/** The cells of a row of such a table. `widths`: `free` may wrap, `long` holds sentences. */
export function cells(columns, values, widths = []) {
  return values.map((value, index) => h("td", { role: "cell", class: widths[index] || null, "data-label": columns[index] || null }, value));
}

/** A word with a colour. The word alone carries the meaning. */
export function badge(text = "", kind = "") {
  const node = h("span", { class: "badge", "data-kind": kind }, text);
  return {
    node,
    update(words, colour) {
      setText(node, words);
      set(node, "data-kind", colour);
    },
  };
}

const polite = () => document.getElementById("notice");
const urgent = () => document.getElementById("alert");

/** Show the result of an action, also to screen readers. */
export function notify(text, failed = false) {
  const node = failed ? urgent() : polite();
  if (!node) return;
  setText(node, "");
  setText(node, text);
  clearTimeout(node.timer);
  node.timer = setTimeout(() => setText(node, ""), failed ? 15000 : 6000);
}

/** A modal dialog. `choices` are `[value, label, kind]`; resolves to the value, or `null` if it was dismissed. */
export function choose(title, body, choices) {
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
