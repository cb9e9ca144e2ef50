// Charts, by uPlot. Each has its numbers in a table beside it, for those who cannot see it.

import { h, table } from "./dom.js";
import * as format from "./format.js";

const uPlot = globalThis.uPlot;
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const HEIGHT = 240;

/** All charts that are shown: they follow their width and the colours of the page. */
const shown = new Set();
const resized = new ResizeObserver((entries) => {
	for (const { target, contentRect } of entries) {
		for (const chart of shown)
			if (chart.place === target) chart.resize(Math.floor(contentRect.width));
	}
});

export function recolor() {
	const focused = document.activeElement;
	for (const chart of shown) chart.draw();
	focused.focus({ preventScroll: true });
}

/** A chart in `place`: `options(width)` and `data()` are asked for whenever it is drawn anew. */
class Chart {
	constructor(place, options, data) {
		Object.assign(this, { place, options, data });
		shown.add(this);
		resized.observe(place);
		this.draw();
	}

	draw() {
		this.plot?.destroy();
		this.plot = new uPlot(this.options(this.place.clientWidth || 600), this.data(), this.place);
	}

	resize(width) {
		if (width > 0 && width !== this.plot.width)
			this.plot.setSize({ width, height: this.plot.height });
	}

	close() {
		shown.delete(this);
		resized.unobserve(this.place);
		this.plot.destroy();
	}
}

function axis(more = {}) {
	return {
		stroke: color("--muted"),
		font: "12px system-ui, sans-serif",
		grid: { stroke: color("--grid"), width: 1 },
		ticks: { stroke: color("--grid"), width: 1 },
		...more,
	};
}

/** Whoever reads the tables does so after each refresh. */
let tablesAreOpen = false;

function withTable(caption, columns, rows) {
	const toggled = (event) => (tablesAreOpen = event.target.open);
	return h(
		"details",
		{ class: "numbers", open: tablesAreOpen, ontoggle: toggled },
		h("summary", {}, "The numbers as a table"),
		table(caption, columns, rows),
	);
}

/** Failures over time, stacked by type, with the failure rate. `zoom(from, to)`: what was dragged over. */
export function failuresOverTime(series, zoom) {
	const points = series.points;
	const times = points.map((point) => Date.parse(point.at) / 1000);
	const types = format.TYPES;
	// Bars that stand behind each other: the hindmost is as high as all together.
	const stacked = types.map((_, nth) =>
		points.map((point) => types.slice(nth).reduce((sum, type) => sum + point[type], 0)),
	);
	const rate = points.map((point) =>
		point.failure_rate === null ? null : 100 * point.failure_rate,
	);
	const bars = uPlot.paths.bars({ size: [0.9, 60], align: 1 });
	const step = series.step_seconds;
	const place = h("div", {
		class: "chart",
		role: "img",
		"aria-label":
			"Failures over time by type, and the failure rate; the numbers are in the table below",
	});
	const options = (width) => ({
		width,
		height: HEIGHT,
		cursor: { drag: { x: true, y: false, setScale: false } },
		legend: { live: true },
		scales: {
			x: { time: true, range: () => [times[0] ?? 0, (times.at(-1) ?? 0) + step] },
			y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] },
			"%": { range: (_, __, most) => [0, Math.max(1, Math.min(100, (most ?? 0) * 1.1))] },
		},
		axes: [
			axis({ space: 75, values: (_, ticks, __, ___, step) => format.ticks(ticks, step) }),
			axis({
				size: 56,
				values: (_, ticks) =>
					ticks.map((tick) => (Number.isInteger(tick) ? format.number(tick) : "")),
			}),
			axis({
				scale: "%",
				side: 1,
				size: 48,
				grid: { show: false },
				values: (_, ticks) => ticks.map((tick) => `${tick} %`),
			}),
		],
		series: [
			{
				label: "time",
				value: (_, at) =>
					at === null
						? "–"
						: `${new Date(1000 * at).toLocaleString()} (${new Date(1000 * at).toISOString().slice(11, 16)} UTC)`,
			},
			...types.map((type) => ({
				label: format.TYPE_NAMES[type],
				fill: color(`--${type}`),
				stroke: color(`--${type}`),
				width: 0,
				paths: bars,
				points: { show: false },
				// The number of this type, not the height of its bar.
				value: (_, __, ___, nth) => (nth === null ? "–" : format.number(points[nth][type])),
			})),
			{
				label: "failure rate",
				scale: "%",
				stroke: color("--text"),
				width: 1.5,
				points: { show: false },
				value: (_, value) => (value === null ? "–" : format.percent(value, 1)),
			},
		],
		hooks: {
			setSelect: [
				(plot) => {
					const { left, width: dragged } = plot.select;
					if (dragged < 5) return;
					const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + dragged, "x")];
					plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
					// Whole steps, for nothing smaller is known.
					zoom(step * Math.floor(from / step), step * Math.ceil(to / step));
				},
			],
		},
	});
	const numbers = withTable(
		"Failures over time",
		[
			{ name: "from" },
			...types.map((type) => ({ name: format.TYPE_NAMES[type], numeric: true })),
			{ name: "attempts", numeric: true },
			{ name: "failure rate", numeric: true },
		],
		points
			.filter((point) => point.attempts > 0)
			.map((point) => [
				format.time(point.at),
				...types.map((type) => format.number(point[type])),
				format.number(point.attempts),
				format.share(point.failure_rate),
			]),
	);
	return mounted(h("div", {}, place, numbers), place, options, () => [times, ...stacked, rate]);
}

