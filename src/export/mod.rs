//! Disks on the wire: one folder per protocol, each `wire` (bytes <-> types), `machine`
//! (negotiation, pure) and `server` (sockets, threads), over
//! [`BlockDevice`](crate::storage::BlockDevice). Who may have which disk is
//! [`boot::disks`](crate::boot::disks)' business.

pub mod iscsi;
pub mod nbd;

/// Both ends of a connection, for tests.
#[cfg(test)]
fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}
