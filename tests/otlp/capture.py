"""Captures the exports of `applications.py` as fixtures: `capture.py DIRECTORY [NAME ..]`.

Each application becomes DIRECTORY/NAME.pb, an ExportTraceServiceRequest with all its spans. Those of JSON_TOO also
become NAME.json, the same spans from a JSON exporter. Ids, times, paths and stack traces are replaced by neutral ones.
Durations stay, so that two runs differ in nothing else.
"""

import gzip
import http.server
import itertools
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import zlib

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

APPLICATIONS = pathlib.Path(__file__).resolve().with_name("applications.py")
JSON_TOO = ["langchain-openinference", "llamaindex-genai"]
# 2026-11-01T00:00:00Z
START = 1_793_491_200_000_000_000
MAX_BYTES = 64 * 1024
UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
MACHINE_ATTRIBUTES = ("host.", "process.", "os.", "container.", "k8s.", "thread.")


class Capture(http.server.BaseHTTPRequestHandler):
    """Accepts exports, and keeps their bodies."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        encoding = self.headers.get("Content-Encoding")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        kind = self.headers["Content-Type"]
        self.server.bodies.append((self.path, kind, body))
        # An empty ExportTraceServiceResponse.
        response = b"{}" if kind == "application/json" else b""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_):
        pass


def run(name):
    """Returns the bodies that an application sent: those in protobuf, and those in JSON."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Capture) as server:
        server.bodies = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        options = ["--json"] if name in JSON_TOO else []
        subprocess.run([sys.executable, APPLICATIONS, name, endpoint, *options], check=True)
        server.shutdown()
    assert all(path == "/v1/traces" for path, _, _ in server.bodies), server.bodies
    return [
        [body for _, kind, body in server.bodies if kind == wanted]
        for wanted in ("application/x-protobuf", "application/json")
    ]


class Replacements:
    """Replaces the ids, times and texts of one run. Equal ids get equal replacements."""

    def __init__(self, earliest):
        self.shift = START - earliest
        self.ids = {}
        self.counters = {length: itertools.count(1) for length in (8, 16)}
        self.uuids = {}

    def id(self, id):
        """Replaces a trace id or span id by its number in the order of appearance. An absent parent stays absent."""
        if not id:
            return id
        if id not in self.ids:
            self.ids[id] = next(self.counters[len(id)]).to_bytes(len(id), "big")
        return self.ids[id]

    def time(self, nanoseconds):
        return nanoseconds + self.shift if nanoseconds else 0

    def text(self, text, key=""):
        if key == "exception.stacktrace":
            text = text.rstrip().rsplit("\n", 1)[-1]
        text = UUID.sub(lambda found: self.uuid(found.group()), text)
        # Python writes the address of an object that has no text of its own.
        text = re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x0", text)
        text = re.sub(r"(?:/[\w.+-]+)+/site-packages/", "/site-packages/", text)
        # Some instrumentations put a stack trace into other texts, too.
        text = re.sub(r'(File "[^"]+", line )\d+', r"\g<1>1", text)
        return text.replace(str(APPLICATIONS.parent), "/application")

    def uuid(self, uuid):
        return self.uuids.setdefault(uuid, f"00000000-0000-4000-8000-{len(self.uuids) + 1:012x}")


def clean_protobuf(bodies):
    """Returns one request with the spans of all, and the replacements."""
    # A concatenation of messages is the message with all their repeated fields.
    request = ExportTraceServiceRequest.FromString(b"".join(bodies))
    spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    replacements = Replacements(min(span.start_time_unix_nano for span in spans))

    def clean_value(value, key):
        kind = value.WhichOneof("value")
        if kind == "string_value":
            value.string_value = replacements.text(value.string_value, key)
        elif kind == "array_value":
            for item in value.array_value.values:
                clean_value(item, key)
        elif kind == "kvlist_value":
            clean_attributes(value.kvlist_value.values)

    def clean_attributes(attributes):
        for attribute in attributes:
            clean_value(attribute.value, attribute.key)

    for resource in request.resource_spans:
        attributes = resource.resource.attributes
        for attribute in [each for each in attributes if each.key.startswith(MACHINE_ATTRIBUTES)]:
            attributes.remove(attribute)
        clean_attributes(attributes)
    # By start, so that the first trace has the first id.
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        replacements.id(span.trace_id)
        replacements.id(span.span_id)
    for span in spans:
        span.trace_id = replacements.id(span.trace_id)
        span.span_id = replacements.id(span.span_id)
        span.parent_span_id = replacements.id(span.parent_span_id)
        span.start_time_unix_nano = replacements.time(span.start_time_unix_nano)
        span.end_time_unix_nano = replacements.time(span.end_time_unix_nano)
        span.name = replacements.text(span.name)
        span.status.message = replacements.text(span.status.message)
        clean_attributes(span.attributes)
        for link in span.links:
            link.trace_id = replacements.id(link.trace_id)
            link.span_id = replacements.id(link.span_id)
            clean_attributes(link.attributes)
        for event in span.events:
            event.time_unix_nano = replacements.time(event.time_unix_nano)
            clean_attributes(event.attributes)
    return request, replacements


def clean_json(bodies, replacements):
    """Returns one request in the JSON of the exporter, with the same replacements as its protobuf."""

    def clean(value, key):
        if isinstance(value, list):
            return [clean(item, key) for item in value]
        if isinstance(value, dict):
            # An attribute is {"key": .., "value": ..}: its key says what its value is.
            inner = value["key"] if "key" in value else key
            return {name: clean(item, inner if name.endswith("Value") or name in ("value", "values") else name)
                    for name, item in value.items()}
        if key in ("traceId", "spanId", "parentSpanId"):
            return replacements.id(bytes.fromhex(value)).hex()
        if key.endswith("UnixNano"):
            assert isinstance(value, str), "a 64-bit integer is text"
            return str(replacements.time(int(value)))
        return replacements.text(value, key) if isinstance(value, str) else value

    request = {"resourceSpans": [resource for body in bodies for resource in json.loads(body)["resourceSpans"]]}
    for resource in request["resourceSpans"]:
        attributes = resource["resource"]["attributes"]
        attributes[:] = [each for each in attributes if not each["key"].startswith(MACHINE_ATTRIBUTES)]
    # Spaces and escapes are those of the exporter.
    escaped = all(body.isascii() for body in bodies)
    compact = not any(b'": ' in body for body in bodies)
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps(clean(request, ""), ensure_ascii=escaped, separators=separators).encode()


def check(name, data):
    assert len(data) < MAX_BYTES, f"{name} has {len(data)} bytes"
    for text in (str(APPLICATIONS.parent), sys.prefix, str(pathlib.Path.home()), socket.gethostname()):
        assert text.encode() not in data, f"{name} contains {text}"


def main():
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    names = subprocess.run([sys.executable, APPLICATIONS], check=True, capture_output=True, text=True).stdout.split()
    for name in sys.argv[2:] or names:
        protobuf, as_json = run(name)
        request, replacements = clean_protobuf(protobuf)
        files = {f"{name}.pb": request.SerializeToString()}
        if as_json:
            files[f"{name}.json"] = clean_json(as_json, replacements)
        for file, data in files.items():
            check(file, data)
            (directory / file).write_bytes(data)
            print(f"{file}: {len(data)} bytes")


if __name__ == "__main__":
    main()
