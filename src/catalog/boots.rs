//! Boot attempts, their events, and the seed's boot sessions.
//!
//! What the tracker writes must never be held up by a row that no longer fits: it is set
//! aside with its reason in the log.

use sqlx::types::ipnetwork::IpNetwork;
use sqlx::{Acquire, PgConnection};
use uuid::Uuid;

use super::boot_batch::Batch;
use super::error::is_refusal;
use super::rows::{inet, ipv4, parse};
use super::{AttemptFilter, BootWrite, Catalog, CatalogError, Page};
use crate::model::{Attempt, AttemptOutcome, BootEvent, BootSession, SessionStatus, Timestamp};

/// An attempt with its events in order and its session, if it came to one.
pub type TrackedAttempt = (Attempt, Vec<BootEvent>, Option<BootSession>);

/// A row of `boot_attempts` with that of `boot_sessions` by the same id.
struct Row {
    id: Uuid,
    mac: String,
    smbios_uuid: Option<Uuid>,
    client_id: Option<Uuid>,
    client_name: Option<String>,
    image_name: Option<String>,
    server_id: Uuid,
    range_id: Option<Uuid>,
    arch: Option<String>,
    client_ip: Option<IpNetwork>,
    boot_server_ip: Option<IpNetwork>,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    last_stage: String,
    outcome: String,
    reason: Option<String>,
    disk_bytes_read: i64,
    disk_bytes_written: i64,
    version_id: Option<Uuid>,
    version_name: Option<String>,
    s_client_id: Option<Uuid>,
    s_image_id: Option<Uuid>,
    s_started_at: Option<Timestamp>,
    s_ended_at: Option<Timestamp>,
    s_status: Option<String>,
    s_boot_time_seconds: Option<i32>,
    s_error_message: Option<String>,
    s_client_ip: Option<IpNetwork>,
    s_boot_server_ip: Option<IpNetwork>,
}

macro_rules! attempt_rows {
    ($tail:literal $(, $arg:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT a.id, a.mac, a.smbios_uuid, a.client_id, a.client_name, a.image_name, a.server_id, a.range_id, a.arch,
                   a.client_ip, a.boot_server_ip, a.started_at, a.ended_at, a.last_stage, a.outcome, a.reason,
                   a.disk_bytes_read, a.disk_bytes_written, a.version_id, a.version_name,
                   s.client_id AS "s_client_id?", s.image_id AS "s_image_id?", s.started_at AS "s_started_at?",
                   s.ended_at AS "s_ended_at?", s.status AS "s_status?", s.boot_time_seconds AS "s_boot_time_seconds?",
                   s.error_message AS "s_error_message?", s.client_ip AS "s_client_ip?", s.boot_server_ip AS "s_boot_server_ip?"
               FROM boot_attempts a LEFT JOIN boot_sessions s ON s.id = a.id "# + $tail
            $(, $arg)*
        )
    };
}

impl Row {
    fn model(self) -> Result<(Attempt, Option<BootSession>), CatalogError> {
        let session = match (
            self.s_client_id,
            self.s_image_id,
            self.s_started_at,
            self.s_status,
        ) {
            (Some(client_id), Some(image_id), Some(started_at), Some(status)) => {
                Some(BootSession {
                    id: self.id,
                    client_id,
                    image_id,
                    started_at,
                    ended_at: self.s_ended_at,
                    status: parse("session status", &status)?,
                    boot_time_seconds: self.s_boot_time_seconds,
                    error_message: self.s_error_message,
                    client_ip: self.s_client_ip.and_then(ipv4),
                    boot_server_ip: self.s_boot_server_ip.and_then(ipv4),
                })
            }
            _ => None,
        };
        let attempt = Attempt {
            id: self.id,
            mac: parse("MAC address", &self.mac)?,
            smbios_uuid: self.smbios_uuid,
            client_id: self.client_id,
            client_name: self.client_name,
            image_name: self.image_name,
            server_id: self.server_id,
            range_id: self.range_id,
            arch: self
                .arch
                .map(|arch| parse("architecture", &arch))
                .transpose()?,
            client_ip: self.client_ip.and_then(ipv4),
            boot_server_ip: self.boot_server_ip.and_then(ipv4),
            started_at: self.started_at,
            ended_at: self.ended_at,
            last_stage: parse("stage", &self.last_stage)?,
            outcome: parse("outcome", &self.outcome)?,
            reason: self.reason,
            disk_bytes_read: self.disk_bytes_read,
            disk_bytes_written: self.disk_bytes_written,
            version_id: self.version_id,
            version_name: self.version_name,
        };
        Ok((attempt, session))
    }
}

/// Whether a write found what it refers to.
#[derive(PartialEq, Eq)]
enum Fit {
    Fits,
    /// It refers to a row that is gone.
    Orphan,
}

