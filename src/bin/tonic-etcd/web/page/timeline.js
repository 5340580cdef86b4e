// What happened, to a strip of the last minutes and a list of it.

import { clock, count, element, reconcile, sign, svg } from "./dom.js";

const MINUTES = 5;
const SHOWN = 120;
const LANE = 18;
/** Milliseconds that share one mark on the strip. */
const BIN = 2_500;

const KINDS = {
  found: { lane: -1, say: (n) => count(n, "instance is here", "instances are here") },
  joined: { lane: 0, say: (n) => (n === 1 ? "joined" : `${count(n, "instance", "instances")} joined`) },
  back: { lane: 0, say: (n) => (n === 1 ? "is back" : `${count(n, "instance", "instances")} are back`) },
  again: { lane: 0, say: (n) => (n === 1 ? "registered anew" : `${count(n, "instance", "instances")} registered anew`) },
  changed: { lane: -1, say: (n) => (n === 1 ? "changed" : `${count(n, "instance", "instances")} changed`) },
  draining: { lane: 1, say: (n) => (n === 1 ? "is draining" : `${count(n, "instance", "instances")} are draining`) },
  suspect: { lane: 1, say: (n) => (n === 1 ? "is suspect: its key went" : `${count(n, "instance", "instances")} are suspect`) },
  left: { lane: 2, say: (n) => (n === 1 ? "left" : `${count(n, "instance", "instances")} left`) },
  lost: { lane: 2, say: (n) => (n === 1 ? "is lost" : `${count(n, "instance", "instances")} are lost`) },
  "etcd-lost": { lane: 3, say: () => "etcd does not answer" },
  "etcd-back": { lane: 3, say: () => "etcd answers again" },
};
const LANES = ["joins", "doubts", "leaves", "etcd"];

/** A sentence of what happened. */
export function sentence({ what, service, address, count }) {
  const said = Object.hasOwn(KINDS, what) ? KINDS[what].say(count) : what;
  if (address) return `${address} ${said} (${service})`;
  return service ? `${service}: ${said}` : said;
}

export class Timeline {
  constructor(onOpen) {
    this.onOpen = onOpen;
    this.list = document.querySelector("#log");
    this.place = document.querySelector("#strip");
  }

  render(model, service) {
    const wanted = (entry) => Object.hasOwn(KINDS, entry.what) && (!service || !entry.service || entry.service === service);
    const entries = model.log.filter(wanted);
    this.renderList(entries);
    this.renderStrip(entries, model.now());
  }

  renderList(entries) {
    const newest = entries.slice(-SHOWN).reverse();
    const keyOf = (entry) => (entry.key ??= this.newKey());
    reconcile(this.list, newest, keyOf, (entry) => this.makeEntry(entry), () => {});
    if (newest.length === 0 && !this.list.firstElementChild) this.list.dataset.empty = "Nothing happened yet.";
    else delete this.list.dataset.empty;
  }

  newKey() {
    this.keys = (this.keys ?? 0) + 1;
    return this.keys;
  }

  makeEntry(entry) {
    const time = element("time", "", clock(entry.time), { datetime: new Date(entry.time).toISOString() });
    const words = element("span", "words");
    if (entry.address) {
      const open = element("button", "plain", entry.address, { type: "button" });
      open.addEventListener("click", () => this.onOpen(entry));
      words.append(open, " ");
    }
    words.append(KINDS[entry.what].say(entry.count));
    if (entry.service) words.append(element("span", "muted service", ` ${entry.service}`));
    return element("li", entry.what, [sign(entry.what), words, time]);
  }

  renderStrip(entries, now) {
    const width = Math.max(200, this.place.clientWidth);
    const [left, right] = [52, width - 9];
    const from = now - MINUTES * 60_000;
    const x = (time) => left + ((time - from) / (now - from)) * (right - left);
    const bins = new Map();
    for (const { time, what, count } of entries) {
      const { lane } = KINDS[what];
      if (lane < 0 || time < from) continue;
      const bin = Math.floor(time / BIN);
      const key = `${lane} ${what} ${bin}`;
      const mark = bins.get(key) ?? { lane, what, time: (bin + 0.5) * BIN, count: 0 };
      mark.count += count;
      bins.set(key, mark);
    }
    const lanes = LANES.map((name, lane) => {
      const y = lane * LANE + LANE / 2 + 2;
      const label = svg("text", { x: 0, y: y + 4, class: "lane" });
      label.textContent = name;
      return [label, svg("line", { x1: left, x2: right, y1: y, y2: y, class: "lane" })];
    });
    const height = LANES.length * LANE + 2;
    const ticks = [];
    for (let minute = 0; minute <= MINUTES; minute += 1) {
      const at = x(now - minute * 60_000);
      ticks.push(svg("line", { x1: at, x2: at, y1: 2, y2: height, class: "tick" }));
      const label = svg("text", { x: at, y: height + 13, class: "tick", "text-anchor": minute === 0 ? "end" : "middle" });
      label.textContent = minute === 0 ? "now" : `${minute} min`;
      ticks.push(label);
    }
    const marks = [...bins.values()].map(({ lane, what, time, count }) => {
      const size = Math.min(17, 9 + 2 * Math.log2(count));
      const shape = sign(what);
      shape.setAttribute("x", String(Math.min(x(Math.min(time, now)), right) - size / 2));
      shape.setAttribute("y", String(lane * LANE + LANE / 2 + 2 - size / 2));
      shape.setAttribute("width", String(size));
      shape.setAttribute("height", String(size));
      return shape;
    });
    const drawn = svg("svg", { width, height: height + 18, role: "img" }, [...ticks, ...lanes.flat(), ...marks]);
    const recent = [...bins.values()].reduce((sum, { count }) => sum + count, 0);
    drawn.setAttribute("aria-label", `${count(recent, "event", "events")} in the last ${MINUTES} minutes; the list has each`);
    this.place.replaceChildren(drawn);
  }
}
