"""Tests of the client against the service itself.

    FAILURE_LOGGER_TEST_BINARY=target/release/failure-logger python3 clients/python/test_failure_logger.py

Each test starts a service on a port and a database of its own. `Front` stands between the client
and the service where a test needs a fault at a certain moment. Tests wait for events, not for a
time; the timeouts end a test that has failed.
"""

import asyncio
import collections
import http.client
import http.server
import json
import logging
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Tuple, cast

from failure_logger import FailureLogger, Found

FOLDER = pathlib.Path(__file__).resolve().parent
BINARY = str(pathlib.Path(os.environ["FAILURE_LOGGER_TEST_BINARY"]).resolve())
# Longer than anything that succeeds.
PATIENT = 60.0


class Service:
    """The program, on a port and a database of its own."""

    def __init__(self, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.db = os.path.join(self.folder.name, "failures.db")
        command = [BINARY, "serve", "--db", self.db, "--listen", listen, *arguments]
        with open(os.path.join(self.folder.name, "log"), "wb") as log:
            # The environment of the tester has no effect.
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env={}, cwd=self.folder.name
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        assert line.startswith("listening on "), line
        self.url = line[len("listening on ") :]

    def stop(self) -> None:
        """Ends the service, which commits what it accepted."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENT)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def failures(self) -> List[Dict[str, Any]]:
        """Ends the service, and returns its log, the oldest failure first."""
        return self._export()

    def attempts(self) -> Dict[str, int]:
        """Ends the service, and returns its attempts by outcome."""
        counts: Dict[str, int] = collections.Counter()
        for line in self._export("--attempts"):
            counts[line["outcome"]] += line["attempts"]
        return dict(counts)

    def _export(self, *arguments: str) -> List[Dict[str, Any]]:
        self.stop()
        command = [BINARY, "export", "--db", self.db, *arguments]
        output = subprocess.run(command, env={}, stdout=subprocess.PIPE, check=True).stdout
        return [json.loads(line) for line in output.splitlines()]


class Reply(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes


class Front:
    """A server before the service. `faults` take the first requests; it forwards the others."""

    def __init__(self, service: Optional[Service], *faults: Callable[[bytes], Optional[Reply]]):
        self.faults: Deque[Callable[[bytes], Optional[Reply]]] = collections.deque(faults)
        self.bodies: List[List[Dict[str, Any]]] = []
        self.times: List[float] = []
        self.arrived = threading.Event()
        self.released = threading.Event()
        self.service = service
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                front.bodies.append([json.loads(line) for line in body.splitlines()])
                front.times.append(time.monotonic())
                front.arrived.set()
                fault = front.faults.popleft() if front.faults else front.forward
                reply = fault(body)
                self.close_connection = True
                if reply is not None:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(reply.body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # A client that has ended does not read its response.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def forward(self, body: bytes) -> Reply:
        assert self.service is not None
        connection = http.client.HTTPConnection(self.service.url[len("http://") :])
        connection.request("POST", "/v1/attempts", body, {"Content-Type": "application/x-ndjson"})
        response = connection.getresponse()
        reply = Reply(response.status, {}, response.read())
        connection.close()
        return reply

    def hang(self, body: bytes) -> Reply:
        """Gives no response until the test releases it."""
        self.released.wait()
        return self.forward(body) if self.service is not None else Reply(503, {}, b"")

    def lose(self, body: bytes) -> None:
        """Forwards the request, and closes the connection without a response."""
        self.forward(body)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class Warnings(logging.Handler):
    """An event of the first warning of a client."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.first.set()


class ClientTest(unittest.TestCase):
    def setUp(self) -> None:
        self.warnings = Warnings()
        logger = logging.getLogger("failure_logger")
        logger.propagate = False
        logger.addHandler(self.warnings)
        self.addCleanup(logger.removeHandler, self.warnings)

    def service(self, *arguments: str, listen: str = "127.0.0.1:0") -> Service:
        service = Service(*arguments, listen=listen)
        self.addCleanup(service.folder.cleanup)
        self.addCleanup(service.stop)
        return service

    def front(self, service: Optional[Service], *faults: str) -> Front:
        front = Front(service)
        front.faults.extend(getattr(front, fault) for fault in faults)
        self.addCleanup(front.close)
        return front

    def client(self, url: str, **options: Any) -> FailureLogger:
        client = FailureLogger(url, **{"flush_interval": 0.01, **options})
        self.addCleanup(client.close, 0)
        return client

    def run_program(self, url: str, source: str) -> "subprocess.Popen[str]":
        """Starts a program that uses the client. It reads gates from its standard input."""
        program = f"from failure_logger import FailureLogger\nURL = {url!r}\n"
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program + textwrap.dedent(source)],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def output(self, process: "subprocess.Popen[str]") -> str:
        output, _ = process.communicate(timeout=PATIENT)
        self.assertEqual(process.returncode, 0, output)
        return output


