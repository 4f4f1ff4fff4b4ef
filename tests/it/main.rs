//! Ring 2: the whole product or large parts of it, against the real PostgreSQL, real
//! clients and real sockets. `support` holds what the tests share.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod admin;
mod catalog_blocks;
mod catalog_boots;
mod catalog_changes;
mod catalog_embedded;
mod catalog_hosts;
mod catalog_leases;
mod catalog_nouns;
mod catalog_schema;
mod catalog_versions;
mod config;
mod dhcp;
mod dhcp_wire;
mod disks;
mod fuzz_corpus;
mod http;
mod image_check;
mod iscsi;
mod nbd;
mod phone_home;
mod replicas;
mod storage;
mod support;
mod tftp;
mod tracker;
mod tracker_outage;
