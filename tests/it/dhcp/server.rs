//! The DHCP server as the application puts it together, in a host's namespace.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use dls::boot::disks::Disks;
use dls::boot::session::Rules;
use dls::boot::tracker::{Caps, Tracker};
use dls::cache::Cache;
use dls::catalog::{Catalog, CatalogOptions};
use dls::clock::Clock;
use dls::dhcp::decide::Loader;
use dls::dhcp::server::{
    BindError, DhcpMetrics, DhcpOptions, DhcpServer, Handles, Ports, Selection, UnknownClients,
};
use dls::model::{
    Arch, BootMode, Client, DiskMode, Image, NetworkRange, RangeMode, Serve, UnreadyAction,
};
use dls::storage::memory::Memory;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lan::Host;
use super::postgres::Database;

/// A running server; stopped in an orderly way when dropped.
pub(crate) struct Server {
    registry: Registry,
    cancel: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What differs from test to test.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) interfaces: Selection,
    pub(crate) unknown_clients: UnknownClients,
    pub(crate) server_id: Uuid,
    /// No other server shares the catalog.
    pub(crate) sole: bool,
    /// As in the configuration.
    pub(crate) keep_percent: u8,
    /// Where its journals lie, also for the next one with the same settings.
    pub(crate) journals: Arc<tempfile::TempDir>,
    /// Where the server puts its disks and its tracker once it has them.
    pub(crate) disks: Arc<OnceLock<(Disks, Tracker)>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interfaces: Selection::InServedRanges,
            unknown_clients: UnknownClients::Register { cap: 100 },
            server_id: Uuid::new_v4(),
            sole: false,
            keep_percent: 25,
            journals: Arc::new(tempfile::tempdir().unwrap()),
            disks: Arc::default(),
        }
    }
}

/// A range as the command line would make it.
pub(crate) fn range(network: &str, pools: &[&str]) -> NetworkRange {
    NetworkRange {
        id: Uuid::new_v4(),
        name: network.to_owned(),
        network: network.parse().unwrap(),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
        exclusions: Vec::new(),
        gateway: None,
        dns: Vec::new(),
        domain: None,
        search: Vec::new(),
        ntp: Vec::new(),
        mtu: None,
        routes: Vec::new(),
        lease_seconds: 3600,
        options: Default::default(),
    }
}

