//! Network ranges with their pools and exclusions.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use sqlx::types::ipnetwork::IpNetwork;
use uuid::Uuid;

use super::rows::{inet, inets, ipv4, ipv4s, parse};
use super::{Catalog, CatalogError};
use crate::model::{NetworkRange, Pool, Route};

/// A row of `network_ranges`, pools and exclusions as parallel arrays.
pub(super) struct Row {
    id: Uuid,
    name: String,
    network: IpNetwork,
    mode: String,
    serve: String,
    unready: String,
    always_chainload: bool,
    gateway: Option<IpNetwork>,
    dns: Vec<IpNetwork>,
    domain: Option<String>,
    search: Vec<String>,
    ntp: Vec<IpNetwork>,
    mtu: Option<i32>,
    routes: serde_json::Value,
    lease_seconds: i64,
    options: serde_json::Value,
    pool_firsts: Vec<IpNetwork>,
    pool_lasts: Vec<IpNetwork>,
    exclusion_firsts: Vec<IpNetwork>,
    exclusion_lasts: Vec<IpNetwork>,
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT r.id, r.name, r.network, r.mode, r.serve, r.unready, r.always_chainload, r.gateway, r.dns, r.domain,
               r.search, r.ntp, r.mtu, r.routes, r.lease_seconds, r.options,
               ARRAY(SELECT p.first FROM range_pools p WHERE p.range_id = r.id ORDER BY p.first) AS "pool_firsts!",
               ARRAY(SELECT p.last FROM range_pools p WHERE p.range_id = r.id ORDER BY p.first) AS "pool_lasts!",
               ARRAY(SELECT x.first FROM range_exclusions x WHERE x.range_id = r.id ORDER BY x.first) AS "exclusion_firsts!",
               ARRAY(SELECT x.last FROM range_exclusions x WHERE x.range_id = r.id ORDER BY x.first) AS "exclusion_lasts!"
           FROM network_ranges r ORDER BY r.network"#
    )
    .fetch_all(connection)
    .await
}

pub(super) fn models(rows: Vec<Row>) -> Result<Vec<NetworkRange>, CatalogError> {
    rows.into_iter().map(Row::model).collect()
}

fn pools(firsts: Vec<IpNetwork>, lasts: Vec<IpNetwork>) -> Vec<Pool> {
    ipv4s(firsts)
        .into_iter()
        .zip(ipv4s(lasts))
        .map(|(first, last)| Pool { first, last })
        .collect()
}

impl Row {
    fn model(self) -> Result<NetworkRange, CatalogError> {
        let strange = |what: &str, error: &dyn std::fmt::Display| {
            CatalogError::strange(what, format!("{} ({error})", self.name))
        };
        let IpNetwork::V4(network) = self.network else {
            return Err(strange("network", &self.network));
        };
        let routes: Vec<Route> =
            serde_json::from_value(self.routes).map_err(|e| strange("list of routes", &e))?;
        let options: BTreeMap<u8, String> =
            serde_json::from_value(self.options).map_err(|e| strange("set of options", &e))?;
        Ok(NetworkRange {
            id: self.id,
            network,
            mode: parse("range mode", &self.mode)?,
            serve: parse("range's serve", &self.serve)?,
            unready: parse("range's unready", &self.unready)?,
            always_chainload: self.always_chainload,
            pools: pools(self.pool_firsts, self.pool_lasts),
            exclusions: pools(self.exclusion_firsts, self.exclusion_lasts),
            gateway: self.gateway.and_then(ipv4),
            dns: ipv4s(self.dns),
            domain: self.domain,
            search: self.search,
            ntp: ipv4s(self.ntp),
            mtu: self.mtu.and_then(|mtu| u16::try_from(mtu).ok()),
            routes,
            lease_seconds: u32::try_from(self.lease_seconds).unwrap_or(u32::MAX),
            options,
            name: self.name,
        })
    }
}

/// First and last addresses, as two columns.
fn columns(pools: &[Pool]) -> (Vec<IpNetwork>, Vec<IpNetwork>) {
    pools.iter().map(|p| (inet(p.first), inet(p.last))).unzip()
}

/// Why a range can't be changed or deleted: machines of it that run.
type LiveMachines = Vec<String>;

fn in_use(machines: LiveMachines, field: &'static str) -> CatalogError {
    let more = if machines.len() > 20 {
        ", and more"
    } else {
        ""
    };
    let named: Vec<String> = machines.into_iter().take(20).collect();
    CatalogError::Refused {
        field,
        message: format!(
            "machines boot or run in this range: {}{more}",
            named.join(", ")
        ),
    }
}

