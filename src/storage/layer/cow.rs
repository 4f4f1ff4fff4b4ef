//! One open layer: looking up and reading. How it is written: [`super::write`]; how it gets
//! to the disk: [`super::checkpoint`].
//!
//! Where an entry is: first in `pending` (changed, not in the file's tables yet), then in the
//! cache, then in the file. A page is cached only if no table was written since it was read
//! (`table_writes` is even and the same), and an entry leaves `pending` only after the file
//! has it and the cache has forgotten its page: so a look-up never sees an older entry than
//! one that was there when it began.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::cache::{Cache, Mix, PAGE, PER_PAGE};
use super::checkpoint::Flushing;
use super::format::{Below, CLUSTER, Entry, Geometry, Header, Kind, SUBCLUSTER};
use super::journal::{Boot, Journal};
use super::medium::Medium;
use super::{Content, Fault, Wait};
use crate::storage::{Extent, ExtentKind, Lent};

/// Entries that are changed and not yet in the tables.
pub(super) type Pending = HashMap<u64, Entry, std::hash::BuildHasherDefault<Mix>>;

/// Makes or finds the journal's file when it is needed.
pub(crate) type OpenJournal<M> = Box<dyn Fn() -> io::Result<M> + Send + Sync>;

/// What all layers of a store share.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Pages of tables.
    pub(crate) cache: Arc<Cache>,
    /// This boot of the kernel.
    pub(crate) boot: Boot,
}

/// An open copy-on-write layer.
pub(crate) struct Layer<M: Medium> {
    /// For messages.
    pub(super) name: String,
    pub(super) file: M,
    pub(super) geometry: Geometry,
    pub(super) below: RwLock<Option<Arc<dyn Content>>>,
    pub(super) with: Surroundings,
    pub(super) number: u64,
    /// Odd while tables are being written.
    pub(super) table_writes: AtomicU64,
    /// Held by who writes tables.
    pub(super) tables: Mutex<()>,
    pub(super) pending: RwLock<Pending>,
    pub(super) open_journal: OpenJournal<M>,
    pub(super) journal: Mutex<Ledger<M>>,
    pub(super) stripes: [Mutex<()>; 64],
    pub(super) room: Mutex<Room>,
    /// No data lies at or behind this place of the file.
    pub(super) end: AtomicU64,
    pub(super) flushing: Flushing,
    /// Something was written since the last sync began.
    pub(super) changed: AtomicBool,
    /// The file says that it was not closed, and the journal is open.
    pub(super) marked: AtomicBool,
}

/// The journal, and pages of tables whose space is reserved.
#[derive(Debug)]
pub(super) struct Ledger<M> {
    pub(super) journal: Option<Journal<M>>,
    pub(super) reserved: HashSet<u64>,
}

/// Space within the file.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Known only once the layer is written to.
    pub(super) known: bool,
    /// Clusters within the file that nothing refers to.
    pub(super) free: Vec<u64>,
    /// The first place behind all clusters.
    pub(super) bump: u64,
}

impl<M: Medium> fmt::Debug for Layer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({})", self.name)
    }
}

impl<M: Medium> Drop for Layer<M> {
    fn drop(&mut self) {
        self.with.cache.forget_layer(self.number);
    }
}

/// A lock whose holder can't leave it half-done: what it guards is right at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a layer with nothing in it to an empty file. It is not synced.
pub(crate) fn create<M: Medium>(file: &M, size: u64, below: Option<&Below>) -> io::Result<()> {
    let Some(geometry) = Geometry::new(size) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    file.set_length(geometry.data_at)?;
    file.write(geometry.l1_at(), &geometry.l1())?;
    file.write(geometry.refcounts_at, &geometry.refcount_table())?;
    let ones = usize::try_from(geometry.data_at / CLUSTER).unwrap_or(0);
    file.write(geometry.blocks_at, &[0, 1].repeat(ones))?;
    // The header last: without it the file is nothing.
    file.write(0, &geometry.header(below, false))
}