/// A registered machine.
pub(crate) fn client(mac: &str, hostname: &str, address: Option<Ipv4Addr>) -> Client {
    let now = Clock::system().now();
    Client {
        id: Uuid::new_v4(),
        mac_address: mac.parse().unwrap(),
        more_macs: Vec::new(),
        hostname: hostname.to_owned(),
        ip_address: address,
        assigned_image_id: None,
        boot_mode: BootMode::Pxe,
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: now,
        updated_at: now,
        last_boot_at: None,
        boot_count: 0,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

async fn connect(database: &Database, server_id: Uuid) -> Catalog {
    let options = CatalogOptions {
        url: database.url(),
        min_connections: 1,
        max_connections: 10,
        pool_timeout: Duration::from_secs(5),
        server_id,
    };
    Catalog::connect(&options, Duration::from_secs(10))
        .await
        .unwrap()
}

/// Fills a fresh database with ranges and clients.
pub(crate) fn prepare(database: &Database, ranges: &[NetworkRange], clients: &[Client]) {
    runtime().block_on(async {
        let catalog = connect(database, Uuid::new_v4()).await;
        for range in ranges {
            catalog.save_network_range(range).await.unwrap();
        }
        for client in clients {
            catalog.save_client_config(client).await.unwrap();
        }
        catalog.close().await;
    });
}

/// Puts images into a fresh database.
pub(crate) fn prepare_images(database: &Database, images: &[Image]) {
    runtime().block_on(async {
        let catalog = connect(database, Uuid::new_v4()).await;
        for image in images {
            catalog.save_image_metadata(image).await.unwrap();
        }
        catalog.close().await;
    });
}

impl Server {
    /// Starts it in a host's namespace, over a prepared database.
    pub(crate) fn start(host: &Host, database: &Database, settings: &Settings) -> Self {
        Self::try_start(host, database, settings).unwrap()
    }

    pub(crate) fn try_start(
        host: &Host,
        database: &Database,
        settings: &Settings,
    ) -> Result<Self, BindError> {
        let cancel = CancellationToken::new();
        let metrics = DhcpMetrics::new();
        let (ready, started) = mpsc::channel();
        let thread = {
            let (cancel, metrics) = (cancel.clone(), metrics.clone());
            let (database, settings) = (database.clone(), settings.clone());
            host.enter(move || {
                runtime().block_on(serve(database, settings, metrics, cancel, ready));
            })
        };
        started.recv_timeout(Duration::from_secs(30)).unwrap()?;
        let mut registry = Registry::with_prefix("dls");
        metrics.register(&mut registry);
        Ok(Self {
            registry,
            cancel,
            thread: Some(thread),
        })
    }

    /// A counter of `/metrics`, by its line without `dls_dhcp_`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let start = format!("dls_dhcp_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start}in\n{text}"))
            .parse()
            .unwrap()
    }

    /// Stops it and waits until it has.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(
    database: Database,
    settings: Settings,
    metrics: DhcpMetrics,
    cancel: CancellationToken,
    ready: mpsc::Sender<Result<(), BindError>>,
) {
    let catalog = connect(&database, settings.server_id).await;
    catalog
        .save_server(settings.server_id, "test", &[], "0")
        .await
        .unwrap();
    let cache = Cache::open(catalog.clone()).await.unwrap();
    let clock = Clock::system();
    let tracker = Tracker::new(
        catalog.clone(),
        clock.clone(),
        settings.server_id,
        Rules::default(),
        Caps::default(),
    );
    let disks = Disks::new(
        cache.view(),
        tracker.clone(),
        Arc::new(Memory::new()),
        clock.clone(),
    );
    let _ = settings.disks.set((disks.clone(), tracker.clone()));
    let handles = Handles {
        cache: cache.clone(),
        catalog: catalog.clone(),
        tracker: tracker.clone(),
        disks: disks.clone(),
        clock,
        metrics,
        loader_for: std::sync::Arc::new(loader_for),
    };
    let options = DhcpOptions {
        unknown_share_percent: 90,
        keep_percent: settings.keep_percent,
        interfaces: settings.interfaces,
        ports: Ports::default(),
        http_port: 8069,
        unknown_clients: settings.unknown_clients,
        default_image: None,
        server_id: settings.server_id,
        sole: settings.sole,
        claim_seconds: 3_600,
        journal_dir: settings.journals.path().to_owned(),
    };
    let mut server = DhcpServer::new(handles, options).unwrap();
    if let Err(error) = server.bind() {
        let _ = ready.send(Err(error));
        return;
    }
    let follower = tokio::spawn({
        let (cache, cancel) = (cache.clone(), cancel.clone());
        async move { cache.follow(cancel).await }
    });
    let recorder = tokio::spawn({
        let (tracker, cancel) = (tracker.clone(), cancel.clone());
        async move { tracker.run(cancel).await }
    });
    let _ = ready.send(Ok(()));
    server.run(cancel.clone()).await;
    follower.await.unwrap();
    recorder.await.unwrap();
    catalog.close().await;
}

/// One loader for BIOS machines, none for others.
fn loader_for(arch: Arch) -> Loader {
    match arch {
        Arch::Bios => Loader::Found("undionly.kpxe".to_owned()),
        Arch::EfiX64 | Arch::HttpX64 => Loader::Found("snponly.efi".to_owned()),
        other => Loader::Missing {
            wanted: other.loaders(),
            directory: "/usr/lib/ipxe".to_owned(),
        },
    }
}
