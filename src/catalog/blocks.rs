//! Lease blocks: which server gives which addresses away by itself.
//!
//! All that changes them holds one lock of the database, so that a claim which is extended and
//! one which is taken over never pass each other.

use sqlx::types::ipnetwork::IpNetwork;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::rows::{inet, ipv4};
use super::{Catalog, CatalogError};
use crate::model::{Block, Pool, Timestamp};

/// The lock's number: any, but always the same.
const LOCK: i64 = 0x0064_6c73_626c_6b73;

struct Row {
    range_id: Uuid,
    first_address: IpNetwork,
    last_address: IpNetwork,
    server_id: Uuid,
    claimed_at: Timestamp,
    ripe: bool,
}

impl Row {
    fn addresses(&self) -> Option<Pool> {
        Some(Pool {
            first: ipv4(self.first_address)?,
            last: ipv4(self.last_address)?,
        })
    }
}

impl Catalog {
    /// Makes this server's claims last for so many seconds from now on; returns all blocks of all
    /// servers. A server that has no row (any more) has no blocks.
    ///
    /// # Errors
    /// As all.
    pub async fn keep_blocks(
        &self,
        server_id: Uuid,
        seconds: u32,
    ) -> Result<Vec<Block>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                lock(&mut tx).await?;
                sqlx::query!(
                    "UPDATE servers SET claims_until = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
                    server_id,
                    f64::from(seconds)
                )
                .execute(&mut *tx)
                .await?;
                sqlx::query!(
                    "UPDATE lease_blocks b SET longest_seconds = r.lease_seconds FROM network_ranges r
                     WHERE r.id = b.range_id AND b.server_id = $1 AND b.longest_seconds < r.lease_seconds",
                    server_id
                )
                .execute(&mut *tx)
                .await?;
                let rows = rows(&mut tx, None).await?;
                tx.commit().await?;
                Ok(rows)
            })
            .await?;
        let block = |row: Row| {
            Some(Block {
                range_id: row.range_id,
                addresses: row.addresses()?,
                server_id: row.server_id,
                ripe: row.ripe,
            })
        };
        Ok(rows.into_iter().filter_map(block).collect())
    }

    /// Puts this server's blocks of a range in order: those of servers that are gone for good are
    /// freed first, then `arrange` says from what is others' and what is its own which addresses
    /// it should have. What it has already keeps its age.
    ///
    /// # Errors
    /// As all; then nothing has changed.
    pub async fn arrange_blocks(
        &self,
        server_id: Uuid,
        range_id: Uuid,
        arrange: &(dyn Fn(Arranging<'_>) -> Vec<Arranged> + Sync),
    ) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            lock(&mut tx).await?;
            sqlx::query!(
                "DELETE FROM lease_blocks b USING servers s, network_ranges r
                 WHERE b.range_id = $1 AND b.server_id <> $2 AND s.id = b.server_id AND r.id = b.range_id
                     AND dls_block_ends(s.claims_until, s.heartbeat_at, greatest(b.longest_seconds, r.lease_seconds))
                         < clock_timestamp()",
                range_id,
                server_id
            )
            .execute(&mut *tx)
            .await?;
            let rows = rows(&mut tx, Some(range_id)).await?;
            let (own, others): (Vec<&Row>, Vec<&Row>) =
                rows.iter().partition(|row| row.server_id == server_id);
            let others: Vec<Pool> = others.iter().filter_map(|row| row.addresses()).collect();
            let own: Vec<Arranged> = own
                .iter()
                .filter_map(|row| {
                    Some(Arranged {
                        addresses: row.addresses()?,
                        since: Some(row.claimed_at),
                        ripe: row.ripe,
                    })
                })
                .collect();
            let wanted = arrange(Arranging {
                own: &own,
                others: &others,
            });
            sqlx::query!(
                "DELETE FROM lease_blocks WHERE range_id = $1 AND server_id = $2",
                range_id,
                server_id
            )
            .execute(&mut *tx)
            .await?;
            let firsts: Vec<IpNetwork> = wanted.iter().map(|w| inet(w.addresses.first)).collect();
            let lasts: Vec<IpNetwork> = wanted.iter().map(|w| inet(w.addresses.last)).collect();
            let since: Vec<Option<Timestamp>> = wanted.iter().map(|w| w.since).collect();
            sqlx::query!(
                "INSERT INTO lease_blocks (range_id, first_address, last_address, server_id, claimed_at, longest_seconds)
                 SELECT r.id, w.first, w.last, $2, coalesce(w.since, clock_timestamp()), r.lease_seconds
                 FROM network_ranges r, unnest($3::inet[], $4::inet[], $5::timestamptz[]) AS w(first, last, since)
                 WHERE r.id = $1",
                range_id,
                server_id,
                &firsts,
                &lasts,
                &since as &[Option<Timestamp>]
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// This server has stopped, and the database has all that it gave away: others may take its
    /// blocks when it has not come back after a while.
    ///
    /// # Errors
    /// As all.
    pub async fn rest_blocks(&self, server_id: Uuid) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            sqlx::query!(
                "UPDATE servers SET claims_until = NULL WHERE id = $1",
                server_id
            )
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// Addresses in nobody's block whose running leases this server has written.
    ///
    /// # Errors
    /// As all.
    pub async fn leases_outside_blocks(
        &self,
        server_id: Uuid,
    ) -> Result<Vec<std::net::Ipv4Addr>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                sqlx::query_scalar!(
                    "SELECT l.address FROM leases l WHERE l.server_id = $1 AND l.state = 'active'
                         AND NOT EXISTS (SELECT 1 FROM lease_blocks b WHERE b.span @> (l.address - '0.0.0.0'::inet))",
                    server_id
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        Ok(rows.into_iter().filter_map(ipv4).collect())
    }
}

/// What [`Catalog::arrange_blocks`] asks about.
#[derive(Debug, Clone, Copy)]
pub struct Arranging<'a> {
    /// This server's blocks of the range.
    pub own: &'a [Arranged],
    /// Addresses that are others'.
    pub others: &'a [Pool],
}

/// A block of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arranged {
    /// Which addresses.
    pub addresses: Pool,
    /// Since when; `None`: from now on.
    pub since: Option<Timestamp>,
    /// As [`Block::ripe`].
    pub ripe: bool,
}

async fn lock(tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", LOCK)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn rows(
    tx: &mut Transaction<'_, Postgres>,
    range_id: Option<Uuid>,
) -> Result<Vec<Row>, sqlx::Error> {
    // A lease that another server had under way when a block was claimed is stored within five
    // seconds or is not acknowledged.
    sqlx::query_as!(
        Row,
        r#"SELECT range_id, first_address, last_address, server_id, claimed_at,
               claimed_at < clock_timestamp() - interval '8 seconds' AS "ripe!"
           FROM lease_blocks WHERE $1::uuid IS NULL OR range_id = $1 ORDER BY first_address"#,
        range_id
    )
    .fetch_all(&mut **tx)
    .await
}
