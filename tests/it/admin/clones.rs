//! What machines write to their copies of an image: how much they may, over NBD and iSCSI; what
//! versions differ in; and persistent disks that begin anew. By HTTP, by the real `dls` and in SQL.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dls::boot::disks::{DiskDoor, Disks};
use dls::boot::token::{chap_name, export_name};
use dls::export::iscsi::{IscsiLimits, IscsiMetrics, IscsiServer};
use dls::export::nbd::{NbdLimits, NbdMetrics, NbdServer};
use dls::model::{BootMethod, DiskIdentity, Image, ImageKind};
use dls::storage::{Access, BlockDevice, BlockError, Durability, SnapshotId, Volume};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli::{failed, json as said_json, said};
use super::reset::{add, boot, log_in};
use super::versions::on;
use super::world::{World, blamed};
use crate::support;

const MIB: u64 = 1 << 20;

/// A world with the disk image `debian` of that many bytes, all of them 1, with a tracker that
/// writes, a cache that follows and a keeper.
async fn world(size: u64) -> World {
    let world = World::new().await;
    let image = Image {
        kind: ImageKind::Disk,
        boot_method: BootMethod::San,
        files: vec![],
        size_bytes: i64::try_from(size).unwrap(),
        ..support::image("debian")
    };
    world.catalog.save_image_metadata(&image).await.unwrap();
    world.cache.refresh().await.unwrap();
    let volume = Volume::Image(image.id);
    world.disks.create(volume, size).unwrap();
    let disk = world.disks.open(volume, Access::Write).unwrap();
    let ones = vec![1; usize::try_from(size).unwrap()];
    disk.write_at(0, &ones, Durability::Fua).unwrap();
    drop(disk);
    world.disks.snapshot(&SnapshotId::base(image.id)).unwrap();
    let (tracker, cancel) = (world.tracker.clone(), world.cancel.clone());
    tokio::spawn(async move { tracker.run(cancel).await });
    let (cache, cancel) = (world.cache.clone(), world.cancel.clone());
    tokio::spawn(async move { cache.follow(cancel).await });
    let (disks, changed, cancel) = (
        world.boot_disks.clone(),
        world.cache.watch(),
        world.cancel.clone(),
    );
    tokio::spawn(async move { disks.follow_quotas(changed, cancel).await });
    world
}

fn image_id(world: &World) -> Uuid {
    world.cache.get().image_by_name("debian").unwrap().id
}

/// Both protocols over the world's disks: addresses of NBD and iSCSI.
async fn serve(world: &World) -> (SocketAddr, SocketAddr) {
    let door: Arc<dyn DiskDoor> = Arc::new(world.boot_disks.clone());
    let nbd = NbdServer::bind("127.0.0.1:0".parse().unwrap());
    let nbd = nbd.await.unwrap();
    let iscsi = IscsiServer::bind("127.0.0.1:0".parse().unwrap());
    let iscsi = iscsi.await.unwrap();
    let addresses = (nbd.local_addr(), iscsi.local_addr());
    let cancel = world.cancel.clone();
    tokio::spawn(nbd.run(
        door.clone(),
        NbdMetrics::default(),
        NbdLimits::default(),
        cancel.clone(),
    ));
    tokio::spawn(iscsi.run(
        door,
        IscsiMetrics::default(),
        IscsiLimits::default(),
        cancel,
    ));
    addresses
}

/// What qemu-io says of commands on a disk.
async fn qemu_io(disk: &str, commands: &[&str]) -> String {
    let mut io = Command::new("timeout");
    io.args(["--kill-after=5", "60", "qemu-io", "--image-opts"]);
    for command in commands {
        io.args(["-c", command]);
    }
    io.arg(disk).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || io.output().unwrap());
    let output = output.await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn over_nbd(world: &World, at: SocketAddr, boot: Uuid) -> String {
    let name = export_name(world.cache.get().site_key(), boot);
    format!(
        "driver=nbd,server.type=inet,server.host={},server.port={},export={name}",
        at.ip(),
        at.port()
    )
}

fn over_iscsi(world: &World, at: SocketAddr, boot: Uuid, n: u8) -> String {
    let mac = format!("52:54:00:00:00:{n:02x}").parse().unwrap();
    let owner = world.cache.get().client_by_mac(mac).unwrap().id;
    let name = chap_name(boot);
    let secret = world.boot_disks.secrets(&name).unwrap().machine;
    format!(
        "driver=iscsi,transport=tcp,portal={at},target={},lun=0,user={name},password={secret},\
         initiator-name=iqn.2026-11.test:qemu",
        DiskIdentity { owner }.iqn()
    )
}

