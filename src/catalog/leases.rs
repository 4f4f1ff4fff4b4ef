//! Leases. PostgreSQL's keys are the arbiter between servers: an address is one row, and a
//! machine has one lease in a range.
//!
//! Races that are accepted: two servers that lease to one machine at the same moment collide
//! at commit, and the later one is tried again and wins; two that lease one address to two
//! machines: the first one wins, the other's is refused.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use sqlx::PgPool;
use sqlx::types::ipnetwork::IpNetwork;
use uuid::Uuid;

use super::rows::{inet, ipv4, parse};
use super::{Catalog, CatalogError};
use crate::model::{Hostname, Lease, LeaseState, MacAddr, Timestamp};

impl Catalog {
    /// Stores leases in one multi-row statement; durable when this returns. Per lease, in
    /// order: `true` stored, `false` refused because another MAC holds the address (the
    /// unique key is the arbiter between servers) or the address is not one of its range.
    /// A run-out or released lease of another MAC is taken over unless that machine's boot
    /// is still open. An older lease of the same MAC and range at another address is removed; one
    /// that is newer (by two seconds, for the clocks) stays, and the lease is refused.
    /// Also refused: a new lease of an address in another server's block, unless it is reserved.
    ///
    /// Where one call leases an address to two machines the first is taken, where it leases
    /// two addresses of a range to one machine the last.
    ///
    /// # Errors
    /// As all; then none was stored.
    pub async fn commit_leases(
        &self,
        leases: &[Lease],
        server_id: Uuid,
    ) -> Result<Vec<bool>, CatalogError> {
        let chosen = one_row_each(leases);
        let batch = &Columns::new(leases, &chosen);
        let stored = self.again(|pool| commit(pool, batch, server_id)).await?;
        self.wrote();
        let stored: HashMap<Ipv4Addr, &str> = stored
            .iter()
            .filter_map(|(address, mac)| Some((ipv4(*address)?, mac.as_str())))
            .collect();
        Ok(leases
            .iter()
            .map(|lease| stored.get(&lease.address) == Some(&lease.mac.to_string().as_str()))
            .collect())
    }

    /// Stores leases as [`Catalog::commit_leases`] does, that were given while PostgreSQL was
    /// away: `false` also where the machine has a newer lease in the range by now.
    ///
    /// # Errors
    /// As all; then none was stored.
    pub async fn replay_leases(
        &self,
        leases: &[Lease],
        server_id: Uuid,
    ) -> Result<Vec<bool>, CatalogError> {
        let outdated = self.outdated(leases).await?;
        let current: Vec<Lease> = leases
            .iter()
            .zip(&outdated)
            .filter(|(_, outdated)| !**outdated)
            .map(|(lease, _)| lease.clone())
            .collect();
        let mut stored = self.commit_leases(&current, server_id).await?.into_iter();
        let fits = |outdated: bool| !outdated && stored.next().unwrap_or_default();
        Ok(outdated.into_iter().map(fits).collect())
    }

    /// Whose machine has a newer lease in the range.
    async fn outdated(&self, leases: &[Lease]) -> Result<Vec<bool>, CatalogError> {
        let ranges: &Vec<Uuid> = &leases.iter().map(|l| l.range_id).collect();
        let macs: &Vec<String> = &leases.iter().map(|l| l.mac.to_string()).collect();
        let starts: &Vec<Timestamp> = &leases.iter().map(|l| l.starts_at).collect();
        let declined: &Vec<bool> = &leases
            .iter()
            .map(|l| l.state == LeaseState::Declined)
            .collect();
        self.again(|pool| async move {
            sqlx::query_scalar!(
                r#"SELECT NOT i.declined AND EXISTS (SELECT 1 FROM leases x WHERE x.range_id = i.range_id AND x.mac = i.mac
                       AND x.state <> 'declined' AND x.starts_at > i.starts_at) AS "outdated!"
                   FROM unnest((SELECT $1::uuid[]), $2::text[], $3::timestamptz[], $4::boolean[]) WITH ORDINALITY
                       AS i(range_id, mac, starts_at, declined, n) ORDER BY n"#,
                ranges,
                macs,
                starts,
                declined
            )
            .fetch_all(pool)
            .await
        })
        .await
    }

    /// Marks a lease released or declined if that MAC still holds it (declined: for
    /// `length_seconds` from `at`; released: it keeps its start and length). A lease that the
    /// machine was given after `at`, by another server meanwhile, is not the one that it gave
    /// back, and stays.
    ///
    /// # Errors
    /// As all.
    pub async fn end_lease(
        &self,
        address: Ipv4Addr,
        mac: MacAddr,
        state: LeaseState,
        at: Timestamp,
        length_seconds: u32,
    ) -> Result<bool, CatalogError> {
        let mac = &mac.to_string();
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE leases SET state = $3,
                         starts_at = CASE WHEN $3 = 'released' THEN starts_at ELSE $4 END,
                         length_seconds = CASE WHEN $3 = 'released' THEN length_seconds ELSE $5 END
                     WHERE address = $1 AND mac = $2 AND starts_at <= $4 AND NOT (state = 'declined' AND $3 = 'released')",
                    inet(address),
                    mac,
                    state.as_str(),
                    at,
                    i64::from(length_seconds)
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// All leases, or those of the given addresses.
    ///
    /// # Errors
    /// As all.
    pub async fn list_leases(&self, only: Option<&[Ipv4Addr]>) -> Result<Vec<Lease>, CatalogError> {
        let only: Option<Vec<IpNetwork>> = only.map(super::rows::inets);
        let only = only.as_deref();
        let rows = self
            .again(|pool| async move {
                sqlx::query!(
                    "SELECT address, range_id, mac, client_identifier, hostname, state, starts_at, length_seconds, relay_information
                     FROM leases WHERE $1::inet[] IS NULL OR address = ANY ($1) ORDER BY address",
                    only
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Lease {
                    address: ipv4(row.address)
                        .ok_or_else(|| CatalogError::strange("lease", row.address))?,
                    range_id: row.range_id,
                    mac: parse("MAC address", &row.mac)?,
                    client_identifier: row.client_identifier,
                    hostname: row.hostname.and_then(|name| name.parse::<Hostname>().ok()),
                    state: parse("lease state", &row.state)?,
                    starts_at: row.starts_at,
                    length_seconds: u32::try_from(row.length_seconds).unwrap_or(Lease::INFINITE),
                    relay_information: row.relay_information,
                })
            })
            .collect()
    }
}

