//! How DHCP of all machines gets to the wire and back: raw frames of each machine's own MAC on
//! one interface, or as a relay agent from an address of this host. One thread receives for all
//! and hands each answer to its machine with the time at which it came, so that what the machines
//! do meanwhile is not counted as the server's.
//!
//! The one place of the storm with `unsafe`: nobody's library asks for an interface's
//! promiscuous mode.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{LinkAddr, SockaddrLike};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::sync::mpsc;

use super::plan::Plan;
use crate::clock::Clock;
use crate::crowd;
use crate::dhcp::frame::{udp_packet, udp_payload};
use crate::dhcp::wire::client::{Answer, Ask, parse};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Ethernet's header.
const ETHERNET: usize = 14;
const ETHER_IPV4: u16 = 0x0800;
/// Answers that may wait for one machine: several servers may answer.
const WAITING: usize = 16;
/// How often the receiving thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(200);
/// Bytes of packets that may wait for the thread.
const BUFFER: usize = 8 << 20;

/// How DHCP goes.
#[derive(Debug, Clone)]
pub enum Way {
    /// By raw frames on this interface.
    Raw(String),
    /// As a relay agent with this address, to that server.
    Relay {
        /// Ours; port 67 of it is taken.
        own: Ipv4Addr,
        /// The server.
        server: Ipv4Addr,
    },
}

/// An answer and when it came.
pub(super) type Heard = (Answer, Instant);

/// The way to the wire; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    socket: Arc<Socket>,
    kind: Kind,
    strangers: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Raw,
    Relay(SocketAddrV4, SocketAddrV4),
}

/// The receiving thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Ears {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Link {
    /// Opens the way. Needs `CAP_NET_RAW` for raw frames, `CAP_NET_BIND_SERVICE` as a relay.
    ///
    /// # Errors
    /// The kernel's, or that there is no such interface.
    pub(super) fn open(way: &Way) -> io::Result<Self> {
        let (socket, kind) = match way {
            Way::Raw(interface) => (raw(interface)?, Kind::Raw),
            Way::Relay { own, server } => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                let own = SocketAddrV4::new(*own, SERVER_PORT);
                socket.bind(&own.into())?;
                (
                    socket,
                    Kind::Relay(own, SocketAddrV4::new(*server, SERVER_PORT)),
                )
            }
        };
        crowd::make_room(&socket, BUFFER);
        socket.set_read_timeout(Some(TICK))?;
        Ok(Self {
            socket: Arc::new(socket),
            kind,
            strangers: Arc::default(),
        })
    }

    /// Sends what a machine says; never waits. A packet for which there is no room is lost, as on
    /// any wire.
    ///
    /// # Errors
    /// The kernel's others.
    pub(super) fn say(&self, ask: &Ask) -> io::Result<()> {
        let sent = match self.kind {
            Kind::Raw => {
                let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
                let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
                let packet = udp_packet(from, to, &ask.encode(None)).unwrap_or_default();
                let mut frame = Vec::with_capacity(ETHERNET + packet.len());
                frame.extend_from_slice(&[0xff; 6]);
                frame.extend_from_slice(&ask.mac.octets());
                frame.extend_from_slice(&ETHER_IPV4.to_be_bytes());
                frame.extend_from_slice(&packet);
                self.socket.send_with_flags(&frame, libc::MSG_DONTWAIT)
            }
            Kind::Relay(own, server) => {
                let packet = ask.encode(Some(*own.ip()));
                let to = SockAddr::from(server);
                self.socket
                    .send_to_with_flags(&packet, &to, libc::MSG_DONTWAIT)
            }
        };
        match sent {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Starts to listen: the machines' ends, in their order.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn listen(
        &self,
        plan: &Plan,
        clock: Clock,
    ) -> io::Result<(Ears, Vec<mpsc::Receiver<Heard>>)> {
        let (mouths, ears): (Vec<_>, Vec<_>) =
            (0..plan.machines).map(|_| mpsc::channel(WAITING)).unzip();
        let end = Arc::new(AtomicBool::new(false));
        let (link, plan, ended) = (self.clone(), plan.clone(), end.clone());
        let thread = std::thread::Builder::new().name("storm-dhcp".into());
        let thread = thread.spawn(move || link.hear(&plan, &clock, &mouths, &ended))?;
        let thread = Some(thread);
        Ok((Ears { end, thread }, ears))
    }

    fn hear(&self, plan: &Plan, clock: &Clock, mouths: &[mpsc::Sender<Heard>], end: &AtomicBool) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        while !end.load(Ordering::Acquire) {
            // The tick's end and errors of the interface (it went down, say) are waited over.
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let at = clock.instant();
            let bytes = received(&buffer, length);
            let payload = match self.kind {
                Kind::Raw => bytes
                    .get(ETHERNET..)
                    .and_then(udp_payload)
                    .map(|(_, _, payload)| payload),
                Kind::Relay(..) => Some(&bytes[..]),
            };
            let Some(Ok(Some(answer))) = payload.map(parse) else {
                continue;
            };
            let mouth = plan.number(answer.mac);
            let mouth = mouth.and_then(|n| mouths.get(usize::try_from(n).ok()?));
            match mouth {
                // One that has ended, or has heard enough, hears no more.
                Some(mouth) => drop(mouth.try_send((answer, at))),
                None => drop(self.strangers.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    /// Answers to machines that are none of ours: others boot on this network.
    pub(super) fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }
}

/// A packet socket that sees what is sent to port 68 of whatever MAC.
fn raw(interface: &str) -> io::Result<Socket> {
    let none = || io::Error::other(format!("there is no interface `{interface}`"));
    let all = nix::ifaddrs::getifaddrs()?;
    let link = all
        .filter(|one| one.interface_name == interface)
        .find_map(|one| one.address?.as_link_addr().copied())
        .ok_or_else(none)?;
    let protocol = Protocol::from(i32::from(ETHER_IPV4.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    // Before `bind`, so that little of other kinds slips in; what does is no answer of ours.
    socket.attach_filter(&filter())?;
    socket.bind(&bound_to(&link))?;
    promiscuous(&socket, link.ifindex())?;
    Ok(socket)
}

/// The interface as `bind` takes it: the protocol stays the socket's.
fn bound_to(link: &LinkAddr) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    #[expect(
        unsafe_code,
        reason = "sockaddr_ll is plain data that fits into sockaddr_storage, and nix's has just that layout"
    )]
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = *link.as_ptr().cast::<libc::sockaddr_ll>();
    }
    #[expect(unsafe_code, reason = "the storage holds a sockaddr_ll of that length")]
    unsafe {
        SockAddr::new(storage, link.len())
    }
}

