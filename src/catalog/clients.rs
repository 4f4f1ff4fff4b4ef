//! Clients and their MACs.

use std::collections::VecDeque;

use futures_util::{Stream, StreamExt, stream};
use sqlx::PgConnection;
use sqlx::types::ipnetwork::IpNetwork;
use uuid::Uuid;

use super::rows::{inet, ipv4, parse};
use super::{Catalog, CatalogError, Page};
use crate::model::{Client, MacAddr, NetworkConfig, Timestamp};

/// A row of `clients` with the MACs beside its first.
pub(super) struct Row {
    id: Uuid,
    mac_address: String,
    hostname: String,
    ip_address: Option<IpNetwork>,
    assigned_image_id: Option<Uuid>,
    boot_mode: String,
    cpu_cores: i32,
    memory_mb: i32,
    network_config: Option<serde_json::Value>,
    custom_boot_params: Option<String>,
    disk_mode: String,
    ring: Option<String>,
    pinned_version: Option<Uuid>,
    enabled: bool,
    auto_registered: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    last_boot_at: Option<Timestamp>,
    boot_count: i64,
    more_macs: Vec<String>,
}

macro_rules! client_rows {
    ($tail:literal $(, $arg:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT c.id, c.mac_address, c.hostname, c.ip_address, c.assigned_image_id, c.boot_mode, c.cpu_cores, c.memory_mb,
                   c.network_config, c.custom_boot_params, c.disk_mode, c.ring, c.pinned_version, c.enabled, c.auto_registered, c.created_at, c.updated_at,
                   c.last_boot_at, c.boot_count,
                   ARRAY(SELECT m.mac::text FROM client_macs m WHERE m.client_id = c.id AND m.mac <> c.mac_address ORDER BY m.mac) AS "more_macs!"
               FROM clients c "# + $tail
            $(, $arg)*
        )
    };
}

/// How many rows a streamed list holds in memory.
const CHUNK: i64 = 500;

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
    client_rows!("ORDER BY c.hostname, c.id")
        .fetch_all(connection)
        .await
}

impl Catalog {
    /// These clients, as far as they are there.
    ///
    /// # Errors
    /// As all.
    pub async fn load_clients(&self, ids: &[Uuid]) -> Result<Vec<Client>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                client_rows!("WHERE c.id = ANY ($1)", ids)
                    .fetch_all(pool)
                    .await
            })
            .await?;
        models(rows)
    }
}

pub(super) fn models(rows: Vec<Row>) -> Result<Vec<Client>, CatalogError> {
    rows.into_iter().map(Row::model).collect()
}

impl Row {
    fn model(self) -> Result<Client, CatalogError> {
        let more_macs = self.more_macs.iter().map(|mac| parse("MAC address", mac));
        let network_config = match self.network_config {
            None => None,
            Some(json) => Some(
                serde_json::from_value::<NetworkConfig>(json).map_err(|error| {
                    CatalogError::strange("network_config", format!("{} ({error})", self.hostname))
                })?,
            ),
        };
        Ok(Client {
            id: self.id,
            mac_address: parse("MAC address", &self.mac_address)?,
            more_macs: more_macs.collect::<Result<_, _>>()?,
            hostname: self.hostname,
            ip_address: self.ip_address.and_then(ipv4),
            assigned_image_id: self.assigned_image_id,
            boot_mode: parse("boot mode", &self.boot_mode)?,
            cpu_cores: self.cpu_cores,
            memory_mb: self.memory_mb,
            network_config,
            custom_boot_params: self.custom_boot_params,
            disk_mode: parse("disk mode", &self.disk_mode)?,
            ring: self.ring,
            pinned_version_id: self.pinned_version,
            enabled: self.enabled,
            auto_registered: self.auto_registered,
            created_at: self.created_at,
            updated_at: self.updated_at,
            last_boot_at: self.last_boot_at,
            boot_count: self.boot_count,
        })
    }
}

