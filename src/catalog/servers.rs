//! The servers that share this catalog.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::rows::inets;
use super::{Catalog, CatalogError};

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
}
