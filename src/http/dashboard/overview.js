// The page of failure rates, beside those of the period before.

import * as api from "./api.js";
import * as charts from "./charts.js";
import { empty, h, hint, replace, table } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

export const title = "Overview";

/** @type {Mount} */
export function mount(root) {
	/** @type {ChartView | null} */
	let chart = null;
	const tiles = h("section", { class: "tiles", "aria-label": "Summary" });
	const place = h("div");
	const about = hint();
	const strategies = h("div");
	root.append(
		tiles,
		h("section", { class: "card" }, h("h2", "Failures over time"), about, place),
		h("section", { class: "card" }, h("h2", "Strategies"), strategies),
	);

	return {
		async load(signal) {
			const range = state.range();
			const [summary, series, stats] = await Promise.all([
				api.get("summary", range, signal),
				api.get("timeseries", range, signal),
				api.get("stats", {}, signal),
			]);
			replace(tiles, allTiles(summary, series, stats));
			chart?.close();
			if (summary.total.attempts === 0) {
				chart = null;
				about.replaceChildren();
				place.replaceChildren(noAttempts(stats));
				strategies.replaceChildren(empty("No strategy was used in this range"));
				return;
			}
			about.replaceChildren(
				`A bar is ${format.span(series.step_seconds)}. `,
				h("span", { class: "mouse" }, "Drag over the chart to look closer."),
			);
			chart = charts.failuresOverTime(series, (from, to) => {
				const [begin, end] = [from, to].map(seconds => new Date(1000 * seconds).toISOString());
				state.set({ since: null, from: begin, to: end });
			});
			place.replaceChildren(chart.element);
			chart.draw();
			replace(strategies, strategyTable(summary, series));
		},
		close() {
			chart?.close();
		},
	};
}

/** @param {string} name @param {Child} value @param {Child[]} more */
function tile(name, value, ...more) {
	return h(
		"div",
		{ class: "tile", "data-tile": name },
		h("h2", name),
		h("div", { class: "value" }, value),
		more,
	);
}

/** @type {(series: Timeseries, rowsSince: string | null) => boolean} */
function hasDeleted(series, rowsSince) {
	// Counts outlive failures.
	const begin = rowsSince === null ? Infinity : Date.parse(rowsSince);
	return series.points.some(
		point => point.failures > 0 && Date.parse(point.at) + 1000 * series.step_seconds <= begin,
	);
}

/** @param {Record<string, number>} drops */
function sum(drops) {
	return Object.values(drops).reduce((all, records) => all + records, 0);
}

/** @param {Summary} summary @param {Timeseries} series @param {ServiceStats} stats */
function allTiles(summary, series, stats) {
	const { total, previous, rows_since, dropped, previous_dropped } = summary;
	const types = total.types.map(({ failure_type, failures }, index) => {
		return h(
			"tr",
			h(
				"th",
				{ scope: "row" },
				state.anchor({ page: "failures", type: failure_type }, format.badge(failure_type)),
			),
			h("td", { class: "number" }, format.number(failures)),
			h("td", format.change(failures, previous.types[index].failures)),
		);
	});
	const reasons = Object.entries(dropped)
		.filter(([, records]) => records > 0)
		.map(([reason, records]) => `${reason.replaceAll("_", " ")} ${format.number(records)}`);
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
			total.unobserved > 0 && hint(`unobserved failures: ${format.number(total.unobserved)}`),
		),
		tile(
			"Failures",
			format.large(total.failures),
			format.change(total.failures, previous.failures),
			hasDeleted(series, rows_since) &&
				hint(
					rows_since === null
						? "They were deleted from the log."
						: ["The log begins ", format.time(rows_since), ": older failures were deleted."],
				),
		),
		tile(
			"Latency p95",
			format.milliseconds(total.latency_ms?.p95),
			format.change(total.latency_ms?.p95, previous.latency_ms?.p95, { as: format.milliseconds }),
		),
		tile(
			"Records dropped",
			format.large(sum(dropped)),
			format.change(sum(dropped), sum(previous_dropped)),
			reasons.length > 0 && hint(reasons.join(", ")),
		),
		tile(
			"Last flush",
			stats.last_flush ? format.ago(stats.last_flush) : "none yet",
			h(
				"span",
				{ class: stats.unhealthy ? "change bad" : "change" },
				stats.unhealthy ??
					`${format.number(stats.buffered)} buffered, ${format.number(stats.failed_flushes)} failed`,
			),
			hint(`${format.bytes(stats.database_bytes)}, without the journal`),
		),
		h(
			"div",
			{ class: "tile types", "data-tile": "By type" },
			h("h2", "Failures by type"),
			h("table", h("tbody", types)),
		),
	];
}

/** @type {Column[]} */
const COLUMNS = [
	["strategy"],
	["attempts", "number"],
	["failures", "number"],
	["rate", "number", "Failures divided by attempts; – if only failures are reported"],
	["before", "number wide"],
	...format.typeColumns("number wide"),
	["p50", "number wide"],
	["p95", "number"],
	["p99", "number wide"],
	["failures over time"],
];

/** @param {Summary} summary @param {Timeseries} series */
function strategyTable({ strategies }, series) {
	const points = new Map(
		series.strategies.map(({ retrieval_strategy, failures }) => [retrieval_strategy, failures]),
	);
	return table(
		"Strategies, the one with the most failures first",
		COLUMNS,
		strategies.map(({ retrieval_strategy: strategy, rates, previous }) => [
			state.anchor({ page: "failures", strategy }, format.logged(strategy)),
			format.number(rates.attempts),
			format.number(rates.failures),
			format.share(rates.failure_rate),
			format.share(previous.failure_rate),
			...rates.types.map(type => format.number(type.failures)),
			format.milliseconds(rates.latency_ms?.p50),
			format.milliseconds(rates.latency_ms?.p95),
			format.milliseconds(rates.latency_ms?.p99),
			format.sparkline(points.get(strategy) ?? [], "Failures over time"),
		]),
	);
}

/** @param {ServiceStats} stats */
function noAttempts(stats) {
	// An empty database is smaller than 200 kB.
	const isUsed = stats.persisted > 0 || stats.database_bytes > 200_000;
	const root = document.baseURI.replace(/[?#].*$/, "").replace(/\/$/, "");
	const example =
		`curl ${root}/v1/attempts -H 'Content-Type: application/json' \\\n` +
		`    -d '{"outcome": "no_hit", "retrieval_strategy": "semantic", "query_text": "where is the key?"}'`;
	const heading = "No attempts in this range";
	if (isUsed) {
		return empty(
			heading,
			"Choose a longer range above. ",
			state.anchor({ since: "30d", from: null, to: null }, "Show 30 days"),
		);
	}
	const place = empty(heading, "Report an attempt. It appears here within seconds:");
	place.append(h("pre", { tabindex: 0 }, example));
	return place;
}