/// Writes one item. Every statement is a no-op when it is sent twice.
async fn write(connection: &mut PgConnection, item: &BootWrite) -> Result<Fit, sqlx::Error> {
    let done = match item {
        BootWrite::Attempt(attempt) => return write_attempt(connection, attempt).await,
        BootWrite::Session(session) => return write_session(connection, session).await,
        BootWrite::Event(event) => {
            sqlx::query!(
                "INSERT INTO boot_events (session_id, at, stage, detail) SELECT a.id, $2, $3, $4 FROM boot_attempts a WHERE a.id = $1
                 ON CONFLICT (session_id, at, stage, md5(detail::text)) DO UPDATE SET stage = EXCLUDED.stage",
                event.session_id,
                event.at,
                event.stage.as_str(),
                event.detail
            )
            .execute(connection)
            .await?
        }
        // The start of the boot is the mark by which a repetition is known.
        BootWrite::ClientBooted { client_id, at } => {
            sqlx::query!(
                "UPDATE clients SET boot_count = boot_count + CASE WHEN last_boot_at = $2 THEN 0 ELSE 1 END, last_boot_at = $2
                 WHERE id = $1",
                client_id,
                at
            )
            .execute(connection)
            .await?
        }
        BootWrite::ImageReports { image_id } => {
            sqlx::query!(
                "UPDATE images SET phone_home = 'expected' WHERE id = $1 AND phone_home = 'auto'",
                image_id
            )
            .execute(connection)
            .await?;
            return Ok(Fit::Fits);
        }
    };
    Ok(if done.rows_affected() == 0 {
        Fit::Orphan
    } else {
        Fit::Fits
    })
}

/// References to clients and ranges that are gone become NULL: the trace stays.
async fn write_attempt(
    connection: &mut PgConnection,
    attempt: &Attempt,
) -> Result<Fit, sqlx::Error> {
    sqlx::query!(
        "INSERT INTO boot_attempts (id, mac, smbios_uuid, client_id, client_name, image_name, server_id, range_id, arch, client_ip,
             boot_server_ip, started_at, ended_at, last_stage, outcome, reason, disk_bytes_read, disk_bytes_written,
             version_id, version_name)
         VALUES ($1, $2, $3, (SELECT id FROM clients WHERE id = $4), $5, $6, $7, (SELECT id FROM network_ranges WHERE id = $8),
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
         ON CONFLICT (id) DO UPDATE SET smbios_uuid = EXCLUDED.smbios_uuid, client_id = EXCLUDED.client_id,
             client_name = EXCLUDED.client_name, image_name = EXCLUDED.image_name, server_id = EXCLUDED.server_id,
             range_id = EXCLUDED.range_id, arch = EXCLUDED.arch, client_ip = EXCLUDED.client_ip,
             boot_server_ip = EXCLUDED.boot_server_ip, started_at = EXCLUDED.started_at, ended_at = EXCLUDED.ended_at,
             last_stage = EXCLUDED.last_stage, outcome = EXCLUDED.outcome, reason = EXCLUDED.reason,
             disk_bytes_read = EXCLUDED.disk_bytes_read, disk_bytes_written = EXCLUDED.disk_bytes_written,
             version_id = EXCLUDED.version_id, version_name = EXCLUDED.version_name",
        attempt.id,
        attempt.mac.to_string(),
        attempt.smbios_uuid,
        attempt.client_id,
        attempt.client_name,
        attempt.image_name,
        attempt.server_id,
        attempt.range_id,
        attempt.arch.map(|arch| arch.as_str()),
        attempt.client_ip.map(inet),
        attempt.boot_server_ip.map(inet),
        attempt.started_at,
        attempt.ended_at,
        attempt.last_stage.as_str(),
        attempt.outcome.as_str(),
        attempt.reason,
        attempt.disk_bytes_read,
        attempt.disk_bytes_written,
        attempt.version_id,
        attempt.version_name
    )
    .execute(connection)
    .await?;
    Ok(Fit::Fits)
}

/// The seed's row needs its client and its image.
async fn write_session(
    connection: &mut PgConnection,
    session: &BootSession,
) -> Result<Fit, sqlx::Error> {
    let done = sqlx::query!(
        "INSERT INTO boot_sessions (id, client_id, image_id, started_at, ended_at, status, boot_time_seconds, error_message,
             client_ip, boot_server_ip)
         SELECT $1, c.id, i.id, $4, $5, $6, $7, $8, $9, $10 FROM clients c, images i WHERE c.id = $2 AND i.id = $3
         ON CONFLICT (id) DO UPDATE SET client_id = EXCLUDED.client_id, image_id = EXCLUDED.image_id,
             started_at = EXCLUDED.started_at, ended_at = EXCLUDED.ended_at, status = EXCLUDED.status,
             boot_time_seconds = EXCLUDED.boot_time_seconds, error_message = EXCLUDED.error_message,
             client_ip = EXCLUDED.client_ip, boot_server_ip = EXCLUDED.boot_server_ip",
        session.id,
        session.client_id,
        session.image_id,
        session.started_at,
        session.ended_at,
        session.status.as_str(),
        session.boot_time_seconds,
        session.error_message,
        session.client_ip.map(inet),
        session.boot_server_ip.map(inet)
    )
    .execute(connection)
    .await?;
    Ok(if done.rows_affected() == 0 {
        Fit::Orphan
    } else {
        Fit::Fits
    })
}

