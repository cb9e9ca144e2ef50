// The charts over time: the failure rate, failures by type, and strategies beside each other.

import { h, table } from "./dom.js";
import * as format from "./format.js";
import * as plot from "./plot.js";

/** Colours of strategies, in style.css, with dashes for readers who see few colours. */
const LINES = [
	{ color: "line-1" },
	{ color: "line-2", dash: [8, 4] },
	{ color: "line-3", dash: [2, 3] },
	{ color: "line-4", dash: [10, 3, 2, 3] },
	{ color: "line-5", dash: [5, 5] },
	{ color: "line-6", dash: [14, 4] },
];
/** Strategies that a chart shows: more lines cannot be told apart. */
export const MAX_LINES = LINES.length;

/** A rate of fewer attempts says little: its step has no point, unless all steps are so. */
const LEAST_ATTEMPTS = 5;

/** Returns rates in percent. @param {number[]} failures @param {number[]} attempts */
function percents(failures, attempts) {
	const least = Math.min(LEAST_ATTEMPTS, Math.max(1, ...attempts));
	return attempts.map((all, at) => (all < least ? null : (100 * failures[at]) / all));
}

/** Returns a sample of the line of a strategy, by its rank. @param {number} rank */
export function swatch(rank) {
	return h("span", { class: `swatch line-${rank + 1}`, "aria-hidden": "true" });
}

/**
 * Returns the rows of a tooltip: a colour, a name and a value each.
 * @param {[string, Child, Child][]} rows
 */
function tipRows(rows) {
	return h(
		"dl",
		rows.map(([classes, name, value]) =>
			h("div", h("dt", h("span", { class: `swatch ${classes}` }), name), h("dd", value)),
		),
	);
}

/** Returns `true` if the last step is not over. @param {Timeseries} series */
function isRunning({ points, step_seconds: step }) {
	const last = points.at(-1);
	return last !== undefined && Date.parse(last.at) + 1000 * step > Date.now();
}

/** Returns `true` if the last bar is not over. @param {Timeseries} series */
export function isOpen(series) {
	return isRunning(series) && series.points.at(-1)?.failures !== 0;
}

/** Returns the failure rate and the failures by type. @type {TimeCharts["failuresOverTime"]} */
export function failuresOverTime(series, zoom) {
	const { points, step_seconds: step } = series;
	const starts = points.map(point => Date.parse(point.at) / 1000);
	const rates = percents(
		points.map(({ failures }) => failures),
		points.map(({ attempts, failure_rate: rate }) => (rate === null ? 0 : attempts)),
	);
	const sure = points.map(({ attempts, failures }, at) =>
		rates[at] === null ? null : format.interval(failures, attempts).map(share => 100 * share),
	);
	// Bars stand behind each other: the hindmost is as high as all types together.
	const stacked = format.TYPES.map((type, index) => ({
		kind: /** @type {const} */ ("bars"),
		color: type,
		values: points.map(point =>
			format.TYPES.slice(index).reduce((sum, name) => sum + point[name], 0),
		),
	}));
	/** @param {number} index */
	const tip = index => {
		const { attempts, failures, failure_rate: rate, ...types } = points[index];
		const [low, high] = format.interval(failures, attempts);
		return [
			h(
				"p",
				{ class: "tip-value" },
				format.share(rate),
				rate !== null && h("span", { class: "muted" }, ` ${format.between(low, high)}`),
			),
			tipRows([
				...format.TYPES.map(type => {
					/** @type {[string, Child, Child]} */
					const row = [type, format.TYPE_NAMES[type], format.number(types[type])];
					return row;
				}),
				["", "failures", format.number(failures)],
				["", "attempts", format.number(attempts)],
			]),
		];
	};
	const shared = { starts, step, isOpen: false, tip, zoom };
	const rate = plot.overTime({
		...shared,
		label: "Failure rate over time, and its uncertainty",
		height: 120,
		width: 56,
		hasTimes: false,
		axisText: value => `${value} %`,
		top: highest => Math.min(100, Math.max(1, highest * 1.08)),
		series: [
			{ kind: "high", color: "text", values: sure.map(pair => pair && pair[1]) },
			{ kind: "low", color: "text", values: sure.map(pair => pair && pair[0]) },
			{ kind: "line", color: "text", values: rates },
		],
	});
	const bars = plot.overTime({
		...shared,
		isOpen: isOpen(series),
		label: "Failures over time by type",
		height: 190,
		width: 56,
		axisText: plot.countLabel,
		top: highest => Math.max(1, highest * 1.05),
		series: stacked,
	});
	const isKnown = rates.some(value => value !== null);
	rate.linkTo([bars]);
	bars.linkTo(isKnown ? [rate] : []);
	const rows = points
		.filter(point => point.attempts > 0)
		.map(point => [
			format.time(point.at),
			...format.TYPES.map(type => format.number(point[type])),
			format.number(point.attempts),
			format.share(point.failure_rate),
		]);
	/** @type {Column[]} */
	const columns = [
		["from"],
		...format.typeColumns("number"),
		["attempts", "number"],
		["failure rate", "number"],
	];
	return together(
		isKnown ? [rate, bars] : [bars],
		isKnown && [
			h("h3", "Failure rate ", h("span", { class: "muted" }, "with its 95 % interval")),
			rate.element,
		],
		h("h3", "Failures"),
		bars.element,
		plot.numbers("Failures over time", table("Failures over time", columns, rows)),
	);
}

