// The frame of the pages: navigation, time range, refresh, keys and the token.

import * as api from "./api.js";
import { areKeysOn, choice, saveChoice } from "./choices.js";
import { button, byId, failed, field, h, replace } from "./dom.js";
import * as format from "./format.js";
import * as health from "./health.js";
import * as plot from "./plot.js";
import * as state from "./state.js";

/**
 * The pages. A page is loaded when it is first shown.
 * @type {Record<PageName, { title: string; module: () => Promise<{ mount: Mount }> }>}
 */
const PAGES = {
	overview: { title: "Overview", module: () => import("./overview.js") },
	failures: { title: "Failures", module: () => import("./failures.js") },
	queries: { title: "Queries", module: () => import("./queries.js") },
	calibration: { title: "Calibration", module: () => import("./calibration.js") },
};
const REFRESH_MS = 10_000;

const main = byId("main");
/** @type {Page | null} */
let page = null;
/** @type {PageName | null} */
let pageName = null;
/** @type {AbortController | null} */
let loading = null;
let loadedAt = 0;
/** `true` until a page with a search field is shown. */
let isSearchWanted = false;
/** The URL of the content that is shown. @type {string | null} */
let loadedUrl = null;
/** `true` if a person gave no token: the timer then does not ask for it. */
let isTokenMissing = false;

/** Shows the page of the URL. */
async function show() {
	const now = state.get();
	document.title = `${PAGES[now.page].title} · failure-logger`;
	showNav(now.page);
	showRange(now);
	showStrategies(now);
	if (now.page !== pageName) {
		loading?.abort();
		page?.close();
		page = null;
		main.replaceChildren(h("h1", { class: "hidden" }, PAGES[now.page].title));
		main.classList.remove("stale");
		main.setAttribute("aria-busy", "true");
		loadedUrl = null;
		pageName = now.page;
		let module;
		try {
			module = await PAGES[now.page].module();
		} catch (error) {
			// A module that cannot be fetched stays so in the browser: a reload fetches it.
			main.removeAttribute("aria-busy");
			main.append(failed(error, () => location.reload()));
			return;
		}
		// Another page may have been opened meanwhile.
		if (pageName !== now.page || page) return;
		page = module.mount(main);
		if (isSearchWanted) page.search?.();
		isSearchWanted = false;
	}
	await load();
}

async function load() {
	loading?.abort();
	const mine = (loading = new AbortController());
	const url = state.link({ failure: null, threshold: null });
	isTokenMissing = false;
	main.setAttribute("aria-busy", "true");
	try {
		await Promise.all([page?.load(mine.signal), health.load(mine.signal)]);
		main.querySelector(":scope > .problem")?.remove();
		main.classList.remove("stale");
		loadedAt = Date.now();
		loadedUrl = url;
	} catch (error) {
		if (mine.signal.aborted || api.isAbort(error)) return;
		// The content of another URL must not look like the result of this one.
		main.classList.toggle("stale", loadedUrl !== url);
		// A screen reader reads a new message aloud, so that the same one stays.
		const shown = main.querySelector(":scope > .problem");
		if (shown?.getAttribute("data-message") !== api.message(error)) {
			shown?.remove();
			main.prepend(failed(error, load));
		}
		// A fault of this page belongs in the console.
		if (!(error instanceof api.ApiError)) throw error;
		isTokenMissing = error.status === 401;
	} finally {
		if (loading === mine) main.removeAttribute("aria-busy");
	}
}

/** Reloads the page unless it is hidden, held, or used by a person at the moment. */
function refresh() {
	const isBusy =
		main.hasAttribute("aria-busy") ||
		document.querySelector("dialog[open], main:active") ||
		!getSelection()?.isCollapsed;
	if (document.hidden || isBusy || isTokenMissing || page?.isHeld || state.get().to) return;
	load();
}
setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", () => {
	if (!document.hidden && loadedAt && Date.now() - loadedAt > REFRESH_MS) refresh();
});
document.addEventListener("stop-loading", () => {
	loading?.abort();
	for (const progress of main.querySelectorAll(".progress")) progress.textContent = "Stopped.";
});

