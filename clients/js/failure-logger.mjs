// @ts-check
/**
 * Sends retrievals to a failure-logger service, in the background.
 *
 * One file without dependencies, for Node.js 18 or later and for browsers. Copy it into the
 * application:
 *
 *     import { FailureLogger } from "./failure-logger.mjs";
 *
 *     const logger = new FailureLogger({ url: "http://127.0.0.1:4318" });
 *     const semantic = logger.strategy("semantic", { confidenceThreshold: 0.3 });
 *     const search = semantic.wrap(async (query) => [["key.txt", 0.8]]);
 *
 * `search` is now measured and counted, its outcome is judged, and its failures are logged. It
 * returns and throws what it did before.
 *
 * A call that records a retrieval appends it to a bounded queue, and throws nothing. A timer turns
 * records into JSON, sends them in batches and retries. What cannot be sent is counted by reason:
 * `stats()`. This equation always holds:
 *
 *     received = accepted + rejected + dropped (by reason) + unconfirmed + queued
 *
 * In Node.js, the queue is sent when nothing else keeps the process alive. `process.exit()`, an
 * uncaught error and a signal end the process without that: await `close()` before. In browsers, the
 * queue is sent when the page is hidden or left.
 *
 * @module
 */

/** The log holds 512 characters of a query, which are up to 1,024 units of UTF-16. */
const MAX_QUERY_UNITS = 1024;
/** The log holds as many characters of an error. */
const MAX_ERROR_CHARS = 256;
/** The service rejects a longer line (64 KiB). */
const MAX_LINE_BYTES = 65_535;
/** Half of what nginx accepts by default, so that a proxy does not reject a batch. */
const MAX_BATCH_BYTES = 512 * 1024;
/** Browsers allow 64 KiB for all requests together that outlive their page. */
const MAX_BEACON_BYTES = 60_000;
const FIRST_PAUSE = 100;
const MAX_PAUSE = 5000;
/** A longer Retry-After is cut, so that a mistake of a proxy does not stop the client for days. */
const MAX_RETRY_AFTER = 60_000;

/** @typedef {"no_hit" | "low_confidence" | "timeout" | "error"} FailureType */
/** @typedef {FailureType | "success" | "cancelled"} Outcome */
/** @typedef {"higher_is_better" | "lower_is_better"} ScoreDirection */

/**
 * The fields of a record, with the names of the API. A later version may have more.
 *
 * @typedef {object} Fields
 * @property {number | null} [top_score] the best score that was found
 * @property {number | null} [confidence_threshold] the score that the best result must reach
 * @property {ScoreDirection} [score_direction] of attempts
 * @property {number | null} [result_count]
 * @property {number | null} [latency_ms]
 * @property {string | number | bigint | null} [conversation_id]
 * @property {number | null} [turn_index]
 * @property {unknown} [edge_types] a list of text
 * @property {unknown} [error_context] an error, text, or any JSON
 * @property {string | number | Date} [created_at] now by default
 * @property {string} [event_id] a UUID of version 7 by default
 */

/**
 * The counters of a client.
 *
 * @typedef {object} Stats
 * @property {number} received records that the application handed to the client
 * @property {number} accepted records that the service accepted
 * @property {number} rejected records that the service read and rejected
 * @property {Record<string, number>} dropped records that never reached the service, by reason:
 *     `queue_full`, `closed`, `unserialisable`, `too_long`, `unauthorized`, `request_rejected`,
 *     `close_timeout`
 * @property {number} unconfirmed records that were sent while the page was left, without a response
 * @property {number} queued records that have none of these results yet
 * @property {string | null} lastError the last failure of a request or a record, for people
 */

/**
 * Number of results and best score of a retrieval. Without a value, it is unknown.
 *
 * @typedef {object} Found
 * @property {number | null} [resultCount]
 * @property {number | null} [topScore]
 */

