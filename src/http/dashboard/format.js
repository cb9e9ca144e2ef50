// Formats numbers with their units, times in the zone of the reader, and names.

import { h, svg } from "./dom.js";

/** The names of the types of failures, by their names in the API. */
export const TYPE_NAMES = {
	no_hit: "no hit",
	low_confidence: "low confidence",
	timeout: "timeout",
	error: "error",
};
export const TYPES = /** @type {FailureType[]} */ (Object.keys(TYPE_NAMES));
/** The options of a `select` for a type. */
export const TYPE_OPTIONS = [["", "all types"], ...Object.entries(TYPE_NAMES)];

/** Returns the columns of the types. @param {string} classes @returns {Column[]} */
export function typeColumns(classes) {
	return TYPES.map(type => [TYPE_NAMES[type], classes]);
}

/** The actions that set the status of a group, by the status. */
export const STATUS_ACTIONS = { open: "Reopen", resolved: "Resolve", ignored: "Ignore" };
export const STATUSES = /** @type {QueryStatus[]} */ (Object.keys(STATUS_ACTIONS));

/**
 * The page is in English: numbers and times are, too, so that they are the same for all readers.
 */
const LOCALE = "en-GB";
const whole = new Intl.NumberFormat(LOCALE);
const compact = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });
const rough = new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
/** @type {Intl.DateTimeFormatOptions} */
const DAY = { month: "short", day: "numeric" };
/** @type {Intl.DateTimeFormatOptions} */
const CLOCK = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const day = new Intl.DateTimeFormat(LOCALE, DAY);
const clock = new Intl.DateTimeFormat(LOCALE, CLOCK);
const minute = new Intl.DateTimeFormat(LOCALE, { ...DAY, ...CLOCK });
const short = new Intl.DateTimeFormat(LOCALE, { ...DAY, ...CLOCK, second: "2-digit" });
const long = new Intl.DateTimeFormat(LOCALE, {
	year: "numeric",
	...DAY,
	...CLOCK,
	second: "2-digit",
});

/** @param {Maybe<number>} value */
export function number(value) {
	return value == null ? "–" : whole.format(value);
}

/**
 * Returns a number with its noun, such as "1 failure" or "2 failures".
 * @param {number} count @param {string} noun
 */
