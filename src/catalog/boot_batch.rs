//! A batch of the tracker's rows in a statement per table, however many there are. What does
//! not fit is not judged here: the batch is then written row by row (`boots`).
//!
//! Each statement is planned once, for batches of any length and tables of any: why they say
//! (SELECT $1), LATERAL and LIMIT is told at the statement of leases.

use std::collections::HashSet;

use sqlx::PgConnection;
use sqlx::types::ipnetwork::IpNetwork;
use uuid::Uuid;

use super::BootWrite;
use super::rows::inet;
use crate::model::{Attempt, BootEvent, BootSession, Timestamp};

/// The rows of a batch by table. Attempts go first: the others refer to them.
#[derive(Default)]
pub(super) struct Batch<'a> {
    attempts: Vec<&'a Attempt>,
    sessions: Vec<&'a BootSession>,
    events: Vec<&'a BootEvent>,
    /// The rest, row by row.
    pub(super) others: Vec<&'a BootWrite>,
}

impl<'a> Batch<'a> {
    /// Sorts a batch; `None` where a row stands in it twice, for then their order counts.
    pub(super) fn new(writes: &'a [BootWrite]) -> Option<Self> {
        let mut batch = Self::default();
        let mut once = HashSet::new();
        let mut events = HashSet::new();
        for write in writes {
            let first = match write {
                BootWrite::Attempt(attempt) => {
                    batch.attempts.push(attempt);
                    once.insert(("attempt", attempt.id))
                }
                BootWrite::Session(session) => {
                    batch.sessions.push(session);
                    once.insert(("session", session.id))
                }
                BootWrite::Event(event) => {
                    batch.events.push(event);
                    events.insert((event.session_id, event.at, event.stage.as_str()))
                }
                BootWrite::ClientBooted { .. } | BootWrite::ImageReports { .. } => {
                    batch.others.push(write);
                    true
                }
            };
            if !first {
                return None;
            }
        }
        Some(batch)
    }

    /// Writes attempts, sessions and events; `false` where one of them refers to a row that
    /// is gone.
    pub(super) async fn write(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if !self.attempts.is_empty() {
            write_attempts(connection, &self.attempts).await?;
        }
        let sessions = self.sessions.is_empty()
            || write_sessions(connection, &self.sessions).await? == self.sessions.len() as u64;
        let events = sessions
            && (self.events.is_empty()
                || write_events(connection, &self.events).await? == self.events.len() as u64);
        Ok(events)
    }
}

