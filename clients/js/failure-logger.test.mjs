// @ts-check
/**
 * Tests of the client against the service itself.
 *
 *     FAILURE_LOGGER_TEST_BINARY=target/release/failure-logger node --test clients/js/failure-logger.test.mjs
 *
 * Each test starts a service on a port and a database of its own. A front stands between the client
 * and the service where a test needs a fault at a certain moment. Tests wait for events, not for a
 * time; the timeouts end a test that has failed.
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import { FailureLogger, describe } from "./failure-logger.mjs";

const BINARY = path.resolve(
  process.env.FAILURE_LOGGER_TEST_BINARY ?? "target/release/failure-logger",
);
const MODULE = fileURLToPath(new URL("failure-logger.mjs", import.meta.url));
/** Longer than anything that succeeds. */
const PATIENT = 60_000;

// The timers of a client do not keep a process alive: a test that waits for one must.
const alive = setInterval(() => {}, PATIENT);
after(() => clearInterval(alive));

/** @typedef {import("node:test").TestContext} Context */
/** @typedef {(body: string, response: http.ServerResponse) => unknown} Fault */

/** A promise that the test settles. */
class Gate {
  constructor() {
    /** @type {(value?: unknown) => void} */
    this.open = () => {};
    this.isOpen = false;
    this.opened = new Promise((resolve) => {
      this.open = (value) => ((this.isOpen = true), resolve(value));
    });
  }
}

/**
 * Starts the program, on a port and a database of its own.
 *
 * @param {Context} t
 * @param {string[]} settings
 */
async function startService(t, settings = [], listen = "127.0.0.1:0") {
  const folder = mkdtempSync(path.join(tmpdir(), "failure-logger-js-"));
  const db = path.join(folder, "failures.db");
  // The environment of the tester has no effect.
  const child = spawn(BINARY, ["serve", "--db", db, "--listen", listen, ...settings], {
    cwd: folder,
    env: {},
    stdio: ["ignore", "pipe", openSync(path.join(folder, "log"), "w")],
  });
  const ended = once(child, "exit");
  const [line] = await once(createInterface(/** @type {any} */ (child.stdout)), "line");
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
  };
  /** @param {string[]} options @returns {any[]} */
  const exported = (options) => {
    const { stdout } = spawnSync(BINARY, ["export", "--db", db, ...options], { env: {} });
    const lines = stdout.toString().split("\n").filter(Boolean);
    return lines.map((line) => JSON.parse(line));
  };
  t.after(async () => {
    await stop();
    rmSync(folder, { recursive: true });
  });
  return {
    url: line.replace("listening on ", ""),
    /** Ends the service, and returns its log, the oldest failure first. */
    async failures() {
      await stop();
      return exported([]);
    },
    /** Ends the service, and returns its attempts by outcome. */
    async attempts() {
      await stop();
      /** @type {Record<string, number>} */
      const counts = {};
      for (const { outcome, attempts } of exported(["--attempts"])) {
        counts[outcome] = (counts[outcome] ?? 0) + attempts;
      }
      return counts;
    },
  };
}

/**
 * Starts a server before the service. `faults` take the first requests; it forwards the others.
 *
 * @param {Context} t
 * @param {{ url: string } | null} service
 * @param {Fault[]} faults
 */
async function startFront(t, service, ...faults) {
  const arrived = new Gate();
  /** @type {any[][]} */
  const bodies = [];
  /** @type {number[]} */
  const times = [];
  /** @type {http.IncomingHttpHeaders[]} */
  const headers = [];
  const server = http.createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request.setEncoding("utf8")) body += chunk;
    bodies.push(body.split("\n").map((line) => JSON.parse(line)));
    times.push(Date.now());
    headers.push(request.headers);
    arrived.open();
    response.setHeader("Connection", "close");
    await (faults.shift() ?? forward)(body, response);
  });
  /** @param {string} body */
  const send = (body) => {
    const headers = { "Content-Type": "application/x-ndjson" };
    return fetch(`${service?.url}/v1/attempts`, { method: "POST", headers, body });
  };
  /** @param {string} body @param {http.ServerResponse} response */
  const forward = async (body, response) => {
    const result = await send(body);
    response.writeHead(result.status).end(await result.text());
  };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = /** @type {net.AddressInfo} */ (server.address());
  return {
    url: `http://127.0.0.1:${port}`,
    arrived,
    bodies,
    times,
    headers,
    faults,
    forward,
    send,
  };
}

