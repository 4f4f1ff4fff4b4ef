//! An image that is mended on one machine: by HTTP and by the real `dls`, with machines that boot.

use std::time::Duration;

use dls::storage::{Intent, Pending};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli;
use super::reset::{add, write};
use super::versions::{finds, on, versions, world};
use super::world::World;

const PC_01: &str = "/api/v1/clients/pc-01/maintenance";

async fn maintained(world: &World) -> Option<String> {
    let (status, body) = world.get(PC_01).await;
    match status {
        404 => None,
        200 => Some(format!(
            "{} {} {}",
            body["client"], body["image"], body["author"]
        )),
        other => panic!("{other} {body}"),
    }
}

/// The words of a command line.
async fn said(world: &World, line: &str) -> String {
    cli::said(world, &line.split(' ').collect::<Vec<_>>()).await
}

async fn failed(world: &World, line: &str) -> String {
    cli::failed(world, &line.split(' ').collect::<Vec<_>>())
        .await
        .1
}

/// How many disks the store has, in the end.
async fn disks(world: &World, expected: usize) {
    for _ in 0..1500 {
        if world.disks.list().unwrap().len() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", world.disks.list());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_mends_its_image_and_all_boot_what_it_has_mended() {
    let world = world().await;
    add(&world, 1, None).await;
    add(&world, 2, None).await;
    assert_eq!(maintained(&world).await, None);
    let (status, body) = world
        .ask(
            "POST",
            &format!("{PC_01}/publish"),
            Some(json!({"name": "v2"})),
        )
        .await;
    assert_eq!(status, 404, "{body}");
    assert_eq!(body["error"], "client `pc-01` does not mend an image");

    // What runs goes on as it is; from the next boot on what it writes is kept.
    let before = on(&world, 1);
    let (status, body) = world
        .ask("POST", PC_01, Some(json!({"author": "anna"})))
        .await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(
        maintained(&world).await.as_deref(),
        Some(r#""pc-01" "debian" "anna""#)
    );
    write(&before.disk, b"lost");
    before.off(&world).await;
    let machine = on(&world, 1);
    assert_eq!(machine.finds(), "base");
    write(&machine.disk, b"half");
    machine.off(&world).await;
    let machine = on(&world, 1);
    assert_eq!(machine.finds(), "half");
    write(&machine.disk, b"done");
    // Twice is once.
    let (status, _) = world.ask("POST", PC_01, Some(json!({}))).await;
    assert_eq!(status, 200);
    assert_eq!(finds(&world, 2).await, "base", "nobody else sees it");

    // Not while it is on.
    for (method, path, body) in [
        ("DELETE", PC_01.to_owned(), None),
        (
            "POST",
            format!("{PC_01}/publish"),
            Some(json!({"name": "v2"})),
        ),
    ] {
        let (status, told) = world.ask(method, &path, body).await;
        assert_eq!(status, 409, "{told}");
        assert_eq!(
            told["error"],
            "pc-01: the machine has its disk open: shut it down first"
        );
    }
    machine.off(&world).await;
    let body = json!({"name": "v2", "description": "updates"});
    let (status, made) = world
        .ask("POST", &format!("{PC_01}/publish"), Some(body))
        .await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(
        (&made["stage"], &made["author"], &made["from_client"]),
        (&json!("production"), &json!("anna"), &json!("pc-01"))
    );
    assert_eq!(
        versions(&world).await,
        ["base retired 0", "v2 production 0"]
    );
    assert_eq!(maintained(&world).await, None);
    assert_eq!(finds(&world, 2).await, "done");
    let machine = on(&world, 1);
    assert_eq!(machine.finds(), "done");
    write(&machine.disk, b"gone");
    machine.off(&world).await;
    assert_eq!(finds(&world, 1).await, "done", "it is ephemeral again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_discarded_is_gone_and_a_disk_of_its_own_is_not_touched() {
    let world = world().await;
    add(&world, 1, None).await;
    let images = world.disks.list().unwrap().len();
    let told = said(&world, "client maintain pc-01").await;
    assert_eq!(
        told.trim(),
        "pc-01 mends debian from its next boot on: publish or discard what it writes"
    );
    let machine = on(&world, 1);
    write(&machine.disk, b"bad.");
    machine.off(&world).await;
    said(&world, "client discard 52:54:00:00:00:01").await;
    disks(&world, images).await;
    assert_eq!(finds(&world, 1).await, "base");
    assert!(
        failed(&world, "client discard pc-01")
            .await
            .contains("does not mend")
    );

    // A draft, then a canary.
    for (name, more, stage) in [
        ("v2", "--draft", "draft"),
        ("v3", "--ring lab --after 2", "canary"),
    ] {
        said(&world, "client maintain pc-01 --author anna").await;
        let machine = on(&world, 1);
        write(&machine.disk, b"next");
        machine.off(&world).await;
        let told = said(&world, &format!("client publish pc-01 {name} {more}")).await;
        assert!(told.contains(name), "{told}");
        let all = versions(&world).await;
        assert!(all.contains(&format!("{name} {stage} 0")), "{all:?}");
    }
    // Its own disk is no draft.
    add(&world, 2, Some("persistent")).await;
    on(&world, 2).off(&world).await;
    let why = failed(&world, "client maintain pc-02").await;
    assert!(why.contains("has a persistent disk of `debian`"), "{why}");
}

/// What is published is copied from the machine's disk before that goes: nobody may take that for
/// a disk of its own, nor have it thrown away with the work of the next maintenance on it.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_maintenance_waits_until_the_disk_of_the_last_is_gone() {
    let world = world().await;
    let id = |made: Value| made["id"].as_str().unwrap().parse::<Uuid>().unwrap();
    let client = id(add(&world, 1, None).await);
    let other = id(add(&world, 2, None).await);
    let image = world.cache.get().image_by_name("debian").unwrap().id;
    let journal = Pending::open(&world.storage()).unwrap();
    let published = |client, reset| {
        let version = Uuid::new_v4();
        let intent = Intent::Version {
            version,
            client,
            image,
            reset,
        };
        journal.note(intent, None).unwrap();
        version
    };
    // Neither of these is about a disk of pc-01 that goes.
    published(other, true);
    published(client, false);
    let under_way = published(client, true);

    let (status, told) = world.ask("POST", PC_01, Some(json!({}))).await;
    assert_eq!(status, 409, "{told}");
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .contains("what client `pc-01` published is still being copied"),
        "{told}"
    );
    assert_eq!(maintained(&world).await, None);

    let gone = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(maintained(&world).await, None, "it waits");
        journal.end(under_way).unwrap();
    };
    let ((status, told), ()) = tokio::join!(world.ask("POST", PC_01, Some(json!({}))), gone);
    assert_eq!(status, 201, "{told}");
    // A publish of which the database did not say whether it holds: the maintenance goes on.
    published(client, true);
    let (status, told) = world.ask("POST", PC_01, Some(json!({}))).await;
    assert_eq!(status, 200, "{told}");
}
