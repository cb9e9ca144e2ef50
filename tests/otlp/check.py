"""Checks a service against real frameworks: `check.py PROGRAM [--verbose]`, with PROGRAM such as target/release/failure-logger.

Runs each application of `applications.py` against the service, and compares the outcomes with the table "Outcomes of
real frameworks" in docs/opentelemetry.md, so that the document and this check cannot disagree. The thresholds are in the
same table. The application REPEATED sends each export four times. At last, SIGTERM ends the service while a retrieval
waits for its parent. The exit code is 1 if anything differs. With --verbose, the applications print their exceptions.
"""

import concurrent.futures
import gzip
import http.server
import json
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

HERE = pathlib.Path(__file__).resolve().parent
APPLICATIONS = HERE / "applications.py"
DOCUMENT = HERE.parents[1] / "docs" / "opentelemetry.md"
HEADING = "Outcomes of real frameworks"
PROTOBUF, JSON = "application/x-protobuf", "application/json"
# Its retrievers are nested, so that a repeated span is a duplicate or a part.
REPEATED = "llamaindex-openinference"
# In the order of the table.
OUTCOMES = ["success", "no_hit", "low_confidence", "timeout", "error", "unknown"]
WAITING_QUERY = "query that waits for its parent"
TIMEOUT = 60

differences = []


def check(subject, found, expected):
    """Prints a comparison, and remembers a difference."""
    if found == expected:
        print(f"  as expected: {subject}: {found}")
    else:
        print(f"  DIFFERENT:   {subject}: {found}, expected {expected}")
        differences.append(subject)


def read_table():
    """Returns the threshold and the number of retrievals by outcome of each application, from the document."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"## {HEADING}\n")[1].split("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines()
            if line.startswith("|")]
    header, _, *rows = rows
    assert header == ["application", "threshold", *OUTCOMES], f"the table in {DOCUMENT.name} has the columns {header}"
    return {name: (float(threshold), dict(zip(OUTCOMES, map(int, counts)))) for name, threshold, *counts in rows}


class Service:
    """A service with a database and rules of its own, on a free port."""

    def __init__(self, program, folder, table):
        self.database = folder / "failures.db"
        config = folder / "failure-logger.toml"
        # Strategies of different applications have the same names, so that a rule names them by application.
        config.write_text("".join(
            f'[[trace_rules]]\nsource = "{name}"\nname = "{name}"\nconfidence_threshold = {threshold}\n\n'
            for name, (threshold, _) in table.items()))
        self.log = folder / "log"
        command = [program, "serve", "--config", config, "--db", self.database, "--listen", "127.0.0.1:0"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline().strip()
        if not line.startswith("listening on http://"):
            sys.exit(f"{program} does not start: {line}\n{self.log.read_text()}")
        self.url = line.removeprefix("listening on ")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=TIMEOUT) as response:
            return json.load(response)

    def traces(self):
        return self.get("/v1/stats")["traces"]

    def settled(self):
        """Waits until no retrieval waits for its parent and all are committed. Returns the summary by strategy."""
        began = time.monotonic()
        while time.monotonic() - began < TIMEOUT:
            traces = self.traces()
            summary = self.get("/v1/summary?since=1h")
            total = summary["total"]
            committed = total["attempts"] + total["unknown"] + total["cancelled"]
            if traces["waiting"] == 0 and committed == traces["retrievals"]:
                print(f"  settled after {time.monotonic() - began:.1f} s")
                break
            time.sleep(0.1)
        else:
            differences.append("settled")
            print(f"  DIFFERENT:   after {TIMEOUT} s, {traces['waiting']} retrievals wait, and {committed} of "
                  f"{traces['retrievals']} are committed")
        return {strategy["retrieval_strategy"]: strategy["rates"] for strategy in summary["strategies"]}


class Repeat(http.server.BaseHTTPRequestHandler):
    """Sends each export to the service twice, as a client does whose response was lost. The copy is compressed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        self.server.bodies.append((kind, body))
        for copy, encoding in ((body, "identity"), (gzip.compress(body), "gzip")):
            headers = {"Content-Type": kind, "Content-Encoding": encoding}
            request = urllib.request.Request(self.server.target + self.path, copy, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as sent:
                response = sent.read()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_):
        pass


def run(name, endpoint, *options):
    began = time.monotonic()
    finished = subprocess.run([sys.executable, APPLICATIONS, name, endpoint, *options], capture_output=True, text=True)
    if finished.returncode != 0 or "--verbose" in sys.argv:
        print(finished.stderr)
    check(f"{name} runs ({time.monotonic() - began:.0f} s), exit code", finished.returncode, 0)


