//! Tests against the real thing: a PostgreSQL of our own, real sockets, whole parts of the
//! program together. `support` holds what they share.

mod catalog_boots;
mod catalog_changes;
mod catalog_embedded;
mod catalog_leases;
mod catalog_nouns;
mod catalog_schema;
mod support;
//! Ring 2: the whole product or large parts of it, against the real PostgreSQL, real
//! clients and real sockets.

mod config;
mod dhcp;
mod http;
mod storage;
mod tftp;
