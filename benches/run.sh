#!/bin/bash
# `make bench`: each server beside others, in one run. Prints ratios and writes
# benches/RESULTS*.md: the disks here, the boot doors by scripts of their own.
# BENCH_SECONDS (2) per measurement, BENCH_ROUNDS (5).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
benches/tftp.sh
benches/http.sh
for program in fio nbdkit qemu-nbd qemu-img nbdinfo python3; do
    command -v $program >/dev/null || { echo "$program is missing (make packages)" >&2; exit 1; }
done
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --example serve_disk
# A network of its own: free ports, and nobody else's traffic. All servers with the kernel's usual
# congestion control: some hosts default to bbr, whose pacing would be all that is measured.
if unshare --net true 2>/dev/null; then
    exec unshare --net -- bash -c '
        ip link set lo up
        if ip route replace local 127.0.0.0/8 dev lo table local src 127.0.0.1 congctl cubic &&
            ip route replace local 127.0.0.1 dev lo table local src 127.0.0.1 congctl cubic; then
            export BENCH_CONGESTION=cubic
        fi
        exec python3 benches/bench.py "$0"' "$CARGO_TARGET_DIR/release/examples/serve_disk"
fi
exec python3 benches/bench.py "$CARGO_TARGET_DIR/release/examples/serve_disk"
