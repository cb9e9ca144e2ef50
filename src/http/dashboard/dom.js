// Elements are made here, and text stays text: nothing that was logged is ever read as markup.

/** An element with attributes, `on…` listeners, properties that have no attribute, and children. */
export function h(tag, attributes = {}, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) {
		if (value === null || value === undefined || value === false) continue;
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (name === "value" || name === "checked") element[name] = value;
		else element.setAttribute(name, value === true ? "" : value);
	}
	element.append(
		...children
			.flat(Infinity)
			.filter((child) => child !== null && child !== undefined && child !== false),
	);
	return element;
}

export function svg(tag, attributes = {}, ...children) {
	const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
	element.append(...children);
	return element;
}

/** A table that scrolls by itself where it is too wide. A column is `{name, title, numeric, wide}`. */
export function table(caption, columns, rows, attributes = {}) {
	const head = columns.map((column) =>
		h("th", { scope: "col", class: classes(column), title: column.title }, column.name),
	);
	const body = rows.map((row) =>
		h(
			"tr",
			row.attributes ?? {},
			(row.cells ?? row).map((cell, nth) => h("td", { class: classes(columns[nth]) }, cell)),
		),
	);
	return h(
		"div",
		{ class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
		h(
			"table",
			attributes,
			h("caption", { class: "hidden" }, caption),
			h("thead", {}, h("tr", {}, head)),
			h("tbody", {}, body),
		),
	);
}

function classes(column) {
	return (
		[column.numeric && "number", column.wide && "wide", column.class].filter(Boolean).join(" ") ||
		null
	);
}

/** What there is to say where there is nothing to show. */
export function empty(title, ...more) {
	return h("div", { class: "empty" }, h("h2", {}, title), more);
}

/** What went wrong, and what to do about it. */
export function failed(error, again) {
	return h(
		"div",
		{ class: "empty problem", role: "alert", "data-said": error.message },
		h("h2", {}, error.title ?? "This could not be loaded"),
		h("p", {}, error.message),
		h("button", { type: "button", onclick: again }, "Try again"),
	);
}

/** Something to choose from; options are `[value, text]`. */
export function select(name, label, options, value, onchange) {
	return h(
		"label",
		{ class: "field" },
		h("span", {}, label),
		h(
			"select",
			{ name, onchange: (event) => onchange(event.target.value) },
			options.map(([of, text]) => h("option", { value: of, selected: of === value }, text)),
		),
	);
}

/** Puts something else into `place`; the focus stays where it was, or near, if that is gone. */
export function renew(place, ...children) {
	const focused = place.contains(document.activeElement) ? document.activeElement : null;
	place.replaceChildren(...children.flat(Infinity));
	if (!focused || focused.isConnected) return;
	const named = ["id", "name", "rel", "href"]
		.map((name) => [name, focused.getAttribute(name)])
		.find(([, value]) => value);
	const same = named && place.querySelector(`[${named[0]}="${CSS.escape(named[1])}"]`);
	(same ?? document.getElementById("main")).focus({ preventScroll: true });
}

/** Says something to those who do not see it happen. */
export function announce(text) {
	document.getElementById("notice").textContent = text;
}

/** Calls `work` once things have been quiet for a moment, unless it is cancelled before. */
export function calmly(work, quiet = 250) {
	let timer;
	const calm = (...args) => {
		clearTimeout(timer);
		timer = setTimeout(() => work(...args), quiet);
	};
	calm.cancel = () => clearTimeout(timer);
	return calm;
}
