//! Versions of images as PostgreSQL keeps them, also against people in psql.

use dls::model::VersionStage;
use uuid::Uuid;

use crate::support::{TestDb, client, image};

const IMAGES: &str = "INSERT INTO images (id, name, size_bytes, format, path) VALUES
    ('00000000-0000-0000-0000-000000000001', 'debian', 1024, 'raw', '/d'),
    ('00000000-0000-0000-0000-000000000002', 'other', 1024, 'raw', '/o')";

async fn with_images() -> TestDb {
    let db = TestDb::new().await;
    db.sql(IMAGES).await.unwrap();
    db
}

/// A draft of the first image.
async fn draft(db: &TestDb, name: &str) {
    let sql = format!(
        "INSERT INTO image_snapshots (image_id, name) SELECT id, '{name}' FROM images WHERE name = 'debian'"
    );
    db.sql(&sql).await.unwrap();
}

async fn stage(db: &TestDb, name: &str, set: &str) -> Result<(), sqlx::Error> {
    db.sql(&format!(
        "UPDATE image_snapshots SET {set} WHERE name = '{name}' AND image_id = '00000000-0000-0000-0000-000000000001'"
    ))
    .await
}

/// `NAME STAGE`, in the order of names, of the first image.
async fn stages(db: &TestDb) -> String {
    let sql = "SELECT string_agg(concat_ws(' ', version, stage, ring), ', ' ORDER BY version) FROM image_versions WHERE image = 'debian'";
    db.text(sql).await.unwrap()
}

#[tokio::test]
async fn each_disk_has_its_first_version_and_a_kernel_has_none() {
    let db = with_images().await;
    db.sql("INSERT INTO images (name, size_bytes, format, path, kind) VALUES ('kernel', 1, 'raw', '/k', 'kernel')")
        .await
        .unwrap();
    let all = "SELECT string_agg(concat_ws(' ', i.name, v.name, v.stage, v.id = i.id), ', ' ORDER BY i.name) FROM images i LEFT JOIN image_snapshots v ON v.image_id = i.id";
    assert_eq!(
        db.text(all).await.as_deref(),
        Some("debian base production t, kernel, other base production t")
    );
    // Saving the row again makes no second one.
    db.sql("UPDATE images SET kind = 'disk' WHERE name <> 'kernel'")
        .await
        .unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM image_snapshots")
            .await
            .as_deref(),
        Some("2")
    );
    db.sql("UPDATE images SET kind = 'disk' WHERE name = 'kernel'")
        .await
        .unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM image_snapshots")
            .await
            .as_deref(),
        Some("3")
    );
}

#[tokio::test]
async fn stages_change_as_the_model_says_and_no_other_way() {
    let db = with_images().await;
    for from in VersionStage::ALL {
        for to in VersionStage::ALL.iter().filter(|to| *to != from) {
            let name = format!("{from}-{to}");
            draft(&db, &name).await;
            let ring = |stage| match stage {
                VersionStage::Canary => "stage = 'canary', ring = 'lab'".to_owned(),
                other => format!("stage = '{other}'"),
            };
            if *from != VersionStage::Draft {
                stage(&db, &name, &ring(*from)).await.unwrap();
            }
            let done = stage(&db, &name, &ring(*to)).await;
            let expected = from.may_become(*to)
                // Nothing would be in production.
                && (*from, *to) != (VersionStage::Production, VersionStage::Retired);
            assert_eq!(done.is_ok(), expected, "{name}: {done:?}");
            stage(&db, "base", "stage = 'production'").await.unwrap();
        }
    }
    // A version that is not the first begins as a draft.
    let refused = db
        .refused("INSERT INTO image_snapshots (image_id, name, stage) SELECT id, 'x', 'retired' FROM images LIMIT 1")
        .await;
    assert_eq!(refused, "image_snapshots_stage_steps");
}

