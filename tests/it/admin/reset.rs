//! What becomes of a client's disk: clean at each boot or kept, as its row says, and thrown away
//! on demand. By HTTP and by the real `dls`, with machines that boot.

use std::sync::Arc;

use dls::boot::disks::{Attachment, DiskDoor, Line, NoDisk};
use dls::boot::session::{Context, Evidence, Observation, Speaker};
use dls::model::{BootMethod, DiskMode, Image, ImageKind, MacAddr};
use dls::storage::{Access, BlockDevice, Durability, SnapshotId, Volume};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli::{failed, json, said};
use super::world::{World, blamed};
use crate::disks::{Wire, chap};
use crate::support;

const SIZE: u64 = 1 << 20;

/// A world with the disk image `debian`, on which `base` is written.
pub(super) async fn world() -> World {
    let world = World::new().await;
    let image = Image {
        kind: ImageKind::Disk,
        boot_method: BootMethod::San,
        files: vec![],
        size_bytes: i64::try_from(SIZE).unwrap(),
        ..support::image("debian")
    };
    world.catalog.save_image_metadata(&image).await.unwrap();
    world.cache.refresh().await.unwrap();
    let volume = Volume::Image(image.id);
    world.disks.create(volume, SIZE).unwrap();
    let disk = world.disks.open(volume, Access::Write).unwrap();
    disk.write_at(0, b"base", Durability::Fua).unwrap();
    drop(disk);
    world.disks.snapshot(&SnapshotId::base(image.id)).unwrap();
    world
}

pub(super) async fn add(world: &World, n: u8, mode: Option<&str>) -> Value {
    let mut body = json!({
        "mac_address": format!("52:54:00:00:00:{n:02x}"), "hostname": format!("pc-{n:02}"),
        "assigned_image": "debian",
    });
    if let Some(mode) = mode {
        body["disk_mode"] = json!(mode);
    }
    let (status, made) = world.ask("POST", "/api/v1/clients", Some(body)).await;
    assert_eq!(status, 201, "{made}");
    made
}

/// A boot of that client, up to its script.
pub(super) fn boot(world: &World, n: u8) -> Uuid {
    let mac: MacAddr = format!("52:54:00:00:00:{n:02x}").parse().unwrap();
    let snapshot = world.cache.get();
    let client = snapshot.client_by_mac(mac).unwrap();
    let image = snapshot.image(client.assigned_image_id.unwrap()).unwrap();
    let see = |what| {
        let context = Context {
            client: Some((client.id, client.hostname.clone())),
            image: Some((image.id, image.name.clone())),
            phone_home: Some(image.phone_home),
            boot_method: Some(image.boot_method),
            ..Context::default()
        };
        world.tracker.observe(Observation {
            mac,
            at: world.clock.now(),
            what,
            context,
        })
    };
    see(Evidence::Discover(Speaker::Rom));
    see(Evidence::Script { unready: None }).unwrap()
}

/// A login of that boot; dropping both lets go of the disk.
pub(super) fn log_in(world: &World, boot: Uuid) -> Result<(Arc<Wire>, Attachment), NoDisk> {
    let line = Wire::new(true);
    let disk = world.boot_disks.attach(chap(boot, None, &line))?;
    line.hold(disk.clone());
    Ok((line, disk))
}

/// Boots, tells what it finds on its disk, and writes `mark` there; it is off afterwards.
pub(super) fn session(world: &World, n: u8, mark: &[u8; 4]) -> String {
    let (line, disk) = log_in(world, boot(world, n)).unwrap();
    let found = text(&disk);
    write(&disk, mark);
    drop(disk);
    line.close();
    found
}