/// Inserts or updates the row and its MACs. The boot counters are the tracker's and stay.
async fn save(connection: &mut PgConnection, client: &Client) -> Result<(), sqlx::Error> {
    let more: Vec<String> = client.more_macs.iter().map(MacAddr::to_string).collect();
    let config = client
        .network_config
        .as_ref()
        .map(serde_json::to_value)
        .transpose()
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "DELETE FROM client_macs m USING clients c
         WHERE c.id = $1 AND m.client_id = c.id AND m.mac <> c.mac_address AND m.mac <> ALL ($2)",
        client.id,
        &more
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO clients (id, mac_address, hostname, ip_address, assigned_image_id, boot_mode, cpu_cores, memory_mb,
             network_config, custom_boot_params, enabled, auto_registered, disk_mode, ring, pinned_version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         ON CONFLICT (id) DO UPDATE SET mac_address = EXCLUDED.mac_address, hostname = EXCLUDED.hostname,
             ip_address = EXCLUDED.ip_address, assigned_image_id = EXCLUDED.assigned_image_id,
             boot_mode = EXCLUDED.boot_mode, cpu_cores = EXCLUDED.cpu_cores, memory_mb = EXCLUDED.memory_mb,
             network_config = EXCLUDED.network_config, custom_boot_params = EXCLUDED.custom_boot_params,
             enabled = EXCLUDED.enabled, auto_registered = EXCLUDED.auto_registered,
             disk_mode = EXCLUDED.disk_mode, ring = EXCLUDED.ring, pinned_version = EXCLUDED.pinned_version",
        client.id,
        client.mac_address.to_string(),
        client.hostname,
        client.ip_address.map(inet),
        client.assigned_image_id,
        client.boot_mode.as_str(),
        client.cpu_cores,
        client.memory_mb,
        config,
        client.custom_boot_params,
        client.enabled,
        client.auto_registered,
        client.disk_mode.as_str(),
        client.ring,
        client.pinned_version_id
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO client_macs (mac, client_id) SELECT DISTINCT m, $1::uuid FROM unnest($2::text[]) AS m
         WHERE NOT EXISTS (SELECT 1 FROM client_macs x WHERE x.mac = m AND x.client_id = $1)",
        client.id,
        &more
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

impl Catalog {
    /// Inserts or updates a client with its MACs, in one transaction. `created_at`,
    /// `updated_at` and the boot counters are the database's.
    ///
    /// # Errors
    /// `Conflict` on a MAC or address in use, `Refused` on a broken rule.
    pub async fn save_client_config(&self, client: &Client) -> Result<(), CatalogError> {
        let saved = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                save(&mut tx, client).await?;
                tx.commit().await
            })
            .await;
        match saved {
            Err(error @ CatalogError::Conflict { .. }) => {
                Err(self.say_who_has_it(error, client).await)
            }
            other => other,
        }
    }

    /// Names the client that has the MAC or address.
    async fn say_who_has_it(&self, error: CatalogError, client: &Client) -> CatalogError {
        let macs: &Vec<String> = &client.macs().map(|mac| mac.to_string()).collect();
        let by_mac = matches!(
            error,
            CatalogError::Conflict {
                field: "mac_address",
                ..
            }
        );
        let owner = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT c.hostname, m.mac, host(c.ip_address) AS address FROM clients c JOIN client_macs m ON m.client_id = c.id
                       WHERE c.id <> $1 AND CASE WHEN $2 THEN m.mac = ANY ($3) ELSE c.ip_address = $4 END LIMIT 1"#,
                    client.id,
                    by_mac,
                    macs,
                    client.ip_address.map(inet)
                )
                .fetch_optional(pool)
                .await
            })
            .await;
        match owner {
            Ok(Some(owner)) if by_mac => error.in_words(|| {
                format!(
                    "the MAC address {} belongs to client `{}`",
                    owner.mac, owner.hostname
                )
            }),
            Ok(Some(owner)) => error.in_words(|| {
                let address = owner.address.unwrap_or_default();
                format!(
                    "the address {address} is reserved for client `{}`",
                    owner.hostname
                )
            }),
            _ => error,
        }
    }

    /// Registers an unknown machine, disabled, unless its MAC is known by now.
    /// Returns the client that has the MAC, and whether it was made.
    ///
    /// # Errors
    /// As all.
    pub async fn register_client(&self, client: &Client) -> Result<(Client, bool), CatalogError> {
        let mac = client.mac_address;
        if let Some(known) = self.get_client_by_mac(mac).await? {
            // Known: perhaps by an earlier try of ours whose answer was lost.
            let made = known.id == client.id;
            return Ok((known, made));
        }
        let saved = self.save_client_config(client).await;
        match (saved, self.get_client_by_mac(mac).await?) {
            (Ok(()), Some(known)) => Ok((known, true)),
            // Another server was faster: a known machine is no error.
            (Err(CatalogError::Conflict { .. }), Some(known)) => Ok((known, false)),
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(CatalogError::Refused {
                field: "mac_address",
                message: "the client was deleted as soon as it was made".to_owned(),
            }),
        }
    }

    /// The client of a MAC, in any of its spellings.
    ///
    /// # Errors
    /// As all.
    pub async fn get_client_by_mac(&self, mac: MacAddr) -> Result<Option<Client>, CatalogError> {
        let mac = &mac.to_string();
        self.again(|pool| async move {
            client_rows!(
                "JOIN client_macs own ON own.client_id = c.id WHERE own.mac = $1",
                mac
            )
            .fetch_optional(pool)
            .await
        })
        .await?
        .map(Row::model)
        .transpose()
    }

    /// One client by id.
    ///
    /// # Errors
    /// As all.
    pub async fn get_client(&self, id: Uuid) -> Result<Option<Client>, CatalogError> {
        self.again(|pool| async move {
            client_rows!("WHERE c.id = $1", id)
                .fetch_optional(pool)
                .await
        })
        .await?
        .map(Row::model)
        .transpose()
    }

    /// Clients by host name, streamed: a few hundred rows at a time are in memory, and no
    /// connection is held while the reader is slow. Rows changed meanwhile may be old or new.
    pub fn list_clients(
        &self,
        enabled_only: bool,
        page: Page,
    ) -> impl Stream<Item = Result<Client, CatalogError>> + Send + Unpin + 'static {
        let from = Cursor {
            catalog: self.clone(),
            enabled_only,
            left: page.limit.unwrap_or(i64::MAX).max(0),
            offset: page.offset.unwrap_or(0).max(0),
            after: None,
            ready: VecDeque::new(),
            last_chunk: false,
        };
        stream::try_unfold(from, Cursor::next).boxed()
    }

    /// Deletes a client; `false` if there was none.
    ///
    /// # Errors
    /// As all.
    pub async fn delete_client(&self, id: Uuid) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!("DELETE FROM clients WHERE id = $1", id)
                    .execute(pool)
                    .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Where a streamed list stands.
