//! Claims: which addresses of the ranges this server gives away by itself.
//!
//! Where several servers share one database, each claims blocks of the free addresses. A new
//! lease in a block is made by its owner alone, so the owner may make it while the database is
//! away; anybody renews anything while it is there. A claim has an end: each round moves that
//! on, and the owner stops [`margin`] before it by its own monotonic clock. A block that was
//! claimed just now is used when every lease that others had under way in it has been read.
//!
//! What is claimed is kept in a file, so that a server that starts without the database has its
//! blocks. How much is claimed is [`super::pool::arrange`]'s business; who may take a block over,
//! and when, is the catalog's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::commit::Operation;
use super::flow::{Core, lock};
use super::pool::{Claims, Layout, Stretches, arrange};
use crate::catalog::{Arranged, Arranging, Catalog, CatalogError};
use crate::clock::Clock;
use crate::journal::replace_file;
use crate::model::{Block, NetworkRange, Pool, RangeMode, Timestamp};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(10);
/// The same, while something was claimed that can't be used yet.
const SOON: Duration = Duration::from_secs(3);
/// How long a look at all leases may take.
const READING: Duration = Duration::from_secs(30);
/// A range that is not on one of our interfaces is ours to serve while somebody has asked for it.
const ASKED_FOR: TimeDelta = TimeDelta::hours(1);

/// How long before its end a claim is no longer used.
fn margin(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds / 10).clamp(1, 60))
}

/// For how long this server's blocks are its own; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    clock: Clock,
    /// `None`: no other server shares the catalog, so there is no end.
    end: Option<Arc<Mutex<Option<Instant>>>>,
}

impl Claim {
    /// A claim without an end, or one that is not yet made.
    pub(super) fn new(clock: Clock, sole: bool) -> Self {
        Self {
            clock,
            end: (!sole).then(Arc::default),
        }
    }

    /// May leases be made in the blocks without asking anybody?
    pub(super) fn holds(&self) -> bool {
        self.end
            .as_ref()
            .is_none_or(|end| lock(end).is_some_and(|end| self.clock.instant() < end))
    }

    /// Do other servers share the catalog?
    pub(super) const fn is_shared(&self) -> bool {
        self.end.is_some()
    }

    fn set(&self, until: Option<Instant>) {
        if let Some(end) = &self.end {
            *lock(end) = until;
        }
    }
}

/// The blocks as they are kept in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    server_id: Uuid,
    until: Timestamp,
    blocks: Vec<(Uuid, Pool)>,
}

/// Keeps the claims; one for the life of the server.
pub(super) struct Claimer {
    core: Arc<Core>,
    catalog: Catalog,
    server_id: Uuid,
    seconds: u32,
    file: PathBuf,
    misled: Arc<Notify>,
    /// Blocks in which every lease of others has been read.
    usable: HashMap<Uuid, Stretches>,
    /// What is claimed, as the last round saw it.
    blocks: Vec<Block>,
    adopted: bool,
    /// More was asked for in the last round.
    changed: bool,
}

impl Claimer {
    pub(super) fn new(
        core: Arc<Core>,
        catalog: Catalog,
        (server_id, seconds): (Uuid, u32),
        dir: &Path,
        misled: Arc<Notify>,
    ) -> Self {
        Self {
            core,
            catalog,
            server_id,
            seconds,
            file: dir.join("claims.json"),
            misled,
            usable: HashMap::new(),
            blocks: Vec::new(),
            adopted: false,
            changed: false,
        }
    }

