//! PostgreSQL and nothing else. The map: [`Catalog`] and its words are declared here, what it
//! can do is in one file per noun (`images`, `versions`, `clients`, `clones`, `quotas`, `ranges`, `leases`,
//! `blocks`, `boots`, `servers`, `replicas`),
//! beside `connect` (pool, retries, several hosts), `standing` (whether it is there), `migrate`, `load` (all that booting needs),
//! `listen` (changes by anybody), `error` (from PostgreSQL's refusals to sentences), and
//! [`embedded`] (a private cluster).
//!
//! The only folder that names `sqlx`; its types never appear in public signatures. It holds no
//! policy: what PostgreSQL can refuse, PostgreSQL refuses (see `migrations/`).

use std::net::Ipv4Addr;
use std::time::Duration;

use uuid::Uuid;

use crate::model::{
    Attempt, BootEvent, BootSession, Client, CloneQuota, Image, MacAddr, Maintenance, NetworkRange,
    Replica, Timestamp, Version,
};

mod blocks;
mod boot_batch;
mod boots;
mod clients;
mod clones;
mod connect;
pub mod embedded;
mod error;
mod image_checks;
mod images;
mod jumps;
mod leases;
mod listen;
mod load;
mod maintenance;
mod marks;
mod migrate;
mod quotas;
mod ranges;
mod replicas;
mod rows;
mod servers;
mod standing;
mod versions;

pub use blocks::{Arranged, Arranging};
pub use boots::TrackedAttempt;
pub use error::CatalogError;
pub use standing::Standing;

/// How to reach PostgreSQL.
#[derive(Debug, Clone)]
pub struct CatalogOptions {
    /// `postgres://..` (embedded clusters have one too, through their unix socket). Several
    /// hosts are given with commas, `postgres://u@h1:5432,h2/dls`: the one that takes writes
    /// is used, and is looked for again when it fails.
    pub url: String,
    /// Connections kept open.
    pub min_connections: u32,
    /// Connections at most.
    pub max_connections: u32,
    /// How long to wait for a connection.
    pub pool_timeout: Duration,
    /// This server: set as `dls.server_id` in each connection, so that triggers can tell
    /// our own writes from others'.
    pub server_id: Uuid,
}

/// The catalog: a pool of connections and the operations of the seed and ours.
/// Cheap to clone; clones share the pool.
#[derive(Debug, Clone)]
pub struct Catalog {
    shared: std::sync::Arc<connect::Shared>,
}

/// One event or row change of a boot, as the tracker queues them. Order is kept.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum BootWrite {
    /// Insert the attempt, or update all that may change in it.
    Attempt(Attempt),
    /// Insert an event.
    Event(BootEvent),
    /// Insert or update the session row (client and image known). A row whose client or
    /// image has been deleted meanwhile is set aside, not an error.
    Session(BootSession),
    /// `clients.last_boot_at` and `boot_count + 1`, once per session.
    ClientBooted {
        /// Who.
        client_id: Uuid,
        /// When its boot began.
        at: Timestamp,
    },
    /// An `auto` image has reported itself: it is `expected` from now on.
    ImageReports {
        /// Which.
        image_id: Uuid,
    },
}

/// Something changed in the catalog, whoever did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Clients, MACs, images, files, ranges or pools: read them again.
    Configuration,
    /// These clients, and nothing else: read them again, where they still are.
    Clients(Vec<Uuid>),
    /// These leases (by address) were written or removed by somebody else: read them again.
    Leases(Vec<Ipv4Addr>),
    /// The connection was new or broken: anything may have changed. Always sent first.
    Everything,
}

/// All that booting needs, read in one snapshot (REPEATABLE READ).
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Loaded {
    /// All clients with their MACs.
    pub clients: Vec<Client>,
    /// All images with their files.
    pub images: Vec<Image>,
    /// The versions of all of them.
    pub versions: Vec<Version>,
    /// Who mends which image.
    pub maintenance: Vec<Maintenance>,
    /// What clones may take.
    pub quotas: Vec<CloneQuota>,
    /// Which server has which version.
    pub replicas: Vec<Replica>,
    /// All ranges with pools.
    pub ranges: Vec<NetworkRange>,
    /// 32 random bytes, made once per site by the first migration run.
    pub site_key: Vec<u8>,
}

/// Bounds of a list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Page {
    /// At most this many; `None`: all.
    pub limit: Option<i64>,
    /// Skip this many.
    pub offset: Option<i64>,
}

/// Which attempts to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptFilter {
    /// Only open ones.
    pub open_only: bool,
    /// Only of this MAC.
    pub mac: Option<MacAddr>,
    /// Only of this client.
    pub client_id: Option<Uuid>,
}
