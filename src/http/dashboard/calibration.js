// The page of a strategy's scores, with the failure rate of any threshold.

import * as api from "./api.js";
import { debounce, empty, field, h, hint, replace, select } from "./dom.js";
import * as format from "./format.js";
import { scores } from "./scores.js";
import * as state from "./state.js";

/** @type {Mount} */
export function mount(root) {
	const controls = h("div", { class: "filters" });
	const result = h("output", { class: "result", "aria-live": "polite" });
	const place = h("div");
	root.append(h("section", { class: "card" }, controls, result, place));
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
			const names = new Set([strategy, ...strategies.map(other => other.retrieval_strategy)]);
			const chooser = select(
				"strategy",
				"Strategy",
				[...names].map(name => [name, format.visible(name)]),
				strategy,
				chosen => state.set({ strategy: chosen, threshold: null }),
			);
			if (calibration.distribution.length === 0) {
				replace(controls, chooser);
				result.replaceChildren();
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
			replace(controls, chooser, inputs(calibration, shown, signal));
			place.replaceChildren(shown.element);
			shown.draw();
			if (hadFocus) shown.focus();
			showRate(calibration, shown.threshold(), signal);
		},
		/** A refresh would replace the control that a person uses. */
		get isHeld() {
			return controls.contains(document.activeElement);
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
				const rate = read.failure_rate_at_threshold;
				const configured = read.confidence_threshold;
				const isLowerBetter = read.score_direction === "lower_is_better";
				result.replaceChildren(
					h("span", "At ", h("strong", { "data-threshold": at }, format.score(at)), ", "),
					h("strong", { class: "rate", "data-rate": rate }, format.share(rate)),
					` of ${format.number(read.attempts)} attempts would have failed. `,
					h(
						"span",
						{ class: "muted" },
						`Observed: ${format.share(read.failure_rate)}`,
						configured === null ? ". " : `, with the threshold ${format.score(configured)}. `,
						isLowerBetter ? "Lower scores are better." : "Higher scores are better.",
					),
				);
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
