#!/bin/bash
# `make bench`: each server beside others, in one run. Prints ratios and writes
# benches/RESULTS*.md: the disks here, DHCP (as root) and the boot doors by scripts of their own.
# BENCH_SECONDS (2) per measurement, BENCH_ROUNDS (5). WHAT=dhcp, tftp, http, storm, large or disks is one of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${WHAT:-all}
case $what in all | dhcp | tftp | http | storm | large | disks) ;; *) echo "WHAT is dhcp, tftp, http, storm, large or disks" >&2; exit 2 ;; esac
wanted() { [ "$what" = all ] || [ "$what" = "$1" ]; }
if wanted dhcp; then
    if [ "$(id -u)" -eq 0 ]; then
        benches/dhcp.sh
    else
        echo "DHCP is left out: it needs network namespaces, and so root" >&2
        [ "$what" != dhcp ] || exit 1
    fi
fi
if wanted tftp; then benches/tftp.sh; fi
if wanted http; then benches/http.sh; fi
if wanted storm; then benches/storm.sh; fi
if wanted large; then benches/large.sh; fi
wanted disks || exit 0
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
