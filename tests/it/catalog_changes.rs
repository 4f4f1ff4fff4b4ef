//! Changes by anybody are heard, by everybody, and none is missed.

use std::time::Duration;

use dls::catalog::{BootWrite, Change};
use futures_util::{Stream, StreamExt};
use uuid::Uuid;

use crate::support::{TestDb, attempt, client, image, lease, mac, range};

/// The next change; a bound only so that a broken build fails.
async fn next(changes: &mut (impl Stream<Item = Change> + Unpin)) -> Change {
    tokio::time::timeout(Duration::from_secs(30), changes.next())
        .await
        .unwrap()
        .unwrap()
}

/// Lets what is on its way arrive, then says what did.
async fn drain(db: &TestDb, changes: &mut (impl Stream<Item = Change> + Unpin)) -> Vec<Change> {
    // Notifications come in order: when this one is here, all before it are.
    db.sql("SELECT pg_notify('dls_leases', '- 192.0.2.99')")
        .await
        .unwrap();
    let mut heard = Vec::new();
    loop {
        match next(changes).await {
            Change::Leases(addresses)
                if addresses == ["192.0.2.99".parse::<std::net::Ipv4Addr>().unwrap()] =>
            {
                return heard;
            }
            change => heard.push(change),
        }
    }
}

#[tokio::test]
async fn edits_in_psql_and_by_the_program_are_heard() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut changes = catalog.changes();
    assert_eq!(next(&mut changes).await, Change::Everything);

    let (machine, image, lab) = (client(1), image("debian"), range(1));
    catalog.save_image_metadata(&image).await.unwrap();
    assert!(
        drain(&db, &mut changes)
            .await
            .contains(&Change::Configuration)
    );
    catalog.save_client_config(&machine).await.unwrap();
    let its = Change::Clients(vec![machine.id]);
    assert!(drain(&db, &mut changes).await.contains(&its));
    catalog.save_network_range(&lab).await.unwrap();
    assert!(
        drain(&db, &mut changes)
            .await
            .contains(&Change::Configuration)
    );
    for edit in [
        "UPDATE clients SET enabled = FALSE",
        "INSERT INTO client_macs (mac, client_id) SELECT '52:54:00:00:00:77', id FROM clients",
        "UPDATE client_macs SET mac = '52:54:00:00:00:78' WHERE mac = '52:54:00:00:00:77'",
        "DELETE FROM client_macs WHERE mac = '52:54:00:00:00:78'",
    ] {
        db.sql(edit).await.unwrap();
        let heard = drain(&db, &mut changes).await;
        assert_eq!(heard, std::slice::from_ref(&its), "{edit}");
    }
    // A boot changes nothing that anybody waits for.
    db.sql("UPDATE clients SET boot_count = 7, last_boot_at = now()")
        .await
        .unwrap();
    assert_eq!(drain(&db, &mut changes).await, []);
    for edit in [
        "UPDATE images SET cmdline = 'quiet'",
        "UPDATE image_files SET size_bytes = 7",
        "UPDATE network_ranges SET mtu = 1400",
        "DELETE FROM range_pools",
        "INSERT INTO range_exclusions (range_id, first, last) SELECT id, '10.1.0.5', '10.1.0.6' FROM network_ranges",
        "UPDATE site SET site_key = sha256('x')",
        "DELETE FROM images",
        "TRUNCATE clients CASCADE",
    ] {
        db.sql(edit).await.unwrap();
        let heard = drain(&db, &mut changes).await;
        assert!(heard.contains(&Change::Configuration), "{edit}: {heard:?}");
    }
}

#[tokio::test]
async fn boots_are_no_configuration() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let image = image("debian");
    catalog.save_image_metadata(&image).await.unwrap();
    let machine = client(1);
    catalog.save_client_config(&machine).await.unwrap();
    let mut changes = catalog.changes();
    assert_eq!(next(&mut changes).await, Change::Everything);
    let boot = attempt(&machine, Uuid::nil());
    catalog
        .write_boots(&[
            BootWrite::Attempt(boot.clone()),
            BootWrite::Session(crate::support::session(&boot, image.id)),
            BootWrite::ClientBooted {
                client_id: machine.id,
                at: boot.started_at,
            },
        ])
        .await
        .unwrap();
    catalog
        .save_server(Uuid::nil(), "x", &[], "1")
        .await
        .unwrap();
    assert_eq!(drain(&db, &mut changes).await, []);
    catalog
        .write_boots(&[BootWrite::ImageReports { image_id: image.id }])
        .await
        .unwrap();
    assert_eq!(drain(&db, &mut changes).await, [Change::Configuration]);
}

#[tokio::test]
async fn leases_of_others_are_heard_and_ones_own_are_not() {
    let db = TestDb::new().await;
    let (ours, theirs) = (db.catalog().await, db.catalog().await);
    let lab = range(1);
    ours.save_network_range(&lab).await.unwrap();
    let mut changes = ours.changes();
    assert_eq!(next(&mut changes).await, Change::Everything);

    ours.commit_leases(&[lease(&lab, 100, mac(1))], Uuid::nil())
        .await
        .unwrap();
    assert_eq!(drain(&db, &mut changes).await, []);
    let other = lease(&lab, 101, mac(2));
    theirs
        .commit_leases(std::slice::from_ref(&other), Uuid::nil())
        .await
        .unwrap();
    assert_eq!(
        drain(&db, &mut changes).await,
        [Change::Leases(vec![other.address])]
    );
    db.sql("DELETE FROM leases WHERE address = '10.1.0.100'")
        .await
        .unwrap();
    assert_eq!(
        drain(&db, &mut changes).await,
        [Change::Leases(vec!["10.1.0.100".parse().unwrap()])]
    );
    db.sql("UPDATE leases SET state = 'released'")
        .await
        .unwrap();
    assert_eq!(
        drain(&db, &mut changes).await,
        [Change::Leases(vec![other.address])]
    );
    db.sql("TRUNCATE leases").await.unwrap();
    assert_eq!(drain(&db, &mut changes).await, [Change::Everything]);

    // More than one notification holds.
    db.sql("INSERT INTO network_ranges (network) VALUES ('172.16.0.0/16');
            INSERT INTO leases (address, range_id, mac, length_seconds) SELECT inet '172.16.0.0' + n, id, '52:54:01:00:' || lpad(to_hex(n / 256), 2, '0') || ':' || lpad(to_hex(n % 256), 2, '0'), 60
            FROM network_ranges, generate_series(1, 1000) AS n WHERE network = '172.16.0.0/16'").await.unwrap();
    let heard: usize = drain(&db, &mut changes)
        .await
        .iter()
        .map(|change| match change {
            Change::Leases(addresses) => addresses.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(heard, 1000);
}

#[tokio::test]
async fn a_broken_connection_misses_nothing() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut changes = catalog.changes();
    assert_eq!(next(&mut changes).await, Change::Everything);
    for _ in 0..3 {
        // The listener's backend among them; the edit comes while nobody listens.
        db.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'dls';
             INSERT INTO clients (mac_address, hostname) SELECT '52:54:00:00:00:' || lpad(count(*)::text, 2, '0'), 'x' FROM clients",
        )
        .await
        .unwrap();
        loop {
            match next(&mut changes).await {
                Change::Everything => break,
                _ => continue,
            }
        }
        // And it listens again.
        db.sql("UPDATE clients SET hostname = 'y'").await.unwrap();
        assert!(matches!(next(&mut changes).await, Change::Clients(_)));
        // Idempotent work goes on over dead connections.
        catalog.load().await.unwrap();
    }
    catalog.close().await;
    while changes.next().await.is_some() {}
}