class DeliveryTest(ClientTest):
    def test_batches_of_many_threads_arrive_exactly_once(self) -> None:
        service = self.service()
        client = self.client(service.url)

        def send(thread: int) -> None:
            for nth in range(300):
                outcome = "success" if nth % 3 else "no_hit"
                client.attempt(outcome, "semantic", f"query {thread} {nth}", latency_ms=nth / 10)
            client.log("error", "bm25", f"unobserved {thread}", error_context={"code": 7})

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(client.flush(PATIENT))
        stats = client.stats()
        self.assertEqual(stats[:3], (1204, 1204, 0))
        self.assertEqual((stats.dropped, stats.queued, stats.last_error), ({}, 0, None))
        queries = [row["query_text"] for row in service.failures()]
        self.assertEqual((len(queries), len(set(queries))), (404, 404))
        self.assertEqual(service.attempts(), {"success": 800, "no_hit": 400, "error": 4})

    def test_lost_response_is_retried_and_counted_once(self) -> None:
        service = self.service()
        front = self.front(service, "lose", "lose")
        client = self.client(front.url, flush_interval=PATIENT)
        client.log("no_hit", "semantic", "a failure")
        for _ in range(10):
            client.attempt("success", "semantic")
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(len(front.bodies), 3)
        self.assertEqual(front.bodies[0], front.bodies[2])
        ids = [line["event_id"] for line in front.bodies[0]]
        self.assertEqual((len(set(ids)), {event_id[14] for event_id in ids}), (11, {"7"}))
        self.assertEqual(client.stats().accepted, 11)
        self.assertEqual(len(service.failures()), 1)
        self.assertEqual(service.attempts(), {"success": 10, "no_hit": 1})

    def test_service_comes_back_and_gets_all(self) -> None:
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{port.getsockname()[1]}"
        client = self.client(f"http://{address}")
        for nth in range(700):
            client.attempt("no_hit", "semantic", f"query {nth}")
        self.assertTrue(self.warnings.first.wait(PATIENT))
        self.assertIn("no response", client.stats().last_error or "")
        service = self.service(listen=address)
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:3], (700, 700, 0))
        self.assertEqual(len({row["query_text"] for row in service.failures()}), 700)

    def test_full_service_is_retried_after_its_pause(self) -> None:
        service = self.service()
        front = self.front(service)

        def full(body: bytes) -> Reply:
            front.forward(b"\n".join(body.splitlines()[:2]))
            counts = b'{"processed": 2, "accepted": 2, "rejected": 0, "detail": "full"}'
            return Reply(503, {"Retry-After": "1"}, counts)

        front.faults.append(full)
        client = self.client(front.url, flush_interval=PATIENT)
        for nth in range(5):
            client.attempt("no_hit", "semantic", f"query {nth}")
        self.assertTrue(client.flush(PATIENT))
        self.assertGreaterEqual(front.times[1] - front.times[0], 1.0)
        self.assertEqual(front.bodies[1], front.bodies[0][2:])
        self.assertEqual((client.stats().accepted, client.stats().last_error), (5, "full"))
        self.assertEqual(len(service.failures()), 5)

    def test_full_buffer_of_the_service_loses_nothing(self) -> None:
        service = self.service("--set", "buffer_capacity=16", "--set", "batch_size=8")
        lock = sqlite3.connect(service.db, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        client = self.client(service.url, flush_interval=PATIENT)
        for nth in range(100):
            client.log("no_hit", "semantic", f"query {nth}")
        self.assertFalse(client.flush(0))
        self.assertTrue(self.warnings.first.wait(PATIENT))
        self.assertGreater(client.stats().queued, 0)
        lock.execute("ROLLBACK")
        lock.close()
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:4], (100, 100, 0, {}))
        self.assertEqual(len({row["query_text"] for row in service.failures()}), 100)

    def test_body_too_large_for_a_proxy_is_halved(self) -> None:
        service = self.service()
        front = self.front(service)

        def small(body: bytes) -> Reply:
            if len(body.splitlines()) > 2:
                return Reply(413, {}, b"<h1>too large</h1>")
            return front.forward(body)

        front.faults.extend([small] * 50)
        client = self.client(front.url, flush_interval=PATIENT)
        for nth in range(9):
            client.attempt("no_hit", "semantic", f"query {nth}")
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:4], (9, 9, 0, {}))
        self.assertEqual(len(service.failures()), 9)


