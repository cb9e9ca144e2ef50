// The page of the failure rate: how high, how sure, since when, and what it is made of.

import * as api from "./api.js";
import { empty, h, hint, replace, table } from "./dom.js";
import * as format from "./format.js";
import { stepsIn } from "./plot.js";
import * as state from "./state.js";
import * as charts from "./timecharts.js";

/** Fewer attempts than these do not suffice for a comparison. */
const LEAST_ATTEMPTS = 20;
/** Steps of the charts by strategy at most: percentiles are costly to read. */
const STRATEGY_STEPS = 48;

/** @type {Mount} */
export function mount(root) {
	/** @type {ChartView[]} */
	let shown = [];
	const hero = h("section", { class: "card hero", "aria-label": "Failure rate" });
	const strategies = h("section", { class: "card" });
	root.append(hero, strategies);

	return {
		async load(signal) {
			const now = state.get();
			const range = state.range(now);
			const filter = { ...range, retrieval_strategy: now.strategy };
			const steps = stepsIn(root);
			const [summary, series, byStrategy] = await Promise.all([
				api.get("summary", range, signal),
				api.get("timeseries", { ...filter, max_steps: steps }, signal),
				api.get(
					"timeseries",
					{ ...filter, max_steps: Math.min(steps, STRATEGY_STEPS), latency: "true" },
					signal,
				),
			]);
			const chosen = chooseRates(summary, now.strategy);
			for (const chart of shown.splice(0)) chart.close();
			strategies.hidden = chosen.rates.attempts === 0;
			if (chosen.rates.attempts === 0) {
				replace(hero, await noAttempts(now.strategy, signal));
				return;
			}
			const compared = comparison(summary, chosen, state.periodBefore(now));
			const trend = charts.failuresOverTime(series, state.zoom);
			replace(hero, heroContent(summary, chosen, compared, series, trend.element));
			const lines = charts.strategiesOverTime(byStrategy, chosen.strategies, state.zoom);
			replace(
				strategies,
				h("h2", now.strategy ? "Strategy" : "Strategies"),
				lines.element,
				strategyTable(chosen.strategies, compared),
				chosen.strategies.length > charts.MAX_LINES &&
					hint(`The charts show the ${charts.MAX_LINES} strategies with the most failures.`),
			);
			shown = [trend, lines];
			for (const chart of shown) chart.draw();
		},
		close() {
			for (const chart of shown) chart.close();
		},
	};
}

/** Returns the rates of all strategies, or of one. @type {OverviewPage["chooseRates"]} */
function chooseRates(summary, strategy) {
	if (!strategy) {
		return { rates: summary.total, before: summary.previous, strategies: summary.strategies };
	}
	const found = summary.strategies.filter(one => one.retrieval_strategy === strategy);
	const { rates = NONE, previous = NONE } = found[0] ?? {};
	return { rates, before: previous, strategies: found };
}

/** @type {Rates} */
const NONE = {
	attempts: 0,
	successes: 0,
	failures: 0,
	unobserved: 0,
	failure_rate: null,
	types: [],
	latency_ms: null,
};

/**
 * Returns the period before as a text, or the reason for which it is not compared.
 * @type {OverviewPage["comparison"]}
 */
function comparison({ range, attempts_since }, { rates, before }, period) {
	const [from, to] = [range.from, range.to].map(at => Date.parse(at));
	const begins = from - (to - from);
	if (attempts_since === null || Date.parse(attempts_since) > begins) {
		const since =
			attempts_since && ` Attempts are counted since ${format.minuteText(attempts_since)}.`;
		return { period: null, reason: `Not compared with ${period}.${since ?? ""}` };
	}
	const fewest = Math.min(rates.attempts, before.attempts);
	if (fewest < LEAST_ATTEMPTS) {
		const where = before.attempts < LEAST_ATTEMPTS ? `${period} had` : "this range has";
		const count = format.number(fewest);
		return {
			period: null,
			reason:
				`Not compared with ${period}: ` +
				`${where} ${count} of the ${LEAST_ATTEMPTS} attempts that a comparison needs.`,
		};
	}
	return { period, reason: null };
}

