#!/usr/bin/env bash
# Sends requests that /openapi.json allows, and others, to a running service, with all checks of
# schemathesis (PyPI). Takes the service's binary; `st` must be on the PATH.
set -euo pipefail

binary=$(realpath "$1")
folder=$(mktemp -d)
trap 'kill "$service" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

cd "$folder"
# It exceeds the limits of one address, and sends dates of any age, because the description does not know the retention.
"$binary" --db failures.db --listen 127.0.0.1:0 --set max_reads_per_second=0 \
    --set retention_days=0 --set attempts_retention_days=0 > listening 2> log &
service=$!
until grep -q '^listening on ' listening; do
    kill -0 "$service" || { cat log; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' listening)

run() {
    st run "$url/openapi.json" --checks all --max-examples 50 --phases coverage,fuzzing,stateful \
        --suppress-health-check all --request-timeout 10 "$@"
}
# /v1/tail has no end, and is tested in tests/http.rs. The description has the recommended input, and the service
# accepts more (docs/api.md): tests/input.rs has the cases.
# Parameters that contradict each other, cursors of no page and statuses without a group are rejected, which a schema
# cannot express: tests/http.rs has the cases.
run --exclude-path /v1/tail --exclude-tag ingest --exclude-checks positive_data_acceptance
run --include-tag ingest --exclude-checks negative_data_rejection,positive_data_acceptance

curl --fail --silent --show-error "$url/readyz" > /dev/null
