// The failures one by one: found, followed as they come, and each in full.

import * as api from "./api.js";
import { announce, calmly, empty, failed, h, renew, select, table } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

export const title = "Failures";

const PER_PAGE = 50;
/** How long the service looks for failures that fit before it tells what it has found. */
const WITHIN_MS = 20;
/** A search that took longer is not repeated by itself. */
const SLOW_MS = 1000;
/** Rows that a live list shows, and those that wait while it is paused. */
const MOST_LIVE = 200;

export function mount(root) {
	const shownFilters = h("form", {
		class: "filters",
		role: "search",
		onsubmit: (event) => event.preventDefault(),
	});
	const progress = h("div", { class: "progress" });
	const list = h("div", {});
	const pager = h("nav", { class: "pager", "aria-label": "Pages of failures" });
	const dialog = h("dialog", {
		class: "detail",
		"aria-labelledby": "detail-title",
		onclose: () => state.set({ failure: null }),
	});
	dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
	const controls = filters((said) => (progress.textContent = said));
	shownFilters.append(...controls.elements);
	root.append(h("section", { class: "card" }, shownFilters, progress, list, pager), dialog);

	let tail = null;
	let shown = "";
	let slow = false;

	return {
		search: () => controls.text.focus(),
		/** What comes by itself needs no refresh, and who reads an older page is not to lose it. */
		get still() {
			const { live, cursor } = state.get();
			return Boolean(live || cursor || slow);
		},
		async load(signal) {
			const now = state.get();
			controls.show(now);
			await Promise.all([showDetail(dialog, now.failure, signal), showList(now, signal)]);
		},
		close() {
			controls.cancel();
			tail?.stop();
			dialog.close();
		},
	};

	async function showList(now, signal) {
		const { failure, ...rest } = now;
		const wanted = JSON.stringify(rest);
		if (now.live) {
			// It goes on while a detail is looked at.
			if (tail && shown === wanted) return;
			tail?.stop();
			tail = follow(now, list, progress);
			pager.replaceChildren();
		} else {
			tail?.stop();
			tail = null;
			if (failure && shown === wanted) return;
			const began = performance.now();
			slow = true;
			try {
				await find(now, signal, { list, progress, pager });
			} catch (error) {
				// What was stopped stays so.
				if (error.code !== "invalid_cursor") throw error;
				slow = false;
				// The log was replaced by another one: its newest page is shown.
				if (now.cursor) {
					state.set({ cursor: null, back: null }, { replace: true });
					return;
				}
				await find(now, signal, { list, progress, pager });
			}
			slow = performance.now() - began > SLOW_MS;
		}
		shown = wanted;
	}
}

