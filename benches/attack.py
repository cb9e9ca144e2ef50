#!/usr/bin/env python3
"""Attacks a service in four ways at once, and measures the effect on its proper clients.

    cargo build --release --bin failure-logger
    benches/attack.py target/release/failure-logger [SECONDS]

For SECONDS (300 by default): 900 exports that are not read, 70 clients that send expensive reads, 8 bodies that come a
byte at a time, and 100 wrong tokens a second. Beside them, one client reads /v1/summary and one posts records, both with
right tokens. The exit code is 0 only if memory stayed below 200 MB and the p99 of /v1/summary below 250 ms, each post with
the right token got the response 202, and every accepted record is in the file.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

MAX_MEMORY_MB = 200
MAX_P99_MS = 250
READ, INGEST = "a-token-for-reading", "a-token-for-ingest"
EXPENSIVE = [
    "/v1/queries?since=30d&limit=1000&wait_ms=2500&retrieval_strategy=s{n}",
    "/v1/failures?since=30d&text=absent{n}&limit=1000",
    "/v1/conversations?since=30d&limit=1000&to=2030-01-01T00:00:{n:02}Z",
    "/v1/failures?since=30d&query_text=absent{n}",
    "/v1/failures?since=30d&retrieval_strategy=absent{n}",
]


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 300.0
    folder = pathlib.Path(tempfile.mkdtemp(prefix="attack-"))
    fill(folder / "failures.db")
    tokens = folder / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"reader read = {READ}\nsender ingest = {INGEST}\n")
    before = rows(folder / "failures.db")
    service, address = start(binary, folder)
    end = time.monotonic() + seconds
    results = {"summary_ms": [], "summary_other": 0, "accepted": 0, "posts_other": [], "memory_mb": 0.0}
    attacks = [stalled_exports] + [expensive_reads] * 70 + [slow_body] * 8 + [wrong_tokens] * 4
    threads = [
        threading.Thread(target=attack, args=(address, end, number), daemon=True)
        for number, attack in enumerate(attacks)
    ]
    threads += [
        threading.Thread(target=client, args=(address, end, results), daemon=True) for client in (read, post)
    ]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        results["memory_mb"] = max(results["memory_mb"], resident_mb(service.pid))
        time.sleep(0.2)
    for thread in threads[-2:]:
        thread.join(30)
    service.send_signal(signal.SIGTERM)
    code = service.wait(60)
    report(results, rows(folder / "failures.db") - before, code)


def fill(path):
    """Creates 120,000 failures of thirty days. The program creates the table, so that its schema is the current one."""
    binary = pathlib.Path(sys.argv[1]).resolve()
    subprocess.run([binary, "ingest", "--db", path], input=b"", check=True, stdout=subprocess.DEVNULL)
    connection = sqlite3.connect(path)
    connection.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 120000) "
        "INSERT INTO memory_retrieval_failures (event_id, conversation_id, turn_index, failure_type, "
        "retrieval_strategy, query_text, query_len, created_at) "
        "SELECT randomblob(16), 'c' || (n % 9000), 1, 'no_hit', 's' || (n % 7), "
        "'how is word' || (n % 6000) || ' made of ' || (n % 31), 30, unixepoch() * 1000 - n * 20000 FROM n"
    )
    connection.commit()
    connection.close()


def rows(path):
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM memory_retrieval_failures").fetchone()
    connection.close()
    return count


def start(binary, folder):
    command = [binary, "serve", "--db", folder / "failures.db", "--listen", "127.0.0.1:0"]
    command += ["--token-file", folder / "tokens", "--set", "max_reads_per_second=0"]
    with open(folder / "log", "w") as log:
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    url = service.stdout.readline().strip().removeprefix("listening on http://")
    host, port = url.rsplit(":", 1)
    return service, (host, int(port))


def request(address, method, path, token, body=None, timeout=30):
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def stalled_exports(address, end, _):
    """Keeps 900 connections open whose responses are not read."""
    head = f"GET /v1/export HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ}\r\n\r\n".encode()
    sockets = []
    while time.monotonic() < end:
        sockets = [one for one in sockets if is_open(one)]
        for _ in range(900 - len(sockets)):
            try:
                one = socket.create_connection(address, timeout=5)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.sendall(head)
                one.setblocking(False)
                sockets.append(one)
            except OSError:
                break
        time.sleep(1)


def is_open(one):
    try:
        return one.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def expensive_reads(address, end, number):
    """Sends reads whose parameters change, so that the service cannot share one response."""
    nth = number
    while time.monotonic() < end:
        nth += 70
        path = EXPENSIVE[nth % len(EXPENSIVE)].format(n=nth % 60)
        try:
            # Half of the clients do not wait for the response.
            request(address, "GET", path, READ, timeout=0.5 if number % 2 else 30)
        except OSError:
            pass


def slow_body(address, end, _):
    """Sends a body of almost 8 MiB, and then a byte each five seconds, which is within the timeout of 20 seconds."""
    head = (
        "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {INGEST}\r\nContent-Length: 8388608\r\n\r\n["
    ).encode()
    while time.monotonic() < end:
        try:
            one = socket.create_connection(address, timeout=5)
            one.sendall(head + b" " * 8_000_000)
            while time.monotonic() < end:
                one.sendall(b" ")
                time.sleep(5)
        except OSError:
            time.sleep(0.1)


def wrong_tokens(address, end, number):
    """Sends 25 requests a second and does not wait for the responses."""
    head = f"GET /v1/summary HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-wrong-token-{number}\r\n\r\n"
    sockets = []
    while time.monotonic() < end:
        try:
            one = socket.create_connection(address, timeout=5)
            one.sendall(head.encode())
            sockets.append(one)
        except OSError:
            pass
        if len(sockets) > 100:
            sockets.pop(0).close()
        time.sleep(0.04)


def read(address, end, results):
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            status = request(address, "GET", "/v1/summary?since=24h", READ)
        except OSError as error:
            status = error
        if status == 200:
            results["summary_ms"].append(1000 * (time.monotonic() - began))
        else:
            results["summary_other"] += 1
        time.sleep(0.05)


def post(address, end, results):
    record = {"failure_type": "no_hit", "retrieval_strategy": "attacked", "query_text": "is it stored?"}
    body = json.dumps(record)
    while time.monotonic() < end:
        try:
            status = request(address, "POST", "/v1/failures", INGEST, body)
        except OSError as error:
            status = error
        if status == 202:
            results["accepted"] += 1
        else:
            results["posts_other"].append(str(status))
        time.sleep(0.02)


def resident_mb(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1000


def report(results, stored, code):
    times = sorted(results["summary_ms"])
    p50, p99 = (times[int(share * (len(times) - 1))] if times else float("inf") for share in (0.5, 0.99))
    print(f"memory: {results['memory_mb']:.0f} MB at most")
    print(f"/v1/summary: {len(times)} responses, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {results['summary_other']} others")
    print(f"posts: {results['accepted']} accepted, {len(results['posts_other'])} others {results['posts_other'][:3]}")
    print(f"stored: {stored}; exit code {code}")
    held = (
        results["memory_mb"] < MAX_MEMORY_MB
        and p99 < MAX_P99_MS
        and not results["summary_other"]
        and not results["posts_other"]
        and stored == results["accepted"]
        and code == 0
    )
    print("held" if held else "did not hold")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    os.environ.pop("FAILURE_LOGGER_CONFIG", None)
    main()