def run_repeatedly(name, service):
    """Runs an application that sends protobuf and JSON, each twice. Returns the number of its retriever spans."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Repeat) as server:
        server.bodies, server.target = [], service.url
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run(name, f"http://127.0.0.1:{server.server_port}", "--json")
        server.shutdown()
    check(f"{name} sent both encodings", {kind for kind, _ in server.bodies}, {PROTOBUF, JSON})
    # A concatenation of messages is the message with all their repeated fields.
    sent = ExportTraceServiceRequest.FromString(b"".join(body for kind, body in server.bodies if kind == PROTOBUF))
    spans = [span for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans]
    return sum(attribute.value.string_value == "RETRIEVER"
               for span in spans for attribute in span.attributes if attribute.key == "openinference.span.kind")


def export_waiting_retrieval(service):
    """Sends a retrieval that found nothing, and whose parent is never sent."""
    provider = TracerProvider(resource=Resource({"service.name": "waits"}))
    # Without a batch, the export is complete when the span has ended.
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{service.url}/v1/traces")))
    parent = trace.SpanContext(trace_id=7, span_id=7, is_remote=True, trace_flags=trace.TraceFlags(1))
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    attributes = {"openinference.span.kind": "RETRIEVER", "input.value": WAITING_QUERY, "output.value": "[]"}
    provider.get_tracer("check").start_span("Retriever", context, attributes=attributes).end()


def outcomes(rates):
    """Returns the number of retrievals by outcome from the rates of a strategy."""
    types = {each["failure_type"]: each["failures"] for each in rates["types"]}
    return {"success": rates["successes"], **types, "unknown": rates["unknown"]}


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    table = read_table()
    names = subprocess.run([sys.executable, APPLICATIONS], check=True, capture_output=True, text=True).stdout.split()
    print(f"the table has the {len(names)} applications of {APPLICATIONS.name}")
    check("applications", sorted(table), sorted(names))

    with tempfile.TemporaryDirectory() as folder:
        service = Service(program, pathlib.Path(folder), table)
        try:
            compare(service, table)
            stop_while_one_waits(service)
        finally:
            service.process.kill()
            service.process.wait()
        if differences:
            print(f"\nthe log of the service:\n{service.log.read_text()}")
    if differences:
        sys.exit(f"{len(differences)} differences: {'; '.join(differences)}")
    print("no difference")


def compare(service, table):
    """Runs all applications, and compares their outcomes with the table."""
    print(f"\n{REPEATED} sends each export four times: as protobuf and JSON, plain and compressed")
    spans = run_repeatedly(REPEATED, service)
    traces = service.traces()
    check("it has nested retrievers", traces["parts"] > 0, True)
    check("its retriever spans", traces["retrievals"] + traces["parts"] + traces["waiting"], spans)
    check("duplicates of them", traces["duplicates"], 3 * spans)

    print("\nthe other applications send each export once")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for finished in [pool.submit(run, name, service.url) for name in table if name != REPEATED]:
            finished.result()
    print("\nuntil nothing waits for its parent")
    strategies = service.settled()

    print("\noutcomes by application")
    for name, (_, expected) in table.items():
        check(name, outcomes(strategies[name]) if name in strategies else "no retrieval",
              {outcome: expected[outcome] for outcome in OUTCOMES})
    check("strategies that no rule names", sorted(strategies.keys() - table.keys()), [])

    print("\ncounters")
    traces, stats = service.traces(), service.get("/v1/stats")
    check("retrievals", traces["retrievals"], sum(sum(counts.values()) for _, counts in table.values()))
    check("of these, unknown", traces["unknown"], sum(counts["unknown"] for _, counts in table.values()))
    check("duplicates", traces["duplicates"], 3 * spans)
    check("rejected", {reason: count for reason, count in stats["rejected"].items() if count}, {})


def stop_while_one_waits(service):
    """Ends the service right after it received a retrieval that waits for its parent."""
    print("\nSIGTERM while a retrieval waits for its parent")
    counted = service.traces()["retrievals"]
    export_waiting_retrieval(service)
    traces = service.traces()
    check("retrievals that wait", traces["waiting"], 1)
    check("retrievals that are counted", traces["retrievals"], counted)
    service.process.send_signal(signal.SIGTERM)
    check("exit code", service.process.wait(TIMEOUT), 0)
    with sqlite3.connect(service.database) as connection:
        query = "SELECT failure_type FROM memory_retrieval_failures WHERE query_text = ?"
        check("its failures in the database", connection.execute(query, [WAITING_QUERY]).fetchall(), [("no_hit",)])


if __name__ == "__main__":
    main()