/// Reads a layer's header and checks what is fixed.
pub(crate) fn inspect<M: Medium>(file: &M) -> Result<Header, Fault> {
    let mut head = vec![0; Header::READ];
    file.read(0, &mut head)?;
    let header = Header::parse(&head).map_err(|why| Fault::Damaged(why.to_owned()))?;
    let geometry = header.geometry;
    if file.length()? < geometry.data_at {
        return Err(Fault::Damaged("it is cut short".to_owned()));
    }
    for (at, right) in [
        (geometry.l1_at(), geometry.l1()),
        (geometry.refcounts_at, geometry.refcount_table()),
    ] {
        let mut found = vec![0; right.len()];
        file.read(at, &mut found)?;
        if found != right {
            return Err(Fault::Damaged("its first tables are damaged".to_owned()));
        }
    }
    Ok(header)
}

impl<M: Medium> Layer<M> {
    /// Opens a layer that [`inspect`] found right. What was not closed is recovered: its
    /// tables are scanned, and the journal's changes count if they are of this boot.
    pub(crate) fn open(
        name: String,
        file: M,
        header: &Header,
        below: Option<Arc<dyn Content>>,
        open_journal: OpenJournal<M>,
        with: &Surroundings,
    ) -> Result<Self, Fault> {
        let end = file.length()?;
        let layer = Self {
            name,
            file,
            geometry: header.geometry,
            below: RwLock::new(below),
            with: with.clone(),
            number: with.cache.number(),
            table_writes: AtomicU64::new(0),
            tables: Mutex::new(()),
            pending: RwLock::default(),
            open_journal,
            journal: Mutex::new(Ledger {
                journal: None,
                reserved: HashSet::new(),
            }),
            stripes: [const { Mutex::new(()) }; 64],
            room: Mutex::default(),
            end: AtomicU64::new(end),
            flushing: Flushing::default(),
            changed: AtomicBool::new(false),
            marked: AtomicBool::new(false),
        };
        if header.dirty {
            layer.recover()?;
        }
        Ok(layer)
    }

    /// What it lies upon.
    pub(super) fn lower(&self) -> Option<Arc<dyn Content>> {
        let below = self.below.read().unwrap_or_else(PoisonError::into_inner);
        below.clone()
    }

    pub(super) fn damaged(&self, what: &str) -> io::Error {
        let why = format!("{}: {what}", self.name);
        io::Error::new(io::ErrorKind::InvalidData, why)
    }

    /// The entry of a cluster; `None` if that would have to wait.
    pub(super) fn entry(&self, cluster: u64, wait: Wait) -> io::Result<Option<Entry>> {
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pending.get(&cluster) {
            return Ok(Some(*entry));
        }
        drop(pending);
        let (page, within) = (cluster / PER_PAGE, cluster % PER_PAGE);
        let within = usize::try_from(within).unwrap_or(0);
        let words = match self.with.cache.entry(self.number, page, within) {
            Some(words) => words,
            None => match self.load(page, within, wait)? {
                Some(words) => words,
                None => return Ok(None),
            },
        };
        let entry = Entry::from_words(words.0, words.1, &self.geometry)
            .filter(|e| e.place < self.end.load(Ordering::Acquire));
        let Some(entry) = entry else {
            return Err(self.damaged(&format!("the table entry of cluster {cluster} is damaged")));
        };
        Ok(Some(entry))
    }

    /// Reads a page of a table, and gives one entry of it. A page that was being written
    /// meanwhile may be partly of before and partly of after, which no entry survives: it is
    /// read again while nobody writes.
    fn load(&self, page: u64, within: usize, wait: Wait) -> io::Result<Option<(u64, u64)>> {
        let before = self.table_writes.load(Ordering::Acquire);
        let steady =
            || before.is_multiple_of(2) && self.table_writes.load(Ordering::Acquire) == before;
        let mut bytes = [0; PAGE as usize];
        let at = self.geometry.l2_at + page * PAGE;
        match wait {
            Wait::Yes => self.file.read(at, &mut bytes)?,
            Wait::No if self.file.try_read(at, &mut bytes)? => {}
            Wait::No => return Ok(None),
        }
        if !steady() {
            if wait == Wait::No {
                return Ok(None);
            }
            let _nobody_writes = lock(&self.tables);
            self.file.read(at, &mut bytes)?;
        }
        let words = |two: &[u8]| {
            let (place, bits) = two.split_at(8);
            let number = |b: &[u8]| b.try_into().map_or(0, u64::from_be_bytes);
            (number(place), number(bits))
        };
        let content = bytes
            .iter()
            .any(|b| *b != 0)
            .then(|| bytes.chunks_exact(16).map(words).collect::<Arc<[_]>>());
        let found = content.as_ref().map_or((0, 0), |c| c[within]);
        self.with.cache.insert(self.number, page, content, steady);
        Ok(Some(found))
    }

