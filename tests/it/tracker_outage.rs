//! The tracker while its database is away: nothing waits, nothing is lost, all in order.

use std::time::Duration;

use dls::boot::session::{Evidence, Speaker};
use dls::boot::tracker::Caps;
use dls::catalog::embedded::{Embedded, choose_user};
use uuid::Uuid;

use crate::support::{die_with_us, mac, open, state_dir};
use crate::tracker::{Bench, STAGES, whole_boot};

async fn start(dir: &std::path::Path) -> Embedded {
    let embedded = Embedded::start(dir, choose_user().as_ref()).await.unwrap();
    die_with_us(embedded.pid(), None);
    embedded
}

async fn events(catalog: &dls::catalog::Catalog, id: Uuid) -> String {
    let (_, events, _) = catalog.get_attempt(id).await.unwrap().unwrap();
    let stages: Vec<&str> = events.iter().map(|e| e.stage.as_str()).collect();
    stages.join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_through_an_outage_arrives_whole_and_in_order() {
    let dir = state_dir();
    let database = start(dir.path()).await;
    let server_id = Uuid::new_v4();
    let catalog = open(&database.url(), server_id).await;
    catalog.run_migrations().await.unwrap();
    let bench = Bench::new(catalog.clone(), server_id, Caps::default()).await;
    let boot = whole_boot();
    let mut id = None;
    for (n, what) in (0..).zip(boot.iter().take(4).cloned()) {
        id = bench.see(n * 10, what);
    }
    bench.written().await;
    let url = database.url();
    database.stop().await.unwrap();

    // In memory all goes on as if nothing had happened.
    for (n, what) in (4..).zip(boot.iter().skip(4).cloned()) {
        assert_eq!(bench.see(n * 10, what), id);
    }
    assert!(bench.tracker.is_live(mac(1)));
    assert!(!bench.tracker.drain(Duration::from_millis(300)).await);

    let database = start(dir.path()).await;
    assert_eq!(database.url(), url);
    bench.written().await;
    assert_eq!(events(&catalog, id.unwrap()).await, STAGES);
    bench.stop().await;
    catalog.close().await;
    database.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_keeps_the_newest_states() {
    let dir = state_dir();
    let database = start(dir.path()).await;
    let server_id = Uuid::new_v4();
    let catalog = open(&database.url(), server_id).await;
    catalog.run_migrations().await.unwrap();
    let caps = Caps {
        queued_rows: 60,
        ..Caps::default()
    };
    let bench = Bench::new(catalog.clone(), server_id, caps).await;
    database.stop().await.unwrap();
    // One machine boots again and again: each boot is 16 events and two states.
    let mut last = None;
    for boot in 0..20 {
        for (n, what) in (0..).zip(whole_boot()) {
            last = bench.see(boot * 1000 + n, what);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.see(30_000, Evidence::Discover(Speaker::Rom));
    let database = start(dir.path()).await;
    bench.written().await;
    let (attempt, _, session) = catalog.get_attempt(last.unwrap()).await.unwrap().unwrap();
    assert_eq!(
        attempt.reason.as_deref(),
        Some("started again without saying bye")
    );
    assert_eq!(session.unwrap().status.as_str(), "shutdown");
    bench.stop().await;
    catalog.close().await;
    database.stop().await.unwrap();
}
