//! Ring 2: the whole product or large parts of it, against the real PostgreSQL, real
//! clients and real sockets. `support` holds what the tests share.
//! Tests against the real thing: a PostgreSQL of our own, real sockets, whole parts of the
//! program together. `support` holds what they share.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod catalog_boots;
mod catalog_changes;
mod catalog_embedded;
mod catalog_hosts;
mod catalog_leases;
mod catalog_nouns;
mod catalog_schema;
mod config;
mod dhcp;
mod http;
mod storage;
mod support;
mod tftp;
