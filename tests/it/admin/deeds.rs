//! Everything that the server does in several steps, and a catalog with a store to do it in: in
//! files, or on ZFS. Both test programs that kill the server at its named steps have it.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "each test program takes what it needs, and in a machine of its own it is told where that lies"
)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dls::model::{BootMethod, Client, Image, ImageKind};
use dls::steps::Step;
use dls::storage::{Access, DiskStore, Durability, HoldTag, SnapshotId, Storage, Volume, mend};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::process::{Server, answer, part};
use crate::support::{self, TestDb, state_dir};

/// Bytes of a disk.
pub(super) const SIZE: u64 = 1 << 20;

/// Something that is done in several steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Import,
    Kernel,
    AddFiles,
    DropFiles,
    Copy,
    Delete,
    Retire,
    Publish,
    Reset,
    Discard,
    Adopt,
}

/// Which deed reaches a step, and whether it is done once the server that died there has
/// started again; else all is as it was before. A step without an entry here does not compile.
pub(super) const fn deed(step: Step) -> (Deed, bool) {
    match step {
        Step::ImportBegun
        | Step::ImportConverted
        | Step::ImportSnapshotted
        | Step::ImportStored
        | Step::ImportSettled => (Deed::Import, true),
        Step::KernelBegun | Step::KernelPlaced => (Deed::Kernel, false),
        Step::KernelStored => (Deed::Kernel, true),
        Step::FilesBegun | Step::FilesPlaced => (Deed::AddFiles, false),
        Step::FilesStored => (Deed::AddFiles, true),
        Step::DropBegun => (Deed::DropFiles, false),
        Step::DropStored => (Deed::DropFiles, true),
        Step::CopyBegun | Step::CopyCloned | Step::CopySnapshotted | Step::CopyLinked => {
            (Deed::Copy, false)
        }
        Step::CopyStored => (Deed::Copy, true),
        Step::DeleteBegun => (Deed::Delete, false),
        Step::DeleteRowGone | Step::EraseDiskGone | Step::EraseFilesGone => (Deed::Delete, true),
        Step::RetireBegun => (Deed::Retire, false),
        Step::RetireRowGone | Step::EraseSnapshotGone => (Deed::Retire, true),
        Step::PublishBegun | Step::PublishFrozen | Step::PublishCloned | Step::PublishWhole => {
            (Deed::Publish, false)
        }
        Step::PublishStored => (Deed::Publish, true),
        Step::ResetFreed => (Deed::Reset, false),
        Step::ResetBegun | Step::ResetGone => (Deed::Reset, true),
        Step::DiscardReset => (Deed::Discard, true),
        Step::AdoptBegun | Step::AdoptWhole => (Deed::Adopt, false),
        Step::AdoptStored => (Deed::Adopt, true),
    }
}

/// A catalog and a store that agree.
pub(super) struct House {
    pub(super) db: TestDb,
    pub(super) dir: tempfile::TempDir,
    /// Where the disks are; none: in files.
    dataset: Option<String>,
}

/// An image with a client, for deeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject {
    /// Part of the names of all that is its own.
    pub(super) number: u32,
    pub(super) image: Uuid,
    pub(super) client: Uuid,
}

impl Subject {
    pub(super) fn name(&self) -> String {
        format!("debian-{}", self.number)
    }

    pub(super) const fn disk(&self) -> Volume {
        Volume::Personal {
            client: self.client,
            image: self.image,
        }
    }
}

fn mark(store: &dyn Storage, volume: Volume, mark: &[u8]) {
    let disk = store.open(volume, Access::Write).unwrap();
    disk.write_at(0, mark, Durability::Fua).unwrap();
}

impl House {
    /// With nothing in it; the dataset must be there.
    pub(super) async fn empty(dataset: Option<String>) -> Self {
        let house = Self {
            db: TestDb::new().await,
            dir: state_dir(),
            dataset,
        };
        std::fs::create_dir_all(house.storage()).unwrap();
        house
    }

    /// On a database and a dataset that are there.
    pub(super) fn on(db: TestDb, dataset: String) -> Self {
        Self {
            db,
            dir: state_dir(),
            dataset: Some(dataset),
        }
    }

    /// In files, with one subject.
    pub(super) async fn new() -> (Self, Subject) {
        let house = Self::empty(None).await;
        let subject = house.stock(&*house.store(), 1).await;
        (house, subject)
    }

