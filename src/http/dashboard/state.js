// What is shown is all in the URL, so that it survives a reload and can be sent to somebody.

const KEYS = [
  "page", "since", "from", "to", "type", "strategy", "conversation", "text", "query", "status", "failure", "live",
  "older_than", "newer_than", "threshold",
];
/** What goes with the page it belongs to. */
const TRANSIENT = { failure: null, live: null, older_than: null, newer_than: null, threshold: null, query: null };

export const PAGES = ["overview", "failures", "queries", "calibration"];
const listeners = new Set();

export function get() {
  const url = new URLSearchParams(location.search);
  const state = Object.fromEntries(KEYS.map((key) => [key, url.get(key)]).filter(([, value]) => value));
  if (!PAGES.includes(state.page)) state.page = "overview";
  if (!state.from && !state.to && !/^[1-9][0-9]{0,5}[smhdw]$/.test(state.since ?? "")) state.since = "24h";
  return state;
}

/** The address of what is shown now, with some changes; `null` takes something away. */
export function link(changes) {
  const state = { ...get(), ...(changes.page && changes.page !== get().page ? TRANSIENT : {}), ...changes };
  if (state.from || state.to) delete state.since;
  const url = new URLSearchParams();
  for (const key of KEYS) {
    const usual = (key === "page" && state.page === "overview") || (key === "since" && state.since === "24h");
    if (state[key] && !usual) url.set(key, state[key]);
  }
  return "?" + url;
}

/** Shows something else; `replace`: without a new step in the history. */
export function set(changes, { replace = false } = {}) {
  const to = link(changes);
  if (to === (location.search || "?")) return;
  history[replace ? "replaceState" : "pushState"](null, "", to);
  for (const listener of listeners) listener();
}

export function onChange(listener) {
  listeners.add(listener);
}

addEventListener("popstate", () => listeners.forEach((listener) => listener()));

/** Links within the page change what is shown; with a modifier they open as links do. */
addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href^='?']");
  if (!anchor || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  history.pushState(null, "", anchor.getAttribute("href"));
  listeners.forEach((listener) => listener());
});

/** The time that is asked about, as the API wants it. */
export function range(state = get()) {
  return state.from || state.to ? { from: state.from, to: state.to } : { since: state.since };
}

/** Which failures are asked for, as the API wants it. */
export function filter(state = get()) {
  return {
    failure_type: state.type, strategy: state.strategy, conversation: state.conversation, text: state.text,
    query: state.query,
  };
}
