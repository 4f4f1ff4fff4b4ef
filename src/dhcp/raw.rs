//! `AF_PACKET` sockets: frames to machines that have no address yet, and ARP.
//!
//! `unsafe`, because a link-layer address (`sockaddr_ll`) has no safe constructor in our
//! libraries. Nothing else belongs here; bytes are made and read
//! in `frame`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::model::MacAddr;

/// What a packet socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// ARP, all of it.
    Arp,
    /// IPv4: sends anything, receives UDP to this port.
    UdpTo(u16),
}

impl Traffic {
    const fn ether_type(self) -> u16 {
        match self {
            Self::Arp => 0x0806,
            Self::UdpTo(_) => 0x0800,
        }
    }
}

/// A packet socket on one interface. It sends and receives from the network layer on; the
/// kernel writes and strips Ethernet's header.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: AsyncFd<Inner>,
    ether_type: u16,
    index: u32,
}

/// `AsyncFd` wants ownership of something with a descriptor.
#[derive(Debug)]
struct Inner(Socket);

impl AsRawFd for Inner {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Inner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PacketSocket {
    /// Opens one on the interface with this index. Needs `CAP_NET_RAW` and a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn open(index: u32, traffic: Traffic) -> io::Result<Self> {
        // Protocol 0 receives nothing until the filter is in place and `bind` names it, so
        // that no packet of another kind slips in between.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        if let Traffic::UdpTo(port) = traffic {
            socket.attach_filter(&udp_port_filter(port))?;
        }
        socket.bind(&link_address(index, traffic.ether_type(), None))?;
        #[expect(
            unsafe_code,
            reason = "the socket owns its descriptor, and nothing closes or replaces it"
        )]
        let socket = unsafe { AsyncFd::register(Inner(socket))? };
        Ok(Self {
            socket,
            ether_type: traffic.ether_type(),
            index,
        })
    }

    /// Where a frame to this station goes, for `batch`.
    pub(super) fn address_of(&self, station: MacAddr) -> SockAddr {
        link_address(self.index, self.ether_type, Some(station))
    }

    /// Waits for a packet and gives its bytes, cut to 2,048.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        loop {
            let mut ready = self.socket.readable().await?;
            let got = ready.try_io(|inner| inner.get_ref().0.recv(&mut buffer));
            if let Ok(got) = got {
                let length = got?;
                return Ok(initialised(&buffer, length));
            }
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Copies what the kernel has written.
fn initialised(buffer: &[MaybeUninit<u8>], length: usize) -> Vec<u8> {
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

/// A link-layer address; without a station it names the interface only (for `bind`).
fn link_address(index: u32, ether_type: u16, station: Option<MacAddr>) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    #[expect(
        unsafe_code,
        reason = "sockaddr_ll is plain data that fits into sockaddr_storage, and all zeroes are valid"
    )]
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as libc::sa_family_t;
    link.sll_protocol = ether_type.to_be();
    link.sll_ifindex = libc::c_int::try_from(index).unwrap_or_default();
    if let Some(MacAddr(octets)) = station {
        link.sll_halen = 6;
        link.sll_addr[..6].copy_from_slice(&octets);
    }
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    #[expect(
        unsafe_code,
        reason = "the storage holds a sockaddr_ll of just that length"
    )]
    unsafe {
        SockAddr::new(storage, length)
    }
}

/// Classic BPF: whole IPv4/UDP packets to one port, from other machines (what we send
/// ourselves is marked outgoing).
fn udp_port_filter(port: u16) -> [SockFilter; 9] {
    const LOAD_BYTE: u16 = 0x30; // ldb [k]
    const LOAD_HALF: u16 = 0x28; // ldh [k]
    const LOAD_HALF_AT_X: u16 = 0x48; // ldh [x + k]
    const LOAD_HEADER_LENGTH: u16 = 0xb1; // ldxb 4*([k]&0xf)
    const JUMP_EQUAL: u16 = 0x15; // jeq k, true, false
    const JUMP_SET: u16 = 0x45; // jset k, true, false
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 9), // protocol
        SockFilter::new(JUMP_EQUAL, 0, 6, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 6), // fragment offset
        SockFilter::new(JUMP_SET, 4, 0, 0x1fff),
        SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 0),
        SockFilter::new(LOAD_HALF_AT_X, 0, 0, 2), // destination port
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(port)),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
