//! The schema: bringing it up to date, and back.
//!
//! sqlx takes an advisory lock, so that several servers may start at once, and runs each
//! migration in a transaction of its own. It must not refuse a schema that is newer than this
//! binary: in a rolling upgrade both versions live beside each other.

use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

use super::{Catalog, CatalogError};

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.set_ignore_missing(true);
    migrator
}

impl Catalog {
    /// Brings the schema up to date. Repeatable, safe when several servers start at once,
    /// and lets an older binary live with newer migrations.
    ///
    /// # Errors
    /// When a migration fails; the schema is then as before it.
    pub async fn run_migrations(&self) -> Result<(), CatalogError> {
        let mut connection = self.migrating_connection().await?;
        let outcome = migrator().run(&mut connection).await;
        finish(connection, outcome).await
    }

    /// Undoes the migrations that are newer than `down_to`, newest first (for tests and for
    /// going back); 0 undoes all.
    ///
    /// # Errors
    /// When one fails.
    pub async fn revert_migrations(&self, down_to: i64) -> Result<(), CatalogError> {
        let mut connection = self.migrating_connection().await?;
        let outcome = migrator().undo(&mut connection, down_to).await;
        finish(connection, outcome).await
    }

    /// A connection taken out of the pool: were a migration to fail on a pooled one, its
    /// advisory lock would stay behind with it. Messages of `IF NOT EXISTS` are not wanted.
    async fn migrating_connection(&self) -> Result<PgConnection, CatalogError> {
        let mut connection = self.pool().acquire().await?.detach();
        sqlx::query!("SET client_min_messages = warning")
            .execute(&mut connection)
            .await?;
        Ok(connection)
    }
}

async fn finish(
    connection: PgConnection,
    outcome: Result<(), sqlx::migrate::MigrateError>,
) -> Result<(), CatalogError> {
    // Its answer does not matter: the server drops session and lock with the connection.
    let _ = connection.close().await;
    outcome.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error) => error.into(),
        sqlx::migrate::MigrateError::VersionMismatch(version) => CatalogError::Other(format!(
            "migration {version} was applied in another form: this database was made by a different build of dls"
        )),
        other => CatalogError::Other(format!("the schema can't be brought up to date: {other}")),
    })
}
