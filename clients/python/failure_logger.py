"""Sends retrievals to a failure-logger service, in the background.

One file, the standard library only, Python 3.9 or later. Copy it into the application::

    from failure_logger import FailureLogger

    logger = FailureLogger("http://127.0.0.1:4318")
    semantic = logger.strategy("semantic", confidence_threshold=0.3)

    @semantic.observe
    def search(query):
        return [("key.txt", 0.8)]

``search`` is now measured and counted, its outcome is judged, and its failures are logged. It
returns and raises what it did before.

A call that records a retrieval appends it to a bounded queue. It opens no connection, waits for no
thread and raises nothing. One daemon thread per process turns records into JSON, sends them in
batches and retries. What cannot be sent is counted by reason: :meth:`FailureLogger.stats`.

This equation holds whenever no call is under way::

    received = accepted + rejected + dropped (by reason) + queued
"""

from __future__ import annotations

import atexit
import collections
import email.utils
import functools
import http.client
import inspect
import itertools
import json
import logging
import numbers
import os
import random
import socket
import ssl
import sys
import threading
import time
import types
import urllib.parse
import uuid
import weakref
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
    cast,
    overload,
)

__all__ = ["FailureLogger", "Found", "Monitor", "Retrieval", "Stats", "describe"]
__version__ = "0.1.0"

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# The log holds as many characters of a query and of an error. The rest would only fill the queue.
MAX_QUERY_CHARS = 512
MAX_ERROR_CHARS = 256
# The service rejects a longer line (64 KiB).
MAX_LINE_BYTES = 65_535
# Half of what nginx accepts by default, so that a proxy does not reject a batch.
MAX_BATCH_BYTES = 512 * 1024
MAX_RESPONSE_BYTES = 1024 * 1024

FIRST_PAUSE = 0.1
MAX_PAUSE = 5.0
# A longer Retry-After is cut, so that a mistake of a proxy does not stop the client for days.
MAX_RETRY_AFTER = 60.0
# After so many records the thread lets callers run, because it holds the interpreter meanwhile.
RECORDS_BETWEEN_YIELDS = 16
YIELD_SECONDS = 0.00005
SECONDS_BETWEEN_WARNINGS = 60.0


class Stats(NamedTuple):
    """The counters of a client, since it was created or its process was forked."""

    #: Records that the application handed to the client.
    received: int
    #: Records that the service accepted.
    accepted: int
    #: Records that the service read and rejected, such as those with an unknown outcome.
    rejected: int
    #: Records that never reached the service, by reason: ``queue_full``, ``closed``,
    #: ``unserialisable``, ``too_long``, ``unauthorized``, ``request_rejected``, ``close_timeout``.
    dropped: Dict[str, int]
    #: Records that have none of these results yet.
    queued: int
    #: The last failure of a request or a record, for people.
    last_error: Optional[str]


class Found(NamedTuple):
    """Number of results and best score of a retrieval. None is unknown."""

    result_count: Optional[int] = None
    top_score: Optional[float] = None


