//! Replication: versions of images from one server's store into another's.
//!
//! [`Replication`] is what the admin API asks. `wire` (frames) and `machine` (what may come
//! when) are pure; `line` (frames over a stream), `server` (receiving) and `sender` are one
//! connection each (`sender/stream`, `inbox/stream`: by streams of the store's own), on blocking threads; `identity` is by what servers know each other;
//! `content` reads versions, `inbox` and `notes` store what arrives, `files` are the kernels
//! and initrds that go with it; `desk` are the jobs, `rounds` keeps the catalog's rows true.
//!
//! It lies above the services, whose cache it reads, and below the edges. Its peers are servers
//! of the same catalog, never machines that boot. No SQL here, and nothing of any backend.

mod content;
mod desk;
mod files;
mod identity;
mod inbox;
mod line;
mod machine;
mod notes;
mod rounds;
mod sender;
mod server;
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::desk::Jobs;
use self::inbox::Inbox;
use self::notes::Notes;
use self::sender::Stop;
use crate::cache::Cache;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;
use crate::crowd;
use crate::model::{Replica, ReplicaState, Server, Site};
use crate::storage::{Directory, Pending, Storage, VolumeError};
pub use identity::{Identity, NoIdentity};

/// What replication works on.
#[derive(Debug)]
pub struct Handles {
    /// This server.
    pub server_id: Uuid,
    /// PostgreSQL.
    pub catalog: Catalog,
    /// What is known of versions and servers.
    pub cache: Cache,
    /// The disks.
    pub disks: Arc<dyn Storage>,
    /// Kernels and initrds.
    pub storage: Directory,
    /// What is being made or removed here.
    pub pending: Pending,
    /// The time.
    pub clock: Clock,
    /// Our key and certificate.
    pub identity: Identity,
}

/// Why something can't be replicated, or a replica not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReplicated {
    /// No server has that name or id.
    #[error("no server is called `{0}`")]
    NoServer(String),
    /// Several have it.
    #[error("several servers are called `{0}`: name one by its id")]
    Ambiguous(String),
    /// It is this one.
    #[error("that is this server, and it has the version: ask for another one")]
    Here,
    /// This server has not got it.
    #[error("this server does not have the version: ask a server that has it")]
    NotStored,
    /// There is no such replica.
    #[error("that server has no replica of the version")]
    NoReplica,
    /// It is the last one.
    #[error("no other server that is alive has this version: to remove it, remove the version")]
    LastCopy,
    /// Something uses it, or the other server says no.
    #[error("{0}")]
    Refused(String),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] VolumeError),
}

/// Replication; clones share it.
#[derive(Debug, Clone)]
pub struct Replication {
    shared: Arc<Shared>,
}

/// What all of it shares.
pub(crate) struct Shared {
    server_id: Uuid,
    catalog: Catalog,
    cache: Cache,
    disks: Arc<dyn Storage>,
    storage: Directory,
    pending: Pending,
    clock: Clock,
    identity: Identity,
    as_server: Arc<ServerConfig>,
    inbox: Arc<Inbox>,
    jobs: Jobs,
    cancel: CancellationToken,
    /// Streams that had to begin anew.
    restarts: Counter,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replication").finish_non_exhaustive()
    }
}

impl Replication {
    /// Over these; nothing happens before [`Replication::run`].
    ///
    /// # Errors
    /// When the folder of notes can't be made, or the identity can't be used.
    pub fn new(handles: Handles) -> Result<Self, NoIdentity> {
        let root: &Path = handles.storage.root();
        let notes = Notes::open(root).map_err(|source| NoIdentity::Io {
            path: root.to_owned(),
            source,
        })?;
        let cache = handles.cache.clone();
        let known = move |shown: &str| of_certificate(&cache.site(), shown).is_some();
        let as_server = handles.identity.server(Arc::new(known))?;
        let shared = Shared {
            server_id: handles.server_id,
            catalog: handles.catalog,
            cache: handles.cache,
            inbox: Inbox::new(handles.disks.clone(), notes),
            disks: handles.disks,
            storage: handles.storage,
            pending: handles.pending,
            clock: handles.clock,
            identity: handles.identity,
            as_server,
            jobs: Jobs::default(),
            cancel: CancellationToken::new(),
            restarts: Counter::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Counts for Prometheus.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "dls_replica_streams_begun_anew",
            "Streams of versions from other servers that could not be gone on with",
            self.shared.restarts.clone(),
        );
    }