    pub(super) fn storage(&self) -> PathBuf {
        self.dir.path().join("state/storage")
    }

    pub(super) fn store(&self) -> Box<dyn Storage> {
        match &self.dataset {
            None => Box::new(DiskStore::open(&self.storage(), 1 << 20).unwrap()),
            Some(dataset) => on_zfs(dataset, &self.storage()),
        }
    }

    /// What its server's configuration says of the store.
    pub(super) fn tables(&self) -> String {
        let on_zfs =
            |dataset: &String| format!("[storage]\nbackend = \"zfs\"\ndataset = {dataset:?}\n");
        self.dataset.as_ref().map(on_zfs).unwrap_or_default()
    }

    /// Its server, with further arguments.
    pub(super) fn begin(&self, more: &[&str]) -> Server {
        Server::begin(&self.db.url, self.dir.path(), &self.tables(), more)
    }

    async fn image(&self, store: &dyn Storage, number: u32) -> Uuid {
        let image = Image {
            kind: ImageKind::Disk,
            boot_method: BootMethod::San,
            files: vec![],
            size_bytes: i64::try_from(SIZE).unwrap(),
            ..support::image(&format!("debian-{number}"))
        };
        let catalog = self.db.catalog().await;
        catalog.save_image_metadata(&image).await.unwrap();
        catalog.close().await;
        store.create(Volume::Image(image.id), SIZE).unwrap();
        mark(store, Volume::Image(image.id), b"base");
        store.snapshot(&SnapshotId::base(image.id)).unwrap();
        image.id
    }

    /// The disk image `debian-N` whose client mends it, on a disk that the version `v2` was made
    /// from; its version `v3` stands on its own feet (on ZFS the first one's only).
    pub(super) async fn stock(&self, store: &dyn Storage, number: u32) -> Subject {
        let image = self.image(store, number).await;
        let client = Client {
            assigned_image_id: Some(image),
            ..support::client(number)
        };
        let subject = Subject {
            number,
            image,
            client: client.id,
        };
        let catalog = self.db.catalog().await;
        catalog.save_client_config(&client).await.unwrap();
        let begun = catalog.begin_maintenance(client.id, image, None);
        assert!(begun.await.unwrap());
        let (own, base) = (subject.disk(), SnapshotId::base(image));
        store.clone_volume(&base, own).unwrap();
        store.hold(&base, HoldTag::Clone(own)).unwrap();
        mark(store, own, b"mend");
        // A zvol takes its time to be made in an emulated machine.
        let names = match &self.dataset {
            Some(_) if number > 1 => &["v2"][..],
            _ => &["v2", "v3"],
        };
        for name in names {
            let id = Uuid::new_v4();
            let from = SnapshotId {
                volume: own,
                name: mend::version_snapshot(id).unwrap(),
            };
            store.snapshot(&from).unwrap();
            store.clone_volume(&from, Volume::Image(id)).unwrap();
            store.snapshot(&SnapshotId::base(id)).unwrap();
            if *name == "v3" {
                let never = CancellationToken::new();
                store
                    .promote(Volume::Image(id), &mut |_| {}, &never)
                    .unwrap();
            }
            catalog
                .add_version(&support::version(id, image, name))
                .await
                .unwrap();
        }
        mark(store, own, b"more");
        catalog.close().await;
        subject
    }

    /// An image with a disk of a client whose row is lost.
    pub(super) async fn stock_lost(&self, store: &dyn Storage, number: u32) -> Subject {
        let subject = Subject {
            number,
            image: self.image(store, number).await,
            client: Uuid::new_v4(),
        };
        let (own, base) = (subject.disk(), SnapshotId::base(subject.image));
        store.clone_volume(&base, own).unwrap();
        store.hold(&base, HoldTag::Clone(own)).unwrap();
        mark(store, own, b"mend");
        subject
    }

    /// A machine of the subject's that is on, by a boot that another server goes on with, so that
    /// it stays open; its disk.
    pub(super) async fn machine_on(&self, store: &dyn Storage, of: &Subject) -> Volume {
        let attempt = Uuid::now_v7();
        let sql = format!(
            "INSERT INTO boot_attempts (id, mac, client_id, server_id, started_at, last_stage, outcome, version_id)
            VALUES ('{attempt}', '{}', '{}', gen_random_uuid(), now(), 'up', 'open', '{}')",
            support::mac(of.number),
            of.client,
            of.image,
        );
        self.db.sql(&sql).await.unwrap();
        let (base, disk) = (SnapshotId::base(of.image), Volume::Session(attempt));
        store.clone_volume(&base, disk).unwrap();
        store.hold(&base, HoldTag::Clone(disk)).unwrap();
        disk
    }

