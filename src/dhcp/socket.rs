//! UDP sockets bound to one interface, that tell the local address which each packet reached
//! (`IP_PKTINFO`; `batch` sends by them), and when (`SO_TIMESTAMPNS`). No DHCP here.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::crowd;

/// A datagram as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes in the buffer.
    pub(super) length: usize,
    /// Who sent it.
    pub(super) from: SocketAddrV4,
    /// Where it was sent to: one of our addresses, or a broadcast address.
    pub(super) to: Ipv4Addr,
    /// When the kernel took it in, by the machine's wall clock.
    pub(super) at: Option<SystemTime>,
}

/// A UDP socket on all addresses of one interface.
#[derive(Debug)]
pub(super) struct DeviceSocket {
    socket: UdpSocket,
}

impl DeviceSocket {
    /// Binds 0.0.0.0:`port` on an interface. Sockets of different interfaces do not
    /// collide; one that is bound without an interface, by another program, does.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` where another program has the port.
    pub(super) fn bind(device: &str, port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        // Before `bind`, or the port would be asked for on all interfaces.
        socket.bind_device(Some(device.as_bytes()))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        crowd::make_room(&socket, crowd::BURST);
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
        })
    }

    /// Waits for datagrams and takes those that are there, as many as the intake holds, in
    /// one system call.
    ///
    /// # Errors
    /// The kernel's, as when the interface is gone.
    pub(super) async fn receive(&self, intake: &mut Intake) -> io::Result<()> {
        // Readiness lasts until a try finds nothing: under load no wait costs a system call.
        self.socket
            .async_io(Interest::READABLE, || self.receive_now(intake))
            .await
    }

    fn receive_now(&self, intake: &mut Intake) -> io::Result<()> {
        intake.received.clear();
        let space = nix::cmsg_space!(libc::in_pktinfo, libc::timespec);
        // Made anew for each call: the kernel shortens the lengths in it.
        let mut headers = MultiHeaders::preallocate(intake.buffers.len(), Some(space));
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = intake
            .buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let messages = recvmmsg::<_, SockaddrIn, _>(
            self.socket.as_raw_fd(),
            &mut headers,
            &mut parts,
            MsgFlags::empty(),
            None,
        )?;
        for message in messages {
            let (mut to, mut at) = (None, None);
            for control in message.cmsgs()? {
                match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)));
                    }
                    ControlMessageOwned::ScmTimestampns(time) => {
                        at = SystemTime::UNIX_EPOCH.checked_add(Duration::from(time));
                    }
                    _ => {}
                }
            }
            intake.received.push(Received {
                length: message.bytes,
                from: message
                    .address
                    .map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), Into::into),
                to: to.unwrap_or(Ipv4Addr::BROADCAST),
                at,
            });
        }
        Ok(())
    }
}

impl AsFd for DeviceSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagrams that came in together.
#[derive(Debug)]
pub(super) struct Intake {
    buffers: Vec<Vec<u8>>,
    received: Vec<Received>,
}

impl Intake {
    /// Room for this many datagrams of up to 9,216 bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            buffers: vec![vec![0; 9216]; most.max(1)],
            received: Vec::with_capacity(most),
        }
    }

    /// What the last call brought, in order.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (Received, &[u8])> {
        (self.received.iter().zip(&self.buffers))
            .filter_map(|(received, buffer)| Some((*received, buffer.get(..received.length)?)))
    }
}
