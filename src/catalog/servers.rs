//! The servers that share this catalog.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::rows::{inets, ipv4s};
use super::{Catalog, CatalogError};
use crate::model::{Contact, Server, Site};

impl Catalog {
    /// Registers or refreshes this server's row: addresses, version, heartbeat.
    ///
    /// # Errors
    /// As all.
    pub async fn save_server(
        &self,
        id: Uuid,
        name: &str,
        addresses: &[Ipv4Addr],
        version: &str,
    ) -> Result<(), CatalogError> {
        let addresses = &inets(addresses);
        self.again(|pool| async move {
            sqlx::query!(
                "INSERT INTO servers (id, name, addresses, version) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, addresses = EXCLUDED.addresses,
                     version = EXCLUDED.version, heartbeat_at = now()",
                id,
                name,
                addresses,
                version
            )
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// Says how this server is reached by others; its row must be there. Nothing is told to
    /// anybody if that is known already.
    ///
    /// # Errors
    /// As all.
    pub async fn publish_contact(&self, id: Uuid, contact: &Contact) -> Result<(), CatalogError> {
        let replication = &inets(&contact.replication_addresses);
        let boot = &inets(&contact.boot_addresses);
        let port = |port: Option<u16>| port.map(i32::from);
        let row = |server: &Server| server.id == id && server.contact == *contact;
        if self.site().await?.servers.iter().any(row) {
            return Ok(());
        }
        self.again(|pool| async move {
            sqlx::query!(
                "UPDATE servers SET replication_addresses = $2, replication_port = $3, certificate_sha256 = $4,
                     boot_addresses = $5, boot_port = $6 WHERE id = $1",
                id,
                replication,
                port(contact.replication_port),
                contact.certificate_sha256,
                boot,
                port(contact.boot_port)
            )
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// Removes the row of a server that is gone for good, with its lease blocks and replicas;
    /// `false`: it is alive (or not there).
    ///
    /// # Errors
    /// As all.
    pub async fn forget_server(&self, id: Uuid) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "DELETE FROM servers WHERE id = $1 AND heartbeat_at <= now() - interval '35 seconds'",
                    id
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// All servers, with who is alive by PostgreSQL's clock, and whose own disks they keep.
    ///
    /// # Errors
    /// As all.
    pub async fn site(&self) -> Result<Site, CatalogError> {
        self.again(|pool| async move {
            let rows = sqlx::query!(
                r#"SELECT id, name, replication_addresses, replication_port, certificate_sha256, boot_addresses, boot_port,
                       heartbeat_at > now() - interval '35 seconds' AS "alive!"
                   FROM servers ORDER BY name, id"#
            )
            .fetch_all(pool)
            .await?;
            let homes = sqlx::query!(
                r#"SELECT client_id AS "client!", image_id AS "image!", server_id FROM clones
                   WHERE mode = 'persistent' AND client_id IS NOT NULL AND image_id IS NOT NULL
                   ORDER BY created_at, server_id"#
            )
            .fetch_all(pool)
            .await?;
            let port = |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok());
            let servers = rows.into_iter().map(|row| Server {
                id: row.id,
                name: row.name,
                alive: row.alive,
                contact: Contact {
                    replication_addresses: ipv4s(row.replication_addresses),
                    replication_port: port(row.replication_port),
                    certificate_sha256: row.certificate_sha256,
                    boot_addresses: ipv4s(row.boot_addresses),
                    boot_port: port(row.boot_port),
                },
            });
            Ok(Site {
                servers: servers.collect(),
                homes: homes
                    .into_iter()
                    .map(|row| (row.client, row.image, row.server_id))
                    .collect(),
            })
        })
        .await
    }
}
