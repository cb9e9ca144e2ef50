// The page of single failures: a list with filters, and a live tail. detail.js shows one in full.

import * as api from "./api.js";
import {
	announce,
	button,
	debounce,
	empty,
	failed,
	field as labelled,
	group,
	h,
	replace,
	select,
	table,
	tableRow,
} from "./dom.js";
import * as detail from "./detail.js";
import * as format from "./format.js";
import * as state from "./state.js";

const PER_PAGE = 50;
/** The time budget of a request. A page of rare failures takes many requests. */
const WITHIN_MS = 20;
/** The timer does not repeat a search that took longer. */
const SLOW_MS = 1000;
/** Rows that a live list shows, and rows that wait while it is paused. */
const MAX_LIVE_ROWS = 200;

const FILTERS = ["type", "strategy", "conversation", "text", "group"];
/** The filters that the counts do not have. */
const UNCOUNTED = ["conversation", "text", "group"];
/** The changes that lead to the newest page. */
const NEWEST = { cursor: null, back: null };

/** @type {Mount} */
export function mount(root) {
	const progress = h("div", { class: "progress" });
	const list = h("div");
	const pager = h("nav", { class: "pager", "aria-label": "Pages of failures" });
	const total = h("p", { class: "total" });
	const view = detail.mount(root, () =>
		[...list.querySelectorAll("tr[data-event]")].flatMap(
			one => one.getAttribute("data-event") ?? [],
		),
	);
	const filters = filterFields(text => (progress.textContent = text));
	const form = h(
		"form",
		{ class: "filters", role: "search", onsubmit: event => event.preventDefault() },
		filters.elements,
	);
	root.append(h("section", { class: "card" }, form, total, progress, list, pager));

	/** @type {{ stop(): void } | null} */
	let tail = null;
	/** The state that the list shows. */
	let shown = "";
	let isSlow = false;

	/** @param {State} now @param {AbortSignal} signal */
	async function showList(now, signal) {
		const { failure, ...rest } = now;
		const wanted = JSON.stringify(rest);
		if (now.live) {
			// The tail continues behind the dialog.
			if (tail && shown === wanted) return;
			tail?.stop();
			tail = followTail(now, list, progress);
			pager.replaceChildren();
		} else {
			tail?.stop();
			tail = null;
			if (failure && shown === wanted) return;
			const places = { list, progress, pager };
			const began = performance.now();
			// A search that is stopped counts as slow.
			isSlow = true;
			try {
				await find(now, signal, places);
			} catch (error) {
				if (!(error instanceof api.ApiError) || error.code !== "invalid_cursor") throw error;
				isSlow = false;
				// The cursor belongs to a log that was replaced: the newest page is shown.
				if (now.cursor) {
					state.set(NEWEST, { replace: true });
					return;
				}
				await find(now, signal, places);
			}
			isSlow = performance.now() - began > SLOW_MS;
		}
		shown = wanted;
	}

	return {
		search: () => filters.focus(),
		/** A live list needs no refresh, and an older page must stay while it is read. */
		get isHeld() {
			const { live, cursor } = state.get();
			return Boolean(live || cursor || isSlow);
		},
		async load(signal) {
			const now = state.get();
			filters.show(now);
			await Promise.all([
				view.show(now.failure, signal),
				showList(now, signal),
				showTotal(now, total, signal),
			]);
			view.update();
		},
		close() {
			filters.cancel();
			tail?.stop();
			view.close();
		},
	};
}

