//! A clone's quota: how much of its disk a machine has written itself, and that it writes no
//! more than it may. The same for every backend, since it counts above them.
//!
//! What counts is a block of the store (4 KiB in files, a zvol's block) that the machine has
//! written and not discarded, each once: so a full disk can be rewritten for ever, and what
//! compression saves is not counted. A bit for each block, in pages that are made when they
//! are needed: 32 KiB for each GiB written in one place. A disk without a quota has none, and its
//! writes cost one look at a pointer.
//!
//! What was there before anybody counted (the server was started anew, or the quota was set while the
//! machine ran) is asked of the store in the background; until it has answered, nothing is refused.
//!
//! Races accepted: a write that fails in the store leaves its blocks counted; one that is
//! refused gives back bits that another write to the same blocks may have found set. Both are off by the blocks of
//! one write, until the clone is counted anew.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use super::service::{Disks, Shared};
use crate::storage::{DeviceInfo, Volume};

/// Words of a page: 32,768 blocks.
const WORDS: usize = 512;
const BITS: u64 = 64;
/// No limit.
const NONE: u64 = u64::MAX;

type Page = Box<[AtomicU64; WORDS]>;

/// What a clone's machine has written, and may write. Shared by all who have it.
#[derive(Debug)]
pub struct Quota {
    volume: Volume,
    client: Uuid,
    image: Uuid,
    /// Bytes of a block and of the disk.
    block: u64,
    size: u64,
    /// Bytes that may be written.
    limit: AtomicU64,
    /// Made when there is something to count.
    map: OnceLock<Map>,
    /// All that is its own is in the map.
    known: AtomicBool,
    /// The store is asked by one at a time.
    asking: Mutex<()>,
}

/// Blocks that were written.
#[derive(Debug)]
struct Map {
    pages: Box<[OnceLock<Page>]>,
    count: AtomicU64,
}

/// A write was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Bytes that the machine may write.
    pub limit: u64,
}

/// Bits of one word: which word, and the mask.
fn words(blocks: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        (at < blocks.end).then(|| {
            let end = (at / BITS + 1).saturating_mul(BITS).min(blocks.end);
            let length = end - at;
            let mask = (u64::MAX >> (BITS - length)) << (at % BITS);
            let word = at / BITS;
            at = end;
            (word, mask)
        })
    })
}

impl Map {
    fn new(blocks: u64) -> Self {
        let pages = blocks.div_ceil(BITS * WORDS as u64);
        Self {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            count: AtomicU64::new(0),
        }
    }

    /// The word, if it lies within the disk.
    fn word(&self, word: u64, make: bool) -> Option<&AtomicU64> {
        let page = usize::try_from(word / WORDS as u64).ok()?;
        let within = usize::try_from(word % WORDS as u64).ok()?;
        let page = self.pages.get(page)?;
        let page = match make {
            true => page.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS])),
            false => page.get()?,
        };
        page.get(within)
    }

    fn has(&self, blocks: Range<u64>) -> bool {
        words(blocks).all(|(word, mask)| {
            let word = self.word(word, false);
            word.is_some_and(|w| w.load(Ordering::Relaxed) & mask == mask)
        })
    }

    /// Sets bits; tells each word's that were not set.
    fn set(&self, blocks: Range<u64>, mut fresh: impl FnMut(u64, u64)) -> u64 {
        let mut sum = 0;
        for (word, mask) in words(blocks) {
            if let Some(bits) = self.word(word, true) {
                let new = mask & !bits.fetch_or(mask, Ordering::Relaxed);
                if new != 0 {
                    sum += u64::from(new.count_ones());
                    fresh(word, new);
                }
            }
        }
        sum
    }

    fn clear(&self, word: u64, mask: u64) {
        if let Some(bits) = self.word(word, false) {
            let gone = (mask & bits.fetch_and(!mask, Ordering::Relaxed)).count_ones();
            self.count.fetch_sub(u64::from(gone), Ordering::Relaxed);
        }
    }
}

impl Quota {
    pub(super) fn new(volume: Volume, client: Uuid, image: Uuid, device: DeviceInfo) -> Self {
        Self {
            volume,
            client,
            image,
            block: u64::from(device.preferred_block.max(512)),
            size: device.size,
            limit: AtomicU64::new(NONE),
            map: OnceLock::new(),
            known: AtomicBool::new(false),
            asking: Mutex::default(),
        }
    }

    /// Blocks that a range touches.
    fn touched(&self, offset: u64, length: u64) -> Range<u64> {
        let end = offset.saturating_add(length).min(self.size);
        if length == 0 || offset >= end {
            return 0..0;
        }
        offset / self.block..end.div_ceil(self.block)
    }

