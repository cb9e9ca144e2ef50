#!/usr/bin/env bash
# Validates /openapi.json by its specification. Takes the service's binary; `openapi-spec-validator` (PyPI) must be on the
# PATH.
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
curl --fail --silent --show-error "$(sed -n 's/^listening on //p' listening)/openapi.json" > openapi.json
openapi-spec-validator openapi.json