/** The filters, which show the URL and change it. */
function filters(tell) {
	const change = (changes, how) => state.set({ cursor: null, back: null, ...changes }, how);
	const delayed = [];
	const input = (name, label, more = {}) => {
		// What is typed is one step of the history, whatever pauses there were.
		const later = calmly((value) => change({ [name]: value || null }, { replace: true }), 300);
		delayed.push(later);
		const field = h("input", {
			type: "search",
			name,
			autocomplete: "off",
			spellcheck: "false",
			oninput: () => later(field.value.trim()),
			...more,
		});
		return [h("label", { class: "field" }, h("span", {}, label), field), field];
	};
	const [text, textField] = input("text", "Search in queries and errors", {
		placeholder: "/",
		maxlength: 512,
	});
	const [strategy, strategyField] = input("strategy", "Strategy", { maxlength: 64 });
	const [conversation, conversationField] = input("conversation", "Conversation", {
		maxlength: 128,
	});
	const type = select("type", "Type", format.TYPE_OPTIONS, "", (type) =>
		change({ type: type || null }),
	);
	const live = h("button", {
		type: "button",
		name: "live",
		title: "Follow what comes in (t)",
		onclick: () => change({ live: state.get().live ? null : "1" }),
	});
	const save = (format, name) =>
		h(
			"button",
			{
				type: "button",
				"data-export": format,
				onclick: () =>
					api
						.download("export", { ...state.range(), ...state.filter(), format }, name)
						.catch((error) => tell(`This could not be exported: ${error.message}`)),
			},
			format === "csv" ? "CSV" : "JSON lines",
		);
	const group = h("p", { class: "chip", hidden: true });
	return {
		text: textField,
		cancel: () => delayed.forEach((later) => later.cancel()),
		elements: [
			text,
			type,
			strategy,
			conversation,
			h("div", { class: "field" }, h("span", {}, "Live"), live),
			h(
				"div",
				{ class: "field", role: "group", "aria-label": "Export what is shown" },
				h("span", {}, "Export"),
				h(
					"div",
					{ class: "buttons" },
					save("csv", "failures.csv"),
					save("json_lines", "failures.jsonl"),
				),
			),
			group,
		],
		show(now) {
			const fields = [
				[textField, now.text],
				[strategyField, now.strategy],
				[conversationField, now.conversation],
			];
			for (const [field, value] of fields)
				if (document.activeElement !== field) field.value = value ?? "";
			type.querySelector("select").value = now.type ?? "";
			live.textContent = now.live ? "■ Stop" : "▶ Follow";
			live.setAttribute("aria-pressed", String(Boolean(now.live)));
			group.hidden = !now.group;
			if (!now.group) return;
			group.replaceChildren(
				"Only queries of the group ",
				h("code", {}, now.group),
				" ",
				h(
					"button",
					{
						type: "button",
						"aria-label": "Show other queries too",
						onclick: () => {
							change({ group: null });
							textField.focus();
						},
					},
					"×",
				),
			);
		},
	};
}

const COLUMNS = [
	{ name: "time" },
	{ name: "type" },
	{ name: "strategy", wide: true },
	{ name: "score", numeric: true, wide: true, title: "Best score, and the threshold" },
	{ name: "latency", numeric: true, wide: true },
	{ name: "query", class: "grow" },
];

function row(failure, attributes = {}) {
	return {
		attributes: { "data-event": failure.event_id, ...attributes },
		cells: [
			format.time(failure.created_at),
			format.badge(failure.failure_type),
			format.typed(failure.retrieval_strategy),
			failure.top_score === null && failure.confidence_threshold === null
				? "–"
				: `${format.score(failure.top_score)} / ${format.score(failure.confidence_threshold)}`,
			format.milliseconds(failure.latency_ms),
			h(
				"a",
				{ class: "query", href: state.link({ failure: failure.event_id }) },
				format.typed(failure.query_text),
			),
		],
	};
}

/** Fills a page, with many short requests if failures that fit are rare. */
async function find(now, signal, { list, progress, pager }) {
	const began = performance.now();
	const backwards = !now.back;
	let cursor = now.cursor;
	let failures = [],
		first = null,
		page;
	const said = h("span", {});
	const stop = h(
		"button",
		{ type: "button", onclick: () => document.dispatchEvent(new Event("stop-loading")) },
		"Stop",
	);
	for (let round = 0; ; round++) {
		const limit = PER_PAGE - failures.length;
		page = await api.get(
			"failures",
			{ ...state.range(now), ...state.filter(now), cursor, limit, within_ms: WITHIN_MS },
			signal,
		);
		first ??= page;
		failures = backwards ? [...failures, ...page.data] : [...page.data, ...failures];
		if (page.complete || failures.length >= PER_PAGE) break;
		cursor = page.next;
		if (round % 8 === 0) {
			showRows(list, failures);
			const reached = new Date(page.searched_to);
			said.textContent = `Searching… back to ${reached.toLocaleString()}, ${failures.length} found, ${((performance.now() - began) / 1000).toFixed(1)} s `;
			if (round === 0) progress.replaceChildren(said, stop);
		}
	}
	progress.replaceChildren();
	announce(`${failures.length} failures are shown`);
	showRows(list, failures);
	// A page is read from its top.
	if (now.cursor) scrollTo(0, 0);
	if (failures.length === 0) {
		const filtered = now.type || now.strategy || now.conversation || now.text || now.group;
		list.replaceChildren(
			empty(
				filtered ? "No failure fits" : "No failures in this time",
				h(
					"p",
					{},
					filtered
						? h(
								"a",
								{
									href: state.link({
										type: null,
										strategy: null,
										conversation: null,
										text: null,
										group: null,
										cursor: null,
										back: null,
									}),
								},
								"Clear filters",
							)
						: "That is good news, or nothing reports here yet: ",
					filtered
						? ", or choose a longer time."
						: h("a", { href: state.link({ page: "overview" }) }, "see the overview"),
				),
			),
		);
	}
	// To the newest page there is a way of its own: a cursor stays where it was.
	const older = backwards ? page.older : first.older,
		newer = backwards ? first.newer : page.newer;
	renew(
		pager,
		[
			now.cursor &&
				h("a", { class: "button", href: state.link({ cursor: null, back: null }) }, "« Newest"),
			now.cursor &&
				!now.back &&
				newer &&
				h(
					"a",
					{ class: "button", rel: "prev", href: state.link({ cursor: newer, back: "1" }) },
					"‹ Newer",
				),
			older &&
				failures.length > 0 &&
				h(
					"a",
					{ class: "button", rel: "next", href: state.link({ cursor: older, back: null }) },
					"Older ›",
				),
		].filter(Boolean),
	);
}

