//! Leases: who gets an address when several ask, and that an acknowledged one is stored.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use chrono::TimeDelta;
use dls::catalog::BootWrite;
use dls::catalog::embedded::{Embedded, choose_user};
use dls::model::{AttemptOutcome, Lease, LeaseState};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::{
    TestDb, attempt, client, die_with_us, lease, mac, now, open, range, state_dir,
};

#[tokio::test]
async fn leases_come_back_as_they_were_committed() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let mut one = lease(&lab, 100, mac(1));
    one.hostname = Some("pc.example".parse().unwrap());
    one.relay_information = Some(vec![1, 4, 0, 0, 0, 1]);
    let mut two = lease(&lab, 101, mac(2));
    two.client_identifier = None;
    two.length_seconds = Lease::INFINITE;
    let server = Uuid::new_v4();
    assert_eq!(
        catalog
            .commit_leases(&[two.clone(), one.clone()], server)
            .await
            .unwrap(),
        [true, true]
    );
    assert_eq!(
        catalog.list_leases(None).await.unwrap(),
        [one.clone(), two.clone()]
    );
    assert_eq!(
        catalog.list_leases(Some(&[two.address])).await.unwrap(),
        [two.clone()]
    );
    let written = format!("SELECT count(*) FROM leases WHERE server_id = '{server}'");
    assert_eq!(db.text(&written).await.unwrap(), "2");
    assert_eq!(
        catalog.commit_leases(&[], server).await.unwrap(),
        Vec::<bool>::new()
    );

    // A renewal; another machine is refused; the same machine moves and leaves nothing behind.
    one.starts_at = now();
    let thief = lease(&lab, 101, mac(3));
    let mut moved = lease(&lab, 110, mac(1));
    assert_eq!(
        catalog
            .commit_leases(&[one, thief.clone()], server)
            .await
            .unwrap(),
        [true, false]
    );
    assert_eq!(
        catalog
            .commit_leases(std::slice::from_ref(&moved), server)
            .await
            .unwrap(),
        [true]
    );
    let addresses: Vec<Ipv4Addr> = catalog
        .list_leases(None)
        .await
        .unwrap()
        .iter()
        .map(|l| l.address)
        .collect();
    assert_eq!(addresses, [two.address, moved.address]);
    // A machine whose new address is refused keeps its old one.
    moved.address = two.address;
    assert_eq!(
        catalog.commit_leases(&[moved], server).await.unwrap(),
        [false]
    );
    assert_eq!(catalog.list_leases(None).await.unwrap().len(), 2);
    // Refused rows do not take the good ones with them: no such range, outside the range.
    let good = lease(&lab, 120, mac(9));
    let mut nowhere = lease(&lab, 121, mac(10));
    nowhere.range_id = Uuid::new_v4();
    let mut outside = lease(&lab, 122, mac(11));
    outside.address = Ipv4Addr::new(10, 2, 0, 1);
    assert_eq!(
        catalog
            .commit_leases(&[nowhere, good, outside, thief], server)
            .await
            .unwrap(),
        [false, true, false, false]
    );
}

