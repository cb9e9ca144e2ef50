// What the routes beside this page answer.

/** In memory of this page only: gone when it is closed or loaded anew. */
let token = "";
/** Asks for the token; set by the page. */
let askForToken = async () => null;
let asking = null;

export function onTokenNeeded(ask) {
	askForToken = ask;
}

export class ApiError extends Error {
	constructor(status, title, detail, code = "") {
		super(detail);
		this.status = status;
		this.title = title;
		this.code = code;
	}
}

export function url(path, params = {}) {
	const url = new URL("v1/" + path, document.baseURI);
	for (const [name, value] of Object.entries(params)) {
		if (value !== null && value !== undefined) url.searchParams.set(name, value);
	}
	return url;
}

async function send(path, params, options = {}) {
	const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
	const shown = token;
	let response;
	try {
		response = await fetch(url(path, params), { ...options, headers, cache: "no-store" });
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw new ApiError(0, "The service does not answer", "Is it running? Retrying automatically.");
	}
	if (response.ok) return response;
	if (response.status === 401) {
		// Several requests ask once; and one that used an old token uses the new one.
		if (shown === token) {
			asking ??= askForToken(Boolean(token)).finally(() => (asking = null));
			const given = await asking;
			if (!given)
				throw new ApiError(
					401,
					"A token is needed",
					"Reload the page, and enter the token for reading.",
				);
			token = given;
		}
		return send(path, params, options);
	}
	const problem = await response.json().catch(() => ({}));
	throw new ApiError(
		response.status,
		problem.title ?? `The service answered ${response.status}`,
		problem.detail ?? "",
		problem.code,
	);
}

/** The response to a request. */
export async function get(path, params, signal) {
	return (await send(path, params, { signal })).json();
}

/** The response to a request that may take longer: tells `working` how long it has taken so far. */
export async function wait(path, params, signal, working) {
	for (;;) {
		const response = await send(path, { ...params, wait_ms: 30 }, { signal });
		const answer = await response.json();
		if (response.status !== 202) return answer;
		working(answer.for_ms);
		await pause(Math.min(100 + answer.for_ms / 4, 500), signal);
	}
}

export async function put(path, body) {
	await send(
		path,
		{},
		{ method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(body) },
	);
}

/** Everything, as a file: by the browser itself if it may, for that takes no memory. */
export async function download(path, params, name) {
	let href = url(path, params).href;
	if (token) href = URL.createObjectURL(await (await send(path, params)).blob());
	const anchor = document.createElement("a");
	anchor.href = href;
	anchor.download = name;
	anchor.click();
	if (token) setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/**
 * Follows server-sent events until `signal`, again after every break, and without missing one. Not by
 * `EventSource`, which can show no token.
 */
export async function follow(path, params, signal, { event, connected, replaced }) {
	let last = null;
	let patience = 500;
	while (!signal.aborted) {
		try {
			const response = await send(path, params, {
				signal,
				headers: last ? { "last-event-id": last } : {},
			});
			connected(true);
			patience = 500;
			let type = "";
			for await (const line of lines(response.body)) {
				if (line.startsWith("id: ")) last = line.slice(4);
				if (line.startsWith("event: ")) type = line.slice(7);
				if (line.startsWith("data: "))
					(type === "replaced" ? replaced : event)(JSON.parse(line.slice(6)));
				if (line === "") type = "";
			}
		} catch (error) {
			if (signal.aborted) return;
			if (error.status && error.status !== 503 && error.status !== 429) throw error;
		}
		connected(false);
		await pause(patience, signal).catch(() => {});
		patience = Math.min(2 * patience, 10_000);
	}
}

async function* lines(body) {
	const reader = body.pipeThrough(new TextDecoderStream()).getReader();
	let text = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		const parts = (text + value).split("\n");
		text = parts.pop();
		yield* parts;
	}
}

function pause(ms, signal) {
	return new Promise((resolve, reject) => {
		const aborted = () => {
			clearTimeout(timer);
			reject(signal.reason);
		};
		const timer = setTimeout(() => {
			signal?.removeEventListener("abort", aborted);
			resolve();
		}, ms);
		signal?.addEventListener("abort", aborted, { once: true });
	});
}
