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
mod support;