#[tokio::test]
async fn what_comes_late_takes_nothing_newer_away() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let commit = async |lease: &Lease| {
        let one = std::slice::from_ref(lease);
        catalog.commit_leases(one, Uuid::new_v4()).await.unwrap()[0]
    };
    let held = lease(&lab, 100, mac(1));
    assert!(commit(&held).await);
    // Decided by a server that then stood still: another address, and the same one.
    let mut late = lease(&lab, 101, mac(1));
    late.starts_at = held.starts_at - TimeDelta::seconds(10);
    assert!(!commit(&late).await);
    late.address = held.address;
    assert!(commit(&late).await);
    let rows = catalog.list_leases(None).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].ends_at(), held.ends_at());
    // Clocks differ by a little; one that was an hour ahead binds nobody.
    let mut moved = lease(&lab, 102, mac(1));
    moved.starts_at = held.starts_at - TimeDelta::seconds(1);
    assert!(commit(&moved).await);
    db.sql("UPDATE leases SET starts_at = now() + interval '1 hour'")
        .await
        .unwrap();
    let again = lease(&lab, 103, mac(1));
    assert!(commit(&again).await);
    assert_eq!(catalog.list_leases(None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn released_and_run_out_addresses_are_taken_over_unless_the_machine_still_runs() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let server = Uuid::new_v4();
    let commit = async |lease: &Lease| {
        catalog
            .commit_leases(std::slice::from_ref(lease), server)
            .await
            .unwrap()[0]
    };

    let old = lease(&lab, 100, mac(1));
    assert!(commit(&old).await);
    assert!(
        !catalog
            .end_lease(old.address, mac(2), LeaseState::Released, now(), 0)
            .await
            .unwrap()
    );
    // What a server owed is told late: the machine has a newer lease of it by now, and keeps that.
    let before = old.starts_at - TimeDelta::seconds(1);
    for state in [LeaseState::Released, LeaseState::Declined] {
        let ended = catalog.end_lease(old.address, mac(1), state, before, 600);
        assert!(!ended.await.unwrap());
    }
    assert!(!commit(&lease(&lab, 100, mac(2))).await);
    assert!(
        catalog
            .end_lease(old.address, mac(1), LeaseState::Released, now(), 0)
            .await
            .unwrap()
    );
    assert!(commit(&lease(&lab, 100, mac(2))).await);

    // Run out, but its machine runs: not given away until that boot is over.
    let machine = client(3);
    catalog.save_client_config(&machine).await.unwrap();
    let mut boot = attempt(&machine, server);
    catalog
        .write_boots(&[BootWrite::Attempt(boot.clone())])
        .await
        .unwrap();
    let mut run_out = lease(&lab, 101, machine.mac_address);
    run_out.starts_at = now() - TimeDelta::hours(2);
    assert!(commit(&run_out).await);
    assert!(!commit(&lease(&lab, 101, mac(4))).await);
    boot.ended_at = Some(now());
    boot.outcome = AttemptOutcome::Completed;
    catalog
        .write_boots(&[BootWrite::Attempt(boot)])
        .await
        .unwrap();
    assert!(commit(&lease(&lab, 101, mac(4))).await);

    // Declined: out of use for its time, and no longer the machine's lease.
    assert!(
        catalog
            .end_lease(
                Ipv4Addr::new(10, 1, 0, 101),
                mac(4),
                LeaseState::Declined,
                now(),
                600
            )
            .await
            .unwrap()
    );
    assert!(commit(&lease(&lab, 102, mac(4))).await);
    assert!(!commit(&lease(&lab, 101, mac(5))).await);
    let declined = catalog
        .list_leases(Some(&[Ipv4Addr::new(10, 1, 0, 101)]))
        .await
        .unwrap();
    assert_eq!(
        (declined[0].state, declined[0].length_seconds),
        (LeaseState::Declined, 600)
    );
    db.sql("UPDATE leases SET starts_at = now() - interval '1 hour' WHERE address = '10.1.0.101'")
        .await
        .unwrap();
    assert!(commit(&lease(&lab, 101, mac(5))).await);
    // Infinite leases do not run out.
    let mut for_ever = lease(&lab, 103, mac(6));
    for_ever.length_seconds = Lease::INFINITE;
    for_ever.starts_at = now() - TimeDelta::days(5000);
    assert!(commit(&for_ever).await);
    assert!(!commit(&lease(&lab, 103, mac(7))).await);
}

/// A pool of N serves N: two servers, each with its own pool of connections, lease the same
/// hundred addresses to two hundred machines. Every address goes to exactly one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_lease_one_pool() {
    let db = TestDb::new().await;
    let lab = range(1);
    let first = db.catalog().await;
    first.save_network_range(&lab).await.unwrap();
    let mut servers = tokio::task::JoinSet::new();
    for server in 0..2_u32 {
        let (catalog, lab) = (db.catalog().await, lab.clone());
        servers.spawn(async move {
            let mut won = Vec::new();
            for batch in 0..10_u32 {
                // Both go through the addresses in opposite orders, ten at a time.
                let start = if server == 0 {
                    batch * 10
                } else {
                    90 - batch * 10
                };
                let leases: Vec<Lease> = (start..start + 10)
                    .map(|n| lease(&lab, 100 + u8::try_from(n).unwrap(), mac(server * 1000 + n)))
                    .collect();
                let stored = catalog
                    .commit_leases(&leases, Uuid::new_v4())
                    .await
                    .unwrap();
                won.extend(
                    leases
                        .into_iter()
                        .zip(stored)
                        .filter(|(_, s)| *s)
                        .map(|(l, _)| (l.address, l.mac)),
                );
            }
            won
        });
    }
    let won: Vec<_> = servers.join_all().await.into_iter().flatten().collect();
    let stored: HashSet<_> = first
        .list_leases(None)
        .await
        .unwrap()
        .into_iter()
        .map(|l| (l.address, l.mac))
        .collect();
    assert_eq!(won.len(), 100);
    assert_eq!(won.into_iter().collect::<HashSet<_>>(), stored);
}

