#!/bin/bash
# `make soak PART=name`: the long proofs, each under an hour on two cores. A part that was ended
# goes on where it was; one verdict line at the end.
#
#   sim      seeds of the simulator
#   kill     kill loops under live clients, each round with a seed of its own
#   guest    guests that live through kills, on ext4, XFS and btrfs in turn
#   replay   crash states of a guest's ext4, XFS and btrfs, 24 of each recording; one that breaks a
#            promise is kept in build/replay
#
# STEPS=N sets how many steps the part has; `rm -r build/soak` starts all over.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-}
state=build/soak
mkdir -p "$state"

case $part in
sim) steps=${STEPS:-40} ;;
kill) steps=${STEPS:-30} ;;
guest) steps=${STEPS:-30} ;;
replay) steps=${STEPS:-21} ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
    exit 1
    ;;
esac

systems=(ext4 xfs btrfs)

suite() { cargo test --quiet --release -p bowline --test "$@"; }

step() {
    case $part in
    sim)
        # So many at a time that each rare event, such as a flush that fails, comes up.
        local seeds="$(($1 * 250))..$(($1 * 250 + 250))"
        cargo run --quiet --release -p bowline-sim -- run --seeds "$seeds"
        ;;
    kill)
        BOWLINE_KILL_SEED=$1 BOWLINE_KILL_ROUNDS=50 BOWLINE_KILL_EACH=5 \
            suite kill -- --nocapture --test-threads 1
        ;;
    guest) suite guest -- --nocapture --test-threads 1 "${systems[$(($1 % 3))]}" ;;
    replay)
        export BOWLINE_REPLAY_SEED=$(($1 + 1)) BOWLINE_REPLAY_STATES=24
        export BOWLINE_REPLAY_RECORDS=240 BOWLINE_REPLAY_WRITES=8000
        suite replay -- --nocapture --test-threads 1 "${systems[$(($1 % 3))]}"
        ;;
    esac
}

# The lines of a step's log that count something; the runner's own dots may stand before them.
counted() {
    local lines
    case $part in
    sim) lines='^(host crashes|process crashes|recoveries crashed inside) {2}' ;;
    kill) lines=' (kills|deaths of the host|deaths), ' ;;
    replay) lines=' states sound: ' ;;
    guest) lines='^Kill ' ;;
    esac
    sed 's/^\.*//' "$1" | grep -E "$lines"
}

# What all steps have counted, summed up. What never came up in a replay is a failure.
summed_up() {
    case $part in
    sim)
        awk '{ sum[$1] += $NF; all += $NF } END {
            printf "%d crash states: of the host %d, of processes %d, inside recoveries %d",
                all, sum["host"], sum["process"], sum["recoveries"]; exit !all }'
        ;;
    replay)
        sed 's/[,:;]//g' | awk '
            function name(counts, names, at, list) {
                split(names, list, " ")
                for (at = 1; at in list; at++) {
                    printf ", %s %d", list[at], counts[list[at]]
                    if (!counts[list[at]]) lacks = 1
                }
            }
            { systems[$2] += $3; all += $3
              for (at = 6; at < NF; at++) if ($(at + 1) ~ /^[0-9]+$/) counts[$at] += $(at + 1) }
            END {
                printf "%d crash states", all
                name(systems, "ext4 xfs btrfs")
                name(counts, "checkpoint image-move slot-reuse restart random twice")
                printf ", unflushed writes %d (lost %d, torn %d)",
                    counts["writes"], counts["lost"], counts["torn"]
                exit lacks
            }'
        ;;
    kill)
        awk '$2 == "kills," { kills += $1 } / of the host, / { hosts += $1 }
            / labels, / { labels += $3 } END {
            printf "%d kills, %d deaths of the host, %d deaths at labelled places",
                kills, hosts, labels; exit !(kills && hosts && labels) }'
        ;;
    guest) awk 'END { printf "%d kills", NR; exit !NR }' ;;
    esac
}

done_before=$(cat "$state/$part" 2>/dev/null || echo 0)
started=$SECONDS
for ((at = done_before; at < steps; at++)); do
    began=$SECONDS
    if ! step "$at" >"$state/$part.log" 2>&1; then
        tail -40 "$state/$part.log"
        echo "soak $part: FAILED at step $at of $steps; the whole log is in $state/$part.log"
        exit 1
    fi
    counted "$state/$part.log" >"$state/$part.$at.counted"
    echo $((SECONDS - began)) >"$state/$part.$at.seconds"
    echo $((at + 1)) >"$state/$part"
    echo "soak $part: step $((at + 1)) of $steps, $((SECONDS - started)) s"
done
if ! sum=$(cat "$state/$part".[0-9]*.counted | summed_up); then
    echo "soak $part: FAILED, something never came up: $sum"
    exit 1
fi
seconds=$(cat "$state/$part".[0-9]*.seconds | awk '{ sum += $1 } END { print sum }')
echo "soak $part: PASSED, $steps steps in $seconds s, $sum"
