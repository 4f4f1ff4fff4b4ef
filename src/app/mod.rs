//! `dls serve`: open, bind, drop privileges, spawn, drain, stop.
//!
//! Order matters and stands in `run`: privileges are given up before the first thread and
//! before anything from outside is read; ports are bound before the database is opened, so
//! that a taken port is told at once; the parts are stopped edges first, then the tracker
//! (so that the last events are written), then the database.

mod cluster;
mod exports;
mod heartbeat;
mod opening;
mod parts;
mod psql;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::admin::{self, AdminMetrics, AdminServer, DoctorMetrics, ImageLimits};
use crate::boot::canaries;
use crate::boot::disks::{DiskDoor, Disks};
use crate::boot::files::{Files, FilesOptions};
use crate::boot::session::{Rules, Timings};
use crate::boot::tracker::{Caps, Ledger, Tracker};
use crate::cache::Saved;
use crate::clock::Clock;
use crate::config::{Config, DatabaseUrl, StorageBackend, UnknownClients};
use crate::dhcp::server::{self as dhcp, DhcpMetrics, DhcpOptions, DhcpServer, Selection};
use crate::export::iscsi::{IscsiMetrics, IscsiServer};
use crate::export::nbd::{NbdMetrics, NbdServer};
use crate::heap;
use crate::http::{HttpLimits, HttpMetrics, HttpServer};
use crate::privileges::{self, Became};
use crate::replicate::{self, Identity, Replication, ReplicationServer};
use crate::storage::disks::TABLE_CACHE;
use crate::storage::{Directory, DiskStore, Pending, Storage, Uploads, mend};
use crate::telemetry;
use crate::tftp::metrics::TftpMetrics;
use crate::tftp::room::boot_room;
use crate::tftp::server::TftpServer;
use crate::validate::Strictness;
use cluster::Cluster;
use heartbeat::Who;
use opening::{Gauges, KNOWN_PATIENCE, Late, Local, Opened, open_catalog, tell_standing};
use parts::Parts;
pub use psql::psql;

/// How long the tracker may take to write its last rows when the server stops.
const LAST_ROWS: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// With one clear sentence when the server can't start, or a part of it ended by itself.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    telemetry::start_logging(&config.log).map_err(|e| anyhow!("starting the log: {e}"))?;
    heap::keep_small();
    let directories = [config.state_dir.clone(), config.storage_path()];
    match privileges::prepare(&config.user, &directories)? {
        Became::Same => {}
        Became::Configured(user) => tracing::info!(user, "running unprivileged"),
        Became::StandIn(user) => {
            tracing::warn!(
                wanted = config.user,
                user,
                "no such user, running as another one"
            );
        }
    }
    raise_file_limit();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(run(config))
}

/// What is bound before anything else is opened.
struct Doors {
    tftp: TftpServer,
    http: HttpServer,
    iscsi: IscsiServer,
    nbd: NbdServer,
    admin: AdminServer,
    /// Where others may share the catalog.
    replication: Option<ReplicationServer>,
}

/// As many open files as we are allowed: thousands of transfers hold two each.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(e) = raised {
        tracing::warn!(error = %e, "the limit of open files can't be raised");
    }
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let _lock = state::lock(&config.state_dir)?;
    let server_id = state::server_id(&config.state_dir)?;
    let doors = Doors {
        tftp: TftpServer::bind(config.tftp.listen)?,
        http: HttpServer::bind(config.http.listen).await?,
        iscsi: IscsiServer::bind(config.iscsi.listen)
            .await
            .with_context(|| format!("iSCSI can't listen on {}", config.iscsi.listen))?,
        nbd: NbdServer::bind(config.nbd.listen)
            .await
            .with_context(|| format!("NBD can't listen on {}", config.nbd.listen))?,
        admin: AdminServer::bind(config.admin.listen)
            .await
            .with_context(|| format!("admin API can't listen on {}", config.admin.listen))?,
        replication: replication_door(config).await?,
    };
    let journals = state::journals(&config.state_dir)?;
    let cluster = match &config.database.url {
        DatabaseUrl::Embedded => Some(Cluster::start(&config.state_dir, &journals).await?),
        DatabaseUrl::Server(_) => None,
    };
    let url = match (&cluster, &config.database.url) {
        (Some(cluster), _) => cluster.url().to_owned(),
        (None, DatabaseUrl::Server(url)) => url.clone(),
        (None, DatabaseUrl::Embedded) => unreachable!("an embedded cluster was started above"),
    };
    let local = Local {
        path: journals,
        patience: match &cluster {
            Some(cluster) if cluster.is_late() => Duration::ZERO,
            _ => KNOWN_PATIENCE,
        },
    };
    let served = operate(config, server_id, url, doors, &local, &stop).await;
    if let Some(cluster) = cluster {
        cluster.stop().await?;
    }
    served
}

