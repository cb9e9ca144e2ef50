// The page of failing queries, in groups of similar ones with their status.

import * as api from "./api.js";
import {
	announce,
	button,
	empty,
	group as fieldGroup,
	h,
	hint,
	replace,
	select,
	table,
} from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

/** The timer does not repeat a ranking that took longer. */
const SLOW_MS = 1000;

/** @type {Column[]} */
const COLUMNS = [
	["query", "grow"],
	["failures", "number"],
	["texts", "number wide", "Distinct texts, without case and punctuation"],
	["trend", "wide"],
	["best score", "number wide"],
	["last seen", "wide"],
	["status"],
];

/** @type {Mount} */
export function mount(root) {
	const filters = h("div", { class: "filters" });
	const progress = h("div", { class: "progress" });
	const list = h("div");
	root.append(h("section", { class: "card" }, filters, progress, list));
	let isSlow = false;
	let reload = async () => {};

	/** @param {AbortSignal} signal */
	async function load(signal) {
		const now = state.get();
		const range = state.range(now);
		const { data: strategies } = await api.get("strategies", { ...range, limit: 1000 }, signal);
		replace(filters, controls(now, strategies));
		reload = () => load(signal);
		const parameters = {
			...range,
			failure_type: now.type,
			retrieval_strategy: now.strategy,
			status: now.status,
			limit: 100,
		};
		const began = performance.now();
		// A ranking that is stopped counts as slow.
		isSlow = true;
		const ranking = await api.poll("queries", parameters, signal, ms => {
			progress.textContent = `Grouping the failing queries… ${(ms / 1000).toFixed(1)} s`;
		});
		isSlow = performance.now() - began > SLOW_MS;
		progress.textContent = "";
		announce(`${ranking.data.length} groups of queries are shown`);
		replace(list, content(ranking, now));
		// The service reads the rest meanwhile.
		if (ranking.in_progress) setTimeout(() => signal.aborted || reload().catch(() => {}), 1500);
	}

	return {
		load,
		/** A refresh would close a list that is open. */
		get isHeld() {
			const focused = document.activeElement;
			return isSlow || (filters.contains(focused) && focused?.tagName === "SELECT");
		},
		close() {},
	};

	/** @param {State} now @param {StrategySummary[]} strategies */
	function controls(now, strategies) {
		const names = new Set(strategies.map(strategy => strategy.retrieval_strategy));
		if (now.strategy) names.add(now.strategy);
		return [
			fieldGroup(
				"Status",
				[null, ...format.STATUSES].map(status => {
					const isCurrent = (now.status ?? null) === status;
					return state.anchor({ status }, status ?? "all", {
						class: "button",
						"aria-current": isCurrent ? "true" : null,
					});
				}),
			),
			select("type", "Type", format.TYPE_OPTIONS, now.type ?? "", type =>
				state.set({ type: type || null }),
			),
			select(
				"strategy",
				"Strategy",
				[["", "all strategies"], ...[...names].map(name => [name, format.visible(name)])],
				now.strategy ?? "",
				strategy => state.set({ strategy: strategy || null }),
			),
		];
	}

	/** @param {TopQueries} ranking @param {State} now */
	function content(ranking, now) {
		const { partial, in_progress, data: groups, has_more, scanned, ungrouped } = ranking;
		if (groups.length === 0) {
			const isFiltered = now.status || now.type || now.strategy;
			const removed = { status: null, type: null, strategy: null };
			return empty(
				now.status ? `No group of queries is ${now.status}` : "No query failed in this range",
				isFiltered
					? [state.anchor(removed, "Clear filters"), ", or choose a longer range."]
					: "Choose a longer range above.",
			);
		}
		const since = format.time(scanned.range.from, { withYear: true });
		return [
			partial &&
				h(
					"p",
					{ class: "notice", role: "status" },
					`Each count is a lower bound: it has the newest ${format.number(scanned.failures)} failures, since `,
					since.cloneNode(true),
					in_progress ? ". The service reads the rest." : ".",
				),
			table(
				"Groups of failing queries, the largest first",
				COLUMNS,
				groups.map(group => ({ attributes: { "data-group": group.id }, cells: cells(group) })),
			),
			hint(
				`The groups consist of ${format.number(scanned.failures)} failures`,
				!scanned.complete && [", the newest: since ", since],
				has_more && `; the ${format.number(groups.length)} largest groups are shown`,
				ungrouped > 0 && `; ${format.number(ungrouped)} failures with rare texts are in no group`,
			),
		];
	}

	/** @param {QueryGroup} group */
	function cells(group) {
		const actions = format.STATUSES.filter(status => status !== group.status).map(status => {
			const action = button(
				format.STATUS_ACTIONS[status],
				() => {
					setStatus(group, status, action);
				},
				{ "data-status": status },
			);
			return action;
		});
		const status = group.reopened ? "reopened" : group.status;
		return [
			state.anchor({ page: "failures", group: group.id }, format.logged(group.example), {
				class: "query",
			}),
			format.number(group.count),
			format.number(group.texts),
			format.sparkline(group.trend, "Failures over time"),
			format.score(group.best_score),
			format.time(group.last_seen),
			h("div", { class: "status" }, h("span", { class: `name ${group.status}` }, status), actions),
		];
	}

	/** @param {QueryGroup} group @param {QueryStatus} status @param {HTMLButtonElement} action */
	async function setStatus(group, status, action) {
		action.disabled = true;
		const rows = () => [...list.querySelectorAll("tbody tr")];
		const index = rows().findIndex(row => row.contains(action));
		try {
			await api.put("queries/status", { id: group.id, status });
			await reload();
			announce(`This group is ${status} now`);
			// The focus was in the old table: it moves to the same group, or to the one in its place.
			const row =
				rows().find(other => other.getAttribute("data-group") === group.id) ??
				rows().at(Math.min(index, rows().length - 1));
			const focus = row?.querySelector("button") ?? filters.querySelector("a[aria-current]");
			if (focus instanceof HTMLElement) focus.focus();
		} catch (error) {
			if (api.isAbort(error)) return;
			progress.textContent = `Cannot set the status: ${api.message(error)}`;
			action.disabled = false;
		}
	}
}
