//! What the tests share: one private PostgreSQL cluster for the test process, a fresh database
//! for each test, and sample rows. The cluster dies with the process, however that ends.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test takes what it needs"
)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dls::catalog::embedded::{Embedded, choose_user};
use dls::catalog::{Catalog, CatalogOptions};
use dls::clock::Clock;
use dls::model::{
    Attempt, AttemptOutcome, BootMethod, BootMode, BootSession, Client, DiskMode, FileRole, Image,
    ImageFile, ImageFormat, ImageKind, Lease, LeaseState, MacAddr, NetworkRange, PhoneHome, Pool,
    RangeMode, Serve, SessionStatus, Stage, Timestamp, UnreadyAction, Version, VersionStage,
};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

/// A directory for a test that an unprivileged PostgreSQL can live in; gone afterwards.
pub(crate) fn state_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("dls-it-")
        .tempdir()
        .unwrap()
}

/// Ends a postmaster when this process ends, even by SIGKILL: a shell waits for our end of a
/// pipe to close. `remove`: a directory to delete after that.
pub(crate) fn die_with_us(pid: u32, remove: Option<&Path>) {
    use std::os::unix::process::CommandExt;

    // By then the number may be another process's: ours works in its data directory.
    let at = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let script = r#"cat >/dev/null
        ours() { [ "$(readlink /proc/"$1"/cwd)" = "$2" ]; }
        ours "$1" "$2" && kill -INT "$1"
        i=0; while ours "$1" "$2" && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
        [ -n "$3" ] && rm -rf "$3""#;
    let watch = Command::new("sh")
        .args(["-c", script, "sh", &pid.to_string()])
        .arg(at)
        .arg(remove.unwrap_or_else(|| Path::new("")))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    // The pipe stays open for as long as we live.
    std::mem::forget(watch);
}

struct Shared {
    url: String,
}

/// The cluster, with a migrated database to copy.
fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let dir: PathBuf = state_dir().keep();
            let url = runtime.block_on(async {
                let embedded = Embedded::start(&dir, choose_user().as_ref()).await.unwrap();
                die_with_us(embedded.pid(), Some(&dir));
                let url = embedded.url();
                let catalog = open(&url, Uuid::nil()).await;
                catalog.run_migrations().await.unwrap();
                catalog.close().await;
                // It goes on running; its lock is kept with it.
                std::mem::forget(embedded);
                url
            });
            std::mem::forget(runtime);
            Shared { url }
        })
        .join()
        .unwrap()
    })
}

/// Opens a catalog as a server.
pub(crate) async fn open(url: &str, server_id: Uuid) -> Catalog {
    let options = CatalogOptions {
        url: url.to_owned(),
        min_connections: 2,
        max_connections: 8,
        pool_timeout: Duration::from_secs(20),
        server_id,
    };
    Catalog::connect(&options, Duration::from_secs(30))
        .await
        .unwrap()
}

/// A database of a test's own.
pub(crate) struct TestDb {
    /// Its URL.
    pub(crate) url: String,
    /// For SQL as a person would type it in psql.
    pub(crate) pool: PgPool,
}

impl TestDb {
    /// A database with the whole schema.
    pub(crate) async fn new() -> Self {
        Self::make("TEMPLATE dls").await
    }

    /// A database with nothing in it.
    pub(crate) async fn empty() -> Self {
        Self::make("TEMPLATE template0").await
    }

    async fn make(how: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = tokio::task::spawn_blocking(|| shared().url.clone())
            .await
            .unwrap();
        let admin = PgPoolOptions::new()
            .max_connections(1)
            .connect(&url.replace("/dls?", "/postgres?"))
            .await
            .unwrap();
        admin
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name} {how}")))
            .await
            .unwrap();
        admin.close().await;
        let url = url.replace("/dls?", &format!("/{name}?"));
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect(&url)
            .await
            .unwrap();
        Self { url, pool }
    }

    /// A catalog on it, as some server.
    pub(crate) async fn catalog(&self) -> Catalog {
        self.catalog_of(Uuid::new_v4()).await
    }

    /// A catalog on it, as a given server.
    pub(crate) async fn catalog_of(&self, server_id: Uuid) -> Catalog {
        open(&self.url, server_id).await
    }

    /// Runs SQL; several statements are fine.
    pub(crate) async fn sql(&self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Runs SQL that must be refused; says by which constraint or with which code.
    pub(crate) async fn refused(&self, sql: &str) -> String {
        let error = self.sql(sql).await.expect_err(sql);
        let db = error
            .as_database_error()
            .unwrap_or_else(|| panic!("{sql}: {error}"));
        db.constraint()
            .map(str::to_owned)
            .unwrap_or_else(|| db.code().unwrap_or_default().into_owned())
    }

    /// One value as text.
    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(format!("SELECT ({sql})::text")))
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// Now, as PostgreSQL keeps it.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_timestamp_micros(Clock::system().now().timestamp_micros()).unwrap()
}

/// A MAC by number.
pub(crate) fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}

