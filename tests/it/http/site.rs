//! A server with one image, as the application puts it together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dls::boot::disks::Disks;
use dls::boot::files::{Files, FilesOptions};
use dls::boot::session::{Context, Evidence, Observation, Rules, Speaker};
use dls::boot::token::BootToken;
use dls::boot::tracker::{Caps, OpenAttempt, Tracker};
use dls::cache::Cache;
use dls::catalog::{Catalog, CatalogOptions};
use dls::clock::Clock;
use dls::http::{HttpLimits, HttpMetrics, HttpServer};
use dls::model::{
    BootMethod, BootMode, Client, DiskMode, FileRole, Image, ImageFile, ImageFormat, ImageKind,
    MacAddr, PhoneHome,
};
use dls::storage::{Directory, memory::Memory};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dhcp::postgres::Database;

pub(crate) const KERNEL_BYTES: usize = 3_000_017;
pub(crate) const INITRD_BYTES: usize = 70_001;

/// A running boot listener over a database of its own; stopped when dropped.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) database: Database,
    pub(crate) catalog: Catalog,
    pub(crate) cache: Cache,
    pub(crate) tracker: Tracker,
    pub(crate) files: Files,
    pub(crate) clock: Clock,
    pub(crate) address: SocketAddr,
    pub(crate) image: Image,
    pub(crate) cancel: CancellationToken,
    pub(crate) serving: Option<tokio::task::JoinHandle<()>>,
    registry: Registry,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Bytes that differ from place to place.
pub(crate) fn noise(len: usize, salt: u64) -> Vec<u8> {
    let mut state = salt | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

pub(crate) fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, n])
}

