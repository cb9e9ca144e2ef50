// Requests to the routes of the service that serves this page.

/** Where the token is kept until the tab is closed, if the reader wants that. */
const KEPT = "failure-logger-token";
/** In the memory of this page: a reload forgets it, unless the reader wants it kept. */
let token = keptToken();
/** @type {(wasRejected: boolean) => Promise<GivenToken | null>} */
let askForToken = async () => null;
/** @type {Promise<GivenToken | null> | null} */
let asking = null;

function keptToken() {
	try {
		return sessionStorage.getItem(KEPT) ?? "";
	} catch {
		// The browser does not allow it.
		return "";
	}
}

/** @param {GivenToken} given */
function setToken(given) {
	({ token } = given);
	try {
		if (given.isKept) sessionStorage.setItem(KEPT, token);
		else sessionStorage.removeItem(KEPT);
	} catch {
		// The token lasts as long as the page.
	}
}

/** Sets the function that asks a person for the token. @param {typeof askForToken} ask */
export function onTokenNeeded(ask) {
	askForToken = ask;
}

export class ApiError extends Error {
	/** @param {number} status @param {string} title @param {string} detail */
	constructor(status, title, detail, code = "") {
		super(detail);
		this.status = status;
		this.title = title;
		this.code = code;
	}
}

/** Returns `true` for the error of an aborted request. @param {unknown} error */
export function isAbort(error) {
	return error instanceof Error && error.name === "AbortError";
}

/** Returns the text of an error. @param {unknown} error */
export function message(error) {
	return error instanceof Error ? error.message : String(error);
}

/** @param {string} path @param {Params} params */
function address(path, params) {
	const url = new URL("v1/" + path, document.baseURI);
	for (const [name, value] of Object.entries(params)) {
		if (value != null) url.searchParams.set(name, String(value));
	}
	return url;
}

/** @type {Api["send"]} */
async function send(path, params, options = {}) {
	const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
	const shown = token;
	let response;
	try {
		response = await fetch(address(path, params), { ...options, headers, cache: "no-store" });
	} catch (error) {
		if (isAbort(error)) throw error;
		throw new ApiError(
			0,
			"The service does not respond",
			"Check that it runs. Retrying automatically.",
		);
	}
	if (response.ok) return response;
	if (response.status === 401) {
		// Concurrent requests ask once. A request that showed an old token retries with the new one.
		if (shown === token) {
			asking ??= askForToken(Boolean(token)).finally(() => (asking = null));
			const given = await asking;
			if (!given) {
				throw new ApiError(
					401,
					"A token is required",
					"Reload the page, and enter a token with the scope read.",
				);
			}
			setToken(given);
		}
		return send(path, params, options);
	}
	/** @type {Partial<Problem>} */
	const problem = await response.json().catch(() => ({}));
	throw new ApiError(
		response.status,
		problem.title ?? `The service responded with ${response.status}`,
		problem.detail ?? "",
		problem.code,
	);
}

/** @type {Api["get"]} */
export async function get(path, params, signal) {
	return (await send(path, params, { signal })).json();
}

/** Repeats a request until its result is there. @type {Api["poll"]} */
export async function poll(path, params, signal, progress) {
	for (;;) {
		const response = await send(path, { ...params, wait_ms: 30 }, { signal });
		const body = await response.json();
		if (response.status !== 202) return body;
		progress(body.for_ms);
		await pause(Math.min(100 + body.for_ms / 4, 500), signal);
	}
}

/** @param {string} path @param {object} body */
export async function put(path, body) {
	await send(
		path,
		{},
		{ method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(body) },
	);
}

/** Saves a response as a file. @type {Api["download"]} */
export async function download(path, params, name) {
	// Without a token the browser does it alone, which takes no memory.
	let href = address(path, params).href;
	if (token) href = URL.createObjectURL(await (await send(path, params)).blob());
	const anchor = document.createElement("a");
	anchor.href = href;
	anchor.download = name;
	anchor.click();
	if (token) setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/** Reads a tail stream, and reconnects after every break. @type {Api["tail"]} */
export async function tail(params, signal, { failure, replaced, connected }) {
	// `EventSource` cannot show a token.
	let last = "";
	let backoff = 500;
	while (!signal.aborted) {
		try {
			const headers = last ? { "last-event-id": last } : undefined;
			const response = await send("tail", params, { signal, headers });
			connected(true);
			backoff = 500;
			let type = "";
			for await (const line of lines(response)) {
				if (line.startsWith("id: ")) last = line.slice(4);
				if (line.startsWith("event: ")) type = line.slice(7);
				if (line.startsWith("data: ")) {
					if (type === "replaced") replaced();
					else failure(JSON.parse(line.slice(6)));
				}
				if (line === "") type = "";
			}
		} catch (error) {
			if (signal.aborted) return;
			if (error instanceof ApiError && ![0, 429, 503].includes(error.status)) throw error;
		}
		connected(false);
		await pause(backoff, signal).catch(() => {});
		backoff = Math.min(2 * backoff, 10_000);
	}
}

/** @param {Response} response */
async function* lines({ body }) {
	if (!body) return;
	const reader = body.pipeThrough(new TextDecoderStream()).getReader();
	let text = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		const parts = (text + value).split("\n");
		text = parts.pop() ?? "";
		yield* parts;
	}
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function pause(ms, signal) {
	return new Promise((resolve, reject) => {
		const aborted = () => {
			clearTimeout(timer);
			reject(signal.reason);
		};
		const timer = setTimeout(() => {
			signal.removeEventListener("abort", aborted);
			resolve();
		}, ms);
		signal.addEventListener("abort", aborted, { once: true });
	});
}