/** @type {OverviewPage["heroContent"]} */
function heroContent(summary, { rates, before }, { period, reason }, series, trend) {
	const { attempts, failures, failure_rate: rate } = rates;
	const [low, high] = format.interval(failures, attempts);
	const dropped = Object.entries(summary.dropped).filter(([, records]) => records > 0);
	const figures = h(
		"div",
		{ class: "figures" },
		h("h2", rate === null ? "Failures" : "Failure rate"),
		rate === null
			? [
					h("p", { class: "value", "data-value": "failures" }, format.large(failures)),
					h("p", "Their rate is not known, because no success was reported."),
				]
			: [
					h("p", { class: "value", "data-value": "rate" }, format.share(rate)),
					h(
						"p",
						{ title: "The 95 % interval by Wilson: fewer attempts make it wider" },
						`${format.between(low, high)}, with 95 % certainty`,
					),
					h(
						"p",
						h("strong", { "data-value": "failures" }, format.large(failures)),
						failures === 1 ? " failure in " : " failures in ",
						h("strong", { "data-value": "attempts" }, format.large(attempts)),
						attempts === 1 ? " attempt" : " attempts",
					),
				],
		h("p", { class: "compared" }, period === null ? reason : heroChange(rates, before, period)),
		rates.unobserved > 0 &&
			hint(`Of the failures, ${format.number(rates.unobserved)} were logged without a monitor.`),
		hasDeleted(series, summary.rows_since) &&
			h(
				"p",
				{ class: "hint", "data-hint": "deleted" },
				summary.rows_since === null
					? "The failures were deleted from the log: counts are kept longer."
					: ["The log begins ", format.time(summary.rows_since), ": older failures were deleted."],
			),
	);
	return [
		h("div", { class: "summary" }, figures, parts(rates, before, period)),
		dropped.length > 0 &&
			h(
				"p",
				{ class: "notice", role: "status", "data-notice": "dropped" },
				`Records were dropped in this range, and are in no number here: ${dropped
					.map(
						([reasonName, records]) =>
							`${format.number(records)} (${reasonName.replaceAll("_", " ")})`,
					)
					.join(", ")}.`,
			),
		trend,
		hint(
			`A bar is ${format.stepLength(series.step_seconds)}. `,
			charts.isOpen(series) && "The hatched bar is not over yet. ",
			"Drag over a chart to look closer.",
		),
	];
}

/** @type {OverviewPage["heroChange"]} */
function heroChange(rates, before, period) {
	const [now, then] = [rates.failure_rate, before.failure_rate];
	if (now === null || then === null) return `No rate of ${period} is known.`;
	const certainty = isCertain(rates, before);
	const change = h(
		"strong",
		{ class: `change ${certainty ? (now > then ? "bad" : "good") : ""}` },
		format.points(now - then),
	);
	return [
		change,
		` against ${period} (${format.share(then)} of ${format.number(before.attempts)} attempts)`,
		!certainty && ", which may be chance",
	];
}

/**
 * Returns `true` if the intervals of two rates do not overlap.
 * @param {Rates} one @param {Rates} other
 */
function isCertain(one, other) {
	const [low, high] = format.interval(one.failures, one.attempts);
	const [otherLow, otherHigh] = format.interval(other.failures, other.attempts);
	return low > otherHigh || high < otherLow;
}

/**
 * Returns what the failures consist of.
 * @param {Rates} rates @param {Rates} before @param {string | null} period
 */
