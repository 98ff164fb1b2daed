#!/bin/bash
# `make soak PART=name`: the long proofs, each under an hour on two cores. A part that was ended
# goes on where it was; one verdict line at the end.
#
#   sim      seeds of the simulator
#   kill     kill loops under live clients, each round with a seed of its own
#   guest    guests that live through kills, on ext4, XFS and btrfs in turn
#
# STEPS=N sets how many steps the part has; `rm -r build/soak` starts all over.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-}
state=build/soak
mkdir -p "$state"

case $part in
sim) steps=${STEPS:-100} ;;
kill) steps=${STEPS:-40} ;;
guest) steps=${STEPS:-30} ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
    exit 1
    ;;
esac

suite() { cargo test --quiet --release -p bowline --test "$@"; }

step() {
    case $part in
    sim)
        local seeds="$(($1 * 100))..$(($1 * 100 + 100))"
        cargo run --quiet --release -p bowline-sim -- run --seeds "$seeds"
        ;;
    kill)
        BOWLINE_KILL_SEED=$1 BOWLINE_KILL_ROUNDS=50 BOWLINE_KILL_EACH=5 \
            suite kill -- --nocapture --test-threads 1
        ;;
    guest)
        local systems=(ext4 xfs btrfs)
        suite guest -- --nocapture --test-threads 1 "${systems[$(($1 % 3))]}"
        ;;
    esac
}

done_before=$(cat "$state/$part" 2>/dev/null || echo 0)
started=$SECONDS
for ((at = done_before; at < steps; at++)); do
    if ! step "$at" >"$state/$part.log" 2>&1; then
        tail -40 "$state/$part.log"
        echo "soak $part: FAILED at step $at of $steps; the whole log is in $state/$part.log"
        exit 1
    fi
    echo $((at + 1)) >"$state/$part"
    echo "soak $part: step $((at + 1)) of $steps, $((SECONDS - started)) s"
done
echo "soak $part: PASSED, $steps steps, $((SECONDS - started)) s in this run"