/** Returns rate, attempts and p95 latency by strategy. @type {TimeCharts["strategiesOverTime"]} */
export function strategiesOverTime(series, ranked, zoom) {
	const { points, step_seconds: step } = series;
	const starts = points.map(point => Date.parse(point.at) / 1000);
	const shown = ranked.slice(0, MAX_LINES).map(({ retrieval_strategy: name, rates }, rank) => {
		const found = series.strategies.find(({ retrieval_strategy }) => retrieval_strategy === name);
		const attempts = found?.attempts ?? points.map(() => 0);
		const failures = found?.failures ?? points.map(() => 0);
		const hasRate = rates.failure_rate !== null;
		return { name, rank, attempts, failures, hasRate, latencies: found?.latency_p95_ms ?? [] };
	});
	/** @type {StrategyChart[]} */
	const charts = [
		{
			title: "Failure rate",
			values: ({ attempts, failures, hasRate }) =>
				hasRate ? percents(failures, attempts) : attempts.map(() => null),
			text: value => format.percent(value, 1),
			axisText: value => `${value} %`,
			top: highest => Math.min(100, Math.max(1, highest * 1.08)),
		},
		{
			title: "Attempts",
			// The attempts of a step that is not over would look like a fall.
			values: ({ attempts }) =>
				attempts.map((all, at) => (at === attempts.length - 1 && isRunning(series) ? null : all)),
			text: format.number,
			axisText: plot.countLabel,
			top: highest => Math.max(1, highest * 1.08),
		},
		{
			title: "Latency p95",
			values: ({ latencies }) => points.map((_, at) => latencies[at] ?? null),
			text: format.milliseconds,
			axisText: value => format.milliseconds(value),
			top: highest => Math.max(1, highest * 1.08),
		},
	];
	const isMeasured = (/** @type {StrategyChart} */ { values }) =>
		shown.some(strategy => values(strategy).some(value => value !== null));
	const views = charts.filter(isMeasured).map(({ title, values, text, axisText, top }) => {
		const lines = shown.map(strategy => ({
			strategy,
			kind: /** @type {const} */ ("line"),
			...LINES[strategy.rank],
			values: values(strategy),
		}));
		const view = plot.overTime({
			label: `${title} over time by strategy`,
			height: 170,
			starts,
			step,
			isOpen: false,
			series: lines,
			axisText,
			top,
			zoom,
			tip: index => [
				tipRows(
					lines
						.filter(line => line.values[index] !== null)
						.toSorted((one, other) => (other.values[index] ?? 0) - (one.values[index] ?? 0))
						.map(({ strategy, values: numbers }) => [
							`line-${strategy.rank + 1}`,
							format.logged(strategy.name),
							text(numbers[index] ?? 0),
						]),
				),
			],
		});
		return { ...view, figure: h("div", h("h3", title), view.element) };
	});
	for (const view of views) view.linkTo(views.filter(other => other !== view));
	return together(
		views,
		h(
			"div",
			{ class: "multiples" },
			views.map(({ figure }) => figure),
		),
	);
}

/**
 * @param {{ draw(): void; close(): void }[]} views
 * @param {Child[]} content @returns {ChartView}
 */
function together(views, ...content) {
	return {
		element: h("div", { class: "charts" }, content),
		draw: () => views.forEach(view => view.draw()),
		close: () => views.forEach(view => view.close()),
	};
}
