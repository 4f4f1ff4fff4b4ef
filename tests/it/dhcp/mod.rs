//! DHCP on real networks: namespaces, the real PostgreSQL, real clients and relays.
//!
//! [`lan`], [`postgres`], [`server`] and [`raw`] are the tools; the tests are [`edges`] (a
//! client made of bytes), [`hostile`] (machines that are invented), [`clients`] (dhclient, udhcpc,
//! dhcrelay, dnsmasq), [`owed`] (a database that can't write) and [`load`] (perfdhcp). They need
//! root, and what they make dies with them.

mod clients;
mod disks;
mod edges;
mod hostile;
mod lan;
mod load;
mod owed;
pub(crate) mod postgres;
mod raw;
mod server;
