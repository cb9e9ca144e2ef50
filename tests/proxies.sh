#!/usr/bin/env bash
# Runs the samples of contrib/ for nginx, Caddy and Prometheus before the service's binary, which it takes: TLS, a prefix,
# a token, a large body and a stream. Needs nginx, caddy, prometheus, promtool, openssl and curl.
set -euo pipefail

binary=$(realpath "$1")
contrib=$(realpath "$(dirname "$0")/../contrib")
folder=$(mktemp -d)
cd "$folder"
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

fail() { printf 'FAILED: %s\n' "$*" >&2; tail -n 20 "$folder"/*.log >&2 || true; exit 1; }
until_ok() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; fail "$*"; }

openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=fl.example \
    -addext subjectAltName=DNS:fl.example 2>/dev/null
(umask 077 && printf 'read = %s\ningest = %s\n' read-token-0123456789 ingest-token-0123456789 > tokens)
printf read-token-0123456789 > prometheus-token

"$binary" serve --db failures.db --listen 127.0.0.1:0 --token-file tokens --allow-host fl.example \
    --set trusted_proxies=127.0.0.1 > listening 2> service.log &
until grep -q '^listening on ' listening; do sleep 0.1; done
service=$(sed -n 's#^listening on http://##p' listening)

through() {
    local name=$1 port=$2 url=https://fl.example:$2/failures
    local curl=(curl --silent --show-error --cacert cert.pem --resolve "fl.example:$port:127.0.0.1")
    local read=(-H 'Authorization: Bearer read-token-0123456789') ingest=(-H 'Authorization: Bearer ingest-token-0123456789')
    until_ok "${curl[@]}" --fail "$url/healthz"
    # The page without the slash leads to the one with it, whose files are below it.
    [ "$("${curl[@]}" --location --output page --write-out '%{http_code} %{url_effective}' "$url")" = "200 $url/" ] ||
        fail "$name: the page"
    for asset in $(grep -o 'assets/[a-z/.A-Z]*' page | sort -u); do
        "${curl[@]}" --fail --output /dev/null "$url/$asset" || fail "$name: $asset"
    done
    [ "$("${curl[@]}" --output /dev/null --write-out '%{http_code}' "$url/v1/summary")" = 401 ] || fail "$name: no token"
    "${curl[@]}" --fail "${read[@]}" "$url/v1/summary" > /dev/null || fail "$name: summary"
    # The body exceeds the megabyte that nginx accepts by default.
    local line='{"failure_type":"no_hit","retrieval_strategy":"'$name'","query_text":"where is the key?"}'
    yes "$line" | head -n 30000 > body || true
    "${curl[@]}" --fail "${ingest[@]}" -H 'Content-Type: application/x-ndjson' --data-binary @body "$url/v1/failures" |
        grep -q '"accepted":30000,' || fail "$name: a large body"
    # The proxy passes a stream on while it lasts.
    "${curl[@]}" --no-buffer --max-time 20 "${read[@]}" "$url/v1/tail?retrieval_strategy=$name" > stream 2>/dev/null &
    local stream=$!
    until_ok grep -q '^id:' stream
    "${curl[@]}" --fail "${ingest[@]}" -H 'Content-Type: application/json' --data "$line" "$url/v1/failures" > /dev/null
    until_ok grep -q 'where is the key' stream
    kill "$stream" && wait "$stream" 2>/dev/null || true
    # The command line trusts this authority alone.
    "$binary" stats --url "$url" --url-token-file tokens --ca-file cert.pem --format jsonl > stats 2> stats.log &&
        grep -q "\"$name\"" stats || case $(cat stats.log) in
            # This machine does not resolve fl.example.
            *resolv* | *lookup* | *connect*) ;;
            *) fail "$name: stats" ;;
        esac
    printf '%s: page, tokens, 30,000 lines, stream\n' "$name"
}

# The ports are random, so that other programs hardly have them.
nginx=$((20000 + RANDOM % 10000)) caddy=$((30000 + RANDOM % 10000)) prometheus=$((40000 + RANDOM % 10000))
sed "s#listen 443 ssl#listen 127.0.0.1:$nginx ssl#; s#/etc/ssl/fl.example.pem#$folder/cert.pem#; s#127.0.0.1:4318#$service#
    s#/etc/ssl/fl.example.key#$folder/key.pem#; s#^events {}#events {} pid $folder/nginx.pid; error_log $folder/nginx.log;#
    s#^http {#http { access_log off; client_body_temp_path $folder/a; proxy_temp_path $folder/b; fastcgi_temp_path $folder/c; uwsgi_temp_path $folder/d; scgi_temp_path $folder/e;#" \
    "$contrib/nginx.conf" > nginx.conf
nginx -c "$folder/nginx.conf" -g 'daemon off;' > nginx.log 2>&1 &
through nginx "$nginx"

{ printf '{\n\tadmin off\n\tauto_https disable_redirects\n}\n'
  sed "s#^fl.example {#fl.example:$caddy {\n\ttls $folder/cert.pem $folder/key.pem#; s#127.0.0.1:4318#$service#" "$contrib/Caddyfile"
} > Caddyfile
HOME=$folder caddy run --config Caddyfile --adapter caddyfile > caddy.log 2>&1 &
through caddy "$caddy"

cp "$contrib/alerts.yml" .
sed "s#/etc/prometheus/failure-logger-token#$folder/prometheus-token#; s#127.0.0.1:4318#$service#; 1i global: {scrape_interval: 1s}" \
    "$contrib/prometheus.yml" > prometheus.yml
promtool check config prometheus.yml > /dev/null || fail "prometheus.yml"
prometheus --config.file=prometheus.yml --storage.tsdb.path=tsdb --web.listen-address=127.0.0.1:$prometheus > prometheus.log 2>&1 &
rejected() { curl --silent "http://127.0.0.1:$prometheus/api/v1/query?query=$1" | grep -q "$2"; }
until_ok rejected up '"1"\]'
# Failures alone have a count and no rate.
until_ok rejected 'failure_logger_attempts_total%7Boutcome%3D%22no_hit%22%2Cstrategy%3D%22nginx%22%7D' '"30001"'
until_ok rejected 'failure_logger_strategy_has_rate%7Bstrategy%3D%22nginx%22%7D' '"0"'
printf 'Prometheus: scraped with a token\n'
