#!/bin/bash
# DHCP beside Kea and dnsmasq, in one run: prints ratios and writes benches/RESULTS-dhcp.md. As
# root (network namespaces of its own). BENCH_DHCP_SECONDS (4) per run of the load,
# BENCH_DHCP_ROUNDS (3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
benches/packages.sh
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --locked --release --bin dls
exec python3 benches/dhcp.py "$CARGO_TARGET_DIR/release/dls"
