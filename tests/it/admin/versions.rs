//! Versions of an image: made from a client's disk, released, returned, removed; by HTTP and by
//! the real `dls`, with machines that boot.

use std::sync::Arc;
use std::time::Duration;

use dls::boot::disks::{Attachment, Line};
use dls::boot::session::{Context, Evidence, Observation};
use dls::model::MacAddr;
use dls::storage::{SnapshotId, Volume};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli::{failed, json as said_json, said};
use super::reset::{add, boot, log_in, text, write};
use super::world::{World, answer, blamed};
use crate::disks::Wire;

/// That of `reset`, with a tracker that writes.
pub(super) async fn world() -> World {
    let world = super::reset::world().await;
    let (tracker, cancel) = (world.tracker.clone(), world.cancel.clone());
    tokio::spawn(async move { tracker.run(cancel).await });
    world
}

/// A machine that is switched on and has its disk.
pub(super) struct On {
    n: u8,
    boot: Uuid,
    line: Arc<Wire>,
    pub(super) disk: Attachment,
}

pub(super) fn on(world: &World, n: u8) -> On {
    let boot = boot(world, n);
    let (line, disk) = log_in(world, boot).unwrap();
    On {
        n,
        boot,
        line,
        disk,
    }
}

impl On {
    pub(super) fn finds(&self) -> String {
        text(&self.disk)
    }

    /// Its disk is let go of, and nothing else is heard of it.
    fn cut(self) {
        drop(self.disk);
        self.line.close();
    }

    /// It is shut down, and says so.
    pub(super) async fn off(self, world: &World) {
        let mac: MacAddr = format!("52:54:00:00:00:{:02x}", self.n).parse().unwrap();
        self.cut();
        world.tracker.observe(Observation {
            mac,
            at: world.clock.now(),
            what: Evidence::Bye(None),
            context: Context::default(),
        });
        assert!(world.tracker.drain(Duration::from_secs(30)).await);
    }
}

/// What a machine finds on its disk at its next boot; it is off afterwards.
pub(super) async fn finds(world: &World, n: u8) -> String {
    let on = on(world, n);
    let found = on.finds();
    on.off(world).await;
    found
}

const PATH: &str = "/api/v1/images/debian/snapshots";

async fn create(world: &World, name: &str, from: &str) -> (u16, Value) {
    let body =
        json!({"name": name, "from_client": from, "author": "anna", "description": "updates"});
    world.ask("POST", PATH, Some(body)).await
}

async fn post(world: &World, rest: &str, body: Value) -> (u16, Value) {
    world
        .ask("POST", &format!("{PATH}/{rest}"), Some(body))
        .await
}