/** Returns the fields of the filters. @param {(text: string) => void} showError */
function filterFields(showError) {
	/** @param {StateChanges} changes @param {{ replace?: boolean }} [options] */
	const change = (changes, options) => state.set({ ...NEWEST, ...changes }, options);
	/** @param {StateKey} name @param {string} label @param {Attributes} more */
	const input = (name, label, more) => {
		// Typing is one step of the history, whatever its pauses.
		const later = debounce((/** @type {string} */ value) => {
			change({ [name]: value || null }, { replace: true });
		}, 300);
		const field = h("input", {
			type: "search",
			name,
			autocomplete: "off",
			spellcheck: "false",
			oninput() {
				later(field.value.trim());
			},
			...more,
		});
		const element = labelled(label, field);
		return { name, field, element, cancel: later.cancel };
	};
	const text = input("text", "Search in queries and errors", { placeholder: "/", maxlength: 512 });
	const inputs = [text, input("conversation", "Conversation", { maxlength: 128 })];
	const [textField, ...otherFields] = inputs.map(({ element }) => element);
	const type = select("type", "Type", format.TYPE_OPTIONS, "", value =>
		change({ type: value || null }),
	);
	const live = button("", () => change({ live: state.get().live ? null : "1" }), {
		name: "live",
		title: "Follow new failures (t)",
	});
	/** @param {string} name @param {string} label @param {string} file */
	const save = (name, label, file) => {
		const onclick = () =>
			api
				.download("export", { ...state.range(), ...state.filter(), format: name }, file)
				.catch(error => showError(`Cannot export the failures: ${api.message(error)}`));
		return button(label, onclick, { "data-export": name });
	};
	const chip = h("p", { class: "chip", hidden: true });
	return {
		focus: () => text.field.focus(),
		cancel: () => inputs.forEach(one => one.cancel()),
		elements: [
			textField,
			type,
			otherFields,
			group("Live", live),
			group(
				"Export",
				save("csv", "CSV", "failures.csv"),
				save("json_lines", "JSON lines", "failures.jsonl"),
			),
			chip,
		],
		/** @param {State} now */
		show(now) {
			for (const { name, field } of inputs) {
				if (document.activeElement !== field) field.value = now[name] ?? "";
			}
			const types = type.querySelector("select");
			if (types) types.value = now.type ?? "";
			live.textContent = now.live ? "■ Stop" : "▶ Follow";
			live.setAttribute("aria-pressed", String(Boolean(now.live)));
			chip.hidden = !now.group;
			if (!now.group) return;
			const showAll = () => {
				change({ group: null });
				text.field.focus();
			};
			const remove = button("×", showAll, { "aria-label": "Show all queries" });
			chip.replaceChildren("Only queries of the group ", h("code", now.group), " ", remove);
		},
	};
}

/**
 * Shows how many failures match, which counts know.
 * @param {State} now @param {Element} place @param {AbortSignal} signal
 */
async function showTotal(now, place, signal) {
	if (UNCOUNTED.some(name => Object.hasOwn(now, name))) {
		place.replaceChildren();
		return;
	}
	const { total, strategies, rows_since, range } = await api.get(
		"summary",
		state.range(now),
		signal,
	);
	const rates = now.strategy
		? strategies.find(({ retrieval_strategy: name }) => name === now.strategy)?.rates
		: total;
	const count = now.type
		? rates?.types.find(({ failure_type: type }) => type === now.type)?.failures
		: rates?.failures;
	const isDeleted = rows_since !== null && Date.parse(rows_since) > Date.parse(range.from);
	replace(
		place,
		h("strong", { "data-value": "total" }, format.number(count ?? 0)),
		count === 1 ? " failure in this range" : " failures in this range",
		isDeleted &&
			count !== 0 && [". The list begins ", format.time(rows_since), ": counts are kept longer"],
	);
}

/**
 * The columns, with the values by which the rows of a page are sorted.
 * @type {[Column, string?][]}
 */
const COLUMNS = [
	[["time"], "time"],
	[["type"]],
	[["strategy", "mid"]],
	[["score", "number wide", "Best score, and the threshold"], "score"],
	[["latency", "number wide"], "latency"],
	[["query", "grow"]],
];
/** @type {Column[]} */
const PLAIN_COLUMNS = COLUMNS.map(([column]) => column);
/** @type {Record<string, (one: Failure) => number>} */
const VALUES = {
	time: one => Date.parse(one.created_at),
	score: one => one.top_score ?? -Infinity,
	latency: one => one.latency_ms ?? -Infinity,
};

/**
 * Returns the rows of a page in the order that the reader chose: `-` is the highest first.
 * @param {Failure[]} failures
 */