    /// Whether the script has nothing to say, and what it says.
    pub(super) fn audit(&self) -> (bool, String) {
        let script = std::env::var_os("DLS_AUDIT");
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/audit.py");
        let script = script.unwrap_or_else(|| here.into());
        let mut python = Command::new("/usr/bin/python3");
        python.arg(script).args(["--psql", &self.db.url, "--store"]);
        python.arg(self.storage());
        if let Some(dataset) = &self.dataset {
            python.args(["--dataset", dataset]);
        }
        let done = python.output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (done.status.success(), said)
    }

    /// The names of all disks, without punctuation in their ids, as the files or ZFS have them.
    pub(super) fn disks(&self) -> Vec<String> {
        let Some(dataset) = &self.dataset else {
            let all = std::fs::read_dir(self.storage().join("disks/volumes")).unwrap();
            let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            return names
                .map(|name| name.trim_end_matches(".json").replace('-', ""))
                .collect();
        };
        let list = ["list", "-H", "-r", "-t", "volume", "-o", "name", dataset];
        let listed = Command::new("zfs").args(list).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let names = String::from_utf8(listed.stdout).unwrap();
        let below = |line: &str| line[dataset.len() + 1..].to_owned();
        names.lines().map(below).collect()
    }

    /// Whether a deed is done, as rows and the names of disks tell.
    pub(super) async fn is_done(&self, deed: Deed, of: &Subject, round: u32) -> bool {
        let count = async |sql: &str| {
            self.db
                .text(&format!("SELECT count(*) {sql}"))
                .await
                .unwrap()
        };
        let (image, client) = (of.image, of.client);
        let own = format!("personal.{}.{}", client.simple(), image.simple());
        let has_own = || self.disks().contains(&own);
        let named = async |name: String| count(&format!("FROM images WHERE name = '{name}'")).await;
        let files = format!("FROM image_files WHERE image_id = '{image}'");
        let mends = format!("FROM maintenance WHERE client_id = '{client}'");
        match deed {
            Deed::Import => named(format!("imported-{round}")).await == "1",
            Deed::Kernel => named(format!("kernel-{round}")).await == "1",
            Deed::AddFiles => count(&files).await == "2",
            Deed::DropFiles => count(&files).await == "0",
            Deed::Copy => named(format!("child-{round}")).await == "1",
            Deed::Delete => named(of.name()).await == "0",
            Deed::Retire => {
                let sql =
                    format!("FROM image_snapshots WHERE name = 'v2' AND image_id = '{image}'");
                count(&sql).await == "0"
            }
            Deed::Publish => {
                let sql = format!(
                    "FROM image_snapshots WHERE name = 'v9' AND stage = 'production' AND image_id = '{image}'"
                );
                let made = count(&sql).await == "1";
                assert_eq!(count(&mends).await == "0", made, "all of it or nothing");
                assert_eq!(!has_own(), made, "with the disk");
                made
            }
            Deed::Reset => !has_own(),
            Deed::Discard => {
                let ended = count(&mends).await == "0";
                assert_eq!(!has_own(), ended, "all of it or nothing");
                ended
            }
            Deed::Adopt => named(format!("saved-{round}")).await == "1",
        }
    }