    /// What lies at a place of the disk and for how long (within one cluster), and where.
    fn map(&self, at: u64, most: u64, wait: Wait) -> io::Result<Option<Piece>> {
        let (cluster, within) = (at / CLUSTER, at % CLUSTER);
        let Some(entry) = self.entry(cluster, wait)? else {
            return Ok(None);
        };
        let subcluster = u32::try_from(within / SUBCLUSTER).unwrap_or(0);
        let (kind, end) = entry.run(subcluster);
        Ok(Some(Piece {
            kind,
            place: entry.place + within,
            length: (u64::from(end) * SUBCLUSTER - within).min(most),
        }))
    }

    /// As `map`, over as many clusters as go on in the same way.
    fn long(&self, at: u64, most: u64, wait: Wait) -> io::Result<Option<Piece>> {
        let Some(mut piece) = self.map(at, most, wait)? else {
            return Ok(None);
        };
        while piece.length < most && (at + piece.length).is_multiple_of(CLUSTER) {
            match self.map(at + piece.length, most - piece.length, wait)? {
                Some(next)
                    if next.kind == piece.kind
                        && (next.kind != Kind::Stored
                            || next.place == piece.place + piece.length) =>
                {
                    piece.length += next.length;
                }
                _ => break,
            }
        }
        Ok(Some(piece))
    }
}

/// A run of one kind.
struct Piece {
    kind: Kind,
    place: u64,
    length: u64,
}

impl<M: Medium> Content for Layer<M> {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn read(&self, mut at: u64, mut buffer: &mut [u8], wait: Wait) -> io::Result<bool> {
        while !buffer.is_empty() {
            let Some(piece) = self.long(at, buffer.len() as u64, wait)? else {
                return Ok(false);
            };
            let length = usize::try_from(piece.length).unwrap_or(buffer.len());
            let (part, rest) = buffer.split_at_mut(length);
            let there = match (piece.kind, wait) {
                (Kind::Stored, Wait::Yes) => self.file.read(piece.place, part).map(|()| true)?,
                (Kind::Stored, Wait::No) => self.file.try_read(piece.place, part)?,
                (Kind::Below, _) => match self.lower() {
                    Some(below) => below.read(at, part, wait)?,
                    None => {
                        part.fill(0);
                        true
                    }
                },
                (Kind::Zero, _) => {
                    part.fill(0);
                    true
                }
            };
            if !there {
                return Ok(false);
            }
            at += piece.length;
            buffer = rest;
        }
        Ok(true)
    }

    fn lend(&self, at: u64, length: u64) -> io::Result<Option<Lent>> {
        // What this layer stores may be written at any time.
        match (self.long(at, length, Wait::No)?, self.lower()) {
            (Some(piece), Some(below)) if piece.kind == Kind::Below && piece.length == length => {
                below.lend(at, length)
            }
            _ => Ok(None),
        }
    }

    fn run(&self, at: u64, most: u64) -> io::Result<Extent> {
        let extent = |length, kind| Ok(Extent { length, kind });
        match self.long(at, most, Wait::Yes)? {
            Some(piece) => match piece.kind {
                Kind::Stored => extent(piece.length, ExtentKind::Data),
                Kind::Zero => extent(piece.length, ExtentKind::Zero),
                Kind::Below => match self.lower() {
                    Some(below) => below.run(at, piece.length),
                    None => extent(piece.length, ExtentKind::Hole),
                },
            },
            None => extent(most, ExtentKind::Data),
        }
    }

    fn own(&self, at: u64, most: u64) -> io::Result<(bool, u64)> {
        let piece = self.long(at, most, Wait::Yes)?;
        Ok(piece.map_or((true, most), |p| (p.kind != Kind::Below, p.length)))
    }

    fn under(&self) -> Option<Arc<dyn Content>> {
        self.lower()
    }

    fn depth(&self) -> usize {
        self.lower().map_or(0, |below| below.depth() + 1)
    }
}
