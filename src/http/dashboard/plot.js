// Shared by all charts: the plot that follows its place, colours, axes, the tooltip, and zooming.

import { h } from "./dom.js";
import * as format from "./format.js";

const { uPlot } = window;
const FONT = "12px system-ui, sans-serif";
/** A shorter movement of the pointer is a click. */
const LEAST_DRAG = 8;
/** The pixels that a step needs at least. */
const STEP_WIDTH = 10;

/** Returns a colour of style.css. @param {string} name */
export function color(name) {
	// Only a property resolves the two colours of `light-dark`.
	const probe = h("i");
	document.body.append(probe);
	probe.style.color = `var(--${name})`;
	const value = getComputedStyle(probe).color;
	probe.remove();
	return value;
}

/** A plot in `place` that follows its width and the colours of the page. */
export class Chart {
	/** @type {Plot | null} */
	plot = null;

	/**
	 * @param {HTMLElement} place
	 * @param {(width: number) => PlotOptions} options @param {PlotData} data
	 */
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
		this.plot = new uPlot(options, this.data, this.place);
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

/** Returns the number of steps that can be told apart in a place. @param {Element} place */
export function stepsIn(place) {
	return Math.max(12, Math.min(200, Math.floor(place.clientWidth / STEP_WIDTH)));
}

/** @param {PlotAxis} more @returns {PlotAxis} */
export function axis(more = {}) {
	const line = { stroke: color("grid"), width: 1 };
	return { stroke: color("muted"), font: FONT, labelFont: FONT, grid: line, ticks: line, ...more };
}

/**
 * Returns an axis of values, as wide as its longest label.
 * @param {(value: number) => string} text
 */
export function valueAxis(text) {
	return axis({
		space: 26,
		values: (_, ticks) => ticks.map(text),
		size: (_, labels) =>
			Math.max(44, 20 + 7 * Math.max(0, ...(labels ?? []).map(one => one.length))),
	});
}

/** @param {number} count */
export function countLabel(count) {
	return Number.isInteger(count) ? format.compactNumber(count) : "";
}

/** @param {string} label @param {string} role */
export function chartPlace(label, role = "img") {
	const text = `${label}; the numbers are in the table below`;
	return h("div", { class: "chart", role, "aria-label": text });
}

/** Tables stay open over a refresh. @type {Set<string>} */
const openTables = new Set();

/** Returns a table of the numbers of a chart. @param {string} caption @param {Child} table */
export function numbers(caption, table) {
	const details = h(
		"details",
		{
			class: "numbers",
			open: openTables.has(caption),
			ontoggle() {
				if (details.open) openTables.add(caption);
				else openTables.delete(caption);
			},
		},
		h("summary", "Numbers as a table"),
		table,
	);
	return details;
}

/** Annotations that all charts over time show. @type {Annotation[]} */
let annotations = [];

/** @param {Annotation[]} list */
export function setAnnotations(list) {
	annotations = list;
}

/** Returns a chart over time. @type {Plots["overTime"]} */
export function overTime(chart) {
	const { label, height, starts, step, isOpen, series, axisText, top, tip, zoom } = chart;
	const first = starts[0] ?? 0;
	const end = (starts.at(-1) ?? 0) + step;
	// A value stands in the middle of its step, so that the nearest one is that of the pointer's.
	const middles = starts.map(start => start + step / 2);
	const place = chartPlace(label);
	const tooltip = h("div", { class: "tip", hidden: true });
	const band = h("div", { class: "band", hidden: true });
	/** @type {Chart[]} */
	let peers = [];

	/** @param {Plot} plot @param {number | null} index */
	const highlight = (plot, index) => {
		const mark = plot.over.querySelector(".band");
		if (!(mark instanceof HTMLElement)) return;
		mark.hidden = index === null;
		if (index === null) return;
		const [left, right] = edges(plot, index, index);
		mark.style.left = `${left}px`;
		mark.style.width = `${right - left}px`;
	};
	/** @param {Plot} plot @param {number} from @param {number} to */
	const edges = (plot, from, to) => [
		plot.valToPos(starts[from], "x"),
		plot.valToPos(starts[to] + step, "x"),
	];
	/** @param {Plot} plot */
	const point = plot => {
		const { left = -1, top: y = 0, idx } = plot.cursor;
		const index = left < 0 || idx == null ? null : idx;
		for (const peer of [{ plot }, ...peers]) if (peer.plot) highlight(peer.plot, index);
		tooltip.hidden = index === null;
		if (index === null) return;
		tooltip.replaceChildren(
			h("strong", format.stepText(starts[index], step)),
			h("div", tip(index)),
			...annotationsIn(starts[index], step),
			...(isOpen && index === starts.length - 1 ? [h("p", "This step is not over yet.")] : []),
		);
		// Beside the pointer, within the chart.
		const { clientWidth: width } = plot.over;
		const { offsetWidth } = tooltip;
		const beside = left > width / 2 ? left - offsetWidth - 16 : left + 16;
		tooltip.style.left = `${Math.max(0, Math.min(width - offsetWidth, beside))}px`;
		tooltip.style.top = `${Math.max(-20, Math.min(y - 20, plot.over.clientHeight - 60))}px`;
	};
	/** @param {Plot} plot */
	const ready = plot => {
		plot.over.append(band, tooltip);
		if (zoom) {
			selectRange(plot, edges, (from, to) => zoom(starts[from], starts[to] + step));
			plot.over.addEventListener("dblclick", () => document.dispatchEvent(new Event("zoom-out")));
		}
	};
	/** @param {number} width @returns {PlotOptions} */
	const options = width => ({
		width,
		height,
		legend: { show: false },
		padding: [10, 18, 0, 0],
		cursor: { drag: { x: false, y: false }, x: false, y: false, points: { show: false } },
		scales: {
			x: { time: true, range: () => [first, end] },
			y: { range: (_, __, highest) => [0, top(highest ?? 0)] },
		},
		axes: [
			chart.hasTimes === false
				? axis({ space: 75, size: 6, values: (_, at) => at.map(() => "") })
				: axis({ space: 75, values: (_, at, __, ___, between) => format.ticks(at, between) }),
			{ ...valueAxis(axisText), ...(chart.width ? { size: chart.width } : {}) },
		],
		series: [{}, ...series.map(one => plotSeries(one))],
		bands: series.flatMap(({ kind }, index) =>
			kind === "low" ? [{ series: [index, index + 1], fill: faint(series[index].color) }] : [],
		),
		hooks: {
			ready: [ready],
			setCursor: [point],
			draw: [plot => drawMarks(plot, first, end), plot => isOpen && hatch(plot, starts, step)],
		},
	});
	const view = new Chart(place, options, [middles, ...series.map(({ values }) => values)]);
	return {
		chart: view,
		element: place,
		/** Shows the step of the pointer in other charts, too. */
		linkTo(others) {
			peers = others.map(other => other.chart);
		},
		draw: () => view.draw(),
		close: () => view.close(),
	};
}

/** @param {ChartSeries} one @returns {PlotSeries} */
function plotSeries({ kind, color: name, dash, values }) {
	const stroke = color(name);
	if (kind === "bars") {
		const paths = uPlot.paths.bars?.({ size: [0.86, 60] });
		return { fill: stroke, stroke, width: 0, paths, points: { show: false } };
	}
	if (kind === "low" || kind === "high") return { width: 0, points: { show: false } };
	// A line needs two values beside each other. Others are points.
	const isAlone = (/** @type {unknown} */ _, /** @type {number} */ at) =>
		values[at] != null && values[at - 1] == null && values[at + 1] == null;
	const alone = values.flatMap((_, at) => (isAlone(_, at) ? [at] : []));
	return {
		stroke,
		width: 2,
		dash,
		points: { show: alone.length > 0, filter: () => alone, size: 6, fill: stroke },
	};
}

/** @param {string} name */
function faint(name) {
	return color(name).replace(/^rgb\((.*)\)$/, "rgba($1, 0.16)");
}

/**
 * Draws lines over the bar of a step that is not over.
 * @param {Plot} plot @param {number[]} starts @param {number} step
 */
function hatch(plot, starts, step) {
	const { ctx, bbox } = plot;
	const left = plot.valToPos(starts[starts.length - 1], "x", true);
	const right = plot.valToPos(starts[starts.length - 1] + step, "x", true);
	const { top, height } = bbox;
	ctx.save();
	ctx.beginPath();
	ctx.rect(left, top, right - left, height);
	ctx.clip();
	ctx.strokeStyle = color("card");
	ctx.lineWidth = 2 * devicePixelRatio;
	ctx.beginPath();
	for (let x = left - height; x < right; x += 6 * devicePixelRatio) {
		ctx.moveTo(x, top + height);
		ctx.lineTo(x + height, top);
	}
	ctx.stroke();
	ctx.restore();
}

/** Draws a line at each annotation. @param {Plot} plot @param {number} first @param {number} end */
function drawMarks(plot, first, end) {
	const { ctx, bbox } = plot;
	const ratio = devicePixelRatio;
	for (const { at } of annotations) {
		const second = Date.parse(at) / 1000;
		if (second < first || second >= end) continue;
		const x = Math.round(plot.valToPos(second, "x", true));
		ctx.save();
		ctx.strokeStyle = ctx.fillStyle = color("accent");
		ctx.lineWidth = 1.5 * ratio;
		ctx.setLineDash([4 * ratio, 3 * ratio]);
		ctx.beginPath();
		ctx.moveTo(x, bbox.top);
		ctx.lineTo(x, bbox.top + bbox.height);
		ctx.stroke();
		ctx.beginPath();
		ctx.moveTo(x - 5 * ratio, bbox.top - 6 * ratio);
		ctx.lineTo(x + 5 * ratio, bbox.top - 6 * ratio);
		ctx.lineTo(x, bbox.top + 2 * ratio);
		ctx.fill();
		ctx.restore();
	}
}

/** @param {number} start @param {number} step */
function annotationsIn(start, step) {
	return annotations
		.filter(({ at }) => {
			const second = Date.parse(at) / 1000;
			return second >= start && second < start + step;
		})
		.slice(0, 5)
		.map(({ at, text, version }) =>
			h(
				"p",
				{ class: "annotation" },
				`▼ ${format.clockText(at)} `,
				format.logged(text),
				version && [" ", format.logged(version)],
			),
		);
}

/**
 * Lets a person drag over a plot, by mouse, pen or finger. A vertical movement of a finger scrolls.
 * @type {Plots["selectRange"]}
 */
function selectRange(plot, edges, chosen) {
	const { over } = plot;
	const area = h("div", { class: "selection", hidden: true });
	over.append(area);
	/** @type {number | null} */
	let began = null;
	/** @param {PointerEvent} event */
	const at = event => event.clientX - over.getBoundingClientRect().left;
	/** @param {number} x */
	const index = x => plot.posToIdx(Math.max(0, Math.min(over.clientWidth - 1, x)));
	const end = () => {
		began = null;
		area.hidden = true;
	};
	over.addEventListener("pointerdown", event => {
		if (event.button !== 0) return;
		began = at(event);
		over.setPointerCapture(event.pointerId);
	});
	over.addEventListener("pointermove", event => {
		if (began === null) return;
		const x = at(event);
		area.hidden = Math.abs(x - began) < LEAST_DRAG;
		const [from, to] = [began, x].map(index).toSorted((one, other) => one - other);
		const [left, right] = edges(plot, from, to);
		area.style.left = `${left}px`;
		area.style.width = `${right - left}px`;
		if (event.pointerType === "touch") {
			plot.setCursor({ left: x, top: event.clientY - over.getBoundingClientRect().top });
		}
	});
	over.addEventListener("pointerup", event => {
		if (began === null) return;
		const x = at(event);
		const [from, to] = [began, x].map(index).toSorted((one, other) => one - other);
		const isDragged = Math.abs(x - began) >= LEAST_DRAG;
		end();
		if (isDragged) chosen(from, to);
	});
	// The browser scrolls.
	over.addEventListener("pointercancel", end);
}
