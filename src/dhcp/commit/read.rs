//! What the database says is taken over: rows that others wrote, all rows, and its clock.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use chrono::TimeDelta;

use super::{Committer, Health, lock};
use crate::model::Lease;

/// For as long as that all leases may take to be moved; nothing else is stored meanwhile.
const MOVING: Duration = Duration::from_secs(30);

impl<T: Send + 'static> Committer<T> {
    pub(super) async fn reread(&self, addresses: &[Ipv4Addr]) -> Health {
        if self.must_owe() {
            // Rows may be older than what is owed; all are read when it is paid.
            return Health::Uncertain;
        }
        match self
            .in_time(self.catalog.list_leases(Some(addresses)))
            .await
        {
            Ok(rows) => {
                self.replace(addresses.iter().copied().collect(), rows);
                Health::Good
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be read again");
                Health::Uncertain
            }
        }
    }

    /// What this server knew last, where the database is away at the start.
    pub(in super::super) fn remember(&self, leases: Vec<Lease>) {
        let mut book = lock(&self.book);
        let mut known = lock(&self.known);
        for lease in leases {
            known.insert(lease.address);
            book.put(lease);
        }
    }

    /// Reads every lease, before anything is served, with nothing owed; `false` if the database
    /// does not answer.
    pub(in super::super) async fn read_all(&self) -> bool {
        self.pay().await && self.reread_all().await == Health::Good
    }

    /// Moves the leases with the database's clock, then takes its time; alone.
    pub(super) async fn follow_clock(&self) -> Health {
        let Some(shift) = self.clock.held_back() else {
            return Health::Good;
        };
        if self.must_owe() {
            return Health::Uncertain;
        }
        let seconds = shift.as_seconds_f64();
        let moving = self
            .catalog
            .follow_clock(self.server_id, seconds, self.clock.now());
        match self.within(MOVING, moving).await {
            Ok(moved) => {
                tracing::warn!(
                    leases = moved,
                    seconds,
                    "leases were moved with the database's clock"
                );
                let mut book = lock(&self.book);
                // Whoever looks at both in between takes leases for longer than they are.
                if shift > TimeDelta::zero() {
                    book.shift(shift);
                    self.clock.shift(shift);
                } else {
                    self.clock.shift(shift);
                    book.shift(shift);
                }
                Health::Good
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be moved with the database's clock");
                Health::Uncertain
            }
        }
    }

    /// Reads every lease; alone, so that none is written meanwhile by us.
    pub(super) async fn reread_all(&self) -> Health {
        if self.must_owe() {
            return Health::Uncertain;
        }
        match self.catalog.list_leases(None).await {
            Ok(rows) => {
                let before = lock(&self.known).clone();
                self.replace(before, rows);
                Health::Good
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be read again");
                Health::Uncertain
            }
        }
    }

    /// Takes rows in; forgets what was asked for and has no row.
    fn replace(&self, asked: HashSet<Ipv4Addr>, rows: Vec<Lease>) {
        let mut gone = asked;
        let mut book = lock(&self.book);
        let mut known = lock(&self.known);
        for lease in &rows {
            gone.remove(&lease.address);
        }
        self.ledger.gone(gone.iter().copied());
        let differs = |lease: &&Lease| book.lease_at(lease.address) != Some(lease);
        self.ledger.has(rows.iter().filter(differs));
        // First the removals: a machine that has moved has one address at any time.
        for address in gone {
            known.remove(&address);
            book.remove(address);
        }
        for lease in rows {
            known.insert(lease.address);
            book.put(lease);
        }
    }
}
