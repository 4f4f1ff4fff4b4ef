//! Versions of images. Stages are changed by one statement; PostgreSQL retires the version
//! that was released before (see `dls_version_rules`).

use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::parse;
use super::{Catalog, CatalogError};
use crate::model::{Canary, CanaryBoot, Judgement, Timestamp, Version, VersionStage};

/// A row of `image_snapshots`.
pub(super) struct Row {
    id: Uuid,
    image_id: Uuid,
    name: String,
    stage: String,
    ring: Option<String>,
    description: Option<String>,
    size_bytes: i64,
    referenced_bytes: i64,
    author: Option<String>,
    from_client: Option<String>,
    created_at: Timestamp,
    released_at: Option<Timestamp>,
    returned_at: Option<Timestamp>,
    reason: Option<String>,
    canary_at: Option<Timestamp>,
    good_boots: Option<i32>,
}

macro_rules! version_rows {
    ($tail:literal $(, $arg:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT v.id, v.image_id, v.name, v.stage, v.ring, v.description, v.size_bytes, v.referenced_bytes, v.author,
                   v.from_client, v.created_at, v.released_at, v.returned_at, v.reason, v.canary_at, v.good_boots
               FROM image_snapshots v "# + $tail
            $(, $arg)*
        )
    };
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
    version_rows!("ORDER BY v.image_id, v.created_at, v.name")
        .fetch_all(connection)
        .await
}

pub(super) fn models(rows: Vec<Row>) -> Result<Vec<Version>, CatalogError> {
    rows.into_iter().map(Row::model).collect()
}

impl Row {
    fn model(self) -> Result<Version, CatalogError> {
        Ok(Version {
            id: self.id,
            image_id: self.image_id,
            name: self.name,
            stage: parse("stage of a version", &self.stage)?,
            ring: self.ring,
            description: self.description,
            size_bytes: self.size_bytes,
            referenced_bytes: self.referenced_bytes,
            author: self.author,
            from_client: self.from_client,
            created_at: self.created_at,
            released_at: self.released_at,
            returned_at: self.returned_at,
            reason: self.reason,
            canary_at: self.canary_at,
            good_boots: self.good_boots.and_then(|n| u32::try_from(n).ok()),
        })
    }
}

impl Catalog {
    /// The versions of an image, oldest first.
    ///
    /// # Errors
    /// As all.
    pub async fn list_versions(&self, image_id: Uuid) -> Result<Vec<Version>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                version_rows!(
                    "WHERE v.image_id = $1 ORDER BY v.created_at, v.name",
                    image_id
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        models(rows)
    }

    /// One version by id.
    ///
    /// # Errors
    /// As all.
    pub async fn get_version(&self, id: Uuid) -> Result<Option<Version>, CatalogError> {
        self.again(|pool| async move {
            version_rows!("WHERE v.id = $1", id)
                .fetch_optional(pool)
                .await
        })
        .await?
        .map(Row::model)
        .transpose()
    }

