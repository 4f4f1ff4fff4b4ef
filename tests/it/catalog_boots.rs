//! Boots: what the tracker writes, what no longer fits, and the views that tell about it.

use chrono::TimeDelta;
use dls::catalog::{AttemptFilter, BootWrite, Page};
use dls::model::{AttemptOutcome, BootEvent, PhoneHome, SessionStatus, Stage, Timestamp};
use uuid::Uuid;

use crate::support::{TestDb, attempt, client, image, lease, mac, range, session};

fn event(id: Uuid, at: Timestamp, stage: Stage) -> BootWrite {
    BootWrite::Event(BootEvent {
        session_id: id,
        at,
        stage,
        detail: serde_json::json!({"door": "http"}),
    })
}

#[tokio::test]
async fn a_boot_from_discover_to_up_and_bye() {
    let db = TestDb::new().await;
    let server = Uuid::new_v4();
    let catalog = db.catalog_of(server).await;
    catalog
        .save_server(server, "boot1", &[], "0.1")
        .await
        .unwrap();
    let image = image("debian");
    catalog.save_image_metadata(&image).await.unwrap();
    let machine = client(1);
    catalog.save_client_config(&machine).await.unwrap();

    let mut boot = attempt(&machine, server);
    boot.image_name = Some(image.name.clone());
    boot.last_stage = Stage::KernelSent;
    let mut session = session(&boot, image.id);
    let start = boot.started_at;
    let at = |ms: i64| start + TimeDelta::milliseconds(ms);
    let writes = [
        BootWrite::Attempt(boot.clone()),
        event(boot.id, at(0), Stage::Discover),
        event(boot.id, at(0), Stage::Offer),
        event(boot.id, at(1500), Stage::Script),
        BootWrite::Session(session.clone()),
        event(boot.id, at(4000), Stage::KernelSent),
        BootWrite::ClientBooted {
            client_id: machine.id,
            at: start,
        },
        BootWrite::ImageReports { image_id: image.id },
    ];
    catalog.write_boots(&writes).await.unwrap();
    // The answer was lost, the batch is sent again.
    catalog.write_boots(&writes).await.unwrap();

    let stages = "SELECT string_agg(stage || ':' || step_seconds, ' ') FROM boot_timeline";
    assert_eq!(
        db.text(stages).await.unwrap(),
        "discover:0.000 offer:0.000 script:1.500 kernel_sent:2.500"
    );
    let line = "SELECT concat_ws('|', mac, client, image, since_start_seconds, status, outcome, detail ->> 'door') FROM boot_timeline WHERE stage = 'script'";
    assert_eq!(
        db.text(line).await.unwrap(),
        "52:54:00:00:00:01|pc-0001|debian|1.500|starting|open|http"
    );
    assert_eq!(
        db.text("SELECT concat_ws('|', client, image, status, stage, server) FROM active_sessions")
            .await
            .unwrap(),
        "pc-0001|debian|starting|kernel_sent|boot1"
    );
    assert_eq!(
        catalog.get_active_sessions().await.unwrap(),
        [session.clone()]
    );
    assert_eq!(
        catalog
            .get_client(machine.id)
            .await
            .unwrap()
            .unwrap()
            .boot_count,
        1
    );
    assert_eq!(
        catalog
            .get_image_metadata(image.id)
            .await
            .unwrap()
            .unwrap()
            .phone_home,
        PhoneHome::Expected
    );

    let open = catalog.open_attempts(server).await.unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(
        (&open[0].0, open[0].1.len(), &open[0].2),
        (&boot, 4, &Some(session.clone()))
    );
    assert!(
        catalog
            .open_attempts(Uuid::new_v4())
            .await
            .unwrap()
            .is_empty()
    );

    assert!(
        catalog
            .update_boot_session_status(boot.id, SessionStatus::Running, at(42_900), None)
            .await
            .unwrap()
    );
    assert!(
        db.text("SELECT state FROM client_status")
            .await
            .unwrap()
            .starts_with("up since ")
    );
    assert!(
        catalog
            .update_boot_session_status(
                boot.id,
                SessionStatus::Shutdown,
                at(100_000),
                Some("poweroff")
            )
            .await
            .unwrap()
    );
    assert!(
        !catalog
            .update_boot_session_status(Uuid::new_v4(), SessionStatus::Running, at(0), None)
            .await
            .unwrap()
    );
    boot.ended_at = Some(at(100_000));
    boot.outcome = AttemptOutcome::Completed;
    catalog
        .write_boots(&[BootWrite::Attempt(boot.clone())])
        .await
        .unwrap();
    let (_, _, got) = catalog.get_attempt(boot.id).await.unwrap().unwrap();
    session.status = SessionStatus::Shutdown;
    session.ended_at = boot.ended_at;
    session.boot_time_seconds = Some(42);
    session.error_message = Some("poweroff".to_owned());
    assert_eq!(got, Some(session));
    assert!(catalog.get_active_sessions().await.unwrap().is_empty());
    assert_eq!(
        catalog
            .count_attempts(AttemptOutcome::Completed)
            .await
            .unwrap(),
        1
    );
    let day = "SELECT concat_ws('|', image, attempts, came_up, p50_boot_seconds, p95_boot_seconds) FROM boot_stats_daily";
    assert_eq!(db.text(day).await.unwrap(), "debian|1|1|42|42");
    assert!(
        db.text("SELECT count(*) > 2 FROM slow_stages")
            .await
            .unwrap()
            == "true"
    );
}

