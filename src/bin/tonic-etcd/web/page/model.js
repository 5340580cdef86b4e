// Events to what is known: services and their instances, what happened, and how fresh all of it is.
//
// Every field is read as what it should be, and left out where it is something else.

/** Instances that left are shown for a moment. */
const GHOST = 5_000;
const MAX_LOG = 300;
const MAX_COURSE = 90;

export const STATES = ["live", "draining", "suspect"];

export class Model {
  constructor() {
    this.reset({});
    this.course = new Map();
  }

  reset(begin) {
    this.version = text(begin.version);
    this.registry = text(begin.registry);
    this.mayDrain = begin.may_drain === true;
    this.services = new Map();
    this.log = [];
    this.figures = null;
    this.beat = null;
    this.ghosts = new Map();
  }

  /** Takes in one event. Returns what happened, if it is worth telling. */
  apply(name, data) {
    switch (name) {
      case "begin":
        // What is shown stays until the server has told all it knows.
        this.next = new Model();
        this.next.reset(record(data));
        this.next.course = this.course;
        this.setTime(record(data).time);
        return [];
      case "live":
        if (this.next) Object.assign(this, this.next, { next: null });
        return [];
      default:
        if (!this.next) return this.take(name, record(data), data);
        // It happened before this page, or was told already.
        this.next.take(name, record(data), data);
        return [];
    }
  }

  take(name, data, raw) {
    switch (name) {
      case "service":
        this.setService(data);
        return [];
      case "change":
        this.change(data);
        return [];
      case "gone": {
        const service = this.services.get(text(data.service));
        if (service && service.version < whole(data.version)) this.services.delete(service.name);
        return [];
      }
      case "log": {
        const entries = list(raw).map(entry).filter((entry) => entry.what);
        this.log = [...this.log, ...entries].slice(-MAX_LOG);
        return entries;
      }
      case "figures":
        this.setFigures(data);
        return [];
      case "beat":
        this.setTime(data.time);
        this.beat = {
          answered: whole(data.answered),
          trouble: text(data.trouble),
          leftOut: whole(data.left_out),
        };
        return [];
      default:
        return [];
    }
  }

  /** The server's time now, by its own clock. */
  now() {
    return Date.now() + (Model.offset ?? 0);
  }

  setTime(time) {
    if (Number.isFinite(time)) Model.offset = time - Date.now();
  }

  setService(data) {
    const name = text(data.service);
    const version = whole(data.version);
    if (name === "" || (this.services.get(name)?.version ?? -1) > version) return;
    const instances = new Map();
    for (const value of list(data.instances)) {
      const made = instance(name, record(value));
      if (made.address) instances.set(made.address, made);
    }
    this.services.set(name, { name, version, cutOff: whole(data.cut_off), instances });
  }

  change(data) {
    const service = this.services.get(text(data.service));
    const version = whole(data.version);
    if (!service || version <= service.version) return;
    service.version = version;
    service.cutOff = whole(data.cut_off);
    for (const value of list(data.set)) {
      const made = instance(service.name, record(value));
      if (!made.address) continue;
      service.instances.set(made.address, made);
      this.ghosts.delete(made.key);
    }
    for (const address of list(data.gone).map(text)) {
      const left = service.instances.get(address);
      if (!left) continue;
      service.instances.delete(address);
      this.ghosts.set(left.key, { ...left, state: "gone", until: this.now() + GHOST });
    }
  }

  setFigures(data) {
    const columns = new Set();
    const instances = new Map();
    for (const [address, values] of Object.entries(record(data.instances))) {
      const row = new Map(Object.entries(record(values)).map(([name, value]) => [name, shown(value)]));
      instances.set(address, row);
      for (const name of row.keys()) if (columns.size < 4) columns.add(name);
    }
    const figures = list(data.figures).slice(0, 12).map(record);
    this.figures = {
      title: text(data.title),
      trouble: text(data.trouble),
      time: whole(data.time),
      columns: [...columns],
      instances,
      figures: figures.map(({ name, value, unit }) => ({ name: text(name), value: shown(value), unit: text(unit) })),
    };
    for (const { name, value } of figures) {
      if (typeof value !== "number") continue;
      const course = this.course.get(text(name)) ?? [];
      course.push(value);
      this.course.set(text(name), course.slice(-MAX_COURSE));
    }
  }

  /** How many instances are in each state, of one service or of all. */
  counts(service) {
    const counts = { live: 0, draining: 0, suspect: 0, all: 0 };
    for (const { instances } of service ? [service] : this.services.values()) {
      for (const { state } of instances.values()) counts[state] += 1;
      counts.all += instances.size;
    }
    return counts;
  }

  /** The instances that match, and those that have just left. */
  rows({ service, state, words }) {
    const now = this.now();
    for (const [key, ghost] of this.ghosts) if (ghost.until < now) this.ghosts.delete(key);
    const wanted = (row) =>
      (!service || row.service === service) &&
      (!state || row.state === state) &&
      words.every(({ word, without }) => row.hay.includes(word) !== without);
    const rows = [...this.ghosts.values()].filter(wanted);
    for (const { instances } of this.services.values()) {
      for (const row of instances.values()) if (wanted(row)) rows.push(row);
    }
    return rows;
  }

  get(service, address) {
    return this.services.get(service)?.instances.get(address);
  }

  figureOf(address, name) {
    return this.figures?.instances.get(address)?.get(name) ?? "";
  }
}

/** The words of a filter; one with a minus in front must not match. */
export function words(filter) {
  return filter.toLowerCase().split(/\s+/).filter((word) => word && word !== "-").map((word) => {
    const without = word.startsWith("-");
    return { word: without ? word.slice(1) : word, without };
  });
}

function instance(service, data) {
  const tags = Object.entries(record(data.tags)).map(([name, value]) => [name, text(value)]);
  const address = text(data.address);
  const state = STATES.includes(data.state) ? data.state : "live";
  const lease = text(data.lease);
  const hay = [service, address, state, `lease=${lease}`, ...tags.map((tag) => tag.join("="))].join(" ").toLowerCase();
  return {
    key: JSON.stringify([service, address]),
    service,
    address,
    state,
    weight: whole(data.weight),
    lease: lease === "0" ? "" : lease,
    since: data.since === null ? null : whole(data.since),
    zone: tags.find(([name]) => name === "zone")?.[1] ?? "",
    tags,
    hay,
  };
}

function entry(value) {
  const data = record(value);
  return {
    time: whole(data.time),
    what: text(data.what),
    service: text(data.service),
    address: text(data.address),
    count: Math.max(1, whole(data.count)),
  };
}

const record = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : {});
const list = (value) => (Array.isArray(value) ? value : []);
const text = (value) => (typeof value === "string" ? value : "");
const whole = (value) => (Number.isSafeInteger(value) && value >= 0 ? value : 0);
const shown = (value) => {
  if (typeof value === "number") return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : 1 });
  return text(value);
};
