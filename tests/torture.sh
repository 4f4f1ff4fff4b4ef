#!/bin/bash
# `make torture`: the long versions of the seeded tests. SEED=n (or DLS_SEED) repeats a run,
# ONLY='test(kill_9)' takes a part of it (a filter of nextest's). OLDER=PATH, of a `dls` of an older
# version: the four servers of the histories begin with it, and are of this one after each kill.
# Everything goes to docs/torture.log and docs/torture-zfs.log too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DLS_TORTURE=1 DLS_SEED=${SEED:-${DLS_SEED:-$((RANDOM * 32768 + RANDOM))}}
export DLS_OLDER=${OLDER:-}
# A million random operations over each protocol; as many thousands on a chain of layers as a run can bear.
export DLS_TORTURE_OPS=1000000 DLS_NBD_OPERATIONS=1000000 DLS_MODEL_ROUNDS=${DLS_MODEL_ROUNDS:-200000}
# Words of the names of tests: docs/tests.md says which row each is of.
names=(
    torture loss hostile kill outlive any_moment random_operations model
    stay_apart newer_login full_store half_handshakes costs_less
    storage::layer::tests storage::disks::tests nbd:: iscsi:: zfs::storm outage:: outages:: failover:: clocks::
)
# The emulated ZFS machines take as long as all the rest: PART=rest or PART=zfs is one of the two,
# each with a log of its own.
run() { # run LOG FILTER
    {
        echo "# make torture: $(date -u '+%Y-%m-%d %H:%M UTC'), seed $DLS_SEED, $(nproc) processors, $(git rev-parse --short HEAD 2>/dev/null)"
        if cargo nextest --version >/dev/null 2>&1; then
            cargo nextest run --locked --cargo-quiet --profile torture --color never --no-fail-fast -E "$2"
        elif [ "$1" = docs/torture-zfs.log ]; then
            echo "(without cargo nextest: with all the rest, in docs/torture.log)"
        else
            [ -z "${ONLY:-}" ] || { echo "ONLY is a filter of cargo nextest, which is not there" >&2; exit 1; }
            # Once each, whichever words its name has.
            cargo test --locked -- --nocapture --test-threads 2 "${names[@]}"
        fi
    } 2>&1 | sed -u "s|$PWD|.|g; s|${HOME:-/nowhere}|~|g" | tee "$1"
}
filter=${ONLY:-$(printf ' | test(%s)' "${names[@]}")}
filter=${filter# | }
zfs='binary(lab) & test(zfs::)'
rest() { run docs/torture.log "($filter) & !($zfs)"; }
zfs() { run docs/torture-zfs.log "($filter) & ($zfs)"; }
case ${PART:-all} in
    rest | zfs) "$PART" ;;
    all)
        red=0
        rest || red=1
        zfs || red=1
        exit "$red"
        ;;
    *) echo "PART is \`rest\` or \`zfs\`" >&2; exit 2 ;;
esac