#[tokio::test]
async fn what_no_longer_fits_is_set_aside_and_holds_nothing_up() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let image = image("gone");
    let machine = client(1);
    let boot = attempt(&machine, Uuid::nil());
    let at = boot.started_at;
    let mut strange = event(boot.id, at, Stage::Refused);
    if let BootWrite::Event(event) = &mut strange {
        // PostgreSQL's JSON can't hold this one.
        event.detail = serde_json::json!({"cause": "\u{0}"});
    }
    // Neither the client nor the image exists, one event belongs to nothing.
    let writes = [
        BootWrite::Attempt(boot.clone()),
        BootWrite::Session(session(&boot, image.id)),
        event(Uuid::new_v4(), at, Stage::Up),
        strange,
        event(boot.id, at, Stage::Discover),
        BootWrite::ClientBooted {
            client_id: machine.id,
            at,
        },
        BootWrite::ImageReports { image_id: image.id },
    ];
    catalog.write_boots(&writes).await.unwrap();
    let (kept, events, none) = catalog.get_attempt(boot.id).await.unwrap().unwrap();
    assert_eq!(
        (kept.client_id, kept.client_name.as_deref()),
        (None, Some("pc-0001"))
    );
    assert_eq!(
        events.iter().map(|e| e.stage).collect::<Vec<_>>(),
        [Stage::Discover]
    );
    assert_eq!(none, None);
}

