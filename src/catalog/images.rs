//! Images and their files.

use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::parse;
use super::{Catalog, CatalogError, Page};
use crate::model::{Image, ImageFile, ImageKind, Timestamp};

/// A row of `images`, its files as parallel arrays in the order of the model.
pub(super) struct Row {
    id: Uuid,
    name: String,
    description: Option<String>,
    os_type: Option<String>,
    size_bytes: i64,
    format: String,
    kind: String,
    path: String,
    zfs_dataset: Option<String>,
    cmdline: String,
    phone_home: String,
    boot_method: String,
    sha256: Option<String>,
    source_format: Option<String>,
    tags: Option<serde_json::Value>,
    is_template: bool,
    parent_image_id: Option<Uuid>,
    created_at: Timestamp,
    updated_at: Timestamp,
    roles: Vec<String>,
    positions: Vec<i32>,
    paths: Vec<String>,
    sums: Vec<String>,
    sizes: Vec<i64>,
}

macro_rules! image_rows {
    ($tail:literal $(, $arg:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT i.id, i.name, i.description, i.os_type, i.size_bytes, i.format, i.kind, i.path, i.zfs_dataset,
                   i.cmdline, i.phone_home, i.boot_method, i.sha256::text AS sha256, i.source_format, i.tags, i.is_template, i.parent_image_id, i.created_at, i.updated_at,
                   f.roles AS "roles!", f.positions AS "positions!", f.paths AS "paths!", f.sums AS "sums!", f.sizes AS "sizes!"
               FROM images i CROSS JOIN LATERAL (
                   SELECT coalesce(array_agg(role::text ORDER BY role DESC, position), '{}') AS roles,
                          coalesce(array_agg(position ORDER BY role DESC, position), '{}') AS positions,
                          coalesce(array_agg(path ORDER BY role DESC, position), '{}') AS paths,
                          coalesce(array_agg(sha256::text ORDER BY role DESC, position), '{}') AS sums,
                          coalesce(array_agg(size_bytes ORDER BY role DESC, position), '{}') AS sizes
                   FROM image_files WHERE image_id = i.id) f "# + $tail
            $(, $arg)*
        )
    };
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
    image_rows!("ORDER BY i.name, i.id")
        .fetch_all(connection)
        .await
}

pub(super) fn models(rows: Vec<Row>) -> Result<Vec<Image>, CatalogError> {
    rows.into_iter().map(Row::model).collect()
}

impl Row {
    fn model(self) -> Result<Image, CatalogError> {
        let files = self
            .roles
            .iter()
            .zip(self.positions)
            .zip(self.paths)
            .zip(self.sums)
            .zip(self.sizes)
            .map(|((((role, position), path), sha256), size_bytes)| {
                Ok(ImageFile {
                    role: parse("file role", role)?,
                    position,
                    path,
                    sha256,
                    size_bytes,
                })
            })
            .collect::<Result<Vec<_>, CatalogError>>()?;
        Ok(Image {
            id: self.id,
            name: self.name,
            description: self.description,
            os_type: self.os_type,
            size_bytes: self.size_bytes,
            format: parse("image format", &self.format)?,
            kind: parse("image kind", &self.kind)?,
            path: self.path,
            zfs_dataset: self.zfs_dataset,
            cmdline: self.cmdline,
            phone_home: parse("phone_home", &self.phone_home)?,
            boot_method: parse("boot method", &self.boot_method)?,
            sha256: self.sha256,
            source_format: self.source_format,
            tags: self.tags,
            is_template: self.is_template,
            parent_image_id: self.parent_image_id,
            created_at: self.created_at,
            updated_at: self.updated_at,
            files,
        })
    }
}

impl Catalog {
    /// Inserts or updates an image with its files, in one transaction. `created_at` and
    /// `updated_at` are the database's.
    ///
    /// # Errors
    /// `Conflict` on a name in use, `Refused` on a broken rule.
    pub async fn save_image_metadata(&self, image: &Image) -> Result<(), CatalogError> {
        let roles: &Vec<String> = &image.files.iter().map(|f| f.role.to_string()).collect();
        let positions: &Vec<i32> = &image.files.iter().map(|f| f.position).collect();
        let paths: &Vec<String> = &image.files.iter().map(|f| f.path.clone()).collect();
        let sums: &Vec<String> = &image.files.iter().map(|f| f.sha256.clone()).collect();
        let sizes: &Vec<i64> = &image.files.iter().map(|f| f.size_bytes).collect();
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            sqlx::query!(
                "INSERT INTO images (id, name, description, os_type, size_bytes, format, kind, path, zfs_dataset, cmdline,
                     phone_home, tags, is_template, parent_image_id, boot_method, sha256, source_format)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
                 ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, description = EXCLUDED.description,
                     os_type = EXCLUDED.os_type, size_bytes = EXCLUDED.size_bytes, format = EXCLUDED.format,
                     kind = EXCLUDED.kind, path = EXCLUDED.path, zfs_dataset = EXCLUDED.zfs_dataset,
                     cmdline = EXCLUDED.cmdline, phone_home = EXCLUDED.phone_home, tags = EXCLUDED.tags,
                     is_template = EXCLUDED.is_template, parent_image_id = EXCLUDED.parent_image_id,
                     boot_method = EXCLUDED.boot_method, sha256 = EXCLUDED.sha256, source_format = EXCLUDED.source_format",
                image.id,
                image.name,
                image.description,
                image.os_type,
                image.size_bytes,
                image.format.as_str(),
                image.kind.as_str(),
                image.path,
                image.zfs_dataset,
                image.cmdline,
                image.phone_home.as_str(),
                image.tags,
                image.is_template,
                image.parent_image_id,
                image.boot_method.as_str(),
                image.sha256,
                image.source_format
            )
            .execute(&mut *tx)
            .await?;
            sqlx::query!("DELETE FROM image_files WHERE image_id = $1", image.id)
                .execute(&mut *tx)
                .await?;
            sqlx::query!(
                "INSERT INTO image_files (image_id, role, position, path, sha256, size_bytes)
                 SELECT $1, f.* FROM unnest($2::text[], $3::int[], $4::text[], $5::text[], $6::bigint[]) AS f",
                image.id,
                roles,
                positions,
                paths,
                sums,
                sizes
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
        .map_err(|error| match &error {
            CatalogError::Conflict { field: "name", .. } => error.in_words(|| {
                format!("an image named `{}` is there already", image.name)
            }),
            _ => error,
        })
    }

