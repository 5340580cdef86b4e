// Texts and numbers to elements: whatever a registry holds becomes text here, and never markup.

/** An element with a class, its children (elements, or texts) and attributes that are not taken from the registry. */
export function element(tag, className, children = [], attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...[children].flat().map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** An SVG element. */
export function svg(tag, attributes = {}, children = []) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** The sign of a state or of something that happened: each has a shape of its own, whatever its colour. */
export function sign(name) {
  const path = svg("path", { d: SIGNS[name] ?? SIGNS.changed });
  return svg("svg", { viewBox: "0 0 16 16", class: `sign ${name}`, "aria-hidden": "true", focusable: "false" }, [path]);
}

/** Sets a text where it is another: assistive technology reads every change. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Makes the children of `parent` those of `items`, each kept by its key: focus and animations survive. */
export function reconcile(parent, items, keyOf, make, update) {
  const known = (parent.known ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of known) {
    if (!wanted.has(key)) {
      child.remove();
      known.delete(key);
    }
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (!child) {
      child = make(item);
      known.set(key, child);
    }
    update(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

/** A span of time as people say it. */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** The same in one unit. */
export function briefly(ms) {
  return span(ms).split(" ").slice(0, 2).join(" ");
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

export const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const SIGNS = {
  live: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Z",
  draining: "M8 1 15 8 8 15 1 8Z M8 5.2 5.2 8H10.8Z",
  suspect: "M8 1.5 15.2 14.5H.8Z M7.2 6V10.2H8.8V6Z M7.2 11.3V12.9H8.8V11.3Z",
  gone: "M3 1.4 8 6.4 13 1.4 14.6 3 9.6 8 14.6 13 13 14.6 8 9.6 3 14.6 1.4 13 6.4 8 1.4 3Z",
  joined: "M6.8 2H9.2V6.8H14V9.2H9.2V14H6.8V9.2H2V6.8H6.8Z",
  found: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Z M8 4.4a3.6 3.6 0 1 0 0 7.2 3.6 3.6 0 0 0 0-7.2Z",
  left: "M2 6.6H14V9.4H2Z",
  lost: "M3 1.4 8 6.4 13 1.4 14.6 3 9.6 8 14.6 13 13 14.6 8 9.6 3 14.6 1.4 13 6.4 8 1.4 3Z",
  back: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Z",
  again: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Z",
  changed: "M3 5H13V7.2H3Z M3 9H13V11.2H3Z",
  "etcd-lost": "M3 1.4 8 6.4 13 1.4 14.6 3 9.6 8 14.6 13 13 14.6 8 9.6 3 14.6 1.4 13 6.4 8 1.4 3Z",
  "etcd-back": "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Z",
};