#[tokio::test]
async fn history_outlives_client_and_image() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let image = image("debian");
    catalog.save_image_metadata(&image).await.unwrap();
    let machine = client(1);
    catalog.save_client_config(&machine).await.unwrap();
    let mut boot = attempt(&machine, Uuid::nil());
    boot.image_name = Some(image.name.clone());
    let id = catalog
        .create_boot_session(&session(&boot, image.id))
        .await
        .unwrap();
    catalog
        .write_boots(&[event(id, boot.started_at, Stage::Discover)])
        .await
        .unwrap();
    assert!(
        catalog
            .create_boot_session(&session(&boot, image.id))
            .await
            .is_err()
    );
    catalog.delete_client(machine.id).await.unwrap();
    catalog.delete_image_metadata(image.id, true).await.unwrap();
    let left = "SELECT concat_ws('|', client, image, stage) FROM boot_timeline";
    assert_eq!(db.text(left).await.unwrap(), "pc-0001|debian|discover");
    assert!(
        catalog
            .create_boot_session(&session(&attempt(&machine, Uuid::nil()), image.id))
            .await
            .is_err()
    );
    assert_eq!(
        catalog
            .list_attempts(AttemptFilter::default(), Page::default())
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn why_did_it_not_come_up() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let (failed, never, mut waiting) = (client(1), client(2), client(3));
    waiting.auto_registered = true;
    waiting.enabled = false;
    for machine in [&failed, &never, &waiting] {
        catalog.save_client_config(machine).await.unwrap();
    }
    let mut boot = attempt(&failed, Uuid::nil());
    boot.ended_at = Some(boot.started_at);
    boot.outcome = AttemptOutcome::Failed;
    boot.last_stage = Stage::LoaderOffered;
    boot.reason = Some("the loader snponly.efi is missing".to_owned());
    let mut stranger = attempt(&client(9), Uuid::nil());
    stranger.client_id = None;
    stranger.range_id = Some(lab.id);
    let knocking = attempt(&waiting, Uuid::nil());
    let writes = [boot.clone(), stranger, knocking].map(BootWrite::Attempt);
    catalog.write_boots(&writes).await.unwrap();

    let state = async |name: &str| {
        db.text(&format!(
            "SELECT state FROM client_status WHERE client = '{name}'"
        ))
        .await
        .unwrap()
    };
    assert_eq!(
        state("pc-0001").await,
        "failed at stage loader_offered: the loader snponly.efi is missing"
    );
    assert_eq!(state("pc-0002").await, "never seen, no image assigned");
    assert_eq!(state("pc-0003").await, "booting, at stage discover");
    assert_eq!(
        db.text("SELECT concat_ws('|', client, stage, cause) FROM failed_boots")
            .await
            .unwrap(),
        "pc-0001|loader_offered|the loader snponly.efi is missing"
    );
    assert_eq!(db.text("SELECT string_agg(concat_ws('|', mac, registered_as, range), ' ' ORDER BY mac) FROM unknown_machines").await.unwrap(), "52:54:00:00:00:03|pc-0003 52:54:00:00:00:09|lab1");
    let filter = AttemptFilter {
        mac: Some(failed.mac_address),
        ..AttemptFilter::default()
    };
    assert_eq!(
        catalog
            .list_attempts(filter, Page::default())
            .await
            .unwrap(),
        [(boot, None)]
    );
    let open = AttemptFilter {
        open_only: true,
        ..AttemptFilter::default()
    };
    assert_eq!(
        catalog
            .list_attempts(open, Page::default())
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn pool_usage_counts_what_can_be_given_away() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut lab = range(1);
    lab.exclusions = vec!["10.1.0.190-10.1.0.210".parse().unwrap()];
    lab.gateway = Some("10.1.0.100".parse().unwrap());
    catalog.save_network_range(&lab).await.unwrap();
    let mut reserved = client(1);
    reserved.ip_address = Some("10.1.0.101".parse().unwrap());
    catalog.save_client_config(&reserved).await.unwrap();
    let mut over = lease(&lab, 104, mac(5));
    over.starts_at -= TimeDelta::days(1);
    let leases = [
        lease(&lab, 102, mac(2)),
        lease(&lab, 103, mac(3)),
        over,
        lease(&lab, 101, reserved.mac_address),
    ];
    catalog.commit_leases(&leases, Uuid::nil()).await.unwrap();
    catalog
        .end_lease(
            leases[1].address,
            mac(3),
            dls::model::LeaseState::Declined,
            leases[1].starts_at,
            900,
        )
        .await
        .unwrap();
    // 100 less 10 excluded, the gateway and the reserved address.
    let usage =
        "SELECT concat_ws('|', size, used, declined, free, reserved, leases) FROM pool_usage";
    assert_eq!(db.text(usage).await.unwrap(), "88|1|1|86|1|4");
    assert_eq!(db.text("SELECT string_agg(machine || ' ' || lasts, ',') FROM current_leases WHERE machine IS NOT NULL").await.unwrap(), "pc-0001 true");
}

#[tokio::test]
async fn health_and_servers() {
    let db = TestDb::new().await;
    let id = Uuid::new_v4();
    let catalog = db.catalog_of(id).await;
    let (at, _) = catalog.health_check().await.unwrap();
    assert!((at - crate::support::now()).abs() < TimeDelta::minutes(1));
    for version in ["1", "2"] {
        catalog
            .save_server(id, "boot1", &["10.1.0.1".parse().unwrap()], version)
            .await
            .unwrap();
    }
    assert_eq!(
        db.text("SELECT version || addresses::text FROM servers")
            .await
            .unwrap(),
        "2{10.1.0.1}"
    );
    catalog.close().await;
    assert!(catalog.health_check().await.is_err());
}