export function counted(count, noun) {
	return `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Shortens a large number, such as 1.2M. @param {number} value */
export function compactNumber(value) {
	return value < 10_000 ? whole.format(value) : compact.format(value);
}

/** @param {Maybe<number>} value */
export function score(value) {
	return value == null ? "–" : fine.format(value);
}

/** @param {number} value @param {number} digits */
export function percent(value, digits) {
	const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
	return `${value.toLocaleString(LOCALE, options)} %`;
}

/** Returns a share (0 to 1) in percent. @param {Maybe<number>} value */
export function share(value) {
	if (value == null) return "–";
	return percent(100 * value, value !== 0 && value < 0.01 ? 2 : 1);
}

/** Returns the 95 % interval of a share (Wilson). @type {Format["interval"]} */
export function interval(part, all) {
	if (all === 0) return [0, 1];
	const z2 = 1.96 ** 2;
	const middle = (part + z2 / 2) / (all + z2);
	const half = (1.96 / (all + z2)) * Math.sqrt((part * (all - part)) / all + z2 / 4);
	return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** Returns an interval of shares as text. @param {number} low @param {number} high */
export function between(low, high) {
	return `${rough.format(100 * low)} to ${rough.format(100 * high)} %`;
}

/** Returns a difference of two shares with its sign, such as "+4.3 points". @param {number} by */
export function points(by) {
	const sign = by > 0 ? "+" : by < 0 ? "−" : "±";
	return `${sign}${rough.format(Math.abs(100 * by))} points`;
}

/** @param {Maybe<number>} value */
export function milliseconds(value) {
	if (value == null) return "–";
	if (value >= 10_000) return `${fine.format(value / 1000)} s`;
	return `${value < 10 ? fine.format(value) : whole.format(Math.round(value))} ms`;
}

/** @param {number} value */
export function bytes(value) {
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	const unit = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), 4) : 0;
	return `${fine.format(value / 2 ** (10 * unit))} ${units[unit]}`;
}

/** Shortens a large number; a hover shows all digits. @param {number} value */
export function large(value) {
	return value < 100_000
		? number(value)
		: h("span", { title: number(value) }, compact.format(value));
}

/** Returns the labels of an axis of time. @type {Format["ticks"]} */
export function ticks(seconds, step) {
	let before = "";
	return seconds.map(second => {
		const at = new Date(1000 * second);
		const date = day.format(at);
		const text = step >= 86_400 ? date : clock.format(at) + (date === before ? "" : `\n${date}`);
		before = date;
		return text;
	});
}

/** @param {string} moment @param {string} text */
function timeElement(moment, text) {
	const title = `${new Date(moment).toISOString()} (UTC)`;
	return h("time", { datetime: moment, title }, text);
}

/** @param {string} moment */
export function time(moment, { withYear = false } = {}) {
	return timeElement(moment, (withYear ? long : short).format(new Date(moment)));
}

/** Returns a moment without seconds as text. @param {string} moment */
export function minuteText(moment) {
	return minute.format(new Date(moment));
}

/** Returns the time of day as text. @param {string} moment */
export function clockText(moment) {
	return clock.format(new Date(moment));
}

/** Returns the range of a step as text. @param {number} start @param {number} step */
export function stepText(start, step) {
	const [from, to] = [start, start + step].map(second => new Date(1000 * second));
	if (step % 86_400 === 0) {
		return step === 86_400 ? day.format(from) : `${day.format(from)} to ${day.format(to)}`;
	}
	return `${minute.format(from)} to ${clock.format(to)}`;
}

/** @param {string} moment */
export function ago(moment) {
	const seconds = Math.max(0, (Date.now() - Date.parse(moment)) / 1000);
	return timeElement(moment, `${span(seconds)} ago`);
}

/** Returns a length of time. @param {number} seconds */
export function span(seconds) {
	for (const { unit, length } of [
		{ unit: "d", length: 86_400 },
		{ unit: "h", length: 3600 },
		{ unit: "min", length: 60 },
	]) {
		if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
	}
	return `${Math.floor(seconds)} s`;
}

/** Returns the exact length of a step. @param {number} seconds */
export function stepLength(seconds) {
	for (const { unit, size } of [
		{ unit: "week", size: 604_800 },
		{ unit: "day", size: 86_400 },
		{ unit: "hour", size: 3600 },
		{ unit: "minute", size: 60 },
	]) {
		const count = seconds / size;
		if (Number.isInteger(count)) return `${count} ${unit}${count === 1 ? "" : "s"}`;
	}
	return `${seconds} seconds`;
}

/** Replaces invisible characters by their numbers, such as ⟨U+202E⟩. @param {string} text */
export function visible(text) {
	// Control characters except line feed and tab, marks of the direction of writing, and
	// characters without a width, except those that join letters and emoji.
	return text.replace(
		/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu,
		character => {
			const point = character.codePointAt(0) ?? 0;
			return `⟨U+${point.toString(16).toUpperCase().padStart(4, "0")}⟩`;
		},
	);
}

/** Returns logged text, isolated from the text around it. @type {Format["logged"]} */
export function logged(text, attributes = {}) {
	return h(
		"bdi",
		{ class: "logged", ...attributes },
		text ? visible(text) : h("span", { class: "muted" }, "(empty)"),
	);
}

/**
 * Returns the name of a type. The API may have types that are unknown here.
 * @param {string} type
 */
export function badge(type) {
	const known = TYPES.find(name => name === type);
	return h("span", { class: `badge ${known ?? ""}` }, known ? TYPE_NAMES[known] : type);
}

/** Returns a row of bars. @param {number[]} numbers @param {string} label @returns {Element} */
export function sparkline(numbers, label) {
	// More bars than these would be too narrow to see.
	const each = Math.ceil(numbers.length / 48);
	if (each > 1) {
		const sums = Array.from({ length: Math.ceil(numbers.length / each) }, (_, index) =>
			numbers.slice(index * each, (index + 1) * each).reduce((sum, value) => sum + value, 0),
		);
		return sparkline(sums, label);
	}
	const highest = Math.max(0, ...numbers);
	const width = 96;
	const height = 22;
	const step = width / Math.max(1, numbers.length);
	const bars = numbers.map((value, index) => {
		const tall = value === 0 ? 0 : Math.max(1.5, (height * value) / Math.max(1, highest));
		return svg("rect", {
			x: index * step,
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
			"aria-label": `${label}: ${numbers.length} steps, highest ${number(highest)}, last ${number(numbers.at(-1) ?? 0)}`,
		},
		svg("path", { d: `M0 ${height - 0.5}H${width}`, class: "ground" }),
		...bars,
	);
}
