// The page around the pages: which one is shown, for which time, and when it is loaded anew.

import * as api from "./api.js";
import * as calibration from "./calibration.js";
import * as charts from "./charts.js";
import { failed, h, renew } from "./dom.js";
import * as failures from "./failures.js";
import * as overview from "./overview.js";
import * as queries from "./queries.js";
import * as state from "./state.js";

const PAGES = { overview, failures, queries, calibration };
const REFRESH_MS = 10_000;

const main = document.getElementById("main");
let page = null,
	name = null,
	loading = null,
	updated = null;
/** Whoever gave no token is asked again when they try again, and not before. */
let refused = false;
/** The address of what is on the page, as far as it was loaded. */
let loaded = null;

/** Shows what the URL says. */
function show() {
	const now = state.get();
	if (now.page !== name) {
		page?.close();
		main.replaceChildren();
		main.classList.remove("stale");
		loaded = null;
		name = now.page;
		main.append(h("h1", { class: "hidden" }, PAGES[name].title));
		page = PAGES[name].mount(main);
	}
	document.title = `${PAGES[name].title} · failure-logger`;
	showNav();
	showRange(now);
	return load();
}

async function load() {
	loading?.abort();
	const mine = (loading = new AbortController());
	const address = state.link({ failure: null, threshold: null });
	refused = false;
	main.setAttribute("aria-busy", "true");
	try {
		await page.load(mine.signal);
		main.querySelector(":scope > .problem")?.remove();
		main.classList.remove("stale");
		updated = new Date();
		loaded = address;
	} catch (error) {
		if (mine.signal.aborted || error.name === "AbortError") return;
		refused = error.status === 401;
		// What was asked for before must not look like the answer to this; and what has been said is not said again.
		main.classList.toggle("stale", loaded !== address);
		const said = main.querySelector(":scope > .problem");
		if (said?.dataset.said !== error.message) {
			said?.remove();
			main.prepend(failed(error, load));
		}
		// Ours: a mistake in this page, which is to be seen.
		if (!error.title) throw error;
	} finally {
		if (loading === mine) main.removeAttribute("aria-busy");
	}
}

/** What nobody looks at is not asked for; what is in somebody's hand is not taken away, and what is under way goes on. */
function refresh() {
	const busy =
		main.hasAttribute("aria-busy") ||
		document.querySelector("dialog[open], main:active") ||
		!getSelection().isCollapsed;
	if (!document.hidden && !busy && !refused && !page.still && !state.get().to) load();
}
setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", () => {
	if (!document.hidden && updated && Date.now() - updated > REFRESH_MS) refresh();
});
document.addEventListener("stop-loading", () => {
	loading?.abort();
	main.querySelectorAll(".progress").forEach((progress) => (progress.textContent = "Stopped."));
});

function showNav() {
	const nav = document.getElementById("pages");
	renew(
		nav,
		state.PAGES.map((of) =>
			h(
				"a",
				{
					href: state.link({ page: of }),
					"aria-current": of === name ? "page" : null,
				},
				PAGES[of].title,
			),
		),
	);
	document.getElementById("brand").href = state.link({ page: "overview" });
}

const PRESETS = [
	["15m", "15 minutes"],
	["1h", "hour"],
	["6h", "6 hours"],
	["24h", "24 hours"],
	["7d", "7 days"],
	["30d", "30 days"],
	["90d", "90 days"],
];

function showRange(now) {
	const absolute = Boolean(now.from || now.to);
	const presets =
		PRESETS.some(([since]) => since === now.since) || absolute
			? PRESETS
			: [...PRESETS, [now.since, now.since]];
	const utc =
		[now.from, now.to]
			.filter(Boolean)
			.map((at) => `${at} (UTC)`)
			.join(" to ") || null;
	const choose = h(
		"select",
		{
			id: "since",
			"aria-label": "Time range",
			title: utc,
			onchange: () => {
				if (choose.value === "absolute") askForRange();
				else state.set({ since: choose.value, from: null, to: null, cursor: null, back: null });
			},
		},
		presets.map(([since, text]) =>
			h("option", { value: since, selected: !absolute && since === now.since }, `last ${text}`),
		),
		h("option", { value: "absolute", selected: absolute }, absolute ? spelled(now) : "from … to …"),
	);
	// Chosen again, it opens again.
	const change =
		absolute &&
		h(
			"button",
			{
				type: "button",
				id: "change-range",
				onclick: askForRange,
				"aria-label": "Change the time range",
			},
			"✎",
		);
	renew(document.getElementById("range"), choose, change || []);
}

function spelled({ from, to }) {
	const text = (at) =>
		Number.isNaN(Date.parse(at))
			? at
			: new Date(at).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
	return `${from ? text(from) : "…"} to ${to ? text(to) : "now"}`;
}

