//! How a layer gets to the disk: checkpoints, closing, and what is done after a crash.
//!
//! A checkpoint syncs the file (so the data is there), writes the entries that were pending
//! when it began to the tables, syncs again, and drops them from memory and journal. So an
//! entry on the disk never refers to data that is not there.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use super::Fault;
use super::cache::PER_PAGE;
use super::cow::{Layer, Pending, Room, lock};
use super::format::{CLUSTER, ENTRY, Entry, FEATURES_AT, features};
use super::journal::Journal;
use super::medium::Medium;

/// Flushes that join: each waits for a checkpoint that began after it was asked for, and one
/// checkpoint serves all who wait.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    state: Mutex<Turn>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    running: bool,
    begun: u64,
    ended: u64,
    /// The last that failed, and how.
    failed: Option<(u64, How)>,
    /// A checkpoint that no machine had asked for failed, and no flush has told so yet. The
    /// kernel tells only once that it lost something.
    owed: Option<How>,
}

/// An error that can be told more than once.
type How = (io::ErrorKind, Option<i32>);

/// Who hears how a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Whoever writes the disk: it may take it as a promise.
    Writer,
    /// Somebody else, or nobody: what fails is owed to the writer.
    Upkeep,
}

fn again((kind, code): How) -> io::Error {
    code.map_or_else(|| kind.into(), io::Error::from_raw_os_error)
}

impl Turn {
    /// What is to be told when the checkpoints from `since` on are over. One that went well
    /// after one that failed proves nothing of the writes before that.
    fn outcome(&mut self, since: u64, told: For) -> io::Result<()> {
        let owed = match told {
            For::Writer => self.owed.take(),
            For::Upkeep => None,
        };
        match self.failed {
            Some((run, how)) if run >= since => Err(again(how)),
            _ => owed.map_or(Ok(()), |owed| Err(again(owed))),
        }
    }
}

