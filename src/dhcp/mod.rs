//! DHCP for booting machines (RFC 2131, 2132, 4578).
//!
//! *Pure*: [`wire`] bytes <-> types; [`decide`] request + facts -> decision; [`pool`] who has
//! which address; `frame` IPv4/UDP and ARP bytes; `foreign` notes on other servers.
//! *Edge*: [`server`] binds, receives and follows interfaces (`interfaces`, `link`, `socket`,
//! `raw`, `batch`); `flow` is a packet's way, with its `facts`, the `answer` and the refusal that is looked up first (`confirm`); `overhear` other servers, the lease committer (`commit`) with the `ledger` of what the database does not have, the `claims` to
//! addresses where several servers share a database, the ARP
//! prober (`probe`), the registration of unknown machines (`registrar`) and `metrics`.

mod answer;
mod batch;
mod claims;
mod commit;
mod confirm;
pub mod decide;
mod facts;
mod flow;
mod foreign;
pub(crate) mod frame;
mod interfaces;
mod ledger;
mod link;
pub mod metrics;
mod overhear;
pub mod pool;
mod probe;
mod raw;
mod registrar;
pub mod server;
mod settle;
mod socket;
pub mod wire;

#[cfg(test)]
#[path = "../../tests/support/dhcp_packet.rs"]
mod packet;
#[cfg(test)]
mod testing;
