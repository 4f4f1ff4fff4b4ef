//! The clones in a server's store, as it tells of them. Rows for people: nothing is decided
//! by them.

use super::{Catalog, CatalogError};
use crate::model::CloneReport;

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
                         last_attached_at, idle_since, protocol, peer)
                     VALUES ($1, $2, $3, (SELECT id FROM clients WHERE id = $4), $5, (SELECT id FROM images WHERE id = $6), $7, $8, $9,
                         $10, $11, $12, $13)
                     ON CONFLICT (server_id, name) DO UPDATE SET client_id = EXCLUDED.client_id,
                         session_id = coalesce(EXCLUDED.session_id, clones.session_id), image_id = EXCLUDED.image_id,
                         image_name = coalesce(EXCLUDED.image_name, clones.image_name), size_bytes = EXCLUDED.size_bytes,
                         used_bytes = EXCLUDED.used_bytes,
                         last_attached_at = coalesce(EXCLUDED.last_attached_at, clones.last_attached_at),
                         idle_since = CASE WHEN EXCLUDED.peer IS NULL
                             THEN coalesce(EXCLUDED.idle_since, clones.idle_since, now()) END,
                         protocol = EXCLUDED.protocol, peer = EXCLUDED.peer
                     WHERE (clones.client_id, clones.session_id, clones.image_id, clones.size_bytes, clones.used_bytes, clones.last_attached_at,
                            clones.idle_since, clones.protocol, clones.peer)
                         IS DISTINCT FROM
                           (EXCLUDED.client_id, coalesce(EXCLUDED.session_id, clones.session_id), EXCLUDED.image_id, EXCLUDED.size_bytes,
                            EXCLUDED.used_bytes, coalesce(EXCLUDED.last_attached_at, clones.last_attached_at),
                            CASE WHEN EXCLUDED.peer IS NULL THEN coalesce(EXCLUDED.idle_since, clones.idle_since) END,
                            EXCLUDED.protocol, EXCLUDED.peer)",
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
                    clone.peer
                )
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        })
        .await
    }
}