#[tokio::test]
async fn one_statement_releases_and_goes_back() {
    let db = with_images().await;
    for name in ["v2", "v3"] {
        draft(&db, name).await;
        stage(&db, name, "stage = 'production'").await.unwrap();
    }
    assert_eq!(stages(&db).await, "base retired, v2 retired, v3 production");
    let returned = "SELECT string_agg(name, ' ' ORDER BY name) FROM image_snapshots WHERE returned_at IS NOT NULL";
    assert_eq!(db.text(returned).await, None, "they were only replaced");
    // To one that was released before: that is going back, and v3 is marked by it.
    stage(&db, "v2", "stage = 'production'").await.unwrap();
    assert_eq!(stages(&db).await, "base retired, v2 production, v3 retired");
    assert_eq!(db.text(returned).await.as_deref(), Some("v3"));
    stage(&db, "base", "stage = 'production'").await.unwrap();
    assert_eq!(db.text(returned).await.as_deref(), Some("v2 v3"));
    // Released anew, it is as good as any.
    stage(&db, "v3", "stage = 'production'").await.unwrap();
    assert_eq!(db.text(returned).await.as_deref(), Some("v2"));
    assert_eq!(
        db.text("SELECT count(*) FROM image_snapshots WHERE stage = 'production'")
            .await
            .as_deref(),
        Some("2"),
        "and the other image's was not touched"
    );

    // A ring has one canary, two rings have two.
    for (name, ring) in [("c1", "lab"), ("c2", "desk"), ("c3", "lab")] {
        draft(&db, name).await;
        let set = format!("stage = 'canary', ring = '{ring}'");
        stage(&db, name, &set).await.unwrap();
    }
    assert_eq!(
        stages(&db).await,
        "base retired, c1 retired, c2 canary desk, c3 canary lab, v2 retired, v3 production"
    );
    stage(&db, "c3", "stage = 'production'").await.unwrap();
    assert!(stages(&db).await.contains("c3 production, v2"), "no ring");
}

#[tokio::test]
async fn what_is_needed_stays_and_what_is_wrong_is_refused() {
    let db = with_images().await;
    draft(&db, "v2").await;
    draft(&db, "lab").await;
    stage(&db, "lab", "stage = 'canary', ring = 'lab'")
        .await
        .unwrap();
    db.sql("INSERT INTO clients (mac_address, hostname, assigned_image_id, pinned_version) SELECT '52:54:00:00:00:01', 'pc1', image_id, id FROM image_snapshots WHERE name = 'v2'")
        .await
        .unwrap();
    for (sql, by) in [
        (
            "DELETE FROM image_snapshots WHERE name = 'base'",
            "image_snapshots_first",
        ),
        (
            "DELETE FROM image_snapshots WHERE name = 'lab'",
            "image_snapshots_released",
        ),
        (
            "DELETE FROM image_snapshots WHERE name = 'v2'",
            "image_snapshots_pinned",
        ),
        (
            "UPDATE image_snapshots SET stage = 'retired' WHERE name = 'base'",
            "image_snapshots_no_production",
        ),
        (
            "UPDATE image_snapshots SET ring = NULL WHERE name = 'lab'",
            "image_snapshots_canary_check",
        ),
        (
            "UPDATE image_snapshots SET ring = 'Lab' WHERE name = 'lab'",
            "image_snapshots_ring_check",
        ),
        (
            "UPDATE image_snapshots SET stage = 'gone' WHERE name = 'v2'",
            "image_snapshots_stage_steps",
        ),
        (
            "UPDATE image_snapshots SET name = 'V 2' WHERE name = 'v2'",
            "image_snapshots_name_check",
        ),
        (
            "UPDATE image_snapshots SET id = uuid_generate_v4() WHERE name = 'v2'",
            "image_snapshots_fixed",
        ),
        (
            "UPDATE image_snapshots SET image_id = '00000000-0000-0000-0000-000000000002' WHERE name = 'v2'",
            "image_snapshots_fixed",
        ),
        (
            "UPDATE image_snapshots SET referenced_bytes = -1",
            "image_snapshots_referenced_check",
        ),
        ("UPDATE clients SET ring = 'a b'", "clients_ring_check"),
        (
            "UPDATE clients SET pinned_version = '00000000-0000-0000-0000-000000000002'",
            "clients_pinned_version_own",
        ),
        (
            "UPDATE clients SET pinned_version = uuid_generate_v4()",
            "clients_pinned_version_own",
        ),
    ] {
        assert_eq!(db.refused(sql).await, by, "{sql}");
    }
    let pinned = "SELECT string_agg(v.name, ' ') FROM clients c JOIN image_snapshots v ON v.id = c.pinned_version";
    assert_eq!(db.text(pinned).await.as_deref(), Some("v2"));
    // Another image unpins.
    db.sql("UPDATE clients SET assigned_image_id = '00000000-0000-0000-0000-000000000002'")
        .await
        .unwrap();
    assert_eq!(db.text(pinned).await, None);
    // And with the image all of it goes.
    db.sql(
        "UPDATE clients SET assigned_image_id = '00000000-0000-0000-0000-000000000001';
            UPDATE clients SET pinned_version = (SELECT id FROM image_snapshots WHERE name = 'v2')",
    )
    .await
    .unwrap();
    db.sql("DELETE FROM images WHERE name = 'debian'")
        .await
        .unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM image_snapshots")
            .await
            .as_deref(),
        Some("1")
    );
    assert_eq!(db.text(pinned).await, None);
}

