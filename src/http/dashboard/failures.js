// The page of single failures: a list with filters, a live tail, and each failure in full.

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
	hint,
	replace,
	select,
	table,
	tableRow,
} from "./dom.js";
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
/** The changes that lead to the newest page. */
const NEWEST = { cursor: null, back: null };

/** @type {Mount} */
export function mount(root) {
	const progress = h("div", { class: "progress" });
	const list = h("div");
	const pager = h("nav", { class: "pager", "aria-label": "Pages of failures" });
	const dialog = h("dialog", {
		class: "detail",
		"aria-labelledby": "detail-title",
		onclose: () => state.set({ failure: null }),
	});
	dialog.addEventListener("click", event => event.target === dialog && dialog.close());
	const filters = filterFields(text => (progress.textContent = text));
	const form = h(
		"form",
		{ class: "filters", role: "search", onsubmit: event => event.preventDefault() },
		filters.elements,
	);
	root.append(h("section", { class: "card" }, form, progress, list, pager), dialog);

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
			await Promise.all([showDetail(dialog, now.failure, signal), showList(now, signal)]);
		},
		close() {
			filters.cancel();
			tail?.stop();
			dialog.close();
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
	const inputs = [
		text,
		input("strategy", "Strategy", { maxlength: 64 }),
		input("conversation", "Conversation", { maxlength: 128 }),
	];
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

/** @type {Column[]} */
const COLUMNS = [
	["time"],
	["type"],
	["strategy", "wide"],
	["score", "number wide", "Best score, and the threshold"],
	["latency", "number wide"],
	["query", "grow"],
];

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
			state.anchor({ failure: event_id }, format.logged(failure.query_text), { class: "query" }),
		],
	};
}

/** Fills a page, with many short requests if matching failures are rare. @type {FailuresPage["find"]} */
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
			const reached = new Date(page.searched_to ?? 0).toLocaleString();
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
	const rows = failures.map(failure => row(failure));
	replace(list, table("Failures, the newest first", COLUMNS, rows));
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
	const shown = table("New failures", COLUMNS, [], { class: "live" });
	shown.querySelector("tbody")?.replaceWith(rows);
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
			: `Following: ${connection}, ${count} new`;
		if (replacements > 0) text.textContent += "; the log was replaced by another one";
		pause.textContent = isPaused ? "▶ Resume" : "❚❚ Pause";
	}
	/** @param {Failure} failure */
	function add(failure) {
		rows.prepend(tableRow(COLUMNS, row(failure, { class: "new" })));
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
	return { stop: () => stopped.abort() };
}

/** Shows a failure in full. @type {FailuresPage["showDetail"]} */
async function showDetail(dialog, event, signal) {
	if (!event) {
		dialog.close();
		return;
	}
	if (dialog.open && dialog.dataset.event === event) return;
	dialog.dataset.event = event;
	const content = h("div", { class: "content" });
	const close = button("×", () => dialog.close(), { class: "close", "aria-label": "Close" });
	dialog.replaceChildren(h("header", h("h2", { id: "detail-title" }, "Failure"), close), content);
	if (!dialog.open) dialog.showModal();
	let failure;
	try {
		failure = await api.get(`failures/${encodeURIComponent(event)}`, {}, signal);
	} catch (error) {
		if (api.isAbort(error)) throw error;
		const retry = () => {
			delete dialog.dataset.event;
			showDetail(dialog, event, signal);
		};
		content.replaceChildren(failed(error, retry));
		return;
	}
	await showFacts(content, failure, signal);
}

