//! Waiting for the next request of a client that asks one thing after the other.
//!
//! A thread that sleeps until bytes come costs such a client the wake-up of an idle processor
//! at each request, which on a virtual machine takes longer than the request itself. So where
//! requests follow close on each other, a thread looks for a moment before it sleeps. What that costs is bounded: a look gives its processor to whoever wants it
//! (`sched_yield`), only a few threads look at a time, and one that looked in vain does so
//! ever more rarely.

use std::io::{self, ErrorKind, Read as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::sync::Semaphore;

/// Looks before the thread sleeps: some 100 µs, a client's turn-around on a fast network.
const LOOKS: u32 = 200;
/// Most waits in a row that are slept through at once after looking in vain.
const MOST_PATIENCE: u32 = 1024;

/// Who may look at this moment: the other half of the processors is for the work.
static LOOKING: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(0, |n| n.get());
    Semaphore::new(processors / 2)
});

/// What a thread's waits so far tell of the next one.
#[derive(Debug, Default)]
pub struct Attention {
    /// Waits to sleep through before it looks again.
    rest: u32,
    /// How many it will be after the next vain look.
    patience: u32,
}

impl Attention {
    /// Receives as `read` does: at least a byte, or 0 at the end of the stream.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`, the socket's time limit among them; an interrupted call is repeated.
    pub fn receive(&mut self, socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let looked =
            self.look(
                || match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(received) => Ok(Some(received)),
                    Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
                    Err(error) => Err(error),
                },
            )?;
        if let Some(received) = looked {
            return Ok(received);
        }
        loop {
            match (&*socket).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Looks again and again for a moment; `None` if this wait is not one to look through, or
    /// nothing was there: then the thread sleeps.
    ///
    /// # Errors
    ///
    /// Those of `once`.
    pub fn look<T, E>(
        &mut self,
        mut once: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        if !self.is_due() {
            return Ok(None);
        }
        let Ok(_place) = LOOKING.try_acquire() else {
            return Ok(None);
        };
        for _ in 0..LOOKS {
            if let Some(found) = once()? {
                self.patience = 0;
                return Ok(Some(found));
            }
            std::thread::yield_now();
        }
        self.looked_in_vain();
        Ok(None)
    }

    /// Whether this wait is one to look through.
    const fn is_due(&mut self) -> bool {
        let due = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        due
    }

    fn looked_in_vain(&mut self) {
        self.patience = (self.patience * 2).clamp(1, MOST_PATIENCE);
        self.rest = self.patience;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn looking_in_vain_makes_it_ever_rarer_and_success_frequent_again() {
        let mut attention = Attention::default();
        let mut waits = Vec::new();
        for _ in 0..14 {
            let mut slept = 0;
            while !attention.is_due() {
                slept += 1;
            }
            waits.push(slept);
            attention.looked_in_vain();
        }
        assert_eq!(waits[..6], [0, 1, 2, 4, 8, 16]);
        assert_eq!(waits[11..], [1024, 1024, 1024]);
    }

    #[test]
    fn it_receives_what_is_there_what_comes_later_and_the_end() {
        let (near, far) = pair();
        let mut attention = Attention::default();
        let mut buffer = [0; 16];
        (&near).write_all(b"there").unwrap();
        assert_eq!(attention.receive(&far, &mut buffer).unwrap(), 5);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            (&near).write_all(b"late").unwrap();
            near
        });
        assert_eq!(attention.receive(&far, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"late");
        drop(late.join().unwrap());
        assert_eq!(attention.receive(&far, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn the_sockets_time_limit_holds() {
        let (_near, far) = pair();
        far.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let error = Attention::default().receive(&far, &mut [0; 16]);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn no_more_look_at_a_time_than_may() {
        let most = std::thread::available_parallelism().unwrap().get() / 2;
        // Others of this process may look meanwhile: all that can be had are fewer than more.
        let places: Vec<_> = (0..most + 8).map(|_| LOOKING.try_acquire()).collect();
        let had = places.iter().flatten().count();
        assert!(had <= most, "{had}");
    }
}
