// Makes elements. Text stays text: nothing that was logged becomes markup.

import { ApiError, message } from "./api.js";

/** Returns an element. @type {Dom["h"]} */
export function h(tag, first, ...children) {
	const element = document.createElement(tag);
	if (!isAttributes(first)) {
		element.append(...present([first, ...children]));
		return element;
	}
	for (const [name, value] of Object.entries(first)) {
		if (value == null || value === false) continue;
		if (typeof value === "function") element.addEventListener(name.slice(2), value);
		else if (name === "value" || name === "checked") Object.assign(element, { [name]: value });
		else element.setAttribute(name, value === true ? "" : String(value));
	}
	element.append(...present(children));
	return element;
}

/** @param {Attributes | Child} first @returns {first is Attributes} */
function isAttributes(first) {
	return first instanceof Object && !(first instanceof Node) && !Array.isArray(first);
}

/** @param {Child[]} children @returns {(Node | string)[]} */
function present(children) {
	return children.flatMap(child => {
		if (Array.isArray(child)) return present(child);
		if (child == null || child === false) return [];
		return child instanceof Node ? child : String(child);
	});
}

/** @type {Dom["svg"]} */
export function svg(tag, attributes, ...children) {
	const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
	element.append(...children);
	return element;
}

/** Returns an element of index.html. @param {string} id */
export function byId(id) {
	const element = document.getElementById(id);
	if (!element) throw new Error(`#${id} is missing in index.html`);
	return element;
}

/** Returns a table that scrolls by itself if it is too wide. @type {Dom["table"]} */
export function table(caption, columns, rows, attributes = {}) {
	const head = columns.map(([name, classes, title]) =>
		h(
			"th",
			{ scope: "col", class: classes, title },
			// A narrow column has no room for its name, but a screen reader needs it.
			classes === "choose" ? h("span", { class: "hidden" }, name) : name,
		),
	);
	return h(
		"div",
		{ class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
		h(
			"table",
			attributes,
			h("caption", { class: "hidden" }, caption),
			h("thead", h("tr", head)),
			h(
				"tbody",
				rows.map(row => tableRow(columns, row)),
			),
		),
	);
}

/** @param {Column[]} columns @param {Row | Child[]} row */
export function tableRow(columns, row) {
	const { attributes, cells } = Array.isArray(row) ? { attributes: {}, cells: row } : row;
	return h(
		"tr",
		attributes,
		cells.map((cell, index) => h("td", { class: columns[index][1] }, cell)),
	);
}

/** Returns the text in place of an empty list. @param {string} title @param {Child[]} more */
export function empty(title, ...more) {
	return h("div", { class: "empty" }, h("h2", title), more.length > 0 && h("p", more));
}

/** @param {Child[]} children */
export function hint(...children) {
	return h("p", { class: "hint" }, children);
}

/** @param {string} text @param {Listener} onclick @param {Attributes} [attributes] */
export function button(text, onclick, attributes) {
	return h("button", { type: "button", onclick, ...attributes }, text);
}

/** Returns a control with its label. @param {string} label @param {Child} control */
export function field(label, control) {
	return h("label", { class: "field" }, h("span", label), control);
}

/** Returns several controls with a label. @param {string} label @param {Child[]} controls */
export function group(label, ...controls) {
	return h(
		"div",
		{ class: "field", role: "group", "aria-label": label },
		h("span", label),
		h("div", { class: "buttons" }, controls),
	);
}

/** Returns an error with its remedy. @param {unknown} error @param {() => void} retry */
export function failed(error, retry) {
	const title = error instanceof ApiError ? error.title : "This page cannot be shown";
	return h(
		"div",
		{ class: "empty problem", role: "alert", "data-message": message(error) },
		h("h2", title),
		h("p", message(error)),
		button("Retry", retry),
	);
}

/** Returns a list to choose from, with its label. @type {Dom["select"]} */
export function select(name, label, options, value, onchange) {
	const list = h(
		"select",
		{
			name,
			onchange() {
				onchange(list.value);
			},
		},
		options.map(([option, text]) =>
			h("option", { value: option, selected: option === value }, text),
		),
	);
	return field(label, list);
}

/**
 * Replaces the children of `place`. The focus stays on the same control, or moves to the content.
 * @param {Element} place @param {Child[]} children
 */
export function replace(place, ...children) {
	const focused = place.contains(document.activeElement) ? document.activeElement : null;
	place.replaceChildren(...present(children));
	if (!focused || focused.isConnected) return;
	const name = ["id", "name", "rel", "href"].find(key => focused.getAttribute(key));
	const value = name && CSS.escape(focused.getAttribute(name) ?? "");
	const same = name && place.querySelector(`[${name}="${value}"]`);
	(same instanceof HTMLElement ? same : byId("main")).focus({ preventScroll: true });
}

/**
 * Changes a list of rows. The focus stays on the same control of the same row.
 * @param {Element} place @param {() => void} work
 */
export function withFocus(place, work) {
	const focused = place.contains(document.activeElement) ? document.activeElement : null;
	const row = focused?.closest("[data-group]");
	const at = row ? [...row.querySelectorAll("a, button, input")].indexOf(focused ?? row) : -1;
	work();
	const same = row && place.querySelector(`[data-group="${row.getAttribute("data-group")}"]`);
	const control = same?.querySelectorAll("a, button, input")[at];
	if (control instanceof HTMLElement) control.focus({ preventScroll: true });
}

/** Tells a change to a screen reader. @param {string} text */
export function announce(text) {
	byId("notice").textContent = text;
}

/**
 * Returns a function that calls `work` once it has not been called for `ms`, unless cancelled.
 * @template Value @param {(value: Value) => void} work @param {number} ms
 */
export function debounce(work, ms) {
	let timer = 0;
	const cancel = () => clearTimeout(timer);
	/** @param {Value} value */
	const call = value => {
		cancel();
		timer = setTimeout(() => work(value), ms);
	};
	return Object.assign(call, { cancel });
}
