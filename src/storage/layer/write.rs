//! Writing a layer. Data goes to its place in the page cache first, then the change of its
//! entry to the journal, then the write is acknowledged.
//!
//! Changes of one cluster's entry are made under its stripe. A write to what is stored already
//! changes no entry and takes no lock.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::cache::PER_PAGE;
use super::cow::{Layer, lock};
use super::format::{CLUSTER, Entry, Kind, SUBCLUSTER, bits};
use super::journal::Change;
use super::medium::Medium;
use super::{Content, Wait};
use crate::storage::ExtentKind;

/// Changed entries that are kept in memory until a checkpoint puts them in the tables; a write
/// that would need more waits for one.
pub(crate) const MOST_PENDING: usize = 14 * 1024;
/// From here on a checkpoint is due, which no write waits for.
const CROWDED: usize = 10 * 1024;
/// Clusters whose entries are zeroed at once.
const BATCH: u64 = 1024;

/// Pieces of a range, cut at clusters: cluster, start within it, length.
fn pieces(at: u64, length: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = at + length;
    let mut at = at;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let within = at % CLUSTER;
            let here = (CLUSTER - within).min(end - at);
            let piece = (at / CLUSTER, within, here);
            at += here;
            piece
        })
    })
}

/// Subclusters as their numbers within a cluster.
fn number(within: u64) -> u32 {
    u32::try_from(within / SUBCLUSTER).unwrap_or(32)
}

impl<M: Medium> Layer<M> {
    pub(super) fn now(&self, cluster: u64) -> io::Result<Entry> {
        Ok(self.entry(cluster, Wait::Yes)?.unwrap_or_default())
    }

