#!/bin/bash
# The boot listener beside nginx with sendfile, in one run. Prints ratios and writes
# benches/RESULTS-http.md. BENCH_SECONDS (2) per measurement, BENCH_ROUNDS (5). Needs root: it
# makes a network namespace of its own, which is gone with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
benches/packages-doors.sh >/dev/null
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --bin dls
# All servers with the kernel's usual congestion control, as in benches/run.sh.
exec unshare --net -- bash -c '
    ip link set lo up
    if ip route replace local 127.0.0.0/8 dev lo table local src 127.0.0.1 congctl cubic &&
        ip route replace local 127.0.0.1 dev lo table local src 127.0.0.1 congctl cubic; then
        export BENCH_CONGESTION=cubic
    fi
    exec python3 benches/http_bench.py "$@"' - "$CARGO_TARGET_DIR/release/dls"
