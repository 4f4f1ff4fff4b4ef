//! What differs between two snapshots: `zfs send -c -i` lists the blocks that were written
//! between them, and we read its records and pass over its data. Nothing is changed here.
//!
//! There is no `zfs diff` of a zvol, and comparing the two devices would read both disks whole.
//! A stream costs what was written in between: packed as it lies in the pool, and once, since
//! whoever reads those blocks next finds them in the ARC.
//!
//! Holes: the module does not trust the time of birth that it has of them (`ignore_hole_birth`), and
//! each stream between two snapshots frees all that is empty in the later one. So `changes` tells that
//! as well; `own` leaves it out, or an empty disk would count as written.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use super::gate::Gate;
use super::listing::{Listing, Snapshot, program};
use super::{ZfsStore, damaged, io_error, stream};
use crate::storage::ranges::tidy;
use crate::storage::{SnapshotId, Volume, VolumeError};

impl Listing {
    /// A snapshot, what lies before it, and what that stands upon, the latest first: whether ZFS
    /// keeps it in one dataset or in several.
    pub(super) fn lineage(&self, id: &SnapshotId) -> Result<Vec<&Snapshot>, VolumeError> {
        let mut line: Vec<&Snapshot> = Vec::new();
        let mut next = Some(self.find(id)?);
        while let Some(snapshot) = next {
            let inside = self
                .snapshots
                .iter()
                .filter(|s| s.lies_in == snapshot.lies_in);
            let mut before: Vec<&Snapshot> = inside.take_while(|s| s.id != snapshot.id).collect();
            before.push(snapshot);
            line.extend(before.into_iter().rev());
            let stands_on = self.get(snapshot.lies_in)?.stands_on.as_ref();
            next = stands_on
                .and_then(|(_, id)| self.find(id).ok())
                // A pool's tree has no circles; a listing that was made while one was turned
                // round might.
                .filter(|s| line.iter().all(|l| l.id != s.id));
        }
        Ok(line)
    }
}

impl ZfsStore {
    /// See [`crate::storage::Storage::changes`].
    pub(super) fn find_changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError> {
        let size = self.shape(to.volume)?.size;
        let mut found = Vec::new();
        // Nobody turns the tree round meanwhile.
        let _tree = super::lock(&self.inner.tree);
        let listing = self.listing()?;
        let new = listing.lineage(to)?;
        let name = |s: &Snapshot| self.inner.parent.snapshot(s.lies_in, &s.id);
        let Some(from) = from else {
            self.send(None, &name(listing.find(to)?), false, &mut found)?;
            return Ok(tidy(found, size));
        };
        let old = listing.lineage(from)?;
        let of_old = |s: &Snapshot| old.iter().position(|o| o.id == s.id);
        let shared = new.iter().enumerate();
        match { shared }.find_map(|(n, s)| Some((n, of_old(s)?))) {
            Some((above_new, above_old)) => {
                self.send_along(&new[..=above_new], true, &mut found)?;
                self.send_along(&old[..=above_old], true, &mut found)?;
            }
            None => {
                self.send(None, &name(listing.find(to)?), false, &mut found)?;
                self.send(None, &name(listing.find(from)?), false, &mut found)?;
            }
        }
        Ok(tidy(found, size))
    }

    /// See [`crate::storage::Storage::own`]: by a snapshot that is ours for a while.
    pub(super) fn find_own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError> {
        let size = self.shape(volume)?.size;
        if let Some(disk) = self.opened(volume) {
            disk.flush()
                .map_err(|e| io_error(&format!("flushing {volume}"), e))?;
        }
        let _tree = super::lock(&self.inner.tree);
        let now = self.inner.parent.passing(volume, Uuid::new_v4());
        let made = self.inner.library.snapshot(&now);
        made.map_err(|e| self.failed(volume, "snapshot,mount", &e))?;
        let mut found = Vec::new();
        let listed = self.list_own(volume, &now, &mut found);
        let removed = self
            .inner
            .library
            .destroy_snapshots(std::slice::from_ref(&now));
        listed?;
        removed.map_err(|e| self.failed(volume, "destroy,mount", &e))?;
        Ok(tidy(found, size))
    }

