//! An admin server of a test's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dls::admin::auth::{token_file, token_path};
use dls::admin::{AdminMetrics, AdminServer, DoctorMetrics, Handles, ImageLimits, Part};
use dls::boot::disks::Disks;
use dls::boot::session::Rules;
use dls::boot::tracker::{Caps, Tracker};
use dls::cache::Cache;
use dls::catalog::Catalog;
use dls::clock::Clock;
use dls::replicate::{Identity, Replication};
use dls::storage::{Directory, DiskStore, Pending, Storage, Uploads};
use dls::validate::Strictness;
use prometheus_client::registry::Registry;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use super::process::{answer, part};
use crate::support::{TestDb, state_dir};

pub(super) struct World {
    pub(super) db: TestDb,
    pub(super) catalog: Catalog,
    pub(super) cache: Cache,
    pub(super) tracker: Tracker,
    pub(super) disks: Arc<dyn Storage>,
    /// The same, as the machines that boot see them.
    pub(super) boot_disks: Disks,
    pub(super) clock: Clock,
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) cancel: CancellationToken,
    /// What `/readyz` is told of the listeners.
    pub(super) listeners_up: Arc<AtomicBool>,
    pub(super) serving: JoinHandle<()>,
    pub(super) http: reqwest::Client,
    dir: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Strictness::Strict).await
    }

    pub(super) async fn with(strictness: Strictness) -> Self {
        let db = TestDb::new().await;
        let catalog = db.catalog().await;
        let cache = Cache::open(catalog.clone()).await.unwrap();
        let clock = Clock::system();
        let tracker = Tracker::new(
            catalog.clone(),
            clock.clone(),
            Uuid::new_v4(),
            Rules::default(),
            Caps::default(),
        );
        let dir = state_dir();
        let storage = Directory::open(&dir.path().join("storage")).await.unwrap();
        let root = storage.root().to_owned();
        let (uploads, pending) = (Uploads::open(&root).unwrap(), Pending::open(&root).unwrap());
        let disks: Arc<dyn Storage> = Arc::new(DiskStore::open(&root, 1 << 20).unwrap());
        let boot_disks = Disks::new(cache.view(), tracker.clone(), disks.clone(), clock.clone())
            .with_journal(pending.clone());
        let token = token_file(dir.path()).unwrap();
        let mut registry = Registry::with_prefix("dls");
        let metrics = AdminMetrics::register(&mut registry);
        let doctor = DoctorMetrics::default();
        doctor.register(&mut registry);
        let listeners_up = Arc::new(AtomicBool::new(true));
        let up = listeners_up.clone();
        let server = AdminServer::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = server.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let replication = Replication::new(dls::replicate::Handles {
            server_id: Uuid::new_v4(),
            catalog: catalog.clone(),
            cache: cache.clone(),
            disks: disks.clone(),
            storage: storage.clone(),
            pending: pending.clone(),
            clock: clock.clone(),
            identity: Identity::open(dir.path()).unwrap(),
        })
        .unwrap();
        let handles = Handles {
            catalog: catalog.clone(),
            cache: cache.clone(),
            tracker: tracker.clone(),
            boot_disks: boot_disks.clone(),
            storage,
            disks: disks.clone(),
            uploads,
            pending: pending.clone(),
            replication,
            limits: ImageLimits {
                upload_bytes: 1 << 30,
                import_dir: Some(dir.path().join("import")),
            },
            clock: clock.clone(),
            token: token.clone(),
            registry: Arc::new(registry),
            metrics,
            doctor,
            readiness: Arc::new(move || {
                vec![Part {
                    name: "tftp".into(),
                    ready: up.load(Ordering::Relaxed),
                    detail: "0.0.0.0:69".into(),
                }]
            }),
            strictness,
        };
        let serving = tokio::spawn(server.run(handles, cancel.clone()));
        Self {
            db,
            catalog,
            cache,
            tracker,
            disks,
            boot_disks,
            clock,
            address,
            token: token.reveal().to_owned(),
            cancel,
            listeners_up,
            serving,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            dir,
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn token_path(&self) -> PathBuf {
        token_path(self.dir.path())
    }

    pub(super) fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    /// A file for uploads.
    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A request without token.
    pub(super) fn bare(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.http.request(method, self.url(path))
    }

    pub(super) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.token)
    }

    /// Status and JSON of an answer; null where there is no body.
    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request.send().await.unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, None).await
    }

    /// Uploads an image with a kernel and an initrd.
    pub(super) async fn add_image(&self, name: &str) -> Value {
        let form = reqwest::multipart::Form::new()
            .text("image", serde_json::json!({"name": name}).to_string())
            .part("kernel", part(b"the kernel"))
            .part("initrd", part(b"the initrd"));
        let request = self.request("POST", "/api/v1/images").multipart(form);
        let (status, body) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 201, "{body}");
        body
    }

    /// Every file below the storage root.
    pub(super) fn stored(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        for below in ["images", "staging"] {
            let dir = self.storage().join(below);
            if dir.is_dir() {
                walk(&dir, &mut found);
            }
        }
        found.sort();
        found
    }
}

/// Fields that an answer blames.
pub(super) fn blamed(body: &Value) -> Vec<String> {
    let details = body["details"].as_array().cloned().unwrap_or_default();
    details
        .iter()
        .map(|d| d["field"].as_str().unwrap().to_owned())
        .collect()
}