    /// SHA-256 of our certificate, for the catalog.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        self.shared.identity.fingerprint()
    }

    /// Receives (where there can be other servers), goes on with what was being sent, and keeps
    /// the rows true, until cancelled.
    pub async fn run(self, server: Option<ReplicationServer>, cancel: CancellationToken) {
        let shared = self.shared;
        let rounds = rounds::keep(shared.clone(), cancel.clone());
        let serving = async {
            if let Some(server) = server {
                server::serve(shared.clone(), server.listener, cancel.clone()).await;
            }
        };
        let stopping = async {
            cancel.cancelled().await;
            shared.cancel.cancel();
        };
        tokio::join!(rounds, serving, stopping);
    }

    /// The servers, as they were known a moment ago.
    #[must_use]
    pub fn site(&self) -> Arc<Site> {
        self.shared.cache.site()
    }

    /// This server.
    #[must_use]
    pub fn server_id(&self) -> Uuid {
        self.shared.server_id
    }

    /// The server that a name or an id means.
    ///
    /// # Errors
    /// `NoServer`, `Ambiguous`.
    pub async fn called(&self, name: &str) -> Result<Server, NotReplicated> {
        let site = self.shared.catalog.site().await?;
        match site.called(name).as_slice() {
            [] => Err(NotReplicated::NoServer(shown(name))),
            [one] => Ok((*one).clone()),
            _ => Err(NotReplicated::Ambiguous(shown(name))),
        }
    }

    /// Begins to send a version to a server, or goes on with it.
    ///
    /// # Errors
    /// Why not.
    pub async fn begin(
        &self,
        image: Uuid,
        version: Uuid,
        to: &Server,
    ) -> Result<Replica, NotReplicated> {
        self.shared.begin(image, version, to).await
    }

    /// Removes a replica, or ends its copying; its server is asked to, if it is another one.
    ///
    /// # Errors
    /// Why not.
    pub async fn remove(
        &self,
        image: Uuid,
        version: Uuid,
        server: &Server,
    ) -> Result<(), NotReplicated> {
        self.shared.remove(image, version, server).await
    }
}

/// A name from outside as it may stand in a sentence.
fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// The living server that a certificate is of.
fn of_certificate(site: &Site, fingerprint: &str) -> Option<Uuid> {
    let mut servers = site.servers.iter();
    let known =
        |s: &&Server| s.alive && s.contact.certificate_sha256.as_deref() == Some(fingerprint);
    servers.find(known).map(|server| server.id)
}

impl Shared {
    fn by_fingerprint(&self, shown: &str) -> Option<Uuid> {
        of_certificate(&self.cache.site(), shown)
    }

    /// True if this server has a version whole.
    async fn has(&self, version: Uuid) -> Result<bool, VolumeError> {
        let disks = self.disks.clone();
        let look = move || content::is_whole(&*disks, version);
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|e| {
            Err(VolumeError::Io {
                what: "looking at a disk".to_owned(),
                source: std::io::Error::other(e),
            })
        })
    }

    /// True if another server that is alive has a version.
    fn others_have(&self, version: Uuid) -> bool {
        let (snapshot, site) = (self.cache.get(), self.cache.site());
        let mut holders = snapshot.holders(version).iter();
        holders.any(|id| *id != self.server_id && site.server(*id).is_some_and(|s| s.alive))
    }

    /// What a version may be sent as the difference to: what it was made from, then the other
    /// versions of its image that are whole here, newest first.
    fn bases(&self, image: Uuid, version: Uuid) -> Result<Vec<Uuid>, VolumeError> {
        let store = &*self.disks;
        let mut bases = content::ancestors(store, version)?;
        let snapshot = self.cache.get();
        for other in snapshot.versions(image).iter().rev() {
            if other.id != version
                && !bases.contains(&other.id)
                && content::is_whole(store, other.id)?
            {
                bases.push(other.id);
            }
        }
        Ok(bases)
    }

    async fn remove(
        self: &Arc<Self>,
        image: Uuid,
        version: Uuid,
        server: &Server,
    ) -> Result<(), NotReplicated> {
        let rows = self.catalog.list_replicas(Some(image)).await?;
        let key = (version, server.id);
        let row = rows.iter().find(|r| (r.version_id, r.server_id) == key);
        let row = row.ok_or(NotReplicated::NoReplica)?;
        let site = self.catalog.site().await?;
        let another = rows.iter().any(|r| {
            r.version_id == version
                && r.server_id != server.id
                && r.state == ReplicaState::Verified
                && site.server(r.server_id).is_some_and(|s| s.alive)
        });
        if row.state == ReplicaState::Verified && !another {
            return Err(NotReplicated::LastCopy);
        }
        self.give_up(key);
        if row.state != ReplicaState::Verified {
            // What there is of it goes when its server looks at its rows next.
            self.catalog.drop_replica(version, server.id).await?;
            return Ok(());
        }
        let (shared, to) = (self.clone(), server.clone());
        let dropping = tokio::task::spawn_blocking(move || {
            if to.id == shared.server_id {
                let removed = shared.inbox.leave_to_others(version);
                return removed.map_err(|rejected| rejected.sentence);
            }
            match sender::ask_to_drop(&shared, &to, version) {
                Ok(()) => Ok(()),
                Err(Stop::Passing(why) | Stop::Final(why)) => Err(why),
                Err(Stop::Cancelled) => Err("this server is stopping".to_owned()),
            }
        });
        let dropped = dropping.await.unwrap_or_else(|e| Err(e.to_string()));
        dropped.map_err(NotReplicated::Refused)?;
        self.catalog.drop_replica(version, server.id).await?;
        Ok(())
    }
}

/// The listener, bound and not yet serving.
#[derive(Debug)]
pub struct ReplicationServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl ReplicationServer {
    /// Binds the listener; nothing is answered before [`Replication::run`].
    ///
    /// # Errors
    /// When the address is taken, not ours, or may not be bound.
    pub async fn bind(listen: SocketAddr) -> std::io::Result<Self> {
        let listener = crowd::listen(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }
}
