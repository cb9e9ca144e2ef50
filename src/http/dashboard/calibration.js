// Which threshold would be right: a strategy's scores, and the failure rate of any threshold.

import * as api from "./api.js";
import * as charts from "./charts.js";
import { calmly, empty, h, renew, select } from "./dom.js";
import * as format from "./format.js";
import * as state from "./state.js";

export const title = "Calibration";

export function mount(root) {
	const controls = h("div", { class: "filters" });
	const answer = h("output", { class: "answer", "aria-live": "polite" });
	const place = h("div", {});
	root.append(h("section", { class: "card" }, controls, answer, place));
	// It is shown already: to load it would take away what is in somebody's hand.
	const remember = calmly(
		(threshold) => state.set({ threshold: String(threshold) }, { replace: true, quietly: true }),
		200,
	);
	let chart,
		showThreshold = () => {},
		asked = null,
		asking = false;

	return {
		async load(signal) {
			const now = state.get();
			const { data: strategies } = await api.get(
				"strategies",
				{ ...state.range(now), limit: 1000 },
				signal,
			);
			const strategy =
				now.strategy ??
				strategies.find((of) => of.rates.successes > 0)?.retrieval_strategy ??
				strategies[0]?.retrieval_strategy;
			if (!strategy) {
				chart?.close();
				chart = null;
				controls.replaceChildren();
				answer.replaceChildren();
				place.replaceChildren(
					empty(
						"No strategy was used in this time",
						h(
							"p",
							{},
							"Choose a longer time above, or report attempts with their ",
							h("code", {}, "top_score"),
							" to /v1/attempts.",
						),
					),
				);
				return;
			}
			const calibration = await api.get(
				"calibration",
				{ retrieval_strategy: strategy, ...state.range(now) },
				signal,
			);
			// With the chart goes what has the focus.
			const held = document.activeElement?.matches("[role=slider]");
			chart?.close();
			chart = null;
			const names = [...new Set([strategy, ...strategies.map((of) => of.retrieval_strategy)])];
			if (calibration.distribution.length === 0) {
				renew(controls, chooser(names, strategy));
				answer.replaceChildren();
				place.replaceChildren(
					empty(
						`No scores of ${format.visible(strategy)} are known in this time`,
						h(
							"p",
							{},
							"Thresholds are judged by the scores of successes and failures: report attempts with their ",
							h("code", {}, "top_score"),
							" to /v1/attempts, or put a monitor around the retrieval.",
						),
					),
				);
				return;
			}
			const given = Number.parseFloat(now.threshold);
			const threshold = Number.isFinite(given) ? given : calibration.confidence_threshold;
			chart = charts.scores(calibration, threshold, (threshold) => {
				tell(calibration, threshold, signal);
				remember(Number(threshold.toPrecision(6)));
			});
			const [fields, update] = inputs(calibration, signal);
			renew(controls, chooser(names, strategy), fields);
			place.replaceChildren(chart.element);
			chart.draw();
			showThreshold = update;
			if (held) place.querySelector("[role=slider]")?.focus();
			tell(calibration, chart.threshold(), signal);
		},
		/** What is being held must not be taken away. */
		get still() {
			return controls.contains(document.activeElement);
		},
		close() {
			remember.cancel();
			chart?.close();
		},
	};

	function chooser(names, strategy) {
		return select(
			"strategy",
			"Strategy",
			names.map((name) => [name, format.visible(name)]),
			strategy,
			(strategy) => state.set({ strategy, threshold: null }),
		);
	}

	/** A threshold that is typed instead of dragged, and one for a failure rate that is wanted. */
	function inputs(calibration, signal) {
		const threshold = h("input", {
			type: "number",
			name: "threshold",
			step: "any",
			onchange: () => {
				if (!Number.isFinite(threshold.valueAsNumber)) return;
				chart.set(threshold.valueAsNumber);
				tell(calibration, chart.threshold(), signal);
				remember(threshold.valueAsNumber);
			},
		});
		const find = async () => {
			const share = Math.min(1, Math.max(0, rate.valueAsNumber / 100));
			const { threshold_for_failure_rate: found } = await api.get(
				"calibration",
				{
					retrieval_strategy: calibration.retrieval_strategy,
					...state.range(),
					failure_rate: share,
				},
				signal,
			);
			none.hidden = found !== null;
			if (found === null) return;
			chart.set(found);
			tell(calibration, found, signal);
			remember(found);
		};
		const rate = h("input", {
			type: "number",
			name: "rate",
			min: 0,
			max: 100,
			step: "any",
			placeholder: "5",
			onchange: () => {
				if (Number.isFinite(rate.valueAsNumber)) find().catch(unanswered);
			},
		});
		const none = h(
			"p",
			{ class: "hint", hidden: true, role: "status" },
			"More than that fail at any threshold.",
		);
		return [
			[
				h("label", { class: "field" }, h("span", {}, "Threshold"), threshold),
				h("label", { class: "field" }, h("span", {}, "Find one for a failure rate of (%)"), rate),
				none,
			],
			(value) => {
				if (document.activeElement !== threshold) threshold.value = Number(value.toPrecision(4));
			},
		];
	}

	/** Tells the failure rate at a threshold: one request at a time, and the last one counts. */
	async function tell(calibration, threshold, signal) {
		asked = threshold;
		showThreshold(threshold);
		if (asking) return;
		asking = true;
		try {
			while (asked !== null) {
				const at = asked;
				asked = null;
				const {
					failure_rate_at_threshold: rate,
					attempts,
					failure_rate: observed,
					confidence_threshold: configured,
					score_direction,
				} = await api.get(
					"calibration",
					{ retrieval_strategy: calibration.retrieval_strategy, ...state.range(), threshold: at },
					signal,
				);
				answer.replaceChildren(
					h("span", {}, "At ", h("strong", { "data-threshold": at }, format.score(at)), " "),
					h("strong", { class: "rate", "data-rate": rate }, format.share(rate)),
					` of ${format.number(attempts)} attempts would have failed. `,
					h(
						"span",
						{ class: "muted" },
						`${format.share(observed)} did`,
						configured === null ? ". " : `, with ${format.score(configured)} configured. `,
						score_direction === "lower_is_better"
							? "Lower scores are better."
							: "Higher scores are better.",
					),
				);
			}
		} catch (error) {
			unanswered(error);
		} finally {
			asking = false;
		}
	}

	function unanswered(error) {
		if (error.name !== "AbortError") answer.textContent = `${error.title}: ${error.message}`;
	}
}