    fn list_own(
        &self,
        volume: Volume,
        now: &str,
        found: &mut Vec<Range<u64>>,
    ) -> Result<(), VolumeError> {
        let listing = self.listing()?;
        let dataset = listing.get(volume)?;
        let Some(origin) = &dataset.origin else {
            return self.send(None, now, false, found);
        };
        let name = |s: &Snapshot| self.inner.parent.snapshot(s.lies_in, &s.id);
        // The nearest that is known: the last snapshot in its dataset, or what that stands on.
        let inside = listing.snapshots.iter().rfind(|s| s.lies_in == volume);
        let stands_on = dataset.stands_on.as_ref();
        let nearest = inside.or_else(|| stands_on.and_then(|(_, id)| listing.find(id).ok()));
        let Some(nearest) = nearest else {
            return self.send(None, now, false, found);
        };
        self.send(Some(&name(nearest)), now, false, found)?;
        let line = listing.lineage(&nearest.id)?;
        match line.iter().position(|s| s.id == *origin) {
            Some(at) => self.send_along(&line[..=at], false, found),
            // It carries what it came from, which is beside its line then.
            None => {
                self.send(None, &name(nearest), false, found)?;
                self.send(None, &name(listing.find(origin)?), false, found)
            }
        }
    }

    /// The changes along a line, the latest first: one stream for each dataset that it goes
    /// through. With `holes`, also where there is nothing in what comes later.
    fn send_along(
        &self,
        line: &[&Snapshot],
        holes: bool,
        found: &mut Vec<Range<u64>>,
    ) -> Result<(), VolumeError> {
        let mut at = 0;
        while at + 1 < line.len() {
            let here = line[at].lies_in;
            // The last of this dataset, or the one that it stands upon.
            let inside = line[at..].iter().take_while(|s| s.lies_in == here).count();
            let to = (at + inside).min(line.len() - 1);
            let name = |s: &Snapshot| self.inner.parent.snapshot(s.lies_in, &s.id);
            self.send(Some(&name(line[to])), &name(line[at]), holes, found)?;
            at = to;
        }
        Ok(())
    }

    fn send(
        &self,
        from: Option<&str>,
        to: &str,
        holes: bool,
        found: &mut Vec<Range<u64>>,
    ) -> Result<(), VolumeError> {
        let moved = Arc::new(AtomicU64::new(0));
        let (since, until, counter) = (from.map(str::to_owned), to.to_owned(), moved.clone());
        let listed = Gate::of(to).stream("zfs send", &moved, move || {
            listed(since.as_deref(), &until, holes, counter)
        });
        found.append(&mut listed.map_err(|e| io_error("zfs send", e))??);
        Ok(())
    }
}

/// Counts what is read.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// What `zfs send` would write or free between two snapshots.
fn listed(
    from: Option<&str>,
    to: &str,
    holes: bool,
    moved: Arc<AtomicU64>,
) -> Result<Vec<Range<u64>>, VolumeError> {
    let mut send = program(&["send", "-c", "-e"]);
    if let Some(from) = from {
        send.args(["-i", from]);
    }
    let sent = send
        .arg(to)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let failed = |e| io_error("zfs send", e);
    let mut sent = sent.map_err(failed)?;
    let mut found = Vec::new();
    let read = match sent.stdout.take() {
        Some(stdout) => {
            let stdout = Counted(stdout, moved);
            let mut stdout = BufReader::with_capacity(256 * 1024, stdout);
            stream::ranges(&mut stdout, holes, &mut found)
        }
        None => Ok(()),
    };
    if read.is_err() {
        // It has ended, or is of no more use.
        let _ = sent.kill();
    }
    let mut said = String::new();
    if let Some(stderr) = sent.stderr.as_mut() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let ended = sent.wait().map_err(failed)?;
    match (read, said.lines().next()) {
        (Ok(()), _) if ended.success() => Ok(found),
        (_, Some(why)) if why.contains("permission denied") => Err(damaged(
            "zfs send",
            format!("{why}; the server's user needs the right to it: `zfs allow` of `send`"),
        )),
        (_, Some(why)) => Err(damaged("zfs send", why)),
        (Err(e), None) => Err(failed(e)),
        (Ok(()), None) => Err(damaged("zfs send", ended)),
    }
}