    /// How many boots of each version of an image are open; versions without any are left out.
    ///
    /// # Errors
    /// As all.
    pub async fn version_boots(&self, image_id: Uuid) -> Result<Vec<(Uuid, i64)>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT v.id, count(*) AS "boots!" FROM image_snapshots v
                       JOIN boot_attempts a ON a.version_id = v.id AND a.ended_at IS NULL
                       WHERE v.image_id = $1 GROUP BY v.id"#,
                    image_id
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.boots)).collect())
    }

    /// Adds a version, as a draft. Once more is no error: the answer to a first try may have
    /// been lost.
    ///
    /// # Errors
    /// `Conflict` on a name in use, `Refused` on a broken rule.
    pub async fn add_version(&self, version: &Version) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            sqlx::query!(
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
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// Notes what a version takes in the store: bytes of its own, and all that it refers to.
    ///
    /// # Errors
    /// As all.
    pub async fn measure_version(
        &self,
        id: Uuid,
        used: i64,
        referenced: i64,
    ) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            sqlx::query!(
                "UPDATE image_snapshots SET size_bytes = $2, referenced_bytes = $3 WHERE id = $1",
                id,
                used,
                referenced
            )
            .execute(pool)
            .await
        })
        .await?;
        Ok(())
    }

    /// Releases a version: to those of `ring` as their canary, or to all without one. What they
    /// had before is retired. A canary with `good_boots` is judged by its machines' boots.
    /// Nothing changes if it is that already.
    ///
    /// # Errors
    /// `Refused` where it can't become that; `Conflict` if another was released meanwhile.
    pub async fn release_version(
        &self,
        id: Uuid,
        ring: Option<&str>,
        good_boots: Option<u32>,
    ) -> Result<Option<Version>, CatalogError> {
        let good_boots = good_boots.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let stage = match ring {
            Some(_) => VersionStage::Canary,
            None => VersionStage::Production,
        };
        self.again(|pool| async move {
            sqlx::query!(
                "UPDATE image_snapshots SET stage = $2, ring = $3, good_boots = $4
                 WHERE id = $1 AND (stage, ring, good_boots) IS DISTINCT FROM ($2::text, $3::text, $4::int)",
                id,
                stage.as_str(),
                ring,
                good_boots
            )
            .execute(pool)
            .await
        })
        .await?;
        self.get_version(id).await
    }

    /// The canaries that are judged by their machines' boots, with these.
    ///
    /// # Errors
    /// As all.
    pub async fn watched_canaries(&self) -> Result<Vec<Canary>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                sqlx::query!(
                    r#"SELECT v.id, v.name, i.name AS image, v.ring AS "ring!", v.canary_at AS "since!", v.good_boots AS "wanted!",
                           b.session_id AS "session?", b.client AS "client?", b.verdict AS "verdict?", b.why AS "why?"
                       FROM image_snapshots v
                       JOIN images i ON i.id = v.image_id
                       LEFT JOIN version_boots b ON b.version_id = v.id AND b.started_at >= v.canary_at
                       WHERE v.stage = 'canary' AND v.good_boots IS NOT NULL
                       ORDER BY v.id, b.started_at, b.session_id"#
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        let mut canaries: Vec<Canary> = Vec::new();
        for row in rows {
            if canaries.last().is_none_or(|last| last.id != row.id) {
                canaries.push(Canary {
                    id: row.id,
                    name: row.name,
                    image: row.image,
                    ring: row.ring,
                    since: row.since,
                    wanted: u32::try_from(row.wanted).unwrap_or(u32::MAX),
                    boots: Vec::new(),
                });
            }
            if let (Some(session), Some(verdict), Some(canary)) =
                (row.session, row.verdict, canaries.last_mut())
            {
                canary.boots.push(CanaryBoot {
                    session,
                    client: row.client.unwrap_or_else(|| "unknown".to_owned()),
                    verdict: parse("verdict of a boot", &verdict)?,
                    why: row.why,
                });
            }
        }
        Ok(canaries)
    }

    /// Carries a judgement out, unless somebody did something with the canary since it was
    /// looked at: `false` then.
    ///
    /// # Errors
    /// As all; `Conflict` if another version was released at the same moment.
    pub async fn settle_canary(
        &self,
        canary: &Canary,
        judgement: &Judgement,
    ) -> Result<bool, CatalogError> {
        let (stage, reason) = match judgement {
            Judgement::Wait => return Ok(false),
            Judgement::Release => (VersionStage::Production, None),
            Judgement::Return(reason) => (VersionStage::Retired, Some(reason.as_str())),
        };
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE image_snapshots SET stage = $3, reason = $4,
                         returned_at = CASE WHEN $4::text IS NULL THEN NULL ELSE clock_timestamp() END
                     WHERE id = $1 AND stage = 'canary' AND canary_at = $2 AND good_boots IS NOT NULL",
                    canary.id,
                    canary.since,
                    stage.as_str(),
                    reason
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Sends machines back from a version: to `to`, or from a canary to whatever is in
    /// production. `false` if it was not released any more.
    ///
    /// # Errors
    /// `Refused` where a rule forbids it.
    pub async fn return_version(
        &self,
        from: Uuid,
        to: Option<Uuid>,
        reason: Option<&str>,
    ) -> Result<bool, CatalogError> {
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            // Held until the end, so that two at once do not go back twice.
            let stage = sqlx::query_scalar!(
                "SELECT stage FROM image_snapshots WHERE id = $1 FOR UPDATE",
                from
            )
            .fetch_optional(&mut *tx)
            .await?;
            let expected = match to {
                Some(_) => VersionStage::Production,
                None => VersionStage::Canary,
            };
            if stage.as_deref() != Some(expected.as_str()) {
                return Ok(false);
            }
            if let Some(to) = to {
                sqlx::query!(
                    "UPDATE image_snapshots SET stage = 'production' WHERE id = $1",
                    to
                )
                .execute(&mut *tx)
                .await?;
            }
            sqlx::query!(
                "UPDATE image_snapshots SET stage = 'retired', returned_at = clock_timestamp(), reason = $2 WHERE id = $1",
                from,
                reason
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Deletes a version; `false` if there was none. Refused while it is released or the
    /// image's first, while a boot of it is open or a client is pinned to it: the message names
    /// them.
    ///
    /// # Errors
    /// `Refused` while in use.
    pub async fn delete_version(&self, id: Uuid) -> Result<bool, CatalogError> {
        let deleted = self
            .again(|pool| async move {
                let mut tx = pool.begin().await?;
                let there = sqlx::query_scalar!(
                    "SELECT id FROM image_snapshots WHERE id = $1 FOR UPDATE",
                    id
                )
                .fetch_optional(&mut *tx)
                .await?;
                if there.is_none() {
                    return Ok(Ok(false));
                }
                let users = users(&mut tx, id).await?;
                if !users.is_empty() {
                    return Ok(Err(users));
                }
                sqlx::query!("DELETE FROM image_snapshots WHERE id = $1", id)
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
                message: format!("the version is in use: {}{more}", named.join(", ")),
            }
        })
    }
}

/// Who uses a version, in sentences: boots that are open, clients that are pinned to it.
async fn users(connection: &mut PgConnection, id: Uuid) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT 'client ' || coalesce(a.client_name, a.mac) || ' has booted it (' || coalesce(s.status, a.outcome) || ', session ' || a.id || ')' AS "who!"
           FROM boot_attempts a LEFT JOIN boot_sessions s ON s.id = a.id WHERE a.version_id = $1 AND a.ended_at IS NULL
           UNION ALL
           SELECT 'client ' || hostname || ' is pinned to it' FROM clients WHERE pinned_version = $1
           ORDER BY 1"#,
        id
    )
    .fetch_all(connection)
    .await
}
