// The page of a strategy's scores, with the failure rate of any threshold.

import * as api from "./api.js";
import { button, debounce, empty, field, h, hint, replace, table } from "./dom.js";
import * as format from "./format.js";
import { scores } from "./scores.js";
import * as state from "./state.js";

/** Failures that are searched for those that another threshold would let through. */
const MOST_FAILURES = 1000;
/** The time budget of a request, and of all requests. */
const WITHIN_MS = 20;
const DEADLINE_MS = 3000;

/** @type {Mount} */
export function mount(root) {
	const controls = h("div", { class: "filters" });
	const result = h("output", { class: "result", "aria-live": "polite" });
	const place = h("div");
	const more = h("div", { class: "stack" });
	root.append(h("section", { class: "card" }, controls, result, place), more);
	// Quietly, because a load would replace the chart while a person drags.
	const saveThreshold = debounce((/** @type {number} */ threshold) => {
		state.set({ threshold: String(threshold) }, { replace: true, quietly: true });
	}, 200);
	/** @type {ThresholdChart | null} */
	let chart = null;
	/** @type {(threshold: number) => void} */
	let showThreshold = () => {};
	/** The threshold of the next request. @type {number | null} */
	let wanted = null;
	let isReading = false;

	function closeChart() {
		chart?.close();
		chart = null;
	}

	return {
		async load(signal) {
			const now = state.get();
			const range = state.range(now);
			const { data: strategies } = await api.get("strategies", { ...range, limit: 1000 }, signal);
			const first = strategies.find(({ rates }) => rates.successes > 0) ?? strategies[0];
			const strategy = now.strategy ?? first?.retrieval_strategy;
			if (!strategy) {
				closeChart();
				controls.replaceChildren();
				result.replaceChildren();
				more.replaceChildren();
				place.replaceChildren(
					empty(
						"No strategy was used in this range",
						"Choose a longer range above, or report attempts with their ",
						h("code", "top_score"),
						" to /v1/attempts.",
					),
				);
				return;
			}
			const parameters = { retrieval_strategy: strategy, ...range };
			const calibration = await api.get("calibration", parameters, signal);
			// The focus goes with the old chart.
			const hadFocus = document.activeElement?.matches("[role=slider]");
			closeChart();
			const heading = h("h2", "Scores of ", format.logged(strategy));
			if (calibration.distribution.length === 0) {
				replace(controls, heading);
				result.replaceChildren();
				more.replaceChildren();
				place.replaceChildren(
					empty(
						`No scores of ${format.visible(strategy)} in this range`,
						"Calibration needs scores: report attempts with their ",
						h("code", "top_score"),
						" to /v1/attempts, or run the retrieval in a monitor.",
					),
				);
				return;
			}
			const given = Number.parseFloat(now.threshold ?? "");
			const threshold = Number.isFinite(given) ? given : calibration.confidence_threshold;
			const shown = scores(calibration, threshold, moved => {
				showRate(calibration, moved, signal);
				saveThreshold(Number(moved.toPrecision(6)));
			});
			chart = shown;
			replace(controls, heading, inputs(calibration, shown, signal));
			place.replaceChildren(shown.element, overlap(calibration));
			shown.draw();
			if (hadFocus) shown.focus();
			const at = shown.threshold();
			if (at === null) {
				more.replaceChildren();
				result.replaceChildren(
					"No threshold is configured, so that no score counts as low. " +
						"Click in the chart or type a threshold to try one.",
				);
			} else showRate(calibration, at, signal);
		},
		/** A refresh would replace the control that a person uses. */
		get isHeld() {
			return controls.contains(document.activeElement) || more.contains(document.activeElement);
		},
		close() {
			saveThreshold.cancel();
			closeChart();
		},
	};

	/** @type {CalibrationPage["inputs"]} */
	function inputs(calibration, shown, signal) {
		/** @param {number} value */
		const move = value => {
			shown.set(value);
			showRate(calibration, value, signal);
			saveThreshold(value);
		};
		const threshold = h("input", {
			type: "number",
			name: "threshold",
			step: "any",
			onchange() {
				if (Number.isFinite(threshold.valueAsNumber)) move(threshold.valueAsNumber);
			},
		});
		showThreshold = value => {
			if (document.activeElement !== threshold)
				threshold.value = String(Number(value.toPrecision(4)));
		};
		const none = hint("The failure rate is higher at every threshold.");
		none.hidden = true;
		none.role = "status";
		/** @param {number} percent */
		const find = async percent => {
			const parameters = {
				retrieval_strategy: calibration.retrieval_strategy,
				...state.range(),
				failure_rate: Math.min(1, Math.max(0, percent / 100)),
			};
			const found = await api.get("calibration", parameters, signal);
			none.hidden = found.threshold_for_failure_rate !== null;
			if (found.threshold_for_failure_rate !== null) move(found.threshold_for_failure_rate);
		};
		const rate = h("input", {
			type: "number",
			name: "rate",
			min: 0,
			max: 100,
			step: "any",
			placeholder: "5",
			onchange() {
				if (Number.isFinite(rate.valueAsNumber)) find(rate.valueAsNumber).catch(showError);
			},
		});
		return [
			field("Threshold", threshold),
			field("Threshold for a failure rate of (%)", rate),
			none,
		];
	}

	/** @type {CalibrationPage["showRate"]} */
	async function showRate(calibration, threshold, signal) {
		// One request runs at a time. The newest threshold is next.
		wanted = threshold;
		showThreshold(threshold);
		if (isReading) return;
		isReading = true;
		try {
			while (wanted !== null) {
				const at = wanted;
				wanted = null;
				const parameters = {
					retrieval_strategy: calibration.retrieval_strategy,
					...state.range(),
					threshold: at,
				};
				const read = await api.get("calibration", parameters, signal);
				result.replaceChildren(effect(read, at));
				replace(more, changes(read, at, signal), settings(read, at));
			}
		} catch (error) {
			showError(error);
		} finally {
			isReading = false;
		}
	}

	/** @param {unknown} error */
	function showError(error) {
		if (api.isAbort(error)) return;
		const prefix = error instanceof api.ApiError ? `${error.title}: ` : "";
		result.textContent = prefix + api.message(error);
	}
}

