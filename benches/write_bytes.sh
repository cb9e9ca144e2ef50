#!/usr/bin/env bash
# Compares two binaries by the bytes that the service writes to the disk for each failure, checkpoints included, and while
# it is idle. The bytes are `write_bytes` in /proc/PID/io (Linux).
#
#   benches/write_bytes.sh OLD-BINARY NEW-BINARY [SECONDS=600] [FAILURES-A-SECOND=1] [IDLE-SECONDS=60]
#
# The files are in $TMPDIR or /var/tmp, which must be on a disk, because the kernel does not count a tmpfs. The exit code is
# 1 if the new binary writes more than 0.65 of the old one's bytes, or any byte while it is idle.
set -euo pipefail

binaries=("$1" "$2")
seconds=${3:-600} rate=${4:-1} idle=${5:-60}
# The time covers two roll-ups, after which a checkpoint moves the journal into the database file.
settle=130
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/write-bytes.XXXXXX")
pids=() ports=() accepted=(0 0) before=() after=() quiet=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

written() { sed -n 's/^write_bytes: //p' "/proc/$1/io"; }

# Sends one failure over a connection of its own. Succeeds if the service accepts it.
post() {
    local body='{"failure_type":"no_hit","retrieval_strategy":"semantic","query_text":"where is the key?","latency_ms":12}'
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' \
        "${#body}" "$body" >&3
    read -r _ status _ <&3
    exec 3>&- 3<&-
    [ "$status" = 202 ]
}

for nth in 0 1; do
    "${binaries[nth]}" serve --db "$folder/$nth.db" --listen 127.0.0.1:0 >"$folder/$nth.out" 2>"$folder/$nth.log" &
    pids[nth]=$!
    until grep -qs 'listening on' "$folder/$nth.out"; do sleep 0.1; done
    ports[nth]=$(sed -n 's/.*listening on .*://p' "$folder/$nth.out")
done
sleep 10
for nth in 0 1; do before[nth]=$(written "${pids[nth]}"); done

begin=$(date +%s%N)
for ((sent = 0; sent < seconds * rate; sent++)); do
    for nth in 0 1; do
        if post "${ports[nth]}"; then accepted[nth]=$((accepted[nth] + 1)); fi
    done
    left=$((begin + (sent + 1) * 1000000000 / rate - $(date +%s%N)))
    if ((left > 0)); then sleep "$(printf '%d.%09d' $((left / 1000000000)) $((left % 1000000000)))"; fi
done
sleep "$settle"
for nth in 0 1; do after[nth]=$(written "${pids[nth]}"); done
sleep "$idle"
for nth in 0 1; do quiet[nth]=$(($(written "${pids[nth]}") - after[nth])); done

for nth in 0 1; do
    bytes=$((after[nth] - before[nth]))
    printf '%s: %d failures, %d bytes written, %d a failure; %d while idle for %d s\n' \
        "${binaries[nth]}" "${accepted[nth]}" "$bytes" $((bytes / accepted[nth])) "${quiet[nth]}" "$idle"
done
awk -v old=$(((after[0] - before[0]) / accepted[0])) -v new=$(((after[1] - before[1]) / accepted[1])) -v quiet="${quiet[1]}" \
    'BEGIN { printf "%.2f of the old bytes\n", new / old; exit !(new <= 0.65 * old && quiet == 0) }'