#[tokio::test]
async fn two_servers_release_at_once_and_one_of_them_wins() {
    let db = with_images().await;
    let names: Vec<String> = (0..8).map(|n| format!("v{n}")).collect();
    for name in &names {
        draft(&db, name).await;
    }
    let catalog = db.catalog().await;
    let image = Uuid::from_u128(1);
    let all = catalog.list_versions(image).await.unwrap();
    let mut works = tokio::task::JoinSet::new();
    for version in all.into_iter().filter(|v| !v.is_first()) {
        let catalog = catalog.clone();
        works.spawn(async move { catalog.release_version(version.id, None, None).await });
    }
    let done = works.join_all().await;
    assert!(done.iter().any(Result::is_ok));
    for refused in done.into_iter().filter_map(Result::err) {
        assert!(
            refused.to_string().contains("at the same moment"),
            "{refused}"
        );
    }
    let production = "SELECT count(*) FROM image_snapshots WHERE stage = 'production' AND image_id = '00000000-0000-0000-0000-000000000001'";
    assert_eq!(db.text(production).await.as_deref(), Some("1"));
}

/// A boot of a version of the first image that is over, or open without an outcome.
async fn boot(db: &TestDb, n: u128, version: &str, outcome: &str, event: Option<(&str, &str)>) {
    let id = Uuid::from_u128(n);
    db.sql(&format!(
        "INSERT INTO boot_attempts (id, mac, client_name, server_id, version_id, started_at, outcome, ended_at, reason)
         SELECT '{id}', '52:54:00:00:00:01', 'pc-{n}', uuid_generate_v4(), id, clock_timestamp(), '{outcome}',
                CASE WHEN '{outcome}' <> 'open' THEN clock_timestamp() END,
                CASE WHEN '{outcome}' <> 'completed' THEN 'at stage disk_read: it went quiet' END
         FROM image_snapshots WHERE name = '{version}' AND image_id = '00000000-0000-0000-0000-000000000001'"
    ))
    .await
    .unwrap();
    if let Some((stage, detail)) = event {
        db.sql(&format!(
            "INSERT INTO boot_events (session_id, stage, detail) VALUES ('{id}', '{stage}', '{detail}')"
        ))
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_canary_is_released_by_good_boots_and_sent_back_by_a_failed_one() {
    let db = with_images().await;
    let catalog = db.catalog().await;
    for name in ["v2", "v3", "v4", "v5"] {
        draft(&db, name).await;
    }
    let versions = catalog.list_versions(Uuid::from_u128(1)).await.unwrap();
    let id = |name: &str| versions.iter().find(|v| v.name == name).unwrap().id;
    let release = async |name: &str, boots| {
        let done = catalog.release_version(id(name), Some("lab"), boots).await;
        done.unwrap().unwrap()
    };
    let look = async || dls::boot::canaries::look(&catalog).await.unwrap();

    // Boots from before it was a canary do not count, nor do those that are open or unclear.
    boot(&db, 1, "v2", "completed", Some(("up", "{}"))).await;
    let canary = release("v2", Some(2)).await;
    assert_eq!(canary.good_boots, Some(2));
    assert!(canary.canary_at > versions[0].released_at);
    boot(&db, 2, "v2", "open", None).await;
    boot(&db, 3, "v2", "restarted", None).await;
    boot(&db, 4, "v2", "failed", Some(("error", "{}"))).await;
    boot(&db, 5, "v2", "completed", Some(("up", "{}"))).await;
    assert_eq!(look().await, 0);
    let told = "SELECT string_agg(concat_ws(' ', client, verdict), ', ' ORDER BY started_at) FROM version_boots WHERE version = 'v2'";
    assert_eq!(
        db.text(told).await.as_deref(),
        Some("pc-1 good, pc-2 open, pc-3 unclear, pc-4 unclear, pc-5 good")
    );
    boot(&db, 6, "v2", "open", Some(("up", "{}"))).await;
    assert_eq!(look().await, 1);
    assert_eq!(
        stages(&db).await,
        "base retired, v2 production, v3 draft, v4 draft, v5 draft"
    );
    assert_eq!(look().await, 0, "that was it");

    // A machine that was on when it was given up, by its disk or by ARP.
    let alive = [("error", r#"{"disk": "open"}"#), ("answers", "{}")];
    for (n, (name, event)) in [("v3", alive[0]), ("v4", alive[1])].into_iter().enumerate() {
        release(name, Some(1)).await;
        boot(&db, 10 + n as u128, name, "failed", Some(event)).await;
        assert_eq!(look().await, 1, "{name}");
        let row = catalog.get_version(id(name)).await.unwrap().unwrap();
        assert_eq!(row.stage, VersionStage::Retired);
        let session = Uuid::from_u128(10 + n as u128);
        let why = format!(
            "client pc-{}: at stage disk_read: it went quiet (session {session})",
            10 + n
        );
        assert_eq!(row.reason, Some(why));
        assert!(row.returned_at > row.canary_at);
        assert_eq!(row.good_boots, None);
    }
    assert!(
        stages(&db).await.contains("v2 production"),
        "the others have what they had"
    );

    // Without a number nobody but people decides, and what was decided is not undone.
    release("v5", None).await;
    boot(&db, 20, "v5", "failed", Some(alive[0])).await;
    assert_eq!(look().await, 0);
    release("v5", Some(1)).await;
    let mut seen = catalog.watched_canaries().await.unwrap();
    let seen = seen.pop().unwrap();
    assert_eq!(
        seen.boots.len(),
        1,
        "it is a canary since then: the number alone changes nothing"
    );
    catalog
        .return_version(id("v5"), None, Some("no sound"))
        .await
        .unwrap();
    assert!(!catalog.settle_canary(&seen, &seen.judge()).await.unwrap());
    let reason = catalog.get_version(id("v5")).await.unwrap().unwrap().reason;
    assert_eq!(reason.as_deref(), Some("no sound"));
}

#[tokio::test]
async fn versions_come_and_go_with_their_migration() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut disk = image("debian");
    disk.kind = dls::model::ImageKind::Disk;
    disk.files.clear();
    catalog.save_image_metadata(&disk).await.unwrap();
    let mut machine = client(1);
    machine.assigned_image_id = Some(disk.id);
    machine.pinned_version_id = Some(disk.id);
    machine.ring = Some("lab".to_owned());
    catalog.save_client_config(&machine).await.unwrap();
    let row = catalog.get_client(machine.id).await.unwrap().unwrap();
    assert_eq!(
        (row.ring.as_deref(), row.pinned_version_id),
        (Some("lab"), Some(disk.id))
    );

    catalog.revert_migrations(7).await.unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM image_snapshots")
            .await
            .as_deref(),
        Some("0")
    );
    // What somebody has noted by hand meanwhile, under a name that is taken then.
    db.sql("INSERT INTO image_snapshots (image_id, name) SELECT id, 'base' FROM images; INSERT INTO image_snapshots (image_id, name) SELECT id, 'Old One' FROM images")
        .await
        .unwrap();
    catalog.run_migrations().await.unwrap();
    let versions = catalog.load().await.unwrap().versions;
    let first = versions.iter().find(|v| v.is_first()).unwrap();
    assert_eq!(
        (first.name.as_str(), first.stage, first.id),
        ("base", VersionStage::Production, disk.id)
    );
    assert_eq!(versions.len(), 3);
    let others = versions.iter().filter(|v| !v.is_first());
    assert!(others.clone().all(|v| v.stage == VersionStage::Draft));
    assert!(others.clone().any(|v| v.name.starts_with("base-")));
}