function showRows(list, failures) {
	renew(
		list,
		table(
			"Failures, the newest first",
			COLUMNS,
			failures.map((failure) => row(failure)),
		),
	);
}

/** Shows failures as they come in. */
function follow(now, list, progress) {
	const ended = new AbortController();
	let paused = false,
		waiting = [],
		count = 0,
		replacements = 0,
		connection = "connecting…";
	const shown = table("Failures as they come in", COLUMNS, [], { class: "live" });
	const body = shown.querySelector("tbody");
	const pause = h("button", {
		type: "button",
		name: "pause",
		onclick: () => {
			paused = !paused;
			if (!paused) waiting.splice(0).forEach(add);
			tell();
		},
	});
	const said = h("span", {});
	progress.replaceChildren(said, " ", pause);
	list.replaceChildren(shown);
	tell();

	function tell() {
		said.textContent = paused
			? `Paused: ${waiting.length}${waiting.length === MOST_LIVE ? " or more" : ""} new`
			: `Following: ${connection}, ${count} since then`;
		if (replacements > 0) said.textContent += "; the log was replaced by another one";
		pause.textContent = paused ? "▶ Resume" : "❚❚ Pause";
	}
	function add(failure) {
		const line = table("", COLUMNS, [row(failure, { class: "new" })]).querySelector("tbody tr");
		body.prepend(line);
		while (body.childElementCount > MOST_LIVE) body.lastElementChild.remove();
	}
	api
		.follow("tail", state.filter(now), ended.signal, {
			event(failure) {
				count++;
				if (paused) waiting = [...waiting, failure].slice(-MOST_LIVE);
				else add(failure);
				tell();
			},
			replaced() {
				// What is shown was in the log that had the name before.
				waiting = [];
				body.replaceChildren();
				replacements++;
				tell();
			},
			connected(is) {
				connection = is ? "connected" : "connection lost, retrying";
				tell();
			},
		})
		.catch((error) => list.replaceChildren(failed(error, () => state.set({ live: null }))));
	return { stop: () => ended.abort() };
}

