// A failure in full, in a dialog over the list.

import * as api from "./api.js";
import { areKeysOn } from "./choices.js";
import { button, failed, h, hint, replace, table } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

/** The time budget of a request. */
const WITHIN_MS = 20;

/**
 * Makes the dialog. `events` returns the ids of the failures of the list, in its order.
 * @type {DetailView["mount"]}
 */
export function mount(root, events) {
	const dialog = h("dialog", {
		class: "detail",
		"aria-labelledby": "detail-title",
		onclose: () => state.set({ failure: null }),
	});
	dialog.addEventListener("click", event => event.target === dialog && dialog.close());
	root.append(dialog);

	/** Shows the failure before or after in the list. @param {number} by */
	const step = by => {
		const all = events();
		const other = all[all.indexOf(dialog.dataset.event ?? "") + by];
		if (other) state.set({ failure: other }, { replace: true });
	};
	const previous = button("‹ Previous", () => step(-1), { name: "previous", title: "k" });
	const next = button("Next ›", () => step(1), { name: "next", title: "j" });
	const close = button("×", () => dialog.close(), { class: "close", "aria-label": "Close" });
	const content = h("div", { class: "content" });
	// The buttons stay, so that the focus does.
	dialog.append(
		h(
			"header",
			h("h2", { id: "detail-title" }, "Failure"),
			h("div", { class: "actions" }, previous, next, close),
		),
		content,
	);
	/** Tells which of the buttons lead to a failure: the list may come later than the detail. */
	const update = () => {
		const all = events();
		const at = all.indexOf(dialog.dataset.event ?? "");
		previous.disabled = at < 1;
		next.disabled = at < 0 || at === all.length - 1;
		const focused = document.activeElement;
		if ((focused === previous && previous.disabled) || (focused === next && next.disabled)) {
			close.focus();
		}
	};
	/** @type {Record<string, () => void>} */
	const keys = { j: () => step(1), k: () => step(-1) };
	dialog.addEventListener("keydown", event => {
		const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : keys[event.key];
		if (!act || !areKeysOn()) return;
		event.preventDefault();
		act();
	});

	/** @type {(event: string | undefined, signal: AbortSignal) => Promise<void>} */
	async function show(event, signal) {
		if (!event) {
			dialog.close();
			return;
		}
		if (dialog.open && dialog.dataset.event === event) return;
		dialog.dataset.event = event;
		content.replaceChildren();
		update();
		if (!dialog.open) dialog.showModal();
		let failure;
		try {
			failure = await api.get(`failures/${encodeURIComponent(event)}`, {}, signal);
		} catch (error) {
			if (api.isAbort(error)) throw error;
			const retry = () => {
				delete dialog.dataset.event;
				show(event, signal);
			};
			content.replaceChildren(failed(error, retry));
			return;
		}
		await showFacts(content, failure, signal);
	}
	return { show, update, close: () => dialog.close() };
}

/**
 * Returns the buttons that copy, and that set the status of the query's group.
 * @param {Failure} failure
 */
function actions(failure) {
	const said = h("span", { role: "status", class: "muted" });
	/** @param {string} text @param {string} name */
	const copy = async (text, name) => {
		try {
			await navigator.clipboard.writeText(text);
			said.textContent = `${name} copied.`;
		} catch {
			// A page without TLS has no clipboard, except on the machine itself.
			said.textContent = "The browser does not allow it: select the text.";
		}
	};
	/** @param {QueryStatus} status */
	const set = async status => {
		try {
			await api.put("queries/status", { query_text: failure.query_text, status });
			replace(
				said,
				`The group of this query is ${status}. `,
				status !== "open" && button("Undo", () => set("open"), { name: "undo" }),
			);
		} catch (error) {
			said.textContent = `Cannot set the status: ${api.message(error)}`;
		}
	};
	return h(
		"div",
		{ class: "actions wrap" },
		button("Copy the query", () => copy(failure.query_text, "The query is"), { name: "copy" }),
		button("Copy as JSON", () => copy(JSON.stringify(failure, null, 2), "The failure is"), {
			name: "copy-json",
		}),
		button("Resolve", () => set("resolved"), { "data-status": "resolved" }),
		button("Ignore", () => set("ignored"), { "data-status": "ignored" }),
		said,
	);
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
		["length of query", `${format.number(failure.query_len)} bytes`],
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
		["event id", h("code", failure.event_id)],
	];
	if (error_context !== null) {
		facts.unshift(["error", format.logged(error_context, { class: "logged whole" })]);
	}
	content.replaceChildren(
		h("p", { class: "query-title" }, format.logged(query_text, { class: "logged whole" })),
		actions(failure),
		h(
			"dl",
			facts.map(([name, value]) =>
				h("div", { class: name === "error" ? "full" : null }, h("dt", name), h("dd", value)),
			),
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

/** @type {DetailView["showRelated"]} */
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
