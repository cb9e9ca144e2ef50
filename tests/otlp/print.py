"""Prints the spans of a fixture, parents before children: `print.py FILE.pb [--all]`.

Long values are shortened without `--all`.
"""

import signal
import sys

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

WIDTH = 160


def text(value):
    """Returns an AnyValue as text. Strings have quotes, so that "1" and 1 differ."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return "[" + ", ".join(map(text, value.array_value.values)) + "]"
    if kind == "kvlist_value":
        return "{" + ", ".join(f"{each.key}: {text(each.value)}" for each in value.kvlist_value.values) + "}"
    return repr(getattr(value, kind)) if kind else "none"


def print_attributes(attributes, indent):
    for attribute in attributes:
        value = text(attribute.value)
        if len(value) > WIDTH and "--all" not in sys.argv:
            value = f"{value[:WIDTH]} .. ({len(value)} characters)"
        print(f"{indent}{attribute.key} = {value}")


def print_span(scope, span, children, start, depth):
    indent = "    " * depth
    kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
    status = Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_")
    began = (span.start_time_unix_nano - start) / 1e6
    duration = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    print(f"{indent}{span.name}  [{kind}, {status}] {span.status.message}")
    trace, parent = span.trace_id.hex().lstrip("0"), span.parent_span_id.hex().lstrip("0")
    print(f"{indent}  trace {trace}, span {span.span_id.hex().lstrip('0')}, parent {parent or 'none'}, "
          f"at {began:.3f} ms for {duration:.3f} ms, scope {scope.name} {scope.version}")
    print_attributes(span.attributes, indent + "  ")
    for event in span.events:
        print(f"{indent}  event {event.name}")
        print_attributes(event.attributes, indent + "    ")
    for link in span.links:
        print(f"{indent}  link to trace {link.trace_id.hex()}, span {link.span_id.hex()}")
    for child_scope, child in children.get((span.trace_id, span.span_id), []):
        print_span(child_scope, child, children, start, depth + 1)


def main():
    # `print.py FILE.pb | head` ends without an error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    file = next(argument for argument in sys.argv[1:] if argument != "--all")
    with open(file, "rb") as opened:
        request = ExportTraceServiceRequest.FromString(opened.read())
    spans = []
    for resource in request.resource_spans:
        print("resource")
        print_attributes(resource.resource.attributes, "  ")
        spans += [(scope.scope, span) for scope in resource.scope_spans for span in scope.spans]
    spans.sort(key=lambda each: each[1].start_time_unix_nano)
    present = {(span.trace_id, span.span_id) for _, span in spans}
    children = {}
    for scope, span in spans:
        children.setdefault((span.trace_id, span.parent_span_id), []).append((scope, span))
    for scope, span in spans:
        # A root, or a span whose parent was never sent.
        if (span.trace_id, span.parent_span_id) not in present:
            print()
            print_span(scope, span, children, spans[0][1].start_time_unix_nano, 0)


if __name__ == "__main__":
    main()
