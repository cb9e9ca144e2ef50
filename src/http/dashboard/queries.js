// The page of failing queries: an inbox of groups of similar ones, with keys for each action.

import * as api from "./api.js";
import {
	announce,
	button,
	debounce,
	empty,
	field,
	h,
	hint,
	replace,
	select,
	table,
	withFocus,
} from "./dom.js";
import * as format from "./format.js";
import * as group from "./group.js";
import * as state from "./state.js";

/** The timer does not repeat a ranking that took longer. */
const SLOW_MS = 1000;
const PER_PAGE = 100;

const TABS = [...format.STATUSES, "all"];
const ORDERS = [
	["", "reopened, then largest"],
	["failures", "largest"],
	["last_seen", "failed last"],
	["first_seen", "newest"],
];

/** @type {Column[]} */
const COLUMNS = [
	["chosen", "choose"],
	["query", "grow"],
	["failures", "number"],
	["type", "wide"],
	["strategy", "mid"],
	["trend", "mid"],
	["best score", "number mid"],
	["last failed", "mid"],
	["actions", "right"],
];

/** @type {Mount} */
export function mount(root) {
	const inbox = mountInbox(root);
	/** @type {Page | null} */
	let detail = null;
	/** @type {string | undefined} */
	let shown;

	return {
		async load(signal) {
			const { group: id } = state.get();
			if (id !== shown) {
				detail?.close();
				detail = id ? group.mount(root, id) : null;
				shown = id;
			}
			inbox.element.hidden = detail !== null;
			await (detail ?? inbox).load(signal);
		},
		get isHeld() {
			return (detail ?? inbox).isHeld;
		},
		get keys() {
			return (detail ?? inbox).keys;
		},
		search: () => inbox.search(),
		close() {
			detail?.close();
			inbox.close();
		},
	};
}

