#!/bin/bash
# A thousand machines boot in a minute (`dls storm`): writes benches/RESULTS-storm.md. As root
# (network namespaces of its own). BENCH_STORM_MACHINES (1000), BENCH_STORM_RAMP (60, seconds).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --bin dls
exec python3 benches/storm.py "$CARGO_TARGET_DIR/release/dls"