impl<M: Medium> Layer<M> {
    /// When it returns, everything written before survives a power cut.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.joined(For::Writer)
    }

    /// A checkpoint that no machine asked for. If it fails, the next flush does, too.
    pub(crate) fn relieve(&self) -> io::Result<()> {
        self.joined(For::Upkeep)
    }

    fn joined(&self, told: For) -> io::Result<()> {
        let mut turn = lock(&self.flushing.state);
        let ticket = turn.begun + 1;
        // One that is under way may be the one that finds out what was lost.
        let since = if turn.running { turn.begun } else { ticket };
        while turn.ended < ticket {
            if turn.running {
                let waited = self.flushing.over.wait(turn);
                turn = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            turn.running = true;
            turn.begun += 1;
            let run = turn.begun;
            drop(turn);
            let done = self.checkpoint();
            turn = lock(&self.flushing.state);
            turn.running = false;
            turn.ended = run;
            if let Err(e) = &done {
                let how = (e.kind(), e.raw_os_error());
                turn.failed = Some((run, how));
                // Under the same lock: no flush comes in between and hears of nothing.
                if told == For::Upkeep {
                    turn.owed = Some(how);
                }
            }
            self.flushing.over.notify_all();
        }
        turn.outcome(since, told)
    }

    /// One at a time.
    fn checkpoint(&self) -> io::Result<()> {
        if !self.changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let done = self.write_down();
        if done.is_err() {
            self.changed.store(true, Ordering::Release);
        }
        done
    }

    fn write_down(&self) -> io::Result<()> {
        let now: BTreeMap<u64, Entry> = {
            let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
            pending.iter().map(|(c, e)| (*c, *e)).collect()
        };
        self.file.sync()?;
        if now.is_empty() {
            return Ok(());
        }
        self.write_tables(&now)?;
        self.file.sync()?;
        let mut ledger = lock(&self.journal);
        let left = |pending: &Pending| -> Vec<_> {
            // An entry that changed meanwhile waits for the next checkpoint.
            let still = pending.iter().filter(|(c, e)| now.get(c) != Some(e));
            still.map(|(c, e)| (*c, *e)).collect()
        };
        // Nobody changes it now: that is done under the journal's lock.
        let left = left(&self.pending.read().unwrap_or_else(PoisonError::into_inner));
        if let Some(journal) = ledger.journal.as_mut() {
            journal.restart(&left)?;
        }
        let mut pending = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        *pending = left.into_iter().collect();
        Ok(())
    }

    /// Writes entries to the file's tables, neighbours at once.
    pub(super) fn write_tables(&self, entries: &BTreeMap<u64, Entry>) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let _one = lock(&self.tables);
        self.table_writes.fetch_add(1, Ordering::AcqRel);
        let mut done = Ok(());
        let mut run: Vec<u8> = Vec::new();
        let mut from = 0;
        let mut write = |from: u64, run: &mut Vec<u8>| {
            if done.is_ok() && !run.is_empty() {
                done = self.file.write(self.geometry.entry_at(from), run);
            }
            run.clear();
        };
        for (cluster, entry) in entries {
            if *cluster != from + run.len() as u64 / ENTRY {
                write(from, &mut run);
            }
            if run.is_empty() {
                from = *cluster;
            }
            run.extend(entry.bytes());
        }
        write(from, &mut run);
        let mut last = None;
        for cluster in entries.keys() {
            let page = cluster / PER_PAGE;
            if last != Some(page) {
                self.with.cache.forget(self.number, page);
                last = Some(page);
            }
        }
        self.table_writes.fetch_add(1, Ordering::AcqRel);
        done
    }

    /// Before the first write: opens the journal, finds free space, and says in the file that
    /// refcounts will be wrong.
    pub(super) fn mark(&self) -> io::Result<()> {
        if self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut ledger = lock(&self.journal);
        if self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        if ledger.journal.is_none() {
            let mut journal = Journal::new((self.open_journal)()?, self.with.boot);
            journal.restart(&[])?;
            ledger.journal = Some(journal);
        }
        let mut room = lock(&self.room);
        if !room.known {
            *room = self.room_by_refcounts()?;
        }
        self.file
            .write(FEATURES_AT, &features(true).to_be_bytes())?;
        self.changed.store(true, Ordering::Release);
        self.marked.store(true, Ordering::Release);
        Ok(())
    }

    /// Free space of a layer that was closed.
    fn room_by_refcounts(&self) -> io::Result<Room> {
        let g = &self.geometry;
        let bump = self.file.length()?.next_multiple_of(CLUSTER).max(g.data_at);
        let count = usize::try_from((bump - g.data_at) / CLUSTER).unwrap_or(0);
        let mut refcounts = vec![0; count * 2];
        self.file.read(g.refcount_at(g.data_at), &mut refcounts)?;
        let free = refcounts
            .chunks_exact(2)
            .zip((g.data_at..).step_by(CLUSTER as usize))
            .filter(|(refcount, _)| refcount.iter().all(|b| *b == 0))
            .map(|(_, place)| place);
        Ok(Room {
            known: true,
            free: free.collect(),
            bump,
        })
    }

    /// After a crash: takes over the journal's changes if they are of this boot, and finds
    /// free space by the tables.
    pub(super) fn recover(&self) -> Result<(), Fault> {
        let g = &self.geometry;
        let file = (self.open_journal)()?;
        let changes = Journal::replay(&file, self.with.boot, g)?;
        let mut journal = Journal::new(file, self.with.boot);
        let mut pending = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        pending.extend(changes);
        // Their data lies where they say: the page cache has it.
        let ends = pending.values().map(|e| e.place + CLUSTER);
        self.end
            .fetch_max(ends.max().unwrap_or(0), Ordering::AcqRel);
        let live: Vec<_> = pending.iter().map(|(c, e)| (*c, *e)).collect();
        journal.restart(&live)?;
        let taken = pending.values().map(|e| e.place).filter(|p| *p != 0);
        let mut used: HashSet<u64> = HashSet::new();
        for place in taken {
            if !used.insert(place) {
                return Err(self.twice(place));
            }
        }
        self.scan(|cluster, entry| {
            let fresh = pending.contains_key(&cluster) || used.insert(entry.place);
            if fresh {
                Ok(())
            } else {
                Err(self.twice(entry.place))
            }
        })?;
        drop(pending);
        let bump = used.iter().max().map_or(g.data_at, |p| p + CLUSTER);
        let all = (g.data_at..bump).step_by(CLUSTER as usize);
        *lock(&self.room) = Room {
            known: true,
            free: all.filter(|place| !used.contains(place)).collect(),
            bump,
        };
        lock(&self.journal).journal = Some(journal);
        self.changed.store(true, Ordering::Release);
        self.marked.store(true, Ordering::Release);
        Ok(())
    }

    fn twice(&self, place: u64) -> Fault {
        Fault::Damaged(format!("two clusters have the same place {place}"))
    }

    /// Calls for each entry in the file's tables that has a place.
    fn scan(&self, mut found: impl FnMut(u64, Entry) -> Result<(), Fault>) -> Result<(), Fault> {
        let g = &self.geometry;
        let end = g.entry_at(g.clusters);
        let mut at = g.l2_at;
        while let Some(data) = self.file.next_data(at..end)? {
            let from = data.start - data.start % 4096;
            let to = data
                .end
                .next_multiple_of(4096)
                .min(from + 1024 * 1024)
                .min(end);
            let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
            self.file.read(from, &mut bytes)?;
            for (n, entry) in bytes.chunks_exact(16).enumerate() {
                if entry.iter().all(|b| *b == 0) {
                    continue;
                }
                let cluster = (from - g.l2_at) / ENTRY + n as u64;
                let entry = Entry::from_bytes(entry, g)
                    .filter(|e| e.place < self.end.load(Ordering::Acquire))
                    .ok_or_else(|| {
                        Fault::Damaged(format!("the table entry of cluster {cluster} is damaged"))
                    })?;
                if entry.place != 0 {
                    found(cluster, entry)?;
                }
            }
            at = to;
        }
        Ok(())
    }

    /// Puts everything in its place, so that the file is whole without its journal and
    /// `qemu-img check` finds nothing. Nobody may write meanwhile. Without writes before: nothing.
    pub(crate) fn close(&self) -> io::Result<()> {
        if !self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        self.flush()?;
        let g = &self.geometry;
        let bump = {
            let mut room = lock(&self.room);
            room.free.sort_unstable();
            while room
                .free
                .last()
                .is_some_and(|last| last + CLUSTER == room.bump)
            {
                room.free.pop();
                room.bump -= CLUSTER;
            }
            let count = usize::try_from((room.bump - g.data_at) / CLUSTER).unwrap_or(0);
            let mut refcounts = [0, 1].repeat(count);
            for place in &room.free {
                let at = usize::try_from((place - g.data_at) / CLUSTER * 2).unwrap_or(0);
                refcounts[at + 1] = 0;
            }
            for (n, part) in refcounts.chunks(1024 * 1024).enumerate() {
                let at = g.refcount_at(g.data_at) + n as u64 * 1024 * 1024;
                self.file.write(at, part)?;
            }
            room.bump
        };
        self.file.set_length(bump)?;
        self.file.sync()?;
        let mut ledger = lock(&self.journal);
        self.file
            .write(FEATURES_AT, &features(false).to_be_bytes())?;
        ledger.journal = None;
        self.marked.store(false, Ordering::Release);
        Ok(())
    }

    /// As [`Layer::close`], while a machine has the disk open: a loss that it has not heard of
    /// stays owed to it, and nothing is frozen before.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.whole()?;
        self.close()
    }

    /// Everything is on the disk, and no checkpoint failed without the machine knowing.
    fn whole(&self) -> io::Result<()> {
        self.relieve()?;
        lock(&self.flushing.state)
            .owed
            .map_or(Ok(()), |owed| Err(again(owed)))
    }

    /// Cuts it off from what is below, when [`Layer::fill`] was done for every cluster.
    pub(crate) fn cut(&self) -> io::Result<()> {
        self.whole()?;
        self.file.sync()?;
        let dirty = self.marked.load(Ordering::Acquire);
        self.file.write(0, &self.geometry.header(None, dirty))?;
        self.file.sync()?;
        let mut below = self.below.write().unwrap_or_else(PoisonError::into_inner);
        *below = None;
        Ok(())
    }
}
