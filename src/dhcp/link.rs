//! One interface that is served: its sockets, and how an answer leaves by it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnetwork::Ipv4Network;
use tokio_util::sync::CancellationToken;

use super::decide::{Destination, Port};
use super::frame;
use super::interfaces::Interface;
use super::probe::Prober;
use super::raw::{PacketSocket, Traffic};
use super::socket::{DeviceSocket, Received};
use crate::model::MacAddr;

/// UDP ports; others than the usual ones serve tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// 67: where requests come in, and relays listen.
    pub server: u16,
    /// 68: where clients listen.
    pub client: u16,
    /// 4011: the PXE boot server's.
    pub pxe: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            server: 67,
            client: 68,
            pxe: 4011,
        }
    }
}

/// Why an interface can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "UDP port {port} on interface {interface} ({address}) is taken by another program; \
         `ss -ulpn sport = {port}` names it"
    )]
    Taken {
        /// Port wanted.
        port: u16,
        /// Its address.
        address: Ipv4Addr,
        /// Interface wanted.
        interface: String,
    },
    /// We may not.
    #[error(
        "no permission to open {what} on interface {interface} ({address}): \
         start as root, or with CAP_NET_BIND_SERVICE and CAP_NET_RAW"
    )]
    Forbidden {
        /// What was to be opened.
        what: String,
        /// Its address.
        address: Ipv4Addr,
        /// Interface wanted.
        interface: String,
    },
    /// Anything else.
    #[error("{what} on interface {interface} ({address}) can't be opened: {source}")]
    Failed {
        /// What was to be opened.
        what: String,
        /// Its address.
        address: Ipv4Addr,
        /// Interface wanted.
        interface: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The interfaces can't be listed.
    #[error("the network interfaces can't be listed: {0}")]
    Interfaces(#[source] io::Error),
}

/// An interface with its sockets open.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: MacAddr,
    addresses: ArcSwap<Vec<Ipv4Network>>,
    ports: Ports,
    dhcp: DeviceSocket,
    pxe: DeviceSocket,
    /// Sends to machines without an address; hears what other servers tell clients.
    pub(super) frames: PacketSocket,
    pub(super) prober: Prober,
    pub(super) cancel: CancellationToken,
}

impl Link {
    /// Opens all sockets of an interface, or none.
    pub(super) fn open(
        interface: &Interface,
        ports: Ports,
        cancel: CancellationToken,
    ) -> Result<Self, BindError> {
        let address = interface
            .addresses
            .first()
            .map_or(Ipv4Addr::UNSPECIFIED, |a| a.ip());
        let name = &interface.name;
        let refused = |port: Option<u16>, source: io::Error| {
            let interface = name.clone();
            let what = port.map_or("a packet socket".to_owned(), |port| {
                format!("UDP port {port}")
            });
            match (source.kind(), port) {
                (io::ErrorKind::AddrInUse, Some(port)) => BindError::Taken {
                    port,
                    address,
                    interface,
                },
                (io::ErrorKind::PermissionDenied, _) => BindError::Forbidden {
                    what,
                    address,
                    interface,
                },
                _ => BindError::Failed {
                    what,
                    address,
                    interface,
                    source,
                },
            }
        };
        let index = interface.index;
        let udp = |port: u16| {
            DeviceSocket::bind(name, index, port).map_err(|error| refused(Some(port), error))
        };
        Ok(Self {
            dhcp: udp(ports.server)?,
            pxe: udp(ports.pxe)?,
            frames: PacketSocket::open(index, Traffic::UdpTo(ports.client))
                .map_err(|error| refused(None, error))?,
            prober: Prober::open(index, interface.mac).map_err(|error| refused(None, error))?,
            name: name.clone(),
            index,
            mac: interface.mac,
            addresses: ArcSwap::from_pointee(interface.addresses.clone()),
            ports,
            cancel,
        })
    }

    /// True if this is still that interface, and not one made anew under its name.
    pub(super) fn is(&self, interface: &Interface) -> bool {
        self.name == interface.name && self.index == interface.index && self.mac == interface.mac
    }

    /// Its addresses with their networks.
    pub(super) fn addresses(&self) -> Arc<Vec<Ipv4Network>> {
        self.addresses.load_full()
    }

    pub(super) fn set_addresses(&self, addresses: &[Ipv4Network]) {
        if self.addresses.load().as_slice() != addresses {
            tracing::info!(interface = self.name, ?addresses, "addresses changed");
            self.addresses.store(Arc::new(addresses.to_vec()));
        }
    }

    /// Waits for a packet on one of the two ports.
    pub(super) async fn receive(&self, port: Port, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket(port).receive(buffer).await
    }

    /// Sends an answer from `server_ip`; never waits. `from` is whom it answers.
    pub(super) fn send(
        &self,
        arrived: Port,
        server_ip: Ipv4Addr,
        from: SocketAddrV4,
        mac: MacAddr,
        to: Destination,
        payload: &[u8],
    ) -> io::Result<()> {
        let Ports { server, client, .. } = self.ports;
        // A ROM that asked on 4011 waits for the answer on the port that it asked from.
        let their_port = match arrived {
            Port::Pxe if from.port() != 0 => from.port(),
            Port::Pxe | Port::Dhcp => client,
        };
        let udp = |to| self.socket(arrived).send(server_ip, to, payload);
        match to {
            Destination::Relay(relay) => udp(SocketAddrV4::new(relay, server)),
            Destination::Unicast(address) => udp(SocketAddrV4::new(address, their_port)),
            Destination::Sender if !from.ip().is_unspecified() => udp(from),
            Destination::Broadcast | Destination::Sender => {
                udp(SocketAddrV4::new(Ipv4Addr::BROADCAST, their_port))
            }
            Destination::Frame(address) => {
                let our_port = match arrived {
                    Port::Dhcp => server,
                    Port::Pxe => self.ports.pxe,
                };
                let packet = frame::udp_packet(
                    SocketAddrV4::new(server_ip, our_port),
                    SocketAddrV4::new(address, their_port),
                    payload,
                )
                .ok_or(io::ErrorKind::InvalidInput)?;
                self.frames.send(Some(mac), &packet)
            }
        }
    }

    fn socket(&self, port: Port) -> &DeviceSocket {
        match port {
            Port::Dhcp => &self.dhcp,
            Port::Pxe => &self.pxe,
        }
    }
}
