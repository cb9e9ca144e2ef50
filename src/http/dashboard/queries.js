// Failing queries in groups of similar ones, and their status.

import * as api from "./api.js";
import { announce, empty, h, renew, select, table } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

export const title = "Queries";

/** Grouping that took longer is not repeated by itself. */
const SLOW_MS = 1000;

export function mount(root) {
	const filters = h("div", { class: "filters" });
	const progress = h("div", { class: "progress" });
	const list = h("div", {});
	root.append(h("section", { class: "card" }, filters, progress, list));
	let again,
		slow = false;

	return {
		/** A list that is open must not be closed by a refresh. */
		get still() {
			return (
				slow ||
				(filters.contains(document.activeElement) && document.activeElement.matches("select"))
			);
		},
		async load(signal) {
			const now = state.get();
			const { data: strategies } = await api.get(
				"strategies",
				{ ...state.range(now), limit: 1000 },
				signal,
			);
			renew(filters, controls(now, strategies));
			again = () => this.load(signal);
			const wanted = {
				...state.range(now),
				failure_type: now.type,
				retrieval_strategy: now.strategy,
				status: now.status,
				limit: 100,
			};
			const began = performance.now();
			slow = true;
			const answer = await api.wait("queries", wanted, signal, (ms) => {
				progress.textContent = `Grouping the failing queries… ${(ms / 1000).toFixed(1)} s`;
			});
			slow = performance.now() - began > SLOW_MS;
			progress.textContent = "";
			announce(`${answer.data.length} groups of queries are shown`);
			renew(list, shown(answer, now));
			// The service looks at the rest: this page gets it by itself.
			if (answer.in_progress) setTimeout(() => signal.aborted || again().catch(() => {}), 1500);
		},
		close() {},
	};

	function controls(now, strategies) {
		const names = [
			...new Set([now.strategy, ...strategies.map((of) => of.retrieval_strategy)].filter(Boolean)),
		];
		return [
			h(
				"div",
				{ class: "field", role: "group", "aria-label": "Status" },
				h("span", {}, "Status"),
				h(
					"div",
					{ class: "buttons" },
					[null, ...format.STATUSES].map((status) =>
						h(
							"a",
							{
								class: "button",
								href: state.link({ status }),
								"aria-current": (now.status ?? null) === status ? "true" : null,
							},
							status ?? "all",
						),
					),
				),
			),
			select("type", "Type", format.TYPE_OPTIONS, now.type ?? "", (type) =>
				state.set({ type: type || null }),
			),
			select(
				"strategy",
				"Strategy",
				[["", "all strategies"], ...names.map((name) => [name, format.visible(name)])],
				now.strategy ?? "",
				(strategy) => state.set({ strategy: strategy || null }),
			),
		];
	}

	function shown({ partial, in_progress, data: groups, has_more, scanned, ungrouped }, now) {
		if (groups.length === 0) {
			const filtered = now.status || now.type || now.strategy;
			const away = h(
				"a",
				{ href: state.link({ status: null, type: null, strategy: null }) },
				"Clear filters",
			);
			return [
				empty(
					now.status ? `No group of queries is ${now.status}` : "No query failed in this time",
					h(
						"p",
						{},
						filtered ? [away, ", or choose a longer time."] : "Choose a longer time above.",
					),
				),
			];
		}
		const about = [
			`${format.number(scanned.failures)} failures were looked at`,
			!scanned.complete && [
				", the newest: since ",
				format.time(scanned.range.from, { withYear: true }),
			],
			has_more && `; the ${format.number(groups.length)} largest groups are shown`,
			ungrouped > 0 && `; ${format.number(ungrouped)} with rarer texts are left out`,
		].filter(Boolean);
		const notice =
			partial &&
			h(
				"p",
				{ class: "notice", role: "status" },
				`At least: the newest ${format.number(scanned.failures)} failures, since `,
				format.time(scanned.range.from, { withYear: true }),
				in_progress ? ". The rest is being counted." : ".",
			);
		return [
			notice,
			table(
				"Groups of failing queries, the largest first",
				[
					{ name: "query", class: "grow" },
					{ name: "failures", numeric: true },
					{
						name: "texts",
						numeric: true,
						wide: true,
						title: "Different texts, apart from case and punctuation",
					},
					{ name: "trend", wide: true },
					{ name: "best score", numeric: true, wide: true },
					{ name: "last seen", wide: true },
					{ name: "status" },
				],
				groups.map((group) => ({ attributes: { "data-group": group.id }, cells: cells(group) })),
			),
			h("p", { class: "hint" }, about),
		].filter(Boolean);
	}

	function cells(group) {
		return [
			h(
				"a",
				{ class: "query", href: state.link({ page: "failures", group: group.id }) },
				format.typed(group.example),
			),
			format.number(group.count),
			format.number(group.texts),
			format.sparkline(group.trend, "Failures over time"),
			format.score(group.best_score),
			format.time(group.last_seen),
			h(
				"div",
				{ class: "status" },
				h("span", { class: `mark ${group.status}` }, group.reopened ? "reopened" : group.status),
				format.STATUSES.filter((status) => status !== group.status).map((status) =>
					h(
						"button",
						{
							type: "button",
							"data-status": status,
							onclick: (event) => mark(group, status, event.target),
						},
						format.STATUS_ACTIONS[status],
					),
				),
			),
		];
	}

	async function mark(group, status, button) {
		button.disabled = true;
		const nth = [...list.querySelectorAll("tbody tr")].indexOf(button.closest("tr"));
		try {
			await api.put("queries/status", { id: group.id, status });
			await again();
			announce(`This group is ${status} now`);
			// To where the focus was, which went with the old table.
			const rows = [...list.querySelectorAll("tbody tr")];
			const row =
				rows.find((row) => row.dataset.group === group.id) ?? rows[Math.min(nth, rows.length - 1)];
			(row?.querySelector("button") ?? filters.querySelector("[aria-current]")).focus();
		} catch (error) {
			if (error.name === "AbortError") return;
			progress.textContent = `The status was not set: ${error.message}`;
			button.disabled = false;
		}
	}
}