/**
 * @typedef {object} Options
 * @property {string} [url] the address of the service, with the path under which an application
 *     mounts it; in browsers it may be relative
 * @property {string} [token] a token with the scope `ingest`
 * @property {number} [capacity] the number of records that may wait; one batch more is under way
 * @property {number} [batchSize] the number of records in a request
 * @property {number} [flushInterval] the milliseconds that a record waits for others
 * @property {number} [timeout] the milliseconds that a request may take
 * @property {number} [exitTimeout] the milliseconds that the end of the process may wait for the
 *     queue, after the end of a request that is under way
 * @property {(error: string) => void} [onError] is told of each failed request and record
 */

/**
 * @typedef {object} StrategyOptions
 * @property {number} [confidenceThreshold] the score that the best result must reach
 * @property {ScoreDirection} [scoreDirection] `lower_is_better` if scores are distances
 * @property {(results: any) => Found} [found] describes a result; by default `describe` does
 * @property {(error: unknown) => boolean} [isTimeout] tells the timeouts among errors, besides those
 *     called `TimeoutError`
 */

/** A client of the service. One for each application is enough. */
export class FailureLogger {
  /** @type {string} */ #url;
  /** @type {string} For messages: without a path. */ #origin;
  /** @type {Record<string, string>} */ #headers;
  /** @type {Required<Omit<Options, "token" | "url" | "onError">>} */ #options;
  /** @type {((error: string) => void) | undefined} */ #onError;

  /** @type {RawRecord[]} */ #queue = [];
  /** @type {Delivery | null} The batch that is under way. */ #delivery = null;
  /** @type {Promise<void> | null} */ #draining = null;
  /** @type {unknown} */ #timer = null;
  /** @type {Pause | null} */ #pause = null;
  /** @type {{ target: number, resolve: (isDone: boolean) => void }[]} */ #waiting = [];

  #received = 0;
  #accepted = 0;
  #rejected = 0;
  #unconfirmed = 0;
  /** @type {Record<string, number>} */ #dropped = {};
  /** @type {string | null} */ #lastError = null;
  /** Records that came into the queue, and those of them that have a result. */
  #enqueued = 0;
  #settled = 0;
  /** @type {"open" | "closing" | "closed"} */ #state = "open";
  /** @type {number} The moment after which a close gives up. */ #deadline = Infinity;
  /** @type {Promise<boolean> | null} */ #closed = null;