    /// One image by id.
    ///
    /// # Errors
    /// As all.
    pub async fn get_image_metadata(&self, id: Uuid) -> Result<Option<Image>, CatalogError> {
        self.again(|pool| async move {
            image_rows!("WHERE i.id = $1", id)
                .fetch_optional(pool)
                .await
        })
        .await?
        .map(Row::model)
        .transpose()
    }

    /// One image by name.
    ///
    /// # Errors
    /// As all.
    pub async fn get_image_by_name(&self, name: &str) -> Result<Option<Image>, CatalogError> {
        self.again(|pool| async move {
            image_rows!("WHERE i.name = $1", name)
                .fetch_optional(pool)
                .await
        })
        .await?
        .map(Row::model)
        .transpose()
    }

    /// Images by name.
    ///
    /// # Errors
    /// As all.
    pub async fn list_images(&self, page: Page) -> Result<Vec<Image>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                image_rows!(
                    "ORDER BY i.name, i.id LIMIT $1 OFFSET $2",
                    page.limit,
                    page.offset
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        models(rows)
    }

    /// Who uses an image: assigned clients, live sessions, images made from it; each by name.
    ///
    /// # Errors
    /// As all.
    pub async fn image_users(&self, id: Uuid) -> Result<ImageUsers, CatalogError> {
        let named = self
            .again(|pool| async move {
                let mut connection = pool.acquire().await?;
                users(&mut connection, id).await
            })
            .await?;
        Ok(ImageUsers::sorted(named))
    }

    /// Deletes an image; `false` if there was none. Refused while a live session boots it,
    /// a client is assigned to it or an image was made from it, unless `force`; the message
    /// names them. A disk that others were made from is never deleted: they share its space.
    ///
    /// # Errors
    /// `Refused` while in use.
    pub async fn delete_image_metadata(&self, id: Uuid, force: bool) -> Result<bool, CatalogError> {
        let deleted = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                // The lock keeps new clients and sessions from referring to it meanwhile.
                let there =
                    sqlx::query_scalar!("SELECT kind FROM images WHERE id = $1 FOR UPDATE", id)
                        .fetch_optional(&mut *tx)
                        .await?;
                let Some(kind) = there else {
                    return Ok(Ok(false));
                };
                let mut users = ImageUsers::sorted(users(&mut tx, id).await?);
                if force {
                    users.clients.clear();
                    users.sessions.clear();
                    if kind != ImageKind::Disk.as_str() {
                        users.children.clear();
                    }
                }
                let users = users.sentences();
                if !users.is_empty() {
                    return Ok(Err(users));
                }
                sqlx::query!("DELETE FROM images WHERE id = $1", id)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                Ok(Ok(true))
            })
            .await?;
        deleted.map_err(|users| {
            let more = if users.len() > 20 { ", and more" } else { "" };
            let named: Vec<String> = users.into_iter().take(20).collect();
            CatalogError::Refused {
                field: "id",
                message: format!("the image is in use: {}{more}", named.join(", ")),
            }
        })
    }
}

/// Who uses an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUsers {
    /// Host names of clients that are assigned to it.
    pub clients: Vec<String>,
    /// Host names of clients with a live session of it, each with the session's status.
    pub sessions: Vec<String>,
    /// Names of images that were made from it.
    pub children: Vec<String>,
}

impl ImageUsers {
    fn sorted(named: Vec<(String, String)>) -> Self {
        let mut all = Self::default();
        for (what, name) in named {
            match what.as_str() {
                "client" => all.clients.push(name),
                "session" => all.sessions.push(name),
                _ => all.children.push(name),
            }
        }
        all
    }

    /// For people, in the order of the fields.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let clients = self.clients.iter();
        let sessions = self.sessions.iter();
        let children = self.children.iter();
        clients
            .map(|name| format!("client {name} is assigned to it"))
            .chain(sessions.map(|name| format!("client {name}")))
            .chain(children.map(|name| format!("image {name} was made from it")))
            .collect()
    }
}

/// What uses an image, and by what name.
async fn users(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT 'client' AS "what!", hostname AS "name!" FROM clients WHERE assigned_image_id = $1
           UNION ALL
           SELECT 'session', c.hostname || ' has booted it (' || s.status || ')' FROM boot_sessions s
               JOIN clients c ON c.id = s.client_id
               WHERE s.image_id = $1 AND s.status IN ('starting', 'booting', 'running')
           UNION ALL
           SELECT 'image', name FROM images WHERE parent_image_id = $1
           ORDER BY 1, 2"#,
        id
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.what, row.name)).collect())
}