struct Cursor {
    catalog: Catalog,
    enabled_only: bool,
    left: i64,
    offset: i64,
    after: Option<(String, Uuid)>,
    ready: VecDeque<Row>,
    last_chunk: bool,
}

impl Cursor {
    async fn next(mut self) -> Result<Option<(Client, Self)>, CatalogError> {
        if self.ready.is_empty() && !self.last_chunk && self.left > 0 {
            let limit = self.left.min(CHUNK);
            let (name, id) = self.after.clone().unzip();
            let (name, enabled_only, offset) = (&name, self.enabled_only, self.offset);
            let rows = self
                .catalog
                .again(|pool| async move {
                    client_rows!(
                        "WHERE (NOT $1 OR c.enabled) AND ($2::text IS NULL OR (c.hostname, c.id) > ($2, $3))
                         ORDER BY c.hostname, c.id LIMIT $4 OFFSET $5",
                        enabled_only,
                        name.as_deref(),
                        id,
                        limit,
                        offset
                    )
                    .fetch_all(pool)
                    .await
                })
                .await?;
            self.last_chunk = i64::try_from(rows.len()).is_ok_and(|n| n < limit);
            self.after = rows
                .last()
                .map(|r| (r.hostname.clone(), r.id))
                .or(self.after);
            self.offset = 0;
            self.ready = rows.into();
        }
        match self.ready.pop_front() {
            Some(row) => {
                self.left -= 1;
                Ok(Some((row.model()?, self)))
            }
            None => Ok(None),
        }
    }
}