/// One machine asks two servers at once: it ends with one lease, and neither server fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_machine_asks_two_servers_at_once() {
    let db = TestDb::new().await;
    let lab = range(1);
    let (one, two) = (db.catalog().await, db.catalog().await);
    one.save_network_range(&lab).await.unwrap();
    for n in 0..20 {
        let machine = mac(n);
        let (a, b) = (lease(&lab, 100, machine), lease(&lab, 101, machine));
        let (a, b) = ([a], [b]);
        let (first, second) = tokio::join!(
            one.commit_leases(&a, Uuid::nil()),
            two.commit_leases(&b, Uuid::nil())
        );
        first.unwrap();
        second.unwrap();
        assert_eq!(
            db.text(&format!(
                "SELECT count(*) FROM leases WHERE mac = '{machine}'"
            ))
            .await
            .unwrap(),
            "1"
        );
        db.sql("DELETE FROM leases").await.unwrap();
    }
}

/// What was acknowledged before the postmaster was killed is there afterwards.
#[tokio::test]
async fn an_acknowledged_lease_outlives_kill_9_of_the_postmaster() {
    let dir = state_dir();
    let mut embedded = Embedded::start(dir.path(), choose_user().as_ref())
        .await
        .unwrap();
    die_with_us(embedded.pid(), None);
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    let lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();

    let pid = nix::unistd::Pid::from_raw(i32::try_from(embedded.pid()).unwrap());
    let writer = tokio::spawn({
        let (catalog, lab) = (catalog.clone(), lab.clone());
        async move {
            let mut acknowledged = Vec::new();
            for n in 100..200_u8 {
                let one = lease(&lab, n, mac(u32::from(n)));
                match catalog
                    .commit_leases(std::slice::from_ref(&one), Uuid::nil())
                    .await
                {
                    Ok(stored) if stored == [true] => acknowledged.push(one),
                    _ => {}
                }
            }
            acknowledged
        }
    });
    tokio::time::sleep(Duration::from_millis(60)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    while !embedded.supervise().await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    die_with_us(embedded.pid(), None);
    let acknowledged = writer.await.unwrap();
    let stored = catalog.list_leases(None).await.unwrap();
    assert!(!acknowledged.is_empty());
    for lease in &acknowledged {
        assert!(stored.contains(lease), "{lease:?}");
    }
    catalog.close().await;
    embedded.stop().await.unwrap();
}

/// What machines cause is written in batches of any length, by statements that are planned once for
/// all of them: PostgreSQL would plan those of a few rows anew each time, which takes longer than they do.
#[tokio::test]
async fn statements_of_batches_keep_their_plan() {
    let db = TestDb::new().await;
    let mut session = db.pool.acquire().await.unwrap();
    let mut batches = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let data: serde_json::Value = serde_json::from_str(&text).unwrap();
        let query = data["query"].as_str().unwrap();
        if !query.contains("unnest((SELECT $1") {
            continue;
        }
        batches += 1;
        // A row each. It is of nothing and is not run.
        let values: Vec<&str> = data["describe"]["parameters"]["Left"]
            .as_array()
            .unwrap()
            .iter()
            .map(|kind| match kind.as_str().unwrap().ends_with("Array") {
                true => "'{NULL}'",
                false => "NULL",
            })
            .collect();
        let run = format!("EXPLAIN EXECUTE batch({})", values.join(", "));
        let prepared = format!(
            "SET random_page_cost = 1.1; PREPARE batch AS {query}; {}",
            vec![run; 9].join("; ")
        );
        sqlx::raw_sql(AssertSqlSafe(prepared))
            .execute(&mut *session)
            .await
            .unwrap();
        let kept: i64 = sqlx::query_scalar(
            "SELECT generic_plans FROM pg_prepared_statements WHERE name = 'batch'",
        )
        .fetch_one(&mut *session)
        .await
        .unwrap();
        // PostgreSQL compares after five.
        assert_eq!(kept, 4, "{query}");
        sqlx::raw_sql("DEALLOCATE batch")
            .execute(&mut *session)
            .await
            .unwrap();
    }
    assert_eq!(
        batches, 5,
        "leases, their outdated ones, and three of boots"
    );
}
