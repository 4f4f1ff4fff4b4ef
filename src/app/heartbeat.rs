//! This server's row in `servers`, kept fresh, and our clock, kept to PostgreSQL's.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;

/// How often.
const EVERY: Duration = Duration::from_secs(10);

/// A difference of the clocks worth a line in the log.
const WORTH_SAYING: chrono::TimeDelta = chrono::TimeDelta::seconds(2);

/// Registers this server, and takes PostgreSQL's time as ours.
pub(super) async fn once(catalog: &Catalog, clock: &Clock, id: Uuid) -> Result<(), CatalogError> {
    let (authority, round_trip) = catalog.health_check().await?;
    let shift = clock.learn(authority, round_trip);
    if shift.abs() > WORTH_SAYING {
        tracing::warn!(
            seconds = shift.num_seconds(),
            "this machine's clock differs from the database's, which is taken"
        );
    }
    let name = nix::unistd::gethostname().map_or_else(
        |_| "unnamed".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    catalog
        .save_server(id, &name, &addresses(), env!("CARGO_PKG_VERSION"))
        .await
}

/// Again and again until cancelled; a database that is away is the next beat's business.
pub(super) async fn beat(catalog: Catalog, clock: Clock, id: Uuid, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(e) = once(&catalog, &clock, id).await {
            tracing::warn!(error = %e, "the heartbeat could not be written");
        }
    }
}

/// Our IPv4 addresses but for loopback.
fn addresses() -> Vec<Ipv4Addr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()))
        .filter(|address| !address.is_loopback())
        .collect()
}
