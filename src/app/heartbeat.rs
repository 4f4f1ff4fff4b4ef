//! This server's row in `servers`, kept fresh, and our clock, kept to PostgreSQL's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cache::Cache;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::{Clock, JUMP};
use crate::model::Contact;

/// How often.
const EVERY: Duration = Duration::from_secs(10);

/// A difference of the clocks worth a line in the log.
const WORTH_SAYING: chrono::TimeDelta = chrono::TimeDelta::seconds(2);

/// This server, as its row has it.
#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) id: Uuid,
    pub(super) name: Option<String>,
    pub(super) boot: SocketAddr,
    pub(super) replication: Option<SocketAddr>,
}

impl Who {
    /// How others reach it now: interfaces come and go.
    fn contact(&self, fingerprint: &str) -> Contact {
        Contact {
            replication_addresses: self.replication.map(reached_at).unwrap_or_default(),
            replication_port: self.replication.map(|at| at.port()),
            certificate_sha256: self.replication.map(|_| fingerprint.to_owned()),
            boot_addresses: reached_at(self.boot),
            boot_port: Some(self.boot.port()),
        }
    }
}

/// The addresses of a listener: the one that it has, or all of ours.
fn reached_at(listener: SocketAddr) -> Vec<Ipv4Addr> {
    match listener.ip().to_canonical() {
        ip if ip.is_unspecified() => addresses(),
        IpAddr::V4(ip) => vec![ip],
        IpAddr::V6(_) => Vec::new(),
    }
}

/// Takes PostgreSQL's time as ours: at once where nothing was done by ours so far, or where it
/// differs by little. If its clock was set meanwhile, the DHCP server moves the leases first.
async fn learn(catalog: &Catalog, clock: &Clock, at_work: bool) -> Result<(), CatalogError> {
    let (authority, asked) = catalog.health_check().await?;
    let shift = clock.differs(authority, asked);
    if at_work && shift.abs() > JUMP {
        if clock.held_back().is_none() {
            tracing::warn!(
                seconds = shift.num_seconds(),
                "the database's clock was set; leases are moved with it"
            );
        }
        clock.hold_back(shift);
        return Ok(());
    }
    clock.shift(shift);
    if shift.abs() > WORTH_SAYING {
        tracing::warn!(
            seconds = shift.num_seconds(),
            "this machine's clock differs from the database's, which is taken"
        );
    }
    Ok(())
}

/// Registers this server, and takes PostgreSQL's time as ours; `at_work`: it served before.
pub(super) async fn once(
    catalog: &Catalog,
    clock: &Clock,
    who: &Who,
    at_work: bool,
) -> Result<(), CatalogError> {
    learn(catalog, clock, at_work).await?;
    let of_host = || {
        nix::unistd::gethostname().map_or_else(
            |_| "unnamed".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    let name = who.name.clone().unwrap_or_else(of_host);
    catalog
        .save_server(who.id, &name, &addresses(), env!("CARGO_PKG_VERSION"))
        .await
}

/// Again and again until cancelled; a database that is away is the next beat's business.
pub(super) async fn beat(
    (catalog, cache): (Catalog, Cache),
    clock: Clock,
    who: Who,
    fingerprint: String,
    cancel: CancellationToken,
) {
    loop {
        let beaten = async {
            once(&catalog, &clock, &who, true).await?;
            let contact = who.contact(&fingerprint);
            catalog.publish_contact(who.id, &contact).await?;
            cache.refresh_site().await
        };
        if let Err(e) = beaten.await {
            tracing::warn!(error = %e, "the heartbeat could not be written");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
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