/** A dialog with a form, closed with what was entered or nothing. */
function ask(title, ...content) {
	const dialog = h(
		"dialog",
		{ "aria-labelledby": "ask-title" },
		h(
			"form",
			{ method: "dialog" },
			h("h2", { id: "ask-title" }, title),
			content,
			h(
				"div",
				{ class: "buttons" },
				h("button", { value: "yes", class: "primary" }, "OK"),
				h("button", { value: "no", formnovalidate: true }, "Cancel"),
			),
		),
	);
	document.body.append(dialog);
	dialog.showModal();
	// Whoever goes back leaves it, too.
	const left = () => dialog.close("no");
	addEventListener("popstate", left);
	return new Promise((resolve) => {
		dialog.addEventListener("close", () => {
			removeEventListener("popstate", left);
			dialog.remove();
			resolve(dialog.returnValue === "yes");
		});
	});
}

async function askForRange() {
	const now = state.get();
	const local = (at) =>
		new Date(at - new Date(at).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
	const from = h("input", {
		type: "datetime-local",
		required: true,
		value: local(Date.parse(now.from) || Date.now() - 86_400_000),
	});
	const to = h("input", {
		type: "datetime-local",
		value: Date.parse(now.to) ? local(Date.parse(now.to)) : "",
	});
	const given = await ask(
		"Time range",
		h("label", { class: "field" }, h("span", {}, "From (your time)"), from),
		h("label", { class: "field" }, h("span", {}, "To (empty: now)"), to),
	);
	const moment = (field) => (field.value ? new Date(field.value).toISOString() : null);
	if (given && from.value)
		state.set({ since: null, from: moment(from), to: moment(to), cursor: null, back: null });
	else showRange(now);
}

api.onTokenNeeded(async (wrong) => {
	const token = h("input", {
		type: "password",
		name: "token",
		required: true,
		autocomplete: "off",
		autofocus: true,
		// What the service takes for one.
		pattern: "[\\x21-\\x7e]{16,}",
		title: "At least 16 letters, digits or signs of ASCII, without spaces",
	});
	const given = await ask(
		wrong ? "That token was refused" : "A token is needed",
		h(
			"p",
			{},
			"The service asks for the token for reading. It is kept in the memory of this page only.",
		),
		h("label", { class: "field" }, h("span", {}, "Token"), token),
	);
	return given && token.value.trim();
});

const choices = {};
const THEMES = { system: "◐", light: "☀", dark: "☾" };

function showTheme(theme) {
	document.documentElement.dataset.theme = theme;
	const button = document.getElementById("theme");
	button.textContent = THEMES[theme];
	button.title = `Colours: ${theme} (c)`;
	button.setAttribute("aria-label", `Colours: ${theme}. Change them`);
	charts.recolor();
}

function nextTheme() {
	const themes = Object.keys(THEMES);
	const theme =
		themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
	keep("theme", theme);
	showTheme(theme);
}

/** A choice of the reader's; where it may not be kept, it lasts as long as the page. */
function keep(name, value) {
	choices[name] = value;
	try {
		localStorage.setItem(`failure-logger-${name}`, value);
	} catch {
		// Not allowed.
	}
}

function kept(name) {
	try {
		choices[name] ??= localStorage.getItem(`failure-logger-${name}`);
	} catch {
		// Not allowed.
	}
	return choices[name];
}

const SHORTCUTS = {
	"/": [
		"search the failures",
		() => {
			if (name !== "failures") state.set({ page: "failures" });
			page.search();
		},
	],
	r: ["refresh", () => load()],
	t: [
		"follow failures as they come in, or stop",
		() =>
			state.set({ page: "failures", live: name === "failures" && state.get().live ? null : "1" }),
	],
	c: ["change the colours", nextTheme],
	1: ["overview", () => state.set({ page: "overview" })],
	2: ["failures", () => state.set({ page: "failures" })],
	3: ["queries", () => state.set({ page: "queries" })],
	4: ["calibration", () => state.set({ page: "calibration" })],
	"?": ["show this", showHelp],
};

function showHelp() {
	const dialog = h(
		"dialog",
		{ "aria-labelledby": "help-title", class: "help", onclose: () => dialog.remove() },
		h(
			"form",
			{ method: "dialog" },
			h("h2", { id: "help-title" }, "Keyboard"),
			h(
				"dl",
				{},
				Object.entries(SHORTCUTS).map(([key, [text]]) =>
					h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)),
				),
			),
			h(
				"label",
				{},
				h("input", {
					type: "checkbox",
					checked: kept("keys") !== "off",
					onchange: (event) => keep("keys", event.target.checked ? "on" : "off"),
				}),
				" Use these keys",
			),
			h("div", { class: "buttons" }, h("button", { class: "primary" }, "Close")),
		),
	);
	document.body.append(dialog);
	dialog.showModal();
}

addEventListener("keydown", (event) => {
	if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
		return;
	if (event.target.closest("input, select, textarea")) {
		if (event.key === "Escape") {
			// A search field would be emptied, and its filter would stay.
			event.preventDefault();
			event.target.blur();
		}
		return;
	}
	const [, act] = SHORTCUTS[event.key] ?? [];
	if (!act || (kept("keys") === "off" && event.key !== "?")) return;
	event.preventDefault();
	act();
});

document.getElementById("refresh").addEventListener("click", () => load());
document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help").addEventListener("click", showHelp);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.recolor());

showTheme(kept("theme") in THEMES ? kept("theme") : "system");
state.onChange(show);
show();
