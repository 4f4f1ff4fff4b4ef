//! Two server processes with one catalog, a state directory and a name each.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use dls::admin::auth::{read_token, token_path};
use dls::storage::{Access, DiskStore, Durability, SnapshotId, Storage, Volume};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Child;
use uuid::Uuid;

use crate::admin::process::{answer, start};
pub(super) use crate::support::noise;
use crate::support::{TestDb, state_dir};

pub(super) fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

/// A server process.
pub(super) struct Server {
    config: PathBuf,
    pub(super) state: PathBuf,
    base: String,
    /// Where other servers reach it.
    pub(super) replication: SocketAddr,
    child: Mutex<Option<Child>>,
    http: reqwest::Client,
}

impl Server {
    async fn new(db: &TestDb, dir: &Path, name: &str) -> Self {
        // Ports that were free a moment ago.
        let taken: Vec<TcpListener> = (0..6)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let at = |n: usize| taken[n].local_addr().unwrap();
        let user = nix::unistd::User::from_uid(nix::unistd::getuid())
            .unwrap()
            .unwrap();
        let state = dir.join("state");
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
        let text = format!(
            "state_dir = {state:?}\nuser = {:?}\nserver_name = {name:?}\n[database]\nurl = {:?}\n\
             [tftp]\nlisten = \"{}\"\n[http]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n\
             [iscsi]\nlisten = \"{}\"\n[nbd]\nlisten = \"{}\"\n[replication]\nlisten = \"{}\"\n",
            user.name,
            db.url,
            at(0),
            at(1),
            at(2),
            at(3),
            at(4),
            at(5)
        );
        let (base, replication) = (format!("http://{}", at(2)), at(5));
        drop(taken);
        let config = dir.join("dls.toml");
        std::fs::write(&config, text).unwrap();
        let server = Self {
            child: Mutex::new(Some(start(&config, &[]))),
            config,
            state,
            base,
            replication,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        };
        server.ready().await;
        server
    }

    async fn ready(&self) {
        for _ in 0..600 {
            let asked = self.http.get(format!("{}/readyz", self.base)).send().await;
            if let Ok(told) = asked
                && let Ok(told) = told.text().await
                && told.contains("\"ready\":true")
                && told.contains("\"degraded\":false")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not come up: {}", self.log());
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.config.with_file_name("log")).unwrap_or_default()
    }

    /// True if a line of its log has that.
    pub(super) fn logged(&self, text: &str) -> bool {
        plain(&self.log()).contains(text)
    }

    /// The numbers that follow a word in its log, in order.
    pub(super) fn numbers(&self, word: &str) -> Vec<u64> {
        let log = plain(&self.log());
        let found = log.match_indices(word).map(|(at, _)| {
            let rest = &log[at + word.len()..];
            let end = rest.find(|c: char| !c.is_ascii_digit());
            rest[..end.unwrap_or(rest.len())].parse().unwrap()
        });
        found.collect()
    }

    /// How much of an image's first version it has made durable, once that is more than
    /// before, or all.
    pub(super) async fn received(&self, image: &Value, before: u64) -> u64 {
        let note = format!("storage/replicas/{}.json", image["id"].as_str().unwrap());
        let mut through = 0;
        for _ in 0..3000 {
            let text = std::fs::read_to_string(self.state.join(&note)).unwrap_or_default();
            let note: Value = serde_json::from_str(&text).unwrap_or_default();
            through = note["through"].as_u64().unwrap_or(0);
            if through > before || note["through"] == note["size"] && !note.is_null() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        through
    }

    /// Ends it by SIGKILL.
    pub(super) async fn kill(&self) {
        let child = self.child.lock().unwrap().take();
        child.unwrap().kill().await.unwrap();
    }

    pub(super) async fn start(&self) {
        *self.child.lock().unwrap() = Some(start(&self.config, &[]));
        self.ready().await;
    }

    pub(super) async fn killed_and_started(&self) {
        self.kill().await;
        self.start().await;
    }

    /// Its store, after it was stopped.
    pub(super) async fn store_alone(&self) -> DiskStore {
        let child = self.child.lock().unwrap().take();
        let mut child = child.unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        child.wait().await.unwrap();
        DiskStore::open(&self.state.join("storage"), 1 << 20).unwrap()
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let token = read_token(&token_path(&self.state)).unwrap();
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(token.reveal())
    }

    pub(super) async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        answer(request.send().await.unwrap()).await
    }

    /// Imports a raw disk; gives the image.
    pub(super) async fn import(&self, name: &str, bytes: &[u8]) -> Value {
        let path = format!("/api/v1/images/{name}/content");
        let request = self.request(Method::PUT, &path).body(bytes.to_vec());
        let (status, told) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 202, "{told}");
        for _ in 0..600 {
            let path = format!("/api/v1/images/{name}");
            let (status, told) = self.ask(Method::GET, &path, Value::Null).await;
            if status == 200 {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} is not imported: {}", self.log());
    }

    /// Gives a disk image its kernel and initrd.
    pub(super) async fn add_files(&self, image: &str, kernel: &[u8], initrd: &[u8]) {
        let part = |bytes: &[u8]| reqwest::multipart::Part::bytes(bytes.to_vec()).file_name("file");
        let form = reqwest::multipart::Form::new()
            .part("kernel", part(kernel))
            .part("initrd", part(initrd));
        let path = format!("/api/v1/images/{image}/files");
        let request = self.request(Method::POST, &path).multipart(form);
        let (status, told) = answer(request.send().await.unwrap()).await;
        assert!(status < 300, "{told}");
    }

