//! PostgreSQL and nothing else: the pool, the migrations, one file per noun.
//!
//! The only folder that names `sqlx`; its types never appear in public signatures.
//! [`Catalog`] is concrete and is tested on a real PostgreSQL.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::Stream;
use uuid::Uuid;

use crate::model::{
    Attempt, AttemptOutcome, BootEvent, BootSession, Client, Image, Lease, LeaseState, MacAddr,
    NetworkRange, SessionStatus, Timestamp,
};

pub mod embedded;

/// How to reach PostgreSQL.
#[derive(Debug, Clone)]
pub struct CatalogOptions {
    /// `postgres://..` (embedded clusters have one too, through their unix socket).
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
#[derive(Debug, Clone)]
pub struct Catalog {}

/// What the catalog refuses or can't do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// No connection in time, or it broke: worth trying again.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// A rule of the database refused a value. `field` is the column or JSON field it
    /// concerns where it can be told; the message is fit for people.
    #[error("{message}")]
    Refused {
        /// Column concerned.
        field: &'static str,
        /// In plain words.
        message: String,
    },
    /// Something by that name or MAC or address is there already.
    #[error("{message}")]
    Conflict {
        /// Column concerned.
        field: &'static str,
        /// In plain words.
        message: String,
    },
    /// Anything else.
    #[error("database error: {0}")]
    Other(String),
}

/// One event or row change of a boot, as the tracker queues them. Order is kept.
#[derive(Debug, Clone, PartialEq)]
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
    /// These leases (by address) were written or removed by somebody else: read them again.
    Leases(Vec<Ipv4Addr>),
    /// The connection was new or broken: anything may have changed. Always sent first.
    Everything,
}

/// All that booting needs, read in one snapshot (REPEATABLE READ).
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// All clients with their MACs.
    pub clients: Vec<Client>,
    /// All images with their files.
    pub images: Vec<Image>,
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

macro_rules! later {
    () => {
        unimplemented!()
    };
}

impl Catalog {
    /// Opens the pool (retrying while PostgreSQL starts or is away, up to `patience`).
    ///
    /// # Errors
    /// When it can't be reached within `patience`, or refuses us.
    pub async fn connect(
        options: &CatalogOptions,
        patience: Duration,
    ) -> Result<Self, CatalogError> {
        let _ = (options, patience);
        later!()
    }

    /// Brings the schema up to date. Repeatable, safe when several servers start at once,
    /// and lets an older binary live with newer migrations.
    ///
    /// # Errors
    /// When a migration fails; the schema is then as before it.
    pub async fn run_migrations(&self) -> Result<(), CatalogError> {
        later!()
    }

    /// Undoes all migrations, newest first (for tests and for going back).
    ///
    /// # Errors
    /// When one fails.
    pub async fn revert_migrations(&self, down_to: i64) -> Result<(), CatalogError> {
        let _ = down_to;
        later!()
    }

