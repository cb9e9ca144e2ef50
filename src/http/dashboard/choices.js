// Choices of the reader. Without `localStorage` they last as long as the page.

const choices = new Map();

/** @param {string} name @param {string} value */
export function saveChoice(name, value) {
	choices.set(name, value);
	try {
		localStorage.setItem(`failure-logger-${name}`, value);
	} catch {
		// The browser does not allow it.
	}
}

/** @param {string} name @returns {string | null} */
export function choice(name) {
	if (choices.has(name)) return choices.get(name);
	try {
		return localStorage.getItem(`failure-logger-${name}`);
	} catch {
		return null;
	}
}

/** Returns `true` unless the reader turned the shortcuts off. */
export function areKeysOn() {
	return choice("keys") !== "off";
}
