//! What is owed to the database is paid, in order, when it is there.
//!
//! What it refuses for itself is set aside, with its reason in the log and a counter, and holds
//! nothing up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Committer, PAY_AGAIN};
use crate::catalog::CatalogError;
use crate::dhcp::ledger::Owed;
use crate::model::Lease;

/// Of what is set aside in one payment, so many are named in the log; all are at `debug`.
const NAMED: u64 = 5;

/// What is owed is paid in such batches, however long each takes.
const PAYMENT: (usize, Duration) = (512, Duration::from_secs(60));

impl<T: Send + 'static> Committer<T> {
    /// Pays what is owed whenever the database is there, until cancelled; then once more.
    pub(super) async fn pay_until(&self, cancel: CancellationToken) {
        let mut standing = self.catalog.watch_standing();
        while !cancel.is_cancelled() {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(PAY_AGAIN) => {}
                Ok(()) = standing.changed() => {}
            }
            // The last leases of a server that stops are owed only if the database is away.
            self.pay().await;
        }
    }

    /// Pays until nothing is owed or the database fails.
    pub(in crate::dhcp) async fn pay(&self) -> bool {
        let mut aside = 0;
        let done = self.pay_all(&mut aside).await;
        if aside > NAMED {
            tracing::warn!(
                leases = aside,
                "so much of what this server did while the database was away no longer fits; it is set aside"
            );
        }
        done
    }

    async fn pay_all(&self, aside: &mut u64) -> bool {
        while self.ledger.owes() {
            if self.catalog.is_away() || self.lagging.load(Ordering::Acquire) > 0 {
                return false;
            }
            let owed = self.ledger.oldest(PAYMENT.0);
            if owed.is_empty() {
                // Its record is being written.
                return false;
            }
            let count = owed.len();
            match tokio::time::timeout(PAYMENT.1, self.pay_batch(&owed, aside)).await {
                Ok(Ok(())) => {
                    self.ledger.paid(count);
                    self.metrics.owing(self.ledger.len());
                    if !self.ledger.owes() {
                        tracing::info!("the database has all leases again");
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "what is owed to the database can't be paid yet");
                    return false;
                }
                Err(_) => return false,
            }
        }
        true
    }

    async fn pay_batch(&self, owed: &[Owed], aside: &mut u64) -> Result<(), CatalogError> {
        for group in owed.chunk_by(|a, b| matches!((a, b), (Owed::Put(_), Owed::Put(_)))) {
            let puts: Vec<Lease> = group
                .iter()
                .filter_map(|o| match o {
                    Owed::Put(lease) => Some(lease.clone()),
                    Owed::End(_) => None,
                })
                .collect();
            if !puts.is_empty() {
                self.pay_leases(&puts, aside).await?;
            }
            for one in group {
                if let Owed::End(e) = one {
                    let ended =
                        self.catalog
                            .end_lease(e.address, e.mac, e.state, e.at, e.length_seconds);
                    if !ended.await? {
                        let why = "that machine does not hold the address any more";
                        self.set_aside(one, why, aside);
                    }
                }
            }
        }
        Ok(())
    }

    /// What the database refuses for itself is set aside, and holds nothing up.
    async fn pay_leases(&self, leases: &[Lease], aside: &mut u64) -> Result<(), CatalogError> {
        // Only the last word on a machine or an address counts; one statement takes each once.
        match self.catalog.replay_leases(leases, self.server_id).await {
            Ok(stored) => {
                for (lease, stored) in leases.iter().zip(stored) {
                    if !stored && !superseded(lease, leases) {
                        let owed = Owed::Put(lease.clone());
                        let why =
                            "another machine holds the address, or the machine has a newer lease";
                        self.set_aside(&owed, why, aside);
                    }
                }
                Ok(())
            }
            Err(error @ (CatalogError::Refused { .. } | CatalogError::Conflict { .. })) => {
                if let [one] = leases {
                    self.set_aside(&Owed::Put(one.clone()), &error.to_string(), aside);
                    return Ok(());
                }
                for lease in leases {
                    Box::pin(self.pay_leases(std::slice::from_ref(lease), aside)).await?;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn set_aside(&self, owed: &Owed, why: &str, aside: &mut u64) {
        self.metrics.set_aside();
        *aside += 1;
        if *aside <= NAMED {
            tracing::warn!(
                ?owed,
                why,
                "what this server did while the database was away no longer fits; it is set aside"
            );
        } else {
            tracing::debug!(?owed, why, "set aside");
        }
    }
}

/// A later lease of the batch is of the same machine or address.
fn superseded(lease: &Lease, batch: &[Lease]) -> bool {
    let later = batch.iter().rev().take_while(|l| !std::ptr::eq(*l, lease));
    let same = |l: &&Lease| {
        l.address == lease.address || (l.range_id, l.mac) == (lease.range_id, lease.mac)
    };
    later.filter(same).count() > 0
}