/** @param {PageName} current */
function showNav(current) {
	replace(
		byId("pages"),
		state.PAGES.map(name =>
			state.anchor({ page: name }, PAGES[name].title, {
				"aria-current": name === current ? "page" : null,
			}),
		),
	);
	byId("brand").setAttribute("href", state.link({ page: "overview" }));
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

/** @param {State} now */
function showRange(now) {
	const { since = "" } = now;
	const isAbsolute = Boolean(now.from || now.to);
	const isPreset = PRESETS.some(([preset]) => preset === since);
	const presets = isPreset || isAbsolute ? PRESETS : [...PRESETS, [since, since]];
	const utc = [now.from, now.to].filter(Boolean).map(at => `${at} (UTC)`);
	const list = h(
		"select",
		{
			id: "since",
			"aria-label": "Time range",
			title: utc.join(" to ") || null,
			onchange: () => {
				if (list.value === "absolute") askForRange();
				else state.set({ since: list.value, from: null, to: null, cursor: null, back: null });
			},
		},
		presets.map(([preset, text]) =>
			h("option", { value: preset, selected: !isAbsolute && preset === since }, `last ${text}`),
		),
		h(
			"option",
			{ value: "absolute", selected: isAbsolute },
			isAbsolute ? rangeText(now) : "from … to …",
		),
	);
	// A list does not change if the chosen option is chosen once more.
	const change =
		isAbsolute &&
		button("✎", askForRange, { id: "change-range", "aria-label": "Change the time range" });
	const whole =
		now.whole &&
		button("⤢ Zoom out", zoomOut, { id: "zoom-out", title: "Show the range before (0)" });
	replace(byId("range"), list, change, whole);
}

function zoomOut() {
	if (state.get().whole) state.set(state.zoomedOut());
}
document.addEventListener("zoom-out", zoomOut);

/** The strategies of the range, and the range for which they were read. */
let strategies = { range: "", names: /** @type {string[]} */ ([]) };

/** @param {State} now */
function showStrategies(now) {
	const names = new Set(strategies.names);
	if (now.strategy) names.add(now.strategy);
	const all = now.page === "calibration" ? "first strategy" : "all strategies";
	const list = h(
		"select",
		{
			id: "strategy",
			"aria-label": "Strategy",
			onchange() {
				state.set({ strategy: list.value || null, cursor: null, back: null, threshold: null });
			},
		},
		[["", all], ...[...names].map(name => [name, format.visible(name)])].map(([value, text]) =>
			h("option", { value, selected: value === (now.strategy ?? "") }, text),
		),
	);
	list.classList.toggle("chosen", Boolean(now.strategy));
	replace(byId("strategies"), list);
	readStrategies(now);
}

/** Reads the strategies once for each range. @param {State} now */
async function readStrategies(now) {
	const range = JSON.stringify(state.range(now));
	if (strategies.range === range) return;
	strategies = { ...strategies, range };
	try {
		const { data } = await api.get("strategies", { ...state.range(now), limit: 1000 });
		strategies = { range, names: data.map(({ retrieval_strategy }) => retrieval_strategy) };
		showStrategies(state.get());
	} catch {
		// The page shows the error of its own request.
		strategies = { ...strategies, range: "" };
	}
}

/** @param {State} range */
function rangeText({ from, to }) {
	/** @param {string} at */
	const text = at => (Number.isNaN(Date.parse(at)) ? at : format.minuteText(at));
	return `${from ? text(from) : "…"} to ${to ? text(to) : "now"}`;
}

/**
 * Shows a form. Returns `true` if a person confirmed it.
 * @param {string} title @param {Child[]} content @returns {Promise<boolean>}
 */
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
	// A step back in the history closes the form, too.
	const cancel = () => dialog.close("no");
	addEventListener("popstate", cancel);
	return new Promise(resolve => {
		dialog.addEventListener("close", () => {
			removeEventListener("popstate", cancel);
			dialog.remove();
			resolve(dialog.returnValue === "yes");
		});
	});
}

