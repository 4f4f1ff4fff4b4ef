//! Lease blocks: kept, taken over in time and not before, and what the database refuses in them.

use std::net::Ipv4Addr;

use chrono::TimeDelta;
use dls::catalog::{Arranged, Arranging, Catalog};
use dls::model::{Block, Lease, LeaseState, NetworkRange, Pool};
use uuid::Uuid;

use crate::support::{TestDb, client, lease, mac, now, range};

struct Two {
    db: TestDb,
    catalog: Catalog,
    lab: NetworkRange,
    a: Uuid,
    b: Uuid,
}

impl Two {
    async fn new() -> Self {
        let db = TestDb::new().await;
        let catalog = db.catalog().await;
        let lab = range(1);
        catalog.save_network_range(&lab).await.unwrap();
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        for (id, name) in [(a, "a"), (b, "b")] {
            catalog.save_server(id, name, &[], "1").await.unwrap();
        }
        Self {
            db,
            catalog,
            lab,
            a,
            b,
        }
    }

    fn pool(&self, first: u8, last: u8) -> Pool {
        let at = |n| lease(&self.lab, n, mac(0)).address;
        Pool {
            first: at(first),
            last: at(last),
        }
    }

    /// The server claims these, as far as they are nobody else's.
    async fn claim(&self, server: Uuid, pools: &[Pool]) {
        let wanted = |now: Arranging<'_>| {
            let free = |p: &&Pool| {
                !now.others
                    .iter()
                    .any(|o| o.contains(p.first) || p.contains(o.first))
            };
            let own = |p: &Pool| now.own.iter().find(|o| o.addresses == *p).copied();
            let new = |p: &Pool| Arranged {
                addresses: *p,
                since: None,
                ripe: false,
            };
            pools
                .iter()
                .filter(free)
                .map(|p| own(p).unwrap_or_else(|| new(p)))
                .collect()
        };
        self.catalog
            .arrange_blocks(server, self.lab.id, &wanted)
            .await
            .unwrap();
    }

    async fn keep(&self, server: Uuid) -> Vec<Block> {
        self.catalog.keep_blocks(server, 600).await.unwrap()
    }

    async fn commit(&self, server: Uuid, lease: &Lease) -> bool {
        let one = std::slice::from_ref(lease);
        self.catalog.commit_leases(one, server).await.unwrap()[0]
    }

    async fn owners(&self) -> String {
        let all = "SELECT coalesce(string_agg(server || ' ' || host(first_address), ', ' ORDER BY first_address), '') FROM lease_block_status";
        self.db.text(all).await.unwrap()
    }

    async fn sql(&self, sql: &str) {
        self.db.sql(sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_new_lease_in_a_block_is_its_owners_to_make() {
    let two = Two::new().await;
    two.keep(two.a).await;
    two.claim(two.a, &[two.pool(100, 119)]).await;
    let (one, other) = (lease(&two.lab, 100, mac(1)), lease(&two.lab, 101, mac(2)));
    assert!(!two.commit(two.b, &one).await, "a's to give");
    assert!(two.commit(two.a, &one).await);
    assert!(
        two.commit(two.b, &lease(&two.lab, 120, mac(3))).await,
        "nobody's"
    );
    // Anybody renews, and writes down that an address is in use.
    let renewed = Lease {
        starts_at: now(),
        ..one.clone()
    };
    assert!(two.commit(two.b, &renewed).await);
    let declined = Lease {
        state: LeaseState::Declined,
        ..other.clone()
    };
    assert!(two.commit(two.b, &declined).await);
    // A reserved address is its client's, whoever serves it.
    let mut machine = client(7);
    machine.ip_address = Some(lease(&two.lab, 110, mac(7)).address);
    two.catalog.save_client_config(&machine).await.unwrap();
    assert!(
        two.commit(two.b, &lease(&two.lab, 110, machine.mac_address))
            .await
    );
    // What another server has renewed since, a late release does not end.
    let early = renewed.starts_at - TimeDelta::seconds(5);
    let end = |at| {
        two.catalog
            .end_lease(one.address, one.mac, LeaseState::Released, at, 0)
    };
    assert!(!end(early).await.unwrap());
    assert!(end(now()).await.unwrap());
}

#[tokio::test]
async fn blocks_are_kept_and_nobody_has_the_same_address() {
    let two = Two::new().await;
    assert!(two.keep(two.a).await.is_empty());
    two.claim(two.a, &[two.pool(100, 109)]).await;
    two.claim(two.b, &[two.pool(105, 115), two.pool(120, 129)])
        .await;
    assert_eq!(two.owners().await, "a 10.1.0.100, b 10.1.0.120");
    let blocks = two.keep(two.a).await;
    assert_eq!(blocks.len(), 2);
    assert!(blocks.iter().all(|block| !block.ripe), "claimed just now");
    two.sql("UPDATE lease_blocks SET claimed_at = now() - interval '1 minute'")
        .await;
    // What is kept keeps its age, what comes to it does not have it.
    two.claim(two.a, &[two.pool(100, 109), two.pool(130, 131)])
        .await;
    let ripe: Vec<(Ipv4Addr, bool)> = two
        .keep(two.a)
        .await
        .iter()
        .map(|block| (block.addresses.first, block.ripe))
        .collect();
    let first = |n| two.pool(n, n).first;
    assert_eq!(
        ripe,
        [(first(100), true), (first(120), true), (first(130), false)]
    );
    // PostgreSQL itself refuses what overlaps, and what is no address.
    let insert = |first: &str, last: &str| {
        format!(
            "INSERT INTO lease_blocks (range_id, first_address, last_address, server_id) VALUES ('{}', '{first}', '{last}', '{}')",
            two.lab.id, two.b
        )
    };
    assert!(
        two.db
            .refused(&insert("10.1.0.90", "10.1.0.100"))
            .await
            .contains("lease_blocks_apart")
    );
    assert!(two.db.refused(&insert("10.1.0.9", "10.1.0.8")).await == "22000");
    assert!(
        two.db
            .refused(&insert("10.1.0.0/28", "10.1.0.9"))
            .await
            .contains("lease_blocks_first_check")
    );
}

#[tokio::test]
async fn a_block_is_taken_over_when_its_claim_and_the_longest_lease_are_over() {
    let two = Two::new().await;
    two.keep(two.a).await;
    two.claim(two.a, &[two.pool(100, 109)]).await;
    let wanted = [two.pool(100, 109)];
    let longest = two.lab.lease_seconds;
    let ago = |seconds: u32| {
        format!(
            "UPDATE servers SET claims_until = now() - make_interval(secs => {seconds}) WHERE name = 'a'"
        )
    };
    two.sql(&ago(longest - 60)).await;
    two.claim(two.b, &wanted).await;
    assert_eq!(
        two.owners().await,
        "a 10.1.0.100",
        "its last leases may still run"
    );
    // The range's leases are shorter by now: those that were given are as long as they were.
    two.sql(&format!(
        "UPDATE network_ranges SET lease_seconds = 60 WHERE id = '{}'",
        two.lab.id
    ))
    .await;
    two.claim(two.b, &wanted).await;
    assert_eq!(two.owners().await, "a 10.1.0.100");
    two.sql(&ago(longest + 60)).await;
    two.claim(two.b, &wanted).await;
    assert_eq!(two.owners().await, "b 10.1.0.100");
    // The first one comes back: it has nothing, and what it gave away meanwhile does not fit.
    assert!(
        two.keep(two.a)
            .await
            .iter()
            .all(|block| block.server_id == two.b)
    );
    assert!(!two.commit(two.a, &lease(&two.lab, 101, mac(1))).await);
}

#[tokio::test]
async fn who_stops_in_good_order_finds_its_blocks_again_for_a_while() {
    let two = Two::new().await;
    two.keep(two.a).await;
    two.claim(two.a, &[two.pool(100, 109)]).await;
    two.catalog.rest_blocks(two.a).await.unwrap();
    two.claim(two.b, &[two.pool(100, 109)]).await;
    assert_eq!(two.owners().await, "a 10.1.0.100");
    assert_eq!(two.keep(two.a).await.len(), 1);
    two.catalog.rest_blocks(two.a).await.unwrap();
    two.sql("UPDATE servers SET heartbeat_at = now() - interval '6 minutes' WHERE name = 'a'")
        .await;
    two.claim(two.b, &[two.pool(100, 109)]).await;
    assert_eq!(two.owners().await, "b 10.1.0.100");
    // Removed by a person: at once.
    two.sql("DELETE FROM servers WHERE name = 'b'").await;
    assert_eq!(two.owners().await, "");
}

#[tokio::test]
async fn leases_of_a_server_that_lie_in_no_block_are_found() {
    let two = Two::new().await;
    two.keep(two.a).await;
    for (n, server) in [(100, two.a), (101, two.a), (102, two.b)] {
        assert!(
            two.commit(server, &lease(&two.lab, n, mac(u32::from(n))))
                .await
        );
    }
    two.claim(two.a, &[two.pool(101, 101)]).await;
    let outside = two.catalog.leases_outside_blocks(two.a).await.unwrap();
    assert_eq!(outside, [two.pool(100, 100).first]);
}

/// The clock went forward by an hour, and the first server moved what was written before; the
/// second, which notices later, moves what it wrote meanwhile by the old time.
#[tokio::test]
async fn a_clock_that_was_set_moves_each_lease_once() {
    let two = Two::new().await;
    let new = now();
    let old = |seconds: i64| new - TimeDelta::hours(1) + TimeDelta::seconds(seconds);
    let given = |n: u8, at| Lease {
        starts_at: at,
        ..lease(&two.lab, n, mac(u32::from(n)))
    };
    let store = async |server, n, at| {
        let stored = two.catalog.commit_leases(&[given(n, at)], server).await;
        assert_eq!(stored.unwrap(), [true]);
    };
    store(two.a, 11, old(-600)).await;
    store(two.b, 12, old(-600)).await;
    let follow = async |server, before| {
        let moved = two.catalog.follow_clock(server, 3600.0, before).await;
        moved.unwrap()
    };
    assert_eq!(follow(two.a, old(0)).await, 2);
    // It has not noticed yet.
    store(two.b, 13, old(3)).await;
    store(two.a, 14, new).await;
    assert_eq!(follow(two.b, old(5)).await, 1);
    assert_eq!(follow(two.b, old(5)).await, 0, "again, after a failure");
    let mut rows = two.catalog.list_leases(None).await.unwrap();
    rows.sort_by_key(|l| l.address);
    let ages: Vec<i64> = rows
        .iter()
        .map(|l| (new - l.starts_at).num_seconds())
        .collect();
    assert_eq!(ages, [600, 600, -3, 0]);
    // The same shift much later is another jump; backwards, leases that seem to begin later
    // are those of before.
    two.sql("UPDATE clock_jumps SET noticed_at = noticed_at - interval '1 day'")
        .await;
    let moved = two
        .catalog
        .follow_clock(two.a, -3600.0, new + TimeDelta::seconds(9))
        .await;
    assert_eq!(moved.unwrap(), 4);
    let jumps = two.db.text("SELECT count(*)::text FROM clock_jumps").await;
    assert_eq!(jumps.as_deref(), Some("2"));
}
