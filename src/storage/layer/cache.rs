//! Pages of tables in memory, shared by all layers of a store and bounded in bytes, so that
//! what a client costs does not depend on the size of its disk. It does no input or output.
//!
//! A look-up that it answers costs no system call; reading the entry's 16 bytes from the file would
//! cost one for each.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::format::ENTRY;

/// Bytes of a page: what a file system keeps together.
pub(crate) const PAGE: u64 = 4096;
/// Entries in a page.
pub(crate) const PER_PAGE: u64 = PAGE / ENTRY;
/// Parts, each with a lock of its own.
const SHARDS: usize = 64;

/// A page as words: place and bits of each entry. `None`: all entries are empty.
pub(crate) type Page = Option<Arc<[(u64, u64)]>>;

/// A layer and a page of its tables.
type Key = (u64, u64);

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    /// Bytes per shard.
    room: usize,
    next_layer: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    pages: HashMap<Key, Slot, BuildHasherDefault<Mix>>,
    /// Keys in the order in which the hand of the clock meets them.
    ring: Vec<Key>,
    hand: usize,
    used: usize,
}

#[derive(Debug)]
struct Slot {
    page: Page,
    seen: AtomicBool,
}

/// Bytes that a page takes, with what surrounds it.
fn cost(page: &Page) -> usize {
    let around = 96;
    page.as_ref().map_or(around, |p| p.len() * 16 + around)
}

/// A hash for keys that nobody outside chooses.
#[derive(Debug, Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

impl Cache {
    /// A cache of at most that many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            room: bytes / SHARDS,
            next_layer: AtomicU64::new(1),
        }
    }

    /// A number for a layer that was opened; never given twice.
    pub(crate) fn number(&self) -> u64 {
        self.next_layer.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        let mut mix = Mix::default();
        mix.write_u64(key.0);
        mix.write_u64(key.1);
        let shard = usize::try_from(mix.0 >> 48).unwrap_or(0) % SHARDS;
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry's words, if its page is here.
    pub(crate) fn entry(&self, layer: u64, page: u64, within: usize) -> Option<(u64, u64)> {
        let shard = self.shard((layer, page));
        let slot = shard.pages.get(&(layer, page))?;
        slot.seen.store(true, Ordering::Relaxed);
        Some(slot.page.as_ref().map_or((0, 0), |p| p[within]))
    }

    /// Puts a page in if `fresh` says, under the page's lock, that it is still right.
    pub(crate) fn insert(&self, layer: u64, page: u64, content: Page, fresh: impl Fn() -> bool) {
        let key = (layer, page);
        let mut shard = self.shard(key);
        if cost(&content) > self.room || !fresh() || shard.pages.contains_key(&key) {
            return;
        }
        let needed = cost(&content);
        while shard.used + needed > self.room && shard.evict() {}
        shard.used += needed;
        shard.ring.push(key);
        let slot = Slot {
            page: content,
            seen: AtomicBool::new(false),
        };
        shard.pages.insert(key, slot);
    }

    /// Forgets a page.
    pub(crate) fn forget(&self, layer: u64, page: u64) {
        let key = (layer, page);
        let mut shard = self.shard(key);
        if let Some(slot) = shard.pages.remove(&key) {
            shard.used -= cost(&slot.page);
            if let Some(at) = shard.ring.iter().position(|k| *k == key) {
                shard.ring.swap_remove(at);
            }
        }
    }

    /// Forgets all of a layer.
    pub(crate) fn forget_layer(&self, layer: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let shard = &mut *shard;
            shard.pages.retain(|key, slot| {
                let keep = key.0 != layer;
                if !keep {
                    shard.used -= cost(&slot.page);
                }
                keep
            });
            shard.ring.retain(|key| key.0 != layer);
        }
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        let used = |s: &Mutex<Shard>| s.lock().map_or(0, |s| s.used);
        self.shards.iter().map(used).sum()
    }
}

impl Shard {
    /// Drops one page that was not asked for since the hand last passed; `false` if none is left.
    fn evict(&mut self) -> bool {
        while !self.ring.is_empty() {
            self.hand %= self.ring.len();
            let key = self.ring[self.hand];
            match self.pages.get(&key) {
                Some(slot) if slot.seen.swap(false, Ordering::Relaxed) => self.hand += 1,
                _ => {
                    self.ring.swap_remove(self.hand);
                    if let Some(slot) = self.pages.remove(&key) {
                        self.used -= cost(&slot.page);
                    }
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bounds_and_keeps_what_is_asked_for() {
        let cache = Cache::new(1 << 20);
        let full = |n: u64| -> Page { Some(vec![(n, n); 256].into()) };
        for page in 0..2000 {
            cache.insert(1, page, full(page), || true);
            if let Some(entry) = cache.entry(1, 7, 3) {
                assert_eq!(entry, (7, 7));
            }
        }
        assert!(cache.used() <= 1 << 20, "{}", cache.used());
        assert_eq!(cache.entry(1, 7, 0), Some((7, 7)), "asked for all the time");
        cache.insert(2, 1, None, || true);
        cache.insert(2, 2, None, || false);
        assert_eq!(cache.entry(2, 1, 9), Some((0, 0)));
        assert_eq!(cache.entry(2, 2, 9), None);
        cache.forget(2, 1);
        assert_eq!(cache.entry(2, 1, 9), None);
        cache.forget_layer(1);
        assert_eq!(cache.used(), 0);
    }
}
