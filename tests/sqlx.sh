#!/bin/bash
# The queries against a freshly migrated database: `check` fails if .sqlx is stale or a
# migration has no way back, `prepare` writes .sqlx anew. The database is a private cluster
# in a temporary folder, run by an unprivileged user and gone at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
verb=${1:?check or prepare}
PATH=$(tests/tools.sh sqlx)$PATH
export PATH
bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n1)
work=$(mktemp -d /tmp/dls-sqlx.XXXXXX)
as=()
if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$work"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
fi
cleanup() {
    (cd / && "${as[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate -w stop) >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
cd /
"${as[@]}" "$bin/initdb" -D "$work/data" -A trust -U postgres --no-sync >/dev/null
"${as[@]}" "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$work' -c fsync=off" start >/dev/null ||
    { cat "$work/log" >&2; exit 1; }
cd - >/dev/null
export DATABASE_URL="postgres://postgres@localhost/dls?host=$work"
sqlx database create
# Up, all the way down, and up again: each migration has a working way back.
sqlx migrate run >/dev/null
sqlx migrate revert --target-version 0 >/dev/null
sqlx migrate run >/dev/null
export SQLX_OFFLINE=false
case $verb in
    check) cargo sqlx prepare --check ;;
    prepare) cargo sqlx prepare ;;
    *) echo "check or prepare" >&2; exit 2 ;;
esac
