// The state of the page is its URL: it survives a reload, and can be sent to another person.

import { h } from "./dom.js";
import { STATUSES, TYPES } from "./format.js";

/**
 * The parameters of each page, besides those of all pages. The URL has no others, because no filter
 * should act unseen.
 * @type {Record<PageName, StateKey[]>}
 */
const PARAMETERS = {
	overview: [],
	failures: ["type", "conversation", "text", "group", "sort", "failure", "live", "cursor", "back"],
	queries: ["type", "status", "text", "sort", "group"],
	calibration: ["threshold"],
};
/**
 * The parameters of all pages. `whole` is the range before the reader zoomed.
 * @type {StateKey[]}
 */
const SHARED = ["since", "from", "to", "whole", "strategy"];
/** Removed when another page is opened. @type {StateChanges} */
const TRANSIENT = {
	failure: null,
	live: null,
	cursor: null,
	back: null,
	threshold: null,
	group: null,
	text: null,
	sort: null,
};
/** The values of parameters that have a fixed list of them. @type {Record<string, string[]>} */
const VALUES = { type: TYPES, status: [...STATUSES, "all"], live: ["1"], back: ["1"] };

/** @type {PageName[]} */
export const PAGES = ["overview", "failures", "queries", "calibration"];

/** @type {Set<() => void>} */
const listeners = new Set();

export function get() {
	const url = new URLSearchParams(location.search);
	const page = PAGES.find(name => name === url.get("page")) ?? "overview";
	/** @type {State} */
	const state = { page };
	for (const key of [...SHARED, ...PARAMETERS[page]]) {
		const value = url.get(key);
		if (value && (VALUES[key]?.includes(value) ?? true)) state[key] = value;
	}
	if (!state.from && !state.to && !/^[1-9][0-9]{0,5}[smhdw]$/.test(state.since ?? ""))
		state.since = "24h";
	return state;
}

/** Returns the URL of the present state with some changes. @param {StateChanges} changes */
export function link(changes) {
	const now = get();
	const isOtherPage = changes.page && changes.page !== now.page;
	const state = { ...now, ...(isOtherPage ? TRANSIENT : {}), ...changes };
	if (state.from || state.to) delete state.since;
	else delete state.whole;
	const url = new URLSearchParams();
	if (state.page !== "overview") url.set("page", state.page);
	for (const key of [...SHARED, ...PARAMETERS[state.page]]) {
		const value = state[key];
		if (value && !(key === "since" && value === "24h")) url.set(key, value);
	}
	return "?" + url;
}

/** Returns a link that changes the state. @type {Dom["anchor"]} */
export function anchor(changes, content, attributes) {
	return h("a", { href: link(changes), ...attributes }, content);
}

/**
 * Changes the state. `replace` adds no step to the history, `quietly` calls no listener.
 * @param {StateChanges} changes
 */
export function set(changes, { replace = false, quietly = false } = {}) {
	const to = link(changes);
	if (to === (location.search || "?")) return;
	history[replace ? "replaceState" : "pushState"](null, "", to);
	if (!quietly) changed();
}

/** Shows a part of the range. @param {number} begin in seconds @param {number} end in seconds */
export function zoom(begin, end) {
	const { since, from = "", to = "", whole } = get();
	const [first, last] = [begin, end].map(seconds => new Date(1000 * seconds).toISOString());
	set({
		since: null,
		from: first,
		to: last,
		whole: whole ?? since ?? `${from}~${to}`,
		cursor: null,
		back: null,
	});
}

/** The changes that lead back to the range before the reader zoomed. @returns {StateChanges} */
export function zoomedOut() {
	const { whole = "" } = get();
	const [from, to] = whole.split("~");
	// A range without "~" is a length up to now.
	const before =
		to === undefined
			? { since: whole, from: null, to: null }
			: { since: null, from: from || null, to: to || null };
	return { ...before, whole: null, cursor: null, back: null };
}

/** @param {() => void} listener */
export function onChange(listener) {
	listeners.add(listener);
}

function changed() {
	for (const listener of listeners) listener();
}

addEventListener("popstate", changed);

/** Links within the page change the state. With a modifier key the browser follows them. */
addEventListener("click", event => {
	const target = event.target instanceof Element && event.target.closest("a[href^='?']");
	if (!target || event.button !== 0) return;
	if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
	event.preventDefault();
	history.pushState(null, "", target.getAttribute("href"));
	changed();
});

/** Returns the time range as parameters of the API. @returns {Params} */
export function range(state = get()) {
	return state.from || state.to ? { from: state.from, to: state.to } : { since: state.since };
}

/** Returns the name of the period before the range. */
export function periodBefore(state = get()) {
	const found = /^([0-9]+)([smhdw])$/.exec(state.since ?? "");
	if (!found) return "the same time before";
	const [, count, unit] = found;
	/** @type {Record<string, string>} */
	const units = { s: "second", m: "minute", h: "hour", d: "day", w: "week" };
	return count === "1" ? `the ${units[unit]} before` : `the ${count} ${units[unit]}s before`;
}

/** Returns the filters of failures as parameters of the API. @returns {Params} */
export function filter(state = get()) {
	return {
		failure_type: state.type,
		retrieval_strategy: state.strategy,
		conversation_id: state.conversation,
		text: state.text,
		query_group: state.group,
	};
}