    /// Blocks that a range covers; the last one of the disk may be shorter.
    fn covered(&self, offset: u64, length: u64) -> Range<u64> {
        let end = offset.saturating_add(length).min(self.size);
        let last = match end == self.size {
            true => end.div_ceil(self.block),
            false => end / self.block,
        };
        offset.div_ceil(self.block)..last
    }

    /// Before a write.
    ///
    /// # Errors
    /// [`Full`] if it needs more than there may be; nothing is counted then.
    pub(super) fn charge(&self, offset: u64, length: u64) -> Result<(), Full> {
        let Some(map) = self.map.get() else {
            return Ok(());
        };
        self.charge_to(map, self.touched(offset, length))
    }

    fn charge_to(&self, map: &Map, blocks: Range<u64>) -> Result<(), Full> {
        if map.has(blocks.clone()) {
            return Ok(());
        }
        let mut set = Vec::new();
        let fresh = map.set(blocks, |word, mask| set.push((word, mask)));
        let count = map.count.fetch_add(fresh, Ordering::Relaxed) + fresh;
        let limit = self.limit.load(Ordering::Relaxed);
        let fits = count.saturating_mul(self.block) <= limit;
        if fits || fresh == 0 || !self.known.load(Ordering::Acquire) {
            return Ok(());
        }
        for (word, mask) in set {
            map.clear(word, mask);
        }
        Err(Full { limit })
    }

    /// Before a range is made zeroes without keeping its space: what is not a whole block is
    /// written.
    pub(super) fn charge_edges(&self, offset: u64, length: u64) -> Result<(), Full> {
        let Some(map) = self.map.get() else {
            return Ok(());
        };
        let (touched, covered) = (self.touched(offset, length), self.covered(offset, length));
        if covered.is_empty() {
            return self.charge_to(map, touched);
        }
        self.charge_to(map, touched.start..covered.start)?;
        self.charge_to(map, covered.end..touched.end)
    }

    /// A range was made zeroes: whole blocks are not the machine's any more.
    pub(super) fn release(&self, offset: u64, length: u64) {
        if let Some(map) = self.map.get() {
            for (word, mask) in words(self.covered(offset, length)) {
                map.clear(word, mask);
            }
        }
    }

    /// What its machine may write; `None`: no limit.
    pub(super) fn limit(&self) -> Option<u64> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit != NONE).then_some(limit)
    }

    /// What it has written, if somebody counts.
    pub(super) fn written(&self) -> Option<u64> {
        let map = self.map.get()?;
        let count = map.count.load(Ordering::Relaxed);
        let known = self.known.load(Ordering::Acquire);
        known.then(|| count.saturating_mul(self.block).min(self.size))
    }

    /// Begins to count; what was written before is asked for with `before`.
    fn count(
        &self,
        before: impl FnOnce() -> Result<Vec<Range<u64>>, crate::storage::VolumeError>,
    ) -> Result<(), crate::storage::VolumeError> {
        if self.known.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.known.load(Ordering::Acquire) {
            return Ok(());
        }
        // Counted from here on, so that no write falls between.
        let map = self
            .map
            .get_or_init(|| Map::new(self.size.div_ceil(self.block)));
        for range in before()? {
            let fresh = map.set(
                self.touched(range.start, range.end - range.start),
                |_, _| {},
            );
            map.count.fetch_add(fresh, Ordering::Relaxed);
        }
        self.known.store(true, Ordering::Release);
        Ok(())
    }
}

impl Shared {
    fn quotas(&self) -> MutexGuard<'_, std::collections::HashMap<Volume, Arc<Quota>>> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A clone's quota, if it was opened in this run.
    pub(super) fn quota(&self, volume: Volume) -> Option<Arc<Quota>> {
        self.quotas().get(&volume).cloned()
    }

    pub(super) fn forget_quota(&self, volume: Volume) {
        self.quotas().remove(&volume);
    }

    /// The quota of a clone that was just opened; `fresh`: nobody has written to it yet.
    pub(super) fn take_quota(self: &Arc<Self>, quota: Quota, fresh: bool) -> Arc<Quota> {
        let quota = {
            let mut quotas = self.quotas();
            if fresh {
                quotas.remove(&quota.volume);
            }
            let kept = quotas.entry(quota.volume);
            kept.or_insert_with(|| Arc::new(quota)).clone()
        };
        if self.apply(&quota) && quota.written().is_none() {
            if fresh {
                let _ = quota.count(|| Ok(Vec::new()));
            } else {
                self.ask_soon(quota.clone());
            }
        }
        quota
    }