function sorted(failures) {
	const { sort = "-time" } = state.get();
	const value = VALUES[sort.replace(/^-/, "")];
	// The rows come with the newest first.
	if (!value || sort === "-time") return failures;
	const sign = sort.startsWith("-") ? -1 : 1;
	return failures.toSorted((one, other) => {
		const [a, b] = [value(one), value(other)];
		return a === b ? 0 : a < b ? -sign : sign;
	});
}

/** Makes the heads of columns links that sort. @param {Element} shown */
function addSorting(shown) {
	const { sort = "-time" } = state.get();
	for (const [index, head] of [...shown.querySelectorAll("thead th")].entries()) {
		const [[name], key] = COLUMNS[index];
		if (!key) continue;
		const isDown = sort === `-${key}`;
		const isUp = sort === key;
		head.setAttribute("aria-sort", isDown ? "descending" : isUp ? "ascending" : "none");
		const next = isDown ? key : `-${key}`;
		head.replaceChildren(
			state.anchor(
				{ sort: next === "-time" ? null : next },
				`${name}${isDown ? " ▼" : isUp ? " ▲" : ""}`,
				{ title: "Sorts the rows of this page", rel: `sort-${key}` },
			),
		);
	}
}

/** @param {Failure} failure @param {Attributes} attributes @returns {Row} */
function row(failure, attributes = {}) {
	const { event_id, top_score, confidence_threshold } = failure;
	const hasScore = top_score !== null || confidence_threshold !== null;
	return {
		attributes: { "data-event": event_id, ...attributes },
		cells: [
			format.time(failure.created_at),
			format.badge(failure.failure_type),
			format.logged(failure.retrieval_strategy),
			hasScore ? `${format.score(top_score)} / ${format.score(confidence_threshold)}` : "–",
			format.milliseconds(failure.latency_ms),
			[
				state.anchor({ failure: event_id }, format.logged(failure.query_text), { class: "query" }),
				failure.error_context &&
					h("div", { class: "error-text" }, format.logged(failure.error_context)),
			],
		],
	};
}

/**
 * Fills a page, with many short requests if matching failures are rare.
 * @type {FailuresPage["find"]}
 */
async function find(now, signal, { list, progress, pager }) {
	const began = performance.now();
	const isBackwards = !now.back;
	const parameters = { ...state.range(now), ...state.filter(now), within_ms: WITHIN_MS };
	/** @type {Maybe<string>} */
	let cursor = now.cursor;
	/** @type {Failure[]} */
	let failures = [];
	/** @type {FailurePage | undefined} */
	let first;
	/** @type {FailurePage} */
	let page;
	const text = h("span");
	const stop = button("Stop", () => document.dispatchEvent(new Event("stop-loading")));
	for (let round = 0; ; round++) {
		const limit = PER_PAGE - failures.length;
		page = await api.get("failures", { ...parameters, cursor, limit }, signal);
		first ??= page;
		failures = isBackwards ? [...failures, ...page.data] : [...page.data, ...failures];
		if (page.complete || failures.length >= PER_PAGE) break;
		cursor = page.next;
		if (round % 8 === 0) {
			showRows(list, failures);
			const reached = format.minuteText(page.searched_to ?? new Date(0).toISOString());
			const seconds = ((performance.now() - began) / 1000).toFixed(1);
			text.textContent = `Searching… back to ${reached}, ${failures.length} found, ${seconds} s `;
			if (round === 0) progress.replaceChildren(text, stop);
		}
	}
	progress.replaceChildren();
	announce(`${failures.length} failures are shown`);
	showRows(list, failures);
	// Another page is read from its top.
	if (now.cursor) scrollTo(0, 0);
	if (failures.length === 0) list.replaceChildren(noFailures(now));
	// "Newest" is a link of its own: a cursor stays in its place while failures come in.
	const older = isBackwards ? page.older : first.older;
	const newer = isBackwards ? first.newer : page.newer;
	replace(
		pager,
		now.cursor && state.anchor(NEWEST, "« Newest", { class: "button" }),
		now.cursor &&
			!now.back &&
			newer &&
			state.anchor({ cursor: newer, back: "1" }, "‹ Newer", { class: "button", rel: "prev" }),
		older &&
			failures.length > 0 &&
			state.anchor({ cursor: older, back: null }, "Older ›", { class: "button", rel: "next" }),
	);
}

