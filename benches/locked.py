#!/usr/bin/env python3
"""Locks the database of a service under a watchdog, and checks that the process lives and stores each accepted record.

    benches/locked.py target/release/failure-logger [SECONDS]

This process holds the write lock for SECONDS (600 by default). A socket takes the place of systemd's. If no ping arrives
for two seconds, the ping counts as missed: systemd would end the service. The exit code is 0 only if no ping was missed,
/readyz was 503 from fifteen seconds after the lock until its end and 200 after it, and every record with the response 202
is in the file.
"""

import http.client
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

WATCHDOG_SECONDS = 2
RECORD = '{"failure_type": "no_hit", "retrieval_strategy": "locked", "query_text": "is it stored?"}'


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 600.0
    folder = pathlib.Path(tempfile.mkdtemp(prefix="locked-"))
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(folder / "notify"))
    notify.settimeout(WATCHDOG_SECONDS)
    environment = os.environ | {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000),
    }
    command = [binary, "serve", "--db", folder / "failures.db", "--listen", "127.0.0.1:0"]
    with open(folder / "log", "w") as log:
        service = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    host, port = service.stdout.readline().strip().removeprefix("listening on http://").rsplit(":", 1)
    address = (host, int(port))
    missed = []
    threading.Thread(target=watch, args=(notify, missed), daemon=True).start()

    accepted = int(request(address, "POST", "/v1/failures", RECORD) == 202)
    lock = sqlite3.connect(folder / "failures.db", isolation_level=None, timeout=30)
    lock.execute("BEGIN IMMEDIATE")
    began, wrong, others = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        status = request(address, "POST", "/v1/failures", RECORD)
        accepted += status == 202
        others += status != 202
        ready = request(address, "GET", "/readyz")
        wrong += ready != 503 and time.monotonic() - began > 15
        time.sleep(0.2)
    pings_missed = len(missed)
    lock.execute("ROLLBACK")
    lock.close()
    ready, waited = 503, time.monotonic()
    while ready != 200 and time.monotonic() - waited < 60:
        ready = request(address, "GET", "/readyz")
        time.sleep(0.1)
    lives = service.poll() is None
    service.send_signal(signal.SIGTERM)
    code = service.wait(60)
    connection = sqlite3.connect(folder / "failures.db")
    (stored,) = connection.execute("SELECT count(*) FROM memory_retrieval_failures").fetchone()
    print(f"locked for {seconds:.0f} s: pings missed {pings_missed}, /readyz not 503 {wrong} times, 200 after it: {ready == 200}")
    print(f"accepted {accepted}, others {others}, stored {stored}, the process lives: {lives}, exit code {code}")
    held = lives and not pings_missed and not wrong and ready == 200 and stored == accepted and code == 0
    print("held" if held else "did not hold")
    sys.exit(0 if held else 1)


def watch(notify, missed):
    """Notes each interval without a ping, as the watchdog of systemd would."""
    while True:
        try:
            notify.recv(4096)
        except TimeoutError:
            missed.append(time.monotonic())


def request(address, method, path, body=None):
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main()
