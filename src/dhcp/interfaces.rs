//! The machine's network interfaces, as they are now. Reads only; opens no port.

use std::io;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::cache::Snapshot;
use crate::model::{MacAddr, RangeMode};

/// An Ethernet interface that is up and has an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`.
    pub name: String,
    /// The kernel's number; another one after it was made again.
    pub index: u32,
    /// Its own hardware address.
    pub mac: MacAddr,
    /// Its addresses with their networks, in the kernel's order.
    pub addresses: Vec<Ipv4Network>,
}

/// Which interfaces DHCP serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those whose address lies in a range that is served.
    InServedRanges,
    /// These names, whether they exist yet or not.
    Named(Vec<String>),
}

impl Selection {
    /// True if this interface is served.
    #[must_use]
    pub fn takes(&self, interface: &Interface, snapshot: &Snapshot) -> bool {
        match self {
            Self::Named(names) => names.contains(&interface.name),
            Self::InServedRanges => interface.addresses.iter().any(|address| {
                snapshot
                    .range_of(address.ip())
                    .is_some_and(|range| range.mode != RangeMode::Off)
            }),
        }
    }
}

/// All Ethernet interfaces that are up and have an IPv4 address, by name.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn list() -> io::Result<Vec<Interface>> {
    let mut links: Vec<(String, u32, MacAddr)> = Vec::new();
    let mut addresses: Vec<(String, Ipv4Network)> = Vec::new();
    for entry in getifaddrs()? {
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        let wire = !entry
            .flags
            .intersects(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT);
        let Some(address) = entry.address.filter(|_| up && wire) else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            let index = u32::try_from(link.ifindex()).unwrap_or_default();
            if let (6, Some(octets)) = (link.halen(), link.addr()) {
                links.push((entry.interface_name, index, MacAddr(octets)));
            }
        } else if let Some(inet) = address.as_sockaddr_in() {
            let mask = entry
                .netmask
                .as_ref()
                .and_then(|mask| mask.as_sockaddr_in().map(|mask| mask.ip()))
                .unwrap_or(Ipv4Addr::BROADCAST);
            if let Ok(network) = Ipv4Network::with_netmask(inet.ip(), mask) {
                // An address label (`eth0:1`) belongs to the interface before the colon.
                let name = entry.interface_name.split(':').next().unwrap_or_default();
                addresses.push((name.to_owned(), network));
            }
        }
    }
    let mut found: Vec<Interface> = links
        .into_iter()
        .map(|(name, index, mac)| Interface {
            addresses: addresses
                .iter()
                .filter(|(owner, _)| *owner == name)
                .map(|(_, network)| *network)
                .collect(),
            name,
            index,
            mac,
        })
        .filter(|interface| !interface.addresses.is_empty())
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