/// An embedded database has no other servers.
async fn replication_door(config: &Config) -> anyhow::Result<Option<ReplicationServer>> {
    if config.database.url == DatabaseUrl::Embedded {
        return Ok(None);
    }
    let listen = config.replication.listen;
    let bound = ReplicationServer::bind(listen).await;
    let bound = bound.with_context(|| format!("replication can't listen on {listen}"))?;
    Ok(Some(bound))
}

/// From an open database to a stopped server, the database still up.
async fn operate(
    config: &Config,
    server_id: Uuid,
    url: String,
    doors: Doors,
    local: &Local,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let journals = local.path.as_path();
    let nbd_limits = exports::nbd_limits(config)?;
    let clock = Clock::system();
    // What a crash has left in the store is put right whether the catalog is there or not.
    let storage = Directory::open(&config.storage_path()).await?;
    let pending = Pending::open(storage.root())?;
    let uploads = Uploads::open(storage.root())?;
    let store = disk_store(config, storage.root()).await?;
    tokio::task::spawn_blocking({
        let (store, pending) = (store.clone(), pending.clone());
        move || mend::mend(&*store, &pending)
    })
    .await?;
    let who = Who {
        id: server_id,
        name: config.server_name.clone(),
        boot: doors.http.local_addr(),
        replication: doors
            .replication
            .as_ref()
            .map(ReplicationServer::local_addr),
    };
    let Some(opened) = stop
        .run_until_cancelled(open_catalog(config, &who, url, &clock, local))
        .await
    else {
        return Ok(());
    };
    let Opened {
        catalog,
        cache,
        late,
    } = opened?;
    let doctor = DoctorMetrics::default();
    admin::look_over(&storage, &store, &cache.get(), &pending, &doctor, server_id).await;

    let rules = Rules {
        timings: Timings::with(config.boot.stall_seconds, config.boot.os_seconds),
        http_port: doors.http.local_addr().port(),
        ..Rules::default()
    };
    let tracker = Tracker::new(
        catalog.clone(),
        clock.clone(),
        server_id,
        rules,
        Caps::default(),
    );
    let (ledger, left) = Ledger::open(journals)?;
    let mut resumed = tracker.remember(ledger, left);
    if !late {
        resumed = tracker.resume().await?;
    }
    if resumed > 0 {
        tracing::info!(attempts = resumed, "going on with boots that were open");
    }
    let disks = Disks::new(cache.view(), tracker.clone(), store.clone(), clock.clone())
        .with_journal(pending.clone());
    let files = Files::new(
        cache.view(),
        tracker.clone(),
        clock.clone(),
        storage.clone(),
        disks.clone(),
        FilesOptions {
            loader_dirs: vec![config.boot.loader_dir.clone()],
            default_image: config.boot.default_image.clone(),
            http_port: doors.http.local_addr().port(),
            wait_seconds: config.boot.wait_seconds,
            disk_ports: (
                doors.iscsi.local_addr().port(),
                doors.nbd.local_addr().port(),
            ),
        },
    );

    let mut registry = telemetry::registry();
    let (dhcp_metrics, tftp_metrics, http_metrics) = (
        DhcpMetrics::new(),
        TftpMetrics::default(),
        HttpMetrics::default(),
    );
    dhcp_metrics.register(&mut registry);
    tftp_metrics.register(&mut registry);
    http_metrics.register(&mut registry);
    tracker.metrics().register(&mut registry);
    disks.metrics().register(&mut registry);
    let (iscsi_metrics, nbd_metrics) = (IscsiMetrics::default(), NbdMetrics::default());
    iscsi_metrics.register(&mut registry);
    nbd_metrics.register(&mut registry);
    let admin_metrics = AdminMetrics::register(&mut registry);
    doctor.register(&mut registry);
    let standing = Gauges::register(&mut registry);

    let mut dhcp = DhcpServer::new(
        dhcp::Handles {
            cache: cache.clone(),
            catalog: catalog.clone(),
            tracker: tracker.clone(),
            disks: disks.clone(),
            clock: clock.clone(),
            metrics: dhcp_metrics,
            loader_for: {
                let files = files.clone();
                Arc::new(move |arch| files.loader_for(arch))
            },
        },
        dhcp_options(config, server_id, doors.http.local_addr().port(), journals),
    )?;
    dhcp.bind()?;

    let replication = Replication::new(replicate::Handles {
        server_id,
        catalog: catalog.clone(),
        cache: cache.clone(),
        disks: store.clone(),
        storage: storage.clone(),
        pending: pending.clone(),
        clock: clock.clone(),
        identity: Identity::open(&config.state_dir)?,
    })?;
    replication.register(&mut registry);

    let parts = Parts::default();
    let readiness = parts.readiness();
    let admin = admin::Handles {
        catalog: catalog.clone(),
        cache: cache.clone(),
        tracker: tracker.clone(),
        boot_disks: disks.clone(),
        storage,
        disks: store,
        uploads,
        pending,
        replication: replication.clone(),
        limits: ImageLimits {
            upload_bytes: config.storage.upload_limit_gib << 30,
            import_dir: config.storage.import_dir.clone(),
        },
        clock: clock.clone(),
        token: admin::auth::token_file(&config.state_dir)?,
        registry: Arc::new(registry),
        metrics: admin_metrics,
        doctor,
        readiness,
        strictness: Strictness::from_setting(config.validation.enable_strict_mode),
    };

    // The tracker outlives the edges: what they saw last is still written.
    let record = CancellationToken::new();
    let recorder = tokio::spawn({
        let (tracker, record) = (tracker.clone(), record.clone());
        async move { tracker.run(record).await }
    });

    let edges = stop.child_token();
    let mut running = parts.start(edges.clone());
    running.add("cache", "follows the catalog", {
        let (cache, edges) = (cache.clone(), edges.clone());
        async move { cache.follow(edges).await }
    });
    running.add("picture of the catalog", "", {
        let (cache, saved, edges) = (cache.clone(), Saved::at(journals), edges.clone());
        async move { cache.save(saved, edges).await }
    });
    running.add("database", "", {
        let (catalog, edges) = (catalog.clone(), edges.clone());
        async move { tell_standing(&catalog, &standing, edges).await }
    });
    if late {
        running.add("catalog", "", {
            let opening = Late {
                catalog: catalog.clone(),
                cache: cache.clone(),
                tracker: tracker.clone(),
                clock: clock.clone(),
                who: who.clone(),
            };
            let edges = edges.clone();
            async move {
                opening.open(&edges).await;
                edges.cancelled().await;
            }
        });
    }
    running.add("disks", "", {
        let (disks, catalog, edges) = (disks.clone(), catalog.clone(), edges.clone());
        async move { disks.keep(catalog, edges).await }
    });
    running.add("quotas", "", {
        let (disks, changed, edges) = (disks.clone(), cache.watch(), edges.clone());
        async move { disks.follow_quotas(changed, edges).await }
    });
    running.add(
        "canaries",
        "",
        canaries::watch(catalog.clone(), tracker.clone(), edges.clone()),
    );
    running.add(
        "heartbeat",
        "",
        heartbeat::beat(
            (catalog.clone(), cache.clone()),
            clock.clone(),
            who,
            replication.fingerprint().to_owned(),
            edges.clone(),
        ),
    );
    let at = doors.replication.as_ref();
    let at = at.map_or_else(String::new, |door| door.local_addr().to_string());
    let replicating = replication.run(doors.replication, edges.clone());
    running.add("replication", &at, replicating);
    running.add(
        "dhcp",
        &dhcp.interfaces().join(", "),
        dhcp.run(edges.clone()),
    );
    running.add("tftp", &doors.tftp.local_addr().to_string(), {
        let room = boot_room(files.clone(), tracker.clone(), clock.clone());
        let serving = doors
            .tftp
            .run(room, tftp_metrics, clock.clone(), edges.clone());
        async move {
            if let Err(e) = serving.await {
                tracing::error!(error = %e, "TFTP");
            }
        }
    });
    running.add(
        "http",
        &doors.http.local_addr().to_string(),
        doors
            .http
            .run(files, http_metrics, HttpLimits::default(), edges.clone()),
    );
    let door: Arc<dyn DiskDoor> = Arc::new(disks.clone());
    running.add(
        "iscsi",
        &doors.iscsi.local_addr().to_string(),
        doors.iscsi.run(
            door.clone(),
            iscsi_metrics,
            exports::iscsi_limits(config),
            edges.clone(),
        ),
    );
    running.add(
        "nbd",
        &doors.nbd.local_addr().to_string(),
        doors.nbd.run(door, nbd_metrics, nbd_limits, edges.clone()),
    );
    let admin_at = doors
        .admin
        .local_addr()
        .map_or(config.admin.listen, |at| at);
    running.add(
        "admin",
        &admin_at.to_string(),
        doors.admin.run(admin, edges.clone()),
    );

    tracing::info!(server.id = %server_id, admin = %admin_at, "dls serves");
    notify(sd_notify::NotifyState::Ready);
    // Connections that end from here on ended because the server did.
    let closing = {
        let (disks, stop) = (disks.clone(), stop.clone());
        async move {
            stop.cancelled().await;
            disks.close();
        }
    };
    let closing = tokio::spawn(closing);
    let ended = running.wait().await;
    closing.abort();
    notify(sd_notify::NotifyState::Stopping);

    tracker.drain(LAST_ROWS).await;
    record.cancel();
    recorder.await.context("the tracker's writer")?;
    catalog.close().await;
    tracing::info!("dls has stopped");
    ended
}