class DropTest(ClientTest):
    def test_full_queue_counts_what_it_drops(self) -> None:
        service = self.service()
        front = self.front(service, "hang")
        client = self.client(front.url, capacity=10)
        client.attempt("success", "semantic")
        self.assertTrue(front.arrived.wait(PATIENT))
        for _ in range(30):
            client.attempt("success", "semantic")
        stats = client.stats()
        self.assertEqual((stats.dropped, stats.queued), ({"queue_full": 20}, 11))
        self.assertFalse(client.flush(0))
        front.released.set()
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:4], (31, 11, 0, {"queue_full": 20}))
        self.assertEqual(service.attempts(), {"success": 11})

    def test_wrong_token_is_counted_and_a_right_one_works(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tokens = os.path.join(folder, "tokens")
            with open(tokens, "w", encoding="ascii") as file:
                file.write("app ingest = cW8sPfE1uHi6ZgK4oNqM\n")
            os.chmod(tokens, 0o600)
            service = self.service("--token-file", tokens)
            # More than fits into the buffers of a connection that is rejected.
            wrong = self.client(service.url, token="wrong-wrong-wrong-wrong")
            for _ in range(400):
                wrong.log("error", "semantic", "é" * 512)
            self.assertTrue(wrong.flush(PATIENT))
            right = self.client(service.url, token="cW8sPfE1uHi6ZgK4oNqM")
            right.log("no_hit", "semantic", "right")
            self.assertTrue(right.flush(PATIENT))
        self.assertEqual(wrong.stats()[:4], (400, 0, 0, {"unauthorized": 400}))
        self.assertIn("token", wrong.stats().last_error or "")
        self.assertEqual([row["query_text"] for row in service.failures()], ["right"])

    def test_other_server_gets_each_record_once(self) -> None:
        front = self.front(None)
        front.faults.append(lambda body: Reply(200, {}, b"<h1>It works!</h1>"))
        front.faults.append(lambda body: Reply(404, {}, b'{"processed": "all", "errors": 7}'))
        client = self.client(front.url, flush_interval=PATIENT)
        for _ in range(2):
            client.log("no_hit", "semantic", "query")
            self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:4], (2, 0, 0, {"request_rejected": 2}))
        self.assertEqual(len(front.bodies), 2)

    def test_bad_record_is_counted_and_the_others_arrive(self) -> None:
        class Hostile:
            def __str__(self) -> str:
                raise SystemExit("no text")

        cycle: Dict[str, object] = {}
        cycle["cycle"] = cycle
        deep: List[Any] = []
        for _ in range(100_000):
            deep = [deep]
        service = self.service()
        client = self.client(service.url, flush_interval=PATIENT)
        nan = float("nan")
        client.attempt("low_confidence", "semantic", "nan", top_score=nan, latency_ms=nan)
        client.log("error", "semantic", "surrogate \ud83d", error_context="\udfff")
        client.log("error", "semantic", "cycle", error_context=cycle)
        client.log("error", "semantic", "hostile", error_context=Hostile())
        client.log("error", "semantic", "deep", error_context=deep)
        client.log("error", "semantic", "keys", error_context={(1, 2): 3})
        client.log("error", "semantic", "long", error_context={"text": "x" * 70_000})
        client.log("error", "semantic", "object", error_context={"path": FOLDER})
        client.log("no_hit", "semantic", "é" * 500_000)
        client.log("no_hit", "semantic", cast(str, None))
        client.log("no_hit", "semantic", cast(str, 7), unknown="field")
        client.log("no such type", "semantic", "rejected")
        client.log("no_hit", "semantic", "good")
        self.assertTrue(client.flush(PATIENT))
        stats = client.stats()
        self.assertEqual((stats.received, stats.accepted, stats.rejected), (13, 6, 2))
        self.assertEqual(stats.dropped, {"unserialisable": 4, "too_long": 1})
        rows = {row["query_text"]: row for row in service.failures()}
        self.assertEqual(set(rows), {"nan", "surrogate \ufffd", "object", "é" * 512, "7", "good"})
        self.assertEqual(rows["é" * 512]["query_len"], 1_000_000)
        self.assertIsNone(rows["nan"]["top_score"])
        self.assertIn(str(FOLDER), rows["object"]["error_context"])

    def test_closed_client_counts_late_records(self) -> None:
        service = self.service()
        client = self.client(service.url)
        client.log("no_hit", "semantic", "in time")
        self.assertTrue(client.close(PATIENT))
        client.log("no_hit", "semantic", "late")
        self.assertTrue(client.close(PATIENT))
        self.assertTrue(client.flush(PATIENT))
        self.assertEqual(client.stats()[:5], (2, 1, 0, {"closed": 1}, 0))

    def test_invalid_settings_are_rejected_at_once(self) -> None:
        for url in ("localhost:4318", "ftp://localhost", "http://", "http://a/b c", "http://a:b"):
            with self.assertRaises(ValueError):
                FailureLogger(url)
        with self.assertRaises(ValueError):
            FailureLogger(token="a\nb")


