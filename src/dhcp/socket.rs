//! UDP sockets bound to one interface, that tell and choose the local address of each packet
//! (`IP_PKTINFO`). No DHCP here.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Bytes of packets that may wait for us.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A datagram as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes in the buffer.
    pub(super) length: usize,
    /// Who sent it.
    pub(super) from: SocketAddrV4,
    /// Where it was sent to: one of our addresses, or a broadcast address.
    pub(super) to: Ipv4Addr,
}

/// A UDP socket on all addresses of one interface.
#[derive(Debug)]
pub(super) struct DeviceSocket {
    socket: UdpSocket,
    index: u32,
}

impl DeviceSocket {
    /// Binds 0.0.0.0:`port` on an interface. Sockets of different interfaces do not
    /// collide; one that is bound without an interface, by another program, does.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` where another program has the port.
    pub(super) fn bind(device: &str, index: u32, port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        // Before `bind`, or the port would be asked for on all interfaces.
        socket.bind_device(Some(device.as_bytes()))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        // A classroom that is switched on at once is a burst. Beyond its limit the kernel lets
        // only a privileged process go (we are, where this is done before privileges drop);
        // else it is cut to the limit, and an error is none.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            index,
        })
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// The kernel's, as when the interface is gone.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        // Readiness lasts until a try finds nothing: under load no wait costs a system call.
        self.socket
            .async_io(Interest::READABLE, || self.receive_now(buffer))
            .await
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut space = nix::cmsg_space!(libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrIn>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        let to = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)))
            }
            _ => None,
        });
        Ok(Received {
            length: message.bytes,
            from: message
                .address
                .map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), Into::into),
            to: to.unwrap_or(Ipv4Addr::BROADCAST),
        })
    }

    /// Sends at once, from this address of ours and by this interface; never waits.
    ///
    /// # Errors
    /// The kernel's, `WouldBlock` among them.
    pub(super) fn send(&self, from: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: libc::c_int::try_from(self.index).unwrap_or_default(),
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from(from).to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(payload)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&SockaddrIn::from(to)),
        )?;
        Ok(())
    }
}