async function askForRange() {
	const now = state.get();
	const [begin, end] = [now.from, now.to].map(at => Date.parse(at ?? ""));
	/** @param {number} at */
	const local = at =>
		new Date(at - new Date(at).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
	const from = h("input", {
		type: "datetime-local",
		required: true,
		value: local(begin || Date.now() - 86_400_000),
	});
	const to = h("input", { type: "datetime-local", value: end ? local(end) : "" });
	const isConfirmed = await ask(
		"Time range",
		field("From (your time)", from),
		field("To (empty: now)", to),
	);
	/** @param {HTMLInputElement} field */
	const moment = ({ value }) => (value ? new Date(value).toISOString() : null);
	if (isConfirmed && from.value)
		state.set({ since: null, from: moment(from), to: moment(to), cursor: null, back: null });
	else showRange(now);
}

api.onTokenNeeded(async wasRejected => {
	const token = h("input", {
		type: "password",
		name: "token",
		required: true,
		autocomplete: "off",
		autofocus: true,
		// The tokens that the service allows.
		pattern: "[\\x21-\\x7e]{16,}",
		title: "At least 16 visible ASCII characters",
	});
	const isKept = h("input", { type: "checkbox", name: "keep" });
	const isConfirmed = await ask(
		wasRejected ? "The token was rejected" : "A token is required",
		h("p", "Enter a token with the scope read. A reload forgets it."),
		field("Token", token),
		h("label", isKept, " Keep it until this tab is closed"),
	);
	return isConfirmed ? { token: token.value.trim(), isKept: isKept.checked } : null;
});

/** The themes, and the text of their button. */
const THEMES = [
	["system", "◐"],
	["light", "☀"],
	["dark", "☾"],
];

/** Returns the index of the chosen theme. */
function theme() {
	const saved = choice("theme");
	return Math.max(
		0,
		THEMES.findIndex(([name]) => name === saved),
	);
}

function showTheme() {
	const [name, text] = THEMES[theme()];
	document.documentElement.dataset.theme = name;
	const control = byId("theme");
	control.textContent = text;
	control.title = `Colours: ${name} (c)`;
	control.setAttribute("aria-label", `Colours: ${name}. Change them`);
	plot.recolor();
}

function nextTheme() {
	const [name] = THEMES[(theme() + 1) % THEMES.length];
	saveChoice("theme", name);
	showTheme();
}

/** @type {Record<string, [text: string, act: () => void]>} */
const SHORTCUTS = {
	"/": [
		"search the failures or the queries",
		() => {
			if (page?.search) page.search();
			else {
				isSearchWanted = true;
				state.set({ page: "failures" });
			}
		},
	],
	r: ["refresh", load],
	0: ["zoom out", zoomOut],
	t: [
		"follow new failures, or stop",
		() => {
			const isLive = pageName === "failures" && state.get().live;
			state.set({ page: "failures", live: isLive ? null : "1" });
		},
	],
	c: ["change the colours", nextTheme],
	1: ["overview", () => state.set({ page: "overview" })],
	2: ["failures", () => state.set({ page: "failures" })],
	3: ["queries", () => state.set({ page: "queries" })],
	4: ["calibration", () => state.set({ page: "calibration" })],
	"?": ["show these keys", showHelp],
};

function showHelp() {
	const isEnabled = h("input", {
		type: "checkbox",
		checked: areKeysOn(),
		onchange() {
			saveChoice("keys", isEnabled.checked ? "on" : "off");
		},
	});
	const dialog = h(
		"dialog",
		{
			"aria-labelledby": "help-title",
			class: "help",
			onclose() {
				dialog.remove();
			},
		},
		h(
			"form",
			{ method: "dialog" },
			h("h2", { id: "help-title" }, "Keyboard"),
			h(
				"dl",
				Object.entries({ ...SHORTCUTS, ...page?.keys }).map(([key, [text]]) =>
					h("div", h("dt", h("kbd", key)), h("dd", text)),
				),
			),
			h("label", isEnabled, " Use these keys"),
			h("div", { class: "buttons" }, h("button", { class: "primary" }, "Close")),
		),
	);
	document.body.append(dialog);
	dialog.showModal();
}

addEventListener("keydown", event => {
	if (event.ctrlKey || event.metaKey || event.altKey) return;
	if (document.querySelector("dialog[open]")) return;
	const { target } = event;
	if (target instanceof HTMLElement && target.closest("input, select, textarea")) {
		if (event.key === "Escape") {
			// The browser would empty a search field without an event, and its filter would stay.
			event.preventDefault();
			target.blur();
		}
		return;
	}
	if (!areKeysOn() && event.key !== "?") return;
	const own = page?.keys?.[event.key]?.[1];
	const act = own ?? (Object.hasOwn(SHORTCUTS, event.key) ? SHORTCUTS[event.key][1] : null);
	if (!act) return;
	event.preventDefault();
	act();
});

byId("refresh").addEventListener("click", load);
byId("theme").addEventListener("click", nextTheme);
byId("help").addEventListener("click", showHelp);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plot.recolor);

health.mount(byId("health"));
showTheme();
state.onChange(show);
show();
