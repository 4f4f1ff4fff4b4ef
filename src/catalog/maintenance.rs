//! Clients whose machines mend their image.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Catalog, CatalogError};
use crate::model::{Maintenance, Version, VersionStage};

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Maintenance>, sqlx::Error> {
    sqlx::query_as!(
        Maintenance,
        "SELECT client_id, image_id, author, begun_at FROM maintenance ORDER BY client_id"
    )
    .fetch_all(connection)
    .await
}

impl Catalog {
    /// What a client mends, if it does.
    ///
    /// # Errors
    /// As all.
    pub async fn get_maintenance(&self, client: Uuid) -> Result<Option<Maintenance>, CatalogError> {
        self.again(|pool| async move {
            sqlx::query_as!(
                Maintenance,
                "SELECT client_id, image_id, author, begun_at FROM maintenance WHERE client_id = $1",
                client
            )
            .fetch_optional(pool)
            .await
        })
        .await
    }

    /// A client begins to mend an image; `false` if it mends one already.
    ///
    /// # Errors
    /// `Refused` if client or image are gone.
    pub async fn begin_maintenance(
        &self,
        client: Uuid,
        image: Uuid,
        author: Option<&str>,
    ) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "INSERT INTO maintenance (client_id, image_id, author) VALUES ($1, $2, $3) ON CONFLICT (client_id) DO NOTHING",
                    client,
                    image,
                    author
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a version, as [`Catalog::add_version`], and in the same transaction ends the maintenance
    /// of the client that made it and releases it (to a ring, to be judged by so many good boots),
    /// as far as asked for. Once more is no error.
    ///
    /// # Errors
    /// `Conflict` on a name in use or where another was released meanwhile, `Refused` on a
    /// broken rule; then none of it is done.
    pub async fn publish_version(
        &self,
        version: &Version,
        mended_by: Option<Uuid>,
        release: Option<(Option<&str>, Option<u32>)>,
    ) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            let added = sqlx::query!(
                "INSERT INTO image_snapshots (id, image_id, name, description, size_bytes, referenced_bytes, author, from_client)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
                version.id,
                version.image_id,
                version.name,
                version.description,
                version.size_bytes,
                version.referenced_bytes,
                version.author,
                version.from_client
            )
            .execute(&mut *tx)
            .await?;
            if added.rows_affected() == 0 {
                // It was committed, and the answer was lost.
                return Ok(());
            }
            if let Some(client) = mended_by {
                sqlx::query!("DELETE FROM maintenance WHERE client_id = $1", client)
                    .execute(&mut *tx)
                    .await?;
            }
            if let Some((ring, good_boots)) = release {
                let stage = match ring {
                    Some(_) => VersionStage::Canary,
                    None => VersionStage::Production,
                };
                sqlx::query!(
                    "UPDATE image_snapshots SET stage = $2, ring = $3, good_boots = $4
                     WHERE id = $1 AND (stage, ring, good_boots) IS DISTINCT FROM ($2::text, $3::text, $4::int)",
                    version.id,
                    stage.as_str(),
                    ring,
                    good_boots.map(|n| i32::try_from(n).unwrap_or(i32::MAX))
                )
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        })
        .await
    }

    /// It is over; `false` if it was.
    ///
    /// # Errors
    /// As all.
    pub async fn end_maintenance(&self, client: Uuid) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!("DELETE FROM maintenance WHERE client_id = $1", client)
                    .execute(pool)
                    .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
