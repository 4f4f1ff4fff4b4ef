#!/bin/bash
# `make test` and `make lint`: every check in turn; stops at the first that fails. Each says
# in one line what it was and how long it took. Nothing is compiled twice: clippy and the
# .sqlx check share one set of metadata, all tests one profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${1:-all}
export CARGO_TERM_PROGRESS_WHEN=never
log=$(mktemp)
trap 'rm -f "$log"' EXIT

step() { # step NAME COMMAND...: quiet when it passes
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$log" 2>&1 </dev/null; then
        echo "ok    $name ($((SECONDS - start)) s)"
    else
        cat "$log"
        echo "FAILED $name" >&2
        exit 1
    fi
}


compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose -f docker-compose.yml config -q
    else
        docker-compose -f docker-compose.yml config -q
    fi
}

unit() { # no error but that the program is not installed on this machine
    local said with
    with=$(mktemp -d)
    mkdir "$with/dls.service.d"
    cp deploy/dls.service "$with/"
    cp deploy/dls-zfs.conf "$with/dls.service.d/zfs.conf"
    said=$(systemd-analyze verify deploy/dls.service deploy/phone-home/systemd/dls-report.service 2>&1 |
        grep -v 'is not executable' || true)
    said+=$(systemd-analyze verify "$with/dls.service" 2>&1 | grep -v 'is not executable' || true)
    rm -rf "$with"
    [ -z "$said" ] || { echo "$said"; return 1; }
}

packages() { # both, of the programs that the tests run; each holds what it must
    local out=$CARGO_TARGET_DIR/tmp/packages said held
    rm -rf "$out"
    deploy/package.sh dls "$CARGO_TARGET_DIR/debug/dls" "$out"
    deploy/package.sh dls-zfs "$CARGO_TARGET_DIR/debug/examples/dls-zfs" "$out"
    ! deploy/package.sh dls-zfs "$CARGO_TARGET_DIR/debug/dls" "$out" 2>/dev/null || return 1
    ! deploy/package.sh dls "$CARGO_TARGET_DIR/debug/examples/dls-zfs" "$out" 2>/dev/null || return 1
    # Listed whole before it is searched: a grep that has found enough ends the listing.
    held=$(dpkg-deb --contents "$out"/dls_*.deb)
    for said in usr/bin/dls etc/dls/dls.toml usr/lib/systemd/system/dls.service; do
        grep -q " ./$said$" <<< "$held" || { echo "dls has no $said"; return 1; }
    done
    held=$(dpkg-deb --contents "$out"/dls-zfs_*.deb)
    for said in usr/bin/dls 90-dls-zvol.rules dls.service.d/zfs.conf; do
        grep -q "$said$" <<< "$held" || { echo "dls-zfs has no $said"; return 1; }
    done
}

shells() {
    local file
    for file in .ci/run deploy/phone-home/dls-report deploy/phone-home/initramfs-tools/hooks/* \
        deploy/phone-home/initramfs-tools/scripts/*/* deploy/nbd-root/initramfs-hook tests/lab/testos/build tests/lab/disk/build tests/lab/zfs/{build,init,start,control} \
        tests/lab/disk/rootfs/usr/local/sbin/* $(git ls-files '*.sh'); do
        case $(head -n1 "$file") in *bash) bash -n "$file" ;; *) busybox sh -n "$file" ;; esac
    done
}

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
tools=
if [ "$what" = all ] || [ "$what" = lint ]; then
    step "rustfmt" cargo fmt --check
    step "shell syntax" shells
    tools=$(tests/tools.sh)
    PATH=$tools$PATH
    step "clippy" cargo clippy --all-targets --locked -- -D warnings
    step "clippy, with ZFS" cargo clippy --all-targets --locked --features zfs -- -D warnings
    step "rustdoc" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --document-private-items
    # Crates of other systems too: it asks for all of them, and is not to fetch any itself.
    step "all crates" cargo fetch --locked
    step "cargo deny" cargo deny --offline check bans licenses sources
    if [ -d migrations ]; then step ".sqlx and migrations" tests/sqlx.sh check; fi
    step "docker compose" compose
    if command -v systemd-analyze >/dev/null; then step "systemd unit" unit; else echo "skip  systemd unit (systemd-analyze not installed)"; fi
fi
[ "$what" = all ] || exit 0

step "build" cargo build --locked --tests
step "build, with ZFS" cargo build --locked --features zfs --example dls-zfs
step "tests of the store, with ZFS" cargo test --locked --lib --no-run --features zfs
step "packages" packages
step "sample configurations" env PATH="$CARGO_TARGET_DIR/debug:$PATH" bash -c 'for f in deploy/*.toml; do dls check-config "$f"; done'
step "the test system" tests/lab/testos/build
step "the Debian disk" tests/lab/disk/build
step "the ZFS machine" tests/lab/zfs/build
cargo test --locked --doc
# Ring 2 in one process: its tests share one PostgreSQL cluster and have a database each.
timeout --kill-after=10 1500 cargo test --locked --test it
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --lib --bins --test architecture --test lab
else
    # Without nextest: the same tests, the lab's two at a time.
    cargo test --locked --lib --bins --test architecture
    cargo test --locked --test lab -- --test-threads 2
fi
