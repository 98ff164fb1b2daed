#!/bin/bash
# `make bench`: one table, about an hour; arguments go to bench.py (try --help).
#   bench/run.sh --jobs 'depth 16,flush after 1' --rounds 3
# `make bench-limits`: the figures that need no peer; arguments go to limits.py.
#   bench/run.sh limits --only start,recovery
set -euo pipefail
cd "$(dirname "$0")/.."
program=${CARGO_TARGET_DIR:-target}/release/bowline
mkdir -p build/bench
if [ "${1:-}" = limits ]; then
    shift
    exec bench/limits.py --bowline "$program" --folder build/bench --out build/bench/limits.md "$@"
fi
exec bench/bench.py --bowline "$program" --folder build/bench --out build/bench/bench.md "$@"