/** @param {Element} content @param {Failure} failure @param {AbortSignal} signal */
async function showFacts(content, failure, signal) {
	const { conversation_id, edge_types, error_context, query_text } = failure;
	const history = h("div");
	const conversation = h("div");
	/** @type {[string, Child][]} */
	const facts = [
		["time", format.time(failure.created_at, { withYear: true })],
		["type", format.badge(failure.failure_type)],
		["strategy", format.logged(failure.retrieval_strategy)],
		["query", format.logged(query_text, { class: "logged whole" })],
		["length of the query", `${format.number(failure.query_len)} bytes`],
		["best score", format.score(failure.top_score)],
		["threshold", format.score(failure.confidence_threshold)],
		["results", format.number(failure.result_count)],
		["latency", format.milliseconds(failure.latency_ms)],
		[
			"conversation",
			conversation_id === null
				? "–"
				: state.anchor(
						{ conversation: conversation_id, failure: null },
						format.logged(conversation_id),
					),
		],
		["turn", format.number(failure.turn_index)],
		["edge types", edge_types === null ? "–" : format.logged(edgeTypes(edge_types))],
		[
			"error",
			error_context === null ? "–" : format.logged(error_context, { class: "logged whole" }),
		],
		["event id", h("code", failure.event_id)],
	];
	content.replaceChildren(
		h(
			"dl",
			facts.map(([name, value]) => h("div", h("dt", name), h("dd", value))),
		),
		h("h3", "Failures of the same query"),
		history,
		conversation_id === null ? "" : h("h3", "Failures of the same conversation, in order"),
		conversation,
	);
	await Promise.all([
		showRelated(history, failure, RELATED.query, { query_text }, signal),
		conversation_id !== null &&
			showRelated(conversation, failure, RELATED.conversation, { conversation_id }, signal),
	]);
}

/** Returns a list of edge types as text. @param {string} json */
function edgeTypes(json) {
	try {
		return JSON.parse(json).join(", ");
	} catch {
		return json;
	}
}

/** Kinds of failures that are related to another one. @type {Record<string, Related>} */
const RELATED = {
	query: {
		caption: "Failures of the same query",
		days: 30,
		columns: ["time", "strategy"],
		cells: other => [format.time(other.created_at), format.logged(other.retrieval_strategy)],
		compare: () => 0,
	},
	conversation: {
		caption: "Failures of the same conversation",
		days: 2,
		columns: ["turn", "query"],
		cells: other => [format.number(other.turn_index), format.logged(other.query_text)],
		compare: (one, other) =>
			(one.turn_index ?? 0) - (other.turn_index ?? 0) ||
			Date.parse(one.created_at) - Date.parse(other.created_at),
	},
};

/** @type {FailuresPage["showRelated"]} */
async function showRelated(place, failure, kind, filter, signal) {
	const max = 50;
	const deadline = performance.now() + 5000;
	const at = Date.parse(failure.created_at);
	const span = kind.days * 86_400_000;
	const parameters = {
		...filter,
		from: new Date(Math.max(0, at - span)).toISOString(),
		to: new Date(at + span).toISOString(),
		within_ms: WITHIN_MS,
	};
	const [first, last] = kind.columns;
	/** @type {Column[]} */
	const columns = [[first], ["type"], ["score", "number wide"], [last, "grow"]];
	/** @type {Failure[]} */
	let found = [];
	/** @type {FailurePage | undefined} */
	let page;
	while (!page?.complete && found.length < max && performance.now() < deadline) {
		const limit = max - found.length;
		page = await api.get("failures", { ...parameters, cursor: page?.next, limit }, signal);
		found = [...found, ...page.data];
		const rows = found.toSorted(kind.compare).map(other => {
			const [label, text] = kind.cells(other);
			return {
				attributes: {
					class: other.event_id === failure.event_id ? "current" : null,
					"data-event": other.event_id,
				},
				cells: [
					state.anchor({ failure: other.event_id }, label),
					format.badge(other.failure_type),
					format.score(other.top_score),
					text,
				],
			};
		});
		const more = page.next ? "There are more than these" : "These are all";
		place.replaceChildren(
			table(kind.caption, columns, rows),
			hint(`${page.complete ? more : "Searching"} within ${kind.days} days.`),
		);
	}
}
