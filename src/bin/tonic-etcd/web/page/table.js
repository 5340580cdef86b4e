// Instances to a table: filtered, sorted, and a page of rows at a time, however many there are.

import { briefly, count, element, reconcile, setText, sign } from "./dom.js";

const ROWS = 50;
const COLLATOR = new Intl.Collator("en", { numeric: true });

const COLUMNS = [
  { name: "State", key: (row) => row.state },
  { name: "Address", key: (row) => row.address },
  { name: "Service", key: (row) => row.service },
  { name: "Weight", key: (row) => row.weight, number: true },
  { name: "Zone", key: (row) => row.zone },
  { name: "Tags", key: (row) => row.tags.map((tag) => tag.join("=")).join(" ") },
  { name: "Lease", key: (row) => row.lease },
  { name: "Joined", key: (row) => -(row.since ?? 0), number: true },
];

export class Table {
  /** `onOpen(row)` is called for the row whose details are wanted. */
  constructor(onOpen, onChange) {
    this.onOpen = onOpen;
    this.onChange = onChange;
    this.sortBy = "Service";
    this.descending = false;
    this.page = 0;
    this.head = document.querySelector("#table thead");
    this.body = document.querySelector("#table tbody");
    this.previous = document.querySelector("#previous");
    this.next = document.querySelector("#next");
    this.previous.addEventListener("click", () => this.turn(-1));
    this.next.addEventListener("click", () => this.turn(1));
    this.body.addEventListener("keydown", (event) => this.onKey(event));
    this.head.append(element("tr", ""));
  }

  turn(pages, focusFirst = false) {
    this.page += pages;
    this.focusFirst = focusFirst;
    this.onChange();
    document.querySelector("#instances-title").scrollIntoView({ block: "nearest" });
  }

  render(model, query) {
    const columns = this.columns(model);
    this.renderHead(columns);
    const rows = this.sorted(model.rows(query), columns);
    const pages = Math.max(1, Math.ceil(rows.length / ROWS));
    this.page = Math.min(Math.max(0, this.page), pages - 1);
    const first = this.page * ROWS;
    const shown = rows.slice(first, first + ROWS);
    const made = columns.map((column) => column.name).join("\n");
    if (this.made !== made) {
      // Other columns: every row is made anew.
      this.body.known?.clear();
      this.body.replaceChildren();
      this.made = made;
    }
    const now = model.now();
    this.heaviest = shown.reduce((most, row) => Math.max(most, row.weight), 1);
    reconcile(
      this.body,
      shown,
      (row) => row.key,
      (row) => this.makeRow(row, columns),
      (line, row) => this.updateRow(line, row, columns, now),
    );
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.previous.hidden = this.next.hidden = pages === 1;
    const all = count(rows.length, "instance", "instances");
    const text = pages === 1 ? all : `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${all}`;
    setText(document.querySelector("#shown"), text);
    // The row that had the focus is not shown any more.
    if (this.focusFirst) this.body.querySelector("button.open")?.focus();
    this.focusFirst = false;
    return rows.length;
  }

  columns(model) {
    const figures = model.figures?.columns ?? [];
    const figure = (name) => ({
      name: `${name} `,
      number: true,
      figure: true,
      key: (row) => Number(model.figureOf(row.address, name).replaceAll(",", "")) || 0,
      text: (row) => model.figureOf(row.address, name),
    });
    return [...COLUMNS, ...figures.map(figure)];
  }

  sorted(rows, columns) {
    const column = columns.find((column) => column.name === this.sortBy) ?? COLUMNS[2];
    const sign = this.descending ? -1 : 1;
    const compare = (a, b) => (typeof a === "number" ? a - b : COLLATOR.compare(a, b));
    return rows.sort(
      (a, b) =>
        sign * compare(column.key(a), column.key(b)) ||
        COLLATOR.compare(a.service, b.service) ||
        COLLATOR.compare(a.address, b.address),
    );
  }

  renderHead(columns) {
    reconcile(
      this.head.firstElementChild,
      columns,
      (column) => column.name,
      (column) => {
        const button = element("button", "sort", [element("span", "", column.name.trim()), element("span", "arrow")], {
          type: "button",
        });
        button.addEventListener("click", () => {
          this.descending = this.sortBy === column.name && !this.descending;
          this.sortBy = column.name;
          this.page = 0;
          this.onChange();
        });
        return element("th", classOf(column), [button], { scope: "col" });
      },
      (cell, column) => {
        const isSorted = column.name === this.sortBy;
        const direction = this.descending ? "descending" : "ascending";
        if (isSorted) cell.setAttribute("aria-sort", direction);
        else cell.removeAttribute("aria-sort");
      },
    );
  }

  makeRow(row, columns) {
    const line = element("tr", "");
    for (const column of columns) {
      line.append(element("td", classOf(column)));
    }
    const open = element("button", "open", row.address, { type: "button", "aria-haspopup": "dialog" });
    open.addEventListener("click", () => this.onOpen(line.row));
    line.children[1].append(open);
    return line;
  }

  updateRow(line, row, columns, now) {
    if (line.row !== row || line.heaviest !== this.heaviest) {
      line.heaviest = this.heaviest;
      if (line.row?.state !== row.state) {
        line.className = `is-${row.state}`;
        line.children[0].replaceChildren(sign(row.state), element("span", "", row.state));
      }
      line.row = row;
      const values = [null, null, row.service, null, row.zone, null, row.lease];
      values.forEach((value, at) => value !== null && setText(line.children[at], value));
      const bar = element("meter", "", [], { max: this.heaviest, value: row.weight, "aria-hidden": "true" });
      line.children[3].replaceChildren(element("span", "", row.weight), bar);
      const tags = row.tags.filter(([name]) => name !== "zone");
      line.children[5].replaceChildren(...tags.slice(0, 6).map((tag) => element("span", "tag", tag.join("="))));
      if (tags.length > 6) line.children[5].append(element("span", "muted", ` +${tags.length - 6}`));
    }
    const isNew = row.since !== null && now - row.since < 4_000 && row.state !== "gone";
    line.classList.toggle("is-new", isNew);
    setText(line.children[7], row.since === null ? "" : `${briefly(now - row.since)} ago`);
    for (let at = 8; at < columns.length; at += 1) setText(line.children[at], columns[at].text(row));
  }

  onKey(event) {
    const buttons = [...this.body.querySelectorAll("button.open")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "PageDown" && !this.next.disabled) this.turn(1, true);
    else if (event.key === "PageUp" && !this.previous.disabled) this.turn(-1, true);
    else if (to === undefined) return;
    event.preventDefault();
    buttons[to]?.focus();
  }
}

const classOf = ({ name, number, figure }) => `${figure ? "figure" : name.toLowerCase()}${number ? " number" : ""}`;