/**
 * @param {Context} t
 * @param {import("./failure-logger.mjs").Options} options
 */
function newClient(t, options) {
  const client = new FailureLogger({ flushInterval: 1, ...options });
  t.after(() => client.close(0));
  return client;
}

/**
 * Runs a program that uses the client, and returns its output.
 *
 * @param {string} url
 * @param {string} source
 */
async function run(url, source) {
  const head = `import { FailureLogger } from ${JSON.stringify(MODULE)};\nconst url = ${JSON.stringify(url)};\n`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", head + source]);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
  const [code] = await once(child, "close");
  assert.equal(code, 0, output);
  return output;
}

/** @param {any[]} rows @param {string} field */
const distinct = (rows, field) => new Set(rows.map((row) => row[field])).size;

test("batches arrive exactly once", async (t) => {
  const service = await startService(t);
  const client = newClient(t, { url: service.url });
  for (let nth = 0; nth < 1200; nth += 1) {
    client.attempt(nth % 3 === 0 ? "no_hit" : "success", "semantic", `query ${nth}`, {
      latency_ms: nth / 10,
    });
  }
  client.log("error", "bm25", "unobserved", { error_context: new RangeError("no index") });
  assert.equal(client.stats().queued, 1201);
  assert.equal(await client.flush(PATIENT), true);
  const { received, accepted, rejected, dropped, queued, lastError } = client.stats();
  assert.deepEqual(
    [received, accepted, rejected, dropped, queued, lastError],
    [1201, 1201, 0, {}, 0, null],
  );
  const rows = await service.failures();
  assert.deepEqual([rows.length, distinct(rows, "query_text")], [401, 401]);
  assert.equal(rows.at(-1).error_context, "RangeError: no index");
  assert.deepEqual(await service.attempts(), { success: 800, no_hit: 400, error: 1 });
});