function parts({ types, failures, attempts }, before, period) {
	const counts = new Map(types.map(({ failure_type, failures: count }) => [failure_type, count]));
	const old = new Map(
		before.types.map(({ failure_type, failures: count }) => [failure_type, count]),
	);
	const bar = h(
		"div",
		{ class: "parts", "aria-hidden": "true" },
		format.TYPES.filter(type => counts.get(type)).map(type =>
			h("span", { class: type, "data-part": counts.get(type) }),
		),
	);
	// The policy allows no style attribute; a property is allowed.
	for (const part of bar.children) {
		if (part instanceof HTMLElement) part.style.flexGrow = part.dataset.part ?? "0";
	}
	const rows = format.TYPES.map(type => {
		const count = counts.get(type) ?? 0;
		const change =
			attempts > 0 && before.attempts > 0
				? count / attempts - (old.get(type) ?? 0) / before.attempts
				: 0;
		return [
			state.anchor({ page: "failures", type }, format.badge(type)),
			format.number(count),
			failures > 0 ? format.share(count / failures) : "–",
			...(period === null ? [] : [format.points(change)]),
		];
	});
	/** @type {Column[]} */
	const columns = [
		["type"],
		["failures", "number"],
		["of all", "number wide", "The share of the failures"],
		["change", "number muted", "The change of the rate of this type against the period before"],
	];
	const shown = columns.slice(0, period === null ? 3 : 4);
	return h(
		"div",
		{ class: "made-of" },
		h("h2", "Failures by type"),
		bar,
		table("Failures by type", shown, rows, { class: "types" }),
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

/** @type {Column[]} */
const COLUMNS = [
	["strategy"],
	["rate", "number", "Failures divided by attempts; – if only failures are reported"],
	["95 % interval", "number wide"],
	["change", "number wide", "Against the period before; – if that is not known"],
	["attempts", "number wide"],
	["failures", "number"],
	...format.typeColumns("number mid"),
	["p50", "number mid", "Latency"],
	["p95", "number", "Latency"],
	["p99", "number mid", "Latency"],
];

/** @type {OverviewPage["strategyTable"]} */
function strategyTable(strategies, { period }) {
	return table(
		"Strategies, the one with the most failures first",
		COLUMNS,
		strategies.map(({ retrieval_strategy: strategy, rates, previous }, rank) => {
			const { attempts, failures, failure_rate: rate, latency_ms: latency } = rates;
			const [low, high] = format.interval(failures, attempts);
			const isCompared =
				period !== null &&
				rate !== null &&
				previous.failure_rate !== null &&
				Math.min(attempts, previous.attempts) >= LEAST_ATTEMPTS;
			const change = isCompared ? rate - (previous.failure_rate ?? 0) : 0;
			const judgement =
				isCompared && isCertain(rates, previous) ? (change > 0 ? "bad" : "good") : "";
			return [
				h(
					"span",
					{ class: "named" },
					rank < charts.MAX_LINES && charts.swatch(rank),
					state.anchor({ strategy }, format.logged(strategy), { title: "Show this strategy only" }),
				),
				format.share(rate),
				rate === null ? "–" : format.between(low, high),
				isCompared ? h("span", { class: `change ${judgement}` }, format.points(change)) : "–",
				format.number(attempts),
				state.anchor({ page: "failures", strategy }, format.number(failures)),
				...rates.types.map(type => format.number(type.failures)),
				format.milliseconds(latency?.p50),
				format.milliseconds(latency?.p95),
				format.milliseconds(latency?.p99),
			];
		}),
	);
}

/** @param {string | undefined} strategy @param {AbortSignal} signal */
async function noAttempts(strategy, signal) {
	const heading = "No attempts in this range";
	if (strategy) {
		return empty(
			heading,
			"The strategy ",
			format.logged(strategy),
			" was not used. ",
			state.anchor({ strategy: null }, "Show all strategies"),
		);
	}
	const stats = await api.get("stats", {}, signal);
	// An empty database is smaller than 200 kB.
	const isUsed = stats.persisted > 0 || stats.database_bytes > 200_000;
	const root = document.baseURI.replace(/[?#].*$/, "").replace(/\/$/, "");
	const example =
		`curl ${root}/v1/attempts -H 'Content-Type: application/json' \\\n` +
		`    -d '{"outcome": "no_hit", "retrieval_strategy": "semantic", "query_text": "where is the key?"}'`;
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