/// Which of the leases go into the statement: it may name each address once, and each machine
/// once in a range.
fn one_row_each(leases: &[Lease]) -> Vec<usize> {
    let mut of_machine: HashMap<(Uuid, MacAddr), usize> = HashMap::new();
    for (i, lease) in leases.iter().enumerate() {
        of_machine.insert((lease.range_id, lease.mac), i);
    }
    let mut holder: HashMap<Ipv4Addr, usize> = HashMap::new();
    let mut chosen = Vec::with_capacity(leases.len());
    for (i, lease) in leases.iter().enumerate() {
        let last_of_machine = of_machine.get(&(lease.range_id, lease.mac)) == Some(&i);
        if last_of_machine && !holder.contains_key(&lease.address) {
            holder.insert(lease.address, i);
            chosen.push(i);
        }
    }
    // Rows are locked in one order by everybody, so that batches of two servers wait for each
    // other and do not deadlock.
    chosen.sort_by_key(|i| leases.get(*i).map(|l| l.address));
    chosen
}

/// The leases as columns, for UNNEST.
struct Columns {
    addresses: Vec<IpNetwork>,
    ranges: Vec<Uuid>,
    macs: Vec<String>,
    identifiers: Vec<Option<Vec<u8>>>,
    hostnames: Vec<Option<String>>,
    states: Vec<String>,
    starts: Vec<Timestamp>,
    lengths: Vec<i64>,
    relays: Vec<Option<Vec<u8>>>,
}

impl Columns {
    fn new(leases: &[Lease], chosen: &[usize]) -> Self {
        let rows = || chosen.iter().filter_map(|i| leases.get(*i));
        Self {
            addresses: rows().map(|l| inet(l.address)).collect(),
            ranges: rows().map(|l| l.range_id).collect(),
            macs: rows().map(|l| l.mac.to_string()).collect(),
            identifiers: rows().map(|l| l.client_identifier.clone()).collect(),
            hostnames: rows()
                .map(|l| l.hostname.as_ref().map(Hostname::to_string))
                .collect(),
            states: rows().map(|l| l.state.to_string()).collect(),
            starts: rows().map(|l| l.starts_at).collect(),
            lengths: rows().map(|l| i64::from(l.length_seconds)).collect(),
            relays: rows().map(|l| l.relay_information.clone()).collect(),
        }
    }
}

