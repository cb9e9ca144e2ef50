// Numbers with their units, times in the reader's zone.

import { h, svg } from "./dom.js";

/** The names of the types of failures, by their names in the API. */
export const TYPE_NAMES = {
	no_hit: "no hit",
	low_confidence: "low confidence",
	timeout: "timeout",
	error: "error",
};
export const TYPES = Object.keys(TYPE_NAMES);
/** The types of failures to choose from, as `select` takes them. */
export const TYPE_OPTIONS = [["", "all types"], ...Object.entries(TYPE_NAMES)];

/** What gives a group of queries its status, by the status. */
export const STATUS_ACTIONS = { open: "Reopen", resolved: "Resolve", ignored: "Ignore" };
export const STATUSES = Object.keys(STATUS_ACTIONS);

const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const rough = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const short = new Intl.DateTimeFormat(undefined, {
	month: "short",
	day: "numeric",
	hour: "2-digit",
	minute: "2-digit",
	second: "2-digit",
});

export const number = (value) =>
	value === null || value === undefined ? "–" : whole.format(value);
export const score = (value) => (value === null || value === undefined ? "–" : fine.format(value));
export const percent = (value, digits) =>
	`${value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits })} %`;
export const share = (value) =>
	value === null || value === undefined
		? "–"
		: percent(100 * value, value !== 0 && value < 0.1 ? 2 : 1);
export const milliseconds = (value) => {
	if (value === null || value === undefined) return "–";
	if (value >= 10_000) return `${fine.format(value / 1000)} s`;
	return `${value < 10 ? fine.format(value) : whole.format(Math.round(value))} ms`;
};
export const bytes = (value) => {
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	const at = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), 4) : 0;
	return `${fine.format(value / 2 ** (10 * at))} ${units[at]}`;
};

/** Large numbers shortened; the whole one on hover. */
export function large(value) {
	if (value === null || value === undefined) return "–";
	return value < 100_000
		? number(value)
		: h("span", { title: number(value) }, compact.format(value));
}

/** Where on an axis of time: the time of day, and the date where a day begins. */
export function ticks(moments, step) {
	let before = null;
	return moments.map((moment) => {
		const at = new Date(1000 * moment),
			date = day.format(at);
		const text = step >= 86_400 ? date : clock.format(at) + (date === before ? "" : `\n${date}`);
		before = date;
		return text;
	});
}

/** A moment in the reader's zone, with UTC on hover. */
export function time(text, { withYear = false } = {}) {
	if (!text) return "–";
	const at = new Date(text);
	return h(
		"time",
		{ datetime: text, title: `${at.toISOString()} (UTC)` },
		(withYear ? local : short).format(at),
	);
}

export function ago(text) {
	const seconds = Math.max(0, (Date.now() - new Date(text)) / 1000);
	return h(
		"time",
		{ datetime: text, title: `${new Date(text).toISOString()} (UTC)` },
		`${span(seconds)} ago`,
	);
}

export function span(seconds) {
	const units = [
		["d", 86_400],
		["h", 3600],
		["min", 60],
	];
	const unit = units.find(([, length]) => seconds >= 2 * length);
	return unit ? `${Math.floor(seconds / unit[1])} ${unit[0]}` : `${Math.floor(seconds)} s`;
}

/** What would not be seen, or would turn others around, is shown by its number, as in ⟨U+202E⟩. */
export function visible(text) {
	// Control characters but line feeds and tabs, marks that turn the direction of writing, and what has no width; not
	// what joins letters and emoji.
	return text.replace(
		/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu,
		(character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
	);
}

/** What somebody typed: as text, in its own direction, which ends with it. */
export function typed(text, attributes = {}) {
	return h(
		"bdi",
		{ class: "typed", ...attributes },
		text ? visible(text) : h("span", { class: "muted" }, "(empty)"),
	);
}

export function badge(type) {
	return h(
		"span",
		{ class: `badge ${TYPES.includes(type) ? type : ""}` },
		TYPE_NAMES[type] ?? type,
	);
}

/** How a number changed against the time before; `worse`: which way is bad, "up" or none. */
export function change(now, before, { as = number, worse = "up", points = false } = {}) {
	if (before === null || before === undefined || now === null || now === undefined) {
		return h("span", { class: "change" }, "nothing to compare");
	}
	if (before === 0 && !points) {
		return h(
			"span",
			{ class: `change ${worse === "up" && now > 0 ? "bad" : ""}` },
			now === 0 ? "none before either" : "none before",
		);
	}
	const difference = now - before;
	const sign = difference > 0 ? "▲" : difference < 0 ? "▼" : "=";
	const by = points
		? `${rough.format(Math.abs(100 * difference))} points`
		: now >= 10 * before
			? `× ${fine.format(now / before)}`
			: `${rough.format(Math.abs((100 * difference) / before))} %`;
	const bad = worse === "up" && difference > 0;
	const good = worse === "up" && difference < 0;
	return h(
		"span",
		{ class: `change ${bad ? "bad" : good ? "good" : ""}` },
		`${sign} ${by}`.trim(),
		h("span", { class: "muted" }, ` was ${as(before)}`),
	);
}

/** A row of bars; the numbers themselves are said to those who cannot see them. */
export function sparkline(numbers, label) {
	// So many that each can be seen.
	const together = Math.ceil(numbers.length / 48);
	if (together > 1) {
		const parts = Math.ceil(numbers.length / together);
		const sum = (nth) =>
			numbers.slice(nth * together, (nth + 1) * together).reduce((all, value) => all + value, 0);
		return sparkline(
			Array.from({ length: parts }, (_, nth) => sum(nth)),
			label,
		);
	}
	const most = Math.max(1, ...numbers);
	const width = 96,
		height = 22,
		step = width / Math.max(1, numbers.length);
	const bars = numbers.map((value, nth) => {
		const tall = value === 0 ? 0 : Math.max(1.5, (height * value) / most);
		return svg("rect", {
			x: nth * step,
			y: height - tall,
			width: Math.max(0.5, step - (step > 3 ? 1 : 0)),
			height: tall,
		});
	});
	return svg(
		"svg",
		{
			class: "sparkline",
			viewBox: `0 0 ${width} ${height}`,
			width,
			height,
			role: "img",
			"aria-label": `${label}: ${numbers.length} steps, highest ${whole.format(Math.max(0, ...numbers))}, last ${whole.format(numbers.at(-1) ?? 0)}`,
		},
		svg("path", { d: `M0 ${height - 0.5}H${width}`, class: "ground" }),
		...bars,
	);
}
