//! All that booting needs, read at one point in time.

use super::{
    Catalog, CatalogError, Loaded, clients, images, maintenance, quotas, ranges, replicas, versions,
};

impl Catalog {
    /// Reads all that booting needs, in one snapshot.
    ///
    /// # Errors
    /// As all.
    pub async fn load(&self) -> Result<Loaded, CatalogError> {
        let (clients, images, versions, maintenance, quotas, copies, ranges, site_key) = self
            .again(|pool| async move {
                let mut tx = pool
                    .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    .await?;
                let clients = clients::all(&mut tx).await?;
                let images = images::all(&mut tx).await?;
                let versions = versions::all(&mut tx).await?;
                let maintenance = maintenance::all(&mut tx).await?;
                let quotas = quotas::all(&mut tx).await?;
                let copies = replicas::all(&mut tx, None).await?;
                let ranges = ranges::all(&mut tx).await?;
                let site_key = sqlx::query_scalar!("SELECT site_key FROM site")
                    .fetch_one(&mut *tx)
                    .await?;
                tx.commit().await?;
                Ok((
                    clients,
                    images,
                    versions,
                    maintenance,
                    quotas,
                    copies,
                    ranges,
                    site_key,
                ))
            })
            .await?;
        Ok(Loaded {
            clients: clients::models(clients)?,
            images: images::models(images)?,
            versions: versions::models(versions)?,
            maintenance,
            quotas,
            replicas: replicas::models(copies)?,
            ranges: ranges::models(ranges)?,
            site_key,
        })
    }
}