/// `NAME STAGE RUNNING`, oldest first.
pub(super) async fn versions(world: &World) -> Vec<String> {
    let (status, body) = world.get(PATH).await;
    assert_eq!(status, 200, "{body}");
    let row = |v: &Value| {
        assert_eq!(v["stored"], true, "{v}");
        let word = |key: &str| v[key].as_str().unwrap().to_owned();
        format!("{} {} {}", word("name"), word("stage"), v["running"])
    };
    body["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(row)
        .collect()
}

/// A version with that content: what pc-01 writes, who is off then.
async fn published(world: &World, name: &str, mark: &[u8; 4]) -> Uuid {
    let machine = on(world, 1);
    write(&machine.disk, mark);
    machine.off(world).await;
    let (status, made) = create(world, name, "pc-01").await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_made_from_a_disk_released_returned_and_removed() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    add(&world, 2, None).await;
    assert_eq!(versions(&world).await, ["base production 0"]);

    // Not while the machine has it, nor while nobody knows that it is off.
    let (status, body) = create(&world, "v2", "pc-01").await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(
        body["error"],
        "pc-01: it has no persistent disk of this image on this server"
    );
    let machine = on(&world, 1);
    write(&machine.disk, b"two.");
    let (status, body) = create(&world, "v2", "pc-01").await;
    assert_eq!(
        (status, blamed(&body)),
        (409, vec!["from_client".to_owned()])
    );
    assert_eq!(
        body["error"],
        "pc-01: the machine has its disk open: shut it down first"
    );
    let open = machine.boot;
    machine.cut();
    let (status, body) = create(&world, "v2", "pc-01").await;
    assert_eq!(status, 409);
    assert_eq!(
        body["error"],
        format!(
            "pc-01: its boot {open} is not over yet: shut it down, or wait until that has ended"
        )
    );
    on(&world, 1).off(&world).await;
    assert_eq!(
        world.disks.list().unwrap().len(),
        2,
        "nothing was made so far"
    );
    let (status, made) = create(&world, "v2", "52-54-00-00-00-01").await;
    assert_eq!(status, 201, "{made}");
    let word = |key: &str| made[key].as_str().unwrap().to_owned();
    assert_eq!(
        ["stage", "author", "description", "from_client"].map(word),
        ["draft", "anna", "updates", "pc-01"]
    );
    assert!(made["referenced_bytes"].as_u64() > made["size_bytes"].as_u64());
    let v2: Uuid = word("id").parse().unwrap();

    // A draft is for nobody, and its machine goes on with its own.
    assert_eq!(finds(&world, 2).await, "base");
    let machine = on(&world, 1);
    assert_eq!(machine.finds(), "two.");
    write(&machine.disk, b"more");
    machine.off(&world).await;

    let runs = on(&world, 2);
    let (status, body) = post(&world, "v2/release", json!({"stage": "production"})).await;
    assert_eq!(
        (status, &body["stage"]),
        (200, &json!("production")),
        "{body}"
    );
    assert_eq!(runs.finds(), "base", "it runs, and keeps what it has");
    assert!(world.tracker.drain(Duration::from_secs(30)).await);
    assert_eq!(
        versions(&world).await,
        ["base retired 1", "v2 production 0"]
    );
    runs.off(&world).await;
    let runs = on(&world, 2);
    assert_eq!(runs.finds(), "two.", "not what pc-01 has written since");
    assert!(world.tracker.drain(Duration::from_secs(30)).await);
    let row = format!(
        "SELECT version_name FROM boot_attempts WHERE id = '{}'",
        runs.boot
    );
    assert_eq!(world.db.text(&row).await.as_deref(), Some("v2"));
    assert_eq!(
        versions(&world).await,
        ["base retired 0", "v2 production 1"]
    );

    // Back, under the one that runs.
    let body = json!({"reason": "no sound"});
    let (status, body) = post(&world, "v2/return", body).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["now"]["name"], "base");
    assert_eq!(body["returned"]["stage"], "retired");
    assert_eq!(body["returned"]["reason"], "no sound");
    assert!(body["returned"]["returned_at"].is_string());
    assert_eq!(runs.finds(), "two.");

    // It is not removed under its machine, and that machine is named.
    let path = format!("{PATH}/v2");
    let (status, body) = world.ask("DELETE", &path, None).await;
    assert_eq!(status, 409, "{body}");
    let why = format!(
        "the version is in use: client pc-02 has booted it (session {})",
        runs.boot
    );
    assert_eq!(body["error"], why);
    assert_eq!(runs.finds(), "two.");
    runs.off(&world).await;
    assert_eq!(finds(&world, 2).await, "base");
    let (status, body) = world.ask("DELETE", &path, None).await;
    assert_eq!(status, 204, "{body}");
    assert_eq!(versions(&world).await, ["base production 0"]);
    assert_eq!(world.disks.info(Volume::Image(v2)).unwrap(), None);
    assert_eq!(
        finds(&world, 1).await,
        "more",
        "the client's own disk stays"
    );
    assert_eq!(world.ask("DELETE", &path, None).await.0, 404);
    let (_, stock) = world.get("/api/v1/orphans").await;
    assert_eq!(stock, json!({"orphans": [], "missing": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_disk_can_be_thrown_away_after_a_version_was_made_from_it() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    add(&world, 2, None).await;
    let v2 = published(&world, "v2", b"two.").await;
    let origin = |id| {
        let info = world.disks.info(Volume::Image(id)).unwrap().unwrap();
        info.origin.map(|o| o.volume)
    };
    assert!(matches!(origin(v2), Some(Volume::Personal { .. })));
    let reset = world.ask("DELETE", "/api/v1/clients/pc-01/disk", None);
    assert_eq!(reset.await, (200, json!({"removed": 1})));
    assert_eq!(origin(v2), None);
    assert_eq!(finds(&world, 1).await, "base");
    assert_eq!(post(&world, "v2/release", json!({})).await.0, 200);
    assert_eq!(finds(&world, 2).await, "two.");
    // What pc-01 has by now was made from the first one; from a clean disk on it follows.
    assert_eq!(finds(&world, 1).await, "base");
    let reset = world.ask("DELETE", "/api/v1/clients/pc-01/disk", None);
    assert_eq!(reset.await.0, 200);
    let mut machine = on(&world, 1);
    assert_eq!(machine.finds(), "two.");
    machine.off(&world).await;

    // A version upon a version: each needs the one below.
    machine = on(&world, 1);
    write(&machine.disk, b"tri.");
    machine.off(&world).await;
    assert_eq!(create(&world, "v3", "pc-01").await.0, 201);
    assert_eq!(post(&world, "v3/release", json!({})).await.0, 200);
    let (status, body) = world.ask("DELETE", &format!("{PATH}/v2"), None).await;
    assert_eq!(status, 409);
    assert_eq!(
        body["error"],
        "the version is in use: the persistent disk of client pc-01 was made from it"
    );
    assert_eq!(finds(&world, 2).await, "tri.");
    assert_eq!(
        versions(&world).await,
        ["base retired 0", "v2 retired 0", "v3 production 0"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_for_its_ring_and_goes_back_to_production() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    add(&world, 2, None).await;
    add(&world, 3, None).await;
    published(&world, "v2", b"two.").await;
    published(&world, "v3", b"tri.").await;
    let set = |body| world.ask("PATCH", "/api/v1/clients/pc-03", Some(body));
    let (status, changed) = set(json!({"ring": "lab"})).await;
    assert_eq!((status, &changed["ring"]), (200, &json!("lab")));
    let canary = |ring: &str| json!({"stage": "canary", "ring": ring});
    let (status, body) = post(&world, "v2/release", canary("lab")).await;
    assert_eq!((status, &body["ring"]), (200, &json!("lab")), "{body}");
    assert_eq!(finds(&world, 2).await, "base");
    assert_eq!(finds(&world, 3).await, "two.");
    // The next one takes its place.
    assert_eq!(post(&world, "v3/release", canary("lab")).await.0, 200);
    assert_eq!(finds(&world, 3).await, "tri.");
    assert_eq!(
        versions(&world).await,
        ["base production 0", "v2 retired 0", "v3 canary 0"]
    );
    let (status, body) = post(&world, "v3/return", json!({"reason": "panic"})).await;
    assert_eq!(
        (status, &body["now"]["name"]),
        (200, &json!("base")),
        "{body}"
    );
    assert_eq!(body["returned"]["reason"], "panic");
    assert_eq!(finds(&world, 3).await, "base");

    // Pinned, it boots what nobody else does.
    let (status, changed) = set(json!({"pinned_version": "v2"})).await;
    assert_eq!((status, &changed["pinned_version"]), (200, &json!("v2")));
    assert_eq!(finds(&world, 3).await, "two.");
    let (status, body) = world.ask("DELETE", &format!("{PATH}/v2"), None).await;
    assert_eq!(status, 409);
    assert_eq!(
        body["error"],
        "the version is in use: client pc-03 is pinned to it"
    );
    // What GET answered may be PUT back.
    let (_, row) = world.get("/api/v1/clients/pc-03").await;
    let (status, same) = world.ask("PUT", "/api/v1/clients/pc-03", Some(row)).await;
    assert_eq!(
        (status, &same["pinned_version"]),
        (200, &json!("v2")),
        "{same}"
    );
    let (status, changed) = set(json!({"pinned_version": null})).await;
    assert_eq!((status, &changed["pinned_version"]), (200, &Value::Null));
    assert_eq!(finds(&world, 3).await, "base");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_names_its_field_and_changes_nothing() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    published(&world, "v2", b"two.").await;
    world.add_image("kernel").await;
    let before = versions(&world).await;
    let volumes = world.disks.list().unwrap().len();
    let name = |name: &str| json!({"name": name, "from_client": "pc-01"});
    for (path, body, status, field, why) in [
        ("", json!({}), 400, "name", "is required"),
        ("", json!({"name": "x"}), 400, "from_client", "is required"),
        ("", name("V 2"), 400, "name", "lower-case letters"),
        ("", name("v2"), 409, "name", "has a version `v2` already"),
        (
            "",
            json!({"name": "x", "from_client": "pc-09"}),
            400,
            "from_client",
            "there is no client `pc-09`",
        ),
        (
            "",
            json!({"name": "x", "from_client": "pc-01", "stage": "production"}),
            400,
            "stage",
            "is not a known field",
        ),
        (
            "/v2/release",
            json!({"stage": "draft"}),
            400,
            "stage",
            "one of: canary, production",
        ),
        (
            "/v2/release",
            json!({"stage": "canary"}),
            400,
            "ring",
            "is required",
        ),
        (
            "/v2/release",
            json!({"ring": "lab"}),
            400,
            "ring",
            "is for a canary",
        ),
        (
            "/base/release",
            json!({"stage": "canary", "ring": "lab"}),
            400,
            "stage",
            "`base` is in production",
        ),
        (
            "/base/return",
            json!({}),
            409,
            "to",
            "no version was in production before `base`",
        ),
        (
            "/base/return",
            json!({"to": "v2"}),
            400,
            "to",
            "release it instead",
        ),
        (
            "/base/return",
            json!({"to": "base"}),
            400,
            "to",
            "release it instead",
        ),
        ("/v2/return", json!({}), 409, "", "is not released"),
    ] {
        let (got, answer) = world
            .ask("POST", &format!("{PATH}{path}"), Some(body.clone()))
            .await;
        assert_eq!(got, status, "{path} {body}: {answer}");
        let all = blamed(&answer);
        match field {
            "" => assert_eq!(all, Vec::<String>::new(), "{path} {body}: {answer}"),
            field => assert!(all.iter().any(|f| f == field), "{path} {body}: {answer}"),
        }
        assert!(answer.to_string().contains(why), "{path} {body}: {answer}");
    }
    for (path, why) in [
        ("/api/v1/images/nix/snapshots", "there is no image `nix`"),
        (
            "/api/v1/images/debian/snapshots/v9/release",
            "the image `debian` has no version `v9`",
        ),
        (
            "/api/v1/images/debian/snapshots/v9/return",
            "the image `debian` has no version `v9`",
        ),
    ] {
        let body = if path.ends_with("snapshots") {
            name("x")
        } else {
            json!({})
        };
        let (status, answer) = world.ask("POST", path, Some(body)).await;
        assert_eq!((status, answer["error"].as_str()), (404, Some(why)));
    }
    let (status, answer) = world.get("/api/v1/images/kernel/snapshots").await;
    assert_eq!(
        (status, answer["error"].as_str()),
        (
            409,
            Some("the image `kernel` has no disk, and so no versions")
        )
    );
    for (name, why) in [(
        "base",
        "the first version of an image goes with the image only",
    )] {
        let (status, answer) = world.ask("DELETE", &format!("{PATH}/{name}"), None).await;
        assert_eq!((status, answer["error"].as_str()), (409, Some(why)));
    }
    assert_eq!(versions(&world).await, before);
    assert_eq!(world.disks.list().unwrap().len(), volumes);
    let bare = world.bare("POST", &format!("{PATH}/v2/release"));
    assert_eq!(bare.send().await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_of_an_image_is_what_is_in_production() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    published(&world, "v2", b"two.").await;
    let head = async |query: &str| {
        let path = format!("/api/v1/images/debian/content{query}");
        let answer = world.request("GET", &path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{query}");
        let bytes = answer.bytes().await.unwrap();
        String::from_utf8_lossy(&bytes[..4]).into_owned()
    };
    assert_eq!(head("").await, "base");
    assert_eq!(head("?version=v2").await, "two.");
    assert_eq!(post(&world, "v2/release", json!({})).await.0, 200);
    assert_eq!(head("").await, "two.");
    assert_eq!(head("?version=base").await, "base");
    let unknown = world.request("GET", "/api/v1/images/debian/content?version=v9");
    let (status, body) = answer(unknown.send().await.unwrap()).await;
    assert_eq!(
        (status, &body["error"]),
        (404, &json!("the image `debian` has no version `v9`"))
    );

    // A child begins with it, too, and it needs that version from then on.
    let body = Some(json!({"name": "child"}));
    let (status, child) = world.ask("POST", "/api/v1/images/debian/clone", body).await;
    assert_eq!(status, 201, "{child}");
    let path = "/api/v1/images/child/content";
    let bytes = world
        .request("GET", path)
        .send()
        .await
        .unwrap()
        .bytes()
        .await;
    assert_eq!(&bytes.unwrap()[..4], b"two.");
    assert_eq!(post(&world, "v2/return", json!({})).await.0, 200);
    let (status, body) = world.ask("DELETE", &format!("{PATH}/v2"), None).await;
    assert_eq!(status, 409);
    assert_eq!(
        body["error"],
        "the version is in use: image child was made from it"
    );
    // With the images all of it goes.
    assert_eq!(
        world.ask("DELETE", "/api/v1/images/child", None).await.0,
        204
    );
    let all = "/api/v1/images/debian?force=true&discard_disks=true";
    assert_eq!(world.ask("DELETE", all, None).await.0, 204);
    assert_eq!(world.disks.list().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_lacks_is_told_and_not_released() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    let v2 = published(&world, "v2", b"two.").await;
    world.disks.destroy(Volume::Image(v2)).unwrap();
    let (status, body) = post(&world, "v2/release", json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(
        body["error"],
        "the version `v2` is not on this server: its machines could not boot"
    );
    let (_, stock) = world.get("/api/v1/orphans").await;
    assert_eq!(stock["missing"][0]["what"], "version v2", "{stock}");
    let (_, all) = world.get(PATH).await;
    assert_eq!(all["snapshots"][1]["stored"], false);
    assert_eq!(
        world.ask("DELETE", &format!("{PATH}/v2"), None).await.0,
        204
    );

    // A disk that is no image's and no version's is told as before.
    let stray = Uuid::new_v4();
    let image = world.cache.get().image_by_name("debian").unwrap().id;
    let base = SnapshotId::base(image);
    world
        .disks
        .clone_volume(&base, Volume::Image(stray))
        .unwrap();
    let (_, stock) = world.get("/api/v1/orphans").await;
    assert_eq!(stock["orphans"][0]["what"], format!("disk image/{stray}"));
    assert_eq!(stock["orphans"].as_array().unwrap().len(), 1, "{stock}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_by_command_line() {
    let world = world().await;
    add(&world, 1, Some("persistent")).await;
    add(&world, 2, None).await;
    let list = ["snapshot", "list", "debian"];
    let head = said(&world, &list).await;
    assert!(
        head.contains("base") && head.contains("production"),
        "{head}"
    );
    let machine = on(&world, 1);
    write(&machine.disk, b"two.");
    let create = [
        "snapshot",
        "create",
        "debian",
        "v2",
        "--from-client",
        "pc-01",
        "--description",
        "updates",
    ];
    let (code, error) = failed(&world, &create).await;
    assert_eq!(
        (code, error.as_str()),
        (
            4,
            "dls: pc-01: the machine has its disk open: shut it down first\n"
        )
    );
    machine.off(&world).await;
    let made = said(&world, &create).await;
    assert!(made.contains("draft") && made.contains("updates"), "{made}");
    let release = ["snapshot", "release", "debian", "v2", "--ring", "lab"];
    assert_eq!(
        said(&world, &release).await,
        "machines of ring lab boot version v2 of debian from now on\n"
    );
    let set = ["client", "set", "pc-02", "--ring", "lab"];
    assert_eq!(said_json(&world, &set).await["ring"], "lab");
    assert!(said(&world, &list).await.contains("canary (lab)"));
    assert_eq!(finds(&world, 2).await, "two.");
    assert_eq!(
        said(
            &world,
            &["snapshot", "return", "debian", "v2", "--reason", "slow"]
        )
        .await,
        "machines go back from version v2 of debian to base at their next boot\n"
    );
    assert!(said(&world, &list).await.contains("slow"));
    assert_eq!(
        said(&world, &["snapshot", "release", "debian", "v2"]).await,
        "machines boot version v2 of debian from now on\n"
    );
    let runs = on(&world, 2);
    assert_eq!(runs.finds(), "two.");
    assert_eq!(
        said(&world, &["snapshot", "return", "debian"]).await,
        "machines go back from version v2 of debian to base at their next boot\n"
    );
    let (code, error) = failed(&world, &["snapshot", "return", "debian"]).await;
    assert_eq!(code, 4);
    assert!(
        error.contains("no version was in production before `base`"),
        "{error}"
    );
    let (code, error) = failed(&world, &["snapshot", "rm", "debian", "v2"]).await;
    assert_eq!(code, 4);
    assert!(
        error.starts_with(&format!(
            "dls: the version is in use: client pc-02 has booted it (session {})",
            runs.boot
        )),
        "{error}"
    );
    let shown = said(&world, &["session", "show", "pc-02"]).await;
    assert!(shown.contains("v2"), "{shown}");
    runs.off(&world).await;
    let pin = ["client", "set", "pc-02", "--pin", "v2"];
    assert_eq!(said_json(&world, &pin).await["pinned_version"], "v2");
    let shown = said(&world, &["client", "show", "pc-02"]).await;
    assert!(
        shown.contains("pinned to") && shown.contains("v2"),
        "{shown}"
    );
    let unpin = ["client", "set", "pc-02", "--pin", "", "--ring", ""];
    assert_eq!(
        said_json(&world, &unpin).await["pinned_version"],
        Value::Null
    );
    assert_eq!(finds(&world, 2).await, "base");
    assert_eq!(
        said(&world, &["snapshot", "rm", "debian", "v2"]).await,
        "v2 removed\n"
    );
    let (code, error) = failed(&world, &["snapshot", "rm", "debian", "v2"]).await;
    assert_eq!(
        (code, error.as_str()),
        (3, "dls: the image `debian` has no version `v2`\n")
    );
    let rows = said_json(&world, &list).await;
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(
        failed(&world, &["snapshot", "create", "debian", "v3"])
            .await
            .0,
        2
    );
}
