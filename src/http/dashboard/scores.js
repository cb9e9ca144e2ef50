// The charts of a strategy's scores, with a threshold that can be dragged.

import { h, table } from "./dom.js";
import * as format from "./format.js";
import { axis, Chart, chartPlace, color, countLabel, numbers, valueAxis } from "./plot.js";

const { uPlot } = window;
/** The labels of the failure rate. The axis is that of cube roots, so that 1 % and 5 % differ. */
const RATES = [0, 1, 5, 10, 25, 50, 100];
/**
 * What a threshold makes of the scores, by their name in style.css.
 * @type {[name: string, text: string][]}
 */
const FATES = [
	["success", "still succeed"],
	["newly-failing", "would newly fail"],
	["low_confidence", "still fail"],
	["newly-passing", "would newly succeed"],
];

/** @type {Column[]} */
const COLUMNS = [
	["score from"],
	["successes", "number"],
	["failures", "number"],
	["failure rate at this threshold", "number"],
];

/** Returns the charts of the scores of a strategy. @type {ScoreCharts["scores"]} */
export function scores(calibration, threshold, moved) {
	const { distribution, curve, confidence_threshold: configured } = calibration;
	const isLowerBetter = calibration.score_direction === "lower_is_better";
	const low = distribution[0].from;
	const high = distribution[distribution.length - 1].to;
	// A single score needs some room to be seen.
	const room = high > low ? 0.02 * (high - low) : Math.max(Math.abs(low) * 0.1, 0.05);
	const from = Math.min(low, configured ?? low) - room;
	const to = Math.max(high, configured ?? low) + room;
	// All buckets of a single score have no width: they are one bar.
	const bins =
		high > low
			? distribution
			: [
					distribution.reduce((sum, bin) => ({
						...sum,
						successes: sum.successes + bin.successes,
						failures: sum.failures + bin.failures,
					})),
				];
	const centers = bins.map(bin => (bin.from + bin.to) / 2);
	const top = chartPlace("Scores of successes and of low-confidence failures", "group");
	const bottom = chartPlace("Failure rate by threshold");
	/** The threshold; null if there is none yet. */
	let at = threshold ?? configured;

	/**
	 * Returns the bars: the hindmost is as high as all that stand before it.
	 * @returns {PlotData}
	 */
	function bars() {
		const isFailing = centers.map(center => {
			if (at === null) return null;
			return isLowerBetter ? center > at : center < at;
		});
		/** @param {(index: number) => boolean} isShown @param {boolean} isWhole */
		const heights = (isShown, isWhole) =>
			bins.map(({ successes, failures }, index) =>
				isShown(index) ? failures + (isWhole ? successes : 0) : 0,
			);
		return [
			centers,
			heights(index => isFailing[index] !== true, true),
			heights(index => isFailing[index] === true, true),
			// Without a threshold, each attempt is shown as it was.
			heights(index => isFailing[index] !== false, false),
			heights(index => isFailing[index] === false, false),
		];
	}

	/** Draws the configured threshold. @param {Plot} plot */
	const drawConfigured = plot => {
		if (configured === null) return;
		const isNamed = plot === upper.plot;
		const { ctx, bbox } = plot;
		const ratio = devicePixelRatio;
		const x = plot.valToPos(configured, "x", true);
		ctx.save();
		ctx.strokeStyle = ctx.fillStyle = color("muted");
		ctx.lineWidth = 1.5 * ratio;
		ctx.setLineDash([5 * ratio, 4 * ratio]);
		ctx.beginPath();
		ctx.moveTo(x, bbox.top);
		ctx.lineTo(x, bbox.top + bbox.height);
		ctx.stroke();
		ctx.font = `${12 * ratio}px system-ui, sans-serif`;
		const isRight = x > bbox.left + bbox.width / 2;
		ctx.textAlign = isRight ? "right" : "left";
		const text = `configured ${format.score(configured)}`;
		if (isNamed) ctx.fillText(text, x + (isRight ? -6 : 6) * ratio, bbox.top - 6 * ratio);
		ctx.restore();
	};
	/** @param {number} width @param {number} height @param {PlotScale} y */
	const common = (width, height, y) => ({
		width,
		height,
		legend: { show: false },
		/** @type {PlotOptions["padding"]} */
		padding: [20, 18, 0, 0],
		cursor: { drag: { x: false, y: false }, x: false, y: false, points: { show: false } },
		/** @type {PlotOptions["hooks"]} */
		hooks: { draw: [drawConfigured], ready: [place], setSize: [place] },
		/** @type {PlotOptions["scales"]} */
		scales: { x: { time: false, range: () => [from, to] }, y },
	});
	/** @param {number} width @returns {PlotOptions} */
	const histogram = width => ({
		...common(width, 240, { range: (_, __, highest) => [0, Math.max(1, (highest ?? 0) * 1.05)] }),
		axes: [axis(), { ...valueAxis(countLabel), size: 56 }],
		series: [
			{},
			...FATES.map(([name]) => ({
				fill: color(name),
				stroke: color(name),
				width: 0,
				paths: uPlot.paths.bars?.({ size: [0.9, 60] }),
				points: { show: false },
			})),
		],
	});
	const highestRate = Math.max(...curve.map(point => point.failure_rate));
	const shownRates = RATES.filter(rate => rate <= 10 || rate / 100 < highestRate * 1.5);
	/** @param {number} width @returns {PlotOptions} */
	const rates = width => ({
		...common(width, 230, { range: [0, Math.cbrt((shownRates.at(-1) ?? 100) / 100)] }),
		padding: [8, 18, 0, 0],
		axes: [
			axis({ label: "threshold", labelSize: 16, size: 34 }),
			{
				...valueAxis(root => `${Math.round(100 * root ** 3)} %`),
				size: 56,
				splits: () => shownRates.map(rate => Math.cbrt(rate / 100)),
			},
		],
		series: [{}, { stroke: color("error"), width: 2, points: { show: false } }],
	});

	// Each chart has a line at the threshold. The upper line is the control.
	const control = h(
		"div",
		{
			class: "threshold",
			role: "slider",
			tabindex: 0,
			"aria-label": "Threshold",
			"aria-valuemin": from,
			"aria-valuemax": to,
		},
		h("span", { class: "grip" }),
	);
	const shadow = h("div", { class: "threshold shadow", "aria-hidden": "true" });
	/** @param {number} value */
	const within = value => Math.min(to, Math.max(from, value));
	function place() {
		placeLine(control, upper);
		placeLine(shadow, lower);
		if (at === null) return;
		control.setAttribute("aria-valuenow", String(within(at)));
		control.setAttribute("aria-valuetext", format.score(at));
	}
	/** @param {HTMLElement} line @param {Chart} chart */
	function placeLine(line, { plot }) {
		if (!plot) return;
		if (line.parentElement !== plot.over) plot.over.append(line);
		line.hidden = at === null;
		// A threshold that was typed may be outside of the chart.
		if (at !== null) line.style.left = `${plot.valToPos(within(at), "x")}px`;
	}
	function show() {
		upper.data = bars();
		upper.plot?.setData(upper.data);
		place();
	}
	/** @param {number} value */
	function move(value) {
		at = within(value);
		show();
		moved(at);
	}
	/** @param {PointerEvent} event */
	function follow(event) {
		const { plot } = upper;
		if (plot) move(plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x"));
	}
	top.addEventListener("pointerdown", event => {
		const isOnPlot = event.target instanceof Node && upper.plot?.over.contains(event.target);
		if (!isOnPlot || event.button !== 0) return;
		top.setPointerCapture(event.pointerId);
		// The grip is held where it is; elsewhere the threshold comes to the pointer.
		if (!(event.target instanceof Node && control.contains(event.target))) follow(event);
		control.focus();
		event.preventDefault();
	});
	top.addEventListener("pointermove", event => {
		if (top.hasPointerCapture(event.pointerId)) follow(event);
	});
	/** @type {Record<string, number>} */
	const steps = {
		ArrowLeft: -1,
		ArrowDown: -1,
		ArrowRight: 1,
		ArrowUp: 1,
		PageDown: -10,
		PageUp: 10,
	};
	control.addEventListener("keydown", event => {
		if (event.key === "Home") move(low);
		else if (event.key === "End") move(high);
		else if (steps[event.key]) move((at ?? low) + (steps[event.key] * (to - from)) / 200);
		else return;
		event.preventDefault();
	});

	const upper = new Chart(top, histogram, bars());
	const lower = new Chart(bottom, rates, [
		curve.map(point => point.threshold),
		curve.map(point => Math.cbrt(point.failure_rate)),
	]);
	const rows = distribution.map((bucket, index) => [
		format.score(bucket.from),
		format.number(bucket.successes),
		format.number(bucket.failures),
		format.share(curve[index]?.failure_rate),
	]);
	const element = h(
		"div",
		{ class: "charts" },
		h("h3", "Best scores of the attempts"),
		h(
			"p",
			{ class: "legend" },
			FATES.map(([name, text]) =>
				h("span", h("span", { class: `swatch ${name}`, "aria-hidden": "true" }), text),
			),
		),
		top,
		h("h3", "Failure rate at each threshold"),
		bottom,
		numbers("Scores and thresholds", table("Scores and thresholds", COLUMNS, rows)),
	);
	return {
		element,
		threshold: () => at,
		set(value) {
			at = value;
			show();
		},
		focus: () => control.focus(),
		draw() {
			upper.draw();
			lower.draw();
			place();
		},
		close() {
			upper.close();
			lower.close();
		},
	};
}
