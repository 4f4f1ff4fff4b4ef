//! Catalog and store, compared: what is found, what is done about it, and that nothing is
//! destroyed that was not named.

use dls::storage::{Access, Durability, HoldTag, SnapshotId, Volume};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli::{self, said};
use super::reset::add;
use super::versions::{on, world};
use super::world::World;

const DOCTOR: &str = "/api/v1/doctor/storage";

async fn found(world: &World) -> Vec<String> {
    let (status, body) = world.get(DOCTOR).await;
    assert_eq!(status, 200, "{body}");
    let all = body["findings"].as_array().unwrap().iter();
    all.map(|f| f["id"].as_str().unwrap().to_owned()).collect()
}

async fn treat(world: &World, body: Value) -> Value {
    let path = format!("{DOCTOR}/repair");
    let (status, body) = world.ask("POST", &path, Some(body)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["failed"], json!([]), "{body}");
    body
}

fn disk(world: &World, volume: Volume) {
    world.disks.create(volume, 1 << 20).unwrap();
    let disk = world.disks.open(volume, Access::Write).unwrap();
    disk.write_at(0, b"kept", Durability::Fua).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_repaired_without_loss_and_destroyed_only_by_name() {
    let world = world().await;
    add(&world, 1, None).await;
    assert_eq!(found(&world).await, Vec::<String>::new());
    assert_eq!(
        said(&world, &["doctor", "storage"]).await,
        "catalog and store agree\n"
    );

    let image: Uuid = world.get("/api/v1/images/debian").await.1["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let (stray, other) = (Volume::Image(Uuid::new_v4()), Volume::Image(Uuid::new_v4()));
    disk(&world, stray);
    disk(&world, other);
    let lost = Volume::Personal {
        client: Uuid::new_v4(),
        image,
    };
    world
        .disks
        .clone_volume(&SnapshotId::base(image), lost)
        .unwrap();
    let idle = HoldTag::Clone(Volume::Session(Uuid::new_v4()));
    world.disks.hold(&SnapshotId::base(image), idle).unwrap();
    world
        .db
        .sql("UPDATE images SET size_bytes = 512")
        .await
        .unwrap();
    let files = world
        .storage()
        .join("images")
        .join(Uuid::new_v4().to_string());
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("kernel"), "x").unwrap();
    let all = found(&world).await;
    let kinds: Vec<&str> = all.iter().map(|id| id.split(':').next().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "disk-without-row",
            "disk-without-row",
            "files-without-row",
            "disk-without-client",
            "hold-without-clone",
            "size-differs"
        ]
    );
    let metrics = world.request("GET", "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains(r#"dls_storage_findings{finding="disk-without-row"} 2"#),
        "{metrics}"
    );
    let text = said(&world, &["doctor", "storage"]).await;
    assert!(text.contains("--repair adopts it as an image"), "{text}");
    assert!(text.contains("--remove destroys the disk"), "{text}");

    // Named as what it is, and as nothing else.
    let one = format!("disk-without-row:{stray}");
    let (status, body) = world
        .ask(
            "POST",
            &format!("{DOCTOR}/repair"),
            Some(json!({"repair": ["size-differs:x"]})),
        )
        .await;
    assert_eq!(status, 404, "{body}");
    treat(&world, json!({"repair": [one], "name": "found"})).await;
    let (_, adopted) = world.get("/api/v1/images/found").await;
    assert_eq!(
        Volume::Image(adopted["id"].as_str().unwrap().parse().unwrap()),
        stray
    );
    assert_eq!(adopted["size_bytes"], 1 << 20);

    // All loses nothing and decides nothing.
    let before = world.disks.list().unwrap();
    said(&world, &["doctor", "storage", "--all"]).await;
    assert_eq!(world.disks.list().unwrap(), before);
    let kinds = |all: &[String]| -> Vec<String> {
        let kinds = all.iter().filter_map(|id| id.split(':').next());
        kinds.map(str::to_owned).collect()
    };
    let nobodys = [
        "disk-without-row",
        "files-without-row",
        "disk-without-client",
    ];
    assert_eq!(kinds(&found(&world).await), nobodys);
    // Every disk is still there when they are adopted, the client's as a copy.
    said(
        &world,
        &[
            "doctor",
            "storage",
            "--repair",
            "disk-without-row",
            "--repair",
            "personal",
        ],
    )
    .await;
    assert_eq!(world.disks.list().unwrap().len(), before.len() + 1);
    assert!(files.exists());
    assert!(
        world
            .disks
            .holds()
            .unwrap()
            .iter()
            .all(|hold| hold.tag != idle)
    );
    let size = world
        .db
        .text("SELECT size_bytes FROM images WHERE name = 'debian'")
        .await;
    assert_eq!(size.as_deref(), Some("1048576"));
    let names = "SELECT count(*) FROM images WHERE name LIKE 'adopted-%'";
    assert_eq!(world.db.text(names).await.as_deref(), Some("2"));
    assert_eq!(kinds(&found(&world).await), nobodys[1..]);

    // By name, and a part of it will do.
    let (code, text) = cli::failed(&world, &["doctor", "storage", "--remove", "no-such"]).await;
    assert_eq!(code, 3, "{text}");
    said(
        &world,
        &[
            "doctor", "storage", "--remove", "personal", "--remove", "files-",
        ],
    )
    .await;
    assert_eq!(found(&world).await, Vec::<String>::new());
    assert!(!files.exists());
    assert!(world.disks.info(lost).unwrap().is_none());
    let copies = world.disks.list().unwrap();
    let copies = copies.iter().filter(|i| i.volume != Volume::Image(image));
    assert!(copies.clone().count() == 3 && copies.clone().all(|i| i.origin.is_none()));
    assert!(world.disks.info(other).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_holds_its_version_until_its_disk_is_removed() {
    let world = world().await;
    add(&world, 1, None).await;
    let machine = on(&world, 1);
    world.boot_disks.tidy(&world.catalog).await;
    let held = world.disks.holds().unwrap();
    let [hold] = held.as_slice() else {
        panic!("{held:?}")
    };
    assert!(matches!(hold.tag, HoldTag::Clone(Volume::Session(_))));
    assert_eq!(hold.snapshot.name.as_str(), "base");
    machine.off(&world).await;
    assert_eq!(world.disks.holds().unwrap(), held, "it may come back");
    let next = on(&world, 1);
    world.boot_disks.tidy(&world.catalog).await;
    let now = world.disks.holds().unwrap();
    assert_eq!(now.len(), 1, "the older disk went, and its hold with it");
    assert_ne!(now, held);
    next.off(&world).await;
}
