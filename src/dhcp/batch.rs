//! Several datagrams in one system call (`sendmmsg`), each to its own address and, over UDP,
//! from an address of ours that is told with it (`IP_PKTINFO`).
//!
//! `unsafe`, because the kernel is handed pointers to headers, addresses, control messages and
//! bytes: our libraries offer this call either without control messages or without a count of
//! what was sent. Nothing else belongs here.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

/// Datagrams in one call, at most.
const MOST: usize = 64;

/// Room for one `IP_PKTINFO`, aligned as control messages must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// One datagram.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    /// Whom it goes to.
    pub(super) to: &'a SockAddr,
    /// The interface's index and our address, over UDP.
    pub(super) from: Option<(u32, Ipv4Addr)>,
    /// Its bytes.
    pub(super) payload: &'a [u8],
}

/// Sends all at once, in order; never waits where the socket does not. Returns those that the
/// kernel did not take, by their position: one that fails holds no other up.
pub(super) fn send_many(
    socket: BorrowedFd<'_>,
    datagrams: &[Datagram<'_>],
) -> Vec<(usize, io::Error)> {
    let mut failed = Vec::new();
    let mut done = 0;
    while let Some(rest) = datagrams.get(done..).filter(|rest| !rest.is_empty()) {
        match send_some(socket, rest.get(..MOST).unwrap_or(rest)) {
            Ok(sent) => done += sent.max(1),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                failed.push((done, error));
                done += 1;
            }
        }
    }
    failed
}

/// One call, for [`MOST`] datagrams at most: how many were taken. An error is the first one's.
fn send_some(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
    let mut parts: Vec<libc::iovec> = datagrams
        .iter()
        .map(|datagram| libc::iovec {
            iov_base: datagram.payload.as_ptr().cast_mut().cast(),
            iov_len: datagram.payload.len(),
        })
        .collect();
    let mut controls = vec![Control([0; 64]); datagrams.len()];
    let mut headers = Vec::with_capacity(datagrams.len());
    for ((datagram, part), control) in datagrams.iter().zip(&mut parts).zip(&mut controls) {
        #[expect(
            unsafe_code,
            reason = "a header is plain data, and all zeroes (no address, no parts) are valid"
        )]
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let message = &mut header.msg_hdr;
        message.msg_name = datagram.to.as_ptr().cast_mut().cast();
        message.msg_namelen = datagram.to.len();
        message.msg_iov = part;
        message.msg_iovlen = 1;
        if let Some((index, address)) = datagram.from {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control.0.len();
            put_source(message, index, address);
        }
        headers.push(header);
    }
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
    #[expect(
        unsafe_code,
        reason = "the headers point to addresses, parts and controls that all outlive the call, and the kernel writes none of them but the headers' own lengths"
    )]
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Writes `IP_PKTINFO` into a header that has room for it.
fn put_source(message: &mut libc::msghdr, index: u32, address: Ipv4Addr) {
    let info = libc::in_pktinfo {
        ipi_ifindex: libc::c_int::try_from(index).unwrap_or_default(),
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    const SIZE: libc::c_uint = size_of::<libc::in_pktinfo>() as libc::c_uint;
    #[expect(
        unsafe_code,
        reason = "the message's control buffer is ours alone, aligned, and larger than one such control message"
    )]
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(SIZE) as usize;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(SIZE) as usize;
        std::ptr::write_unaligned(libc::CMSG_DATA(header).cast(), info);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddrV4, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn all_arrive_in_order_and_one_that_fails_is_named() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let to: SockAddr = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
        // Not ours to send to without asking for it first.
        let forbidden: SockAddr = SocketAddrV4::new(Ipv4Addr::BROADCAST, port).into();
        let source = Ipv4Addr::new(127, 0, 0, 9);
        let payloads: Vec<[u8; 1]> = (0..150).map(|n| [n]).collect();
        let datagrams: Vec<Datagram<'_>> = payloads
            .iter()
            .map(|payload| Datagram {
                to: if payload[0] == 70 { &forbidden } else { &to },
                from: Some((0, source)),
                payload,
            })
            .collect();
        let failed = send_many(sender.as_fd(), &datagrams);
        assert_eq!(failed.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [70]);
        for expected in (0..150).filter(|n| *n != 70) {
            let mut byte = [0; 2];
            let (length, from) = receiver.recv_from(&mut byte).unwrap();
            assert_eq!((length, byte[0]), (1, expected));
            assert_eq!(from.ip(), source);
        }
    }
}
