//! What is done when the clock of PostgreSQL's machine is set: leases go on for as long as they
//! were promised. Once for each jump, however many servers notice it.

use uuid::Uuid;

use super::{Catalog, CatalogError};
use crate::model::Timestamp;

/// Two servers that notice one jump do so within a heartbeat or two.
const SAME_JUMP_SECONDS: f64 = 300.0;

impl Catalog {
    /// Moves the start of every lease that was written by the old time by `seconds` (positive: the
    /// clock went forward), and what is known of the servers' last beats with it. `before` is now,
    /// by the old time. If another server has done so for this jump already, only what this one
    /// wrote since then is moved. Returns how many leases were moved.
    ///
    /// # Errors
    /// As all; then nothing has changed.
    pub async fn follow_clock(
        &self,
        server_id: Uuid,
        seconds: f64,
        before: Timestamp,
    ) -> Result<u64, CatalogError> {
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            sqlx::query!("LOCK TABLE clock_jumps IN EXCLUSIVE MODE")
                .execute(&mut *tx)
                .await?;
            let other = sqlx::query_scalar!(
                "SELECT noticed_at FROM clock_jumps WHERE noticed_at BETWEEN clock_timestamp() - make_interval(secs => $2)
                     AND clock_timestamp() AND abs(shift_seconds - $1) < 30 ORDER BY noticed_at DESC LIMIT 1",
                seconds,
                SAME_JUMP_SECONDS
            )
            .fetch_optional(&mut *tx)
            .await?;
            let moved = if let Some(noticed_at) = other {
                sqlx::query!(
                    "UPDATE leases SET starts_at = starts_at + make_interval(secs => $1::double precision)
                     WHERE server_id = $2 AND starts_at <= $3
                         AND starts_at > $4::timestamptz - make_interval(secs => $1::double precision + 1)",
                    seconds,
                    server_id,
                    before,
                    noticed_at
                )
                .execute(&mut *tx)
                .await?
            } else {
                sqlx::query!(
                    "INSERT INTO clock_jumps (server_id, shift_seconds) VALUES ($1, $2)",
                    server_id,
                    seconds
                )
                .execute(&mut *tx)
                .await?;
                // Servers that have not beaten since: others would take them for long dead.
                sqlx::query!(
                    "UPDATE servers SET heartbeat_at = heartbeat_at + make_interval(secs => $1),
                         claims_until = claims_until + make_interval(secs => $1)
                     WHERE heartbeat_at NOT BETWEEN clock_timestamp() - interval '30 seconds' AND clock_timestamp()",
                    seconds
                )
                .execute(&mut *tx)
                .await?;
                sqlx::query!(
                    "UPDATE leases SET starts_at = starts_at + make_interval(secs => $1::double precision) WHERE starts_at <= $2",
                    seconds,
                    before
                )
                .execute(&mut *tx)
                .await?
            };
            tx.commit().await?;
            Ok(moved.rows_affected())
        })
        .await
    }
}
