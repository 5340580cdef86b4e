// One instance to a dialog: all that is known of it, and the order to drain where the server allows it.

import { clock, element, sign, span } from "./dom.js";

export class Details {
  constructor(model) {
    this.model = model;
    this.dialog = document.querySelector("#details");
    this.token = document.querySelector("meta[name=token]").content;
    this.dialog.addEventListener("close", () => (this.shown = null));
    // A click beside the dialog closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  open({ service, address }) {
    this.shown = { service, address, step: "look" };
    this.drawn = null;
    this.render();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Follows what happens to the instance while it is shown. */
  render() {
    if (!this.shown) return;
    const { service, address } = this.shown;
    const row = this.model.get(service, address) ?? { state: "gone", address, service, tags: [], zone: "", lease: "", since: null };
    const since = this.dialog.querySelector(".since");
    if (since && row.since !== null) since.textContent = this.since(row);
    if (this.drawn === row || (this.drawn?.state === "gone" && row.state === "gone")) return;
    // Only what concerns another instance ends a question that was asked about this one.
    if (this.drawn && (row.lease !== this.drawn.lease || row.state !== this.drawn.state)) this.shown.step = "look";
    this.drawn = row;
    this.draw(row);
  }

  draw(row) {
    const close = element("button", "close", "Close", { type: "button" });
    close.addEventListener("click", () => this.dialog.close());
    const title = element("h2", "", row.address, { id: "details-title" });
    const facts = [
      ["State", [sign(row.state), element("span", "", STATES[row.state])]],
      ["Service", row.service],
    ];
    if (row.state !== "gone") {
      facts.push(
        ["Weight", row.weight],
        ["Zone", row.zone || element("span", "muted", "none")],
        ["Lease", row.lease ? [element("code", "", row.lease), element("div", "remaining muted", "", { "aria-live": "off" })] : element("span", "muted", "none: the key stays until it is deleted")],
        ["Joined", row.since === null ? "before this page's server" : element("span", "since", this.since(row))],
      );
    }
    const list = element("dl", "", facts.map(([name, value]) => [element("dt", "", name), element("dd", "", value)]).flat());
    const tags = row.tags.map(([name, value]) => element("tr", "", [element("th", "", name, { scope: "row" }), element("td", "", value)]));
    const children = [element("div", "bar", [title, close]), list];
    if (tags.length > 0) children.push(element("h3", "", "Tags"), element("div", "scroll", element("table", "tags", element("tbody", "", tags))));
    if (this.model.mayDrain && this.token && row.state !== "gone") children.push(this.order(row));
    this.dialog.replaceChildren(...children);
    this.follow(row);
  }

  /** How long the lease lives, asked every second while it is shown. */
  async follow(row) {
    const shown = this.shown;
    while (this.shown === shown && this.drawn === row && row.lease) {
      const told = await this.remaining(row.lease);
      const place = this.dialog.querySelector(".remaining");
      if (this.drawn !== row || !place) return;
      place.replaceChildren(...told);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }

  async remaining(lease) {
    try {
      const answer = await fetch(`/lease/${encodeURIComponent(lease)}`);
      if (!answer.ok) return [await answer.text()];
      const { granted, remaining } = await answer.json();
      if (granted === null) return ["No instance has this lease any more."];
      const meter = element("meter", "", [], { max: Number(granted), value: Number(remaining), "aria-hidden": "true" });
      return [`${Number(remaining)} s of ${Number(granted)} s left without another keepalive`, meter];
    } catch {
      return ["The server does not answer."];
    }
  }

  since(row) {
    return `${span(this.model.now() - row.since)} ago, at ${clock(row.since)}`;
  }

  order(row) {
    const place = element("div", "order");
    const say = (text) => element("p", "", text, { role: "status" });
    const button = (className, text, onClick) => {
      const made = element("button", className, text, { type: "button" });
      made.addEventListener("click", onClick);
      return made;
    };
    const look = () => {
      const ask = button("danger", "Drain…", confirm);
      ask.disabled = row.state === "draining";
      place.replaceChildren(ask, say(row.state === "draining" ? "It is draining." : "It gets no new calls then, and leaves."));
    };
    const confirm = () => {
      const yes = button("danger", "Drain it", drain);
      place.replaceChildren(say(`Ask ${row.address} of ${row.service} to leave?`), yes, button("", "Leave it", look));
      yes.focus();
    };
    const drain = async () => {
      place.replaceChildren(say("Asking…"));
      const told = await this.drain(row);
      place.replaceChildren(say(told));
    };
    look();
    return place;
  }

  async drain({ service, address, lease }) {
    try {
      const answer = await fetch("/drain", {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${this.token}` },
        body: JSON.stringify({ service, address, lease: lease || "0" }),
      });
      return answer.ok ? "It is marked and gets no new calls." : `It was not asked: ${await answer.text()}`;
    } catch {
      return "The server does not answer.";
    }
  }
}

const STATES = {
  live: "live",
  draining: "draining: it gets no new calls",
  suspect: "suspect: its key went, and it may be etcd that stood still",
  gone: "not registered any more",
};
