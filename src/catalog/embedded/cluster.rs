//! Making a cluster, and its configuration.
//!
//! A cluster is built in `data.building` and renamed when it is whole.

use std::path::Path;

use sqlx::{ConnectOptions, Connection};

use super::EmbeddedError;
use super::place::Place;
use super::postmaster::run;
use super::programs::Installed;

/// Durable, no TCP, and little else: an administrator may add to the file.
const SETTINGS: &str = "
# Written by dls. Durability is not to be traded here: an acknowledged lease is a stored lease.
listen_addresses = ''
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = 100
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
";

/// Makes `data`.
pub(super) async fn create(place: &Place, programs: &Installed) -> Result<(), EmbeddedError> {
    build(place, programs, "data.building").await?;
    place.rename("data.building", "data")?;
    place.sync()
}

/// Makes a cluster in a directory of `postgres/`, anew if something is there.
pub(super) async fn build(
    place: &Place,
    programs: &Installed,
    name: &str,
) -> Result<(), EmbeddedError> {
    place.remove(name)?;
    let dir = place.home.join(name);
    let arguments = [
        "--username=dls",
        "--encoding=UTF8",
        "--locale=C",
        "--data-checksums",
        "--auth=peer",
        "--pgdata",
    ];
    let mut arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
    arguments.push(&dir);
    run(place, programs, "initdb", &arguments).await?;
    let conf = dir.join("postgresql.conf");
    let failed = |e: std::io::Error| {
        EmbeddedError::Failed(format!(
            "can't configure the database in {}: {e}",
            dir.display()
        ))
    };
    let text = std::fs::read_to_string(&conf).map_err(failed)?;
    place.write(&conf, &(text + SETTINGS))?;
    admit_to(place, &dir)
}

/// Who may connect: root, the user who runs the cluster and the one who runs dls, each as `dls`.
pub(super) fn admit(place: &Place) -> Result<(), EmbeddedError> {
    admit_to(place, &place.data())
}

fn admit_to(place: &Place, dir: &Path) -> Result<(), EmbeddedError> {
    let hba = "# Written by dls at every start.\nlocal all dls peer map=dls\nlocal replication dls peer map=dls\n";
    place.write(&dir.join("pg_hba.conf"), hba)?;
    let mut ident = "# Written by dls at every start.\n".to_owned();
    for user in place.users() {
        ident.push_str(&format!("dls \"{user}\" dls\n"));
    }
    place.write(&dir.join("pg_ident.conf"), &ident)
}

/// Makes the database `dls` if it is not there.
pub(super) async fn make_database(place: &Place) -> Result<(), EmbeddedError> {
    let failed =
        |e: sqlx::Error| EmbeddedError::Failed(format!("can't make the database `dls`: {e}"));
    let mut connection = options(place, "postgres", 5432)
        .connect()
        .await
        .map_err(failed)?;
    let there = sqlx::query!("SELECT oid FROM pg_database WHERE datname = 'dls'")
        .fetch_optional(&mut connection)
        .await
        .map_err(failed)?;
    if there.is_none() {
        sqlx::query!("CREATE DATABASE dls")
            .execute(&mut connection)
            .await
            .map_err(failed)?;
    }
    connection.close().await.map_err(failed)
}

/// How to connect, free of what PG.. variables of our environment say.
pub(super) fn options(
    place: &Place,
    database: &str,
    port: u16,
) -> sqlx::postgres::PgConnectOptions {
    sqlx::postgres::PgConnectOptions::new_without_pgpass()
        .socket(&place.sockets)
        .port(port)
        .username("dls")
        .database(database)
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .application_name("dls")
}
