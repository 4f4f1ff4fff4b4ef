//! What of a file has gone out to a boot, over several requests and connections.
//!
//! The timeline has one `FileStarted` and one `FileSent` for a file, however it was fetched:
//! whole, in pieces, or whole after a drop with the rest by `Range` (edk2 does that). A file
//! is sent when the union of what went out is all of it; a request that ends early is a
//! `FileBroken`. "Went out" means: the kernel has it, with at most `NOTSENT_LOWAT` bytes and a
//! client's receive window not yet acknowledged.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use uuid::Uuid;

use super::link::{End, Fate};
use crate::boot::files::Files;
use crate::boot::session::{BootFile, Context, Door, Evidence, Observation};
use crate::model::MacAddr;

/// Unfinished files that are remembered; the oldest is forgotten first.
const MOST_FILES: usize = 4096;
/// Pieces of one file that are remembered; a client with more gaps than that starts over.
const MOST_PIECES: usize = 64;

/// Shared by all connections.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    files: Files,
    open: Arc<Mutex<HashMap<Key, Entry>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    attempt: Uuid,
    file: BootFile,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    started: Instant,
    sent: Pieces,
}

/// Disjoint, sorted, never touching.
#[derive(Debug, Default)]
struct Pieces(Vec<Range<u64>>);

impl Pieces {
    fn add(&mut self, piece: Range<u64>) {
        if piece.is_empty() {
            return;
        }
        let mut merged = piece;
        self.0.retain(|p| {
            let apart = p.end < merged.start || merged.end < p.start;
            if !apart {
                merged = merged.start.min(p.start)..merged.end.max(p.end);
            }
            apart
        });
        let at = self.0.partition_point(|p| p.start < merged.start);
        self.0.insert(at, merged);
        self.0.truncate(MOST_PIECES);
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|p| p.end - p.start).sum()
    }
}

/// A file or piece on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    ledger: Ledger,
    key: Key,
    mac: MacAddr,
    size: u64,
    range: Range<u64>,
    fate: Fate,
}

impl Ledger {
    pub(super) fn new(files: Files) -> Self {
        Self {
            files,
            open: Arc::default(),
        }
    }

    /// Notes that these bytes of a file are about to go out.
    pub(super) fn begin(
        &self,
        (attempt, mac): (Uuid, MacAddr),
        file: BootFile,
        size: u64,
        range: Range<u64>,
        fate: Fate,
    ) -> Transfer {
        let key = Key { attempt, file };
        let now = self.files.clock().instant();
        let first = {
            let mut open = self.lock();
            let whole = range == (0..size);
            let stale = open.get(&key).is_none_or(|e| whole || e.size != size);
            if stale {
                if open.len() >= MOST_FILES {
                    let oldest = open.iter().min_by_key(|(_, e)| e.started);
                    if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                        open.remove(&oldest);
                    }
                }
                let entry = Entry {
                    size,
                    started: now,
                    sent: Pieces::default(),
                };
                open.insert(key.clone(), entry);
            }
            stale
        };
        if first {
            let file = key.file.clone();
            let door = Door::Http;
            let started = Evidence::FileStarted { file, door, size };
            self.observe(&key, mac, started);
        }
        Transfer {
            ledger: self.clone(),
            key,
            mac,
            size,
            range,
            fate,
        }
    }

    fn settle(&self, transfer: &Transfer, sent: u64) {
        let Transfer {
            key, size, range, ..
        } = transfer;
        let (size, door, file) = (*size, Door::Http, key.file.clone());
        let done = range.start..range.start.saturating_add(sent);
        // A client that closes once it has all of it is none that broke off: its system would
        // have reset the connection over bytes that it had not read.
        let lost = matches!(transfer.fate.get(), End::Broken | End::Stalled);
        let failed = done.end < range.end || lost;
        let now = self.files.clock().instant();
        let evidence = {
            let mut open = self.lock();
            let Some(entry) = open.get_mut(key) else {
                return;
            };
            entry.sent.add(done);
            let sent = entry.sent.total();
            if failed {
                let cause = transfer.fate.get().as_str().to_owned();
                Evidence::FileBroken {
                    file,
                    door,
                    // What was handed over last may not have left.
                    sent: sent.min(size),
                    size,
                    cause,
                }
            } else if sent == size {
                let seconds = now.saturating_duration_since(entry.started).as_secs_f64();
                open.remove(key);
                Evidence::FileSent {
                    file,
                    door,
                    size,
                    seconds,
                }
            } else {
                return;
            }
        };
        self.observe(key, transfer.mac, evidence);
    }

    fn observe(&self, key: &Key, mac: MacAddr, what: Evidence) {
        // A machine that was reset has its next boot open when the connection of its last one
        // is found dead: that is no news of the new boot.
        let open = self.files.tracker().open_attempt(mac);
        if open.is_none_or(|a| a.id != key.attempt) {
            return;
        }
        self.files.tracker().observe(Observation {
            mac,
            at: self.files.clock().now(),
            what,
            context: Context::default(),
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Transfer {
    /// Nothing more of it goes out; so many bytes have.
    pub(super) fn has_ended(&self, sent: u64) {
        self.ledger.settle(self, sent);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_join() {
        let mut pieces = Pieces::default();
        for piece in [10..20, 30..40, 0..0, 20..25, 5..12] {
            pieces.add(piece);
        }
        assert_eq!(pieces.0, [5..25, 30..40]);
        pieces.add(0..100);
        assert_eq!(pieces.0, std::slice::from_ref(&(0..100)));
    }

    proptest! {
        #[test]
        fn the_union_is_what_was_added(list in proptest::collection::vec((0_u64..200, 0_u64..40), 0..40)) {
            let (mut pieces, mut model) = (Pieces::default(), [false; 256]);
            for (start, len) in list {
                pieces.add(start..start + len);
                for byte in start..start + len {
                    model[usize::try_from(byte).unwrap()] = true;
                }
            }
            prop_assert_eq!(pieces.total(), model.iter().filter(|b| **b).count() as u64);
            prop_assert!(pieces.0.windows(2).all(|w| w[0].end < w[1].start));
        }
    }
}
