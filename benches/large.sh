#!/bin/bash
# A site of 100,000 machines with a million past boots: writes benches/RESULTS-large.md. As root
# (network namespaces of its own). BENCH_LARGE_CLIENTS (100000), BENCH_LARGE_SESSIONS (1000000).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --bin dls
exec python3 benches/large.py "$CARGO_TARGET_DIR/release/dls"