    /// Takes the blocks up that this server had when it last ran, where their claim still lasts:
    /// for a start without the database.
    pub(super) fn remember(&mut self) {
        let kept = std::fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok())
            .filter(|kept| kept.server_id == self.server_id);
        let Some(kept) = kept else {
            return;
        };
        let left = (kept.until - self.core.clock.now()).to_std().ok();
        let left = left.filter(|left| *left <= Duration::from_secs(u64::from(self.seconds)));
        let Some(left) = left else {
            tracing::info!("the claims of this server's last run have ended");
            return;
        };
        let server_id = self.server_id;
        self.blocks = kept
            .blocks
            .iter()
            .map(|(range_id, addresses)| Block {
                range_id: *range_id,
                addresses: *addresses,
                server_id,
                ripe: true,
            })
            .collect();
        self.usable = by_range(&self.blocks);
        self.core.book().claim(self.claims());
        self.core.claim.set(Some(self.core.clock.instant() + left));
        tracing::info!(
            blocks = self.blocks.len(),
            seconds = left.as_secs(),
            "the database is away; addresses are given away from this server's own blocks"
        );
    }

    /// Round after round until cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> Self {
        let mut standing = self.catalog.watch_standing();
        loop {
            if !self.catalog.is_away() {
                if let Err(error) = self.round().await {
                    tracing::debug!(%error, "the claims could not be kept");
                }
            } else if !self.blocks.is_empty() && !self.core.claim.holds() {
                self.lose();
            }
            let pause = if self.changed || self.blocks.iter().any(|b| self.is_new(b)) {
                SOON
            } else {
                ROUND
            };
            tokio::select! {
                () = cancel.cancelled() => return self,
                () = tokio::time::sleep(pause) => {}
                () = self.misled.notified() => {}
                Ok(()) = standing.changed() => {}
            }
        }
    }

    /// The server stops, and the database has all that it gave away.
    pub(super) async fn rest(mut self) {
        self.lose_quietly();
        if let Err(error) = std::fs::remove_file(&self.file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the file of claims could not be removed");
            return;
        }
        if let Err(error) = self.catalog.rest_blocks(self.server_id).await {
            tracing::debug!(%error, "the claims were not given back; they end by themselves");
        }
    }

    fn lose(&mut self) {
        tracing::warn!(
            blocks = self.blocks.len(),
            "the database was away for so long that this server's blocks may be others' by now: without it no new address is given away"
        );
        self.lose_quietly();
    }

    fn lose_quietly(&mut self) {
        self.core.claim.set(None);
        self.blocks.clear();
        self.usable.clear();
        self.core.book().claim(HashMap::new());
    }

    fn is_new(&self, block: &Block) -> bool {
        block.server_id == self.server_id
            && !(self.usable.get(&block.range_id))
                .is_some_and(|usable| Stretches::of([block.addresses]).without(usable).is_empty())
    }

    async fn round(&mut self) -> Result<(), CatalogError> {
        let asked = self.core.clock.instant();
        let wall = self.core.clock.now();
        let blocks = self
            .catalog
            .keep_blocks(self.server_id, self.seconds)
            .await?;
        let ripe = |block: &&Block| block.server_id == self.server_id && block.ripe;
        let own: Vec<Block> = blocks.iter().filter(ripe).copied().collect();
        self.blocks = blocks;
        if own.iter().any(|block| self.is_new(block)) && !self.read_leases().await {
            // What is not read can't be used; what was usable and is no longer ours neither.
            let still = by_range(&own);
            self.usable.retain(|range, usable| {
                *usable = usable.and(still.get(range).unwrap_or(&Stretches::default()));
                !usable.is_empty()
            });
        } else {
            self.usable = by_range(&own);
        }
        let lasts = Duration::from_secs(u64::from(self.seconds)) - margin(self.seconds);
        self.core.book().claim(self.claims());
        self.core.claim.set(Some(asked + lasts));
        let until = wall + TimeDelta::from_std(lasts).unwrap_or_default();
        self.keep(until).await;
        if !self.adopted {
            let outside = self.catalog.leases_outside_blocks(self.server_id).await?;
            let mut book = self.core.book();
            outside.into_iter().for_each(|address| book.wrote(address));
            self.adopted = true;
        }
        self.share_out(until).await
    }

    /// Every lease, as the database has it now.
    async fn read_leases(&self) -> bool {
        let (done, heard) = oneshot::channel();
        let operation = Operation::RereadAll(Some(done));
        if self.core.operations.send(operation).await.is_err() {
            return false;
        }
        matches!(tokio::time::timeout(READING, heard).await, Ok(Ok(())))
    }

    /// How the book is to see the blocks.
    fn claims(&self) -> HashMap<Uuid, Claims> {
        let mut claims: HashMap<Uuid, Claims> = HashMap::new();
        for (range, usable) in &self.usable {
            claims.entry(*range).or_default().own = usable.clone();
        }
        for (range, all) in by_range(&self.blocks) {
            let claims = claims.entry(range).or_default();
            claims.others = all.without(&claims.own);
        }
        let metrics = &self.core.metrics;
        metrics.claimed(claims.values().map(|c| c.own.size()).sum());
        claims
    }

    async fn keep(&self, until: Timestamp) {
        let blocks = self
            .usable
            .iter()
            .flat_map(|(range, usable)| usable.pools().map(move |addresses| (*range, addresses)));
        let kept = Kept {
            server_id: self.server_id,
            until,
            blocks: blocks.collect(),
        };
        let file = self.file.clone();
        // It waits for the disk, and packets do not wait for that.
        let written = tokio::task::spawn_blocking(move || {
            replace_file(
                &file,
                &serde_json::to_vec(&kept).map_err(std::io::Error::from)?,
            )
        });
        if let Err(error) = written.await.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, file = %self.file.display(), "the claims could not be written down");
        }
    }

    /// Claims more where too few addresses are left, and gives back where there are too many.
    async fn share_out(&mut self, until: Timestamp) -> Result<(), CatalogError> {
        let snapshot = self.core.cache.get();
        self.changed = false;
        for range in snapshot.ranges() {
            let wanted = self.is_served(range).then(|| self.rearrange(range));
            let Some(Some(wanted)) = wanted else {
                continue;
            };
            self.keep(until).await;
            let arranging = |now: Arranging<'_>| arranged(&wanted, now);
            self.catalog
                .arrange_blocks(self.server_id, range.id, &arranging)
                .await?;
            self.changed = true;
        }
        Ok(())
    }

    fn is_served(&self, range: &NetworkRange) -> bool {
        let on_wire = || {
            let ours = self.core.ours.load();
            ours.iter().any(|address| range.network.contains(*address))
        };
        let since = self.core.clock.now() - ASKED_FOR;
        range.mode == RangeMode::Full
            && (on_wire()
                || self.core.book().is_asked_for(range.id, since)
                || self.usable.contains_key(&range.id))
    }

    /// What to have of a range, if that is not what is had. What is given back is out of use
    /// when this returns.
    fn rearrange(&mut self, range: &NetworkRange) -> Option<Stretches> {
        let inside = self
            .blocks
            .iter()
            .filter(|block| block.range_id == range.id);
        let (own, others): (Vec<&Block>, Vec<&Block>) =
            inside.partition(|block| block.server_id == self.server_id);
        let all = |blocks: Vec<&Block>| Stretches::of(blocks.iter().map(|block| block.addresses));
        let (own, others) = (all(own), all(others));
        let site = self.core.cache.site();
        let servers = site.servers.iter().filter(|server| server.alive).count();
        let mut book = self.core.book();
        let layout = Layout {
            own: own.clone(),
            others,
            servers: servers as u64,
            ..book.layout(range, self.core.clock.now())
        };
        let wanted = arrange(&layout);
        if wanted == own {
            return None;
        }
        if !own.without(&wanted).is_empty() {
            if let Some(usable) = self.usable.get_mut(&range.id) {
                *usable = usable.and(&wanted);
            }
            book.claim(self.claims());
        }
        Some(wanted)
    }
}