class HangTest(ClientTest):
    def test_caller_never_waits_for_a_service_that_hangs(self) -> None:
        front = self.front(self.service(), "hang")
        client = self.client(front.url, capacity=100, timeout=3600)
        client.attempt("success", "semantic")
        self.assertTrue(front.arrived.wait(PATIENT))

        def call() -> None:
            for _ in range(1000):
                client.log("no_hit", "semantic", "query")
                with client.strategy("semantic").retrieval("query") as retrieval:
                    retrieval.found([])
                client.stats()

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(PATIENT)
        self.assertFalse(caller.is_alive())
        self.assertFalse(front.released.is_set())
        self.assertFalse(client.close(0.1))
        self.assertEqual(client.stats().dropped, {"queue_full": 1900, "close_timeout": 101})
        # A response after the close changes no counter.
        front.released.set()
        thread = client._thread
        assert thread is not None
        thread.join(PATIENT)
        stats = client.stats()
        self.assertEqual((stats.accepted, stats.received, stats.queued), (0, 2001, 0))

    def test_close_does_not_wait_for_a_pause_beyond_its_timeout(self) -> None:
        front = self.front(None)
        front.faults.append(lambda body: Reply(503, {"Retry-After": "86400"}, b""))
        client = self.client(front.url)
        client.log("no_hit", "semantic", "query")
        self.assertTrue(self.warnings.first.wait(PATIENT))
        began = time.monotonic()
        self.assertFalse(client.close(50))
        self.assertLess(time.monotonic() - began, 25)
        self.assertEqual(len(front.bodies), 1)
        self.assertEqual(client.stats().dropped, {"close_timeout": 1})

    def test_exit_is_bounded_while_the_service_hangs(self) -> None:
        front = self.front(None, "hang")
        process = self.run_program(
            front.url,
            """
            logger = FailureLogger(URL, timeout=3600, exit_timeout=0.2)
            logger.log("no_hit", "semantic", "query")
            """,
        )
        self.assertEqual(self.output(process), "")
        self.assertEqual(len(front.bodies), 1)