/** Returns what a threshold does. @type {CalibrationPage["effect"]} */
function effect(read, at) {
	const rate = read.failure_rate_at_threshold;
	const configured = read.confidence_threshold;
	return h(
		"span",
		h("span", "At ", h("strong", { "data-threshold": at }, format.score(at)), ", "),
		h("strong", { class: "rate", "data-rate": rate }, format.share(rate)),
		` of ${format.number(read.attempts)} attempts would have failed. `,
		h(
			"span",
			{ class: "muted" },
			`Observed: ${format.share(read.failure_rate)}`,
			configured === null ? ". " : `, with the threshold ${format.score(configured)}. `,
			read.score_direction === "lower_is_better"
				? "Lower scores are better."
				: "Higher scores are better.",
		),
	);
}

/** Returns the attempts whose outcome a threshold changes. @type {CalibrationPage["changes"]} */
function changes(read, at, signal) {
	const found = read.changes_at_threshold;
	if (!found) return null;
	const { newly_failing: failing, newly_passing: passing } = found;
	const list = h("div");
	const see = async () => {
		list.replaceChildren(hint("Searching…"));
		try {
			list.replaceChildren(passingTable(await passingFailures(read, at, signal)));
		} catch (error) {
			if (!api.isAbort(error)) list.replaceChildren(hint(api.message(error)));
		}
	};
	return h(
		"section",
		{ class: "card" },
		h("h2", "What would change"),
		failing === 0 && passing === 0 && h("p", "No attempt of this range would end otherwise."),
		failing > 0 &&
			h(
				"p",
				h("strong", { "data-value": "newly-failing" }, format.number(failing)),
				failing === 1 ? " success would newly fail. " : " successes would newly fail. ",
				h("span", { class: "muted" }, "Successes are counted without their queries."),
			),
		passing > 0 &&
			h(
				"p",
				h("strong", { "data-value": "newly-passing" }, format.number(passing)),
				passing === 1 ? " failure would newly succeed. " : " failures would newly succeed. ",
				button("See them", see, { name: "see" }),
			),
		list,
	);
}

