//! Quotas of clones: columns of `images` and `clients` that are read and set by themselves.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Catalog, CatalogError};
use crate::model::CloneQuota;

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<CloneQuota>, sqlx::Error> {
    sqlx::query_as!(
        CloneQuota,
        r#"SELECT id AS "owner_id!", clone_quota_mb AS "clone_quota_mb!" FROM images WHERE clone_quota_mb IS NOT NULL
           UNION ALL
           SELECT id, clone_quota_mb FROM clients WHERE clone_quota_mb IS NOT NULL"#
    )
    .fetch_all(connection)
    .await
}

impl Catalog {
    /// Sets or takes away the quota of an image's clones; `false` if there is no such image.
    ///
    /// # Errors
    /// `Refused` if it is not above 0.
    pub async fn set_image_quota(
        &self,
        image: Uuid,
        mib: Option<i32>,
    ) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE images SET clone_quota_mb = $2 WHERE id = $1",
                    image,
                    mib
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Sets or takes away a client's own quota, which wins over its image's; 0: no limit.
    /// `false` if there is no such client.
    ///
    /// # Errors
    /// `Refused` if it is below 0.
    pub async fn set_client_quota(
        &self,
        client: Uuid,
        mib: Option<i32>,
    ) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE clients SET clone_quota_mb = $2 WHERE id = $1",
                    client,
                    mib
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
