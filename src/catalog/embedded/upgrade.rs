//! Carrying a cluster over to a newer major version of PostgreSQL: dump, load, rename.
//!
//! The new cluster is built in `data.upgrading`. Only when it is whole and stopped does it get
//! its mark; then the old one is moved aside and the new one into its place. Cut short anywhere,
//! [`repair`] at the next start either throws the half-made one away (the old one is still in
//! place) or finishes the renames.

use std::path::Path;

use sqlx::{ConnectOptions, Connection};

use super::EmbeddedError;
use super::cluster::{build, options};
use super::place::Place;
use super::postmaster::{Postmaster, run, stop_running};
use super::programs::Installed;

/// In `data.upgrading`: it is whole.
const MARK: &str = "dls.whole";
const NEW: &str = "data.upgrading";
const DUMP: &str = "upgrade.dump";
const ROLES: &str = "upgrade.roles";
const OLD_PORT: u16 = 5432;
const NEW_PORT: u16 = 5433;

/// Clears up after a start or an upgrade that was cut short.
pub(super) fn repair(place: &Place) -> Result<(), EmbeddedError> {
    place.remove("data.building")?;
    for name in [DUMP, ROLES] {
        let _ = std::fs::remove_file(place.home.join(name));
    }
    let whole = place.home.join(NEW).join(MARK).is_file();
    if whole && !place.data().exists() {
        place.rename(NEW, "data")?;
        place.sync()?;
    }
    place.remove(NEW)
}

/// Carries the cluster over.
pub(super) async fn upgrade(
    place: &Place,
    from: &Installed,
    to: &Installed,
) -> Result<(), EmbeddedError> {
    tracing::info!(
        from = from.major,
        to = to.major,
        "carrying the embedded database over to a newer PostgreSQL"
    );
    stop_running(place).await?;
    super::cluster::admit(place)?;
    build(place, to, NEW).await?;
    let mut old = Postmaster::start(place, from, &place.data(), OLD_PORT).await?;
    let carried = match Postmaster::start(place, to, &place.home.join(NEW), NEW_PORT).await {
        Ok(mut new) => {
            let carried = carry(place, to).await;
            carried.and(new.stop(place).await)
        }
        Err(error) => Err(error),
    };
    let stopped = old.stop(place).await;
    for name in [DUMP, ROLES] {
        let _ = std::fs::remove_file(place.home.join(name));
    }
    carried.and(stopped)?;
    let mark = place.home.join(NEW).join(MARK);
    place.write(&mark, "")?;
    std::fs::File::open(place.home.join(NEW))
        .and_then(|dir| dir.sync_all())
        .map_err(|e| EmbeddedError::Failed(format!("can't sync the new database: {e}")))?;
    place.rename("data", &aside(place, from.major))?;
    place.rename(NEW, "data")?;
    place.sync()
}

/// A name for the old cluster that is not taken.
fn aside(place: &Place, major: u32) -> String {
    let first = format!("data.old-{major}");
    let more = (2..).map(|n| format!("data.old-{major}.{n}"));
    std::iter::once(first.clone())
        .chain(more)
        .find(|name| !place.home.join(name).exists())
        .unwrap_or(first)
}

/// Dumps every database by the newer programs and loads it into the new cluster.
async fn carry(place: &Place, to: &Installed) -> Result<(), EmbeddedError> {
    let failed =
        |e: sqlx::Error| EmbeddedError::Failed(format!("can't carry the database over: {e}"));
    let mut old = options(place, "postgres", OLD_PORT)
        .connect()
        .await
        .map_err(failed)?;
    let databases = sqlx::query_scalar!(
        r#"SELECT datname::text AS "name!" FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' ORDER BY 1"#
    )
    .fetch_all(&mut old)
    .await
    .map_err(failed)?;
    old.close().await.map_err(failed)?;

    let sockets = place.sockets.as_path();
    let (old_port, new_port) = (OLD_PORT.to_string(), NEW_PORT.to_string());
    let at = |port| {
        [
            Path::new("-h"),
            sockets,
            Path::new("-p"),
            Path::new(port),
            Path::new("-U"),
            Path::new("dls"),
        ]
    };
    let roles = place.home.join(ROLES);
    let dump = place.home.join(DUMP);
    let with = |port, more: &[&'static str]| -> Vec<std::path::PathBuf> {
        at(port)
            .iter()
            .map(|p| p.to_path_buf())
            .chain(more.iter().map(Into::into))
            .collect()
    };
    let call = async |program: &str, mut arguments: Vec<std::path::PathBuf>, last: &[&Path]| {
        arguments.extend(last.iter().map(|p| p.to_path_buf()));
        let arguments: Vec<&Path> = arguments.iter().map(std::path::PathBuf::as_path).collect();
        run(place, to, program, &arguments).await
    };
    // Roles that an administrator made. `dls` itself is there, so psql goes on after errors.
    call(
        "pg_dumpall",
        with(&old_port, &["--roles-only", "-f"]),
        &[&roles],
    )
    .await?;
    call(
        "psql",
        with(&new_port, &["-X", "-q", "-d", "postgres", "-f"]),
        &[&roles],
    )
    .await?;
    for database in &databases {
        let name = Path::new(database);
        call(
            "pg_dump",
            with(&old_port, &["-Fc", "-Z1", "-f"]),
            &[&dump, Path::new("-d"), name],
        )
        .await?;
        call("createdb", with(&new_port, &["-T", "template0"]), &[name]).await?;
        call(
            "pg_restore",
            with(&new_port, &["--exit-on-error", "-d"]),
            &[name, &dump],
        )
        .await?;
    }
    call(
        "vacuumdb",
        with(&new_port, &["--all", "--analyze-only", "-q"]),
        &[],
    )
    .await?;
    Ok(())
}