  /**
   * @param {Options} [options]
   * @throws {TypeError} if the address or the token cannot be used
   */
  constructor({ url = "http://127.0.0.1:4318", token, onError, ...options } = {}) {
    const base = new URL(url, globalThis.location?.href);
    if (!/^https?:$/.test(base.protocol) || base.username || base.password) {
      throw new TypeError("url: expected http://HOST:PORT or https://HOST");
    }
    this.#origin = base.origin;
    this.#url = `${base.origin}${base.pathname.replace(/\/+$/, "")}/v1/attempts`;
    this.#headers = { "Content-Type": "application/x-ndjson" };
    if (token !== undefined) {
      if (!/^[!-~]+$/.test(token)) throw new TypeError("token: expected visible ASCII characters");
      this.#headers.Authorization = `Bearer ${token}`;
    }
    this.#onError = onError;
    this.#options = {
      capacity: Math.max(1, options.capacity ?? 10_000),
      batchSize: Math.max(1, options.batchSize ?? 500),
      flushInterval: Math.max(0, options.flushInterval ?? 250),
      timeout: options.timeout ?? 10_000,
      exitTimeout: options.exitTimeout ?? 2000,
    };
    clients.add(this);
  }

  /**
   * Queues a failure that no monitor counted. Never blocks, never throws.
   *
   * A timer reads the values later: do not change a list or object after the call.
   *
   * @param {FailureType} failureType
   * @param {string} strategy
   * @param {string} query
   * @param {Fields} [fields]
   */
  log(failureType, strategy, query, fields) {
    this.#enqueue({ failure_type: failureType }, strategy, query, fields);
  }

  /**
   * Queues an attempt, of which the service logs a failed one. Never blocks, never throws.
   *
   * Send each retrieval by `log` or by `attempt`, not by both.
   *
   * @param {Outcome} outcome
   * @param {string} strategy
   * @param {string} [query]
   * @param {Fields} [fields]
   */
  attempt(outcome, strategy, query = "", fields) {
    this.#enqueue({ outcome }, strategy, query, fields);
  }

  /**
   * Returns a monitor of the retrievals of one strategy.
   *
   * @param {string} name
   * @param {StrategyOptions} [options]
   */
  strategy(name, options) {
    return new Monitor(this, name, options);
  }

  /**
   * Returns the counters.
   *
   * @returns {Stats}
   */
  stats() {
    return {
      received: this.#received,
      accepted: this.#accepted,
      rejected: this.#rejected,
      dropped: { ...this.#dropped },
      unconfirmed: this.#unconfirmed,
      queued: this.#enqueued - this.#settled,
      lastError: this.#lastError,
    };
  }

  /**
   * Waits until each record of earlier calls has a result. Resolves with `false` if some have none
   * after `timeout` milliseconds. They stay in the queue.
   *
   * @param {number} [timeout]
   * @returns {Promise<boolean>}
   */
  flush(timeout = 5000) {
    return new Promise((resolve) => {
      if (this.#settled >= this.#enqueued) return resolve(true);
      // This timer keeps a process of Node.js alive, which those of the queue do not.
      const timer = setTimeout(() => waiter.resolve(false), timeout);
      const waiter = {
        target: this.#enqueued,
        resolve: (/** @type {boolean} */ isDone) => {
          clearTimeout(timer);
          this.#waiting = this.#waiting.filter((other) => other !== waiter);
          resolve(isDone);
        },
      };
      this.#waiting.push(waiter);
      this.#drain();
    });
  }

  /**
   * Sends the queue for at most `timeout` milliseconds, and ends the client. Resolves with `false`
   * if records were dropped because the time was over. Further records are dropped as `closed`.
   *
   * @param {number} [timeout]
   * @returns {Promise<boolean>}
   */
  close(timeout = 5000) {
    this.#closed ??= this.#close(timeout);
    return this.#closed;
  }

  /**
   * Sends what is queued as the process of Node.js ends.
   *
   * @internal
   */
  async drainAtExit() {
    if (this.#settled >= this.#enqueued) return;
    this.#endPause();
    if (!(await this.flush(this.#options.exitTimeout))) await this.close(0);
  }

  /**
   * Hands what is queued to the browser, which sends it after the page has ended. There is no
   * response. A batch that is under way is sent once more, because its request ends with the page.
   *
   * @internal
   */
  sendBeacons() {
    const delivery = this.#delivery;
    if (delivery !== null) {
      this.#delivery = null;
      delivery.isHandedOver = true;
      delivery.controller?.abort();
      this.#queue.unshift(...delivery.lines);
      this.#endPause(true);
    }
    while (this.#queue.length > 0) {
      const lines = this.#nextBatch(MAX_BEACON_BYTES);
      if (lines.length === 0) continue;
      const sent = this.#sendBeacon(lines);
      this.#queue.unshift(...lines.slice(sent));
      // The page may come back. Until then nothing more has room.
      if (sent === 0) return;
    }
  }

  /**
   * Keeps the error for `stats`.
   *
   * @internal
   * @param {string} text
   */
  warn(text) {
    this.#lastError = text;
    try {
      this.#onError?.(text);
    } catch {
      // The application's own mistake must not reach its retrieval.
    }
  }

  /**
   * @param {{ failure_type: string } | { outcome: string }} kind
   * @param {string} strategy
   * @param {string} query
   * @param {Fields | undefined} fields
   */
  #enqueue(kind, strategy, query, fields) {
    this.#received += 1;
    if (this.#state !== "open") return this.#count("closed", 1);
    if (this.#queue.length >= this.#options.capacity) return this.#count("queue_full", 1);
    try {
      /** @type {Record<string, unknown>} */
      const record = { ...fields, ...kind, retrieval_strategy: strategy, query_text: query };
      record.created_at ??= Date.now();
      if (typeof query === "string" && query.length > MAX_QUERY_UNITS) {
        record.query_len = new TextEncoder().encode(query).length;
        record.query_text = copyOf(query.slice(0, MAX_QUERY_UNITS));
      }
      const error = record.error_context;
      if (error instanceof Error) record.error_context = textOf(error);
      if (typeof error === "string" && error.length > 2 * MAX_ERROR_CHARS) {
        record.error_context = copyOf(error.slice(0, 2 * MAX_ERROR_CHARS));
      }
      this.#queue.push(record);
      this.#enqueued += 1;
    } catch (error) {
      // Such as a getter that throws.
      this.#count("unserialisable", 1);
      this.warn(textOf(error));
    }
    this.#schedule();
  }

  #schedule() {
    if (this.#timer !== null || this.#draining !== null || this.#queue.length === 0) return;
    this.#timer = setTimeout(() => this.#drain(), this.#options.flushInterval);
    unref(this.#timer);
  }

  /** Sends what is queued now. Later records wait for others first. */
  #drain() {
    if (this.#timer !== null) clearTimeout(/** @type {any} */ (this.#timer));
    this.#timer = null;
    this.#draining ??= this.#sendUntil(this.#enqueued)
      .catch((error) => this.warn(textOf(error)))
      .finally(() => {
        this.#draining = null;
        if (this.#waiting.length > 0 || this.#state === "closing") {
          if (this.#queue.length > 0) this.#drain();
        } else {
          this.#schedule();
        }
      });
    return this.#draining;
  }

  /** @param {number} target the number of settled records */
  async #sendUntil(target) {
    while (this.#settled < target && this.#queue.length > 0) {
      const lines = this.#nextBatch(MAX_BATCH_BYTES);
      if (lines.length > 0) await this.#deliver(lines);
    }
  }

  /**
   * Takes records up to the bounds of a batch, and turns them into lines. A page that came back may
   * have lines in its queue.
   *
   * @param {number} bytes
   * @returns {Line[]}
   */
  #nextBatch(bytes) {
    /** @type {Line[]} */
    const lines = [];
    let taken = 0;
    for (let size = 0; taken < this.#queue.length; taken += 1) {
      if (lines.length >= this.#options.batchSize || size >= bytes) break;
      const record = this.#queue[taken];
      const line = record instanceof Line ? record : this.#line(record);
      if (line === null) continue;
      lines.push(line);
      size += line.size + 1;
    }
    this.#queue.splice(0, taken);
    return lines;
  }

  /**
   * @param {Record<string, unknown>} record
   * @returns {Line | null}
   */
  #line(record) {
    let line;
    try {
      record.event_id ??= uuid7(Number(record.created_at));
      line = new Line(stringify(record));
    } catch (error) {
      this.#drop("unserialisable", 1, textOf(error));
      return null;
    }
    if (line.size <= MAX_LINE_BYTES) return line;
    this.#drop("too_long", 1, `a record of ${line.size} bytes`);
    return null;
  }

  /**
   * Sends the batch until each record has a result. A retry sends the same bytes.
   *
   * @param {Line[]} lines
   */
  async #deliver(lines) {
    /** @type {Delivery} */
    const delivery = { lines, isHandedOver: false, controller: null };
    this.#delivery = delivery;
    let pause = FIRST_PAUSE;
    let limit = lines.length;
    while (delivery.lines.length > 0 && this.#state !== "closed") {
      if (Date.now() >= this.#deadline) break;
      const part = delivery.lines.slice(0, limit);
      const response = await this.#post(part, delivery);
      if (delivery.isHandedOver || this.#isClosed()) break;
      const done = response.accepted + response.rejected;
      this.#accepted += response.accepted;
      this.#rejected += response.rejected;
      delivery.lines.splice(0, done);
      this.#settle(done);
      if (response.detail !== null) this.warn(response.detail);
      const rest = part.length - done;
      const { status, retryAfter } = response;
      if (response.isRetryable) {
        pause = done > 0 ? FIRST_PAUSE : Math.min(2 * pause, MAX_PAUSE);
        // Clients that lost the same service must not return in step.
        const wait = pause * (0.5 + Math.random() / 2);
        await this.#sleep(Math.max(wait, retryAfter), retryAfter > wait);
      } else if (status === 413 && rest > 1) {
        limit = Math.floor(rest / 2);
      } else {
        delivery.lines.splice(0, rest);
        const isUnauthorized = status === 401 || status === 403;
        const reason = isUnauthorized
          ? "unauthorized"
          : status === 413
            ? "too_long"
            : "request_rejected";
        this.#drop(reason, rest);
      }
    }
    if (delivery.isHandedOver) return;
    this.#delivery = null;
    if (!this.#isClosed()) this.#drop("close_timeout", delivery.lines.length);
  }

  /** Returns the state, which a call may have changed while another one waited. */
  #isClosed() {
    return this.#state === "closed";
  }

  /**
   * @param {Line[]} lines
   * @param {Delivery} delivery
   * @returns {Promise<Reply>}
   */
  async #post(lines, delivery) {
    const controller = new AbortController();
    delivery.controller = controller;
    const timer = setTimeout(() => controller.abort(), this.#options.timeout);
    try {
      const response = await fetch(this.#url, {
        method: "POST",
        headers: this.#headers,
        body: bodyOf(lines),
        credentials: "omit",
        redirect: "manual",
        signal: controller.signal,
      });
      return replyOf(response, await response.text(), lines.length);
    } catch (error) {
      const detail = `no response from ${this.#origin}: ${textOf(error)}`;
      return { status: 0, accepted: 0, rejected: 0, detail, retryAfter: 0, isRetryable: true };
    } finally {
      clearTimeout(timer);
      delivery.controller = null;
    }
  }

  /**
   * Waits. A close ends the pause at once, unless the service ordered it.
   *
   * @param {number} milliseconds
   * @param {boolean} isOrdered
   */
  async #sleep(milliseconds, isOrdered) {
    if (isOrdered && Date.now() + milliseconds > this.#deadline) this.#deadline = 0;
    const rest = Math.max(0, Math.min(milliseconds, this.#deadline - Date.now()));
    await new Promise((/** @type {(value?: unknown) => void} */ resolve) => {
      const timer = setTimeout(resolve, rest);
      unref(timer);
      const end = () => (clearTimeout(timer), resolve());
      this.#pause = { until: Date.now() + rest, isOrdered, end };
    });
    this.#pause = null;
  }

  /** @param {boolean} [also] also one that the service ordered */
  #endPause(also = false) {
    if (this.#pause !== null && (also || !this.#pause.isOrdered)) this.#pause.end();
  }

  /**
   * @param {number} timeout
   * @returns {Promise<boolean>}
   */
  async #close(timeout) {
    this.#state = "closing";
    this.#deadline = Date.now() + timeout;
    if (this.#pause?.isOrdered && this.#pause.until > this.#deadline) {
      // The service will not take the records in time.
      this.#deadline = 0;
      this.#endPause(true);
    }
    this.#endPause();
    await this.flush(Math.max(0, this.#deadline - Date.now()));
    this.#state = "closed";
    if (this.#timer !== null) clearTimeout(/** @type {any} */ (this.#timer));
    this.#queue = [];
    this.#drop("close_timeout", this.#enqueued - this.#settled);
    this.#delivery?.controller?.abort();
    this.#endPause(true);
    clients.delete(this);
    return this.#dropped.close_timeout === undefined;
  }

  /**
   * Hands lines to the browser, and returns the number that it took.
   *
   * @param {Line[]} lines
   */
  #sendBeacon(lines) {
    const sent = beginning(lines, MAX_BEACON_BYTES - bytesOnTheWay);
    if (sent.length === 0) return 0;
    const body = bodyOf(sent);
    try {
      // A beacon has no header for a token. To another origin it has cookies, which the service
      // does not allow.
      const isSameOrigin = this.#origin === globalThis.location?.origin;
      const isBeacon = isSameOrigin && this.#headers.Authorization === undefined;
      if (isBeacon && typeof navigator.sendBeacon === "function") {
        const type = this.#headers["Content-Type"];
        if (!navigator.sendBeacon(this.#url, new Blob([body], { type }))) return 0;
      } else {
        const size = sent.reduce((sum, line) => sum + line.size + 1, 0);
        bytesOnTheWay += size;
        const request = { method: "POST", headers: this.#headers, body, keepalive: true };
        fetch(this.#url, { ...request, credentials: "omit" })
          .catch((error) => this.warn(textOf(error)))
          .finally(() => (bytesOnTheWay -= size));
      }
    } catch (error) {
      this.warn(textOf(error));
      return 0;
    }
    this.#unconfirmed += sent.length;
    this.#settle(sent.length);
    return sent.length;
  }

  /**
   * @param {string} reason
   * @param {number} records
   * @param {string} [detail]
   */
  #drop(reason, records, detail) {
    if (records === 0) return;
    this.#count(reason, records);
    this.#settle(records);
    if (detail !== undefined) this.warn(`${records} dropped (${reason}): ${detail}`);
  }

  /**
   * @param {string} reason
   * @param {number} records
   */
  #count(reason, records) {
    this.#dropped[reason] = (this.#dropped[reason] ?? 0) + records;
  }

  /** @param {number} records */
  #settle(records) {
    this.#settled += records;
    for (const waiter of [...this.#waiting]) {
      if (this.#settled >= waiter.target) waiter.resolve(true);
    }
  }
}

/** Watches the retrievals of one strategy: see `FailureLogger.strategy`. */
export class Monitor {
  #logger;
  #name;
  #options;

  /**
   * @param {FailureLogger} logger
   * @param {string} name
   * @param {StrategyOptions} [options]
   */
  constructor(logger, name, options = {}) {
    this.#logger = logger;
    this.#name = name;
    this.#options = options;
  }

  /**
   * Runs a retrieval, sync or async. Returns and throws what it does.
   *
   * @template T
   * @param {string} query
   * @param {() => T} retrieve
   * @param {Fields} [fields] such as `conversation_id`
   * @returns {T}
   */
  observe(query, retrieve, fields) {
    const began = performance.now();
    let results;
    try {
      results = retrieve();
    } catch (error) {
      this.#fail(query, error, performance.now() - began, fields);
      throw error;
    }
    if (!isPromise(results)) {
      this.#succeed(query, results, performance.now() - began, fields);
      return results;
    }
    const observed = results.then(
      (found) => {
        this.#succeed(query, found, performance.now() - began, fields);
        return found;
      },
      (error) => {
        this.#fail(query, error, performance.now() - began, fields);
        throw error;
      },
    );
    return /** @type {T} */ (observed);
  }

  /**
   * Returns a function that observes each call of a function that retrieves, sync or async.
   *
   * @template {(...args: any[]) => any} F
   * @param {F} retrieve
   * @param {(...args: Parameters<F>) => string} [query] returns the query; by default it is the first
   *     argument
   * @returns {F}
   */
  wrap(retrieve, query) {
    const monitor = this;
    /**
     * @this {unknown}
     * @param {Parameters<F>} args
     */
    function observed(...args) {
      let text = "";
      try {
        text = String(query ? query(...args) : (args[0] ?? ""));
      } catch (error) {
        monitor.#logger.warn(`cannot read the query: ${textOf(error)}`);
      }
      return monitor.observe(text, () => retrieve.apply(this, args));
    }
    return /** @type {F} */ (observed);
  }

  /**
   * @param {string} query
   * @param {unknown} results
   * @param {number} latency
   * @param {Fields | undefined} fields
   */
  #succeed(query, results, latency, fields) {
    const { confidenceThreshold: threshold, scoreDirection, found: describer } = this.#options;
    /** @type {Found} */
    let found = {};
    try {
      found = describer ? describer(results) : describe(results, scoreDirection);
    } catch (error) {
      this.#logger.warn(`cannot describe results: ${textOf(error)}`);
    }
    const { resultCount, topScore } = found ?? {};
    const isLow =
      typeof topScore === "number" &&
      threshold !== undefined &&
      (scoreDirection === "lower_is_better" ? topScore > threshold : topScore < threshold);
    const outcome = resultCount === 0 ? "no_hit" : isLow ? "low_confidence" : "success";
    this.#record(outcome, query, latency, fields, {
      result_count: resultCount,
      top_score: topScore,
    });
  }

  /**
   * @param {string} query
   * @param {unknown} error
   * @param {number} latency
   * @param {Fields | undefined} fields
   */
  #fail(query, error, latency, fields) {
    /** @type {Outcome} */
    let outcome = "error";
    try {
      const { name, code } = /** @type {{ name?: unknown, code?: unknown }} */ (Object(error));
      const isTimeout = name === "TimeoutError" || code === "ETIMEDOUT";
      if (isTimeout || this.#options.isTimeout?.(error)) outcome = "timeout";
      // The application gave the retrieval up, which says nothing about it.
      else if (name === "AbortError") outcome = "cancelled";
    } catch (failure) {
      this.#logger.warn(`cannot judge an error: ${textOf(failure)}`);
    }
    const context = outcome === "cancelled" ? {} : { error_context: textOf(error) };
    this.#record(outcome, query, latency, fields, context);
  }

  /**
   * @param {Outcome} outcome
   * @param {string} query
   * @param {number} latency
   * @param {Fields | undefined} fields
   * @param {Fields} result
   */
  #record(outcome, query, latency, fields, result) {
    const { confidenceThreshold, scoreDirection = "higher_is_better" } = this.#options;
    // The log has no row for a success, so that its query need not leave the process.
    const isFailure = outcome !== "success" && outcome !== "cancelled";
    this.#logger.attempt(outcome, this.#name, isFailure ? query : "", {
      ...fields,
      confidence_threshold: confidenceThreshold,
      score_direction: scoreDirection,
      latency_ms: latency,
      ...result,
    });
  }
}

/**
 * Describes a list of results: their number and their best score.
 *
 * The score of a result is its second element or its property `score`. Null is no result. Text is
 * one result if it is not empty. The number of anything without a length or size is unknown.
 *
 * @param {any} results
 * @param {ScoreDirection} [scoreDirection]
 * @returns {Found}
 */
export function describe(results, scoreDirection = "higher_is_better") {
  if (results === null || results === undefined) return { resultCount: 0 };
  if (typeof results === "string") return { resultCount: results === "" ? 0 : 1 };
  const resultCount = Array.isArray(results) ? results.length : (results.size ?? results.length);
  if (typeof resultCount !== "number") return {};
  /** @type {number | null} */
  let topScore = null;
  if (typeof results[Symbol.iterator] === "function") {
    for (const result of results) {
      const score = Array.isArray(result) ? result[1] : result?.score;
      if (typeof score !== "number" || Number.isNaN(score)) continue;
      const isBetter =
        topScore === null ||
        (scoreDirection === "lower_is_better" ? score < topScore : score > topScore);
      if (isBetter) topScore = score;
    }
  }
  return { resultCount, topScore };
}

/** A record as JSON, and its size in bytes. */
class Line {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.size = new TextEncoder().encode(text).length;
  }
}

/** @typedef {Line | Record<string, unknown>} RawRecord */
/** @typedef {{ until: number, isOrdered: boolean, end: () => void }} Pause */
/** @typedef {{ lines: Line[], isHandedOver: boolean, controller: AbortController | null }} Delivery */

/**
 * The result of a request. The status 0 is that of no response.
 *
 * @typedef {object} Reply
 * @property {number} status
 * @property {number} accepted
 * @property {number} rejected
 * @property {string | null} detail
 * @property {number} retryAfter the milliseconds of `Retry-After`, or 0
 * @property {boolean} isRetryable
 */

/**
 * Reads a response, which may come from any server.
 *
 * @param {Response} response
 * @param {string} text
 * @param {number} sent
 * @returns {Reply}
 */
function replyOf(response, text, sent) {
  /** @type {any} */
  let body = {};
  try {
    body = Object(JSON.parse(text));
  } catch {
    // Not JSON, and so not the service.
  }
  const processed = Math.min(countOf(body.processed), sent);
  const rejected = Math.min(countOf(body.rejected), processed);
  const details = [body, ...(Array.isArray(body.errors) ? body.errors : [])]
    .map((error) => error?.detail)
    .filter((detail) => typeof detail === "string");
  let detail = details.length > 0 ? details[details.length - 1] : null;
  const { status } = response;
  if (detail === null && processed < sent)
    detail = `status ${status}, which is not a response of failure-logger`;
  const isRetryable = status === 408 || status === 429 || status >= 500;
  const retryAfter = retryAfterOf(response.headers.get("Retry-After"));
  return { status, accepted: processed - rejected, rejected, detail, retryAfter, isRetryable };
}

/** @param {unknown} value */
function countOf(value) {
  return typeof value === "number" && Number.isInteger(value) ? Math.max(0, value) : 0;
}

/**
 * Returns the milliseconds of the header, which is a number or a date (RFC 9110).
 *
 * @param {string | null} text
 */
function retryAfterOf(text) {
  if (text === null) return 0;
  const milliseconds = /^\s*\d+\s*$/.test(text)
    ? 1000 * Number(text)
    : Date.parse(text) - Date.now();
  return milliseconds > 0 ? Math.min(milliseconds, MAX_RETRY_AFTER) : 0;
}

/** @param {Line[]} lines */
function bodyOf(lines) {
  return lines.map((line) => line.text).join("\n");
}

/**
 * Returns the first lines, up to a number of bytes.
 *
 * @param {Line[]} lines
 * @param {number} bytes
 */
function beginning(lines, bytes) {
  let size = 0;
  const end = lines.findIndex((line) => (size += line.size + 1) > bytes);
  return end < 0 ? lines.slice() : lines.slice(0, end);
}

/**
 * Returns the JSON of a record.
 *
 * @param {Record<string, unknown>} record
 */
function stringify(record) {
  try {
    return JSON.stringify(record);
  } catch {
    // A function for each value is slow, and few records have such numbers.
    return JSON.stringify(record, (_, value) =>
      typeof value === "bigint" ? value.toString() : value,
    );
  }
}

/**
 * Returns a UUID of version 7 (RFC 9562): the time, then 74 random bits.
 *
 * @param {number} milliseconds
 */
function uuid7(milliseconds) {
  const time = Number.isSafeInteger(milliseconds) && milliseconds >= 0 ? milliseconds : Date.now();
  const bytes = randomBytes(10);
  bytes[0] = (bytes[0] & 0x0f) | 0x70;
  bytes[2] = (bytes[2] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const head = time.toString(16).padStart(12, "0").slice(-12);
  const parts = [head.slice(0, 8), head.slice(8), hex.slice(0, 4), hex.slice(4, 8), hex.slice(8)];
  return parts.join("-");
}

/** @param {number} count */
function randomBytes(count) {
  const bytes = new Uint8Array(count);
  // Node.js 18 has no `crypto` among its globals. The ids need not be secret.
  if (globalThis.crypto === undefined) return bytes.map(() => Math.floor(Math.random() * 256));
  return globalThis.crypto.getRandomValues(bytes);
}

/**
 * Returns the text of an error, with its name, whatever it is.
 *
 * @param {unknown} error
 * @returns {string}
 */
function textOf(error) {
  try {
    const cause = error instanceof Error ? error.cause : undefined;
    const text = cause instanceof Error ? `${error}: ${cause.message}` : String(error);
    return text.slice(0, MAX_ERROR_CHARS);
  } catch {
    return "an error without text";
  }
}

/**
 * Returns a part of a text that does not keep the whole text in memory.
 *
 * @param {string} part
 * @returns {string}
 */
function copyOf(part) {
  return JSON.parse(JSON.stringify(part));
}

/**
 * @param {unknown} value
 * @returns {value is Promise<unknown>}
 */
function isPromise(value) {
  return typeof (/** @type {any} */ (value)?.then) === "function";
}

/**
 * Lets a process of Node.js end although the timer runs.
 *
 * @param {unknown} timer
 */
function unref(timer) {
  /** @type {any} */ (timer)?.unref?.();
}

/** The bytes of requests that may outlive the page. */
let bytesOnTheWay = 0;

/** All clients that are not closed. @type {Set<FailureLogger>} */
const clients = new Set();

const { process } = /** @type {any} */ (globalThis);
if (typeof document === "object" && typeof addEventListener === "function") {
  addEventListener("pagehide", () => clients.forEach((client) => client.sendBeacons()));
  // A browser of a phone may end a hidden page without another event.
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") clients.forEach((client) => void client.flush());
  });
} else if (typeof process?.on === "function") {
  // Emitted once more if this sent anything, so that later records are sent, too.
  process.on("beforeExit", () => clients.forEach((client) => void client.drainAtExit()));
}
