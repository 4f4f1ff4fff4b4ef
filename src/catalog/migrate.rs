//! The schema: bringing it up to date, and back.
//!
//! sqlx takes an advisory lock, so that several servers may start at once, and runs each
//! migration in a transaction of its own. It must not refuse a schema that is newer than this
//! binary: in a rolling upgrade both versions live beside each other.

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;

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
        let pool = self.migrating_pool().await?;
        let outcome = migrator().run(&pool).await;
        finish(pool, outcome).await
    }

    /// Undoes the migrations that are newer than `down_to`, newest first (for tests and for
    /// going back); 0 undoes all.
    ///
    /// # Errors
    /// When one fails.
    pub async fn revert_migrations(&self, down_to: i64) -> Result<(), CatalogError> {
        let pool = self.migrating_pool().await?;
        let outcome = migrator().undo(&pool, down_to).await;
        finish(pool, outcome).await
    }

    /// A connection apart: were a migration to fail on one of the pool's, its advisory lock
    /// would stay behind with it. Messages of `IF NOT EXISTS` are not wanted.
    async fn migrating_pool(&self) -> Result<PgPool, CatalogError> {
        let options = (*self.pool().connect_options()).clone();
        let options = options.options([("client_min_messages", "warning")]);
        Ok(PgPoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?)
    }
}

async fn finish(
    pool: PgPool,
    outcome: Result<(), sqlx::migrate::MigrateError>,
) -> Result<(), CatalogError> {
    // The server drops session and lock with the connection.
    pool.close().await;
    outcome.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error) => error.into(),
        sqlx::migrate::MigrateError::VersionMismatch(version) => CatalogError::Other(format!(
            "migration {version} was applied in another form: this database was made by a different build of dls"
        )),
        other => CatalogError::Other(format!("the schema can't be brought up to date: {other}")),
    })
}