/// References to clients and ranges that are gone become NULL: the trace stays.
async fn write_attempts(
    connection: &mut PgConnection,
    rows: &[&Attempt],
) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = rows.iter().map(|a| a.id).collect();
    let macs: Vec<String> = rows.iter().map(|a| a.mac.to_string()).collect();
    let smbios: Vec<Option<Uuid>> = rows.iter().map(|a| a.smbios_uuid).collect();
    let clients: Vec<Option<Uuid>> = rows.iter().map(|a| a.client_id).collect();
    let client_names: Vec<Option<String>> = rows.iter().map(|a| a.client_name.clone()).collect();
    let image_names: Vec<Option<String>> = rows.iter().map(|a| a.image_name.clone()).collect();
    let servers: Vec<Uuid> = rows.iter().map(|a| a.server_id).collect();
    let ranges: Vec<Option<Uuid>> = rows.iter().map(|a| a.range_id).collect();
    let archs: Vec<Option<String>> = rows
        .iter()
        .map(|a| a.arch.map(|arch| arch.as_str().to_owned()))
        .collect();
    let client_ips: Vec<Option<IpNetwork>> = rows.iter().map(|a| a.client_ip.map(inet)).collect();
    let server_ips: Vec<Option<IpNetwork>> =
        rows.iter().map(|a| a.boot_server_ip.map(inet)).collect();
    let starts: Vec<Timestamp> = rows.iter().map(|a| a.started_at).collect();
    let ends: Vec<Option<Timestamp>> = rows.iter().map(|a| a.ended_at).collect();
    let stages: Vec<String> = rows
        .iter()
        .map(|a| a.last_stage.as_str().to_owned())
        .collect();
    let outcomes: Vec<String> = rows.iter().map(|a| a.outcome.as_str().to_owned()).collect();
    let reasons: Vec<Option<String>> = rows.iter().map(|a| a.reason.clone()).collect();
    let read: Vec<i64> = rows.iter().map(|a| a.disk_bytes_read).collect();
    let written: Vec<i64> = rows.iter().map(|a| a.disk_bytes_written).collect();
    let versions: Vec<Option<Uuid>> = rows.iter().map(|a| a.version_id).collect();
    let version_names: Vec<Option<String>> = rows.iter().map(|a| a.version_name.clone()).collect();
    sqlx::query!(
        "INSERT INTO boot_attempts (id, mac, smbios_uuid, client_id, client_name, image_name, server_id, range_id, arch, client_ip,
             boot_server_ip, started_at, ended_at, last_stage, outcome, reason, disk_bytes_read, disk_bytes_written,
             version_id, version_name)
         SELECT i.id, i.mac, i.smbios_uuid, (SELECT c.id FROM clients c WHERE c.id = i.client_id), i.client_name, i.image_name,
             i.server_id, (SELECT r.id FROM network_ranges r WHERE r.id = i.range_id), i.arch, i.client_ip, i.boot_server_ip,
             i.started_at, i.ended_at, i.last_stage, i.outcome, i.reason, i.disk_bytes_read, i.disk_bytes_written,
             i.version_id, i.version_name
         FROM unnest((SELECT $1::uuid[]), $2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::uuid[], $8::uuid[], $9::text[],
             $10::inet[], $11::inet[], $12::timestamptz[], $13::timestamptz[], $14::text[], $15::text[], $16::text[],
             $17::bigint[], $18::bigint[], $19::uuid[], $20::text[])
             AS i(id, mac, smbios_uuid, client_id, client_name, image_name, server_id, range_id, arch, client_ip, boot_server_ip,
                 started_at, ended_at, last_stage, outcome, reason, disk_bytes_read, disk_bytes_written, version_id, version_name)
         ORDER BY i.id
         ON CONFLICT (id) DO UPDATE SET smbios_uuid = EXCLUDED.smbios_uuid, client_id = EXCLUDED.client_id,
             client_name = EXCLUDED.client_name, image_name = EXCLUDED.image_name, server_id = EXCLUDED.server_id,
             range_id = EXCLUDED.range_id, arch = EXCLUDED.arch, client_ip = EXCLUDED.client_ip,
             boot_server_ip = EXCLUDED.boot_server_ip, started_at = EXCLUDED.started_at, ended_at = EXCLUDED.ended_at,
             last_stage = EXCLUDED.last_stage, outcome = EXCLUDED.outcome, reason = EXCLUDED.reason,
             disk_bytes_read = EXCLUDED.disk_bytes_read, disk_bytes_written = EXCLUDED.disk_bytes_written,
             version_id = EXCLUDED.version_id, version_name = EXCLUDED.version_name",
        &ids,
        &macs,
        &smbios as &[Option<Uuid>],
        &clients as &[Option<Uuid>],
        &client_names as &[Option<String>],
        &image_names as &[Option<String>],
        &servers,
        &ranges as &[Option<Uuid>],
        &archs as &[Option<String>],
        &client_ips as &[Option<IpNetwork>],
        &server_ips as &[Option<IpNetwork>],
        &starts,
        &ends as &[Option<Timestamp>],
        &stages,
        &outcomes,
        &reasons as &[Option<String>],
        &read,
        &written,
        &versions as &[Option<Uuid>],
        &version_names as &[Option<String>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The seed's row needs its client and its image.
async fn write_sessions(
    connection: &mut PgConnection,
    rows: &[&BootSession],
) -> Result<u64, sqlx::Error> {
    let ids: Vec<Uuid> = rows.iter().map(|s| s.id).collect();
    let clients: Vec<Uuid> = rows.iter().map(|s| s.client_id).collect();
    let images: Vec<Uuid> = rows.iter().map(|s| s.image_id).collect();
    let starts: Vec<Timestamp> = rows.iter().map(|s| s.started_at).collect();
    let ends: Vec<Option<Timestamp>> = rows.iter().map(|s| s.ended_at).collect();
    let statuses: Vec<String> = rows.iter().map(|s| s.status.as_str().to_owned()).collect();
    let boot_times: Vec<Option<i32>> = rows.iter().map(|s| s.boot_time_seconds).collect();
    let messages: Vec<Option<String>> = rows.iter().map(|s| s.error_message.clone()).collect();
    let client_ips: Vec<Option<IpNetwork>> = rows.iter().map(|s| s.client_ip.map(inet)).collect();
    let server_ips: Vec<Option<IpNetwork>> =
        rows.iter().map(|s| s.boot_server_ip.map(inet)).collect();
    let done = sqlx::query!(
        "INSERT INTO boot_sessions (id, client_id, image_id, started_at, ended_at, status, boot_time_seconds, error_message,
             client_ip, boot_server_ip)
         SELECT s.id, c.id, i.id, s.started_at, s.ended_at, s.status, s.boot_time_seconds, s.error_message, s.client_ip,
             s.boot_server_ip
         FROM unnest((SELECT $1::uuid[]), $2::uuid[], $3::uuid[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::int[], $8::text[],
             $9::inet[], $10::inet[])
             AS s(id, client_id, image_id, started_at, ended_at, status, boot_time_seconds, error_message, client_ip, boot_server_ip)
         CROSS JOIN LATERAL (SELECT id FROM clients WHERE id = s.client_id LIMIT 1) c
         CROSS JOIN LATERAL (SELECT id FROM images WHERE id = s.image_id LIMIT 1) i
         ORDER BY s.id
         ON CONFLICT (id) DO UPDATE SET client_id = EXCLUDED.client_id, image_id = EXCLUDED.image_id,
             started_at = EXCLUDED.started_at, ended_at = EXCLUDED.ended_at, status = EXCLUDED.status,
             boot_time_seconds = EXCLUDED.boot_time_seconds, error_message = EXCLUDED.error_message,
             client_ip = EXCLUDED.client_ip, boot_server_ip = EXCLUDED.boot_server_ip",
        &ids,
        &clients,
        &images,
        &starts,
        &ends as &[Option<Timestamp>],
        &statuses,
        &boot_times as &[Option<i32>],
        &messages as &[Option<String>],
        &client_ips as &[Option<IpNetwork>],
        &server_ips as &[Option<IpNetwork>]
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// In the order in which they happened, which is that of their numbers.
async fn write_events(
    connection: &mut PgConnection,
    rows: &[&BootEvent],
) -> Result<u64, sqlx::Error> {
    let sessions: Vec<Uuid> = rows.iter().map(|e| e.session_id).collect();
    let times: Vec<Timestamp> = rows.iter().map(|e| e.at).collect();
    let stages: Vec<String> = rows.iter().map(|e| e.stage.as_str().to_owned()).collect();
    let details: Vec<serde_json::Value> = rows.iter().map(|e| e.detail.clone()).collect();
    let done = sqlx::query!(
        "INSERT INTO boot_events (session_id, at, stage, detail)
         SELECT a.id, e.at, e.stage, e.detail
         FROM unnest((SELECT $1::uuid[]), $2::timestamptz[], $3::text[], $4::jsonb[]) WITH ORDINALITY AS e(session_id, at, stage, detail, n)
         CROSS JOIN LATERAL (SELECT id FROM boot_attempts WHERE id = e.session_id LIMIT 1) a
         ORDER BY e.n
         ON CONFLICT (session_id, at, stage, md5(detail::text)) DO UPDATE SET stage = EXCLUDED.stage",
        &sessions,
        &times,
        &stages,
        &details
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
