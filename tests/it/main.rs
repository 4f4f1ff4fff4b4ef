//! Ring 2: whole parts of the product together, against the real thing: a PostgreSQL of our
//! own, real clients, real sockets. `support` holds what they share.

mod catalog_boots;
mod catalog_changes;
mod catalog_embedded;
mod catalog_leases;
mod catalog_nouns;
mod catalog_schema;
mod config;
mod dhcp;
mod http;
mod phone_home;
mod support;
mod tftp;
mod tracker;
mod tracker_outage;