async fn store(
    storage: &Directory,
    image: Uuid,
    role: FileRole,
    position: i32,
    bytes: &[u8],
) -> ImageFile {
    let staged = storage.stage(bytes).await.unwrap();
    let (sha256, size_bytes) = (staged.sha256.clone(), staged.size_bytes);
    let path = storage.place(staged, image, role, position).await.unwrap();
    ImageFile {
        role,
        position,
        path,
        sha256,
        size_bytes,
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(HttpLimits::default()).await
    }

    /// Client `pc-1` (MAC ending in 01) has the image; `pc-2` has none; 03 is nobody.
    pub(crate) async fn with(limits: HttpLimits) -> Self {
        let database = tokio::task::spawn_blocking(Database::new).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let server_id = Uuid::new_v4();
        let options = CatalogOptions {
            url: database.url(),
            min_connections: 1,
            max_connections: 4,
            pool_timeout: Duration::from_secs(10),
            server_id,
        };
        let catalog = Catalog::connect(&options, Duration::from_secs(20))
            .await
            .unwrap();
        catalog.run_migrations().await.unwrap();
        catalog
            .save_server(server_id, "test", &[], "0")
            .await
            .unwrap();
        let storage = Directory::open(&dir.path().join("storage")).await.unwrap();
        let clock = Clock::system();
        let image = make_image(&storage, &clock).await;
        catalog.save_image_metadata(&image).await.unwrap();
        for (n, image_id) in [(1, Some(image.id)), (2, None)] {
            let client = make_client(n, image_id, &clock);
            catalog.save_client_config(&client).await.unwrap();
        }
        let cache = Cache::open(catalog.clone()).await.unwrap();
        let tracker = Tracker::new(
            catalog.clone(),
            clock.clone(),
            server_id,
            Rules::default(),
            Caps::default(),
        );
        let loaders = dir.path().join("loaders");
        std::fs::create_dir(&loaders).unwrap();
        std::fs::write(loaders.join("snponly.efi"), noise(50_000, 9)).unwrap();
        let server = HttpServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = server.local_addr();
        let files = Files::new(
            cache.view(),
            tracker.clone(),
            clock.clone(),
            storage,
            Disks::new(
                cache.view(),
                tracker.clone(),
                Arc::new(Memory::new()),
                clock.clone(),
            ),
            FilesOptions {
                loader_dirs: vec![loaders],
                http_port: address.port(),
                ..FilesOptions::default()
            },
        );
        let metrics = HttpMetrics::default();
        let mut registry = Registry::with_prefix("dls");
        metrics.register(&mut registry);
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(server.run(files.clone(), metrics, limits, cancel.clone()));
        tokio::spawn({
            let (tracker, cancel) = (tracker.clone(), cancel.clone());
            async move { tracker.run(cancel).await }
        });
        Self {
            dir,
            database,
            catalog,
            cache,
            tracker,
            files,
            clock,
            address,
            image,
            cancel,
            serving: Some(serving),
            registry,
        }
    }

    pub(crate) fn loaders(&self) -> std::path::PathBuf {
        self.dir.path().join("loaders")
    }

    /// What is in a file of the image.
    pub(crate) fn bytes_of(&self, role: FileRole, position: i32) -> Vec<u8> {
        let file = self.image.file(role, position).unwrap();
        let root = self.dir.path().join("storage");
        std::fs::read(Path::new(&root).join(&file.path)).unwrap()
    }

    /// A machine asks for an address and a loader, and gets both.
    pub(crate) fn power_on(&self, n: u8, address: Ipv4Addr) -> OpenAttempt {
        let context = Context {
            client_ip: Some(address),
            server_ip: Some(Ipv4Addr::LOCALHOST),
            ..Context::default()
        };
        let (speaker, loader) = (Speaker::Rom, Some("snponly.efi".to_owned()));
        for what in [
            Evidence::Discover(speaker),
            Evidence::Acknowledged {
                speaker,
                address: Some(address),
                loader,
            },
        ] {
            self.tracker.observe(Observation {
                mac: mac(n),
                at: self.clock.now(),
                what,
                context: context.clone(),
            });
        }
        self.tracker.open_attempt(mac(n)).unwrap()
    }

    pub(crate) fn token(&self, id: Uuid) -> String {
        BootToken::make(self.cache.get().site_key(), id).reveal()
    }

    /// `/b/ID.TOKEN/ITEM`.
    pub(crate) fn path(&self, id: Uuid, item: &str) -> String {
        format!("/b/{}.{}/{item}", id.simple(), self.token(id))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All metrics as text.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Stages and details of a boot, in order, once `enough` is satisfied.
    pub(crate) async fn timeline(&self, id: Uuid, enough: impl Fn(&str) -> bool) -> String {
        let query =
            format!("select stage, detail from boot_events where session_id = '{id}' order by id");
        let database = self.database.clone();
        let read = move || database.query(&query);
        eventually(&format!("the timeline of {id}"), read, enough).await
    }
}

/// Reads until it is enough.
pub(crate) async fn eventually(
    what: &str,
    read: impl Fn() -> String + Clone + Send + 'static,
    enough: impl Fn(&str) -> bool,
) -> String {
    let mut last = String::new();
    for _ in 0..200 {
        last = tokio::task::spawn_blocking(read.clone()).await.unwrap();
        if enough(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} stays\n{last}");
}

async fn make_image(storage: &Directory, clock: &Clock) -> Image {
    let id = Uuid::new_v4();
    let files = vec![
        store(storage, id, FileRole::Kernel, 0, &noise(KERNEL_BYTES, 1)).await,
        store(storage, id, FileRole::Initrd, 0, &noise(INITRD_BYTES, 2)).await,
    ];
    Image {
        id,
        name: "test-os".into(),
        description: None,
        os_type: None,
        size_bytes: files.iter().map(|f| f.size_bytes).sum(),
        format: ImageFormat::Raw,
        kind: ImageKind::Kernel,
        path: format!("images/{id}"),
        zfs_dataset: None,
        cmdline: "console=ttyS0".into(),
        boot_method: BootMethod::San,
        sha256: None,
        source_format: None,
        phone_home: PhoneHome::Auto,
        tags: None,
        is_template: false,
        parent_image_id: None,
        created_at: clock.now(),
        updated_at: clock.now(),
        files,
    }
}

fn make_client(n: u8, image: Option<Uuid>, clock: &Clock) -> Client {
    Client {
        id: Uuid::new_v4(),
        mac_address: mac(n),
        more_macs: vec![],
        hostname: format!("pc-{n}"),
        ip_address: None,
        assigned_image_id: image,
        boot_mode: BootMode::Uefi,
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: Some("quiet".into()),
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: clock.now(),
        updated_at: clock.now(),
        last_boot_at: None,
        boot_count: 0,
    }
}
