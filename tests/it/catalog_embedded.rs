//! The embedded cluster: made, found, adopted, recovered, refused, carried over.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dls::catalog::embedded::{Embedded, EmbeddedError, Search, choose_user};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

use crate::support::{client, die_with_us, open, state_dir};

async fn start(dir: &Path) -> Embedded {
    let embedded = Embedded::start(dir, choose_user().as_ref()).await.unwrap();
    die_with_us(embedded.pid(), None);
    embedded
}

fn pid(embedded: &Embedded) -> Pid {
    Pid::from_raw(i32::try_from(embedded.pid()).unwrap())
}

fn data(dir: &Path) -> PathBuf {
    dir.join("postgres/data")
}

#[tokio::test]
async fn made_found_again_and_stopped() {
    let dir = state_dir();
    assert!(Embedded::locate(dir.path()).is_err());
    let embedded = start(dir.path()).await;
    let (url, bin) = Embedded::locate(dir.path()).unwrap();
    assert_eq!(url, embedded.url());
    assert!(bin.join("psql").exists());
    let psql = tokio::process::Command::new(bin.join("psql"))
        .args(["-XAt", "-c", "SELECT concat_ws('|', current_user, current_setting('listen_addresses'), current_setting('fsync'),
            current_setting('synchronous_commit'), current_setting('data_checksums'), current_setting('server_encoding'), current_setting('lc_collate'))"])
        .arg(&url)
        .output()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&psql.stdout).trim(),
        "dls||on|on|on|UTF8|C",
        "{psql:?}"
    );

    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    catalog.save_client_config(&client(1)).await.unwrap();
    // A second dls on the same directory is told so.
    let second = Embedded::start(dir.path(), choose_user().as_ref()).await;
    assert!(matches!(second, Err(EmbeddedError::InUse(_))), "{second:?}");
    let process = pid(&embedded);
    embedded.stop().await.unwrap();
    assert!(kill(process, None).is_err());
    assert!(!data(dir.path()).join("postmaster.pid").exists());

    let embedded = start(dir.path()).await;
    assert!(!embedded.was_adopted());
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    assert_eq!(catalog.load().await.unwrap().clients.len(), 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_postmaster_that_lives_is_adopted_and_one_that_died_recovers() {
    let dir = state_dir();
    let embedded = start(dir.path()).await;
    let first = pid(&embedded);
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    // As after kill -9 of dls: the postmaster lives on.
    drop(embedded);
    let mut embedded = start(dir.path()).await;
    assert!(embedded.was_adopted());
    assert_eq!(pid(&embedded), first);
    catalog.save_client_config(&client(1)).await.unwrap();
    assert!(!embedded.supervise().await.unwrap());

    // The adopted one dies, and is started again under our eyes.
    kill(first, Signal::SIGKILL).unwrap();
    while !embedded.supervise().await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    die_with_us(embedded.pid(), None);
    assert_ne!(pid(&embedded), first);
    assert_eq!(catalog.load().await.unwrap().clients.len(), 1);

    // Both die at once.
    let second = pid(&embedded);
    drop(embedded);
    kill(second, Signal::SIGKILL).unwrap();
    let embedded = start(dir.path()).await;
    assert!(!embedded.was_adopted());
    assert_eq!(catalog.load().await.unwrap().clients.len(), 1);
    catalog.close().await;
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_crash_leaves_is_cleared_up() {
    let dir = state_dir();
    let embedded = start(dir.path()).await;
    embedded.stop().await.unwrap();
    // A pid file that names a process which is somebody else's: this test.
    let stale = format!(
        "{}\n{}\n0\n5432\n/nowhere\n",
        std::process::id(),
        data(dir.path()).display()
    );
    std::fs::write(data(dir.path()).join("postmaster.pid"), stale).unwrap();
    std::fs::write(
        dir.path().join("postgres/run/.s.PGSQL.5432.lock"),
        std::process::id().to_string(),
    )
    .unwrap();
    // A cluster that was being made, an upgrade that was under way.
    for half in ["data.building", "data.upgrading"] {
        std::fs::create_dir(dir.path().join("postgres").join(half)).unwrap();
        std::fs::write(
            dir.path().join("postgres").join(half).join("PG_VERSION"),
            "15",
        )
        .unwrap();
    }
    let embedded = start(dir.path()).await;
    assert!(!dir.path().join("postgres/data.building").exists());
    assert!(!dir.path().join("postgres/data.upgrading").exists());
    embedded.stop().await.unwrap();

    // Cut short between the two renames at the end of an upgrade.
    let home = dir.path().join("postgres");
    std::fs::write(home.join("data/dls.whole"), "").unwrap();
    std::fs::rename(home.join("data"), home.join("data.upgrading")).unwrap();
    let embedded = start(dir.path()).await;
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_state_dir_has_its_socket_elsewhere() {
    let dir = state_dir();
    let long = dir.path().join("state-".repeat(20));
    std::fs::create_dir(&long).unwrap();
    // Its parent is made by this test and must let PostgreSQL's user through.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let embedded = start(&long).await;
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    let socket = embedded.url();
    catalog.close().await;
    drop(embedded);
    let embedded = start(&long).await;
    assert!(embedded.was_adopted());
    assert_eq!(embedded.url(), socket);
    embedded.stop().await.unwrap();
    let path = socket
        .split_once("host=")
        .unwrap()
        .1
        .split_once('&')
        .unwrap()
        .0;
    assert!(!Path::new(path).exists());
}

#[tokio::test]
async fn missing_programs_and_wrong_versions_are_one_clear_sentence() {
    let dir = state_dir();
    let user = choose_user();
    let nothing = Search {
        roots: vec![dir.path().into()],
        path: vec![],
    };
    let error = Embedded::start_from(dir.path(), user.as_ref(), &nothing)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("apt-get install postgresql"),
        "{error}"
    );

    let embedded = start(dir.path()).await;
    embedded.stop().await.unwrap();
    let version = data(dir.path()).join("PG_VERSION");
    let true_version = std::fs::read_to_string(&version).unwrap();
    for (found, says) in [
        ("99\n", "newer than the installed"),
        ("9.6\n", "install PostgreSQL 9.6 beside it"),
    ] {
        std::fs::write(&version, found).unwrap();
        let error = Embedded::start(dir.path(), user.as_ref())
            .await
            .unwrap_err();
        assert!(matches!(error, EmbeddedError::Version(_)), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    std::fs::write(&version, true_version).unwrap();
    // And a cluster that does not start says why.
    let control = data(dir.path()).join("global/pg_control");
    let aside = data(dir.path()).join("global/pg_control.aside");
    std::fs::rename(&control, &aside).unwrap();
    let error = Embedded::start(dir.path(), user.as_ref())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("did not start") && error.contains("pg_control"),
        "{error}"
    );
    std::fs::rename(&aside, &control).unwrap();
    start(dir.path()).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_closed_door_on_the_way_is_named() {
    let Some(user) = choose_user() else {
        return; // Not root: PostgreSQL runs as we are, and goes where we go.
    };
    let dir = state_dir();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let inner = dir.path().join("state");
    let error = Embedded::start(&inner, Some(&user))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&user.name) && error.contains("may not enter"),
        "{error}"
    );
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
    let root = dls::catalog::embedded::RunAs {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
    };
    let error = Embedded::start(&inner, Some(&root))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("refuses to run as root"), "{error}");
}

#[tokio::test]
async fn a_cluster_is_carried_over_with_all_that_is_in_it() {
    let dir = state_dir();
    let embedded = start(dir.path()).await;
    let (_, bin) = Embedded::locate(dir.path()).unwrap();
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    catalog.save_client_config(&client(1)).await.unwrap();
    let image = crate::support::image("debian");
    catalog.save_image_metadata(&image).await.unwrap();
    let lab = crate::support::range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let lease = crate::support::lease(&lab, 100, crate::support::mac(1));
    catalog
        .commit_leases(std::slice::from_ref(&lease), Uuid::nil())
        .await
        .unwrap();
    let before = catalog.load().await.unwrap();
    catalog.close().await;
    embedded.stop().await.unwrap();

    // The same major on both sides goes the same way.
    Embedded::upgrade(dir.path(), choose_user().as_ref(), &bin, &bin)
        .await
        .unwrap();
    let embedded = start(dir.path()).await;
    let catalog = open(&embedded.url(), Uuid::nil()).await;
    catalog.run_migrations().await.unwrap();
    let after = catalog.load().await.unwrap();
    assert_eq!(after.clients, before.clients);
    assert_eq!(after.images, before.images);
    assert_eq!(after.ranges, before.ranges);
    assert_eq!(after.site_key, before.site_key);
    assert_eq!(catalog.list_leases(None).await.unwrap(), [lease]);
    // Its triggers are there too.
    catalog.save_client_config(&client(2)).await.unwrap();
    catalog.close().await;
    embedded.stop().await.unwrap();
    let old: Vec<_> = std::fs::read_dir(dir.path().join("postgres"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.starts_with("data.old-"))
        .collect();
    assert_eq!(old.len(), 1);
}
