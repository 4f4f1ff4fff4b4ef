#!/bin/bash
# Installs the cargo tools that the gate uses into a cache keyed by their versions, and
# prints the folders to put into PATH. Does nothing for what is there already.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${DLS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dls}/tools
# sqlx-cli must fit the library: its version is that of Cargo.lock.
sqlx=$(sed -n '/^name = "sqlx"$/{n;s/^version = "\(.*\)"$/\1/p}' "$here/../Cargo.lock")
deny=0.20.2
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9

tool() { # tool CRATE VERSION PROGRAM [ARGUMENTS]
    local crate=$1 version=$2 program=$3 root=$cache/$1-$2
    shift 3
    if [ ! -x "$root/bin/$program" ]; then
        echo "building $crate $version (once)" >&2
        # Unoptimised: it is built in half the time and runs for seconds only.
        cargo install --quiet --locked --debug --root "$root" --target-dir "$cache/target" --version "=$version" "$@" "$crate" >&2
        rm -rf "$cache/target"
    fi
    printf '%s:' "$root/bin"
}
tool sqlx-cli "$sqlx" cargo-sqlx --no-default-features --features rustls,postgres
[ "${1:-}" = sqlx ] || tool cargo-deny "$deny" cargo-deny