    /// Takes the limit that is set now; true if there is one.
    fn apply(&self, quota: &Quota) -> bool {
        let limit = self.view.get().clone_quota(quota.client, quota.image);
        quota.limit.store(limit.unwrap_or(NONE), Ordering::Relaxed);
        limit.is_some()
    }

    /// Has the store say what a clone has of its own, on a thread of its own.
    fn ask_soon(self: &Arc<Self>, quota: Arc<Quota>) {
        let shared = self.clone();
        let work = move || {
            let volume = quota.volume;
            if let Err(error) = quota.count(|| shared.store.own(volume)) {
                tracing::warn!(%volume, %error, "a clone's quota does not hold: what it has of its own can't be listed");
            }
        };
        let named = std::thread::Builder::new().name("quota".to_owned());
        if let Err(error) = named.spawn(work) {
            tracing::warn!(%error, "a clone's quota does not hold");
        }
    }
}

impl Disks {
    /// Holds open clones to their quotas whenever these are changed, until cancelled.
    pub async fn follow_quotas(
        &self,
        mut changed: tokio::sync::watch::Receiver<()>,
        cancel: tokio_util::sync::CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                news = changed.changed() => if news.is_err() { return },
            }
            let all: Vec<Arc<Quota>> = self.shared.quotas().values().cloned().collect();
            for quota in all {
                if self.shared.apply(&quota) && quota.written().is_none() {
                    self.shared.ask_soon(quota);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(size: u64, limit: u64) -> Quota {
        let device = DeviceInfo {
            size,
            preferred_block: 4096,
            read_only: false,
        };
        let quota = Quota::new(
            Volume::Session(Uuid::nil()),
            Uuid::nil(),
            Uuid::nil(),
            device,
        );
        quota.limit.store(limit, Ordering::Relaxed);
        quota
    }

    #[test]
    fn words_cover_a_range_once() {
        assert_eq!(words(0..0).count(), 0);
        assert_eq!(words(3..5).collect::<Vec<_>>(), [(0, 0b11000)]);
        assert_eq!(
            words(63..129).collect::<Vec<_>>(),
            [(0, 1 << 63), (1, u64::MAX), (2, 1)]
        );
    }

    #[test]
    fn new_blocks_count_once_and_a_full_clone_can_be_rewritten() {
        let quota = quota(1 << 30, 3 * 4096);
        // Nobody counts yet.
        quota.charge(0, 1 << 20).unwrap();
        assert_eq!(quota.written(), None);
        quota.count(|| Ok(vec![4096..4097, 5000..5001])).unwrap();
        assert_eq!(quota.written(), Some(4096));
        quota.charge(4096, 4096).unwrap();
        quota.charge(8191, 2).unwrap();
        assert_eq!(quota.written(), Some(8192));
        assert_eq!(quota.charge(1 << 29, 8192), Err(Full { limit: 12288 }));
        assert_eq!(quota.written(), Some(8192), "a refused write costs nothing");
        quota.charge(1 << 29, 1).unwrap();
        assert_eq!(
            quota.charge((1 << 29) + 4096, 1),
            Err(Full { limit: 12288 })
        );
        for _ in 0..3 {
            quota.charge(4096, 8192).unwrap();
            quota.charge(1 << 29, 4096).unwrap();
        }
        // A block is given back; parts of others stay, and have to be its own.
        quota.charge_edges(4000, 8288).unwrap_err();
        quota.charge_edges(4096, 8192).unwrap();
        quota.release(4097, 4096);
        assert_eq!(quota.written(), Some(12288));
        quota.release(4096, 4096);
        quota.charge((1 << 29) + 4096, 1).unwrap();
        // More room.
        quota.limit.store(1 << 20, Ordering::Relaxed);
        quota.charge(0, 8192).unwrap();
        assert_eq!(quota.written(), Some(5 * 4096));
    }

    #[test]
    fn the_end_of_a_disk_counts() {
        let quota = quota(4096 + 512, 4096);
        quota.count(|| Ok(vec![])).unwrap();
        quota.charge(4096, 512).unwrap();
        assert_eq!(quota.charge(4095, 513), Err(Full { limit: 4096 }));
        quota.charge(u64::MAX, 512).unwrap();
        quota.charge(1 << 40, u64::MAX).unwrap();
        quota.release(4096, 512);
        quota.charge(0, 1).unwrap();
    }

    #[test]
    fn many_writers_count_as_one() {
        let quota = quota(1 << 30, 1 << 20);
        quota.count(|| Ok(vec![])).unwrap();
        let refused = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for block in 0..300_u64 {
                        if quota.charge(block * 4096, 4096).is_err() {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let written = quota.written().unwrap();
        assert!(
            written <= 1 << 20 && refused.into_inner() >= 44,
            "{written}"
        );
    }
}