/// Writes a batch by few statements; `false` where something in it does not fit.
async fn together(
    connection: &mut PgConnection,
    writes: &[BootWrite],
) -> Result<bool, sqlx::Error> {
    let Some(batch) = Batch::new(writes) else {
        return Ok(false);
    };
    if !batch.write(connection).await? {
        return Ok(false);
    }
    for item in &batch.others {
        if write(connection, item).await? == Fit::Orphan {
            return Ok(false);
        }
    }
    Ok(true)
}

fn set_aside(item: &BootWrite, why: &str) {
    tracing::warn!(
        ?item,
        why,
        "a row of a boot's history no longer fits and is set aside"
    );
}

impl Catalog {
    /// Creates a boot session (seed name); returns its id. Its attempt is made with it where
    /// the tracker has not written one.
    ///
    /// # Errors
    /// `Refused` where client or image do not exist, `Conflict` where the id does.
    pub async fn create_boot_session(&self, session: &BootSession) -> Result<Uuid, CatalogError> {
        let server = self.shared.server_id;
        let open = session.ended_at.is_none();
        let mut tx = self.pool().begin().await?;
        sqlx::query!(
            "INSERT INTO boot_attempts (id, mac, client_id, client_name, image_name, server_id, client_ip, boot_server_ip,
                 started_at, ended_at, outcome)
             SELECT $1, c.mac_address, c.id, c.hostname, i.name, $4, $5, $6, $7, $8,
                 CASE WHEN $9 THEN 'open' WHEN $10 = 'error' THEN 'failed' ELSE 'completed' END
             FROM clients c, images i WHERE c.id = $2 AND i.id = $3
             ON CONFLICT (id) DO NOTHING",
            session.id,
            session.client_id,
            session.image_id,
            server,
            session.client_ip.map(inet),
            session.boot_server_ip.map(inet),
            session.started_at,
            session.ended_at,
            open,
            session.status.as_str()
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "INSERT INTO boot_sessions (id, client_id, image_id, started_at, ended_at, status, boot_time_seconds, error_message,
                 client_ip, boot_server_ip) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            session.id,
            session.client_id,
            session.image_id,
            session.started_at,
            session.ended_at,
            session.status.as_str(),
            session.boot_time_seconds,
            session.error_message,
            session.client_ip.map(inet),
            session.boot_server_ip.map(inet)
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(session.id)
    }

    /// Sets a session's status and message (seed name); `false` if there is none. The first
    /// `running` sets `boot_time_seconds`, an end sets `ended_at`.
    ///
    /// # Errors
    /// As all.
    pub async fn update_boot_session_status(
        &self,
        id: Uuid,
        status: SessionStatus,
        at: Timestamp,
        error_message: Option<&str>,
    ) -> Result<bool, CatalogError> {
        let done = self
            .again(|pool| async move {
                sqlx::query!(
                    "UPDATE boot_sessions SET status = $2::text, error_message = coalesce($4, error_message),
                         ended_at = CASE WHEN $5 THEN NULL ELSE coalesce(ended_at, $3) END,
                         boot_time_seconds = CASE WHEN $2::text = 'running' AND boot_time_seconds IS NULL
                             THEN greatest(0, floor(extract(epoch FROM $3 - started_at)))::int ELSE boot_time_seconds END
                     WHERE id = $1",
                    id,
                    status.as_str(),
                    at,
                    error_message,
                    status.is_live()
                )
                .execute(pool)
                .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Sessions that are starting, booting or running (seed name).
    ///
    /// # Errors
    /// As all.
    pub async fn get_active_sessions(&self) -> Result<Vec<BootSession>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                sqlx::query!(
                    "SELECT id, client_id, image_id, started_at, ended_at, status, boot_time_seconds, error_message, client_ip,
                         boot_server_ip
                     FROM boot_sessions WHERE status IN ('starting', 'booting', 'running') ORDER BY started_at, id"
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(BootSession {
                    id: row.id,
                    client_id: row.client_id,
                    image_id: row.image_id,
                    started_at: row.started_at,
                    ended_at: row.ended_at,
                    status: parse("session status", &row.status)?,
                    boot_time_seconds: row.boot_time_seconds,
                    error_message: row.error_message,
                    client_ip: row.client_ip.and_then(ipv4),
                    boot_server_ip: row.boot_server_ip.and_then(ipv4),
                })
            })
            .collect()
    }

    /// Writes a batch of the tracker's, in order, in one transaction. What refers to a client,
    /// an image or an attempt that is gone, or is refused by a rule, is set aside (and said in
    /// the log). Sending a batch twice adds nothing.
    ///
    /// # Errors
    /// As all; then nothing of it was written.
    pub async fn write_boots(&self, writes: &[BootWrite]) -> Result<(), CatalogError> {
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            match together(&mut tx, writes).await {
                Ok(true) => return tx.commit().await,
                Ok(false) => {}
                Err(error) if is_refusal(&error) => {}
                Err(error) => return Err(error),
            }
            // Rare, so savepoints are used only now: once more, each item by itself.
            tx.rollback().await?;
            let mut tx = pool.begin().await?;
            for item in writes {
                let mut savepoint = tx.begin().await?;
                match write(&mut savepoint, item).await {
                    Ok(Fit::Fits) => savepoint.commit().await?,
                    Ok(Fit::Orphan) => {
                        savepoint.rollback().await?;
                        set_aside(item, "it refers to a row that is gone");
                    }
                    Err(error) if is_refusal(&error) => {
                        savepoint.rollback().await?;
                        set_aside(item, &error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
            tx.commit().await
        })
        .await?;
        self.wrote();
        Ok(())
    }

    /// Open attempts of this server with their events, to go on with after a restart.
    ///
    /// # Errors
    /// As all.
    pub async fn open_attempts(
        &self,
        server_id: Uuid,
    ) -> Result<Vec<TrackedAttempt>, CatalogError> {
        let rows = self
            .again(|pool| async move {
                attempt_rows!(
                    "WHERE a.ended_at IS NULL AND a.server_id = $1 ORDER BY a.started_at, a.id",
                    server_id
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        self.with_events(rows).await
    }

    /// Attempts, newest first.
    ///
    /// # Errors
    /// As all.
    pub async fn list_attempts(
        &self,
        filter: AttemptFilter,
        page: Page,
    ) -> Result<Vec<(Attempt, Option<BootSession>)>, CatalogError> {
        let mac = &filter.mac.map(|mac| mac.to_string());
        let rows = self
            .again(|pool| async move {
                attempt_rows!(
                    "WHERE (NOT $1 OR a.ended_at IS NULL) AND ($2::text IS NULL OR a.mac = $2) AND ($3::uuid IS NULL OR a.client_id = $3)
                     ORDER BY a.started_at DESC, a.id DESC LIMIT $4 OFFSET $5",
                    filter.open_only,
                    mac.as_deref(),
                    filter.client_id,
                    page.limit,
                    page.offset
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        rows.into_iter().map(Row::model).collect()
    }

    /// One attempt with its events and session.
    ///
    /// # Errors
    /// As all.
    pub async fn get_attempt(&self, id: Uuid) -> Result<Option<TrackedAttempt>, CatalogError> {
        let rows = self
            .again(|pool| async move { attempt_rows!("WHERE a.id = $1", id).fetch_all(pool).await })
            .await?;
        Ok(self.with_events(rows).await?.pop())
    }

    /// How often an attempt ended so, for tests and metrics.
    ///
    /// # Errors
    /// As all.
    pub async fn count_attempts(&self, outcome: AttemptOutcome) -> Result<i64, CatalogError> {
        self.again(|pool| async move {
            sqlx::query_scalar!(
                r#"SELECT count(*) AS "count!" FROM boot_attempts WHERE outcome = $1"#,
                outcome.as_str()
            )
            .fetch_one(pool)
            .await
        })
        .await
    }

    async fn with_events(&self, rows: Vec<Row>) -> Result<Vec<TrackedAttempt>, CatalogError> {
        let ids: &Vec<Uuid> = &rows.iter().map(|row| row.id).collect();
        let events = self
            .again(|pool| async move {
                sqlx::query!(
                    "SELECT session_id, at, stage, detail FROM boot_events WHERE session_id = ANY ($1) ORDER BY session_id, at, id",
                    ids
                )
                .fetch_all(pool)
                .await
            })
            .await?;
        let mut of: std::collections::HashMap<Uuid, Vec<BootEvent>> =
            std::collections::HashMap::new();
        for row in events {
            of.entry(row.session_id).or_default().push(BootEvent {
                session_id: row.session_id,
                at: row.at,
                stage: parse("stage", &row.stage)?,
                detail: row.detail,
            });
        }
        rows.into_iter()
            .map(|row| {
                let (attempt, session) = row.model()?;
                let events = of.remove(&attempt.id).unwrap_or_default();
                Ok((attempt, events, session))
            })
            .collect()
    }
}