/// A client by number.
pub(crate) fn client(n: u32) -> Client {
    Client {
        id: Uuid::new_v4(),
        mac_address: mac(n),
        more_macs: vec![],
        hostname: format!("pc-{n:04}"),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: BootMode::Uefi,
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: now(),
        updated_at: now(),
        last_boot_at: None,
        boot_count: 0,
    }
}

/// Bytes that nothing makes smaller.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A draft.
pub(crate) fn version(id: Uuid, image_id: Uuid, name: &str) -> Version {
    Version {
        id,
        image_id,
        name: name.to_owned(),
        stage: VersionStage::Draft,
        ring: None,
        description: None,
        size_bytes: 4096,
        referenced_bytes: 1 << 20,
        author: None,
        from_client: None,
        created_at: now(),
        released_at: None,
        returned_at: None,
        reason: None,
        canary_at: None,
        good_boots: None,
    }
}

/// A kernel image.
pub(crate) fn image(name: &str) -> Image {
    let id = Uuid::new_v4();
    let file = |role: FileRole, position: i32| ImageFile {
        role,
        position,
        path: format!("images/{id}/{role}{position}"),
        sha256: "0".repeat(64),
        size_bytes: 1000,
    };
    Image {
        id,
        name: name.to_owned(),
        description: None,
        os_type: Some("debian-12".to_owned()),
        size_bytes: 3000,
        format: ImageFormat::Raw,
        kind: ImageKind::Kernel,
        path: format!("images/{id}"),
        zfs_dataset: None,
        cmdline: "console=ttyS0".to_owned(),
        boot_method: BootMethod::San,
        sha256: None,
        source_format: None,
        phone_home: PhoneHome::Auto,
        tags: Some(serde_json::json!({"site": "lab"})),
        is_template: false,
        parent_image_id: None,
        created_at: now(),
        updated_at: now(),
        files: vec![
            file(FileRole::Kernel, 0),
            file(FileRole::Initrd, 0),
            file(FileRole::Initrd, 1),
        ],
    }
}

/// `10.N.0.0/24` with a pool .100-.199.
pub(crate) fn range(n: u8) -> NetworkRange {
    NetworkRange {
        id: Uuid::new_v4(),
        name: format!("lab{n}"),
        network: format!("10.{n}.0.0/24").parse().unwrap(),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: vec![Pool {
            first: Ipv4Addr::new(10, n, 0, 100),
            last: Ipv4Addr::new(10, n, 0, 199),
        }],
        exclusions: vec![],
        gateway: Some(Ipv4Addr::new(10, n, 0, 1)),
        dns: vec![Ipv4Addr::new(10, n, 0, 1)],
        domain: Some("lab.example".to_owned()),
        search: vec!["lab.example".to_owned(), "example".to_owned()],
        ntp: vec![],
        mtu: Some(1500),
        routes: vec![],
        lease_seconds: 600,
        options: [(43, "0104c0a80001".to_owned())].into(),
    }
}

/// An active lease of ten minutes from now.
pub(crate) fn lease(range: &NetworkRange, last: u8, of: MacAddr) -> Lease {
    let [a, b, c, _] = range.network.network().octets();
    Lease {
        address: Ipv4Addr::new(a, b, c, last),
        range_id: range.id,
        mac: of,
        client_identifier: Some(vec![1, 2, 3]),
        hostname: None,
        state: LeaseState::Active,
        starts_at: now(),
        length_seconds: 600,
        relay_information: None,
    }
}

/// An open attempt.
pub(crate) fn attempt(of: &Client, server_id: Uuid) -> Attempt {
    Attempt {
        id: Uuid::now_v7(),
        mac: of.mac_address,
        smbios_uuid: None,
        client_id: Some(of.id),
        client_name: Some(of.hostname.clone()),
        image_name: None,
        server_id,
        range_id: None,
        arch: Some(dls::model::Arch::EfiX64),
        client_ip: None,
        boot_server_ip: None,
        started_at: now(),
        ended_at: None,
        last_stage: Stage::Discover,
        outcome: AttemptOutcome::Open,
        reason: None,
        disk_bytes_read: 0,
        disk_bytes_written: 0,
        version_id: None,
        version_name: None,
    }
}

/// The session of an attempt.
pub(crate) fn session(of: &Attempt, image_id: Uuid) -> BootSession {
    BootSession {
        id: of.id,
        client_id: of.client_id.unwrap(),
        image_id,
        started_at: of.started_at,
        ended_at: None,
        status: SessionStatus::Starting,
        boot_time_seconds: None,
        error_message: None,
        client_ip: Some(Ipv4Addr::new(10, 1, 0, 100)),
        boot_server_ip: Some(Ipv4Addr::new(10, 1, 0, 1)),
    }
}

/// True in the long runs: `DLS_TORTURE` is set.
#[expect(clippy::disallowed_methods, reason = "the switch of the long runs")]
pub(crate) fn torture() -> bool {
    std::env::var_os("DLS_TORTURE").is_some()
}
