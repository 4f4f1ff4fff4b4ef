//! Pages of images' files on their way to a socket, gathered in a pipe of the kernel so that
//! one burst brings many replies: each burst wakes the client, which on one machine costs more
//! than copying would. No byte of a file is copied. It knows neither requests nor the disk.

use std::io::{self, ErrorKind, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::storage::Lent;

/// Bytes that a pipe is asked to hold: what everybody may ask for (pipe(7)).
const PIPE: usize = 1024 * 1024;
/// The kernel counts a pipe's room in pages, of at least this many bytes.
const PAGE: usize = 4096;
/// Pipes at a time: half of what the kernel gives one user. Who finds none copies.
const MOST: usize = 32;

/// Empty pipes.
static POOL: Mutex<Vec<Conduit>> = Mutex::new(Vec::new());
/// Places for pipes that are not made yet.
static PLACES: Semaphore = Semaphore::const_new(MOST);

/// A pipe, and what is in it.
#[derive(Debug)]
pub(super) struct Conduit {
    end: OwnedFd,
    start: std::fs::File,
    /// Pages' worth of room in all.
    room: usize,
    /// Of it taken, at most.
    used: usize,
    bytes: usize,
    _place: SemaphorePermit<'static>,
}

impl Conduit {
    /// An empty one; `None` where the system gives no more pipes of that size (there is a
    /// limit for each user).
    pub(super) fn take() -> Option<Self> {
        let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if pooled.is_some() {
            return pooled;
        }
        let place = PLACES.try_acquire().ok()?;
        let (end, start) = pipe2(OFlag::O_CLOEXEC).ok()?;
        let size = i32::try_from(PIPE).ok()?;
        let size = fcntl(&start, FcntlArg::F_SETPIPE_SZ(size)).ok()?;
        Some(Self {
            end,
            start: start.into(),
            room: usize::try_from(size).ok()? / page_size(),
            used: 0,
            bytes: 0,
            _place: place,
        })
    }

    /// Gives an empty one back; one that could not be emptied is closed.
    pub(super) fn give_back(self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bytes == 0 {
            pool.push(self);
        }
    }

    /// True if so many bytes and that part of a file surely find room.
    pub(super) fn has_room(&self, head: usize, lent: &Lent, length: usize) -> bool {
        self.used + head.div_ceil(PAGE) + 1 + pages(lent, length) <= self.room
    }

    /// Puts bytes in, for which there is room.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.start.write_all(bytes)?;
        self.used += bytes.len().div_ceil(PAGE);
        self.bytes += bytes.len();
        Ok(())
    }

    /// Puts a part of a file in, for which there is room: all of it.
    pub(super) fn lend(&mut self, lent: &Lent, length: usize) -> io::Result<()> {
        let mut at = i64::try_from(lent.at).map_err(|_| ErrorKind::InvalidInput)?;
        let mut left = length;
        self.used += pages(lent, length);
        while left > 0 {
            // A full pipe would be a miscount of ours, and waiting for room would be for ever.
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match splice(&*lent.file, Some(&mut at), &self.start, None, left, flags) {
                // The file became shorter than it was.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(put) => {
                    left -= put;
                    self.bytes += put;
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends everything; blocks while the other end does not take it. `more` follows at once.
    pub(super) fn send(&mut self, socket: &TcpStream, more: bool) -> io::Result<()> {
        let mut flags = SpliceFFlags::SPLICE_F_MOVE;
        flags.set(SpliceFFlags::SPLICE_F_MORE, more);
        while self.bytes > 0 {
            match splice(&self.end, None, socket, None, self.bytes, flags) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => self.bytes -= sent,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.used = 0;
        Ok(())
    }
}

/// Places that a part of a file takes in a pipe: one for each page that it touches.
fn pages(lent: &Lent, length: usize) -> usize {
    let within = usize::try_from(lent.at % PAGE as u64).unwrap_or(0);
    (within + length).div_ceil(PAGE)
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(PAGE)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use super::*;
    use crate::export::pair;

    fn file(bytes: &[u8]) -> Arc<std::fs::File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[test]
    fn heads_and_parts_of_files_arrive_in_their_order() {
        let content: Vec<u8> = (0..400_000_u32).map(|n| (n / 7) as u8).collect();
        let file = file(&content);
        let (near, mut far) = pair();
        let mut expected = Vec::new();
        let mut conduit = Conduit::take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            all
        });
        for n in 0..40_u64 {
            let lent = Lent {
                file: file.clone(),
                at: n * 4099,
            };
            let (head, length) = (vec![n as u8; 20 + n as usize], 65_536 + 999 * n as usize);
            if !conduit.has_room(head.len(), &lent, length) {
                conduit.send(&near, true).unwrap();
                assert!(conduit.has_room(head.len(), &lent, length));
            }
            conduit.put(&head).unwrap();
            conduit.lend(&lent, length).unwrap();
            expected.extend(head);
            expected.extend(&content[lent.at as usize..][..length]);
        }
        conduit.send(&near, false).unwrap();
        conduit.give_back();
        drop(near);
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn there_are_only_so_many() {
        let all: Vec<_> = (0..MOST + 5).map_while(|_| Conduit::take()).collect();
        assert!(all.len() <= MOST && !all.is_empty(), "{}", all.len());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_its_pipe_is_not_used_again() {
        let lent = Lent {
            file: file(&[1; 5000]),
            at: 0,
        };
        let mut conduit = Conduit::take().unwrap();
        let error = conduit.lend(&lent, 9000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        conduit.give_back();
        let pool = POOL.lock().unwrap();
        assert!(pool.iter().all(|c| c.bytes == 0 && c.used == 0));
    }
}