/// The events of a boot that say so.
async fn told(world: &World, boot: Uuid) -> Option<String> {
    assert!(world.tracker.drain(Duration::from_secs(30)).await);
    let rows = format!(
        "SELECT string_agg(detail->>'limit_bytes', ',' ORDER BY id) FROM boot_events
         WHERE session_id = '{boot}' AND stage = 'disk_quota'"
    );
    world.db.text(&rows).await
}

/// Tries for a while.
async fn soon(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never {what}");
}

const FULL: &str = "No space left on device";

#[tokio::test(flavor = "multi_thread")]
async fn a_runaway_writer_is_held_and_nobody_else() {
    let world = world(64 * MIB).await;
    for n in 1..=3 {
        add(&world, n, None).await;
    }
    let set = said(&world, &["disk", "quota", "--image", "debian", "4MiB"]).await;
    assert_eq!(set, "machines may write 4.0 MiB to a copy of debian\n");
    let (nbd, iscsi) = serve(&world).await;
    let (one, two) = (boot(&world, 1), boot(&world, 2));
    let disks = [
        (one, over_nbd(&world, nbd, one)),
        (two, over_iscsi(&world, iscsi, two, 2)),
    ];
    for (boot, disk) in &disks {
        let said = qemu_io(disk, &["write -P 5 8M 4M", "flush"]).await;
        assert!(!said.contains("failed"), "{said}");
        assert_eq!(told(&world, *boot).await, None);
        // Another connection of the same boot.
        for more in ["write -P 6 0 4k", "write -P 6 20M 3M", "write -z 20M 512"] {
            let said = qemu_io(disk, &[more]).await;
            assert!(said.contains(FULL), "{more}: {said}");
        }
        let said = qemu_io(
            disk,
            &[
                "read -P 1 0 4k",
                "read -P 5 8M 4M",
                "write -P 7 9M 1M",
                "read -P 7 9M 1M",
                "flush",
            ],
        )
        .await;
        assert!(!said.contains("failed"), "what is its own: {said}");
        assert_eq!(told(&world, *boot).await.as_deref(), Some("4194304"));
        // What it discards is room for others.
        let said = qemu_io(disk, &["discard 10M 1M", "write -P 8 30M 1M"]).await;
        assert!(!said.contains("failed"), "{said}");
        let said = qemu_io(disk, &["write -P 8 31M 4k"]).await;
        assert!(said.contains(FULL), "{said}");
    }
    // The third one has all of its own.
    let three = boot(&world, 3);
    let said_three = qemu_io(&over_nbd(&world, nbd, three), &["write -P 3 0 4M"]).await;
    assert!(!said_three.contains("failed"), "{said_three}");

    // More room for one client: its machine has it at once.
    let more = said(&world, &["disk", "quota", "--client", "pc-01", "5MiB"]).await;
    assert_eq!(more, "pc-01 may write 5.0 MiB\n");
    let said_more = qemu_io(&disks[0].1, &["write -P 9 40M 1M"]).await;
    assert!(!said_more.contains("failed"), "{said_more}");
    let said_more = qemu_io(&disks[0].1, &["write -P 9 50M 4k"]).await;
    assert!(said_more.contains(FULL), "{said_more}");
    assert_eq!(told(&world, one).await.as_deref(), Some("4194304,5242880"));

    world.boot_disks.tidy(&world.catalog).await;
    let rows = "SELECT string_agg(concat_ws(' ', client, own, quota, over_quota), ',' ORDER BY client) FROM client_disks";
    assert_eq!(
        world.db.text(rows).await.as_deref(),
        Some("pc-01 5120 kB 5120 kB t,pc-02 4096 kB 4096 kB t,pc-03 4096 kB 4096 kB f")
    );
    let listed = said_json(&world, &["disk", "list", "pc-01"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let first = &listed[0];
    assert_eq!(
        (first["own_bytes"].as_u64(), first["quota_bytes"].as_u64()),
        (Some(5 * MIB), Some(5 * MIB))
    );
    assert_eq!(
        (&first["client"], &first["version"]),
        (&json!("pc-01"), &json!("base"))
    );
    let (used, refers) = (&first["used_bytes"], &first["referenced_bytes"]);
    assert!(used.as_u64().unwrap() >= 5 * MIB, "{first}");
    assert!(refers.as_u64().unwrap() >= 64 * MIB, "{first}");
    let table = said(&world, &["disk", "list"]).await;
    assert!(
        table.contains("WRITTEN") && table.contains("5.0 MiB"),
        "{table}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_takes_hold_of_machines_that_run() {
    let world = world(64 * MIB).await;
    add(&world, 1, Some("persistent")).await;
    let runs = boot(&world, 1);
    let (line, disk) = log_in(&world, runs).unwrap();
    let write = |at: u64| disk.write_at(at * MIB, &vec![7; MIB as usize], Durability::Volatile);
    for at in 0..3 {
        write(at).unwrap();
    }
    // In psql: what was written before counts.
    let sql = "UPDATE images SET clone_quota_mb = 4 WHERE name = 'debian'";
    world.db.sql(sql).await.unwrap();
    let mut at = 3;
    soon("held", || {
        at += 1;
        matches!(write(at), Err(BlockError::NoSpace))
    })
    .await;
    write(1).unwrap();
    let sql = "UPDATE clients SET clone_quota_mb = 0";
    world.db.sql(sql).await.unwrap();
    soon("let go", || write(50).is_ok()).await;
    let mine = said(&world, &["disk", "quota", "--client", "pc-01"]).await;
    assert_eq!(
        mine,
        "pc-01 may write any amount, whatever its image says\n"
    );
    let back = said(&world, &["disk", "quota", "--client", "pc-01", "image"]).await;
    assert_eq!(back, "pc-01 may write 4.0 MiB, as its image says\n");
    soon("held again", || write(51).is_err()).await;
    disk.flush().unwrap();
    drop(disk);
    dls::boot::disks::Line::close(&*line);

    // Another server finds the disk: it counts what the store says is the clone's own.
    let fresh = Disks::new(
        world.cache.view(),
        world.tracker.clone(),
        world.disks.clone(),
        world.clock.clone(),
    );
    let wire = crate::disks::Wire::new(true);
    let disk = fresh.attach(crate::disks::chap(runs, None, &wire)).unwrap();
    let write = |at: u64| disk.write_at(at * MIB, &vec![9; MIB as usize], Durability::Volatile);
    let mut at = 52;
    soon("held after a restart", || {
        at += 1;
        matches!(write(at), Err(BlockError::NoSpace))
    })
    .await;
    write(0).unwrap();
    let mut bytes = [0; 1];
    disk.read_at(60 * MIB, &mut bytes).unwrap();
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_judged() {
    let world = world(MIB).await;
    add(&world, 1, None).await;
    let image = "/api/v1/images/debian/clone-quota";
    let client = "/api/v1/clients/pc-01/clone-quota";
    assert_eq!(
        world.get(image).await,
        (200, json!({"image": "debian", "clone_quota_mb": null}))
    );
    let put = async |path: &str, quota: Value| {
        let body = json!({"clone_quota_mb": quota});
        world.ask("PUT", path, Some(body)).await
    };
    assert_eq!(put(image, json!(9)).await.1["clone_quota_mb"], 9);
    assert_eq!(
        world.get(client).await.1,
        json!({"client": "pc-01", "clone_quota_mb": null, "quota_bytes": 9 * MIB})
    );
    for (path, bad) in [(image, json!(0)), (image, json!("9")), (client, json!(-1))] {
        let (status, body) = put(path, bad).await;
        assert_eq!(
            (status, blamed(&body)),
            (400, vec!["clone_quota_mb".to_owned()]),
            "{body}"
        );
    }
    assert_eq!(
        put(image, Value::Null).await.1["clone_quota_mb"],
        Value::Null
    );
    for missing in [
        "/api/v1/images/nix/clone-quota",
        "/api/v1/clients/nix/clone-quota",
    ] {
        assert_eq!(put(missing, json!(1)).await.0, 404);
        assert_eq!(world.get(missing).await.0, 404);
    }
    assert_eq!(world.get("/api/v1/clones?client=nix").await.0, 404);
    let (code, why) = failed(&world, &["disk", "quota", "--image", "debian", "7 apples"]).await;
    assert!(code == 2 && why.contains("no size"), "{code} {why}");
    let refused = world
        .db
        .refused("UPDATE images SET clone_quota_mb = 0")
        .await;
    assert!(refused.contains("clone_quota_mb"), "{refused}");
}

fn shell(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
}

/// An ext4 file system of a folder, in a file of 32 MiB.
fn ext4(world: &World, name: &str, tree: &Path) -> PathBuf {
    let file = world.file(name, b"");
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(32 * MIB)
        .unwrap();
    let id = "11111111-2222-4333-8444-555555555555";
    let hash = format!("hash_seed={id}");
    let (tree, path) = (tree.to_str().unwrap(), file.to_str().unwrap());
    shell(
        "mke2fs",
        &["-q", "-t", "ext4", "-U", id, "-E", &hash, "-d", tree, path],
    );
    file
}

/// Makes a version `name` whose disk has the content of a file, as a draft that only differs
/// from the first one where the contents do.
async fn version(world: &World, name: &str, content: &Path) -> Uuid {
    let (id, image) = (Uuid::new_v4(), image_id(world));
    let volume = Volume::Image(id);
    world
        .disks
        .clone_volume(&SnapshotId::base(image), volume)
        .unwrap();
    let disk = world.disks.open(volume, Access::Write).unwrap();
    put(&*disk, content);
    drop(disk);
    world.disks.snapshot(&SnapshotId::base(id)).unwrap();
    let row = dls::model::Version {
        size_bytes: 0,
        referenced_bytes: 0,
        author: Some("anna".into()),
        created_at: world.clock.now(),
        ..crate::support::version(id, image, name)
    };
    world.catalog.add_version(&row).await.unwrap();
    world.cache.refresh().await.unwrap();
    id
}

fn put(disk: &dyn BlockDevice, content: &Path) {
    let bytes = std::fs::read(content).unwrap();
    let mut now = vec![0; 4096];
    for (block, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
        disk.read_at(at, &mut now).unwrap();
        if block != now {
            disk.write_at(at, block, Durability::Volatile).unwrap();
        }
    }
    disk.flush().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_differ_in_bytes_and_files() {
    let world = world(32 * MIB).await;
    let tree = world.storage().with_file_name("tree");
    std::fs::create_dir_all(tree.join("etc/old")).unwrap();
    std::fs::write(tree.join("etc/same"), vec![1; 10_000]).unwrap();
    std::fs::write(tree.join("etc/grown"), "short").unwrap();
    std::fs::write(tree.join("etc/old/gone"), "gone").unwrap();
    let old = ext4(&world, "old.img", &tree);
    std::fs::remove_dir_all(tree.join("etc/old")).unwrap();
    std::fs::write(tree.join("etc/grown"), "much longer than it was").unwrap();
    std::fs::write(tree.join("etc/new one"), vec![3; 100_000]).unwrap();
    let new = ext4(&world, "new.img", &tree);
    version(&world, "one", &old).await;
    version(&world, "two", &new).await;

    let (a, b) = (std::fs::read(&old).unwrap(), std::fs::read(&new).unwrap());
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() as u64;
    let path = "/api/v1/images/debian/snapshots/one/diff?to=two";
    let (status, told) = world.get(path).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["changed_bytes"], differ);
    let compared = told["compared_bytes"].as_u64().unwrap();
    assert!(compared >= differ, "{compared}");
    assert_eq!((&told["from"], &told["to"]), (&json!("one"), &json!("two")));
    let part = &told["partitions"][0];
    assert_eq!(
        (&part["number"], &part["holds"]),
        (&json!(0), &json!("ext4"))
    );
    assert_eq!(part["changed_bytes"], differ);
    let files = part["files"]["list"].as_array().unwrap();
    let named: Vec<String> = files
        .iter()
        .map(|f| {
            format!(
                "{} {}",
                f["change"].as_str().unwrap(),
                f["path"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        named,
        [
            "changed /etc/grown",
            "added /etc/new one",
            "removed /etc/old"
        ]
    );
    assert_eq!(part["files"]["complete"], true);

    let text = said(&world, &["snapshot", "diff", "debian", "one", "two"]).await;
    for expected in [
        "1 added, 1 removed, 1 changed",
        "+ /etc/new one",
        "- /etc/old",
        "ext4",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Without a second one against production; of that nothing is known but ranges.
    let text = said(&world, &["snapshot", "diff", "debian", "two"]).await;
    assert!(
        text.contains("which files these are is told of ext4 only"),
        "{text}"
    );
    let same = said_json(&world, &["snapshot", "diff", "debian", "two", "two"]).await;
    assert_eq!(
        (&same["changed_bytes"], &same["compared_bytes"]),
        (&json!(0), &json!(0))
    );
    let (code, why) = failed(&world, &["snapshot", "diff", "debian", "one", "three"]).await;
    assert!(
        code == 3 && why.contains("no version `three`"),
        "{code} {why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_disk_begins_anew_once_it_was_said_what_is_lost() {
    let world = world(16 * MIB).await;
    add(&world, 1, Some("persistent")).await;
    let (code, why) = failed(&world, &["client", "rebase", "pc-01"]).await;
    assert!(
        code == 4 && why.contains("no persistent disk"),
        "{code} {why}"
    );
    let first = on(&world, 1);
    let old_boot = boot_of(&world);
    first
        .disk
        .write_at(MIB, &[7; 5000], Durability::Fua)
        .unwrap();
    // Written, and the same as before.
    first
        .disk
        .write_at(2 * MIB, &[1; 9000], Durability::Fua)
        .unwrap();
    world.boot_disks.tidy(&world.catalog).await;
    let content = world.file("two.img", &vec![2; 16 << 20]);
    let two = version(&world, "two", &content).await;
    let path = "/api/v1/clients/pc-01/disk/rebase";
    let (status, plan) = world.get(&format!("{path}?to=two")).await;
    assert_eq!(status, 200, "{plan}");
    assert_eq!(plan["lost"]["changed_bytes"], 5000);
    assert_eq!(
        (&plan["from"], &plan["to"], &plan["done"]),
        (&json!("base"), &json!("two"), &json!(false))
    );
    assert!(plan["since"].is_string(), "{plan}");
    let body = json!({"to": "two"});
    let (status, refused) = world.ask("POST", path, Some(body)).await;
    assert_eq!(status, 409, "{refused}");
    assert_eq!(
        refused["error"],
        "pc-01: the machine has its disk open: shut it down first"
    );
    let mut byte = [0];
    first.disk.read_at(MIB, &mut byte).unwrap();
    assert_eq!(byte, [7], "and nothing has happened to it");
    first.off(&world).await;

    // A version that was made from it lives on.
    let kept = [
        "snapshot",
        "create",
        "debian",
        "kept",
        "--from-client",
        "pc-01",
    ];
    said(&world, &kept).await;
    let text = said(&world, &["client", "rebase", "pc-01", "--to", "two"]).await;
    for expected in [
        "made from version base of debian",
        "4.9 KiB of 16.0 MiB differ",
        "--yes does it",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let found = on(&world, 1);
    found.disk.read_at(MIB, &mut byte).unwrap();
    assert_eq!(byte, [7], "it was only said");
    found.off(&world).await;
    let text = said(
        &world,
        &["client", "rebase", "pc-01", "--to", "two", "--yes"],
    )
    .await;
    assert!(
        text.contains("pc-01 begins with version two at its next boot"),
        "{text}"
    );
    let client = world.cache.get().clients().next().unwrap().id;
    let image = image_id(&world);
    let info = world
        .disks
        .info(Volume::Personal { client, image })
        .unwrap();
    assert_eq!(info.unwrap().origin, Some(SnapshotId::base(two)));
    // A boot that had the disk before does not get this one.
    assert!(log_in(&world, old_boot).is_err());
    let next = on(&world, 1);
    for at in [0, MIB, 2 * MIB] {
        next.disk.read_at(at, &mut byte).unwrap();
        assert_eq!(byte, [2]);
    }
    next.disk.write_at(0, &[3], Durability::Fua).unwrap();
    next.off(&world).await;
    let diff = said_json(&world, &["snapshot", "diff", "debian", "base", "kept"]).await;
    assert_eq!(diff["changed_bytes"], 5000);
    // By default the one that it follows.
    let (_, plan) = world.get(path).await;
    assert_eq!(
        (&plan["from"], &plan["to"]),
        (&json!("two"), &json!("base"))
    );
    assert_eq!(plan["lost"]["changed_bytes"], 1);
}

/// The boot that is open.
fn boot_of(world: &World) -> Uuid {
    let mac = "52:54:00:00:00:01".parse().unwrap();
    world.tracker.open_attempt(mac).unwrap().id
}
