//! Folding a journal while it is written: a thread of its own makes the smaller file of what stood
//! in the journal when it began, and follows what is written meanwhile. The writer adds the last
//! of it and puts the file in the journal's place, between two records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use super::file::{self, File, JournalError};
use super::{FOLDING, Fold};
use crate::heap;

/// What is left to the writer is not more than some records: they are synced while others wait.
const NEAR: u64 = 64 << 10;

/// One that is under way.
pub(super) struct Folding {
    thread: JoinHandle<Result<Draft, JournalError>>,
}

/// A smaller file, and how much of the journal is in it.
struct Draft {
    file: File,
    upto: u64,
    /// Its size without what was written meanwhile.
    folded: u64,
}

impl Folding {
    /// `size`: where the journal's last record ends, which grows meanwhile.
    pub(super) fn begin(
        journal: &File,
        size: &Arc<AtomicU64>,
        fold: Fold,
    ) -> Result<Self, JournalError> {
        let (source, size) = (journal.again()?, size.clone());
        let thread = Builder::new()
            .name("journal-fold".to_owned())
            .spawn(move || {
                step_back();
                let draft = draft(&source, &size, fold);
                // All records were in memory for that.
                heap::give_back();
                draft
            })
            .map_err(|e| journal.error("starting the folding of", e))?;
        Ok(Self { thread })
    }

    /// [`Folding::take_place_of`] has nothing to wait for.
    pub(super) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end; nothing comes of it.
    pub(super) fn give_up(self) {
        self.thread.join().ok();
    }

    /// Gives back the size of what was folded.
    pub(super) fn take_place_of(self, journal: &mut File) -> Result<u64, JournalError> {
        let panicked = |_| journal.error("folding", std::io::Error::other("its thread panicked"));
        let mut draft = self.thread.join().map_err(panicked)??;
        draft.follow(journal, journal.len())?;
        journal.give_place_to(draft.file)?;
        Ok(draft.folded)
    }
}

/// Nobody waits for it: the others have the processor first.
fn step_back() {
    // SAFETY: it takes numbers. On Linux it is of the calling thread alone.
    #[expect(unsafe_code, reason = "setpriority has no safe wrapper")]
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) } != 0;
    if refused {
        tracing::debug!("a journal is folded at the usual priority");
    }
}

fn draft(source: &File, size: &AtomicU64, fold: Fold) -> Result<Draft, JournalError> {
    let upto = source.len();
    let folded = {
        let bytes = source.bytes(0, upto)?;
        fold(&file::records(&bytes))
    };
    let file = source.draft_with(FOLDING, &folded)?;
    let folded = file.len();
    let mut draft = Draft { file, upto, folded };
    loop {
        draft.file.sync()?;
        let end = size.load(Ordering::Acquire);
        if end <= draft.upto + NEAR {
            return Ok(draft);
        }
        draft.follow(source, end)?;
    }
}

impl Draft {
    /// Takes in what the journal has up to `end`.
    fn follow(&mut self, journal: &File, end: u64) -> Result<(), JournalError> {
        let more = journal.bytes(self.upto, end)?;
        self.file.append_framed(&more)?;
        self.upto = end;
        Ok(())
    }
}