class ProcessTest(ClientTest):
    def test_exit_without_close_sends_the_queue(self) -> None:
        service = self.service()
        process = self.run_program(
            service.url,
            """
            logger = FailureLogger(URL, flush_interval=3600, exit_timeout=60)
            for nth in range(1200):
                logger.attempt("no_hit", "semantic", f"query {nth}")
            """,
        )
        self.assertEqual(self.output(process), "")
        self.assertEqual(len({row["query_text"] for row in service.failures()}), 1200)

    def test_fork_gives_the_child_a_queue_of_its_own(self) -> None:
        service = self.service()
        process = self.run_program(
            service.url,
            """
            import os, sys
            logger = FailureLogger(URL, flush_interval=3600, exit_timeout=60)
            for nth in range(50):
                logger.log("no_hit", "semantic", f"before {nth}")
            child = os.fork()
            for nth in range(50):
                logger.log("no_hit", "semantic", f"{'parent' if child else 'child'} {nth}")
            assert logger.stats().received == (100 if child else 50)
            if child:
                _, status = os.waitpid(child, 0)
                assert status == 0
            """,
        )
        self.assertEqual(self.output(process), "")
        queries = collections.Counter(row["query_text"] for row in service.failures())
        self.assertEqual((len(queries), sum(queries.values())), (150, 150))
        self.assertEqual(service.attempts(), {"no_hit": 150})

    def test_fork_during_a_request_sends_nothing_twice(self) -> None:
        service = self.service()
        front = self.front(service, "hang")
        process = self.run_program(
            front.url,
            """
            import os, sys
            logger = FailureLogger(URL, flush_interval=0.01, exit_timeout=60)
            logger.attempt("success", "semantic")
            input()  # Until the request is under way.
            logger.attempt("success", "semantic")
            child = os.fork()
            logger.attempt("cancelled" if child else "no_hit", "semantic", "query")
            if not child:
                assert logger.flush(60)  # The parent's request still waits.
                os.kill(os.getpid(), 9)
            assert os.waitpid(child, 0)[1] == 9
            print("waiting", flush=True)
            """,
        )
        self.assertTrue(front.arrived.wait(PATIENT))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        self.assertEqual(process.stdout.readline(), "waiting\n")
        self.assertFalse(front.released.is_set())
        front.released.set()
        self.assertEqual(self.output(process), "")
        ids = [line["event_id"] for body in front.bodies for line in body]
        self.assertEqual((len(ids), len(set(ids))), (4, 4))
        self.assertEqual(service.attempts(), {"success": 2, "no_hit": 1, "cancelled": 1})

    def test_workers_of_multiprocessing_send_their_queues(self) -> None:
        for method in ("fork", "spawn"):
            with self.subTest(method):
                service = self.service()
                with tempfile.TemporaryDirectory() as folder:
                    program = pathlib.Path(folder, "program.py")
                    program.write_text(
                        textwrap.dedent(
                            f"""
                            import multiprocessing, sys
                            sys.path.insert(0, {str(FOLDER)!r})
                            from failure_logger import FailureLogger
                            logger = FailureLogger(
                                {service.url!r}, flush_interval=3600, exit_timeout=60
                            )
                            def work(name):
                                logger.log("no_hit", "semantic", f"query {{name}}")
                            if __name__ == "__main__":
                                work("parent")
                                context = multiprocessing.get_context({method!r})
                                workers = [
                                    context.Process(target=work, args=(nth,)) for nth in range(2)
                                ]
                                for worker in workers:
                                    worker.start()
                                for worker in workers:
                                    worker.join()
                            """
                        ),
                        encoding="utf-8",
                    )
                    subprocess.run([sys.executable, program], check=True, timeout=PATIENT)
                queries = sorted(row["query_text"] for row in service.failures())
                self.assertEqual(queries, ["query 0", "query 1", "query parent"])


class HttpxLikeTimeout(Exception):
    pass


Case = Tuple[Any, str, Optional[str]]
# What a retrieval returns or raises; the outcome; the text of the error in the log.
CASES: List[Case] = [
    ([("a", 0.2), ("b", 0.8)], "success", None),
    ([{"score": 0.9}], "success", None),
    ("one text", "success", None),
    (object(), "success", None),
    ([], "no_hit", None),
    (None, "no_hit", None),
    ([("a", 0.1), ("b", 0.29)], "low_confidence", None),
    ([("a", float("nan"))], "success", None),
    (TimeoutError("slow"), "timeout", "TimeoutError: slow"),
    (asyncio.TimeoutError(), "timeout", "TimeoutError"),
    (HttpxLikeTimeout("read"), "timeout", "HttpxLikeTimeout: read"),
    (OSError("no index"), "error", "OSError: no index"),
    (KeyboardInterrupt(), "cancelled", None),
    (asyncio.CancelledError(), "cancelled", None),
]


def run_case(case: Any) -> Any:
    if isinstance(case, BaseException):
        raise case
    return case


