//! Damage done to a store by hand, with `zfs` commands, beside a server that runs: `dls doctor
//! storage` has to name each, and its repair to mend it. And the holds of machines that are on,
//! as `zfs holds` tells them.

use dls::storage::{HoldTag, SnapshotId, Volume};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::deeds::{House, SIZE, ask};
use super::process::Server;
use super::run;

const DATASET: &str = "labpool/damage/dls";
const DOCTOR: &str = "/api/v1/doctor/storage";

/// What is found, by name.
async fn found(server: &Server) -> Vec<String> {
    let (status, body) = server.get(DOCTOR).await;
    assert_eq!(status, 200, "{body}");
    let all = body["findings"].as_array().unwrap().iter();
    all.map(|f| f["id"].as_str().unwrap().to_owned()).collect()
}

async fn treat(server: &Server, body: Value) {
    let path = format!("{DOCTOR}/repair");
    let (status, told) = ask(server, Method::POST, &path, Some(body)).await.unwrap();
    assert_eq!((status, &told["failed"]), (200, &json!([])), "{told}");
}

/// What the script has to say of that damage: not nothing.
fn wrong(house: &House, what: &str) {
    let (fine, said) = house.audit();
    assert!(!fine && said.contains(what), "`{what}`: {said}");
}

fn right(house: &House) {
    let (fine, said) = house.audit();
    assert!(fine, "{said}");
}

