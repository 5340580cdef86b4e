// One instance to a dialog: all that is known of it, and the order to drain where the server allows it.

import { clock, element, setText, sign, span } from "./dom.js";

export class Details {
  constructor(model) {
    this.model = model;
    this.dialog = document.querySelector("#details");
    this.token = takeToken();
    // Another address in the same tab, after a restart of the program, loads nothing anew.
    window.addEventListener("hashchange", () => (this.token = takeToken()));
    this.dialog.addEventListener("close", () => (this.shown = null));
    // A click beside the dialog closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  open({ service, address }) {
    this.shown = { service, address };
    this.drawn = null;
    this.build(address);
    this.render();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** What stays while it is shown: the focus and a question that was asked survive every change of the facts. */
  build(address) {
    this.close = element("button", "close", "Close", { type: "button" });
    this.close.addEventListener("click", () => this.dialog.close());
    const title = element("h2", "", address, { id: "details-title" });
    this.facts = element("dl", "");
    this.remains = element("div", "remaining muted", "", { "aria-live": "off" });
    this.tags = element("tbody", "");
    this.tagged = element("div", "", [element("h3", "", "Tags"), element("div", "scroll", element("table", "tags", this.tags))]);
    this.place = element("div", "order");
    this.dialog.replaceChildren(element("div", "bar", [title, this.close]), this.facts, this.tagged, this.place);
  }

  /** Follows what happens to the instance while it is shown. */
  render() {
    if (!this.shown) return;
    const { service, address } = this.shown;
    const row = this.model.get(service, address) ?? { state: "gone", address, service, tags: [], zone: "", lease: "", since: null };
    const before = this.drawn;
    if (before !== row && !(before?.state === "gone" && row.state === "gone")) {
      this.drawn = row;
      this.drawFacts(row);
      if (before?.lease !== row.lease) this.follow(row.lease);
      // Another server, or another state, ends a question; other facts do not.
      if (before?.lease !== row.lease || before.state !== row.state) this.drawOrder(row);
    }
    const since = this.dialog.querySelector(".since");
    if (since && row.since !== null) since.textContent = this.since(row);
  }

  drawFacts(row) {
    const facts = [
      ["State", [sign(row.state), element("span", "", STATES[row.state])]],
      ["Service", row.service],
    ];
    if (row.state !== "gone") {
      facts.push(
        ["Weight", row.weight],
        ["Zone", row.zone || element("span", "muted", "none")],
        ["Lease", row.lease ? [element("code", "", row.lease), this.remains] : element("span", "muted", "none: the key stays until it is deleted")],
        ["Joined", row.since === null ? "before this page's server" : element("span", "since", this.since(row))],
      );
    }
    this.facts.replaceChildren(...facts.map(([name, value]) => [element("dt", "", name), element("dd", "", value)]).flat());
    this.tags.replaceChildren(
      ...row.tags.map(([name, value]) => element("tr", "", [element("th", "", name, { scope: "row" }), element("td", "", value)])),
    );
    this.tagged.hidden = row.tags.length === 0;
  }

  drawOrder(row) {
    const hadFocus = this.place.contains(document.activeElement);
    this.place.hidden = !this.model.mayDrain || row.state === "gone";
    if (this.place.hidden) this.place.replaceChildren();
    else if (this.token) this.order(row);
    else this.place.replaceChildren(element("p", "", "To drain it, open the whole address that the program printed."));
    if (hadFocus) this.close.focus();
  }

  /** How long the lease lives, asked every second while it is shown. */
  async follow(lease) {
    const turn = (this.turn = { shown: this.shown });
    this.remains.replaceChildren();
    while (lease && this.turn === turn && this.shown === turn.shown) {
      const told = await this.remaining(lease);
      if (this.turn !== turn) return;
      this.remains.replaceChildren(...told);
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
    const { place } = this;
    const say = (text) => element("p", "", text, { role: "status" });
    const button = (className, text, onClick) => {
      const made = element("button", className, text, { type: "button" });
      made.addEventListener("click", onClick);
      return made;
    };
    const look = () => {
      const ask = button("danger", "Drain…", confirm);
      ask.disabled = row.state === "draining";
      place.replaceChildren(ask, say(row.state === "draining" ? "It is draining." : `${NO_NEW_CALLS} It leaves if it runs tonic-etcd.`));
    };
    const confirm = () => {
      const yes = button("danger", "Drain it", drain);
      place.replaceChildren(say(`Ask ${row.address} of ${row.service} to leave?`), yes, button("", "Leave it", look));
      yes.focus();
    };
    const drain = async () => {
      const asked = say("Asking…");
      place.replaceChildren(asked);
      this.close.focus();
      setText(asked, await this.drain(row));
    };
    look();
  }

  async drain({ service, address, lease }) {
    try {
      const answer = await fetch("/drain", {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${this.token}` },
        body: JSON.stringify({ service, address, lease: lease || "0" }),
      });
      return answer.ok ? `It is marked. ${NO_NEW_CALLS}` : `It was not asked: ${await answer.text()}`;
    } catch {
      return "The server does not answer.";
    }
  }
}

/**
 * The secret of the address that the program printed: it comes with no file of the page, and is kept for this tab alone.
 * The address bar loses it, which is what people copy and show.
 */
function takeToken() {
  const given = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(given)) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token") ?? "";
}

const NO_NEW_CALLS = "Clients of tonic-etcd send it no new calls unless it is the last one; other clients still do.";
const STATES = {
  live: "live",
  draining: "draining: about to leave",
  suspect: "suspect: its key went, and it may be etcd that stood still",
  gone: "not registered any more",
};
