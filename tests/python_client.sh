#!/usr/bin/env bash
# Generates a Python client from /openapi.json, and uses it against a running service. Takes the service's binary;
# `openapi-python-client` (PyPI) and its Python must be on the PATH.
set -euo pipefail

binary=$(realpath "$1")
folder=$(mktemp -d)
trap 'kill "$service" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

cd "$folder"
"$binary" --db failures.db --listen 127.0.0.1:0 > listening 2> log &
service=$!
until grep -q '^listening on ' listening; do
    kill -0 "$service" || { cat log; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' listening)
openapi-python-client generate --url "$url/openapi.json" --output-path client --meta none --overwrite > generated 2>&1 \
    || { cat generated; exit 1; }
! grep -i 'error' generated || { cat generated; exit 1; }

URL="$url" python3 - <<'PYTHON'
import os
import time

from client import Client
from client.api.ingest import report_attempts, report_failures
from client.api.reads import get_failure, get_summary, list_failures
from client.models import NewAttempt, NewFailure, OutcomeKind, Problem, RetrievalFailureType

client = Client(base_url=os.environ["URL"])
for query in ("where is the key?", "who has it?"):
    failure = NewFailure(
        failure_type=RetrievalFailureType.NO_HIT, retrieval_strategy="semantic", query_text=query, top_score=0.25
    )
    accepted = report_failures.sync(client=client, body=failure)
    assert accepted.accepted == 1 and accepted.errors == [], accepted
attempt = NewAttempt(outcome=OutcomeKind.SUCCESS, retrieval_strategy="semantic", query_text="", latency_ms=3.5)
assert report_attempts.sync(client=client, body=attempt).accepted == 1

until = time.monotonic() + 10
while len(list_failures.sync(client=client).data) < 2:
    assert time.monotonic() < until, "the failures are not in the log"
    time.sleep(0.05)
first = list_failures.sync(client=client, limit=1)
assert first.has_more and first.data[0].query_text == "who has it?", first
second = list_failures.sync(client=client, limit=1, cursor=first.next_)
assert not second.has_more and second.data[0].query_text == "where is the key?", second
found = list_failures.sync(client=client, failure_type=[RetrievalFailureType.NO_HIT], query_text=["who has it?"])
assert [failure.event_id for failure in found.data] == [first.data[0].event_id], found
summary = get_summary.sync(client=client, since="1h")
assert (summary.total.attempts, summary.total.failures) == (3, 2), summary
problem = get_failure.sync(client=client, event_id="00000000-0000-7000-8000-000000000001")
assert isinstance(problem, Problem) and problem.status == 404 and problem.code == "not_found", problem
print("the generated client works")
PYTHON