/// Frames to the machines' MACs are not ours to the network card: it is asked for all.
fn promiscuous(socket: &Socket, index: usize) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: i32::try_from(index).unwrap_or(0),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    #[expect(
        unsafe_code,
        reason = "setsockopt reads a packet_mreq of just that length, which lives until it returns"
    )]
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            std::ptr::from_ref(&request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Copies what the kernel has written.
fn received(buffer: &[MaybeUninit<u8>], length: usize) -> Vec<u8> {
    let written = buffer.get(..length).unwrap_or_default();
    #[expect(
        unsafe_code,
        reason = "recv has initialised as many bytes as it returned"
    )]
    written
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect()
}

/// Classic BPF: whole IPv4/UDP packets in Ethernet frames to a DHCP client.
fn filter() -> [SockFilter; 11] {
    const LOAD_BYTE: u16 = 0x30; // ldb [k]
    const LOAD_HALF: u16 = 0x28; // ldh [k]
    const LOAD_HALF_AT_X: u16 = 0x48; // ldh [x + k]
    const LOAD_HEADER_LENGTH: u16 = 0xb1; // ldxb 4*([k]&0xf)
    const JUMP_EQUAL: u16 = 0x15; // jeq k, true, false
    const JUMP_SET: u16 = 0x45; // jset k, true, false
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_HALF, 0, 0, 12), // type
        SockFilter::new(JUMP_EQUAL, 0, 8, u32::from(ETHER_IPV4)),
        SockFilter::new(LOAD_BYTE, 0, 0, 23), // protocol
        SockFilter::new(JUMP_EQUAL, 0, 6, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 20), // fragment offset
        SockFilter::new(JUMP_SET, 4, 0, 0x1fff),
        SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 14),
        SockFilter::new(LOAD_HALF_AT_X, 0, 0, 16), // destination port
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(CLIENT_PORT)),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// The interface that the default route of this host goes by, if it has one: its network is
/// somebody's. `text` is that of `/proc/net/route`.
#[must_use]
pub fn default_interfaces(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1);
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let default = |w: &Vec<&str>| w.get(1) == Some(&"00000000") && w.get(7) == Some(&"00000000");
    words.filter(default).map(|w| w[0].to_owned()).collect()
}

/// The interface that has this address.
#[must_use]
pub fn interface_of(address: Ipv4Addr) -> Option<String> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let has = |one: &nix::ifaddrs::InterfaceAddress| {
        one.address
            .as_ref()?
            .as_sockaddr_in()
            .map(|a| a.ip() == address)
    };
    all.find(|one| has(one) == Some(true))
        .map(|one| one.interface_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        assert_eq!(default_interfaces(text), ["eth0"]);
        assert!(default_interfaces("").is_empty());
        assert_eq!(interface_of(Ipv4Addr::new(192, 0, 2, 1)), None);
    }
}
