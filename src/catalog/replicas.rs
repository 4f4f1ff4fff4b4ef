//! Which server has which version of an image.

use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::parse;
use super::{Catalog, CatalogError};
use crate::model::{Replica, ReplicaState, Timestamp};

/// A row as it is stored.
#[derive(Debug)]
pub(super) struct Row {
    version_id: Uuid,
    server_id: Uuid,
    image_id: Uuid,
    state: String,
    from_server: Option<Uuid>,
    bytes_done: i64,
    bytes_total: i64,
    sha256: Option<String>,
    reason: Option<String>,
    begun_at: Timestamp,
    changed_at: Timestamp,
}

pub(super) async fn all(
    connection: &mut PgConnection,
    image: Option<Uuid>,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        "SELECT version_id, server_id, image_id, state, from_server, bytes_done, bytes_total, sha256, reason, begun_at, changed_at
         FROM image_replicas WHERE $1::uuid IS NULL OR image_id = $1 ORDER BY image_id, begun_at, version_id, server_id",
        image
    )
    .fetch_all(connection)
    .await
}

pub(super) fn models(rows: Vec<Row>) -> Result<Vec<Replica>, CatalogError> {
    let model = |row: Row| {
        Ok(Replica {
            version_id: row.version_id,
            server_id: row.server_id,
            image_id: row.image_id,
            state: parse("state of a replica", &row.state)?,
            from_server: row.from_server,
            bytes_done: row.bytes_done,
            bytes_total: row.bytes_total,
            sha256: row.sha256,
            reason: row.reason,
            begun_at: row.begun_at,
            changed_at: row.changed_at,
        })
    };
    rows.into_iter().map(model).collect()
}

impl Catalog {
    /// Replicas, of one image or of all, those of a version in the order of their beginning.
    ///
    /// # Errors
    /// As all.
    pub async fn list_replicas(&self, image: Option<Uuid>) -> Result<Vec<Replica>, CatalogError> {
        let rows = self
            .again(|pool| async move { all(&mut *pool.acquire().await?, image).await })
            .await?;
        models(rows)
    }

    /// A server is to get a version from this one. What is under way goes on; a failed one
    /// begins anew, a verified one stays as it is. Returns the row as it is then.
    ///
    /// # Errors
    /// `Refused` if version or server are gone.
    pub async fn begin_replica(
        &self,
        image: Uuid,
        version: Uuid,
        server: Uuid,
    ) -> Result<Replica, CatalogError> {
        let from = self.shared.server_id;
        self.again(|pool| async move {
            sqlx::query!(
                "INSERT INTO image_replicas AS r (version_id, server_id, image_id, state, from_server)
                 VALUES ($1, $2, $3, 'copying', $4)
                 ON CONFLICT (version_id, server_id) DO UPDATE SET state = 'copying', from_server = EXCLUDED.from_server,
                     bytes_done = 0, bytes_total = 0, sha256 = NULL, reason = NULL, begun_at = clock_timestamp(),
                     changed_at = clock_timestamp()
                 WHERE r.state = 'failed'",
                version,
                server,
                image,
                from
            )
            .execute(pool)
            .await
        })
        .await?;
        let all = self.list_replicas(Some(image)).await?;
        let found = all
            .into_iter()
            .find(|r| (r.version_id, r.server_id) == (version, server));
        found.ok_or_else(|| CatalogError::Refused {
            field: "to",
            message: "the version or the server is gone".to_owned(),
        })
    }

    /// How far one is that this server sends, and what it waits for; `false` if it is not
    /// under way any more.
    ///
    /// # Errors
    /// As all.
    pub async fn replica_progress(
        &self,
        version: Uuid,
        server: Uuid,
        (done, total): (i64, i64),
        reason: Option<&str>,
    ) -> Result<bool, CatalogError> {
        let from = self.shared.server_id;
        let told = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE image_replicas SET bytes_done = $3, bytes_total = $4, reason = $5
                     WHERE version_id = $1 AND server_id = $2 AND state = 'copying' AND from_server = $6",
                    version,
                    server,
                    done,
                    total,
                    reason,
                    from
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(told.rows_affected() > 0)
    }

    /// One that this server sends is over: verified, with the hash of its content, or failed,
    /// with the reason; and bytes as in [`Catalog::replica_progress`]. `false` if it was not under way
    /// any more.
    ///
    /// # Errors
    /// As all.
    pub async fn end_replica(
        &self,
        version: Uuid,
        server: Uuid,
        outcome: Result<&str, &str>,
        (done, total): (i64, i64),
    ) -> Result<bool, CatalogError> {
        let from = self.shared.server_id;
        let (state, sha256, reason) = match outcome {
            Ok(sha256) => (ReplicaState::Verified, Some(sha256), None),
            Err(reason) => (ReplicaState::Failed, None, Some(reason)),
        };
        let ended = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE image_replicas SET state = $3, sha256 = $4, reason = $5, bytes_done = $7, bytes_total = $8,
                         changed_at = clock_timestamp()
                     WHERE version_id = $1 AND server_id = $2 AND from_server = $6
                         AND (state = 'copying' OR (state = 'verified' AND $5::text IS NULL))",
                    version,
                    server,
                    state.as_str(),
                    sha256,
                    reason,
                    from,
                    done,
                    total
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(ended.rows_affected() > 0)
    }

    /// This server has a version whole, with that hash where it was received and read back.
    /// Without one, what is being sent is left to its sender.
    ///
    /// # Errors
    /// `Refused` if the version is gone.
    pub async fn have_replica(
        &self,
        image: Uuid,
        version: Uuid,
        sha256: Option<&str>,
    ) -> Result<(), CatalogError> {
        let server = self.shared.server_id;
        self.again(|pool| async move {
            sqlx::query!(
                "INSERT INTO image_replicas AS r (version_id, server_id, image_id, state, sha256)
                 VALUES ($1, $2, $3, 'verified', $4)
                 ON CONFLICT (version_id, server_id) DO UPDATE SET sha256 = coalesce(EXCLUDED.sha256, r.sha256),
                     state = 'verified', reason = NULL, changed_at = clock_timestamp()
                 WHERE r.state = 'failed' OR (EXCLUDED.sha256 IS NOT NULL AND (r.state = 'copying' OR r.sha256 IS NULL))",
                version,
                server,
                image,
                sha256
            )
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// A server has a version no more, or shall not get it; `false` if there was no such row.
    ///
    /// # Errors
    /// As all.
    pub async fn drop_replica(&self, version: Uuid, server: Uuid) -> Result<bool, CatalogError> {
        let dropped = self
            .again(|pool| async move {
                sqlx::query!(
                    "DELETE FROM image_replicas WHERE version_id = $1 AND server_id = $2",
                    version,
                    server
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(dropped.rows_affected() > 0)
    }
}
