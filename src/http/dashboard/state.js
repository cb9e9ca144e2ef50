// What is shown is all in the URL, so that it survives a reload and can be sent to somebody.

import { STATUSES, TYPES } from "./format.js";

/** What each page shows of the URL, besides the time; the rest is not kept, for nobody would see it. */
const OF_PAGE = {
	overview: [],
	failures: [
		"type",
		"strategy",
		"conversation",
		"text",
		"group",
		"failure",
		"live",
		"cursor",
		"back",
	],
	queries: ["type", "strategy", "status"],
	calibration: ["strategy", "threshold"],
};
/** What belongs to one view of a page, and not to the next one. */
const TRANSIENT = {
	failure: null,
	live: null,
	cursor: null,
	back: null,
	threshold: null,
	group: null,
};
/** What can only be one of some words. */
const WORDS = {
	type: TYPES,
	status: STATUSES,
	live: ["1"],
	back: ["1"],
};

export const PAGES = Object.keys(OF_PAGE);
const listeners = new Set();

export function get() {
	const url = new URLSearchParams(location.search);
	const page = PAGES.includes(url.get("page")) ? url.get("page") : "overview";
	const state = { page };
	for (const key of ["since", "from", "to", ...OF_PAGE[page]]) {
		const value = url.get(key);
		if (value && (WORDS[key]?.includes(value) ?? true)) state[key] = value;
	}
	if (!state.from && !state.to && !/^[1-9][0-9]{0,5}[smhdw]$/.test(state.since ?? ""))
		state.since = "24h";
	return state;
}

/** The address of what is shown now, with some changes; `null` takes something away. */
export function link(changes) {
	const now = get();
	const state = {
		...now,
		...(changes.page && changes.page !== now.page ? TRANSIENT : {}),
		...changes,
	};
	if (state.from || state.to) delete state.since;
	const url = new URLSearchParams();
	for (const key of ["page", "since", "from", "to", ...OF_PAGE[state.page]]) {
		const usual =
			(key === "page" && state.page === "overview") || (key === "since" && state.since === "24h");
		if (state[key] && !usual) url.set(key, state[key]);
	}
	return "?" + url;
}

/** Shows something else; `replace`: without a new step in the history; `quietly`: it is shown already. */
export function set(changes, { replace = false, quietly = false } = {}) {
	const to = link(changes);
	if (to === (location.search || "?")) return;
	history[replace ? "replaceState" : "pushState"](null, "", to);
	if (!quietly) for (const listener of listeners) listener();
}

export function onChange(listener) {
	listeners.add(listener);
}

addEventListener("popstate", () => listeners.forEach((listener) => listener()));

/** Links within the page change what is shown; with a modifier they open as links do. */
addEventListener("click", (event) => {
	const anchor = event.target.closest?.("a[href^='?']");
	if (
		!anchor ||
		event.button !== 0 ||
		event.ctrlKey ||
		event.metaKey ||
		event.shiftKey ||
		event.altKey
	)
		return;
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
		failure_type: state.type,
		retrieval_strategy: state.strategy,
		conversation_id: state.conversation,
		text: state.text,
		query_group: state.group,
	};
}
