//! A journal on this server's own disk: records that must outlive it while PostgreSQL is away,
//! and what it has to know again when it starts without PostgreSQL.
//!
//! One file, written by one thread, so that records stand in the order in which they were handed
//! over and many of them share one `fdatasync`. Its space is allocated ahead, in [`CHUNK`]s: a
//! disk that fills up is found out before a record depends on it. What the records mean is
//! their owner's business; the owner also says how they are folded into fewer when the file has
//! grown.
//!
//! `whole`: a small file that is replaced as a whole. `file`: the bytes. A record is there whole
//! or not at all (its checksum says which); what follows the first broken one was never promised
//! to anybody. `folding`: a large journal is folded beside what is written meanwhile, for who
//! waits for a record does not wait for that.

mod file;
mod folding;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use tokio::sync::oneshot;

use file::File;
pub use file::JournalError;
use folding::Folding;
pub use whole::replace_file;

/// Bytes that are allocated at a time.
pub const CHUNK: u64 = 4 << 20;

/// Of the file that takes the journal's place when that is folded.
const FOLDING: &str = "folding";

/// The file is not folded below this size.
const FOLD_AT_LEAST: u64 = 2 * CHUNK;

/// Makes fewer records of many, which say the same: called with all records of the file when it
/// has grown to twice of what was left last time. What is written meanwhile stands behind them.
pub type Fold = fn(&[&[u8]]) -> Vec<Vec<u8>>;

/// A handle; clones share the file. The thread ends with the last of them, all written.
#[derive(Debug, Clone)]
pub struct Journal {
    orders: Sender<Order>,
    size: Arc<AtomicU64>,
    path: Arc<Path>,
}

type Told = oneshot::Sender<Result<(), Arc<JournalError>>>;

#[derive(Debug)]
enum Order {
    Write {
        records: Vec<Vec<u8>>,
        /// Whoever waits until they are written.
        told: Option<Told>,
        /// They are to outlive a power cut.
        durable: bool,
    },
}

/// Records that have their place in the journal and are being written.
#[derive(Debug)]
pub struct Pending {
    hears: oneshot::Receiver<Result<(), Arc<JournalError>>>,
    path: Arc<Path>,
}

impl Pending {
    /// Returns when they are written as they should be.
    ///
    /// # Errors
    /// When they could not be written: then none of them will be found again.
    pub async fn written(self) -> Result<(), Arc<JournalError>> {
        let ended = || Err(Arc::new(JournalError::ended(&self.path)));
        self.hears.await.unwrap_or_else(|_| ended())
    }
}

impl Journal {
    /// Opens `dir/name.journal` and gives back its records, folded; makes it where there is none.
    ///
    /// # Errors
    /// When it can't be read or made, or is of a later version of this program.
    pub fn open(dir: &Path, name: &str, fold: Fold) -> Result<(Self, Vec<Vec<u8>>), JournalError> {
        let path: PathBuf = dir.join(format!("{name}.journal"));
        let (mut file, bytes) = File::open(&path)?;
        let records = fold(&file::records(&bytes));
        file.replace(&records)?;
        // Of a run that was killed meanwhile.
        file.forget(FOLDING);
        let size = Arc::new(AtomicU64::new(file.len()));
        let (orders, receiver) = mpsc::channel();
        let writer = Writer {
            folded: file.len(),
            file,
            fold,
            folding: None,
            size: size.clone(),
        };
        std::thread::Builder::new()
            .name(format!("journal-{name}"))
            .spawn(move || writer.run(&receiver))
            .map_err(|source| JournalError::of(&path, "starting its thread for", source))?;
        let journal = Self {
            orders,
            size,
            path: path.into(),
        };
        Ok((journal, records))
    }

    /// Hands records over, in order; they reach the disk with the next [`Journal::append`], or
    /// when the kernel sees fit. A crash may take the last of them.
    pub fn note(&self, records: Vec<Vec<u8>>) {
        if !records.is_empty() {
            // A thread that has ended has said why.
            let _ = self.orders.send(Order::Write {
                records,
                told: None,
                durable: false,
            });
        }
    }