class MonitorTest(ClientTest):
    def setUp(self) -> None:
        super().setUp()
        self.server = self.service()
        self.logger = self.client(self.server.url)
        self.semantic = self.logger.strategy(
            "semantic", confidence_threshold=0.3, timeouts=(HttpxLikeTimeout,)
        )

    def assert_cases(self, run: Callable[[str, Any], Any]) -> None:
        """Runs every case, and compares what the caller and the service saw."""
        for nth, (case, _, _) in enumerate(CASES):
            if isinstance(case, BaseException):
                with self.assertRaises(type(case)) as raised:
                    run(f"query {nth}", case)
                self.assertIs(raised.exception, case)
            else:
                self.assertIs(run(f"query {nth}", case), case)
        self.assertTrue(self.logger.flush(PATIENT))
        self.assertEqual(self.logger.stats().accepted, len(CASES))
        expected = [
            (f"query {nth}", outcome, text)
            for nth, (_, outcome, text) in enumerate(CASES)
            if outcome not in ("success", "cancelled")
        ]
        rows = self.server.failures()
        seen = [(row["query_text"], row["failure_type"], row["error_context"]) for row in rows]
        self.assertEqual(sorted(seen), sorted(expected))
        low = next(row for row in rows if row["failure_type"] == "low_confidence")
        self.assertEqual((low["result_count"], low["confidence_threshold"]), (2, 0.3))
        self.assertAlmostEqual(low["top_score"], 0.29, places=5)
        outcomes = collections.Counter(outcome for _, outcome, _ in CASES)
        self.assertEqual(self.server.attempts(), dict(outcomes))

    def test_decorator_judges_sync_outcomes(self) -> None:
        @self.semantic.observe
        def search(query: str, case: Any) -> Any:
            return run_case(case)

        self.assertEqual(search.__name__, "search")
        self.assert_cases(search)

    def test_decorator_judges_async_outcomes(self) -> None:
        class Index:
            @self.semantic.observe(query="text")
            async def search(self, case: Any, text: str) -> Any:
                return run_case(case)

        def run(query: str, case: Any) -> Any:
            coroutine = Index().search(case, query)
            try:
                # Without a loop, which has a behaviour of its own for some exceptions.
                coroutine.send(None)
            except StopIteration as result:
                return result.value

        self.assert_cases(run)

    def test_context_manager_judges_sync_outcomes(self) -> None:
        def run(query: str, case: Any) -> Any:
            with self.semantic.retrieval(query) as retrieval:
                return retrieval.found(run_case(case))

        self.assert_cases(run)

    def test_context_manager_judges_async_outcomes(self) -> None:
        async def search(query: str, case: Any) -> Any:
            async with self.semantic.retrieval(query) as retrieval:
                return retrieval.found(run_case(case))

        def run(query: str, case: Any) -> Any:
            coroutine = search(query, case)
            try:
                coroutine.send(None)
            except StopIteration as result:
                return result.value

        self.assert_cases(run)

    def test_cancelled_task_is_neither_success_nor_failure(self) -> None:
        async def main() -> None:
            began = asyncio.Event()

            @self.semantic.observe
            async def search(query: str) -> None:
                began.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(search("query"))
            await began.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            with self.assertRaises(asyncio.TimeoutError):
                with self.semantic.retrieval("slow"):
                    await asyncio.wait_for(asyncio.Event().wait(), 0.001)

        asyncio.run(main())
        self.assertTrue(self.logger.flush(PATIENT))
        self.assertEqual(self.server.attempts(), {"cancelled": 1, "timeout": 1})

    def test_lower_score_is_better_for_distances(self) -> None:
        distance = self.logger.strategy(
            "distance", confidence_threshold=0.3, score_direction="lower_is_better"
        )
        for query, scores in (("near", (0.9, 0.1)), ("far", (0.9, 0.4))):
            with distance.retrieval(query, conversation_id=7, turn_index=2) as retrieval:
                retrieval.found([("document", score) for score in scores])
        self.assertTrue(self.logger.flush(PATIENT))
        (row,) = self.server.failures()
        self.assertEqual((row["query_text"], row["failure_type"]), ("far", "low_confidence"))
        self.assertAlmostEqual(row["top_score"], 0.4, places=5)
        self.assertEqual((row["conversation_id"], row["turn_index"]), ("7", 2))
        self.assertEqual(self.server.attempts(), {"success": 1, "low_confidence": 1})

    def test_results_of_another_shape_are_described(self) -> None:
        def found(results: Any) -> Found:
            return Found(len(results["hits"]), results["best"])

        bm25 = self.logger.strategy("bm25", confidence_threshold=2, found=found)
        cases: List[Dict[str, Any]] = [
            {"hits": [1], "best": 1.5},
            {"hits": [], "best": None},
            {"other": 1},
        ]
        for results in cases:
            with bm25.retrieval("query") as retrieval:
                self.assertIs(retrieval.found(results), results)
        self.assertTrue(self.logger.flush(PATIENT))
        self.assertEqual(self.server.attempts(), {"low_confidence": 1, "no_hit": 1, "success": 1})

    def test_generator_is_rejected_where_it_is_decorated(self) -> None:
        with self.assertRaises(TypeError):

            @self.semantic.observe
            def search(query: str) -> Any:
                yield query


if __name__ == "__main__":
    unittest.main()