/// Writes the range; `Err` names running machines whose address would lie outside.
async fn save(
    connection: &mut PgConnection,
    range: &NetworkRange,
) -> Result<Result<(), LiveMachines>, sqlx::Error> {
    let encode = |error: serde_json::Error| sqlx::Error::Encode(error.into());
    let routes = serde_json::to_value(&range.routes).map_err(encode)?;
    let options = serde_json::to_value(&range.options).map_err(encode)?;
    let network = IpNetwork::V4(range.network);
    for table in [true, false] {
        // Pools first, so that a changed network has nothing outside it.
        if table {
            sqlx::query!("DELETE FROM range_pools WHERE range_id = $1", range.id)
                .execute(&mut *connection)
                .await?;
        } else {
            sqlx::query!("DELETE FROM range_exclusions WHERE range_id = $1", range.id)
                .execute(&mut *connection)
                .await?;
        }
    }
    let outside = sqlx::query_scalar!(
        r#"SELECT DISTINCT coalesce(a.client_name, a.mac) || ' (' || host(l.address) || ')' AS "who!"
           FROM leases l JOIN boot_attempts a ON a.mac = l.mac AND a.ended_at IS NULL
           WHERE l.range_id = $1 AND NOT l.address <<= $2::inet ORDER BY 1 LIMIT 21"#,
        range.id,
        network
    )
    .fetch_all(&mut *connection)
    .await?;
    if !outside.is_empty() {
        return Ok(Err(outside));
    }
    sqlx::query!(
        "DELETE FROM leases WHERE range_id = $1 AND NOT address <<= $2::inet",
        range.id,
        network
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO network_ranges (id, name, network, mode, serve, unready, always_chainload, gateway, dns, domain, search,
             ntp, mtu, routes, lease_seconds, options)
         VALUES ($1, $2, $3::inet::cidr, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
         ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, network = EXCLUDED.network, mode = EXCLUDED.mode,
             serve = EXCLUDED.serve, unready = EXCLUDED.unready, always_chainload = EXCLUDED.always_chainload,
             gateway = EXCLUDED.gateway, dns = EXCLUDED.dns, domain = EXCLUDED.domain, search = EXCLUDED.search,
             ntp = EXCLUDED.ntp, mtu = EXCLUDED.mtu, routes = EXCLUDED.routes,
             lease_seconds = EXCLUDED.lease_seconds, options = EXCLUDED.options",
        range.id,
        range.name,
        network,
        range.mode.as_str(),
        range.serve.as_str(),
        range.unready.as_str(),
        range.always_chainload,
        range.gateway.map(inet),
        &inets(&range.dns),
        range.domain,
        &range.search,
        &inets(&range.ntp),
        range.mtu.map(i32::from),
        routes,
        i64::from(range.lease_seconds),
        options
    )
    .execute(&mut *connection)
    .await?;
    let (firsts, lasts) = columns(&range.pools);
    sqlx::query!(
        "INSERT INTO range_pools (range_id, network, first, last)
         SELECT r.id, r.network, p.* FROM network_ranges r, unnest($2::inet[], $3::inet[]) AS p WHERE r.id = $1",
        range.id,
        &firsts,
        &lasts
    )
    .execute(&mut *connection)
    .await?;
    let (firsts, lasts) = columns(&range.exclusions);
    sqlx::query!(
        "INSERT INTO range_exclusions (range_id, network, first, last)
         SELECT r.id, r.network, p.* FROM network_ranges r, unnest($2::inet[], $3::inet[]) AS p WHERE r.id = $1",
        range.id,
        &firsts,
        &lasts
    )
    .execute(&mut *connection)
    .await?;
    Ok(Ok(()))
}

impl Catalog {
    /// Inserts or updates a range with its pools, in one transaction. Leases that a changed
    /// network leaves outside go, unless a machine runs on one.
    ///
    /// # Errors
    /// `Conflict` on overlap with another range (named), `Refused` on a broken rule.
    pub async fn save_network_range(&self, range: &NetworkRange) -> Result<(), CatalogError> {
        let saved = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                let saved = save(&mut tx, range).await?;
                if saved.is_ok() {
                    tx.commit().await?;
                }
                Ok(saved)
            })
            .await;
        match saved {
            Ok(saved) => saved.map_err(|machines| in_use(machines, "network")),
            Err(
                error @ CatalogError::Conflict {
                    field: "network", ..
                },
            ) => Err(self.say_which_overlaps(error, range).await),
            Err(error) => Err(error),
        }
    }

    /// Names the range that the network overlaps.
    async fn say_which_overlaps(&self, error: CatalogError, range: &NetworkRange) -> CatalogError {
        let other = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT name, network::text AS "network!" FROM network_ranges WHERE id <> $1 AND network && $2::inet LIMIT 1"#,
                    range.id,
                    IpNetwork::V4(range.network)
                )
                .fetch_optional(pool)
                .await
            })
            .await;
        match other {
            Ok(Some(other)) => error.in_words(|| {
                format!(
                    "the network {} overlaps {}, which range `{}` has",
                    range.network, other.network, other.name
                )
            }),
            _ => error,
        }
    }

    /// Ranges by network.
    ///
    /// # Errors
    /// As all.
    pub async fn list_network_ranges(&self) -> Result<Vec<NetworkRange>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                let mut connection = pool.acquire().await?;
                all(&mut connection).await
            })
            .await?;
        models(rows)
    }

    /// Deletes a range and its leases; `false` if there was none. Refused while live
    /// sessions use it.
    ///
    /// # Errors
    /// `Refused` while in use.
    pub async fn delete_network_range(&self, id: Uuid) -> Result<bool, CatalogError> {
        let deleted = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                let machines = sqlx::query_scalar!(
                    r#"SELECT DISTINCT coalesce(a.client_name, a.mac) AS "who!" FROM boot_attempts a
                       WHERE a.ended_at IS NULL AND (a.range_id = $1
                           OR EXISTS (SELECT 1 FROM leases l WHERE l.range_id = $1 AND l.mac = a.mac AND l.state = 'active'))
                       ORDER BY 1 LIMIT 21"#,
                    id
                )
                .fetch_all(&mut *tx)
                .await?;
                if !machines.is_empty() {
                    return Ok(Err(machines));
                }
                let done = sqlx::query!("DELETE FROM network_ranges WHERE id = $1", id)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                Ok(Ok(done.rows_affected() > 0))
            })
            .await?;
        deleted.map_err(|machines| in_use(machines, "id"))
    }
}