/// The tags on a snapshot, by ZFS's own word.
fn tags(snapshot: &str) -> Vec<String> {
    let lines = run(&format!("zfs holds -H {snapshot}"));
    let tag = |line: &str| line.split('\t').nth(1).unwrap().to_owned();
    lines.lines().map(tag).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_by_hand_is_named_and_repaired() {
    if std::env::var_os("DLS_PROGRAM").is_none() {
        return;
    }
    run(&format!("zfs create -p {DATASET}"));
    let house = House::empty(Some(DATASET.to_owned())).await;
    let (of, on, held) = {
        let store = house.store();
        let of = house.stock(&*store, 1).await;
        let on = house.machine_on(&*store, &of).await;
        let base = SnapshotId::base(of.image);
        store.release(&base, HoldTag::Clone(on)).unwrap();
        (of, on, base)
    };
    let image = format!("image.{}", of.image.simple());
    // Wherever it lies: what was made independent of the image carries its snapshots.
    let place = || {
        run(&format!(
            "zfs list -H -r -t snapshot -o name {DATASET} | grep '@{image}.{}$'",
            held.name.as_str()
        ))
    };
    let snapshot = place().trim().to_owned();
    let Volume::Session(boot) = on else {
        unreachable!("it is a boot's")
    };
    let own = format!(
        "dls:clone.personal.{}.{}",
        of.client.simple(),
        of.image.simple()
    );
    let session = format!("dls:clone.session.{}", boot.simple());
    assert_eq!(tags(&snapshot), [own.as_str()], "its hold is not there yet");
    wrong(&house, "does not hold");

    // A start sees to it that what machines stand upon is held.
    let mut server = house.begin(&[]);
    server.ready().await;
    let held_now = async || {
        for _ in 0..100 {
            if tags(&snapshot).len() == 2 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    held_now().await;
    let mut all = tags(&snapshot);
    all.sort();
    assert_eq!(all, [own.as_str(), session.as_str()]);
    assert!(house.rest(&mut server).await);
    assert_eq!(found(&server).await, Vec::<String>::new());
    right(&house);
    println!("DAMAGE a machine that is on holds its version: {session}");

    // A dataset without a row: adopted, and one more: destroyed.
    let strays = [Uuid::new_v4(), Uuid::new_v4()];
    for stray in strays {
        let name = format!("image.{}", stray.simple());
        run(&format!(
            "zfs create -s -V 1M -o dls:size={SIZE} {DATASET}/{name} && zfs snapshot {DATASET}/{name}@{name}.base"
        ));
    }
    let named = |stray: Uuid| format!("disk-without-row:image/{stray}");
    let mut want = strays.map(named).to_vec();
    want.sort();
    assert_eq!(found(&server).await, want);
    wrong(&house, "is of no image and no version");
    let adopted = json!({"repair": [named(strays[0])], "name": "found"});
    treat(&server, adopted).await;
    treat(&server, json!({"remove": [named(strays[1])]})).await;
    assert_eq!(found(&server).await, Vec::<String>::new());
    right(&house);
    let (_, image_found) = server.get("/api/v1/images/found").await;
    assert_eq!(image_found["id"], json!(strays[0]));
    println!("DAMAGE a dataset without a row: one adopted, one destroyed");

    // A row without a dataset.
    let sql = format!(
        "SELECT id FROM image_snapshots WHERE name = 'v3' AND image_id = '{}'",
        of.image
    );
    let lost: Uuid = house.db.text(&sql).await.unwrap().parse().unwrap();
    let lost_disk = format!("{DATASET}/image.{}", lost.simple());
    // It carries what others stand upon since it was made independent of them.
    let carried = format!(
        "zfs list -Hp -r -t volume -o name,origin {DATASET} | grep -P '\\t{lost_disk}@' | head -n 1 | cut -f 1"
    );
    run(&format!(
        "while v=$({carried}); [ -n \"$v\" ]; do zfs promote $v || exit 1; done"
    ));
    run(&format!("zfs destroy -r {lost_disk}"));
    let named = format!("version-without-disk:{lost}");
    assert_eq!(found(&server).await, std::slice::from_ref(&named));
    wrong(&house, "LOST: the disk of the version v3");
    treat(&server, json!({"remove": [named]})).await;
    let left = found(&server).await;
    for id in &left {
        assert!(id.starts_with("snapshot-without-version:"), "{left:?}");
    }
    treat(&server, json!({"remove": left})).await;
    assert_eq!(found(&server).await, Vec::<String>::new());
    right(&house);
    println!("DAMAGE a row without a dataset: removed by name");

    let snapshot = place().trim().to_owned();
    // A hold that nobody needs. The server releases it by itself within the minute, asked, now. Its
    // own round may come first; the next is a minute later, so a second hold waits for the asking.
    let mut asked = false;
    for _ in 0..2 {
        let idle = Uuid::new_v4();
        run(&format!(
            "zfs hold dls:clone.session.{} {snapshot}",
            idle.simple()
        ));
        let named = format!("hold-without-clone:image/{}@base+session/{idle}", of.image);
        let (fine, said) = house.audit();
        if fine {
            continue;
        }
        assert!(said.contains("which does not need it"), "{said}");
        let listed = found(&server).await;
        if listed.is_empty() {
            continue;
        }
        assert_eq!(listed, std::slice::from_ref(&named));
        let path = format!("{DOCTOR}/repair");
        let repair = json!({"repair": [named]});
        let (status, told) = ask(&server, Method::POST, &path, Some(repair))
            .await
            .unwrap();
        if status == 200 {
            assert_eq!(told["failed"], json!([]), "{told}");
            asked = true;
            break;
        }
        assert_eq!(status, 404, "{told}");
    }
    assert!(
        asked,
        "the server's own rounds came first, twice in a minute"
    );
    assert_eq!(tags(&snapshot).len(), 2);
    assert_eq!(found(&server).await, Vec::<String>::new());
    right(&house);
    println!("DAMAGE a hold that nobody needs: released");

    // Another size than the row says: the server asks the disk itself, so it is started anew.
    server.child.kill().await.unwrap();
    run(&format!("zfs set dls:size=524288 {DATASET}/{image}"));
    server.again();
    server.ready().await;
    assert!(house.rest(&mut server).await);
    wrong(&house, "bytes by its row and 524288 in the store");
    assert_eq!(found(&server).await, [format!("size-differs:{}", of.image)]);
    treat(&server, json!({"all": true})).await;
    assert_eq!(found(&server).await, Vec::<String>::new());
    let sql = format!("SELECT size_bytes FROM images WHERE id = '{}'", of.image);
    assert_eq!(house.db.text(&sql).await.as_deref(), Some("524288"));
    right(&house);
    server.child.kill().await.unwrap();
    println!("DAMAGE a size that differs: the row says what the disk has");
}
