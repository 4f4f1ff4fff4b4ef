#!/bin/bash
# `make torture`: the long versions of the seeded tests. SEED=n (or DLS_SEED) repeats a run.
# Everything goes to docs/torture.log too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DLS_TORTURE=1 DLS_SEED=${SEED:-${DLS_SEED:-$((RANDOM * 32768 + RANDOM))}}
# A million random operations over each protocol; as many thousands on a chain of layers as a run can bear.
export DLS_TORTURE_OPS=1000000 DLS_NBD_OPERATIONS=1000000 DLS_MODEL_ROUNDS=${DLS_MODEL_ROUNDS:-200000}
filter='test(torture) | test(loss) | test(hostile) | test(kill) | test(outlive) | test(stay_apart) | test(newer_login) | test(any_moment) | test(random_operations) | test(model) | test(storage::layer::tests) | test(storage::disks::tests)'
{
    echo "# make torture: $(date -u '+%Y-%m-%d %H:%M UTC'), seed $DLS_SEED, $(nproc) processors, $(git rev-parse --short HEAD 2>/dev/null)"
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --cargo-quiet --profile torture --color never --no-fail-fast -E "$filter"
    else
        for name in torture loss hostile kill outlive stay_apart newer_login any_moment random_operations model storage::layer::tests storage::disks::tests; do
            cargo test --locked -- --nocapture --test-threads 2 "$name"
        done
    fi
} 2>&1 | sed -u "s|$PWD|.|g; s|${HOME:-/nowhere}|~|g" | tee docs/torture.log