    /// Until nothing is under way; false if the server ends meanwhile.
    pub(super) async fn rest(&self, server: &mut Server) -> bool {
        // An emulated machine is slow beside others.
        let patience = Duration::from_secs(if self.dataset.is_some() { 240 } else { 40 });
        let began = std::time::Instant::now();
        while began.elapsed() < patience {
            if server.child.try_wait().unwrap().is_some() {
                return false;
            }
            let folders = ["pending", "uploads", "staging"].map(|f| self.storage().join(f));
            let count = |folder: &PathBuf| Some(std::fs::read_dir(folder).ok()?.count());
            let left: Option<usize> = folders.iter().map(count).sum();
            if left == Some(0) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it does not come to rest: {}", server.log());
    }
}

#[cfg(feature = "zfs")]
fn on_zfs(dataset: &str, root: &std::path::Path) -> Box<dyn Storage> {
    use dls::storage::zfs::{Compression, Reserve, ZfsOptions, ZfsStore};

    let options = ZfsOptions {
        dataset: dataset.to_owned(),
        block: 16 * 1024,
        compression: Compression::Off,
        reserve: Reserve::Nothing,
    };
    Box::new(ZfsStore::open(options, root).unwrap())
}

#[cfg(not(feature = "zfs"))]
fn on_zfs(_: &str, _: &std::path::Path) -> Box<dyn Storage> {
    panic!("built without ZFS")
}

fn files() -> Form {
    let initrd: Part = part(b"the initrd");
    Form::new()
        .part("kernel", part(b"the kernel"))
        .part("initrd", initrd)
}

/// An answer, if the server lived to give one.
pub(super) async fn ask(
    server: &Server,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Option<(u16, Value)> {
    let mut request = server.request(method, path);
    if let Some(body) = body {
        request = request.json(&body);
    }
    Some(answer(request.send().await.ok()?).await)
}

/// Asks for a deed; new things get the round's number. The answer, if the server lived to give one.
pub(super) async fn perform(
    server: &Server,
    deed: Deed,
    of: &Subject,
    round: u32,
) -> Option<(u16, Value)> {
    let client = format!("/api/v1/clients/{}", of.client);
    let debian = format!("/api/v1/images/{}", of.name());
    let send = async |form: Form, path: &str| {
        let request = server.request(Method::POST, path).multipart(form);
        Some(answer(request.send().await.ok()?).await)
    };
    let with_files = async || {
        let (status, body) = send(files(), &format!("{debian}/files")).await?;
        assert!(status == 201 || status == 409, "{status} {body}");
        Some(())
    };
    match deed {
        Deed::Import => {
            let path = format!("/api/v1/images/imported-{round}/content");
            let request = server.request(Method::PUT, &path);
            let sent = request.body(vec![7_u8; 300 * 1024]).send().await;
            Some(answer(sent.ok()?).await)
        }
        Deed::Kernel => {
            let image = json!({"name": format!("kernel-{round}")});
            let form = files().text("image", image.to_string());
            send(form, "/api/v1/images").await
        }
        Deed::AddFiles => send(files(), &format!("{debian}/files")).await,
        Deed::DropFiles => {
            with_files().await?;
            ask(server, Method::DELETE, &format!("{debian}/files"), None).await
        }
        Deed::Copy => {
            with_files().await?;
            let body = Some(json!({"name": format!("child-{round}")}));
            ask(server, Method::POST, &format!("{debian}/clone"), body).await
        }
        Deed::Delete => {
            let path = format!("{debian}?force=true&discard_disks=true");
            ask(server, Method::DELETE, &path, None).await
        }
        Deed::Retire => {
            let path = format!("{debian}/snapshots/v2");
            ask(server, Method::DELETE, &path, None).await
        }
        Deed::Publish => {
            let path = format!("{client}/maintenance/publish");
            ask(server, Method::POST, &path, Some(json!({"name": "v9"}))).await
        }
        Deed::Reset => ask(server, Method::DELETE, &format!("{client}/disk"), None).await,
        Deed::Discard => {
            let path = format!("{client}/maintenance");
            ask(server, Method::DELETE, &path, None).await
        }
        Deed::Adopt => {
            let (_, looked) = ask(server, Method::GET, "/api/v1/doctor/storage", None).await?;
            let mut found = looked["findings"].as_array().unwrap().iter();
            let finding = found
                .find(|f| f["finding"] == "disk-without-client")
                .unwrap();
            let body = json!({"repair": [finding["id"]], "name": format!("saved-{round}")});
            let path = "/api/v1/doctor/storage/repair";
            ask(server, Method::POST, path, Some(body)).await
        }
    }
}

/// Removes, by the server, the one disk that an adoption has left.
pub(super) async fn remove_found(server: &Server) {
    let (_, found) = server.get("/api/v1/doctor/storage").await;
    let body = json!({"remove": [found["findings"][0]["id"]]});
    let path = "/api/v1/doctor/storage/repair";
    let asked = ask(server, Method::POST, path, Some(body)).await;
    assert_eq!(asked.unwrap().1["findings"], json!([]));
}
