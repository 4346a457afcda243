#!/usr/bin/env bash
# Runs README's first calls as they stand there against a hub that runs, and checks what they print.
#
#   tests/readme/blocks.sh DIR    DIR: where `hub dev --no-traffic --ready-file ready.json` runs
#
# Only the address is replaced: the hub under test listens on a port of its own.
set -euo pipefail

readonly readme=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/README.md
readonly arrival_seconds_max=20

fail() {
    echo "blocks.sh: $*" >&2
    exit 1
}

# Prints the shell blocks between two lines of README, each ended by a line "---".
blocks_between() {
    awk -v from="$1" -v to="$2" '
        $0 == from { inside = 1; next }
        $0 == to { exit }
        inside && $0 == "```sh" { block = 1; next }
        inside && block && $0 == "```" { block = 0; print "---"; next }
        inside && block { print }
    ' "$readme"
}

# Sorts the blocks: calls, the same calls once more for grpcurl, and what is set up before them.
collect() {
    local line block=
    while IFS= read -r line; do
        if [ "$line" != --- ]; then
            block+=$line$'\n'
            continue
        fi
        case "$block" in
            "curl "* | "buf curl "*) calls+=("$block") ;;
            "grpcurl "*) twins+=("$block") ;;
            *) setup+=$block ;;
        esac
        block=
    done
}

at_the_hub() { printf '%s' "${1//127.0.0.1:7070/$address}"; }

# Runs a block that ends, and checks that it printed $2.
run_block() {
    local output
    output=$(bash -euo pipefail -c "$(at_the_hub "$1")") || fail "failed: $1"
    echo "$output" | grep -qF -- "$2" || fail "no $2 in what this printed: $1$output"
    echo "ok: ${1%%$'\n'*}"
}

# Process group and output of the stream that is being read.
pid=
log=
trap 'if [ -n "$pid" ]; then kill -- "-$pid" 2>/dev/null; fi; rm -f "$log"' EXIT

# Runs a block that reads a stream for ever, until it has printed $2.
run_stream() {
    local status=0
    log=$(mktemp)
    # With job control it is a process group of its own: buf may be a script that starts the program.
    set -m
    bash -c "exec $(at_the_hub "$1")" >"$log" 2>&1 &
    pid=$!
    set +m
    for ((tenths = 0; tenths < arrival_seconds_max * 10; tenths++)); do
        grep -qF -- "$2" "$log" && break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    grep -qF -- "$2" "$log" || status=1
    kill -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    pid=
    [ "$status" -eq 0 ] || fail "no $2 within $arrival_seconds_max s from: $1$(cat "$log")"
    rm -f "$log"
    log=
    echo "ok: ${1%%$'\n'*}"
}

[ $# -eq 1 ] || fail "usage: tests/readme/blocks.sh DIR"
cd "$1"
address=$(sed -n 's/.*"grpc": *"\([^"]*\)".*/\1/p' ready.json)
[ -n "$address" ] || fail "no address in $1/ready.json"

setup=
calls=()
twins=()
collect < <(blocks_between "## First calls" "## What is built")
[ ${#calls[@]} -eq 3 ] && [ ${#twins[@]} -eq 3 ] ||
    fail "README has ${#calls[@]} calls and ${#twins[@]} twins for grpcurl instead of 3 and 3"

eval "$setup"
for variable in HUB_ADMIN_KEY HUB_PSA_KEY HUB_PORTAL_KEY; do
    [ -n "${!variable:-}" ] || fail "README's first block did not set $variable"
done

run_block "${calls[0]}" '"tenantId"'
run_block "${calls[1]}" '"sequence"'
run_stream "${calls[2]}" '"ticket.created"'
# Once more: a retry of the same event is answered, and told from a new one.
run_block "${calls[1]}" '"duplicate"'
# The twins say the same: the event that was published above is known to them.
run_block "${twins[0]}" '"tenantId"'
run_block "${twins[1]}" '"duplicate"'
run_stream "${twins[2]}" '"ticket-42-created"'
