#!/bin/bash
# `make bench`: one table, about an hour; arguments go to bench.py (try --help).
#   bench/run.sh --jobs 'depth 16,flush after 1' --rounds 3
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p build/bench
exec bench/bench.py --bowline "$target/release/bowline" --folder build/bench \
    --out build/bench/bench.md "$@"
