"""Measures the time of a call of the client, against a running service.

    failure-logger serve --db bench.db --listen 127.0.0.1:0
    python3 clients/python/bench.py http://127.0.0.1:PORT [RECORDS_PER_SECOND]

The calls come at 1,000 a second by default, and then without a pause. The time of two reads of the
clock is subtracted. The last line shows that the service accepted every record.
"""

import gc
import statistics
import sys
import time
from typing import Callable, List

from failure_logger import FailureLogger

SECONDS = 10
BURST = 50_000


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4318"
    rate = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    logger = FailureLogger(url, capacity=10 * BURST)
    semantic = logger.strategy("semantic", confidence_threshold=0.3)
    hits = [("key.txt", 0.8), ("door.txt", 0.4)]

    def attempt() -> None:
        logger.attempt("success", "semantic", latency_ms=3.5, result_count=2, top_score=0.8)

    def log() -> None:
        logger.log("no_hit", "semantic", "where is the key?", latency_ms=3.5, result_count=0)

    def retrieval() -> None:
        with semantic.retrieval("where is the key?") as retrieval:
            retrieval.found(hits)

    for name, call in (("attempt()", attempt), ("log()", log), ("with retrieval()", retrieval)):
        report(f"{name}, {rate} a second", paced(call, rate))
        logger.flush(60)
        report(f"{name}, without a pause", unpaced(call))
        logger.flush(60)
    logger.close(60)
    print(logger.stats())


def paced(call: Callable[[], None], rate: int) -> List[int]:
    times = []
    due = time.perf_counter()
    for _ in range(SECONDS * rate):
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return times


def unpaced(call: Callable[[], None]) -> List[int]:
    times = []
    for _ in range(BURST):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return times


def clock() -> int:
    def read() -> int:
        began = time.perf_counter_ns()
        return time.perf_counter_ns() - began

    return int(statistics.median(read() for _ in range(10_000)))


def report(name: str, times: List[int]) -> None:
    times.sort()
    p50, p99 = ((times[len(times) * p // 100] - clock()) / 1000 for p in (50, 99))
    print(f"{name:32} p50 {p50:6.2f} us   p99 {p99:7.2f} us   max {times[-1] / 1000:9.2f} us")
    gc.collect()


if __name__ == "__main__":
    main()