/** One failure in full, with what else is known of its query and its conversation. */
async function showDetail(dialog, event, signal) {
	if (!event) {
		dialog.close();
		return;
	}
	if (dialog.open && dialog.dataset.event === event) return;
	dialog.dataset.event = event;
	const content = h("div", { class: "content" });
	const close = h(
		"button",
		{ type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() },
		"×",
	);
	dialog.replaceChildren(
		h("header", {}, h("h2", { id: "detail-title" }, "Failure"), close),
		content,
	);
	if (!dialog.open) dialog.showModal();
	let failure;
	try {
		failure = await api.get(`failures/${encodeURIComponent(event)}`, {}, signal);
	} catch (error) {
		if (error.name === "AbortError") throw error;
		content.replaceChildren(
			failed(error, () => {
				delete dialog.dataset.event;
				showDetail(dialog, event, signal);
			}),
		);
		return;
	}
	const history = h("div", {}),
		conversation = h("div", {});
	const facts = [
		["time", format.time(failure.created_at, { withYear: true })],
		["type", format.badge(failure.failure_type)],
		["strategy", format.typed(failure.retrieval_strategy)],
		["query", format.typed(failure.query_text, { class: "typed whole" })],
		["length of the query", `${format.number(failure.query_len)} bytes`],
		["best score", format.score(failure.top_score)],
		["threshold", format.score(failure.confidence_threshold)],
		["results", format.number(failure.result_count)],
		["latency", format.milliseconds(failure.latency_ms)],
		[
			"conversation",
			failure.conversation_id === null
				? "–"
				: h(
						"a",
						{ href: state.link({ conversation: failure.conversation_id, failure: null }) },
						format.typed(failure.conversation_id),
					),
		],
		["turn", format.number(failure.turn_index)],
		["edge types", failure.edge_types === null ? "–" : format.typed(edges(failure.edge_types))],
		[
			"error",
			failure.error_context === null
				? "–"
				: format.typed(failure.error_context, { class: "typed whole" }),
		],
		["event id", h("code", {}, failure.event_id)],
	];
	content.replaceChildren(
		h(
			"dl",
			{},
			facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
		),
		h("h3", {}, "The same query before and after"),
		history,
		failure.conversation_id === null ? "" : h("h3", {}, "Its conversation, in order"),
		conversation,
	);
	const around = (days) => {
		const at = Date.parse(failure.created_at),
			day = 86_400_000;
		return {
			from: new Date(Math.max(0, at - days * day)).toISOString(),
			to: new Date(at + days * day).toISOString(),
		};
	};
	const inOrder = (one, other) =>
		one.turn_index - other.turn_index || Date.parse(one.created_at) - Date.parse(other.created_at);
	await Promise.all([
		related(history, { ...around(30), query_text: failure.query_text }, failure, signal),
		failure.conversation_id !== null &&
			related(
				conversation,
				{ ...around(2), conversation_id: failure.conversation_id },
				failure,
				signal,
				inOrder,
			),
	]);
}

function edges(json) {
	try {
		return JSON.parse(json).join(", ");
	} catch {
		return json;
	}
}

/** Other failures that belong to one; at most as many as fit beside it. */
async function related(place, wanted, failure, signal, order) {
	const most = 50,
		seconds = 5,
		began = performance.now();
	let found = [],
		cursor = null,
		complete = false;
	while (!complete && found.length < most && performance.now() - began < 1000 * seconds) {
		const page = await api.get(
			"failures",
			{ ...wanted, cursor, limit: most - found.length, within_ms: WITHIN_MS },
			signal,
		);
		found = [...found, ...page.data];
		complete = page.complete;
		cursor = page.next;
		const turns = order ? [...found].sort(order) : found;
		place.replaceChildren(
			table(
				order ? "Failures of the same conversation" : "Failures of the same query",
				[
					{ name: order ? "turn" : "time" },
					{ name: "type" },
					{ name: "score", numeric: true, wide: true },
					{ name: order ? "query" : "strategy", class: "grow" },
				],
				turns.map((other) => ({
					attributes: {
						class: other.event_id === failure.event_id ? "current" : null,
						"data-event": other.event_id,
					},
					cells: [
						order
							? h(
									"a",
									{ href: state.link({ failure: other.event_id }) },
									`${format.number(other.turn_index)}`,
								)
							: h(
									"a",
									{ href: state.link({ failure: other.event_id }) },
									format.time(other.created_at),
								),
						format.badge(other.failure_type),
						format.score(other.top_score),
						format.typed(order ? other.query_text : other.retrieval_strategy),
					],
				})),
			),
			h(
				"p",
				{ class: "hint" },
				complete && !cursor
					? "These are all within "
					: complete
						? "There are more than these within "
						: "Searching within ",
				order ? "two days." : "thirty days.",
			),
		);
	}
}
