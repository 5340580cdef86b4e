// The page: events of the server to the model, and the model to what is shown.

import { Details } from "./details.js";
import { count, element, reconcile, setText, sign, span, svg } from "./dom.js";
import { Model, STATES, words } from "./model.js";
import { connect } from "./stream.js";
import { Table } from "./table.js";
import { Timeline, sentence } from "./timeline.js";

/** Between two pictures; longer where one takes long. */
const FRAME = 150;
const MAX_SERVICES = 200;
/** The server asks etcd every 2 s, or up to 10 s where it is slow, and waits some seconds for the answer. */
const STALE = 25_000;
/** How long a service that was chosen may be missing. */
const PATIENCE = 5_000;
/** A service before its first answer. */
const UNREAD = { instances: new Map() };

const $ = (selector) => document.querySelector(selector);
const model = new Model();
const query = { service: "", state: "", words: [] };
const details = new Details(model);
const table = new Table((row) => details.open(row), () => draw());
const timeline = new Timeline((entry) => details.open(entry));
let link = "connecting";
let lastHeard = Date.now();
let missingSince = null;
let timer = 0;
let took = 0;
let untold = [];
let telling = 0;

connect(
  (name, data) => {
    lastHeard = Date.now();
    tell(model.apply(name, data));
    if (name === "gone" && !model.services.has(query.service)) choose("");
    draw();
  },
  (state) => {
    link = state;
    draw();
  },
);
setInterval(draw, 1_000);
window.addEventListener("resize", () => draw());

const filter = $("#filter");
filter.addEventListener("input", () => {
  query.words = words(filter.value);
  table.page = 0;
  draw();
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    filter.focus();
  } else if (event.key === "Escape" && event.target === filter) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
  } else if (event.key === "ArrowDown" && event.target === filter) {
    event.preventDefault();
    $("#table button.open")?.focus();
  }
});

function draw() {
  if (timer) return;
  timer = setTimeout(() => {
    const begin = performance.now();
    timer = 0;
    render();
    took = performance.now() - begin;
  }, Math.max(FRAME, took * 4));
}

function render() {
  checkChoice();
  renderLinks();
  renderTotals();
  renderFigures();
  renderServices();
  const rows = table.render(model, query);
  renderNothing(rows);
  timeline.render(model, query.service);
  details.render();
  document.body.dataset.ready = model.beat ? "yes" : "no";
}

/** A server that was restarted may show other services, and reads its own one after the other. */
function checkChoice() {
  const isMissing = query.service && !model.services.has(query.service) && link === "open" && model.beat?.answered;
  missingSince = isMissing ? (missingSince ?? Date.now()) : null;
  if (missingSince && Date.now() - missingSince > PATIENCE) choose("");
}

function renderLinks() {
  setText($("#registry"), model.registry);
  const server = {
    connecting: ["suspect", "connecting"],
    open: ["live", "page is live"],
    lost: ["lost", "server is unreachable"],
    ended: ["lost", "server has ended"],
  }[link];
  renderLink($("#server-link"), ...server);
  const { answered = 0, trouble = "" } = model.beat ?? {};
  const age = answered ? model.now() - answered : 0;
  if (link !== "open") renderLink($("#etcd-link"), "suspect", "etcd: unknown");
  else if (trouble) renderLink($("#etcd-link"), "lost", "etcd does not answer");
  else if (!answered) renderLink($("#etcd-link"), "suspect", "asking etcd");
  else renderLink($("#etcd-link"), "live", "etcd answers");

  let [why, old] = ["", ""];
  if (link === "lost" || link === "ended") {
    why = "The server is unreachable, and asked again and again.";
    old = `What is shown is ${span(Date.now() - lastHeard)} old.`;
  } else if (trouble) {
    why = trouble;
    old = answered ? `What is shown is ${span(age)} old.` : "Nothing is known yet.";
  } else if (link === "open" && answered && age > STALE) {
    why = "etcd has not answered lately.";
    old = `What is shown is ${span(age)} old.`;
  }
  $("#stale").hidden = why === "";
  // An alert is read out whenever it changes, and the age does so every second.
  setText($("#stale-why"), why);
  setText($("#stale-age"), old);
  document.body.classList.toggle("is-stale", why !== "");
}

function renderLink(target, state, text) {
  if (target.dataset.text === text) return;
  target.dataset.text = text;
  target.className = `link ${state}`;
  target.replaceChildren(sign(state), element("span", "", text));
}

function renderTotals() {
  // A server that has just started may not have read the service that is chosen.
  const chosen = query.service ? (model.services.get(query.service) ?? UNREAD) : undefined;
  const counts = model.counts(chosen);
  const leftOut = model.beat?.leftOut ?? 0;
  const tiles = [
    { name: "Services", value: model.services.size, note: leftOut ? `${leftOut} more not shown` : "", state: null },
    { name: "Instances", value: counts.all, note: query.service, state: "" },
    ...STATES.map((state) => ({ name: state, value: counts[state], note: "", state })),
  ];
  reconcile($("#totals"), tiles, ({ name }) => name, makeTile, (tile, { value, note, state }) => {
    setText(tile.querySelector(".value"), value.toLocaleString("en"));
    setText(tile.querySelector(".note"), note);
    if (state) tile.setAttribute("aria-pressed", String(query.state === state));
    tile.classList.toggle("is-zero", value === 0);
  });
}

