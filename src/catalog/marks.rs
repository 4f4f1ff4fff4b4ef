//! How often this server has begun something in its store, and which catalog this is.

use super::{Catalog, CatalogError};
use crate::model::Mark;

impl Catalog {
    /// Counts one more, durably.
    ///
    /// # Errors
    /// As all.
    pub async fn next_mark(&self) -> Result<Mark, CatalogError> {
        let server_id = self.shared.server_id;
        let row = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"INSERT INTO store_marks (server_id, mark) VALUES ($1, 1)
                       ON CONFLICT (server_id) DO UPDATE SET mark = store_marks.mark + 1, set_at = clock_timestamp()
                       RETURNING mark, (SELECT catalog_id FROM site) AS "catalog!""#,
                    server_id
                )
                .fetch_one(pool)
                .await
            })
            .await?;
        Ok(Mark {
            catalog: row.catalog,
            number: row.mark,
        })
    }

    /// The last one; number 0 if this catalog knows of none of this server.
    ///
    /// # Errors
    /// As all.
    pub async fn mark(&self) -> Result<Mark, CatalogError> {
        let server_id = self.shared.server_id;
        let row = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT s.catalog_id, coalesce(m.mark, 0) AS "mark!"
                       FROM site s LEFT JOIN store_marks m ON m.server_id = $1"#,
                    server_id
                )
                .fetch_one(pool)
                .await
            })
            .await?;
        Ok(Mark {
            catalog: row.catalog_id,
            number: row.mark,
        })
    }
}