/** @param {State} now */
function noFailures(now) {
	if (!FILTERS.some(name => Object.hasOwn(now, name))) {
		return empty(
			"No failures in this range",
			"No retrieval failed, or no sender reports here yet: ",
			state.anchor({ page: "overview" }, "see the overview"),
		);
	}
	const removed = Object.fromEntries(FILTERS.map(name => [name, null]));
	return empty(
		"No failure matches the filters",
		state.anchor({ ...NEWEST, ...removed }, "Clear filters"),
		", or choose a longer range.",
	);
}

/** @param {Element} list @param {Failure[]} failures */
function showRows(list, failures) {
	const rows = sorted(failures).map(failure => row(failure));
	const shown = table("Failures", PLAIN_COLUMNS, rows);
	addSorting(shown);
	replace(list, shown);
}

/** Shows failures as they are stored. @type {FailuresPage["followTail"]} */
function followTail(now, list, progress) {
	const stopped = new AbortController();
	let isPaused = false;
	/** @type {Failure[]} */
	let waiting = [];
	let count = 0;
	let replacements = 0;
	let connection = "connecting…";
	const rows = h("tbody");
	const shown = table("New failures", PLAIN_COLUMNS, [], { class: "live" });
	shown.querySelector("tbody")?.replaceWith(rows);
	/** @param {string} event */
	const isShown = event => rows.querySelector(`[data-event="${CSS.escape(event)}"]`) !== null;
	const togglePause = () => {
		isPaused = !isPaused;
		if (!isPaused) waiting.splice(0).forEach(add);
		showProgress();
	};
	const pause = button("", togglePause, { name: "pause" });
	const text = h("span");
	progress.replaceChildren(text, " ", pause);
	list.replaceChildren(shown);
	showProgress();

	function showProgress() {
		const more = waiting.length === MAX_LIVE_ROWS ? " or more" : "";
		text.textContent = isPaused
			? `Paused: ${waiting.length}${more} new`
			: `Following: ${connection}, ${count === 0 ? "waiting for new failures" : `${count} new`}`;
		if (replacements > 0) text.textContent += "; the log was replaced by another one";
		pause.textContent = isPaused ? "▶ Resume" : "❚❚ Pause";
	}
	/** @param {Failure} failure */
	function add(failure) {
		if (isShown(failure.event_id)) return;
		rows.prepend(tableRow(PLAIN_COLUMNS, row(failure, { class: "new" })));
		while (rows.childElementCount > MAX_LIVE_ROWS) rows.lastElementChild?.remove();
	}
	api
		.tail(state.filter(now), stopped.signal, {
			failure(failure) {
				count++;
				if (isPaused) waiting = [...waiting, failure].slice(-MAX_LIVE_ROWS);
				else add(failure);
				showProgress();
			},
			replaced() {
				// The rows that are shown belong to the log before.
				waiting = [];
				rows.replaceChildren();
				replacements++;
				showProgress();
			},
			connected(isConnected) {
				connection = isConnected ? "connected" : "connection lost, retrying";
				showProgress();
			},
		})
		.catch(error => list.replaceChildren(failed(error, () => state.set({ live: null }))));
	showNewest().catch(() => {
		// The tail stream shows its own error.
	});
	return { stop: () => stopped.abort() };

	/** Shows the newest failures below those that come in. */
	async function showNewest() {
		const parameters = { ...state.range(now), ...state.filter(now), within_ms: WITHIN_MS };
		const { data } = await api.get("failures", { ...parameters, limit: PER_PAGE }, stopped.signal);
		for (const failure of data) {
			if (!isShown(failure.event_id)) rows.append(tableRow(PLAIN_COLUMNS, row(failure)));
		}
	}
}
