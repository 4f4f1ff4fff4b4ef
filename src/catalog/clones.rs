//! The clones in a server's store, as it tells of them. Rows for people: nothing is decided
//! by them.

use uuid::Uuid;

use super::rows::parse;
use super::{Catalog, CatalogError};
use crate::model::{ClientDisk, CloneReport};

impl Catalog {
    /// Makes `clones` say of this server's store what these say, and nothing else.
    ///
    /// # Errors
    /// As all.
    pub async fn save_clones(&self, clones: &[CloneReport]) -> Result<(), CatalogError> {
        let server_id = self.shared.server_id;
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            let names: Vec<String> = clones.iter().map(|c| c.name.clone()).collect();
            sqlx::query!(
                "DELETE FROM clones WHERE server_id = $1 AND name <> ALL ($2)",
                server_id,
                &names
            )
            .execute(&mut *tx)
            .await?;
            for clone in clones {
                // What this run has not seen itself stays as an earlier one has told it.
                sqlx::query!(
                    "INSERT INTO clones (server_id, name, mode, client_id, session_id, image_id, image_name, size_bytes, used_bytes,
                         last_attached_at, idle_since, protocol, peer, version_name, referenced_bytes, own_bytes, quota_bytes)
                     VALUES ($1, $2, $3, (SELECT id FROM clients WHERE id = $4), $5, (SELECT id FROM images WHERE id = $6), $7, $8, $9,
                         $10, $11, $12, $13, $14, $15, $16, $17)
                     ON CONFLICT (server_id, name) DO UPDATE SET client_id = EXCLUDED.client_id,
                         session_id = coalesce(EXCLUDED.session_id, clones.session_id), image_id = EXCLUDED.image_id,
                         image_name = coalesce(EXCLUDED.image_name, clones.image_name), size_bytes = EXCLUDED.size_bytes,
                         used_bytes = EXCLUDED.used_bytes,
                         last_attached_at = coalesce(EXCLUDED.last_attached_at, clones.last_attached_at),
                         idle_since = CASE WHEN EXCLUDED.peer IS NULL
                             THEN coalesce(EXCLUDED.idle_since, clones.idle_since, now()) END,
                         protocol = EXCLUDED.protocol, peer = EXCLUDED.peer,
                         version_name = coalesce(EXCLUDED.version_name, clones.version_name),
                         referenced_bytes = EXCLUDED.referenced_bytes, own_bytes = EXCLUDED.own_bytes, quota_bytes = EXCLUDED.quota_bytes
                     WHERE (clones.client_id, clones.session_id, clones.image_id, clones.size_bytes, clones.used_bytes, clones.last_attached_at,
                            clones.idle_since, clones.protocol, clones.peer, clones.referenced_bytes, clones.own_bytes, clones.quota_bytes,
                            clones.version_name)
                         IS DISTINCT FROM
                           (EXCLUDED.client_id, coalesce(EXCLUDED.session_id, clones.session_id), EXCLUDED.image_id, EXCLUDED.size_bytes,
                            EXCLUDED.used_bytes, coalesce(EXCLUDED.last_attached_at, clones.last_attached_at),
                            CASE WHEN EXCLUDED.peer IS NULL THEN coalesce(EXCLUDED.idle_since, clones.idle_since) END,
                            EXCLUDED.protocol, EXCLUDED.peer, EXCLUDED.referenced_bytes, EXCLUDED.own_bytes, EXCLUDED.quota_bytes,
                            coalesce(EXCLUDED.version_name, clones.version_name))",
                    server_id,
                    clone.name,
                    clone.mode.as_str(),
                    clone.client_id,
                    clone.session_id,
                    clone.image_id,
                    clone.image_name,
                    clone.size_bytes,
                    clone.used_bytes,
                    clone.last_attached_at,
                    clone.idle_since,
                    clone.protocol.map(|p| p.as_str()),
                    clone.peer,
                    clone.version_name,
                    clone.referenced_bytes,
                    clone.own_bytes,
                    clone.quota_bytes
                )
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        })
        .await
    }

    /// The clones on all servers, as each last told; of one client, or of all.
    ///
    /// # Errors
    /// As all.
    pub async fn list_clones(&self, client: Option<Uuid>) -> Result<Vec<ClientDisk>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT k.name, c.hostname AS "client?", k.mode, coalesce(i.name, k.image_name) AS image, k.version_name,
                           k.size_bytes, k.used_bytes, k.referenced_bytes, k.own_bytes, k.quota_bytes, k.session_id, k.peer,
                           k.idle_since, k.created_at, v.name AS "server?"
                       FROM clones k
                       LEFT JOIN clients c ON c.id = k.client_id
                       LEFT JOIN images i ON i.id = k.image_id
                       LEFT JOIN servers v ON v.id = k.server_id
                       WHERE $1::uuid IS NULL OR k.client_id = $1
                       ORDER BY c.hostname, k.mode, k.name"#,
                    client
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(ClientDisk {
                    name: row.name,
                    client: row.client,
                    mode: parse("mode of a clone", &row.mode)?,
                    image: row.image,
                    version: row.version_name,
                    size_bytes: row.size_bytes,
                    used_bytes: row.used_bytes,
                    referenced_bytes: row.referenced_bytes,
                    own_bytes: row.own_bytes,
                    quota_bytes: row.quota_bytes,
                    session_id: row.session_id,
                    peer: row.peer,
                    idle_since: row.idle_since,
                    created_at: row.created_at,
                    server: row.server,
                })
            })
            .collect()
    }
}