/** Puts a chart into `place` once that has a width. */
function mounted(element, place, options, data) {
	let chart;
	return {
		element,
		plot: () => chart?.plot,
		draw() {
			chart = new Chart(place, options, data);
		},
		close() {
			chart?.close();
		},
	};
}

/**
 * A strategy's scores, successes beside failures, and below it the failure rate of each threshold;
 * over both a threshold that can be dragged. `moved(threshold)`: where to.
 */
export function scores(calibration, threshold, moved) {
	const { distribution, curve, confidence_threshold: configured } = calibration;
	const low = distribution[0].from,
		high = distribution.at(-1).to;
	// A single score is a line, which is given some room.
	const room = high > low ? 0.02 * (high - low) : Math.max(Math.abs(low) * 0.1, 0.05);
	const reaches = [low, high, configured ?? low];
	const [from, to] = [Math.min(...reaches) - room, Math.max(...reaches) + room];
	const width = (high - low) / distribution.length;
	const bars = uPlot.paths.bars({ size: [0.46, 40], align: 1 });
	const later = uPlot.paths.bars({ size: [0.46, 40], align: -1 });
	const top = h("div", {
		class: "chart",
		role: "group",
		"aria-label":
			"How many successes and low-confidence failures had which score; the numbers are in the table below",
	});
	const bottom = h("div", {
		class: "chart",
		role: "img",
		"aria-label":
			"The failure rate that each threshold would give; the numbers are in the table below",
	});
	const x = { time: false, range: () => [from, to] };
	const marker = (plot) => {
		if (configured === null || configured === undefined) return;
		const { ctx, bbox } = plot,
			at = plot.valToPos(configured, "x", true);
		ctx.save();
		ctx.strokeStyle = ctx.fillStyle = color("--muted");
		ctx.lineWidth = 1.5 * devicePixelRatio;
		ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
		ctx.beginPath();
		ctx.moveTo(at, bbox.top);
		ctx.lineTo(at, bbox.top + bbox.height);
		ctx.stroke();
		ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
		const right = at > bbox.left + bbox.width / 2;
		ctx.textAlign = right ? "right" : "left";
		ctx.fillText(
			`configured ${format.score(configured)}`,
			at + (right ? -6 : 6) * devicePixelRatio,
			bbox.top + 14 * devicePixelRatio,
		);
		ctx.restore();
	};
	const centers = distribution.map((bucket) => (bucket.from + bucket.to) / 2);
	const common = (width) => ({
		width,
		cursor: { drag: { x: false, y: false } },
		hooks: { draw: [marker], ready: [place], setSize: [place] },
	});
	const scoreSeries = { label: "score", value: (_, value) => format.score(value) };
	const histogram = (width) => ({
		...common(width),
		height: HEIGHT,
		scales: { x, y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] } },
		axes: [
			axis(),
			axis({
				size: 56,
				values: (_, ticks) =>
					ticks.map((tick) => (Number.isInteger(tick) ? format.number(tick) : "")),
			}),
		],
		series: [
			scoreSeries,
			{
				label: "successes",
				fill: color("--success"),
				stroke: color("--success"),
				width: 0,
				paths: later,
				points: { show: false },
				value: (_, value) => format.number(value),
			},
			{
				label: "low-confidence failures",
				fill: color("--low_confidence"),
				stroke: color("--low_confidence"),
				width: 0,
				paths: bars,
				points: { show: false },
				value: (_, value) => format.number(value),
			},
		],
	});
	const rates = (width) => ({
		...common(width),
		height: 170,
		scales: { x, y: { range: [0, 100] } },
		axes: [
			axis({ label: "score", labelSize: 20, labelFont: "12px system-ui, sans-serif" }),
			axis({ size: 56, values: (_, ticks) => ticks.map((tick) => `${tick} %`) }),
		],
		series: [
			{ label: "threshold", value: (_, value) => format.score(value) },
			{
				label: "failure rate",
				stroke: color("--error"),
				width: 2,
				points: { show: false },
				value: (_, value) => (value === null ? "–" : format.percent(value, 1)),
			},
		],
	});

	// One line in each chart; the upper one is the control.
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
	const shadow = h("div", { class: "threshold shadow", "aria-hidden": true });
	let at = threshold ?? configured ?? (low + high) / 2;
	function place() {
		for (const [line, chart] of [
			[control, upper],
			[shadow, lower],
		]) {
			const plot = chart.plot();
			if (!plot) continue;
			if (line.parentElement !== plot.over) plot.over.append(line);
			// One that was typed may be out of sight.
			line.style.left = `${plot.valToPos(within(at), "x")}px`;
		}
		control.setAttribute("aria-valuenow", within(at));
		control.setAttribute("aria-valuetext", format.score(at));
	}
	function within(value) {
		return Math.min(to, Math.max(from, value));
	}
	function move(value) {
		at = within(value);
		place();
		moved(at);
	}
	control.addEventListener("pointerdown", (event) => {
		control.setPointerCapture(event.pointerId);
		control.focus();
		event.preventDefault();
		event.stopPropagation();
	});
	control.addEventListener("pointermove", (event) => {
		if (!control.hasPointerCapture(event.pointerId)) return;
		const plot = upper.plot();
		move(plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x"));
	});
	control.addEventListener("keydown", (event) => {
		const steps = {
			ArrowLeft: -1,
			ArrowDown: -1,
			ArrowRight: 1,
			ArrowUp: 1,
			PageDown: -10,
			PageUp: 10,
		}[event.key];
		if (event.key === "Home") move(low);
		else if (event.key === "End") move(high);
		else if (steps) move(at + (steps * (to - from)) / 200);
		else return;
		event.preventDefault();
	});

	const numbers = withTable(
		"Scores and thresholds",
		[
			{ name: "score from" },
			{ name: "successes", numeric: true },
			{ name: "failures", numeric: true },
			{ name: "failure rate at this threshold", numeric: true },
		],
		distribution.map((bucket, nth) => [
			format.score(bucket.from),
			format.number(bucket.successes),
			format.number(bucket.failures),
			format.share(curve[nth]?.failure_rate),
		]),
	);
	const element = h("div", {}, top, bottom, numbers);
	const upper = mounted(element, top, histogram, () => [
		width > 0 ? centers : [low],
		width > 0 ? distribution.map((bucket) => bucket.successes) : [sum(distribution, "successes")],
		width > 0 ? distribution.map((bucket) => bucket.failures) : [sum(distribution, "failures")],
	]);
	const lower = mounted(element, bottom, rates, () => [
		curve.map((point) => point.threshold),
		curve.map((point) => 100 * point.failure_rate),
	]);
	return {
		element,
		threshold: () => at,
		set(value) {
			at = value;
			place();
		},
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

function sum(buckets, name) {
	return buckets.reduce((all, bucket) => all + bucket[name], 0);
}
