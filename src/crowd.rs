//! Who waits at a listener: how many are in, in all and from one address, and taking the next
//! one; and room in a UDP socket for all who ask at once. It knows no protocol and counts
//! nothing itself.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Room for a classroom that is switched on at once, for [`make_room`]: some 5,000 requests. The
/// 200 kB that sockets have by default are full at 280, and who is lost asks again after seconds.
pub const BURST: usize = 4 << 20;
/// Connections that may wait to be accepted. With the 128 of the library a room that is switched on at once
/// overflows it: whoever is dropped then believes that it is connected, and waits.
const PLACES: i32 = 4096;
/// How long is waited after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The next connection; `None` once cancelled. A listener that fails is named in the log by
/// `whose` and tried again: it is out of descriptors, most likely, which passes as others end.
pub async fn next(
    listener: &TcpListener,
    whose: &'static str,
    cancel: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection of {whose}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Opens a listener where as many may wait as the kernel lets.
///
/// # Errors
/// The kernel's: the port is taken, or not ours to have.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    // Listening once more changes nothing else.
    SockRef::from(&listener).listen(PLACES)?;
    Ok(listener)
}

/// Makes room in a socket for datagrams that wait, in bytes as the kernel counts them. Beyond its
/// limit it lets only a privileged process go (we are, where this is done before privileges
/// drop); else it is cut to the limit, which is no error.
pub fn make_room(socket: &impl AsFd, bytes: usize) {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
}

/// Why somebody may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Too many in all.
    All,
    /// Too many from this address.
    Address,
}

/// How many are in, and from where; clones share it.
#[derive(Debug, Clone)]
pub struct Crowd {
    all: usize,
    of_address: usize,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place in the crowd, given back when dropped.
#[derive(Debug)]
pub struct Place {
    address: IpAddr,
    inside: Arc<Mutex<Inside>>,
}

impl Crowd {
    /// At most `all` at once, of them at most `of_address` from one address.
    #[must_use]
    pub fn new(all: usize, of_address: usize) -> Self {
        Self {
            all,
            of_address,
            inside: Arc::default(),
        }
    }

    /// A place for somebody from there. An IPv4 address within IPv6 is that IPv4 address.
    ///
    /// # Errors
    /// Which limit is reached; of both, the address's is told.
    pub fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let address = address.to_canonical();
        let mut inside = lock(&self.inside);
        let of_address = inside.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.of_address {
            return Err(Full::Address);
        }
        if inside.all >= self.all {
            return Err(Full::All);
        }
        inside.all += 1;
        inside.by_address.insert(address, of_address + 1);
        Ok(Place {
            address,
            inside: self.inside.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = lock(&self.inside);
        inside.all = inside.all.saturating_sub(1);
        if let Some(count) = inside.by_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

fn lock(inside: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More connections than the library's 128 wait until somebody takes them.
    #[tokio::test]
    async fn a_room_full_of_connections_waits_at_the_door() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let count = 400;
        let waiting: Vec<_> = (0..count)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(20), listener.accept());
            next.await.expect("one that was dropped").unwrap();
        }
        drop(waiting);
    }

    /// Thousands of small datagrams, more than a socket has room for by default, are there when somebody
    /// reads at last.
    #[test]
    fn a_burst_waits_in_the_socket() {
        let (near, far) = [(); 2]
            .map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .into();
        make_room(&far, BURST);
        let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let most: usize = most.trim().parse().unwrap();
        // The kernel doubles what it is asked for.
        let room = nix::sys::socket::getsockopt(&far, sockopt::RcvBuf).unwrap();
        assert!(room >= 2 * BURST.min(most), "{room}");
        let fit = room / 2048;
        for _ in 0..fit {
            near.send_to(&[1; 60], far.local_addr().unwrap()).unwrap();
        }
        far.set_nonblocking(true).unwrap();
        let got = (0..).take_while(|_| far.recv(&mut [0; 60]).is_ok()).count();
        assert_eq!(got, fit);
    }

    #[test]
    fn a_crowd_has_limits_and_forgets_who_left() {
        let crowd = Crowd::new(3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = crowd.enter(a).unwrap();
        let _second = crowd.enter(a).unwrap();
        assert_eq!(crowd.enter(a).unwrap_err(), Full::Address);
        let _third = crowd.enter(b).unwrap();
        assert_eq!(crowd.enter(b).unwrap_err(), Full::All);
        drop(first);
        assert_eq!(lock(&crowd.inside).all, 2);
        drop(crowd.enter(b).unwrap());
        assert!(crowd.enter(a).is_ok());
        assert_eq!(lock(&crowd.inside).all, 2);
        let mapped = IpAddr::V6(std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
        assert_eq!(crowd.enter(mapped).unwrap().address, a);
        assert_eq!(lock(&crowd.inside).by_address.len(), 2);
    }
}
