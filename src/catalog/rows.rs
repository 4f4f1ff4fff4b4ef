//! Between PostgreSQL's types and the model's, for all nouns. No queries here.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use sqlx::types::ipnetwork::IpNetwork;

use super::CatalogError;

/// An address as INET.
pub(super) fn inet(address: Ipv4Addr) -> IpNetwork {
    IpNetwork::from(IpAddr::V4(address))
}

/// Addresses as INET[].
pub(super) fn inets(addresses: &[Ipv4Addr]) -> Vec<IpNetwork> {
    addresses.iter().copied().map(inet).collect()
}

/// INET as an IPv4 address; `None` for IPv6, which the seed's columns allow and we don't use.
pub(super) fn ipv4(network: IpNetwork) -> Option<Ipv4Addr> {
    match network.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// INET[] as IPv4 addresses.
pub(super) fn ipv4s(networks: Vec<IpNetwork>) -> Vec<Ipv4Addr> {
    networks.into_iter().filter_map(ipv4).collect()
}

/// A word, MAC or host name that a CHECK has let in.
pub(super) fn parse<T: FromStr>(what: &str, text: &str) -> Result<T, CatalogError> {
    text.parse().map_err(|_| CatalogError::strange(what, text))
}
