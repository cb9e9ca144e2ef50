// The page of one group of failing queries: its texts, its trend, its scores and its failures.

import * as api from "./api.js";
import { button, empty, h, hint, replace, table } from "./dom.js";
import * as format from "./format.js";
import * as plot from "./plot.js";
import * as state from "./state.js";

/** Failures from which the page computes texts, scores and conversations. */
const MOST_FAILURES = 200;
/** The time budget of a request, and of all requests. */
const WITHIN_MS = 20;
const DEADLINE_MS = 4000;
/** Groups among which the group is searched for. */
const MOST_GROUPS = 1000;
const SCORE_BARS = 24;

/** @param {Element} root @param {string} id @returns {Page} */
export function mount(root, id) {
	const head = h("section", { class: "card" });
	const body = h("div", { class: "stack" });
	const progress = h("div", { class: "progress" });
	root.append(head, progress, body);
	/** @type {plot.Chart[]} */
	const charts = [];
	let isComplete = false;
	/** @type {QueryGroup | undefined} */
	let shown;
	let reload = async () => {};

	/** @param {AbortSignal} signal */
	async function load(signal) {
		const now = state.get();
		reload = () => load(signal);
		const range = state.range(now);
		const filter = { failure_type: now.type, retrieval_strategy: now.strategy };
		const [ranking, found] = await Promise.all([
			api.poll("queries", { ...range, ...filter, limit: MOST_GROUPS }, signal, ms => {
				progress.textContent = `Grouping the failing queries… ${(ms / 1000).toFixed(1)} s`;
			}),
			failuresOf(id, { ...range, ...filter }, signal),
		]);
		progress.textContent = "";
		isComplete = true;
		shown = ranking.data.find(one => one.id === id);
		for (const chart of charts.splice(0)) chart.close();
		replace(head, heading(shown, found.failures[0]));
		if (!shown && found.failures.length === 0) {
			replace(
				body,
				empty("No failure of this group in this range", "Choose a longer range above, or ", back()),
			);
			return;
		}
		replace(body, content(shown, ranking, found));
		for (const chart of charts) chart.draw();
	}

	/** @param {QueryGroup | undefined} group @param {Failure | undefined} newest */
	function heading(group, newest) {
		const example = group?.example ?? newest?.query_text;
		return [
			h("p", back()),
			example !== undefined &&
				h("h2", { class: "query-title" }, format.logged(example, { class: "logged whole" })),
			group &&
				h(
					"div",
					{ class: "actions" },
					h("span", { class: `name ${group.status}` }, group.reopened ? "reopened" : group.status),
					format.STATUSES.filter(status => status !== group.status).map(status =>
						button(format.STATUS_ACTIONS[status], () => set(status), { "data-status": status }),
					),
				),
		];
	}

	function back() {
		return state.anchor({ group: null }, "‹ all groups");
	}

	/** @param {QueryStatus} status */
	async function set(status) {
		try {
			await api.put("queries/status", { id, status });
			await reload();
		} catch (error) {
			if (!api.isAbort(error))
				progress.textContent = `Cannot set the status: ${api.message(error)}`;
		}
	}

	/** @type {GroupPage["content"]} */
	function content(group, ranking, { failures, isWhole }) {
		const conversations = new Set(failures.map(one => one.conversation_id).filter(Boolean));
		const sample = isWhole
			? `all ${format.number(failures.length)} failures`
			: `the newest ${format.number(failures.length)} failures that were found`;
		return [
			h(
				"section",
				{ class: "card facts" },
				group && fact("failures", format.number(group.count), ranking.partial && "at least"),
				group && fact("texts", format.number(group.texts)),
				fact("conversations", format.number(conversations.size), !isWhole && "at least"),
				group && fact("first failed", format.time(group.first_seen)),
				group && fact("last failed", format.time(group.last_seen)),
				group && fact("best score", format.score(group.best_score)),
			),
			group &&
				h(
					"section",
					{ class: "card" },
					h("h2", "Trend"),
					trend(group, ranking),
					h(
						"div",
						{ class: "columns" },
						table(
							"Failures by type",
							[["type"], ["failures", "number"]],
							format.TYPES.filter(type => group.types[type] > 0).map(type => [
								format.badge(type),
								format.number(group.types[type]),
							]),
						),
						table(
							"Failures by strategy",
							[["strategy"], ["failures", "number"]],
							group.strategies.map(one => [
								format.logged(one.retrieval_strategy),
								format.number(one.failures),
							]),
						),
					),
				),
			h(
				"section",
				{ class: "card" },
				h("h2", "Texts"),
				hint(`From ${sample}.`),
				table(
					"Texts of the group",
					[
						["text", "grow"],
						["failures", "number"],
					],
					texts(failures),
				),
			),
			scores(failures, sample),
			h(
				"section",
				{ class: "card" },
				h("h2", "Failures"),
				table(
					"Failures of the group",
					[
						["time"],
						["type"],
						["strategy", "wide"],
						["score / threshold", "number wide"],
						["query", "grow"],
					],
					failures
						.slice(0, 20)
						.map(one => [
							format.time(one.created_at),
							format.badge(one.failure_type),
							format.logged(one.retrieval_strategy),
							`${format.score(one.top_score)} / ${format.score(one.confidence_threshold)}`,
							state.anchor(
								{ page: "failures", group: id, failure: one.event_id },
								format.logged(one.query_text),
								{ class: "query" },
							),
						]),
				),
				h(
					"p",
					state.anchor({ page: "failures", group: id }, "All failures of this group", {
						class: "button",
					}),
				),
			),
		];
	}

	/** @type {GroupPage["trend"]} */
	function trend(group, { scanned }) {
		const to = state.get().to;
		const [from, end] = [Date.parse(scanned.range.from), to ? Date.parse(to) : Date.now()];
		const step = Math.max(1, (end - from) / 1000 / group.trend.length);
		const starts = group.trend.map((_, index) => from / 1000 + index * step);
		const view = plot.overTime({
			label: "Failures of the group over time",
			height: 150,
			starts,
			step,
			isOpen: false,
			series: [{ kind: "bars", color: "accent", values: group.trend }],
			axisText: plot.countLabel,
			top: highest => Math.max(1, highest * 1.05),
			tip: index => [h("p", `${format.number(group.trend[index])} failures`)],
			zoom: state.zoom,
		});
		charts.push(view.chart);
		return view.element;
	}

	/** Returns the scores of failures beside their thresholds. @type {GroupPage["scores"]} */
	function scores(failures, sample) {
		const measured = failures.flatMap(one => (one.top_score === null ? [] : [one.top_score]));
		if (measured.length === 0) return null;
		const thresholds = [...new Set(failures.flatMap(one => one.confidence_threshold ?? []))];
		const all = [...measured, ...thresholds];
		const [low, high] = [Math.min(...all), Math.max(...all)];
		const width = (high - low || 0.1) / SCORE_BARS;
		const counts = Array.from({ length: SCORE_BARS + 1 }, () => 0);
		for (const score of measured) counts[Math.floor((score - low) / width)]++;
		const highest = Math.max(...counts);
		const bars = h(
			"div",
			{ class: "score-bars", role: "img", "aria-label": `Scores of ${sample}` },
			counts.map((count, index) =>
				h("span", {
					title: `${format.score(low + index * width)}: ${format.number(count)}`,
					"data-height": (100 * count) / highest,
				}),
			),
			thresholds.map(threshold =>
				h("i", {
					title: `threshold ${format.score(threshold)}`,
					"data-left": (100 * (threshold - low)) / (width * (SCORE_BARS + 1)),
				}),
			),
		);
		// The policy allows no style attribute; a property is allowed.
		for (const part of bars.children) {
			if (!(part instanceof HTMLElement)) continue;
			if (part.dataset.height) part.style.height = `${part.dataset.height}%`;
			if (part.dataset.left) part.style.left = `${part.dataset.left}%`;
		}
		const below = failures.filter(
			one => one.top_score !== null && one.confidence_threshold !== null,
		);
		return h(
			"section",
			{ class: "card" },
			h("h2", "Scores"),
			bars,
			h("div", { class: "ends" }, h("span", format.score(low)), h("span", format.score(high))),
			hint(
				`From ${sample}: ${format.number(measured.length)} have a score. `,
				thresholds.length > 0 &&
					`The lines are the thresholds ${thresholds
						.toSorted((a, b) => a - b)
						.map(format.score)
						.join(", ")}. `,
				below.length > 0 && nearest(below),
			),
		);
	}

	return {
		load,
		get isHeld() {
			return isComplete && shown === undefined;
		},
		keys: {
			e: ["resolve the group", () => set("resolved")],
			i: ["ignore the group", () => set("ignored")],
			o: ["reopen the group", () => set("open")],
			u: ["back to all groups", () => state.set({ group: null })],
		},
		close() {
			for (const chart of charts.splice(0)) chart.close();
			for (const part of [head, progress, body]) part.remove();
		},
	};
}

