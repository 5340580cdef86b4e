// The server's events to the model, over a connection that is made again whenever it is lost.

const NAMES = ["begin", "service", "change", "gone", "log", "figures", "live", "beat", "bye"];
/** The server sends a beat every three seconds. */
const SILENCE = 12_000;
const FIRST_PAUSE = 1_000;
const LAST_PAUSE = 10_000;

/**
 * Calls `onEvent(name, data)` for each event, and `onLink(state)` with "connecting", "open", "lost" or "ended". Data that
 * is not JSON is left out.
 */
export function connect(onEvent, onLink) {
  let source = null;
  let pause = FIRST_PAUSE;
  let watchdog = 0;
  let ended = false;

  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENCE);
  };
  const lost = () => {
    clearTimeout(watchdog);
    source.close();
    onLink(ended ? "ended" : "lost");
    // Many pages must not come back at once.
    setTimeout(open, pause * (0.75 + Math.random() / 2));
    pause = Math.min(pause * 2, LAST_PAUSE);
  };
  const open = () => {
    source = new EventSource("/events");
    const here = source;
    heard();
    source.onerror = () => here === source && lost();
    for (const name of NAMES) {
      source.addEventListener(name, (event) => {
        heard();
        if (name === "bye") ended = true;
        if (name === "live") {
          pause = FIRST_PAUSE;
          ended = false;
          onLink("open");
        }
        let data;
        try {
          data = JSON.parse(event.data);
        } catch {
          return;
        }
        onEvent(name, data);
      });
    }
  };
  onLink("connecting");
  open();
}
