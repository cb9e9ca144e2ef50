// How often retrieval fails, now and before, and where.

import * as api from "./api.js";
import * as charts from "./charts.js";
import { empty, h, renew, table } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

export const title = "Overview";

export function mount(root) {
	let chart;
	const tiles = h("section", { class: "tiles", "aria-label": "In short" });
	const over = h("div", {});
	const hint = h("p", { class: "hint" });
	const strategies = h("div", {});
	root.append(
		tiles,
		h("section", { class: "card" }, h("h2", {}, "Failures over time"), hint, over),
		h("section", { class: "card" }, h("h2", {}, "Strategies"), strategies),
	);

	return {
		async load(signal) {
			const range = state.range();
			const [summary, series, stats] = await Promise.all([
				api.get("summary", range, signal),
				api.get("timeseries", range, signal),
				api.get("stats", {}, signal),
			]);
			renew(tiles, tilesOf(summary, series, stats));
			chart?.close();
			if (summary.total.attempts === 0) {
				chart = null;
				hint.replaceChildren();
				over.replaceChildren(nothing(stats));
				strategies.replaceChildren(empty("No strategy was used in this time"));
				return;
			}
			hint.replaceChildren(
				`A bar is ${format.span(series.step_seconds)}. `,
				h("span", { class: "mouse" }, "Drag over the chart to look closer."),
			);
			chart = charts.failuresOverTime(series, (from, to) => {
				const at = (seconds) => new Date(1000 * seconds).toISOString();
				state.set({ since: null, from: at(from), to: at(to) });
			});
			over.replaceChildren(chart.element);
			chart.draw();
			renew(strategies, strategyTable(summary, series));
		},
		close() {
			chart?.close();
		},
	};
}

function tile(name, value, ...more) {
	return h(
		"div",
		{ class: "tile", "data-tile": name },
		h("h2", {}, name),
		h("div", { class: "value" }, value),
		more,
	);
}

/** Counts outlive the failures themselves. */
function hasDeleted(series, rowsSince) {
	const begin = rowsSince === null ? Infinity : Date.parse(rowsSince);
	return series.points.some(
		(point) => point.failures > 0 && Date.parse(point.at) + 1000 * series.step_seconds <= begin,
	);
}

function tilesOf({ total, previous, rows_since, dropped, previous_dropped }, series, stats) {
	const types = total.types.map((type, nth) =>
		h(
			"tr",
			{},
			h(
				"th",
				{ scope: "row" },
				h(
					"a",
					{ href: state.link({ page: "failures", type: type.failure_type }) },
					format.badge(type.failure_type),
				),
			),
			h("td", { class: "number" }, format.number(type.failures)),
			h("td", {}, format.change(type.failures, previous.types[nth].failures)),
		),
	);
	const lost = (drops) => Object.values(drops).reduce((sum, records) => sum + records, 0);
	const reasons = Object.entries(dropped)
		.filter(([, records]) => records > 0)
		.map(([reason, records]) => `${reason.replace("_", " ")} ${format.number(records)}`)
		.join(", ");
	return [
		tile(
			"Attempts",
			format.large(total.attempts),
			format.change(total.attempts, previous.attempts, { worse: "none" }),
		),
		tile(
			"Failure rate",
			format.share(total.failure_rate),
			format.change(total.failure_rate, previous.failure_rate, { as: format.share, points: true }),
			total.unobserved > 0 &&
				h(
					"p",
					{ class: "hint" },
					`failures that no monitor counted: ${format.number(total.unobserved)}`,
				),
		),
		tile(
			"Failures",
			format.large(total.failures),
			format.change(total.failures, previous.failures),
			hasDeleted(series, rows_since) &&
				h(
					"p",
					{ class: "hint" },
					rows_since === null
						? "The list has none: they were deleted."
						: ["The list begins ", format.time(rows_since), ": older ones were deleted."],
				),
		),
		tile(
			"Latency p95",
			format.milliseconds(total.latency_ms?.p95),
			format.change(total.latency_ms?.p95, previous.latency_ms?.p95, { as: format.milliseconds }),
		),
		tile(
			"Records dropped",
			format.large(lost(dropped)),
			format.change(lost(dropped), lost(previous_dropped)),
			reasons && h("p", { class: "hint" }, reasons),
		),
		tile(
			"Last flush",
			stats.last_flush ? format.ago(stats.last_flush) : "none yet",
			h(
				"span",
				{ class: stats.unhealthy ? "change bad" : "change" },
				stats.unhealthy ??
					`${format.number(stats.buffered)} waiting, ${format.number(stats.failed_flushes)} failed`,
			),
			h("p", { class: "hint" }, `${format.bytes(stats.database_bytes)}, without the journal`),
		),
		h(
			"div",
			{ class: "tile types", "data-tile": "By type" },
			h("h2", {}, "Failures by type"),
			h("table", {}, h("tbody", {}, types)),
		),
	];
}

const COLUMNS = [
	{ name: "strategy" },
	{ name: "attempts", numeric: true },
	{ name: "failures", numeric: true },
	{
		name: "rate",
		numeric: true,
		title: "Share of the attempts that failed; – if only failures are reported",
	},
	{ name: "before", numeric: true, wide: true },
	...format.TYPES.map((type) => ({ name: format.TYPE_NAMES[type], numeric: true, wide: true })),
	{ name: "p50", numeric: true, wide: true },
	{ name: "p95", numeric: true },
	{ name: "p99", numeric: true, wide: true },
	{ name: "failures over time" },
];

function strategyTable({ strategies }, series) {
	const points = new Map(series.strategies.map((of) => [of.retrieval_strategy, of.failures]));
	return table(
		"Strategies, the one with the most failures first",
		COLUMNS,
		strategies.map(({ retrieval_strategy: strategy, rates, previous }) => [
			h("a", { href: state.link({ page: "failures", strategy }) }, format.typed(strategy)),
			format.number(rates.attempts),
			format.number(rates.failures),
			format.share(rates.failure_rate),
			format.share(previous.failure_rate),
			...rates.types.map((type) => format.number(type.failures)),
			format.milliseconds(rates.latency_ms?.p50),
			format.milliseconds(rates.latency_ms?.p95),
			format.milliseconds(rates.latency_ms?.p99),
			format.sparkline(points.get(strategy) ?? [], "Failures over time"),
		]),
	);
}

function nothing(stats) {
	const root = document.baseURI.replace(/[?#].*$/, "").replace(/\/$/, "");
	const example =
		`curl ${root}/v1/attempts -H 'Content-Type: application/json' \\\n` +
		`    -d '{"outcome": "no_hit", "retrieval_strategy": "semantic", "query_text": "where is the key?"}'`;
	return empty(
		"Nothing was attempted in this time",
		stats.persisted > 0 || stats.database_bytes > 200_000
			? h(
					"p",
					{},
					"Choose a longer time above. ",
					h("a", { href: state.link({ since: "30d", from: null, to: null }) }, "Show 30 days"),
				)
			: [
					h("p", {}, "Report an attempt, and it shows up here in a second:"),
					h("pre", { tabindex: 0 }, example),
				],
	);
}
