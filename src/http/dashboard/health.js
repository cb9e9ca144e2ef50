// The health of the service: a mark in the header of each page, and what is known of it.

import * as api from "./api.js";
import { h, replace } from "./dom.js";
import * as format from "./format.js";

const mark = h("button", {
	type: "button",
	popovertarget: "health-facts",
	"aria-label": "Health",
	class: "health",
});
const facts = h("div", { id: "health-facts", popover: "auto" });

/** @param {Element} place */
export function mount(place) {
	place.append(mark, facts);
	show("unknown", "not read yet", []);
}

/** Reads the state of the service. @param {AbortSignal} signal */
export async function load(signal) {
	/** @type {ServiceStats} */
	let stats;
	try {
		stats = await api.get("stats", {}, signal);
	} catch (error) {
		if (!api.isAbort(error)) show("unknown", `unknown: ${api.message(error)}`, []);
		throw error;
	}
	const dropped = Object.entries(stats.dropped).filter(([, records]) => records > 0);
	show(stats.unhealthy ? "bad" : "good", stats.unhealthy ?? "healthy", [
		["last flush", stats.last_flush ? format.ago(stats.last_flush) : "none yet"],
		["buffered", format.number(stats.buffered)],
		["failed flushes", format.number(stats.failed_flushes)],
		[
			"dropped since the start",
			dropped.length === 0
				? "none"
				: dropped
						.map(
							([reason, records]) => `${format.number(records)} (${reason.replaceAll("_", " ")})`,
						)
						.join(", "),
		],
		["database", `${format.bytes(stats.database_bytes)}, without the journal`],
	]);
}

/** @param {"good" | "bad" | "unknown"} kind @param {string} text @param {[string, Child][]} rows */
function show(kind, text, rows) {
	mark.dataset.health = kind;
	const name = kind === "good" ? "healthy" : kind === "bad" ? "unhealthy" : "unknown";
	mark.replaceChildren(h("span", { class: "dot", "aria-hidden": "true" }), name);
	mark.setAttribute("aria-label", `Health: ${text}`);
	mark.title = text;
	replace(
		facts,
		h("h2", `The service is ${text}`),
		rows.length > 0 &&
			h(
				"dl",
				rows.map(([fact, value]) => h("div", h("dt", fact), h("dd", value))),
			),
	);
}