function makeTile({ name, state }) {
  const label = element("span", "label", [state ? sign(state) : [], name].flat());
  const children = [label, element("span", "value"), element("span", "note muted")];
  if (state === null) return element("div", "tile", children);
  const title = state ? `Show instances that are ${state}` : "Show instances in every state";
  const tile = element("button", `tile ${state}`, children, { type: "button", title });
  tile.addEventListener("click", () => {
    query.state = query.state === state ? "" : state;
    table.page = 0;
    draw();
  });
  return tile;
}

function renderFigures() {
  const place = $("#figures");
  const { figures = [], title = "", trouble = "" } = model.figures ?? {};
  place.hidden = figures.length === 0 && trouble === "";
  place.setAttribute("aria-label", title || "Figures");
  const tiles = figures.map((figure, at) => ({ ...figure, title: at === 0 ? title : "", course: model.course.get(figure.name) ?? [] }));
  if (trouble) tiles.push({ name: "figures", value: "–", unit: "", title: trouble, course: [] });
  reconcile(
    place,
    tiles,
    ({ name }) => name,
    ({ name }) => element("div", "tile", [element("span", "label", name), element("span", "value"), element("span", "note muted"), element("span", "course")]),
    (tile, { value, unit, title, course }) => {
      setText(tile.querySelector(".value"), unit ? `${value} ${unit}` : value);
      setText(tile.querySelector(".note"), title);
      if (course.length > 1) tile.querySelector(".course").replaceChildren(spark(course));
    },
  );
}

/** The course of a figure, from 0 or the least upwards. */
function spark(course) {
  const [low, high] = [Math.min(0, ...course), Math.max(...course, 1e-9)];
  const point = (value, at) => `${((at / (course.length - 1)) * 100).toFixed(1)},${(27 - ((value - low) / (high - low)) * 24).toFixed(1)}`;
  const points = course.map(point).join(" ");
  const area = svg("polygon", { points: `0,28 ${points} 100,28`, class: "area" });
  return svg("svg", { viewBox: "0 0 100 28", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, [area, svg("polyline", { points })]);
}

function renderServices() {
  const matches = ({ name }) => name === query.service || query.words.every(({ word, without }) => without || word.includes("=") || STATES.includes(word) || hasInstance(name, word));
  const names = [...model.services.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const shown = names.filter(matches).slice(0, MAX_SERVICES);
  const items = [{ name: "", label: "All services", counts: model.counts() }].concat(
    shown.map((service) => ({ name: service.name, label: service.name, counts: model.counts(service), cutOff: service.cutOff })),
  );
  reconcile($("#services"), items, ({ name }) => `/${name}`, makeService, updateService);
  const title = names.length > shown.length ? `Services (${shown.length} of ${names.length})` : "Services";
  setText($("#services-title"), title);
}

function hasInstance(name, word) {
  if (name.toLowerCase().includes(word)) return true;
  for (const row of model.services.get(name).instances.values()) if (row.hay.includes(word)) return true;
  return false;
}

function makeService({ name, label }) {
  const made = element("button", "service", [element("span", "name", label), element("span", "number"), element("span", "parts"), element("span", "note")], { type: "button" });
  made.addEventListener("click", () => {
    choose(query.service === name ? "" : name);
    draw();
  });
  return made;
}

/** Shows one service, or all where it is "". */
function choose(service) {
  if (query.service === service) return;
  query.service = service;
  table.page = 0;
}

function updateService(target, { name, counts, cutOff }) {
  target.setAttribute("aria-pressed", String(query.service === name));
  target.classList.toggle("is-empty", counts.all === 0);
  setText(target.querySelector(".number"), counts.all.toLocaleString("en"));
  const doubts = STATES.slice(1).filter((state) => counts[state] > 0).map((state) => `${counts[state]} ${state}`);
  if (counts.all === 0) doubts.push("no instance");
  if (cutOff) doubts.push(`${cutOff} more not shown`);
  setText(target.querySelector(".note"), doubts.join(", "));
  const parts = target.querySelector(".parts");
  const key = STATES.map((state) => counts[state]).join(" ");
  if (parts.dataset.key === key) return;
  parts.dataset.key = key;
  parts.replaceChildren(...STATES.filter((state) => counts[state] > 0).map((state) => {
    const part = element("span", `part ${state}`);
    part.style.flexGrow = String(counts[state]);
    return part;
  }));
}

function renderNothing(rows) {
  const isFiltered = query.words.length > 0 || query.state || query.service;
  const text = model.beat === null ? "Waiting for the server." : isFiltered ? "No instance matches." : "Nothing is registered.";
  setText($("#nothing"), text);
  $("#nothing").hidden = rows > 0;
}

/** Reads the newest out to those who do not see it, a few at a time. */
function tell(entries) {
  untold.push(...entries.filter(({ what }) => what !== "found"));
  if (untold.length === 0 || telling) return;
  telling = setTimeout(() => {
    const text = untold.length > 3 ? count(untold.length, "change", "changes") : untold.map(sentence).join("; ");
    setText($("#news"), text);
    untold = [];
    telling = 0;
  }, 2_000);
}
