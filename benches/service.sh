#!/usr/bin/env bash
# Floods a service with records, reads from it meanwhile, and prints throughput, latencies and memory.
#
#     cargo build --release && benches/service.sh target/release/failure-logger [SECONDS]
#
# Needs wrk, curl and python3. All processes run on this machine, in a temporary folder that is removed.
set -euo pipefail

binary=$(realpath "${1:?expected a binary, such as target/release/failure-logger}")
seconds=${2:-60}
for tool in wrk curl python3; do
    command -v "$tool" > /dev/null || { echo "$tool is needed" >&2; exit 2; }
done

folder=$(mktemp -d)
service='' watchers=''
clean_up() {
    # shellcheck disable=SC2086 # several numbers
    kill $watchers $service 2> /dev/null || true
    wait 2> /dev/null || true
    rm -rf "$folder"
}
trap clean_up EXIT
cd "$folder"

cat > lines.lua <<'LUA'
-- Sends a hundred lines a request. Each thread counts the accepted records, and `done` adds them up.
local line = '{"failure_type":"low_confidence","retrieval_strategy":"semantic","query_text":"what is query %d about?",'
    .. '"conversation_id":"conversation-%d","turn_index":3,"top_score":0.25,"confidence_threshold":0.5,'
    .. '"result_count":3,"latency_ms":12}'
local lines = {}
for nth = 1, 100 do
    lines[nth] = line:format(nth, nth % 10)
end
wrk.method = "POST"
wrk.path = "/v1/failures"
wrk.body = table.concat(lines, "\n") .. "\n"
wrk.headers["Content-Type"] = "application/x-ndjson"
local threads = {}
function setup(thread)
    table.insert(threads, thread)
end
function init()
    accepted, others = 0, 0
end
function response(status, _, body)
    accepted = accepted + (tonumber(body:match('"accepted":(%d+)')) or 0)
    if status ~= 202 then
        others = others + 1
    end
end
function done(summary)
    local accepted, others = 0, 0
    for _, thread in ipairs(threads) do
        accepted, others = accepted + thread:get("accepted"), others + thread:get("others")
    end
    io.write(("ACCEPTED %d\nOTHERS %d\nSECONDS %.3f\n"):format(accepted, others, summary.duration / 1e6))
end
LUA
cat > single.lua <<'LUA'
-- Sends one record a request, which measures the cost of a request.
wrk.method = "POST"
wrk.path = "/v1/failures"
wrk.body = '{"failure_type":"no_hit","retrieval_strategy":"semantic","query_text":"where is the key?"}'
wrk.headers["Content-Type"] = "application/json"
LUA

# The rate limit for a client is off, because all requests come from one address.
"$binary" --db failures.db --listen 127.0.0.1:0 --set max_reads_per_second=0 --set log_level=warn \
    > listening 2> log &
service=$!
until grep -q '^listening on ' listening; do
    kill -0 "$service" 2> /dev/null || { cat log >&2; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' listening)

metric() { curl --silent --fail "$url/metrics" | awk -v name="failure_logger_$1" 'index($1, name) == 1 { sum += $2 } END { printf "%d", sum }'; }
resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$service/status"; }

while resident >> memory; do sleep 5; done 2> /dev/null &
watchers=$!
# One connection serves all reads, as it does for a dashboard, so that the time is that of the service alone.
python3 - "$url" > reads << 'PYTHON' &
import http.client, sys, time
service = http.client.HTTPConnection(sys.argv[1].removeprefix("http://"), timeout=10)
while True:
    began = time.perf_counter()
    service.request("GET", "/v1/summary?since=1h")
    response = service.getresponse()
    response.read()
    print(f"{time.perf_counter() - began:.6f} {response.status}", flush=True)
    time.sleep(0.1)
PYTHON
watchers="$watchers $!"

echo "== JSON lines, 100 a request, 8 connections, $seconds s"
written=$(metric records_written_total)
wrk --threads 1 --connections 8 --duration "${seconds}s" --latency --script lines.lua "$url" > flood
grep -E 'Latency|Requests/sec|50%|99%|Non-2xx|Socket errors' flood || true
resident >> memory
# shellcheck disable=SC2086 # several numbers
kill $watchers 2> /dev/null || true
watchers=''
written=$(($(metric records_written_total) - written))
of() { awk -v name="$1" '$1 == name { print $2 }' flood; }
awk -v written="$written" -v seconds="$(of SECONDS)" -v accepted="$(of ACCEPTED)" -v others="$(of OTHERS)" 'BEGIN {
    printf "records/s persisted   %.0f\nother responses       %d\n", written / seconds, others }'
echo "dropped               $(metric records_dropped_total)"
awk '$2 == 200 { print $1 * 1000 }' reads | sort -n | awk '{ all[NR] = $1 } END {
    at = int(NR * 0.99); if (at < NR * 0.99) at++; middle = int((NR + 1) / 2)
    printf "summary, ms           p50 %.1f, p99 %.1f, slowest %.1f, of %d\n", all[middle], all[at], all[NR], NR }'
awk '$2 != 200 { bad++ } END { if (bad) printf "summary, failed       %d\n", bad }' reads
awk 'NR == 1 { first = $1 } $1 > most { most = $1 } { last = $1 } END {
    printf "resident, MB          %.1f at the start, %.1f at the end, %.1f at most\n", first / 1000, last / 1000, most / 1000 }' memory
du -k failures.db failures.db-wal 2> /dev/null | awk '{ printf "%-21s %.0f MB\n", $2, $1 / 1000 }'

echo "== one record a request and /healthz in turns, 16 connections, five rounds of 3 s"
per_second() { awk '/^Requests\/sec:/ { print $2 }'; }
for _ in 1 2 3 4 5; do
    post=$(wrk --threads 1 --connections 16 --duration 3s --script single.lua "$url" | tee single | per_second)
    ! grep Non-2xx single
    empty=$(wrk --threads 1 --connections 16 --duration 3s "$url/healthz" | per_second)
    echo "$post $empty"
done | tee rounds | awk '{ printf "%.0f/s, /healthz %.0f/s: %.0f %%\n", $1, $2, 100 * $1 / $2 }'
awk '{ print 100 * $1 / $2 }' rounds | sort -n | awk '{ all[NR] = $1 } END { printf "median                %.0f %% of /healthz\n", all[3] }'

received=$(metric records_received_total) dropped=$(metric records_dropped_total)
kill -TERM "$service"
wait "$service" && ended=0 || ended=$?
service=''
rows=$(python3 -c '
import sqlite3
print(sqlite3.connect("failures.db").execute("SELECT count(*) FROM memory_retrieval_failures").fetchone()[0])')
echo "== at the end"
echo "exit code             $ended"
echo "accepted, in the file $((received - dropped)), $rows"
[ "$ended" = 0 ] && [ "$rows" = $((received - dropped)) ]
