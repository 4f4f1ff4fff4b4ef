//! A connection as the disks see it: asked for a sign of life, closed. It reads and writes
//! nothing.
//!
//! NBD has no ping, so the kernels speak: a TCP keep-alive probe is answered by the other
//! end's kernel as long as that machine lives and still knows the connection; a machine that
//! was reset answers it with RST, and one that is off not at all. It is TCP_INFO that tells
//! when something was last heard.

use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::boot::disks::Line;

/// Heard that shortly before the question also counts: a machine that was reset since does
/// not ask for its disk again as fast as that, and no probe goes out earlier than one second
/// after the last word.
const RECENT: Duration = Duration::from_millis(500);
/// How often TCP_INFO is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The socket of a connection, as long as that lives.
pub(super) struct NbdLine {
    peer: SocketAddr,
    socket: Mutex<Option<TcpStream>>,
}

impl NbdLine {
    pub(super) fn new(peer: SocketAddr, socket: TcpStream) -> Self {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(1))
            .with_retries(120);
        // A machine that is out of reach keeps its disk for two minutes; may be missing in an
        // odd kernel.
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
        Self {
            peer,
            socket: Mutex::new(Some(socket)),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&TcpStream) -> T) -> Option<T> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().map(act)
    }

    /// Ends reading: what has come is still served.
    pub(super) fn stop(&self) {
        self.with(|socket| socket.shutdown(Shutdown::Read));
    }

    /// The connection is over: closes it, whoever still holds this line.
    pub(super) fn end(&self) {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Line for NbdLine {
    fn answers(&self, patience: Duration) -> bool {
        // The kernel takes no less than a second; setting it also sets its timer anew.
        let probe = TcpKeepalive::new().with_time(Duration::from_secs(1));
        let asked = self.with(|socket| SockRef::from(socket).set_tcp_keepalive(&probe).is_ok());
        if asked != Some(true) {
            return false;
        }
        let mut waited = Duration::ZERO;
        loop {
            match self.with(info::silence).flatten() {
                None => return false,
                Some(silent) if silent <= waited + RECENT => return true,
                Some(_) if waited >= patience => return false,
                Some(_) => {}
            }
            std::thread::sleep(LOOK);
            waited += LOOK;
        }
    }

    fn close(&self) {
        self.with(|socket| socket.shutdown(Shutdown::Both));
    }
}

impl fmt::Debug for NbdLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdLine({})", self.peer)
    }
}

/// TCP_INFO, which no library that we have wraps.
mod info {
    use std::mem::{MaybeUninit, size_of};
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    /// `TCP_ESTABLISHED` of the kernel's `tcp_states.h`.
    const ESTABLISHED: u8 = 1;

    /// How long nothing was heard; `None` if the connection is not whole any more.
    #[expect(unsafe_code, reason = "getsockopt(TCP_INFO) has no safe wrapper")]
    pub(super) fn silence(socket: &TcpStream) -> Option<Duration> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; the kernel
        // writes at most `length` bytes to `info`, which has as many. All of its fields are
        // integers, so the zeroes that it does not overwrite are valid.
        let info = unsafe {
            let result = libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            );
            if result != 0 {
                return None;
            }
            info.assume_init()
        };
        let last = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
        (info.tcpi_state == ESTABLISHED).then(|| Duration::from_millis(u64::from(last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (NbdLine, TcpStream) {
        let (other, socket) = crate::export::pair();
        (NbdLine::new(socket.peer_addr().unwrap(), socket), other)
    }

    #[test]
    fn a_living_end_answers_and_one_that_is_gone_does_not() {
        let (line, other) = pair();
        // Older than what counts as recent: only a probe can tell.
        std::thread::sleep(Duration::from_millis(700));
        assert!(line.answers(Duration::from_secs(5)));
        drop(other);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!line.answers(Duration::from_secs(1)));
    }

    #[test]
    fn a_line_that_is_over_answers_nothing() {
        use std::io::Read;
        let (line, mut other) = pair();
        line.end();
        assert!(!line.answers(Duration::from_secs(1)));
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        line.close();
        line.stop();
    }
}