class FailureLogger:
    """A client of the service. One for each application is enough; every thread may use it.

    :param url: the address of the service, with the path under which an application mounts it.
    :param token: a token with the scope ``ingest``.
    :param capacity: the number of records that may wait. Further records are dropped. One batch
        more is under way.
    :param batch_size: the number of records in a request.
    :param flush_interval: the seconds between two looks at the queue.
    :param timeout: the seconds that a request may wait for the network.
    :param exit_timeout: the seconds that the end of the program may wait for the queue.
    :param ssl_context: for an ``https`` address with a private authority.
    :raises ValueError: if the address or the token cannot be used.
    """

    _deadline: Optional[float]
    _thread: Optional[threading.Thread]
    _wake: threading.Event

    def __init__(
        self,
        url: str = "http://127.0.0.1:4318",
        *,
        token: Optional[str] = None,
        capacity: int = 10_000,
        batch_size: int = 500,
        flush_interval: float = 0.25,
        timeout: float = 10.0,
        exit_timeout: float = 2.0,
        ssl_context: Optional[ssl.SSLContext] = None,
    ) -> None:
        self._target = _Target(url, token, ssl_context)
        self._capacity = max(1, capacity)
        self._batch_size = max(1, batch_size)
        self._flush_interval = max(0.001, flush_interval)
        self._timeout = timeout
        self._exit_timeout = exit_timeout
        self._is_closing = False
        self._is_finished = False
        self._reset()
        _clients.add(self)

    def log(
        self,
        failure_type: str,
        strategy: str,
        query: str,
        *,
        top_score: Optional[float] = None,
        confidence_threshold: Optional[float] = None,
        result_count: Optional[int] = None,
        latency_ms: Optional[float] = None,
        conversation_id: Union[str, int, None] = None,
        turn_index: Optional[int] = None,
        edge_types: object = None,
        error_context: object = None,
        **fields: object,
    ) -> None:
        """Queues a failure that no monitor counted. Never blocks, never raises.

        ``failure_type`` is ``no_hit``, ``low_confidence``, ``timeout`` or ``error``. ``fields`` are
        further fields of ``POST /v1/failures``, such as ``created_at``. The thread reads the values
        later: do not change a list or dict after the call.
        """
        self._enqueue(
            "failure_type",
            failure_type,
            strategy,
            query,
            top_score,
            confidence_threshold,
            None,
            result_count,
            latency_ms,
            conversation_id,
            turn_index,
            edge_types,
            error_context,
            fields,
        )

    def attempt(
        self,
        outcome: str,
        strategy: str,
        query: str = "",
        *,
        top_score: Optional[float] = None,
        confidence_threshold: Optional[float] = None,
        score_direction: Optional[str] = None,
        result_count: Optional[int] = None,
        latency_ms: Optional[float] = None,
        conversation_id: Union[str, int, None] = None,
        turn_index: Optional[int] = None,
        edge_types: object = None,
        error_context: object = None,
        **fields: object,
    ) -> None:
        """Queues an attempt, of which the service logs a failed one. Never blocks, never raises.

        ``outcome`` is ``success``, ``no_hit``, ``low_confidence``, ``timeout``, ``error`` or
        ``cancelled``. Send each retrieval by :meth:`log` or by :meth:`attempt`, not by both.
        """
        self._enqueue(
            "outcome",
            outcome,
            strategy,
            query,
            top_score,
            confidence_threshold,
            score_direction,
            result_count,
            latency_ms,
            conversation_id,
            turn_index,
            edge_types,
            error_context,
            fields,
        )

    def strategy(
        self,
        name: str,
        *,
        confidence_threshold: Optional[float] = None,
        score_direction: str = "higher_is_better",
        found: Optional[Callable[[Any], Found]] = None,
        timeouts: Tuple[Type[BaseException], ...] = (),
    ) -> Monitor:
        """Returns a monitor of the retrievals of one strategy.

        :param confidence_threshold: the score that the best result must reach.
        :param score_direction: ``lower_is_better`` if scores are distances.
        :param found: describes a result; by default :func:`describe` does.
        :param timeouts: exceptions that are timeouts, besides those called ``TimeoutError``, such
            as ``(httpx.TimeoutException,)``.
        """
        return Monitor(self, name, confidence_threshold, score_direction, found, timeouts)

    def stats(self) -> Stats:
        """Returns the counters."""
        with self._lock:
            dropped = dict(self._dropped)
            for reason, tally in (("queue_full", self._full), ("closed", self._late)):
                count = tally.value()
                if count:
                    dropped[reason] = dropped.get(reason, 0) + count
            received = self._received.value()
            queued = received - self._accepted - self._rejected - sum(dropped.values())
            # A call between its two counts must not make the number negative.
            return Stats(
                received, self._accepted, self._rejected, dropped, max(0, queued), self._last_error
            )

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until each record of earlier calls has a result.

        Returns ``False`` if some have none after ``timeout`` seconds. They stay in the queue.
        """
        try:
            marker = threading.Event()
            self._queue.append(marker)
            self._start()
            self._wake.set()
            if self._is_finished:
                self._sweep()
            return marker.wait(timeout)
        except Exception as error:  # Such as a thread that cannot be started.
            self._warn(error)
            return False

    def close(self, timeout: float = 5.0) -> bool:
        """Sends the queue for at most ``timeout`` seconds, and ends the thread.

        Returns ``False`` if records were dropped because the time was over. Further records are
        dropped as ``closed``. The end of the program calls it with ``exit_timeout``.
        """
        try:
            deadline = self._begin_close(timeout)
            thread = self._thread
            if thread is not None and thread.is_alive():
                if thread is not threading.current_thread():
                    thread.join(max(0.0, deadline - time.monotonic()))
            else:
                # Nothing was recorded, or the interpreter starts no more threads.
                self._drain()
            self._finish()
        except Exception as error:
            self._warn(error)
        with self._lock:
            return self._dropped.get("close_timeout", 0) == 0

    def __enter__(self) -> FailureLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The caller's side: no lock, no system call, no work that could wait for the thread.

    def _enqueue(
        self,
        kind: str,
        value: str,
        strategy: str,
        query: str,
        top_score: Optional[float],
        confidence_threshold: Optional[float],
        score_direction: Optional[str],
        result_count: Optional[int],
        latency_ms: Optional[float],
        conversation_id: Union[str, int, None],
        turn_index: Optional[int],
        edge_types: object,
        error_context: object,
        fields: Dict[str, object],
    ) -> None:
        try:
            next(self._received.count)
            if self._is_closing:
                next(self._late.count)
                return
            # Other threads may append meanwhile: the bound is exact but for their number.
            if len(self._queue) >= self._capacity:
                next(self._full.count)
                return
            query_len = None
            if type(query) is str and len(query) > MAX_QUERY_CHARS:
                query, query_len = _cut_query(query)
            if type(error_context) is str:
                error_context = error_context[:MAX_ERROR_CHARS]
            self._queue.append(
                (
                    time.time(),
                    kind,
                    value,
                    strategy,
                    query,
                    query_len,
                    top_score,
                    confidence_threshold,
                    score_direction,
                    result_count,
                    latency_ms,
                    conversation_id,
                    turn_index,
                    edge_types,
                    error_context,
                    fields,
                )
            )
            if self._thread is None:
                self._start()
            # Closed since the check above: the thread may have ended without this record.
            if self._is_finished:
                self._sweep()
        except Exception as error:
            # The record is in the queue, or it is counted as queued until the client closes.
            self._warn(error)

    # States.

    def _reset(self) -> None:
        """Begins with an empty queue and no thread, as a new process must."""
        self._queue: Deque[_Entry] = collections.deque()
        self._received = _Tally()
        self._full = _Tally()
        self._late = _Tally()
        # Guards the fields below it. Held for a few assignments, never during a request.
        self._lock = threading.RLock()
        self._accepted = 0
        self._rejected = 0
        self._dropped: Dict[str, int] = {}
        self._last_error: Optional[str] = None
        self._deadline = None
        self._gives_up = False
        self._starting = threading.Lock()
        self._thread = None
        self._wake = threading.Event()
        self._connection: Optional[http.client.HTTPConnection] = None
        self._next_warning = 0.0

    def _after_fork_in_child(self) -> None:
        connection = self._connection
        self._reset()
        if connection is not None and connection.sock is not None:
            # Closes the child's copy alone: the parent's request continues.
            connection.sock.close()

    def _start(self) -> None:
        # Another thread that starts it, or an interrupted call of this one, need not be awaited.
        if self._is_closing or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                _close_with_multiprocessing()
                thread = threading.Thread(target=self._run, name="failure-logger", daemon=True)
                thread.start()
                self._thread = thread
        finally:
            self._starting.release()

    def _begin_close(self, timeout: float) -> float:
        """Lets no more records in. Returns the deadline of the first call."""
        with self._lock:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._is_closing = True
        self._wake.set()
        return self._deadline

    def _finish(self) -> None:
        """Counts what has no result as dropped. Later results of the thread do not count."""
        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
            self._gives_up = True
            queued = self.stats().queued
            for entry in _take_all(self._queue):
                if isinstance(entry, threading.Event):
                    entry.set()
            if queued:
                self._dropped["close_timeout"] = self._dropped.get("close_timeout", 0) + queued

    def _sweep(self) -> None:
        """Settles entries that came after the thread had ended."""
        for entry in _take_all(self._queue):
            if isinstance(entry, threading.Event):
                entry.set()
            else:
                next(self._late.count)

    def _settle(self, accepted: int = 0, rejected: int = 0) -> None:
        with self._lock:
            if not self._is_finished:
                self._accepted += accepted
                self._rejected += rejected

    def _drop(self, reason: str, records: int, error: object = None) -> None:
        if records == 0:
            return
        with self._lock:
            if not self._is_finished:
                self._dropped[reason] = self._dropped.get(reason, 0) + records
        if error is not None:
            self._warn(f"{records} dropped ({reason}): {error}")

    def _warn(self, error: object) -> None:
        """Keeps the error for `stats`, and logs one a minute."""
        try:
            self._last_error = _text(error)
            now = time.monotonic()
            if now >= self._next_warning:
                self._next_warning = now + SECONDS_BETWEEN_WARNINGS
                logging.getLogger("failure_logger").warning("cannot send: %s", self._last_error)
        except Exception:  # Such as a broken handler of the application.
            pass

    # The thread's side.

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            self._wake.wait(self._flush_interval)
            # Cleared before the state is read: a close after this line wakes the next wait.
            self._wake.clear()
            is_closing = self._is_closing
            try:
                self._drain()
            except Exception as error:
                self._warn(error)

    def _drain(self) -> None:
        try:
            while self._queue:
                batch, marker = self._next_batch()
                self._deliver(batch)
                if marker is not None:
                    marker.set()
        finally:
            # Between two drains the service or a proxy may close the connection.
            self._disconnect()

    def _next_batch(self) -> Tuple[List[bytes], Optional[threading.Event]]:
        """Takes records up to the bounds of a batch, or up to the mark of a flush."""
        lines: List[bytes] = []
        size = 0
        while len(lines) < self._batch_size and size < MAX_BATCH_BYTES:
            try:
                entry = self._queue.popleft()
            except IndexError:
                break
            if isinstance(entry, threading.Event):
                return lines, entry
            try:
                line = _line(entry)
            except BaseException as error:  # An object of the application may raise anything.
                self._drop("unserialisable", 1, error)
                continue
            if len(line) > MAX_LINE_BYTES:
                self._drop("too_long", 1, f"a record of {len(line)} bytes")
                continue
            lines.append(line)
            size += len(line)
            if len(lines) % RECORDS_BETWEEN_YIELDS == 0:
                time.sleep(YIELD_SECONDS)
        return lines, None

    def _deliver(self, batch: List[bytes]) -> None:
        """Sends the batch until each record has a result. A retry sends the same bytes."""
        pause = FIRST_PAUSE
        limit = len(batch)
        while batch:
            if self._is_late():
                self._drop("close_timeout", len(batch))
                return
            part = batch[:limit]
            response = self._post(part)
            self._settle(response.accepted, response.rejected)
            done = response.accepted + response.rejected
            if response.detail is not None:
                self._warn(response.detail)
            batch = batch[done:]
            rest = len(part) - done
            if response.is_retryable:
                pause = FIRST_PAUSE if done else min(2 * pause, MAX_PAUSE)
                # Clients that lost the same service must not return in step.
                wait = pause * random.uniform(0.5, 1.0)
                ordered = response.retry_after or 0.0
                self._pause(max(wait, ordered), ordered > wait)
            elif response.status == 413 and rest > 1:
                limit = max(1, rest // 2)
            elif response.status == 413:
                self._drop("too_long", rest)
                batch = batch[rest:]
            else:
                reason = "unauthorized" if response.status in (401, 403) else "request_rejected"
                self._drop(reason, rest)
                batch = batch[rest:]

    def _is_late(self) -> bool:
        deadline = self._deadline
        return self._gives_up or (deadline is not None and time.monotonic() >= deadline)

    def _pause(self, seconds: float, is_ordered: bool) -> None:
        """Waits. A close ends the pause at once, unless the service ordered it."""
        until = time.monotonic() + seconds
        was_closing = self._is_closing
        while not self._is_late():
            now = time.monotonic()
            if now >= until or (self._is_closing and not was_closing and not is_ordered):
                return
            deadline = self._deadline
            if deadline is not None and is_ordered and until > deadline:
                self._gives_up = True
                return
            self._wake.wait(min(until, deadline or until) - now)
            self._wake.clear()

    def _post(self, lines: List[bytes]) -> _Response:
        timeout, deadline = self._timeout, self._deadline
        if deadline is not None:
            timeout = max(0.001, min(timeout, deadline - time.monotonic()))
        try:
            if self._connection is None:
                self._connection = self._target.connect(timeout)
            connection = self._connection
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            try:
                connection.request(
                    "POST", self._target.path, b"\n".join(lines), self._target.headers
                )
            except (BrokenPipeError, ConnectionResetError):
                pass  # A server that rejects the request may respond before it has read the body.
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_BYTES)
            result = _Response.read(response, content, len(lines))
            if not response.isclosed():
                self._disconnect()
            return result
        except Exception as error:
            self._disconnect()
            return _Response(0, detail=f"no response from {self._target.url}: {_text(error)}")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception:
                pass  # The socket is of no further use.


class Monitor:
    """Watches the retrievals of one strategy: see :meth:`FailureLogger.strategy`."""

    def __init__(
        self,
        logger: FailureLogger,
        name: str,
        confidence_threshold: Optional[float],
        score_direction: str,
        found: Optional[Callable[[Any], Found]],
        timeouts: Tuple[Type[BaseException], ...],
    ) -> None:
        self._logger = logger
        self._name = name
        self._threshold = confidence_threshold
        self._direction = score_direction
        self._found = found
        self._timeouts = timeouts

    @overload
    def observe(self, function: F) -> F: ...

    @overload
    def observe(self, *, query: str) -> Callable[[F], F]: ...

    def observe(
        self, function: Optional[F] = None, *, query: str = "query"
    ) -> Union[F, Callable[[F], F]]:
        """Decorates a function that retrieves, sync or async.

        The query is the argument called ``query``, or the first one. ``@observe(query="text")``
        names another argument.

        :raises TypeError: if the function is a generator, whose end the decorator cannot see.
        """
        if function is None:
            return lambda function: self._decorate(function, query)
        return self._decorate(function, query)

    def retrieval(
        self,
        query: str,
        *,
        conversation_id: Union[str, int, None] = None,
        turn_index: Optional[int] = None,
        edge_types: object = None,
    ) -> Retrieval:
        """Returns a context manager around one retrieval, for ``with`` and ``async with``."""
        return Retrieval(self, query, conversation_id, turn_index, edge_types)

    def _decorate(self, function: F, name: str) -> F:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("cannot observe a generator: use `with monitor.retrieval(query)`")
        query = _query_reader(function, name)
        call = getattr(type(function), "__call__", None)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

            @functools.wraps(function)
            async def observed_async(*args: Any, **kwargs: Any) -> Any:
                with self.retrieval(query(args, kwargs)) as retrieval:
                    return retrieval.found(await function(*args, **kwargs))

            return cast(F, observed_async)

        @functools.wraps(function)
        def observed(*args: Any, **kwargs: Any) -> Any:
            with self.retrieval(query(args, kwargs)) as retrieval:
                return retrieval.found(function(*args, **kwargs))

        return cast(F, observed)

    def _describe(self, results: object) -> Found:
        if self._found is None:
            return describe(results, self._direction)
        return self._found(results)

    def _judge(self, found: Found) -> str:
        count, score = found
        if count == 0:
            return "no_hit"
        if score is not None and self._threshold is not None:
            lower = self._direction == "lower_is_better"
            if score > self._threshold if lower else score < self._threshold:
                return "low_confidence"
        return "success"

    def _judge_error(self, error: BaseException) -> str:
        if isinstance(error, (TimeoutError, socket.timeout, *self._timeouts)):
            return "timeout"
        # asyncio, concurrent.futures (before Python 3.11) and databases have classes of their own.
        if any(kind.__name__ == "TimeoutError" for kind in type(error).__mro__):
            return "timeout"
        # asyncio.CancelledError, KeyboardInterrupt and the like say nothing about the retrieval.
        return "error" if isinstance(error, Exception) else "cancelled"


class Retrieval:
    """One retrieval: measures the block, and records it at the end of the block.

    ::

        with semantic.retrieval(query) as retrieval:
            hits = retrieval.found(index.search(query))
    """

    __slots__ = (
        "_monitor",
        "_query",
        "_conversation_id",
        "_turn_index",
        "_edge_types",
        "_started",
        "_latency",
        "_found",
    )

    def __init__(
        self,
        monitor: Monitor,
        query: str,
        conversation_id: Union[str, int, None],
        turn_index: Optional[int],
        edge_types: object,
    ) -> None:
        self._monitor = monitor
        self._query = query
        self._conversation_id = conversation_id
        self._turn_index = turn_index
        self._edge_types = edge_types
        self._started = time.perf_counter()
        self._latency: Optional[float] = None
        self._found = Found()

    def found(self, results: T) -> T:
        """Tells what the retrieval found, ends the measurement, and returns the results unchanged.

        Without this call, a block that raises nothing is a success with unknown results.
        """
        self._latency = time.perf_counter() - self._started
        try:
            self._found = self._monitor._describe(results)
        except Exception as error:  # The results of an application may raise anything.
            self._monitor._logger._warn(f"cannot describe results: {_text(error)}")
        return results

    def __enter__(self) -> Retrieval:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        _kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        _trace: Optional[types.TracebackType],
    ) -> None:
        latency = self._latency
        if latency is None or error is not None:
            latency = time.perf_counter() - self._started
        try:
            self._record(latency, error)
        except Exception as failure:  # Such as a threshold that is not a number.
            self._monitor._logger._warn(failure)

    async def __aenter__(self) -> Retrieval:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[types.TracebackType],
    ) -> None:
        self.__exit__(kind, error, trace)

    def _record(self, latency: float, error: Optional[BaseException]) -> None:
        monitor = self._monitor
        if error is None:
            found, outcome, text = self._found, monitor._judge(self._found), None
        else:
            # The text alone: the exception would keep the frames of the application alive.
            found, outcome, text = Found(), monitor._judge_error(error), _text(error)
        is_failure = outcome not in ("success", "cancelled")
        monitor._logger.attempt(
            outcome,
            monitor._name,
            # The log has no row for a success, so that its query need not leave the process.
            self._query if is_failure else "",
            top_score=found.top_score,
            confidence_threshold=monitor._threshold,
            score_direction=monitor._direction,
            result_count=found.result_count,
            latency_ms=latency * 1000,
            conversation_id=self._conversation_id,
            turn_index=self._turn_index,
            edge_types=self._edge_types,
            error_context=text if is_failure else None,
        )


def describe(results: object, score_direction: str = "higher_is_better") -> Found:
    """Describes a list of results: their number and their best score.

    The score of a result is its second element, its key ``score`` or its attribute ``score``. None
    is no result. Text and a mapping are one result if they are not empty. The number of anything
    without a length is unknown.
    """
    if results is None:
        return Found(0)
    if type(results) is not list and isinstance(results, (str, bytes, Mapping)):
        return Found(1 if results else 0)
    if not hasattr(type(results), "__len__"):
        return Found()
    items = cast("collections.abc.Sized", results)
    scores = [score for score in map(_score, cast(List[object], results)) if score is not None]
    best = min if score_direction == "lower_is_better" else max
    return Found(len(items), best(scores) if scores else None)


_Record = Tuple[
    float,
    str,
    str,
    str,
    str,
    Optional[int],
    Optional[float],
    Optional[float],
    Optional[str],
    Optional[int],
    Optional[float],
    Union[str, int, None],
    Optional[int],
    object,
    object,
    Dict[str, object],
]
# A flush waits for the event, which stands behind the records of earlier calls.
_Entry = Union[_Record, threading.Event]

# The names of a record's elements from the strategy on.
_FIELDS = (
    "retrieval_strategy",
    "query_text",
    "query_len",
    "top_score",
    "confidence_threshold",
    "score_direction",
    "result_count",
    "latency_ms",
    "conversation_id",
    "turn_index",
    "edge_types",
    "error_context",
)
# Texts of unknown objects are what the service reads best: numbers of numpy, dates, UUIDs, paths.
_ENCODE = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _line(record: _Record) -> bytes:
    """Returns the record as a line of JSON, with an id that makes a retry harmless."""
    at = int(record[0] * 1000)
    line: Dict[str, object] = {**record[-1], record[1]: record[2]}
    # A retry must have the same id and the same moment, also if the caller gave None.
    if line.get("event_id") is None:
        line["event_id"] = _uuid7(at)
    if line.get("created_at") is None:
        line["created_at"] = at
    for name, value in zip(_FIELDS, record[3:-1]):
        if value is not None:
            line[name] = value
    return _ENCODE(line).encode("ascii")


def _uuid7(milliseconds: int) -> str:
    """Returns a UUID of version 7 (RFC 9562): the time, then 74 random bits."""
    # Not the module `random`: processes that were forked would draw the same numbers.
    bits = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | (bits >> 62 & 0xFFF) << 64
    return str(uuid.UUID(int=value | 2 << 62 | bits & (1 << 62) - 1))


def _cut_query(query: str) -> Tuple[str, int]:
    """Returns what the log holds of a long query, and the length of the whole in bytes."""
    size = len(query) if query.isascii() else len(query.encode("utf-8", "surrogatepass"))
    return query[:MAX_QUERY_CHARS], size


def _text(error: object) -> str:
    """Returns the text of an error, with the name of its class, whatever its `__str__` does."""
    if isinstance(error, str):
        return error[:MAX_ERROR_CHARS]
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return name
    return f"{name}: {text[:MAX_ERROR_CHARS]}"[:MAX_ERROR_CHARS] if text else name


def _score(result: object) -> Optional[float]:
    if isinstance(result, (tuple, list)):
        score: object = result[1] if len(result) > 1 else None
    elif isinstance(result, Mapping):
        score = result.get("score")
    else:
        score = getattr(result, "score", None)
    # The type first: an instance of an abstract class takes ten times as long to recognise.
    if type(score) is float:
        number = score
    elif isinstance(score, numbers.Real) and not isinstance(score, bool):
        number = float(score)
    else:
        return None
    return number if number == number else None  # NaN is no score.


def _query_reader(
    function: Callable[..., Any], name: str
) -> Callable[[Tuple[Any, ...], Dict[str, Any]], str]:
    """Returns a function that finds the query among the arguments of a call."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # A function that was written in C.
        names = []
    if name in names:
        place = names.index(name)
    else:
        place = 1 if names[:1] in (["self"], ["cls"]) else 0
        name = names[place] if place < len(names) else name

    def read(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> str:
        try:
            query = kwargs[name] if name in kwargs else args[place] if place < len(args) else ""
            return query if isinstance(query, str) else str(query)
        except Exception:  # The retrieval itself will tell of wrong arguments.
            return ""

    return read


class _Tally:
    """A counter that any thread and any signal handler may raise without a lock.

    ``next`` on ``count`` is one step of the interpreter. Reading it takes a step, too.
    """

    __slots__ = ("count", "_reads")

    def __init__(self) -> None:
        self.count = itertools.count()
        self._reads = 0

    def value(self) -> int:
        """Returns the count. The caller holds the lock of the client."""
        value = next(self.count) - self._reads
        self._reads += 1
        return value


class _Target:
    """Address and headers of the requests."""

    def __init__(
        self, url: str, token: Optional[str], ssl_context: Optional[ssl.SSLContext]
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url = {url!r}: expected http://HOST:PORT or https://HOST")
        if not _is_visible(parts.netloc + parts.path):
            raise ValueError(f"url = {url!r}: expected visible ASCII characters")
        self._host = parts.hostname
        self._port = parts.port
        self._ssl_context = ssl_context
        if parts.scheme == "https" and ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        if parts.scheme == "http":
            self._ssl_context = None
        port = "" if parts.port is None else f":{parts.port}"
        #: For messages: without a user and password.
        self.url = f"{parts.scheme}://{parts.hostname}{port}"
        self.path = parts.path.rstrip("/") + "/v1/attempts"
        self.headers = {
            "Content-Type": "application/x-ndjson",
            "User-Agent": f"failure-logger-python/{__version__}",
        }
        if token is not None:
            if not token or not _is_visible(token):
                raise ValueError("token: expected visible ASCII characters")
            self.headers["Authorization"] = f"Bearer {token}"

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._ssl_context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout, context=self._ssl_context
        )


class _Response(NamedTuple):
    """The result of a request."""

    #: 0: no response came.
    status: int
    accepted: int = 0
    rejected: int = 0
    detail: Optional[str] = None
    #: The seconds of `Retry-After`.
    retry_after: Optional[float] = None

    @property
    def is_retryable(self) -> bool:
        return self.status in (0, 408, 429) or self.status >= 500

    @staticmethod
    def read(response: http.client.HTTPResponse, content: bytes, sent: int) -> _Response:
        """Reads a response, which may come from any server."""
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            body = {}
        processed = min(_count(body, "processed"), sent)
        rejected = min(_count(body, "rejected"), processed)
        details = [body, *(body["errors"] if isinstance(body.get("errors"), list) else ())]
        texts = [
            error["detail"]
            for error in details
            if isinstance(error, dict) and isinstance(error.get("detail"), str)
        ]
        detail = texts[-1] if texts else None
        if detail is None and processed < sent:
            detail = f"status {response.status}, which is not a response of failure-logger"
        return _Response(
            response.status,
            processed - rejected,
            rejected,
            detail,
            _retry_after(response.getheader("Retry-After")),
        )


def _is_visible(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _count(body: Dict[str, Any], name: str) -> int:
    value = body.get(name)
    return max(0, value) if type(value) is int else 0


def _retry_after(text: Optional[str]) -> Optional[float]:
    """Returns the seconds of the header, which is a number or a date (RFC 9110)."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    # Also false for NaN.
    return min(seconds, MAX_RETRY_AFTER) if seconds >= 0 else 0.0


def _take_all(entries: Deque[_Entry]) -> List[_Entry]:
    taken: List[_Entry] = []
    while True:
        try:
            taken.append(entries.popleft())
        except IndexError:
            return taken


# All clients of this process. A running thread keeps its client alive until the client is closed.
_clients: weakref.WeakSet[FailureLogger] = weakref.WeakSet()
_is_closed_by_multiprocessing = False


def _close_all() -> None:
    """Drains all clients at the end of the process, at the same time."""
    clients = list(_clients)
    for client in clients:
        client._begin_close(client._exit_timeout)
    for client in clients:
        client.close()


def _close_with_multiprocessing() -> None:
    """Lets a process of `multiprocessing` drain, too: it ends without the functions of `atexit`."""
    global _is_closed_by_multiprocessing
    process = sys.modules.get("multiprocessing.process")
    util = sys.modules.get("multiprocessing.util")
    if _is_closed_by_multiprocessing or process is None or util is None:
        return
    if process.parent_process() is not None:
        _is_closed_by_multiprocessing = True
        # The lowest priority: after the finalizers of the application, which may record.
        util.Finalize(None, _close_all, exitpriority=-1)


def _after_fork_in_child() -> None:
    global _is_closed_by_multiprocessing
    _is_closed_by_multiprocessing = False
    for client in list(_clients):
        client._after_fork_in_child()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