/// This server's blocks, by range.
fn by_range(blocks: &[Block]) -> HashMap<Uuid, Stretches> {
    let mut pools: HashMap<Uuid, Vec<Pool>> = HashMap::new();
    for block in blocks {
        pools
            .entry(block.range_id)
            .or_default()
            .push(block.addresses);
    }
    pools
        .into_iter()
        .map(|(range, pools)| (range, Stretches::of(pools)))
        .collect()
}

/// The blocks that come to that: what is had stays as old as it is, and what others have claimed
/// meanwhile is theirs.
fn arranged(wanted: &Stretches, now: Arranging<'_>) -> Vec<Arranged> {
    let wanted = wanted.without(&Stretches::of(now.others.iter().copied()));
    let mut blocks = Vec::new();
    let mut had = Stretches::default();
    for ripe in [true, false] {
        let old = || now.own.iter().filter(move |block| block.ripe == ripe);
        // The youngest of those that grow together says how old they are.
        let since = old().filter_map(|block| block.since).max();
        let kept = Stretches::of(old().map(|block| block.addresses)).and(&wanted);
        blocks.extend(kept.pools().map(|addresses| Arranged {
            addresses,
            since,
            ripe,
        }));
        had = had.or(&kept);
    }
    blocks.extend(wanted.without(&had).pools().map(|addresses| Arranged {
        addresses,
        since: None,
        ripe: false,
    }));
    blocks
}