test("a lost response is retried and counted once", async (t) => {
  const service = await startService(t);
  /** @param {string} body @param {http.ServerResponse} response */
  const lose = async (body, response) => {
    await front.send(body);
    response.destroy();
  };
  const front = await startFront(t, service, lose, lose);
  const client = newClient(t, { url: front.url });
  client.log("no_hit", "semantic", "a failure", { event_id: undefined, created_at: undefined });
  for (let nth = 0; nth < 10; nth += 1) client.attempt("success", "semantic");
  assert.equal(await client.flush(PATIENT), true);
  assert.equal(front.bodies.length, 3);
  assert.deepEqual(front.bodies[0], front.bodies[2]);
  assert.equal(distinct(front.bodies[0], "event_id"), 11);
  for (const { event_id, created_at } of front.bodies[0]) {
    assert.equal(typeof created_at, "number");
    assert.match(event_id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    assert.ok(
      Math.abs(parseInt(event_id.replace("-", "").slice(0, 12), 16) - Date.now()) < PATIENT,
    );
  }
  assert.equal(client.stats().accepted, 11);
  assert.equal((await service.failures()).length, 1);
  assert.deepEqual(await service.attempts(), { success: 10, no_hit: 1 });
});

test("a service that comes back gets all", async (t) => {
  const port = net.createServer().listen(0, "127.0.0.1");
  await once(port, "listening");
  const address = `127.0.0.1:${/** @type {net.AddressInfo} */ (port.address()).port}`;
  await new Promise((resolve) => port.close(resolve));
  const failed = new Gate();
  const client = newClient(t, { url: `http://${address}`, onError: failed.open });
  for (let nth = 0; nth < 700; nth += 1) client.attempt("no_hit", "semantic", `query ${nth}`);
  assert.match(String(await failed.opened), /no response/);
  const service = await startService(t, [], address);
  assert.equal(await client.flush(PATIENT), true);
  assert.equal(client.stats().accepted, 700);
  assert.equal(distinct(await service.failures(), "query_text"), 700);
});

test("a full service is retried after its pause", async (t) => {
  const service = await startService(t);
  const front = await startFront(t, service, async (body, response) => {
    await front.send(body.split("\n").slice(0, 2).join("\n"));
    response.writeHead(503, { "Retry-After": "1" });
    response.end(JSON.stringify({ processed: 2, accepted: 2, rejected: 0, detail: "full" }));
  });
  const client = newClient(t, { url: front.url });
  for (let nth = 0; nth < 5; nth += 1) client.attempt("no_hit", "semantic", `query ${nth}`);
  assert.equal(await client.flush(PATIENT), true);
  // Timers of Node.js may fire a millisecond early.
  assert.ok(front.times[1] - front.times[0] >= 999, `${front.times}`);
  assert.deepEqual(front.bodies[1], front.bodies[0].slice(2));
  assert.deepEqual([client.stats().accepted, client.stats().lastError], [5, "full"]);
  assert.equal((await service.failures()).length, 5);
});

test("a body too large for a proxy is halved", async (t) => {
  const service = await startService(t);
  /** @type {Fault} */
  const small = (body, response) =>
    body.split("\n").length > 2
      ? response.writeHead(413).end("too large")
      : front.forward(body, response);
  const front = await startFront(t, service, ...Array(50).fill(small));
  const client = newClient(t, { url: front.url });
  for (let nth = 0; nth < 9; nth += 1) client.attempt("no_hit", "semantic", `query ${nth}`);
  assert.equal(await client.flush(PATIENT), true);
  assert.deepEqual([client.stats().accepted, client.stats().dropped], [9, {}]);
  assert.equal((await service.failures()).length, 9);
});

test("a full queue counts what it drops", async (t) => {
  const service = await startService(t);
  const release = new Gate();
  const front = await startFront(t, service, async (body, response) => {
    await release.opened;
    await front.forward(body, response);
  });
  const client = newClient(t, { url: front.url, capacity: 10 });
  client.attempt("success", "semantic");
  await front.arrived.opened;
  for (let nth = 0; nth < 30; nth += 1) client.attempt("success", "semantic");
  assert.deepEqual([client.stats().dropped, client.stats().queued], [{ queue_full: 20 }, 11]);
  assert.equal(await client.flush(0), false);
  release.open();
  assert.equal(await client.flush(PATIENT), true);
  assert.deepEqual([client.stats().accepted, client.stats().received], [11, 31]);
  assert.deepEqual(await service.attempts(), { success: 11 });
});

test("a wrong token is counted, and a right one works", async (t) => {
  const folder = mkdtempSync(path.join(tmpdir(), "failure-logger-js-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const tokens = path.join(folder, "tokens");
  writeFileSync(tokens, "app ingest = cW8sPfE1uHi6ZgK4oNqM\n");
  chmodSync(tokens, 0o600);
  const service = await startService(t, ["--token-file", tokens]);
  const wrong = newClient(t, { url: service.url, token: "wrong-wrong-wrong-wrong" });
  for (let nth = 0; nth < 20; nth += 1) wrong.log("error", "semantic", "é".repeat(512));
  assert.equal(await wrong.flush(PATIENT), true);
  assert.deepEqual([wrong.stats().accepted, wrong.stats().dropped], [0, { unauthorized: 20 }]);
  assert.match(String(wrong.stats().lastError), /token/);
  const right = newClient(t, { url: service.url, token: "cW8sPfE1uHi6ZgK4oNqM" });
  right.log("no_hit", "semantic", "right");
  assert.equal(await right.flush(PATIENT), true);
  assert.deepEqual(
    (await service.failures()).map((row) => row.query_text),
    ["right"],
  );
});

test("another server gets each record once", async (t) => {
  const front = await startFront(
    t,
    null,
    (_, response) => response.end("<h1>It works!</h1>"),
    (_, response) => response.writeHead(307, { Location: "/elsewhere" }).end(),
    (_, response) => response.writeHead(404).end('{"processed": "all", "errors": 7}'),
  );
  const client = newClient(t, { url: front.url });
  for (let nth = 0; nth < 3; nth += 1) {
    client.log("no_hit", "semantic", "query");
    assert.equal(await client.flush(PATIENT), true);
  }
  assert.deepEqual([client.stats().accepted, client.stats().dropped], [0, { request_rejected: 3 }]);
  assert.equal(front.bodies.length, 3);
});

test("a bad record is counted, and the others arrive", async (t) => {
  /** @type {any} */
  const cycle = {};
  cycle.cycle = cycle;
  const hostile = {
    toJSON() {
      throw new Error("no JSON");
    },
  };
  const getter = {
    get error_context() {
      throw new Error("no value");
    },
  };
  const service = await startService(t);
  const client = newClient(t, { url: service.url });
  client.attempt("low_confidence", "semantic", "nan", { top_score: NaN, latency_ms: Infinity });
  client.log("error", "semantic", "surrogate \ud83d", { error_context: "\udfff" });
  client.log("error", "semantic", "cycle", { error_context: cycle });
  client.log("error", "semantic", "hostile", { error_context: hostile });
  client.log("error", "semantic", "getter", getter);
  client.log("error", "semantic", "long", { error_context: { text: "x".repeat(70_000) } });
  client.log("error", "semantic", "bigint", { conversation_id: 12345678901234567890n });
  client.log("no_hit", "semantic", "é".repeat(500_000));
  client.log("no_hit", "semantic", /** @type {any} */ (null));
  client.log(/** @type {any} */ ("no such type"), "semantic", "rejected");
  client.log("no_hit", "semantic", "good");
  assert.equal(await client.flush(PATIENT), true);
  const { received, accepted, rejected, dropped } = client.stats();
  assert.deepEqual([received, accepted, rejected], [11, 5, 2]);
  assert.deepEqual(dropped, { unserialisable: 3, too_long: 1 });
  const rows = new Map((await service.failures()).map((row) => [row.query_text, row]));
  const long = "é".repeat(512);
  assert.deepEqual(
    new Set(rows.keys()),
    new Set(["nan", "surrogate \ufffd", "bigint", long, "good"]),
  );
  assert.equal(rows.get(long).query_len, 1_000_000);
  assert.equal(rows.get("nan").top_score, null);
  assert.equal(rows.get("bigint").conversation_id, "12345678901234567890");
});

test("a closed client counts late records", async (t) => {
  const service = await startService(t);
  const client = newClient(t, { url: service.url, flushInterval: PATIENT });
  client.log("no_hit", "semantic", "in time");
  assert.equal(await client.close(PATIENT), true);
  client.log("no_hit", "semantic", "late");
  assert.equal(await client.close(PATIENT), true);
  assert.equal(await client.flush(PATIENT), true);
  const { received, accepted, dropped, queued } = client.stats();
  assert.deepEqual([received, accepted, dropped, queued], [2, 1, { closed: 1 }, 0]);
});

test("invalid settings are rejected at once", () => {
  for (const url of [
    "localhost",
    "ftp://localhost",
    "http://",
    "http://a:b",
    "http://user:word@a",
  ]) {
    assert.throws(() => new FailureLogger({ url }), TypeError, url);
  }
  assert.throws(() => new FailureLogger({ token: "a\nb" }), TypeError);
});

test("a caller never waits for a service that hangs", async (t) => {
  const front = await startFront(t, null, () => {});
  const client = newClient(t, { url: front.url, capacity: 100, timeout: 3_600_000 });
  client.attempt("success", "semantic");
  await front.arrived.opened;
  const semantic = client.strategy("semantic");
  for (let nth = 0; nth < 1000; nth += 1) {
    client.log("no_hit", "semantic", "query");
    assert.equal(
      semantic.observe("query", () => nth),
      nth,
    );
    assert.equal(await semantic.observe("query", async () => nth), nth);
  }
  assert.equal(await client.close(50), false);
  const { received, accepted, dropped, queued } = client.stats();
  assert.deepEqual([received, accepted, queued], [3001, 0, 0]);
  assert.deepEqual(dropped, { queue_full: 2900, close_timeout: 101 });
});

test("a close does not wait for a pause beyond its timeout", async (t) => {
  const front = await startFront(t, null, (_, response) =>
    response.writeHead(503, { "Retry-After": "86400" }).end(),
  );
  const failed = new Gate();
  const client = newClient(t, { url: front.url, onError: failed.open });
  client.log("no_hit", "semantic", "query");
  await failed.opened;
  const began = Date.now();
  assert.equal(await client.close(50_000), false);
  assert.ok(Date.now() - began < 25_000);
  assert.equal(front.bodies.length, 1);
  assert.deepEqual(client.stats().dropped, { close_timeout: 1 });
});

test("an exit without close sends the queue", async (t) => {
  const service = await startService(t);
  const output = await run(
    service.url,
    `const logger = new FailureLogger({ url, flushInterval: 3_600_000, exitTimeout: 60_000 });
     for (let nth = 0; nth < 1200; nth += 1) logger.attempt("no_hit", "semantic", \`query \${nth}\`);`,
  );
  assert.equal(output, "");
  assert.equal(distinct(await service.failures(), "query_text"), 1200);
});

test("an exit is bounded while the service hangs", async (t) => {
  const front = await startFront(t, null, () => {});
  const output = await run(
    front.url,
    `const options = { flushInterval: 3_600_000, timeout: 3_600_000, exitTimeout: 500 };
     const logger = new FailureLogger({ url, ...options });
     logger.log("no_hit", "semantic", "query");
     process.on("exit", () => console.log(JSON.stringify(logger.stats().dropped)));`,
  );
  assert.equal(output, '{"close_timeout":1}\n');
  assert.equal(front.bodies.length, 1);
});

test("a page that is left hands its records to the browser", async (t) => {
  const service = await startService(t);
  const [release, released] = [new Gate(), new Gate()];
  const front = await startFront(t, service, async (body, response) => {
    await release.opened;
    await front.forward(body, response);
    released.open();
  });
  const page = new EventTarget();
  /** @type {Promise<Response>[]} */
  const beacons = [];
  const sendBeacon = (/** @type {string} */ url, /** @type {Blob} */ body) => {
    assert.ok(body.size <= 64 * 1024);
    beacons.push(fetch(url, { method: "POST", headers: { "Content-Type": body.type }, body }));
    return true;
  };
  const globals = /** @type {any} */ (globalThis);
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { sendBeacon }, configurable: true });
  globals.document = new EventTarget();
  globals.location = { origin: front.url, href: front.url };
  globals.addEventListener = page.addEventListener.bind(page);
  t.after(() => {
    delete globals.document;
    delete globals.location;
    delete globals.addEventListener;
    if (before) Object.defineProperty(globalThis, "navigator", before);
    else delete globals.navigator;
  });
  // A module of its own, which sees the page.
  const url = "./failure-logger.mjs?page";
  const { FailureLogger: PageLogger } = /** @type {typeof import("./failure-logger.mjs")} */ (
    await import(url)
  );

  const client = new PageLogger({ url: front.url, flushInterval: 1 });
  client.log("no_hit", "semantic", "under way");
  await front.arrived.opened;
  for (let nth = 0; nth < 400; nth += 1)
    client.log("no_hit", "semantic", `query ${nth} ${"é".repeat(200)}`);
  page.dispatchEvent(new Event("pagehide"));
  assert.deepEqual([client.stats().unconfirmed, client.stats().queued], [401, 0]);
  assert.ok(beacons.length > 1);
  for (const beacon of beacons) assert.equal((await beacon).status, 202);
  release.open();
  // The service gets the batch that was under way twice.
  await released.opened;
  client.log("no_hit", "semantic", "after the page came back");
  assert.equal(await client.flush(PATIENT), true);
  assert.deepEqual([client.stats().accepted, client.stats().queued], [1, 0]);

  // The page is hidden, not left: an ordinary request sends what waits.
  globals.document.visibilityState = "hidden";
  const patient = new PageLogger({
    url: service.url,
    flushInterval: PATIENT,
    token: "needs-a-header-1",
  });
  patient.log("no_hit", "semantic", "hidden");
  globals.document.dispatchEvent(new Event("visibilitychange"));
  assert.equal(await patient.flush(PATIENT), true);
  assert.deepEqual([patient.stats().accepted, patient.stats().unconfirmed], [1, 0]);

  // A beacon has no header for a token.
  const secret = new PageLogger({
    url: front.url,
    flushInterval: PATIENT,
    token: "needs-a-header-1",
  });
  // More than may outlive the page: the rest waits for the page to come back.
  for (let nth = 0; nth < 400; nth += 1) {
    secret.log("no_hit", "semantic", `secret ${nth} ${"é".repeat(200)}`);
  }
  const arrived = new Gate();
  front.faults.push(async (body, response) => {
    const { authorization } = front.headers[front.headers.length - 1];
    await front.forward(body, response);
    arrived.open(authorization);
  });
  page.dispatchEvent(new Event("pagehide"));
  const { unconfirmed, queued } = secret.stats();
  assert.ok(unconfirmed > 50 && queued > 50 && unconfirmed + queued === 400);
  assert.equal(await arrived.opened, "Bearer needs-a-header-1");
  assert.equal(front.bodies[front.bodies.length - 1].length, unconfirmed);
  assert.equal(await secret.flush(PATIENT), true);
  assert.deepEqual([secret.stats().accepted, secret.stats().unconfirmed], [queued, unconfirmed]);
  await Promise.all([client.close(0), patient.close(0), secret.close(0)]);

  const rows = await service.failures();
  assert.deepEqual([rows.length, distinct(rows, "query_text")], [803, 803]);
});

/** What a retrieval returns or throws; the outcome; the text of the error in the log. */
/** @type {[unknown, string, string | null][]} */
const CASES = [
  [
    [
      ["a", 0.2],
      ["b", 0.8],
    ],
    "success",
    null,
  ],
  [[{ score: 0.9 }], "success", null],
  ["one text", "success", null],
  [{}, "success", null],
  [[], "no_hit", null],
  [new Set(), "no_hit", null],
  [null, "no_hit", null],
  [
    [
      ["a", 0.1],
      ["b", 0.29],
    ],
    "low_confidence",
    null,
  ],
  [[["a", NaN]], "success", null],
  [new DOMException("slow", "TimeoutError"), "timeout", "TimeoutError: slow"],
  [Object.assign(new Error("read"), { name: "ReadTimeout" }), "timeout", "ReadTimeout: read"],
  [Object.assign(new Error("connect"), { code: "ETIMEDOUT" }), "timeout", "Error: connect"],
  [new RangeError("no index"), "error", "RangeError: no index"],
  [new DOMException("given up", "AbortError"), "cancelled", null],
];

/**
 * Runs every case, and compares what the caller and the service saw.
 *
 * @param {Context} t
 * @param {(monitor: import("./failure-logger.mjs").Monitor, query: string, retrieve: () => any) => any} observe
 */
async function assertCases(t, observe) {
  const service = await startService(t);
  const client = newClient(t, { url: service.url });
  const semantic = client.strategy("semantic", {
    confidenceThreshold: 0.3,
    isTimeout: (error) => /** @type {any} */ (error).name === "ReadTimeout",
  });
  const isThrown = (/** @type {unknown} */ value) =>
    value instanceof Error || value instanceof DOMException;
  for (const [nth, [value]] of CASES.entries()) {
    const retrieve = () => {
      if (isThrown(value)) throw value;
      return value;
    };
    let seen;
    try {
      seen = await observe(semantic, `query ${nth}`, retrieve);
      assert.ok(!isThrown(value));
    } catch (error) {
      seen = error;
    }
    assert.equal(seen, value);
  }
  assert.equal(await client.flush(PATIENT), true);
  assert.equal(client.stats().accepted, CASES.length);
  const expected = CASES.map(([, outcome, text], nth) => [`query ${nth}`, outcome, text]);
  const rows = await service.failures();
  assert.deepEqual(
    rows.map((row) => [row.query_text, row.failure_type, row.error_context]).sort(),
    expected.filter(([, outcome]) => outcome !== "success" && outcome !== "cancelled").sort(),
  );
  const low = rows.find((row) => row.failure_type === "low_confidence");
  assert.deepEqual([low.result_count, low.top_score, low.confidence_threshold], [2, 0.29, 0.3]);
  /** @type {Record<string, number>} */
  const outcomes = {};
  for (const [, outcome] of CASES) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  assert.deepEqual(await service.attempts(), outcomes);
}

test("observe judges sync outcomes", (t) =>
  assertCases(t, (semantic, query, retrieve) => semantic.observe(query, retrieve)));

test("observe judges async outcomes", (t) =>
  assertCases(t, (semantic, query, retrieve) => semantic.observe(query, async () => retrieve())));

test("wrap judges sync outcomes", (t) =>
  assertCases(t, (semantic, query, retrieve) =>
    semantic.wrap((/** @type {string} */ _query) => retrieve())(query),
  ));

test("wrap judges async outcomes, and keeps this", (t) =>
  assertCases(t, (semantic, query, retrieve) => {
    const index = {
      retrieve,
      search: semantic.wrap(
        /** @this {any} */
        async function (/** @type {{ text: string }} */ _request) {
          return this.retrieve();
        },
        (request) => request.text,
      ),
    };
    return index.search({ text: query });
  }));

test("a lower score is better for distances", async (t) => {
  const service = await startService(t);
  const client = newClient(t, { url: service.url });
  const distance = client.strategy("distance", {
    confidenceThreshold: 0.3,
    scoreDirection: "lower_is_better",
  });
  const fields = { conversation_id: 7, turn_index: 2 };
  distance.observe(
    "near",
    () => [
      ["a", 0.9],
      ["b", 0.1],
    ],
    fields,
  );
  distance.observe(
    "far",
    () => [
      ["a", 0.9],
      ["b", 0.4],
    ],
    fields,
  );
  const other = client.strategy("bm25", {
    confidenceThreshold: 2,
    found: ({ hits, best }) => ({ resultCount: hits.length, topScore: best }),
  });
  const results = { other: 1 };
  assert.equal(
    other.observe("no hits", () => results),
    results,
  );
  other.observe("low", () => ({ hits: [1], best: 1.5 }));
  assert.equal(await client.flush(PATIENT), true);
  const rows = await service.failures();
  assert.deepEqual(
    rows.map((row) => [row.query_text, row.failure_type, row.top_score]),
    [
      ["far", "low_confidence", 0.4],
      ["low", "low_confidence", 1.5],
    ],
  );
  assert.deepEqual([rows[0].conversation_id, rows[0].turn_index], ["7", 2]);
  assert.deepEqual(await service.attempts(), { success: 2, low_confidence: 2 });
});

test("results of several shapes are described", () => {
  assert.deepEqual(describe(undefined), { resultCount: 0 });
  assert.deepEqual(describe(new Map([["a", 0.5]])), { resultCount: 1, topScore: 0.5 });
  assert.deepEqual(describe(7), {});
});
