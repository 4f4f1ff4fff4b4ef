#!/bin/bash
# TFTP beside dnsmasq, tftpd-hpa, atftpd and async-tftp, in one run. Prints ratios and writes
# benches/RESULTS-tftp.md. BENCH_SECONDS (2) per measurement, BENCH_ROUNDS (5). Needs root: it
# makes a network namespace of its own, which is gone with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
atftpd=$(benches/packages-doors.sh | tail -n 1)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --bin dls --example tftp_load --example serve_async_tftp
release=$CARGO_TARGET_DIR/release
# tftpd-hpa resolves its own address only where there is one beside the loopback's.
exec unshare --net -- bash -c '
    ip link set lo up
    ip link add bench0 type veth peer name bench1
    ip address add 192.0.2.1/24 dev bench0
    exec python3 benches/tftp.py "$@"' - \
    "$release/dls" "$release/examples/tftp_load" "$release/examples/serve_async_tftp" "$atftpd"
