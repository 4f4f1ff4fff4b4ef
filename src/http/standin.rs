//! Stand-ins: bytes of a body that nobody looks at, because the link sends a file's in their
//! place.
//!
//! hyper writes what a body gives it, and knows no files. So a body gives it a slice of one
//! array, and notes here which bytes of which file that stands for; the link knows the array
//! by its address and has the kernel send the file's bytes from its page cache (sendfile).
//! Notes are in the order of the bytes on the wire: one connection, one list. The array is
//! never written and never read, so it costs no memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nix::sys::sendfile::sendfile64;

/// The most bytes that one stand-in stands for.
pub(super) const LONGEST: usize = 512 * 1024;

static ARRAY: [u8; LONGEST] = [0; LONGEST];

/// True if these bytes stand for others.
pub(super) fn is_stand_in(bytes: &[u8]) -> bool {
    !bytes.is_empty() && ARRAY.as_ptr_range().contains(&bytes.as_ptr())
}

/// What a connection's stand-ins stand for; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Errands(Arc<Mutex<VecDeque<Errand>>>);

#[derive(Debug)]
struct Errand {
    file: Arc<File>,
    at: i64,
    left: usize,
    sent: Arc<Sent>,
}

/// How many bytes of a body are out. Held by the body and by what still stands for its bytes; when
/// the last of them lets go there is nothing more to come, and it says how many it were.
pub(super) struct Sent {
    bytes: AtomicU64,
    tell: Box<dyn Fn(u64) + Send + Sync>,
}

impl Sent {
    /// None yet.
    pub(super) fn new(tell: impl Fn(u64) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicU64::new(0),
            tell: Box::new(tell),
        })
    }

    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        (self.tell)(*self.bytes.get_mut());
    }
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sent").field(&self.bytes).finish()
    }
}

impl Errands {
    /// Bytes that stand for a range of a file, [`LONGEST`] of it at most; `sent` counts what the
    /// kernel has taken of them.
    pub(super) fn note(&self, file: &Arc<File>, range: Range<u64>, sent: &Arc<Sent>) -> Bytes {
        let length = range.end.saturating_sub(range.start);
        let length = usize::try_from(length).map_or(LONGEST, |n| n.min(LONGEST));
        let errand = Errand {
            file: Arc::clone(file),
            // No file is longer than that.
            at: i64::try_from(range.start).unwrap_or(i64::MAX),
            left: length,
            sent: Arc::clone(sent),
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(errand);
        Bytes::from_static(ARRAY.split_at(length).0)
    }

    /// Sends what the next stand-in stands for, at most so many bytes; how many it were.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file has become shorter; what the socket says.
    pub(super) fn run(&self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(errand) = list.front_mut() else {
            return Err(io::Error::other("a stand-in that stands for nothing"));
        };
        let most = most.min(errand.left);
        let sent = sendfile64(socket, &*errand.file, Some(&mut errand.at), most)?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        errand.left -= sent.min(errand.left);
        errand.sent.add(sent);
        let done = (errand.left == 0).then(|| list.pop_front());
        drop(list);
        // Whoever is told of it may take a while.
        drop(done);
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_stand_in_is_known_by_its_address() {
        let errands = Errands::default();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let bytes = errands.note(&file, 5..u64::MAX, &Sent::new(|_| {}));
        assert_eq!(bytes.len(), LONGEST);
        assert!(is_stand_in(&bytes) && is_stand_in(&bytes[LONGEST - 1..]));
        assert!(
            !is_stand_in(&bytes[LONGEST..]),
            "nothing stands for nothing"
        );
        assert!(!is_stand_in(&[0; 8]) && !is_stand_in(b"HTTP/1.1"));
    }

    #[test]
    fn errands_are_run_in_order_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Arc::new(file);
        let told = Arc::new(AtomicU64::new(0));
        let sent = Sent::new({
            let told = told.clone();
            move |bytes| told.store(bytes, Ordering::Relaxed)
        });
        let errands = Errands::default();
        errands.note(&file, 7..9, &sent);
        errands.note(&file, 0..4, &sent);
        assert_eq!(errands.run(&server, 100).unwrap(), 2);
        assert_eq!(errands.run(&server, 1).unwrap(), 1);
        assert_eq!(errands.run(&server, 100).unwrap(), 3);
        assert!(errands.run(&server, 1).is_err(), "nothing is left");
        errands.note(&file, 10..12, &sent);
        // The body is gone, and something stands for its bytes yet.
        drop(sent);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        let error = errands.run(&server, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop((server, errands));
        assert_eq!(told.load(Ordering::Relaxed), 6);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "780123");
    }
}