    /// Hands records over and returns when they, and all before them, outlive a crash of this
    /// process (kill -9), not a power cut.
    ///
    /// # Errors
    /// When they could not be written: then none of them will be found again.
    pub async fn put(&self, records: Vec<Vec<u8>>) -> Result<(), Arc<JournalError>> {
        self.hand_over(records, false)?.written().await
    }

    /// Hands records over and returns when they, and all before them, outlive a power cut.
    ///
    /// # Errors
    /// When they could not be written: then none of them will be found again.
    pub async fn append(&self, records: Vec<Vec<u8>>) -> Result<(), Arc<JournalError>> {
        self.append_later(records)?.written().await
    }

    /// As [`Journal::append`], in two parts: the records have their place when this returns.
    ///
    /// # Errors
    /// When the journal takes no more.
    pub fn append_later(&self, records: Vec<Vec<u8>>) -> Result<Pending, Arc<JournalError>> {
        self.hand_over(records, true)
    }

    fn hand_over(
        &self,
        records: Vec<Vec<u8>>,
        durable: bool,
    ) -> Result<Pending, Arc<JournalError>> {
        let (told, hears) = oneshot::channel();
        let order = Order::Write {
            records,
            told: Some(told),
            durable,
        };
        let ended = || Arc::new(JournalError::ended(&self.path));
        self.orders.send(order).map_err(|_| ended())?;
        Ok(Pending {
            hears,
            path: self.path.clone(),
        })
    }

    /// Bytes of records in the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
}

/// The thread.
struct Writer {
    file: File,
    fold: Fold,
    /// Under way.
    folding: Option<Folding>,
    /// Size after the last folding.
    folded: u64,
    size: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut failing = false;
        while let Ok(first) = orders.recv() {
            let mut records = Vec::new();
            let mut waiting = Vec::new();
            let mut sync = false;
            let mut next = Some(first);
            while let Some(Order::Write {
                records: more,
                told,
                durable,
            }) = next
            {
                records.extend(more);
                waiting.extend(told);
                sync |= durable;
                next = orders.try_recv().ok();
            }
            let written = self.write(&records, sync);
            match &written {
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(%error, "the local journal can't be written");
                }
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the local journal is written again");
                }
                _ => {}
            }
            let told = written.map_err(Arc::new);
            for waiter in waiting {
                // Who has gone away needs no answer.
                let _ = waiter.send(told.clone());
            }
            self.size.store(self.file.len(), Ordering::Release);
            self.fold();
        }
        if let Some(folding) = self.folding.take() {
            folding.give_up();
        }
        if let Err(error) = self.file.sync() {
            tracing::error!(%error, "the local journal was not synced at the end");
        }
    }

    fn write(&mut self, records: &[Vec<u8>], durable: bool) -> Result<(), JournalError> {
        self.file.append(records)?;
        if durable { self.file.sync() } else { Ok(()) }
    }

    /// Begins to fold, or takes over what was folded meanwhile.
    fn fold(&mut self) {
        let folded = match self.folding.take() {
            Some(folding) if !folding.is_done() => {
                self.folding = Some(folding);
                return;
            }
            Some(folding) => folding.take_place_of(&mut self.file),
            None if self.file.len() < FOLD_AT_LEAST.max(self.folded * 2) => return,
            None => match Folding::begin(&self.file, &self.size, self.fold) {
                Ok(begun) => {
                    self.folding = Some(begun);
                    return;
                }
                Err(error) => Err(error),
            },
        };
        self.size.store(self.file.len(), Ordering::Release);
        self.folded = folded.unwrap_or_else(|error| {
            tracing::warn!(%error, "the local journal can't be made smaller; it grows");
            // A disk that is full is to have its space again.
            self.file.forget(FOLDING);
            // Not again with the next record.
            self.file.len()
        });
    }
}

#[cfg(test)]
mod tests;