pub(super) fn text(disk: &Attachment) -> String {
    let mut bytes = [0; 4];
    disk.read_at(0, &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn write(disk: &Attachment, what: &[u8; 4]) {
    disk.write_at(0, what, Durability::Volatile).unwrap();
}

fn personal(world: &World) -> usize {
    let all = world.disks.list().unwrap();
    let mine = |v: &&dls::storage::VolumeInfo| matches!(v.volume, Volume::Personal { .. });
    all.iter().filter(mine).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_disk_is_thrown_away_when_it_is_asked_for() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    add(&world, 2, Some("persistent")).await;
    let reset = async |name: &str| {
        let path = format!("/api/v1/clients/{name}/disk");
        world.ask("DELETE", &path, None).await
    };
    assert_eq!(reset("pc-01").await, (200, json!({"removed": 0})));
    assert_eq!(session(&world, 2, b"his."), "base");

    let runs = boot(&world, 1);
    let (line, disk) = log_in(&world, runs).unwrap();
    write(&disk, b"mine");
    let (status, body) = reset("pc-01").await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(
        body["error"],
        "pc-01: the machine has its disk open: shut it down first"
    );
    assert_eq!(text(&disk), "mine", "and nothing has happened to it");
    drop(disk);
    line.close();
    assert_eq!(session(&world, 1, b"more"), "mine");

    // By whichever name; twice is no error.
    assert_eq!(personal(&world), 2);
    let (line, disk) = log_in(&world, boot(&world, 1)).unwrap();
    drop(disk);
    line.close();
    let lost = world
        .tracker
        .open_attempt("52:54:00:00:00:01".parse().unwrap());
    let lost = lost.unwrap().id;
    assert_eq!(
        reset("52-54-00-00-00-01").await,
        (200, json!({"removed": 1}))
    );
    assert_eq!(reset("pc-01").await, (200, json!({"removed": 0})));
    // A boot that had it does not get another one under its feet; the next one is clean.
    assert_eq!(log_in(&world, lost).unwrap_err(), NoDisk::NotStored);
    assert_eq!(session(&world, 1, b"anew"), "base");
    assert_eq!(
        session(&world, 2, b"his."),
        "his.",
        "another's is untouched"
    );

    let (status, body) = reset("pc-09").await;
    assert_eq!(status, 404);
    assert_eq!(body["error"], "there is no client `pc-09`");
    let bare = world.bare("DELETE", "/api/v1/clients/pc-01/disk");
    assert_eq!(bare.send().await.unwrap().status(), 401);
    assert_eq!(
        session(&world, 1, b"more"),
        "anew",
        "a stranger resets nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_thrown_away_by_command_line() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    let reset = ["client", "reset-disk", "pc-01"];
    assert_eq!(said(&world, &reset).await, "pc-01 has no persistent disk\n");
    let (line, disk) = log_in(&world, boot(&world, 1)).unwrap();
    write(&disk, b"mine");
    let (code, error) = failed(&world, &reset).await;
    assert_eq!(
        (code, error.as_str()),
        (
            4,
            "dls: pc-01: the machine has its disk open: shut it down first\n"
        )
    );
    drop(disk);
    line.close();
    assert_eq!(
        said(&world, &reset).await,
        "pc-01 begins with a clean disk at its next boot\n"
    );
    assert_eq!(session(&world, 1, b"mine"), "base");
    assert_eq!(json(&world, &reset).await, json!({"removed": 1}));
    let (code, error) = failed(&world, &["client", "reset-disk", "pc-09"]).await;
    assert_eq!(
        (code, error.as_str()),
        (3, "dls: there is no client `pc-09`\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_follows_the_row_from_the_next_boot_on() {
    let world = world().await;
    let made = add(&world, 1, None).await;
    assert_eq!(made["disk_mode"], "ephemeral", "as long as nobody asks");
    assert_eq!(session(&world, 1, b"mine"), "base");
    let runs = boot(&world, 1);
    let (line, disk) = log_in(&world, runs).unwrap();
    assert_eq!(text(&disk), "base");
    write(&disk, b"runs");

    // By command line, while it runs: this boot goes on as it began.
    let set = ["client", "set", "pc-01", "--disk-mode", "persistent"];
    assert_eq!(json(&world, &set).await["disk_mode"], "persistent");
    let shown = said(&world, &["client", "show", "pc-01"]).await;
    assert!(shown.contains("persistent"), "{shown}");
    drop(disk);
    line.close();
    let (line, disk) = log_in(&world, runs).unwrap();
    assert_eq!(text(&disk), "runs");
    drop(disk);
    line.close();
    assert_eq!(personal(&world), 0);
    assert_eq!(session(&world, 1, b"kept"), "base");
    assert_eq!(session(&world, 1, b"kept"), "kept");

    // By HTTP, and back: what was kept is still there then.
    let runs = boot(&world, 1);
    let (line, disk) = log_in(&world, runs).unwrap();
    let path = "/api/v1/clients/pc-01";
    let body = json!({"disk_mode": "ephemeral"});
    let (status, changed) = world.ask("PATCH", path, Some(body)).await;
    assert_eq!((status, &changed["disk_mode"]), (200, &json!("ephemeral")));
    write(&disk, b"stay");
    drop(disk);
    line.close();
    assert_eq!(session(&world, 1, b"gone"), "base");
    assert_eq!(session(&world, 1, b"gone"), "base");
    let body = json!({"disk_mode": "persistent"});
    assert_eq!(world.ask("PATCH", path, Some(body)).await.0, 200);
    assert_eq!(session(&world, 1, b"stay"), "stay");
    // PUT sets all fields anew, this one too.
    let body = json!({"mac_address": "52:54:00:00:00:01", "hostname": "pc-01", "assigned_image": "debian"});
    let (status, put) = world.ask("PUT", path, Some(body)).await;
    assert_eq!((status, &put["disk_mode"]), (200, &json!("ephemeral")));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_disk_mode_is_refused_by_its_name() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    let allowed = "must be one of: ephemeral, persistent";
    let mode = || {
        let mac = "52:54:00:00:00:01".parse().unwrap();
        world.cache.get().client_by_mac(mac).unwrap().disk_mode
    };
    for (value, why) in [
        (json!("kept"), allowed),
        (json!("Persistent"), allowed),
        (json!(""), allowed),
        (json!(1), "must be text"),
        (json!(true), "must be text"),
        (json!(["persistent"]), "must be text"),
    ] {
        for (method, path) in [
            ("PATCH", "/api/v1/clients/pc-01"),
            ("POST", "/api/v1/clients"),
        ] {
            let mut body = json!({"disk_mode": value});
            if method == "POST" {
                body["mac_address"] = json!("52:54:00:00:00:02");
                body["hostname"] = json!("pc-02");
            }
            let (status, answer) = world.ask(method, path, Some(body)).await;
            assert_eq!(status, 400, "{method} {value}: {answer}");
            assert_eq!(blamed(&answer), ["disk_mode"], "{value}");
            let said = answer["details"][0].to_string();
            assert!(said.contains(why), "{value}: {said}");
        }
        assert_eq!(mode(), DiskMode::Persistent, "{value}");
    }
    assert_eq!(world.cache.get().clients().count(), 1);
    let set = ["client", "set", "pc-01", "--disk-mode", "kept"];
    let (code, error) = failed(&world, &set).await;
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("'kept' for '--disk-mode")
            && error.contains("possible values: ephemeral, persistent"),
        "{error}"
    );
    assert_eq!(mode(), DiskMode::Persistent);
}
