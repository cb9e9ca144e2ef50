// The charts of a strategy's scores, with a threshold that can be dragged.

import { h, table } from "./dom.js";
import * as format from "./format.js";
import { axis, Chart, chartPlace, color, countLabel, numbers, valueAxis } from "./plot.js";

const { uPlot } = window;
const HEIGHT = 240;

/** @param {string} label @param {string} name @param {PlotSeries["paths"]} paths @returns {PlotSeries} */
function bars(label, name, paths) {
	return {
		label,
		fill: color(name),
		stroke: color(name),
		width: 0,
		paths,
		points: { show: false },
		value: (_, value) => format.number(value),
	};
}

/** @param {string} name @param {number} width @returns {PlotSeries} */
function rateLine(name, width) {
	return {
		label: "failure rate",
		stroke: color(name),
		width,
		points: { show: false },
		value: (_, value) => (value === null ? "–" : format.percent(value, 1)),
	};
}

/** @param {Plot} _ @param {number} __ @param {number} max @returns {[number, number]} */
function countRange(_, __, max) {
	return [0, Math.max(1, max * 1.05)];
}

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
	const low = distribution[0].from;
	const high = distribution[distribution.length - 1].to;
	// A single score needs some room to be seen.
	const room = high > low ? 0.02 * (high - low) : Math.max(Math.abs(low) * 0.1, 0.05);
	const from = Math.min(low, configured ?? low) - room;
	const to = Math.max(high, configured ?? low) + room;
	const top = chartPlace("Scores of successes and of low-confidence failures", "group");
	const bottom = chartPlace("Failure rate by threshold");
	/** Draws the configured threshold. @param {Plot} plot */
	const drawConfigured = plot => {
		if (configured === null) return;
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
		ctx.fillText(
			`configured ${format.score(configured)}`,
			x + (isRight ? -6 : 6) * ratio,
			bbox.top + 14 * ratio,
		);
		ctx.restore();
	};
	/** @param {number} width @param {PlotScale} y */
	const common = (width, y) => ({
		width,
		height: HEIGHT,
		cursor: { drag: { x: false, y: false } },
		/** @type {PlotOptions["hooks"]} */
		hooks: { draw: [drawConfigured], ready: [place], setSize: [place] },
		/** @type {PlotOptions["scales"]} */
		scales: { x: { time: false, range: () => [from, to] }, y },
	});
	/** @param {string} label @returns {PlotSeries} */
	const scoreSeries = label => ({ label, value: (_, value) => format.score(value) });
	/** @param {-1 | 1} align */
	const half = align => uPlot.paths.bars?.({ size: [0.46, 40], align });
	/** @param {number} width @returns {PlotOptions} */
	const histogram = width => ({
		...common(width, { range: countRange }),
		axes: [axis(), { ...valueAxis(countLabel), size: 56 }],
		series: [
			scoreSeries("score"),
			bars("successes", "success", half(-1)),
			bars("low-confidence failures", "low_confidence", half(1)),
		],
	});
	/** @param {number} width @returns {PlotOptions} */
	const rates = width => ({
		...common(width, { range: [0, 100] }),
		height: 170,
		axes: [
			axis({ label: "score", labelSize: 20 }),
			{ ...valueAxis(value => `${value} %`), size: 56 },
		],
		series: [scoreSeries("threshold"), rateLine("error", 2)],
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
	let at = threshold ?? configured ?? (low + high) / 2;
	/** @param {number} value */
	const within = value => Math.min(to, Math.max(from, value));
	function place() {
		placeLine(control, upper);
		placeLine(shadow, lower);
		control.setAttribute("aria-valuenow", String(within(at)));
		control.setAttribute("aria-valuetext", format.score(at));
	}
	/** @param {HTMLElement} line @param {Chart} chart */
	function placeLine(line, { plot }) {
		if (!plot) return;
		if (line.parentElement !== plot.over) plot.over.append(line);
		// A threshold that was typed may be outside of the chart.
		line.style.left = `${plot.valToPos(within(at), "x")}px`;
	}
	/** @param {number} value */
	function move(value) {
		at = within(value);
		place();
		moved(at);
	}
	control.addEventListener("pointerdown", event => {
		control.setPointerCapture(event.pointerId);
		control.focus();
		event.preventDefault();
		event.stopPropagation();
	});
	control.addEventListener("pointermove", event => {
		const { plot } = upper;
		if (!plot || !control.hasPointerCapture(event.pointerId)) return;
		move(plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x"));
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
		else if (steps[event.key]) move(at + (steps[event.key] * (to - from)) / 200);
		else return;
		event.preventDefault();
	});

	// All buckets of a single score have no width: they are one bar.
	/** @param {"successes" | "failures"} name */
	const counts = name => {
		const all = distribution.map(bucket => bucket[name]);
		return high > low ? all : [all.reduce((sum, count) => sum + count, 0)];
	};
	const centers = high > low ? distribution.map(bucket => (bucket.from + bucket.to) / 2) : [low];
	const upper = new Chart(top, histogram, [centers, counts("successes"), counts("failures")]);
	const lower = new Chart(bottom, rates, [
		curve.map(point => point.threshold),
		curve.map(point => 100 * point.failure_rate),
	]);
	const rows = distribution.map((bucket, index) => [
		format.score(bucket.from),
		format.number(bucket.successes),
		format.number(bucket.failures),
		format.share(curve[index]?.failure_rate),
	]);
	const element = h(
		"div",
		top,
		bottom,
		numbers("Scores and thresholds", table("Scores and thresholds", COLUMNS, rows)),
	);
	return {
		element,
		threshold: () => at,
		set(value) {
			at = value;
			place();
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