/// The statement; returns what was stored, as (address, MAC).
async fn commit(
    pool: &PgPool,
    batch: &Columns,
    server_id: Uuid,
) -> Result<Vec<(IpNetwork, String)>, sqlx::Error> {
    // `written` sees the table as it was; the row's lock makes ON CONFLICT judge the newest
    // version of it. The old lease of a machine goes only where its new one was written; for
    // that moment it has two, so `leases_one_per_mac` is checked at commit. LATERAL and LIMIT
    // make it look machine by machine, and `ctid` makes it take those rows by their place, however
    // many leases there are: the plan is made once, often while there are none. (That a place
    // costs little more than the next page is said in `connect`; without it the plan of an empty table
    // reads all of it.) For the same reason leases and clients are asked for a value, not by EXISTS: that
    // would be hashed, a whole table of them. And it is made once only because the addresses are a
    // value, (SELECT $1): of an array PostgreSQL sees the length, holds a plan for any length for worse
    // than one for that of a few, and plans those anew each time, which takes longer than they do.
    // What comes late (its server stood still, or paid what it owed) takes nothing newer away: neither
    // the machine's lease of another address nor time of the same one. Servers have PostgreSQL's
    // clock but for a little, and a clock that was wrong binds nobody.
    let rows = sqlx::query!(
        r#"WITH input AS (
               SELECT i.*, r.network FROM unnest((SELECT $1::inet[]), $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[],
                       $7::timestamptz[], $8::bigint[], $9::bytea[])
                   AS i(address, range_id, mac, client_identifier, hostname, state, starts_at, length_seconds, relay_information)
               JOIN network_ranges r ON r.id = i.range_id AND i.address <<= r.network
               WHERE (i.state <> 'active'
                   OR NOT EXISTS (SELECT 1 FROM lease_blocks b WHERE b.span @> (i.address - '0.0.0.0'::inet) AND b.server_id <> $10)
                   OR (SELECT x.mac FROM leases x WHERE x.address = i.address) = i.mac
                   OR (SELECT c.id FROM clients c WHERE c.ip_address = i.address) IS NOT NULL)
                   AND (i.state <> 'active' OR (SELECT x.address FROM leases x WHERE x.range_id = i.range_id AND x.mac = i.mac
                       AND x.state <> 'declined' AND x.state = 'active' AND x.address <> i.address
                       AND x.starts_at > i.starts_at + interval '2 seconds'
                       AND x.starts_at < clock_timestamp() + interval '1 minute' LIMIT 1) IS NULL)
           ), written AS (
               INSERT INTO leases AS l (address, range_id, network, mac, client_identifier, hostname, state, starts_at,
                   length_seconds, relay_information, server_id)
               SELECT address, range_id, network, mac, client_identifier, hostname, state, starts_at, length_seconds,
                   relay_information, $10::uuid FROM input ORDER BY address
               ON CONFLICT (address) DO UPDATE SET range_id = EXCLUDED.range_id, network = EXCLUDED.network, mac = EXCLUDED.mac,
                   client_identifier = EXCLUDED.client_identifier, hostname = EXCLUDED.hostname, state = EXCLUDED.state,
                   starts_at = CASE WHEN l.mac = EXCLUDED.mac AND l.state = 'active' AND EXCLUDED.state = 'active'
                       AND l.starts_at < clock_timestamp() + interval '1 minute'
                       THEN greatest(l.starts_at, EXCLUDED.starts_at) ELSE EXCLUDED.starts_at END,
                   length_seconds = EXCLUDED.length_seconds,
                   relay_information = EXCLUDED.relay_information, server_id = EXCLUDED.server_id
               WHERE l.mac = EXCLUDED.mac
                   OR ((l.state = 'released' OR dls_lease_end(l.starts_at, l.length_seconds) <= now())
                       AND NOT EXISTS (SELECT 1 FROM boot_attempts a WHERE a.mac = l.mac AND a.ended_at IS NULL))
               RETURNING address, range_id, mac
           ), removed AS (
               DELETE FROM leases WHERE ctid = ANY (ARRAY(
                   SELECT o.row FROM written w CROSS JOIN LATERAL (
                       SELECT x.ctid AS row FROM leases x WHERE x.range_id = w.range_id AND x.mac = w.mac AND x.state <> 'declined'
                           AND x.address <> w.address LIMIT 2) o))
           )
           SELECT address AS "address!", mac AS "mac!" FROM written"#,
        &batch.addresses,
        &batch.ranges,
        &batch.macs,
        &batch.identifiers as &[Option<Vec<u8>>],
        &batch.hostnames as &[Option<String>],
        &batch.states,
        &batch.starts,
        &batch.lengths,
        &batch.relays as &[Option<Vec<u8>>],
        server_id
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.address, row.mac)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_batch_names_each_address_and_each_machine_once() {
        let now = Clock::system().now();
        let lease = |last: u8, mac: u8| Lease {
            address: Ipv4Addr::new(10, 0, 0, last),
            range_id: Uuid::nil(),
            mac: MacAddr([2, 0, 0, 0, 0, mac]),
            client_identifier: None,
            hostname: None,
            state: LeaseState::Active,
            starts_at: now,
            length_seconds: 60,
            relay_information: None,
        };
        // Two machines, one address: the first. One machine, two addresses: the last.
        assert_eq!(one_row_each(&[lease(1, 1), lease(1, 2)]), [0]);
        assert_eq!(one_row_each(&[lease(1, 1), lease(2, 1)]), [1]);
        assert_eq!(one_row_each(&[lease(9, 1), lease(2, 2)]), [1, 0]);
    }
}