/** @type {QueriesPage["mountInbox"]} */
function mountInbox(root) {
	const tabs = h("nav", { class: "tabs", "aria-label": "Status" });
	const filters = h("div", { class: "filters" });
	const marks = h("div");
	const progress = h("div", { class: "progress" });
	const undo = h("div", { class: "undo", role: "status" });
	const list = h("div");
	const element = h("section", { class: "card" }, tabs, filters, progress, undo, marks, list);
	root.append(element);
	let isSlow = false;
	let reload = async () => {};
	/** @type {QueryGroup[]} */
	let groups = [];
	/** Groups that are ticked, by their ids. @type {Set<string>} */
	const chosen = new Set();
	/** The statuses before the last change. @type {[id: string, status: QueryStatus][]} */
	let before = [];
	const search = h("input", {
		type: "search",
		name: "text",
		autocomplete: "off",
		spellcheck: "false",
		maxlength: 512,
		placeholder: "/",
		oninput() {
			later(search.value.trim());
		},
	});
	const later = debounce((/** @type {string} */ text) => {
		state.set({ text: text || null }, { replace: true });
	}, 300);
	const searchField = field("Search in queries", search);

	/** @param {AbortSignal} signal */
	async function load(signal) {
		const now = state.get();
		reload = () => load(signal);
		if (document.activeElement !== search) search.value = now.text ?? "";
		const status = now.status ?? "open";
		const parameters = {
			...state.range(now),
			failure_type: now.type,
			retrieval_strategy: now.strategy,
			text: now.text,
			status: status === "all" ? null : status,
			order: now.sort ?? "attention",
			limit: PER_PAGE,
		};
		if (!filters.hasChildNodes()) replace(filters, searchField, controls(now));
		else if (!filters.contains(document.activeElement))
			replace(filters, searchField, controls(now));
		const began = performance.now();
		// A ranking that is stopped counts as slow.
		isSlow = true;
		const ranking = await api.poll("queries", parameters, signal, ms => {
			progress.textContent = `Grouping the failing queries… ${(ms / 1000).toFixed(1)} s`;
		});
		isSlow = performance.now() - began > SLOW_MS;
		progress.textContent = "";
		groups = ranking.data;
		for (const id of chosen) if (!groups.some(one => one.id === id)) chosen.delete(id);
		announce(`${groups.length} groups of queries are shown`);
		replace(tabs, tabLinks(ranking, status));
		replace(marks, mark(ranking));
		withFocus(list, () => replace(list, content(ranking, now)));
		// The service reads the rest meanwhile.
		if (ranking.in_progress) setTimeout(() => signal.aborted || reload().catch(() => {}), 1500);
	}

	/** @param {TopQueries} ranking @param {string} current */
	function tabLinks({ statuses, partial }, current) {
		const { open, reopened, resolved, ignored } = statuses;
		/** @type {Record<string, number>} */
		const counts = { open, resolved, ignored, all: open + resolved + ignored };
		const least = partial ? "+" : "";
		return TABS.map(status =>
			state.anchor(
				{ status: status === "open" ? null : status },
				[
					h("span", { class: "name" }, status),
					h(
						"span",
						{ class: "count", "data-count": status },
						format.number(counts[status]) + least,
					),
					status === "open" &&
						reopened > 0 &&
						h("span", { class: "count reopened" }, `${format.number(reopened)} reopened`),
				],
				{ "aria-current": status === current ? "page" : null },
			),
		);
	}

	/** @param {State} now */
	function controls(now) {
		return [
			select("type", "Type", format.TYPE_OPTIONS, now.type ?? "", type =>
				state.set({ type: type || null }),
			),
			select("sort", "Order", ORDERS, now.sort ?? "", sort => state.set({ sort: sort || null })),
		];
	}

	/** Returns the mark of a ranking that is not complete. @param {TopQueries} ranking */
	function mark({ partial, in_progress, scanned }) {
		if (!partial) return null;
		return h(
			"p",
			{ class: "partial", role: "status" },
			"Each count is a lower bound: it has the newest ",
			`${format.counted(scanned.failures, "failure")}, since `,
			format.time(scanned.range.from, { withYear: true }),
			in_progress ? ". The service reads the rest." : ".",
		);
	}

	/** @param {TopQueries} ranking @param {State} now */
	function content(ranking, now) {
		const { data, total, scanned, ungrouped } = ranking;
		if (data.length === 0) return nothing(now);
		const rest = total - data.length;
		return [
			bulk(),
			table(
				"Groups of failing queries",
				COLUMNS,
				data.map(one => ({
					attributes: { "data-group": one.id, class: one.reopened ? "reopened" : null },
					cells: cells(one),
				})),
				{ class: "inbox" },
			),
			rest > 0 && h("p", { class: "more" }, `and ${format.number(rest)} more`),
			hint(
				`The groups consist of ${format.counted(scanned.failures, "failure")} of the range. `,
				ungrouped > 0 && `${format.counted(ungrouped, "failure")} with rare texts: in no group. `,
				h(
					"span",
					{ class: "wide" },
					"Keys: ",
					[
						["j", "next"],
						["k", "previous"],
						["Enter", "open"],
						["x", "tick"],
						["e", "resolve"],
						["i", "ignore"],
						["z", "undo"],
					].map(([key, text]) => [h("kbd", key), ` ${text} `]),
				),
			),
		];
	}

	/** @param {State} now */
	function nothing(now) {
		const isFiltered = now.type || now.strategy || now.text;
		const removed = { type: null, strategy: null, text: null };
		const status = now.status ?? "open";
		const title =
			status === "open" ? "No open group of failing queries" : `No group of queries is ${status}`;
		return empty(
			status === "all" ? "No query failed in this range" : title,
			isFiltered
				? [state.anchor(removed, "Clear filters"), ", or choose a longer range."]
				: "Choose a longer range above.",
		);
	}

	/** @param {QueryGroup} one */
	function cells(one) {
		const tick = h("input", {
			type: "checkbox",
			"aria-label": "Choose this group",
			checked: chosen.has(one.id),
			onchange() {
				if (tick.checked) chosen.add(one.id);
				else chosen.delete(one.id);
				showBulk();
			},
		});
		const [first, ...others] = one.strategies;
		return [
			tick,
			[
				one.reopened && h("span", { class: "reopened-mark" }, "reopened"),
				state.anchor({ group: one.id }, format.logged(one.example), { class: "query" }),
				one.texts > 1 && h("span", { class: "muted small" }, ` ${format.number(one.texts)} texts`),
			],
			format.number(one.count),
			mainType(one),
			first && [
				format.logged(first.retrieval_strategy),
				others.length > 0 && h("span", { class: "muted small" }, ` +${others.length}`),
			],
			format.sparkline(one.trend, "Failures over time"),
			format.score(one.best_score),
			format.ago(one.last_seen),
			h(
				"div",
				{ class: "actions" },
				format.STATUSES.filter(status => status !== one.status).map(status =>
					button(format.STATUS_ACTIONS[status], () => change([one], status), {
						"data-status": status,
					}),
				),
			),
		];
	}

	/** Returns the most frequent type, and how many others there are. @param {QueryGroup} one */
	function mainType({ types }) {
		const present = format.TYPES.filter(type => types[type] > 0).toSorted(
			(a, b) => types[b] - types[a],
		);
		return (
			present.length > 0 && [
				format.badge(present[0]),
				present.length > 1 && h("span", { class: "muted small" }, ` +${present.length - 1}`),
			]
		);
	}

	const bulkBar = h("div", { class: "bulk" });

	function bulk() {
		showBulk();
		return bulkBar;
	}

	function showBulk() {
		const ticked = groups.filter(({ id }) => chosen.has(id));
		bulkBar.hidden = ticked.length === 0;
		const statuses = format.STATUSES.filter(status => ticked.some(one => one.status !== status));
		replace(
			bulkBar,
			h("strong", `${ticked.length} chosen`),
			statuses.map(status =>
				button(
					format.STATUS_ACTIONS[status],
					() =>
						change(
							groups.filter(({ id }) => chosen.has(id)),
							status,
						),
					{ "data-bulk": status },
				),
			),
			button("Choose all", () => tickAll(true), { name: "choose-all" }),
			button("Choose none", () => tickAll(false), { name: "choose-none" }),
		);
	}

	/** @param {boolean} isTicked */
	function tickAll(isTicked) {
		for (const { id } of groups) {
			if (isTicked) chosen.add(id);
			else chosen.delete(id);
		}
		for (const tick of list.querySelectorAll("td.choose input")) {
			if (tick instanceof HTMLInputElement) tick.checked = isTicked;
		}
		showBulk();
	}

	/** Sets the status of groups. @param {QueryGroup[]} changed @param {QueryStatus} status */
	async function change(changed, status) {
		const old = changed.map(one => {
			/** @type {[string, QueryStatus]} */
			const pair = [one.id, one.status];
			return pair;
		});
		const at = rows().findIndex(row => row === currentRow());
		if (!(await put(old.map(([id]) => [id, status])))) return;
		before = old;
		chosen.clear();
		const verb = { open: "reopened", resolved: "resolved", ignored: "ignored" }[status];
		const what = changed.length === 1 ? "1 group" : `${changed.length} groups`;
		showUndo(`${what} ${verb}`);
		await reload().catch(showError);
		// The cursor stays in its place: the next group has moved there.
		const row = rows().at(Math.max(0, Math.min(at, rows().length - 1)));
		focusRow(row);
	}

	/** @param {string} text */
	function showUndo(text) {
		replace(
			undo,
			h("span", text),
			" ",
			button("Undo", takeBack, { name: "undo", title: "Undo (z)" }),
			button("×", () => undo.replaceChildren(), { "aria-label": "Close" }),
		);
	}

	async function takeBack() {
		if (before.length === 0) return;
		const again = before.splice(0);
		if (!(await put(again))) return;
		undo.replaceChildren(h("span", "The status before is set again."));
		await reload().catch(showError);
		focusRow(rows().find(row => row.getAttribute("data-group") === again[0][0]));
	}

	/** @param {[id: string, status: QueryStatus][]} changes @returns {Promise<boolean>} */
	async function put(changes) {
		progress.textContent = "";
		for (const control of element.querySelectorAll("[data-status], [data-bulk]")) {
			if (control instanceof HTMLButtonElement) control.disabled = true;
		}
		try {
			// One after the other, because the service commits each.
			for (const [id, status] of changes) await api.put("queries/status", { id, status });
			return true;
		} catch (error) {
			showError(error);
			return false;
		} finally {
			for (const control of element.querySelectorAll("[data-status], [data-bulk]")) {
				if (control instanceof HTMLButtonElement) control.disabled = false;
			}
		}
	}

	/** @param {unknown} error */
	function showError(error) {
		if (!api.isAbort(error)) progress.textContent = `Cannot set the status: ${api.message(error)}`;
	}

	/** @returns {HTMLTableRowElement[]} */
	function rows() {
		return [...list.querySelectorAll("tbody tr")].filter(row => row instanceof HTMLTableRowElement);
	}

	/** Returns the row of the focus. */
	function currentRow() {
		return rows().find(row => row.contains(document.activeElement));
	}

	/** @param {HTMLTableRowElement | undefined} row */
	function focusRow(row) {
		const link = row?.querySelector("a.query");
		if (link instanceof HTMLElement) link.focus();
		row?.scrollIntoView({ block: "nearest" });
	}

	/** @param {number} by */
	function move(by) {
		const all = rows();
		const at = all.findIndex(row => row === currentRow());
		focusRow(
			all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + by))],
		);
	}

	/** Changes the chosen groups, or that of the cursor. @param {QueryStatus} status */
	function changeByKey(status) {
		const id = currentRow()?.getAttribute("data-group");
		const ticked = groups.filter(one => chosen.has(one.id));
		const wanted = ticked.length > 0 ? ticked : groups.filter(one => one.id === id);
		if (wanted.length > 0) change(wanted, status);
	}

	return {
		element,
		load,
		search: () => search.focus(),
		/** A refresh would close a list that is open, and move rows that are ticked. */
		get isHeld() {
			const focused = document.activeElement;
			return (
				isSlow || chosen.size > 0 || (filters.contains(focused) && focused?.tagName === "SELECT")
			);
		},
		keys: {
			j: ["next group", () => move(1)],
			k: ["previous group", () => move(-1)],
			x: ["tick the group", () => currentRow()?.querySelector("input")?.click()],
			e: ["resolve the group, or those that are ticked", () => changeByKey("resolved")],
			i: ["ignore the group, or those that are ticked", () => changeByKey("ignored")],
			o: ["reopen the group, or those that are ticked", () => changeByKey("open")],
			z: ["undo", takeBack],
		},
		close: () => later.cancel(),
	};
}
