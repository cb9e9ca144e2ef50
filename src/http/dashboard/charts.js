// Charts, drawn by uPlot. Each has a table with its numbers, because a chart cannot be read aloud.

import { h, table } from "./dom.js";
import * as format from "./format.js";

const { uPlot } = window;
const HEIGHT = 240;
const FONT = "12px system-ui, sans-serif";

/** Returns a colour of style.css. @param {string} name */
function color(name) {
	// Only a property resolves the two colours of `light-dark`.
	const probe = h("i");
	document.body.append(probe);
	probe.style.color = `var(--${name})`;
	const value = getComputedStyle(probe).color;
	probe.remove();
	return value;
}

/** A plot in `place` that follows its width and the colours of the page. */
class Chart {
	/** @type {Plot | null} */
	plot = null;

	/** @param {Element} place @param {(width: number) => PlotOptions} options @param {PlotData} data */
	constructor(place, options, data) {
		this.place = place;
		this.options = options;
		this.data = data;
	}

	/** Draws the plot once `place` is in the page and has a width. */
	draw() {
		shown.add(this);
		resized.observe(this.place);
		this.plot?.destroy();
		const options = this.options(this.place.clientWidth || 600);
		this.plot = new uPlot(options, this.data, /** @type {HTMLElement} */ (this.place));
	}

	/** @param {number} width */
	resize(width) {
		const { plot } = this;
		if (plot && width > 0 && width !== plot.width) plot.setSize({ width, height: plot.height });
	}

	close() {
		shown.delete(this);
		resized.unobserve(this.place);
		this.plot?.destroy();
	}
}

/** @type {Set<Chart>} */
const shown = new Set();
const resized = new ResizeObserver(entries => {
	for (const { target, contentRect } of entries) {
		for (const chart of shown) {
			if (chart.place === target) chart.resize(Math.floor(contentRect.width));
		}
	}
});

/** Draws all charts in the present colours. */
export function recolor() {
	const focused = document.activeElement;
	for (const chart of shown) chart.draw();
	if (focused instanceof HTMLElement) focused.focus({ preventScroll: true });
}

/** @param {PlotAxis} more @returns {PlotAxis} */
function axis(more = {}) {
	const line = { stroke: color("grid"), width: 1 };
	return { stroke: color("muted"), font: FONT, grid: line, ticks: line, ...more };
}

function countAxis() {
	return axis({
		size: 56,
		values: (_, ticks) => ticks.map(tick => (Number.isInteger(tick) ? format.number(tick) : "")),
	});
}

/** @param {PlotAxis} more */
function percentAxis(more) {
	return axis({ values: (_, ticks) => ticks.map(tick => `${tick} %`), ...more });
}

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

/** @param {string} role @param {string} label */
function chartPlace(role, label) {
	const text = `${label}; the numbers are in the table below`;
	return h("div", { class: "chart", role, "aria-label": text });
}

/** Tables stay open over a refresh. */
let areTablesOpen = false;

/** @param {string} caption @param {Column[]} columns @param {Child[][]} rows */
function numbers(caption, columns, rows) {
	const details = h(
		"details",
		{
			class: "numbers",
			open: areTablesOpen,
			ontoggle() {
				areTablesOpen = details.open;
			},
		},
		h("summary", "Numbers as a table"),
		table(caption, columns, rows),
	);
	return details;
}

/** Returns the chart of failures over time. @type {Charts["failuresOverTime"]} */
export function failuresOverTime({ points, step_seconds: step }, zoom) {
	const times = points.map(point => Date.parse(point.at) / 1000);
	// Bars stand behind each other: the hindmost is as high as all types together.
	const stacked = format.TYPES.map((_, index) => {
		const behind = format.TYPES.slice(index);
		return points.map(point => behind.reduce((sum, type) => sum + point[type], 0));
	});
	const rates = points.map(({ failure_rate: rate }) => (rate === null ? null : 100 * rate));
	const paths = uPlot.paths.bars?.({ size: [0.9, 60], align: 1 });
	const place = chartPlace("img", "Failures over time by type, and the failure rate");
	/** @param {number} width @returns {PlotOptions} */
	const options = width => ({
		width,
		height: HEIGHT,
		cursor: { drag: { x: true, y: false, setScale: false } },
		scales: {
			x: { time: true, range: () => [times[0] ?? 0, (times.at(-1) ?? 0) + step] },
			y: { range: countRange },
			"%": { range: (_, __, max) => [0, Math.max(1, Math.min(100, (max ?? 0) * 1.1))] },
		},
		axes: [
			axis({ space: 75, values: (_, at, __, ___, between) => format.ticks(at, between) }),
			countAxis(),
			percentAxis({ scale: "%", side: 1, size: 48, grid: { show: false } }),
		],
		series: [
			{
				label: "time",
				value: (_, seconds) => {
					if (seconds === null) return "–";
					const at = new Date(1000 * seconds);
					return `${at.toLocaleString()} (${at.toISOString().slice(11, 16)} UTC)`;
				},
			},
			...format.TYPES.map(type => ({
				...bars(format.TYPE_NAMES[type], type, paths),
				/** The number of this type, not the height of its bar. @type {PlotSeries["value"]} */
				value: (_, __, ___, index) => (index === null ? "–" : format.number(points[index][type])),
			})),
			{ ...rateLine("text", 1.5), scale: "%" },
		],
		hooks: {
			setSelect: [
				plot => {
					const { left, width: dragged } = plot.select;
					if (dragged < 5) return;
					const [from, to] = [left, left + dragged].map(x => plot.posToVal(x, "x") / step);
					plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
					// A step is the smallest part that has counts.
					zoom(step * Math.floor(from), step * Math.ceil(to));
				},
			],
		},
	});
	const chart = new Chart(place, options, [times, ...stacked, rates]);
	const rows = points
		.filter(point => point.attempts > 0)
		.map(point => [
			format.time(point.at),
			...format.TYPES.map(type => format.number(point[type])),
			format.number(point.attempts),
			format.share(point.failure_rate),
		]);
	const element = h(
		"div",
		place,
		numbers(
			"Failures over time",
			[
				["from"],
				...format.typeColumns("number"),
				["attempts", "number"],
				["failure rate", "number"],
			],
			rows,
		),
	);
	return { element, draw: () => chart.draw(), close: () => chart.close() };
}

/** Returns the charts of the scores of a strategy. @type {Charts["scores"]} */
export function scores(calibration, threshold, moved) {
	const { distribution, curve, confidence_threshold: configured } = calibration;
	const low = distribution[0].from;
	const high = distribution[distribution.length - 1].to;
	// A single score needs some room to be seen.
	const room = high > low ? 0.02 * (high - low) : Math.max(Math.abs(low) * 0.1, 0.05);
	const from = Math.min(low, configured ?? low) - room;
	const to = Math.max(high, configured ?? low) + room;
	const top = chartPlace("group", "Scores of successes and of low-confidence failures");
	const bottom = chartPlace("img", "Failure rate by threshold");
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
		axes: [axis(), countAxis()],
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
		axes: [axis({ label: "score", labelSize: 20, labelFont: FONT }), percentAxis({ size: 56 })],
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
		numbers(
			"Scores and thresholds",
			[
				["score from"],
				["successes", "number"],
				["failures", "number"],
				["failure rate at this threshold", "number"],
			],
			rows,
		),
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