    /// A round trip: PostgreSQL's clock, and how long the answer took.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn health_check(&self) -> Result<(Timestamp, Duration), CatalogError> {
        later!()
    }

    /// Closes every connection.
    pub async fn close(&self) {
        later!()
    }

    /// Registers or refreshes this server's row: addresses, version, heartbeat.
    ///
    /// # Errors
    /// As all.
    pub async fn save_server(
        &self,
        id: Uuid,
        name: &str,
        addresses: &[Ipv4Addr],
        version: &str,
    ) -> Result<(), CatalogError> {
        let _ = (id, name, addresses, version);
        later!()
    }

    /// Reads all that booting needs.
    ///
    /// # Errors
    /// As all.
    pub async fn load(&self) -> Result<Loaded, CatalogError> {
        later!()
    }

    /// Changes by anybody, for ever: reconnects by itself, and says
    /// [`Change::Everything`] first and after every reconnect, so that none is missed.
    pub fn changes(&self) -> impl Stream<Item = Change> + Send + Unpin + 'static {
        futures_util::stream::pending()
    }

    // ---- images (seed names) ----

    /// Inserts or updates an image with its files, in one transaction.
    ///
    /// # Errors
    /// `Conflict` on a name in use, `Refused` on a broken rule.
    pub async fn save_image_metadata(&self, image: &Image) -> Result<(), CatalogError> {
        let _ = image;
        later!()
    }

    /// One image by id.
    ///
    /// # Errors
    /// As all.
    pub async fn get_image_metadata(&self, id: Uuid) -> Result<Option<Image>, CatalogError> {
        let _ = id;
        later!()
    }

    /// One image by name.
    ///
    /// # Errors
    /// As all.
    pub async fn get_image_by_name(&self, name: &str) -> Result<Option<Image>, CatalogError> {
        let _ = name;
        later!()
    }

    /// Images by name.
    ///
    /// # Errors
    /// As all.
    pub async fn list_images(&self, page: Page) -> Result<Vec<Image>, CatalogError> {
        let _ = page;
        later!()
    }

    /// Deletes an image; `false` if there was none. Refused while a live session boots it
    /// or a client is assigned to it unless `force`; the message names them.
    ///
    /// # Errors
    /// `Refused` while in use.
    pub async fn delete_image_metadata(&self, id: Uuid, force: bool) -> Result<bool, CatalogError> {
        let _ = (id, force);
        later!()
    }

    // ---- clients (seed names) ----

    /// Inserts or updates a client with its MACs, in one transaction.
    ///
    /// # Errors
    /// `Conflict` on a MAC or address in use, `Refused` on a broken rule.
    pub async fn save_client_config(&self, client: &Client) -> Result<(), CatalogError> {
        let _ = client;
        later!()
    }

    /// Registers an unknown machine, disabled, unless its MAC is known by now.
    /// Returns the client that has the MAC, and whether it was made.
    ///
    /// # Errors
    /// As all.
    pub async fn register_client(&self, client: &Client) -> Result<(Client, bool), CatalogError> {
        let _ = client;
        later!()
    }

    /// The client of a MAC, in any of its spellings.
    ///
    /// # Errors
    /// As all.
    pub async fn get_client_by_mac(&self, mac: MacAddr) -> Result<Option<Client>, CatalogError> {
        let _ = mac;
        later!()
    }

    /// One client by id.
    ///
    /// # Errors
    /// As all.
    pub async fn get_client(&self, id: Uuid) -> Result<Option<Client>, CatalogError> {
        let _ = id;
        later!()
    }

    /// Clients by host name, streamed.
    pub fn list_clients(
        &self,
        enabled_only: bool,
        page: Page,
    ) -> impl Stream<Item = Result<Client, CatalogError>> + Send + Unpin + 'static {
        let _ = (enabled_only, page);
        futures_util::stream::pending()
    }

    /// Deletes a client; `false` if there was none.
    ///
    /// # Errors
    /// As all.
    pub async fn delete_client(&self, id: Uuid) -> Result<bool, CatalogError> {
        let _ = id;
        later!()
    }

    // ---- ranges ----

    /// Inserts or updates a range with its pools, in one transaction.
    ///
    /// # Errors
    /// `Conflict` on overlap with another range (named), `Refused` on a broken rule.
    pub async fn save_network_range(&self, range: &NetworkRange) -> Result<(), CatalogError> {
        let _ = range;
        later!()
    }

    /// Ranges by network.
    ///
    /// # Errors
    /// As all.
    pub async fn list_network_ranges(&self) -> Result<Vec<NetworkRange>, CatalogError> {
        later!()
    }

    /// Deletes a range and its leases; `false` if there was none. Refused while live
    /// sessions use it.
    ///
    /// # Errors
    /// `Refused` while in use.
    pub async fn delete_network_range(&self, id: Uuid) -> Result<bool, CatalogError> {
        let _ = id;
        later!()
    }

    // ---- leases ----

    /// Stores leases in one multi-row statement; durable when this returns. Per lease, in
    /// order: `true` stored, `false` refused because another MAC holds the address (the
    /// unique key is the arbiter between servers). An older lease of the same MAC and range
    /// at another address is removed by it.
    ///
    /// # Errors
    /// As all; then none was stored.
    pub async fn commit_leases(
        &self,
        leases: &[Lease],
        server_id: Uuid,
    ) -> Result<Vec<bool>, CatalogError> {
        let _ = (leases, server_id);
        later!()
    }

    /// Marks a lease released or declined if that MAC still holds it (declined: for
    /// `length_seconds` from `at`).
    ///
    /// # Errors
    /// As all.
    pub async fn end_lease(
        &self,
        address: Ipv4Addr,
        mac: MacAddr,
        state: LeaseState,
        at: Timestamp,
        length_seconds: u32,
    ) -> Result<bool, CatalogError> {
        let _ = (address, mac, state, at, length_seconds);
        later!()
    }

    /// All leases, or those of the given addresses.
    ///
    /// # Errors
    /// As all.
    pub async fn list_leases(&self, only: Option<&[Ipv4Addr]>) -> Result<Vec<Lease>, CatalogError> {
        let _ = only;
        later!()
    }

    // ---- boots ----

    /// Creates a boot session (seed name); returns its id.
    ///
    /// # Errors
    /// As all.
    pub async fn create_boot_session(&self, session: &BootSession) -> Result<Uuid, CatalogError> {
        let _ = session;
        later!()
    }

    /// Sets a session's status and message (seed name); `false` if there is none.
    ///
    /// # Errors
    /// As all.
    pub async fn update_boot_session_status(
        &self,
        id: Uuid,
        status: SessionStatus,
        at: Timestamp,
        error_message: Option<&str>,
    ) -> Result<bool, CatalogError> {
        let _ = (id, status, at, error_message);
        later!()
    }

    /// Sessions that are starting, booting or running (seed name).
    ///
    /// # Errors
    /// As all.
    pub async fn get_active_sessions(&self) -> Result<Vec<BootSession>, CatalogError> {
        later!()
    }

    /// Writes a batch of the tracker's, in order, in one transaction.
    ///
    /// # Errors
    /// As all; then nothing of it was written.
    pub async fn write_boots(&self, writes: &[BootWrite]) -> Result<(), CatalogError> {
        let _ = writes;
        later!()
    }

    /// Open attempts of this server with their last events, to go on with after a restart.
    ///
    /// # Errors
    /// As all.
    pub async fn open_attempts(
        &self,
        server_id: Uuid,
    ) -> Result<Vec<(Attempt, Vec<BootEvent>, Option<BootSession>)>, CatalogError> {
        let _ = server_id;
        later!()
    }

    /// Attempts, newest first.
    ///
    /// # Errors
    /// As all.
    pub async fn list_attempts(
        &self,
        filter: AttemptFilter,
        page: Page,
    ) -> Result<Vec<(Attempt, Option<BootSession>)>, CatalogError> {
        let _ = (filter, page);
        later!()
    }

    /// One attempt with its events and session.
    ///
    /// # Errors
    /// As all.
    pub async fn get_attempt(
        &self,
        id: Uuid,
    ) -> Result<Option<(Attempt, Vec<BootEvent>, Option<BootSession>)>, CatalogError> {
        let _ = id;
        later!()
    }

    /// How often an attempt ended so, for tests and metrics.
    ///
    /// # Errors
    /// As all.
    pub async fn count_attempts(&self, outcome: AttemptOutcome) -> Result<i64, CatalogError> {
        let _ = outcome;
        later!()
    }
}
