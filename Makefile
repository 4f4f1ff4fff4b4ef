# make demo     boot a virtual diskless machine and print its timeline
# make test     every check and every test; installs what is missing
# make torture  the long, seeded tests (SEED=n repeats a run); PART=zfs or PART=rest is a part of them; writes docs/torture*.log
# make package  target/package/dls_*.deb and, with disks on ZFS, dls-zfs_*.deb
# make bench    our servers beside others' on this machine; writes benches/RESULTS*.md
# YES=1 answers the question before packages are installed.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test torture bench package lint fmt docs sqlx-prepare packages tools

demo: packages
	@tests/lab/demo.sh

test: packages
	@tests/gate.sh all

lint: packages
	@tests/gate.sh lint

torture: packages
	@tests/torture.sh

bench: packages
	@benches/run.sh

# The second build takes the first one's place, so each is packed before the next.
package: packages
	cargo build --release --locked --bin dls
	deploy/package.sh dls $${CARGO_TARGET_DIR:-target}/release/dls target/package
	cargo build --release --locked --bin dls --features zfs
	deploy/package.sh dls-zfs $${CARGO_TARGET_DIR:-target}/release/dls target/package

fmt:
	cargo fmt

docs:
	cargo doc --no-deps --document-private-items

# After a change of a query or a migration: writes .sqlx anew.
sqlx-prepare: packages
	@tests/sqlx.sh prepare

packages:
	@tests/lab/packages.sh

tools:
	@tests/tools.sh >/dev/null