/// Opens the store of disks, putting right what a crash has left there.
async fn disk_store(config: &Config, root: &Path) -> anyhow::Result<Arc<dyn Storage>> {
    let path = root.to_owned();
    let open: Box<dyn FnOnce() -> anyhow::Result<Arc<dyn Storage>> + Send> =
        match config.storage.backend {
            StorageBackend::Directory => {
                Box::new(move || Ok(Arc::new(DiskStore::open(&path, TABLE_CACHE)?)))
            }
            #[cfg(feature = "zfs")]
            StorageBackend::Zfs => {
                let options = zfs_options(&config.storage);
                Box::new(move || {
                    let store = crate::storage::ZfsStore::open(options, &path)?;
                    Ok(Arc::new(store))
                })
            }
            // `Config::check` has said so already.
            #[cfg(not(feature = "zfs"))]
            StorageBackend::Zfs => {
                anyhow::bail!("this dls was built without ZFS: the package dls-zfs has it")
            }
        };
    let opened = tokio::task::spawn_blocking(open).await?;
    opened.context("opening the store of disks")
}

#[cfg(feature = "zfs")]
fn zfs_options(storage: &crate::config::Storage) -> crate::storage::zfs::ZfsOptions {
    use crate::config::{ZfsCompression, ZfsReserve};
    use crate::storage::zfs::{Compression, Reserve, ZfsOptions};
    ZfsOptions {
        dataset: storage.dataset.clone().unwrap_or_default(),
        block: storage.volblocksize_kib * 1024,
        compression: match storage.compression {
            ZfsCompression::Inherit => Compression::Inherit,
            ZfsCompression::Off => Compression::Off,
            ZfsCompression::Lz4 => Compression::Lz4,
            ZfsCompression::Zstd => Compression::Zstd,
        },
        reserve: match storage.reserve {
            ZfsReserve::Nothing => Reserve::Nothing,
            ZfsReserve::Images => Reserve::Images,
            ZfsReserve::All => Reserve::All,
        },
    }
}

fn dhcp_options(config: &Config, server_id: Uuid, http_port: u16, journals: &Path) -> DhcpOptions {
    DhcpOptions {
        unknown_share_percent: config.dhcp.unknown_share_percent,
        keep_percent: config.dhcp.keep_percent,
        interfaces: match config.dhcp.interfaces.as_slice() {
            [] => Selection::InServedRanges,
            names => Selection::Named(names.to_vec()),
        },
        ports: dhcp::Ports::default(),
        http_port,
        unknown_clients: match config.boot.unknown_clients {
            UnknownClients::Register => dhcp::UnknownClients::Register {
                cap: config.boot.unknown_limit as usize,
            },
            UnknownClients::Ignore => dhcp::UnknownClients::Ignore,
        },
        default_image: config.boot.default_image.clone(),
        server_id,
        sole: config.database.url == DatabaseUrl::Embedded,
        claim_seconds: config.dhcp.claim_seconds,
        journal_dir: journals.to_owned(),
    }
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("listening for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                stop.cancel();
            }
        });
    }
    Ok(stop)
}

/// Tells systemd, where there is one.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!(error = %e, "the service manager was not told");
    }
}
