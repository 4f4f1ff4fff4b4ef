//! One interface that is served: its sockets, and how an answer leaves by it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ipnetwork::Ipv4Network;
use socket2::SockAddr;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::batch::{Datagram, send_many};
use super::decide::{Destination, Port, ReplyKind, Shape};
use super::frame;
use super::interfaces::Interface;
use super::probe::Prober;
use super::raw::{PacketSocket, Traffic};
use super::socket::{DeviceSocket, Intake};
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

/// What is told of an answer, when it is sent and when it could not be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) mac: MacAddr,
    pub(super) to: Destination,
    pub(super) kind: ReplyKind,
    pub(super) shape: Shape,
    pub(super) address: Option<Ipv4Addr>,
}

/// What became of an answer.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) answer: Answer,
    pub(super) error: Option<io::Error>,
}

/// Which socket an answer leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp(Port),
    Frame,
}

/// An answer that is ready to go.
#[derive(Debug)]
struct Letter {
    way: Way,
    address: SockAddr,
    server_ip: Ipv4Addr,
    payload: Vec<u8>,
    answer: Answer,
}

/// Answers that wait for each other, while anybody has a batch in work.
#[derive(Debug, Default)]
struct Outbox {
    corks: usize,
    letters: Vec<Letter>,
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
    /// A machine came whose address had to be asked for first.
    pub(super) stock_is_low: Notify,
    outbox: Mutex<Outbox>,
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
        let udp =
            |port: u16| DeviceSocket::bind(name, port).map_err(|error| refused(Some(port), error));
        Ok(Self {
            dhcp: udp(ports.server)?,
            pxe: udp(ports.pxe)?,
            frames: PacketSocket::open(index, Traffic::UdpTo(ports.client))
                .map_err(|error| refused(None, error))?,
            prober: Prober::open(index, interface.mac).map_err(|error| refused(None, error))?,
            stock_is_low: Notify::new(),
            outbox: Mutex::default(),
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

    /// Waits for packets on one of the two ports.
    pub(super) async fn receive(&self, port: Port, intake: &mut Intake) -> io::Result<()> {
        self.socket(port).receive(intake).await
    }

    /// Sends an answer from `server_ip`, or lays it to the others while the link is corked;
    /// never waits. `from` is whom it answers. Says what became of what was sent.
    pub(super) fn send(
        &self,
        arrived: Port,
        server_ip: Ipv4Addr,
        from: SocketAddrV4,
        answer: Answer,
        payload: Vec<u8>,
    ) -> Vec<Sent> {
        let Ports { server, client, .. } = self.ports;
        // A ROM that asked on 4011 waits for the answer on the port that it asked from.
        let their_port = match arrived {
            Port::Pxe if from.port() != 0 => from.port(),
            Port::Pxe | Port::Dhcp => client,
        };
        let udp = |to: SocketAddrV4| (Way::Udp(arrived), SockAddr::from(to));
        let mut payload = payload;
        let (way, address) = match answer.to {
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
                    &payload,
                );
                let Some(packet) = packet else {
                    let error = Some(io::ErrorKind::InvalidInput.into());
                    return vec![Sent { answer, error }];
                };
                payload = packet;
                (Way::Frame, self.frames.address_of(answer.mac))
            }
        };
        let letter = Letter {
            way,
            address,
            server_ip,
            payload,
            answer,
        };
        let mut outbox = self.outbox();
        if outbox.corks > 0 {
            outbox.letters.push(letter);
            return Vec::new();
        }
        drop(outbox);
        self.post(vec![letter])
    }

    /// From now on answers are laid together, until [`Link::uncork`].
    pub(super) fn cork(&self) {
        self.outbox().corks += 1;
    }

    /// Sends what was laid together, in few system calls, and says what became of it.
    pub(super) fn uncork(&self) -> Vec<Sent> {
        let letters = {
            let mut outbox = self.outbox();
            outbox.corks = outbox.corks.saturating_sub(1);
            std::mem::take(&mut outbox.letters)
        };
        self.post(letters)
    }

    fn post(&self, letters: Vec<Letter>) -> Vec<Sent> {
        let mut errors = Vec::new();
        for way in [Way::Udp(Port::Dhcp), Way::Frame, Way::Udp(Port::Pxe)] {
            let (of_all, datagrams): (Vec<usize>, Vec<Datagram<'_>>) = letters
                .iter()
                .enumerate()
                .filter(|(_, letter)| letter.way == way)
                .map(|(n, letter)| {
                    let datagram = Datagram {
                        to: &letter.address,
                        from: (way != Way::Frame).then_some((self.index, letter.server_ip)),
                        payload: &letter.payload,
                    };
                    (n, datagram)
                })
                .unzip();
            let socket = match way {
                Way::Udp(port) => self.socket(port).as_fd(),
                Way::Frame => self.frames.as_fd(),
            };
            for (n, error) in send_many(socket, &datagrams) {
                errors.extend(of_all.get(n).map(|n| (*n, error)));
            }
        }
        let mut sent: Vec<Sent> = letters
            .into_iter()
            .map(|letter| Sent {
                answer: letter.answer,
                error: None,
            })
            .collect();
        for (n, error) in errors {
            if let Some(sent) = sent.get_mut(n) {
                sent.error = Some(error);
            }
        }
        sent
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self, port: Port) -> &DeviceSocket {
        match port {
            Port::Dhcp => &self.dhcp,
            Port::Pxe => &self.pxe,
        }
    }
}
