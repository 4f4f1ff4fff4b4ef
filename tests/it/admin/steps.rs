//! `dls serve` killed at every named step of everything that is done in several, and started
//! again: then nothing is lost and nothing is left over, says a script that shares no code with it.
//! `tests/guest/steps.rs` does the same on ZFS.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dls::model::Mark;
use dls::steps::Step;
use dls::storage::{HoldTag, Intent, Pending, SnapshotId, Volume, mend};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::deeds::{Deed, House, SIZE, ask, deed, perform, remove_found};
use super::process::Server;

/// Servers at once.
const AT_ONCE: usize = 4;
/// The only round.
const ROUND: u32 = 1;

async fn die_at(step: Step) {
    let (deed, done) = deed(step);
    let house = House::empty(None).await;
    let subject = match deed {
        // Its row is lost, its disk is not.
        Deed::Adopt => house.stock_lost(&*house.store(), 1).await,
        _ => {
            let subject = house.stock(&*house.store(), 1).await;
            let (fine, said) = house.audit();
            assert!(fine, "before: {said}");
            subject
        }
    };
    let mut server = house.begin(&["--die-at", step.as_str()]);
    server.ready().await;
    let told = perform(&server, deed, &subject, ROUND).await;
    let ended = tokio::time::timeout(Duration::from_secs(30), server.child.wait()).await;
    let Ok(Ok(ended)) = ended else {
        panic!("{step} is never reached: {told:?} {}", server.log());
    };
    assert_eq!(ended.signal(), Some(9), "{step}: {}", server.log());
    let last = server.log();
    assert!(
        last.contains("killed at a step") && last.contains(step.as_str()),
        "{last}"
    );
    server.again();
    server.ready().await;
    assert!(house.rest(&mut server).await, "{step}: {}", server.log());
    let is_done = async || house.is_done(deed, &subject, ROUND).await;
    assert_eq!(is_done().await, done, "{step}: {}", server.log());
    let (_, found) = server.get("/api/v1/doctor/storage").await;
    if deed != Deed::Adopt {
        assert_eq!(found, json!({"findings": []}), "{step}");
    }
    // What was not done can be done now.
    if !done {
        let told = perform(&server, deed, &subject, ROUND).await;
        let (status, body) = told.unwrap_or_else(|| panic!("{step}: {}", server.log()));
        assert!((200..300).contains(&status), "{step}: {status} {body}");
        assert!(house.rest(&mut server).await, "{step}: {}", server.log());
        assert!(is_done().await, "{step}");
    }
    if deed == Deed::Adopt {
        remove_found(&server).await;
    }
    server.child.kill().await.unwrap();
    let (fine, said) = house.audit();
    assert!(fine, "{step}: {said}{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_it_loses_nothing_and_leaves_nothing() {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut all = JoinSet::new();
    for step in Step::ALL {
        let room = room.clone();
        all.spawn(async move {
            let _place = room.acquire_owned().await.unwrap();
            die_at(*step).await;
        });
    }
    let mut failed = 0;
    while let Some(ended) = all.join_next().await {
        // Each says itself what it found.
        failed += usize::from(ended.is_err());
    }
    assert_eq!(failed, 0, "of {} steps", Step::ALL.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_mended_while_the_database_is_away() {
    let (house, _) = House::new().await;
    let store = house.store();
    let pending = Pending::open(&house.storage()).unwrap();
    let own = store.list().unwrap();
    let own = own
        .iter()
        .find(|i| matches!(i.volume, Volume::Personal { .. }))
        .unwrap()
        .volume;
    let Volume::Personal { client, image } = own else {
        unreachable!("it was found as one")
    };
    let version = Uuid::new_v4();
    let intent = Intent::Version {
        version,
        client,
        image,
        reset: false,
    };
    pending.note(intent, None).unwrap();
    let name = mend::version_snapshot(version).unwrap();
    let from = SnapshotId { volume: own, name };
    store.snapshot(&from).unwrap();
    store.clone_volume(&from, Volume::Image(version)).unwrap();
    let gone = HoldTag::Clone(Volume::Session(Uuid::new_v4()));
    store.hold(&SnapshotId::base(image), gone).unwrap();
    drop(store);
    assert!(!house.audit().0, "the script sees what is left over");
    let nowhere = "postgres://nobody@127.0.0.1:1/dls";
    let mut server = Server::begin(nowhere, house.dir.path(), "", &[]);
    assert!(house.rest(&mut server).await, "{}", server.log());
    for _ in 0..200 {
        if server.log().contains("holds on versions put right") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.child.kill().await.unwrap();
    let (fine, said) = house.audit();
    assert!(fine, "{said}{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_costs_nobody_a_disk() {
    let (house, _) = House::new().await;
    let catalog = house.db.text("SELECT catalog_id FROM site").await.unwrap();
    let mark = |catalog: &str, number| Mark {
        catalog: catalog.parse().unwrap(),
        number,
    };
    // Begun in a state that this database knows, in a later one, and beside another database.
    let ids = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    let marks = [
        mark(&catalog, 0),
        mark(&catalog, 5),
        mark(&Uuid::new_v4().to_string(), 0),
    ];
    let store = house.store();
    let pending = Pending::open(&house.storage()).unwrap();
    for (id, mark) in ids.into_iter().zip(marks) {
        store.create(Volume::Image(id), SIZE).unwrap();
        store.snapshot(&SnapshotId::base(id)).unwrap();
        pending
            .note(Intent::Image { image: id }, Some(mark))
            .unwrap();
    }
    drop(store);
    let mut server = house.begin(&[]);
    server.ready().await;
    let found = async || {
        let (_, told) = server.get("/api/v1/doctor/storage").await;
        let all = told["findings"].as_array().unwrap().iter();
        let mut all: Vec<_> = all.map(|f| f["id"].as_str().unwrap().to_owned()).collect();
        all.sort();
        all
    };
    let named = |kind: &str, of: &dyn Fn(Uuid) -> String| {
        let mut names: Vec<_> = ids[1..]
            .iter()
            .map(|id| format!("{kind}:{}", of(*id)))
            .collect();
        names.sort();
        names
    };
    let waiting = named("intention-unfinished", &|id| id.to_string());
    for _ in 0..200 {
        if found().await == waiting {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found().await, waiting, "{}", server.log());
    let there = |id: Uuid| {
        house
            .storage()
            .join(format!("disks/volumes/image.{id}.json"))
            .exists()
    };
    assert_eq!(ids.map(there), [false, true, true], "the first has no row");
    let path = "/api/v1/doctor/storage/repair";
    let treat = async |body: Value| {
        let asked = ask(&server, Method::POST, path, Some(body)).await;
        let (status, told) = asked.unwrap();
        assert_eq!((status, &told["failed"]), (200, &json!([])), "{told}");
    };
    // One is let go of and stays, the other is finished.
    treat(json!({"repair": [format!("intention-unfinished:{}", ids[1])]})).await;
    treat(json!({"remove": [format!("intention-unfinished:{}", ids[2])]})).await;
    assert_eq!(ids.map(there), [false, true, false]);
    assert_eq!(
        found().await,
        [format!("disk-without-row:image/{}", ids[1])]
    );
    server.child.kill().await.unwrap();
}

/// The script itself: each thing that is lost or left over is seen.
#[tokio::test(flavor = "multi_thread")]
async fn the_script_sees_what_is_lost_and_what_is_left_over() {
    let (house, _) = House::new().await;
    let storage = house.storage();
    let (fine, said) = house.audit();
    assert!(fine, "{said}");
    let seen = |what: &str| {
        let (fine, said) = house.audit();
        assert!(!fine && said.contains(what), "{what}: {said}");
    };
    let volumes = storage.join("disks/volumes");
    let first = |folder: &Path, begins: &str| {
        let mut all = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        all.find(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(begins)
        })
        .unwrap()
    };
    // A manifest, a layer, a hold that are away for a moment.
    for (folder, begins, what) in [
        (&volumes, "image", "LOST: the disk of the"),
        (&volumes, "personal", "LOST: image/"),
        (&storage.join("disks/layers"), "", "LOST: the layer"),
        (&storage.join("disks/holds"), "image", "does not hold"),
    ] {
        let (path, aside) = (first(folder, begins), house.dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        seen(what);
        std::fs::rename(&aside, &path).unwrap();
    }
    for (path, what) in [
        ("pending/x", "ORPHAN: pending/x"),
        ("uploads/x", "ORPHAN: uploads/x"),
        ("images/x/kernel", "ORPHAN: the folder images/x"),
        (
            "disks/layers/00000000-0000-4000-8000-000000000000.raw",
            "ORPHAN: the file disks/layers",
        ),
    ] {
        let path = storage.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        seen(what);
        std::fs::remove_file(&path).unwrap();
        if what.contains("images/x") {
            std::fs::remove_dir(path.parent().unwrap()).unwrap();
        }
    }
    // An upload is nothing that is left over, as long as not all of its bytes have come.
    let upload = storage.join("uploads/00000000-0000-4000-8000-000000000000");
    std::fs::create_dir(&upload).unwrap();
    std::fs::write(upload.join("record"), r#"{"total": 9}"#).unwrap();
    std::fs::write(upload.join("data"), "12345678").unwrap();
    let (fine, said) = house.audit();
    assert!(fine, "{said}");
    std::fs::write(upload.join("data"), "123456789").unwrap();
    seen("ORPHAN: uploads/00000000");
    std::fs::remove_dir_all(&upload).unwrap();
    house
        .db
        .sql("UPDATE images SET size_bytes = 512")
        .await
        .unwrap();
    seen("has 512 bytes by its row");
    house
        .db
        .sql(&format!("UPDATE images SET size_bytes = {SIZE}"))
        .await
        .unwrap();
    house
        .db
        .sql("DELETE FROM image_snapshots WHERE name = 'v3'")
        .await
        .unwrap();
    seen("is of no image and no version");
    house
        .db
        .sql("DELETE FROM image_snapshots WHERE name = 'v2'")
        .await
        .unwrap();
    seen("is for no version");
    house.db.sql("DELETE FROM clients").await.unwrap();
    seen("is of no client or no image");
}
