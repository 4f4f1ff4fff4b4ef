//! Network ranges: one IP network, how we serve it and what its machines are told.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use uuid::Uuid;

use super::words;

words! {
    /// How a network is served.
    pub enum RangeMode {
        /// We are its DHCP server.
        Full = "full",
        /// Another DHCP server gives addresses, we add the boot part (ports 67 and 4011).
        Proxy = "proxy",
        /// Not at all.
        Off = "off",
    }
}
words! {
    /// Which machines get an address.
    pub enum Serve {
        /// Every machine that asks.
        All = "all",
        /// Registered clients only.
        Known = "known",
    }
}
words! {
    /// What a machine does that can't boot now (unknown, disabled, without an image).
    pub enum UnreadyAction {
        /// Show why and look again every few seconds.
        Wait = "wait",
        /// Fall through to the next boot device.
        Local = "local",
    }
}

/// A row of `network_ranges` with its pools.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetworkRange {
    /// Primary key.
    pub id: Uuid,
    /// Unique name; the network in CIDR where none was given.
    pub name: String,
    /// The IPv4 network. Networks of two ranges never overlap.
    pub network: Ipv4Network,
    /// Full server, proxy, or off.
    pub mode: RangeMode,
    /// Who gets an address.
    pub serve: Serve,
    /// What unready machines do.
    pub unready: UnreadyAction,
    /// Chain-load our loader even where the ROM is an iPXE already.
    pub always_chainload: bool,
    /// Addresses handed out dynamically. Several are fine; they never overlap.
    pub pools: Vec<Pool>,
    /// Addresses inside pools that are never handed out.
    pub exclusions: Vec<Pool>,
    /// Option 3.
    pub gateway: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 119 (RFC 3397).
    pub search: Vec<String>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 26, bytes.
    pub mtu: Option<u16>,
    /// Option 121 (RFC 3442); the gateway is added to it by the server.
    pub routes: Vec<Route>,
    /// Length of a lease in seconds (option 51).
    pub lease_seconds: u32,
    /// Further options: code -> bytes in hex. They are sent whether asked for or not
    /// and win over what we would have sent under the same code; codes that belong to
    /// the protocol (0, 50-54, 58, 59, 61, 82, 255) are refused.
    pub options: BTreeMap<u8, String>,
}

/// An inclusive range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Pool {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address, included.
    pub last: Ipv4Addr,
}

/// A static route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Route {
    /// Destination network.
    pub to: Ipv4Network,
    /// Next hop.
    pub via: Ipv4Addr,
}

impl Pool {
    /// True if the address lies inside.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }

    /// Number of addresses.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(u32::from(self.last)).saturating_sub(u64::from(u32::from(self.first))) + 1
    }
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Text that is no address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address range (expected FIRST-LAST, as in 10.0.0.100-10.0.0.199)")]
pub struct BadPool(pub String);

impl std::str::FromStr for Pool {
    type Err = BadPool;

    /// `A-B`, or one address for a range of one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadPool(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = first.trim().parse().map_err(|_| bad())?;
        let last = last.trim().parse().map_err(|_| bad())?;
        if first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl NetworkRange {
    /// True if the address is a host address of this network: inside, and neither the
    /// network's own nor its broadcast address (which a /31 and a /32 do not have).
    #[must_use]
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        self.network.contains(address)
            && (self.network.prefix() >= 31
                || (address != self.network.network() && address != self.network.broadcast()))
    }

    /// True if the address may be handed out dynamically.
    #[must_use]
    pub fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.is_host(address)
            && self.gateway != Some(address)
            && self.pools.iter().any(|p| p.contains(address))
            && !self.exclusions.iter().any(|p| p.contains(address))
    }
}