    pub(super) async fn replicate(&self, image: &str, version: &str, to: &str) -> (u16, Value) {
        let path = format!("/api/v1/images/{image}/replicas");
        self.ask(Method::POST, &path, json!({"to": to, "version": version}))
            .await
    }

    pub(super) async fn remove(&self, image: &str, version: &str, from: &str) -> (u16, Value) {
        let path = format!("/api/v1/images/{image}/replicas/{from}?version={version}");
        self.ask(Method::DELETE, &path, Value::Null).await
    }

    /// A version's content by export.
    pub(super) async fn content(&self, image: &str, version: &str) -> Vec<u8> {
        let path = format!("/api/v1/images/{image}/content?version={version}");
        let answer = self.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{}", self.log());
        answer.bytes().await.unwrap().to_vec()
    }

    /// What a test made in its store is the server's user's again.
    fn give_back(&self) {
        use std::os::unix::fs::{MetadataExt, chown};
        fn walk(path: &Path, uid: u32, gid: u32) {
            chown(path, Some(uid), Some(gid)).unwrap();
            if path.is_dir() {
                for entry in std::fs::read_dir(path).unwrap() {
                    walk(&entry.unwrap().path(), uid, gid);
                }
            }
        }
        let owner = std::fs::metadata(&self.state).unwrap();
        walk(&self.state.join("storage"), owner.uid(), owner.gid());
    }

    /// What lies in its store.
    pub(super) fn disks(&self) -> Vec<String> {
        let folder = self.state.join("storage/disks/volumes");
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// A log without the colours.
fn plain(log: &str) -> String {
    let mut text = String::new();
    let mut rest = log;
    while let Some(at) = rest.find('\x1b') {
        text.push_str(&rest[..at]);
        let after = &rest[at..];
        rest = after.find('m').map_or("", |end| &after[end + 1..]);
    }
    text.push_str(rest);
    text
}

/// Both, and their catalog.
pub(super) struct Pair {
    pub(super) a: Server,
    pub(super) b: Server,
    db: TestDb,
    _dir: tempfile::TempDir,
}

impl Pair {
    /// `one` and `two`, known to each other.
    pub(super) async fn new() -> Self {
        let (db, dir) = (TestDb::new().await, state_dir());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let a = Server::new(&db, &dir.path().join("a"), "one").await;
        let b = Server::new(&db, &dir.path().join("b"), "two").await;
        let pair = Self {
            a,
            b,
            db,
            _dir: dir,
        };
        let known = "SELECT count(*) FROM servers WHERE certificate_sha256 IS NOT NULL";
        pair.until(known, "2").await;
        pair
    }

    pub(super) async fn sql(&self, sql: &str) {
        self.db.sql(sql).await.unwrap();
    }

    pub(super) async fn text(&self, sql: &str) -> String {
        self.db.text(sql).await.unwrap_or_default()
    }

    /// Waits until a query says that.
    pub(super) async fn until(&self, sql: &str, expected: &str) {
        let mut last = String::new();
        for _ in 0..600 {
            last = self.text(sql).await;
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{sql}: {last}\nA:\n{}\nB:\n{}", self.a.log(), self.b.log());
    }

    /// The row of a version at a server, once it is in that state.
    pub(super) async fn replica(&self, version: &str, server: &str, state: &str) -> Value {
        let of = format!(
            "FROM image_replicas r JOIN servers s ON s.id = r.server_id JOIN image_snapshots v ON v.id = r.version_id
             WHERE v.name = '{version}' AND s.name = '{server}'"
        );
        self.until(&format!("SELECT r.state {of}"), state).await;
        let row = self.text(&format!("SELECT row_to_json(r) {of}")).await;
        serde_json::from_str(&row).unwrap()
    }

    /// Waits until a version's row at B says that so many bytes were sent, and all of them
    /// arrived: zeroes and what was there before are not among them.
    pub(super) async fn sent(&self, version: &str, bytes: usize) {
        let told = format!(
            "SELECT r.bytes_done || '/' || r.bytes_total FROM image_replicas r JOIN image_snapshots v ON v.id = r.version_id
             WHERE v.name = '{version}' AND r.from_server IS NOT NULL"
        );
        self.until(&told, &format!("{bytes}/{bytes}")).await;
    }

    /// Makes a version on A as a machine's mending does: a client's disk, written to, and
    /// kept. While A is down, for its store is its own.
    pub(super) async fn publish(&self, image: &Value, name: &str, changes: &[(usize, usize)]) {
        let id = image["id"].as_str().unwrap().parse::<Uuid>().unwrap();
        self.sql(&format!(
            "INSERT INTO clients (mac_address, hostname, assigned_image_id, disk_mode)
             VALUES ('52:54:00:00:00:01', 'pc-01', '{id}', 'persistent')"
        ))
        .await;
        let client = self.text("SELECT id FROM clients").await;
        let client = client.parse::<Uuid>().unwrap();
        let store = self.a.store_alone().await;
        let own = Volume::Personal { client, image: id };
        store.clone_volume(&SnapshotId::base(id), own).unwrap();
        let disk = store.open(own, Access::Write).unwrap();
        for (at, length) in changes {
            disk.write_at(*at as u64, &vec![7; *length], Durability::Volatile)
                .unwrap();
        }
        disk.flush().unwrap();
        drop((disk, store));
        self.a.give_back();
        self.a.start().await;
        let body = json!({"name": name, "from_client": "pc-01"});
        let (status, told) = self
            .a
            .ask(Method::POST, "/api/v1/images/debian/snapshots", body)
            .await;
        assert_eq!(status, 201, "{told}");
        self.replica(name, "one", "verified").await;
    }
}