    fn stripe(&self, cluster: u64) -> std::sync::MutexGuard<'_, ()> {
        lock(&self.stripes[usize::try_from(cluster % 64).unwrap_or(0)])
    }

    /// Writes; the range lies within the disk.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.mark()?;
        let mut data = data;
        for (cluster, within, length) in pieces(at, data.len() as u64) {
            let (part, rest) = data.split_at(usize::try_from(length).unwrap_or(data.len()));
            let entry = self.now(cluster)?;
            let touched = bits(number(within)..number(within + length - 1) + 1);
            let done = if entry.stored & touched == touched {
                self.file.write(entry.place + within, part)
            } else {
                self.make_room().and_then(|()| {
                    let _stripe = self.stripe(cluster);
                    self.write_fresh(cluster, within, part)
                })
            };
            self.changed.store(true, Ordering::Release);
            done?;
            data = rest;
        }
        Ok(())
    }

    /// Waits until an entry more may be pending.
    fn make_room(&self) -> io::Result<()> {
        let full = || {
            let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
            pending.len() >= MOST_PENDING
        };
        while full() {
            self.relieve()?;
        }
        Ok(())
    }

    /// True if a checkpoint should be made before writes have to wait for one.
    pub(crate) fn crowded(&self) -> bool {
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        pending.len() >= CROWDED
    }

    /// Writes where at least one subcluster is not stored here. Under the cluster's stripe.
    fn write_fresh(&self, cluster: u64, within: u64, data: &[u8]) -> io::Result<()> {
        let entry = self.now(cluster)?;
        let end = within + data.len() as u64;
        let (first, last) = (number(within), number(end - 1));
        let missing = |subcluster| entry.kind(subcluster) != Kind::Stored;
        // What of the first and the last subcluster is not written comes from what they were.
        let head = if missing(first) {
            within % SUBCLUSTER
        } else {
            0
        };
        let tail = if missing(last) {
            end.next_multiple_of(SUBCLUSTER) - end
        } else {
            0
        };
        let joined;
        let mut data = data;
        if head + tail > 0 {
            let length = |n: u64| usize::try_from(n).unwrap_or(0);
            let mut all = vec![0; length(head) + data.len() + length(tail)];
            let start = cluster * CLUSTER;
            let (before, rest) = all.split_at_mut(length(head));
            self.read(start + within - head, before, Wait::Yes)?;
            let (middle, after) = rest.split_at_mut(data.len());
            middle.copy_from_slice(data);
            // Behind the disk's end there are zeroes.
            let there = self.geometry.size.saturating_sub(start + end).min(tail);
            self.read(start + end, &mut after[..length(there)], Wait::Yes)?;
            joined = all;
            data = &joined;
        }
        let touched = bits(first..last + 1);
        self.put(cluster, entry, within - head, data, touched)
    }

    /// Stores subclusters (whole ones, but for those that are stored already) and changes the
    /// entry. Under the cluster's stripe.
    fn put(
        &self,
        cluster: u64,
        entry: Entry,
        within: u64,
        data: &[u8],
        touched: u32,
    ) -> io::Result<()> {
        let place = match entry.place {
            0 => self.take()?,
            place => place,
        };
        let changed = Entry {
            place,
            stored: entry.stored | touched,
            zero: entry.zero & !touched,
        };
        let done = self
            .file
            .write(place + within, data)
            .and_then(|()| self.commit(&[(cluster, changed)]));
        if done.is_err() && entry.place == 0 {
            lock(&self.room).free.push(place);
        }
        done
    }

    /// A cluster of the file that nothing refers to.
    fn take(&self) -> io::Result<u64> {
        let mut room = lock(&self.room);
        if let Some(place) = room.free.pop() {
            return Ok(place);
        }
        if room.bump >= self.geometry.most() {
            return Err(self.damaged("it has more clusters than its disk"));
        }
        let place = room.bump;
        room.bump += CLUSTER;
        self.end.fetch_max(room.bump, Ordering::AcqRel);
        Ok(place)
    }

    /// Makes changed entries count: journal first, then memory.
    fn commit(&self, changes: &[Change]) -> io::Result<()> {
        let mut ledger = lock(&self.journal);
        for (cluster, _) in changes {
            // A checkpoint must find space for the tables, or a full store would lose what
            // was acknowledged.
            let page = cluster / PER_PAGE;
            if !ledger.reserved.contains(&page) {
                let at = self.geometry.entry_at(page * PER_PAGE);
                self.file.reserve(at, super::cache::PAGE)?;
                ledger.reserved.insert(page);
            }
        }
        let all = || {
            let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
            pending.iter().map(|(c, e)| (*c, *e)).collect()
        };
        match ledger.journal.as_mut() {
            Some(journal) => journal.append(changes, all)?,
            None => return Err(io::Error::other("the journal is not open")),
        }
        let mut pending = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        pending.extend(changes.iter().copied());
        Ok(())
    }

    /// Makes a range read as zeroes and gives back the space of whole subclusters.
    pub(crate) fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.mark()?;
        let end = at + length;
        let from = at.next_multiple_of(SUBCLUSTER);
        // The last subcluster counts as whole if the disk ends in it.
        let to = if end == self.geometry.size {
            end.next_multiple_of(SUBCLUSTER)
        } else {
            end - end % SUBCLUSTER
        };
        if from >= to {
            return self.write_zeroes(at, length);
        }
        self.write_zeroes(at, from - at)?;
        if end > to {
            self.write_zeroes(to, end - to)?;
        }
        let mut whole = pieces(from, to - from).peekable();
        while whole.peek().is_some() {
            let batch: Vec<_> = whole.by_ref().take(BATCH as usize).collect();
            let done = self.zero_batch(&batch);
            self.changed.store(true, Ordering::Release);
            done?;
        }
        Ok(())
    }

    /// Zeroes less than a subcluster.
    fn write_zeroes(&self, at: u64, length: u64) -> io::Result<()> {
        const ZEROES: [u8; SUBCLUSTER as usize] = [0; SUBCLUSTER as usize];
        for (cluster, within, length) in pieces(at, length) {
            let mut done = 0;
            while done < length {
                let at = cluster * CLUSTER + within + done;
                let here = (SUBCLUSTER - at % SUBCLUSTER).min(length - done);
                let run = self.run(at, here)?;
                if run.kind == ExtentKind::Data || run.length < here {
                    self.write(at, &ZEROES[..usize::try_from(here).unwrap_or(0)])?;
                }
                done += here;
            }
        }
        Ok(())
    }

    /// Zeroes whole subclusters of consecutive clusters.
    fn zero_batch(&self, batch: &[(u64, u64, u64)]) -> io::Result<()> {
        // In ascending order, so that two batches can't hold one another up.
        let stripes: Vec<_> = match batch {
            [(one, ..)] => vec![self.stripe(*one)],
            _ => self.stripes.iter().map(lock).collect(),
        };
        let mut pending = Vec::new();
        let mut direct = BTreeMap::new();
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for (cluster, within, length) in batch {
            let entry = self.now(*cluster)?;
            let touched = bits(number(*within)..number(within + length));
            if entry.zero & touched == touched || self.empty(*cluster, entry, touched)? {
                continue;
            }
            let changed = Entry {
                place: entry.place,
                stored: entry.stored & !touched,
                zero: entry.zero | touched,
            };
            if entry.stored & touched != 0 {
                let at = entry.place + within;
                match holes.last_mut() {
                    Some(last) if last.0 + last.1 == at => last.1 += length,
                    _ => holes.push((at, *length)),
                }
            }
            let known = self.pending.read().unwrap_or_else(PoisonError::into_inner);
            if known.contains_key(cluster) {
                pending.push((*cluster, changed));
            } else {
                // Zeroes need no data on the disk before them: straight to the table.
                direct.insert(*cluster, changed);
            }
        }
        self.write_tables(&direct)?;
        if !pending.is_empty() {
            self.commit(&pending)?;
        }
        for (at, length) in holes {
            self.file.punch(at, length)?;
        }
        drop(stripes);
        Ok(())
    }

    /// True if subclusters come from below, and there is nothing there.
    fn empty(&self, cluster: u64, entry: Entry, touched: u32) -> io::Result<bool> {
        if (entry.stored | entry.zero) & touched != 0 {
            return Ok(false);
        }
        let Some(below) = self.lower() else {
            return Ok(true);
        };
        let from = cluster * CLUSTER + u64::from(touched.trailing_zeros()) * SUBCLUSTER;
        let to = cluster * CLUSTER + u64::from(32 - touched.leading_zeros()) * SUBCLUSTER;
        let to = to.min(self.geometry.size);
        let run = below.run(from, to - from)?;
        Ok(run.length == to - from && run.kind != ExtentKind::Data)
    }

    /// Takes over what a cluster still has from below, but zeroes. Its content stays the same.
    pub(crate) fn fill(&self, cluster: u64) -> io::Result<()> {
        let Some(below) = self.lower() else {
            return Ok(());
        };
        let start = cluster * CLUSTER;
        let length = CLUSTER.min(self.geometry.size - start);
        let entry = self.now(cluster)?;
        let all = bits(0..number(length.next_multiple_of(SUBCLUSTER)));
        if (entry.stored | entry.zero) & all == all || self.empty(cluster, entry, all)? {
            return Ok(());
        }
        self.mark()?;
        self.make_room()?;
        let _stripe = self.stripe(cluster);
        let mut content = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
        let part = usize::try_from(length).unwrap_or(0);
        below.read(start, &mut content[..part], Wait::Yes)?;
        let mut subcluster = 0;
        while subcluster < 32 {
            let entry = self.now(cluster)?;
            let (kind, run) = entry.run(subcluster);
            let piece = |from: u32, to: u32| {
                let byte = |n: u32| n as usize * SUBCLUSTER as usize;
                &content[byte(from)..byte(to)]
            };
            let wanted = |n: u32| kind == Kind::Below && piece(n, n + 1).iter().any(|b| *b != 0);
            if !wanted(subcluster) {
                subcluster += 1;
                continue;
            }
            let to = (subcluster..run).find(|n| !wanted(*n)).unwrap_or(run);
            let within = u64::from(subcluster) * SUBCLUSTER;
            let data = piece(subcluster, to);
            let done = self.put(cluster, entry, within, data, bits(subcluster..to));
            self.changed.store(true, Ordering::Release);
            done?;
            subcluster = to;
        }
        Ok(())
    }

    /// Clusters of the disk.
    pub(crate) fn clusters(&self) -> u64 {
        self.geometry.clusters
    }
}
