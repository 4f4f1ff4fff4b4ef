//! Changes by anybody, told by PostgreSQL's NOTIFY.
//!
//! None is ever missed: on every new connection, once it listens, the first word is
//! [`Change::Everything`], and a connection that has silently died is found by pinging
//! ourselves through PostgreSQL, or by another host having become the primary.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use sqlx::postgres::{PgListener, PgNotification};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::connect::Chosen;
use super::{Catalog, Change};

const CONFIGURATION: &str = "dls_configuration";
const LEASES: &str = "dls_leases";

/// How often we ping ourselves; a ping that is not back by the next means a dead connection.
const PING_EVERY: Duration = Duration::from_secs(15);

impl Catalog {
    /// Changes by anybody, for ever: reconnects by itself, and says
    /// [`Change::Everything`] first and after every reconnect, so that none is missed. Leases
    /// that this server wrote are left out. Ends when the catalog is closed.
    ///
    /// Must be called within a tokio runtime; the connection is held by a task of its own,
    /// which ends with the stream.
    pub fn changes(&self) -> impl Stream<Item = Change> + Send + Unpin + 'static {
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(follow(self.clone(), sender));
        stream::unfold(receiver, |mut receiver| async move {
            let change = receiver.recv().await?;
            Some((change, receiver))
        })
        .boxed()
    }
}

/// Connects again and again until the reader has gone or the catalog is closed.
async fn follow(catalog: Catalog, sender: mpsc::Sender<Change>) {
    let mut pause = Duration::from_millis(100);
    while !sender.is_closed() && !catalog.pool().is_closed() {
        let ping = format!("dls_ping_{}", Uuid::new_v4().simple());
        let mut host = catalog.shared.chosen.subscribe();
        match connect(&catalog, &ping).await {
            Ok(listener) => {
                pause = Duration::from_millis(100);
                if sender.send(Change::Everything).await.is_err() {
                    return;
                }
                let why = hear(&catalog, listener, (&ping, &mut host), &sender).await;
                tracing::debug!(why, "the connection that hears of changes ended");
            }
            Err(error) => {
                tracing::debug!(%error, "can't listen for changes, trying again");
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                catalog.find_primary().await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

async fn connect(catalog: &Catalog, ping: &str) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(catalog.pool()).await?;
    // We connect anew ourselves: it would not say that it had to.
    listener.eager_reconnect(false);
    listener.listen_all([CONFIGURATION, LEASES, ping]).await?;
    Ok(listener)
}

/// Passes changes on until the connection ends; says why it ended.
async fn hear(
    catalog: &Catalog,
    mut listener: PgListener,
    (ping, host): (&str, &mut watch::Receiver<Chosen>),
    sender: &mpsc::Sender<Change>,
) -> &'static str {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.reset();
    let mut answered = true;
    loop {
        // Only ever dropped together with the listener, so that no half-read message is lost.
        let received = {
            let next = listener.try_recv();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    received = &mut next => break received,
                    () = sender.closed() => return "nobody reads it",
                    Ok(()) = host.changed() => return "another host takes writes now",
                    _ = ticks.tick() => {
                        if !answered {
                            return "it answers no ping";
                        }
                        answered = false;
                        send_ping(catalog, ping);
                    }
                }
            }
        };
        let notification = match received {
            Ok(Some(notification)) => notification,
            Ok(None) => return "it was closed",
            Err(error) => {
                tracing::debug!(%error, "listening failed");
                return "it failed";
            }
        };
        if notification.channel() == ping {
            answered = true;
            continue;
        }
        if let Some(change) = read(&notification, catalog.shared.server_id)
            && sender.send(change).await.is_err()
        {
            return "nobody reads it";
        }
    }
}

/// In a task of its own: a pool that is stuck must not keep changes from being heard.
fn send_ping(catalog: &Catalog, ping: &str) {
    let (pool, ping) = (catalog.pool().clone(), ping.to_owned());
    tokio::spawn(async move {
        let sent = sqlx::query!("SELECT pg_notify($1, '')", ping).execute(&pool);
        let _ = tokio::time::timeout(PING_EVERY, sent).await;
    });
}

fn read(notification: &PgNotification, own: Uuid) -> Option<Change> {
    match notification.channel() {
        CONFIGURATION => Some(read_configuration(notification.payload())),
        LEASES => read_leases(notification.payload(), own),
        _ => None,
    }
}

/// A table's name, or `clients ID,ID,..`.
fn read_configuration(payload: &str) -> Change {
    let ids = payload.strip_prefix("clients ").map(|ids| {
        let ids: Result<Vec<Uuid>, _> = ids.split(',').map(str::parse).collect();
        ids
    });
    match ids {
        Some(Ok(ids)) => Change::Clients(ids),
        Some(Err(_)) | None => Change::Configuration,
    }
}

/// `ORIGIN ADDRESS,ADDRESS,..` or `ORIGIN all`; what can't be read means everything.
fn read_leases(payload: &str, own: Uuid) -> Option<Change> {
    let Some((origin, addresses)) = payload.split_once(' ') else {
        return Some(Change::Everything);
    };
    if origin.parse() == Ok(own) {
        return None;
    }
    let addresses: Result<Vec<Ipv4Addr>, _> = addresses.split(',').map(str::parse).collect();
    Some(addresses.map_or(Change::Everything, Change::Leases))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_clients_or_all() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let few = read_configuration(&format!("clients {a},{b}"));
        assert_eq!(few, Change::Clients(vec![a, b]));
        for payload in ["clients", "clients x", "images", ""] {
            assert_eq!(read_configuration(payload), Change::Configuration);
        }
    }

    #[test]
    fn payloads() {
        let own = Uuid::from_u128(7);
        let other = Uuid::from_u128(8);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(read_leases(&format!("{own} 10.0.0.1"), own), None);
        assert_eq!(
            read_leases(&format!("{other} 10.0.0.1,10.0.0.2"), own),
            Some(Change::Leases(vec![a, b]))
        );
        assert_eq!(
            read_leases("- 10.0.0.1", own),
            Some(Change::Leases(vec![a]))
        );
        assert_eq!(read_leases("- all", own), Some(Change::Everything));
        assert_eq!(read_leases("", own), Some(Change::Everything));
    }
}