/** @param {string} name @param {Child} value @param {Child} [prefix] */
function fact(name, value, prefix) {
	return h(
		"div",
		h("div", { class: "muted small" }, name),
		h("div", prefix && `${prefix} `, value),
	);
}

/**
 * Returns the distance of the score that missed its threshold by least.
 * @param {Failure[]} failures
 */
function nearest(failures) {
	const least = Math.min(
		...failures.map(one => Math.abs((one.top_score ?? 0) - (one.confidence_threshold ?? 0))),
	);
	return `The nearest score misses its threshold by ${format.score(least)}.`;
}

/**
 * Returns the different texts, the most frequent first.
 * @param {Failure[]} failures @returns {Child[][]}
 */
function texts(failures) {
	/** @type {Map<string, number>} */
	const counts = new Map();
	for (const { query_text: text } of failures) counts.set(text, (counts.get(text) ?? 0) + 1);
	return [...counts]
		.toSorted(([, one], [, other]) => other - one)
		.slice(0, 25)
		.map(([text, count]) => [format.logged(text), format.number(count)]);
}

/** Reads the newest failures of a group. @type {GroupPage["failuresOf"]} */
async function failuresOf(id, filter, signal) {
	const deadline = performance.now() + DEADLINE_MS;
	/** @type {Failure[]} */
	let failures = [];
	/** @type {FailurePage | undefined} */
	let page;
	do {
		const limit = MOST_FAILURES - failures.length;
		/** @type {Params} */
		const parameters = { ...filter, query_group: id, within_ms: WITHIN_MS, limit };
		try {
			page = await api.get("failures", { ...parameters, cursor: page?.next }, signal);
		} catch (error) {
			// No failure is in this group any more.
			if (error instanceof api.ApiError && [400, 404].includes(error.status)) break;
			throw error;
		}
		failures = [...failures, ...page.data];
	} while (page.next && failures.length < MOST_FAILURES && performance.now() < deadline);
	return { failures, isWhole: !page?.next };
}