/**
 * Returns low-confidence failures that would succeed.
 * @type {CalibrationPage["passingFailures"]}
 */
async function passingFailures(read, at, signal) {
	const deadline = performance.now() + DEADLINE_MS;
	const parameters = {
		...state.range(),
		failure_type: "low_confidence",
		retrieval_strategy: read.retrieval_strategy,
		within_ms: WITHIN_MS,
		limit: 200,
	};
	const isLowerBetter = read.score_direction === "lower_is_better";
	/** @type {Failure[]} */
	const passing = [];
	let seen = 0;
	/** @type {FailurePage | undefined} */
	let page;
	do {
		page = await api.get("failures", { ...parameters, cursor: page?.next }, signal);
		seen += page.data.length;
		for (const failure of page.data) {
			const { top_score: score } = failure;
			if (score !== null && (isLowerBetter ? score <= at : score >= at)) passing.push(failure);
		}
	} while (page.next && seen < MOST_FAILURES && performance.now() < deadline);
	return passing;
}

/** @param {Failure[]} failures */
function passingTable(failures) {
	const shown = failures.slice(0, 50);
	return h(
		"div",
		table(
			"Failures that would succeed",
			[["time"], ["score", "number"], ["query", "grow"]],
			shown.map(failure => [
				format.time(failure.created_at),
				format.score(failure.top_score),
				state.anchor(
					{ page: "failures", failure: failure.event_id },
					format.logged(failure.query_text),
					{ class: "query" },
				),
			]),
		),
		failures.length > shown.length &&
			hint(`and ${format.number(failures.length - shown.length)} more`),
	);
}

/** Returns the lines that set a threshold. @type {CalibrationPage["settings"]} */
function settings(read, at) {
	const value = String(Number(at.toPrecision(4)));
	const name = JSON.stringify(read.retrieval_strategy);
	const lines = [
		["Rust", `logger.strategy(${name}).confidence_threshold(${value})`],
		["Python", `logger.strategy(${name}, confidence_threshold=${value})`],
		["JSON", `"retrieval_strategy": ${name}, "confidence_threshold": ${value}`],
		["traces", `[[trace_rules]]\nstrategy = ${name}\nconfidence_threshold = ${value}`],
	];
	const said = h("span", { class: "muted", role: "status" });
	return h(
		"section",
		{ class: "card" },
		h("h2", "Use this threshold"),
		table(
			"Lines that set the threshold",
			[["where"], ["line", "grow"], ["copy", "right"]],
			lines.map(([where, line]) => {
				const copy = async () => {
					try {
						await navigator.clipboard.writeText(line);
						said.textContent = "Copied.";
					} catch {
						// A page without TLS has no clipboard, except on the machine itself.
						said.textContent = "The browser does not allow it: select the text.";
					}
				};
				return [
					where,
					h("code", h("bdi", { class: "whole" }, format.visible(line))),
					button("Copy", copy, { "aria-label": `Copy for ${where}` }),
				];
			}),
			{ class: "settings" },
		),
		said,
	);
}

/**
 * Returns the overlap of the scores of successes and failures, in words.
 * @param {Calibration} calibration
 */
function overlap({ distribution }) {
	const successes = distribution.reduce((sum, bin) => sum + bin.successes, 0);
	const failures = distribution.reduce((sum, bin) => sum + bin.failures, 0);
	if (successes === 0 || failures === 0) {
		return hint(
			failures === 0
				? "No failure of this range has a score: there is nothing to compare successes with."
				: "No success of this range has a score: there is nothing to compare failures with.",
		);
	}
	const shared = distribution.reduce(
		(sum, bin) => sum + Math.min(bin.successes / successes, bin.failures / failures),
		0,
	);
	return hint(
		shared < 0.005
			? "The scores of successes and failures do not overlap: one threshold judged all of them."
			: `The scores of successes and failures overlap by ${format.share(shared)}: ` +
					"the threshold was changed in this range, or senders use different ones.",
	);
}
