//! A real PostgreSQL for these tests: one cluster per test program, one database per test,
//! reached by a unix socket so that it is there in every network namespace.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::lan::wait_for;

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

struct Cluster {
    dir: PathBuf,
    /// Its standard input ends with this program; the shell then stops the cluster and
    /// removes its directory.
    _keeper: Child,
}

/// The directory of the newest installed server programs.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().unwrap()
}

/// PostgreSQL refuses to run as root.
const AS_POSTGRES: &str = "setpriv --reuid=postgres --regid=postgres --clear-groups";

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| {
        let dir = tempfile::Builder::new()
            .prefix("dlspg-")
            .tempdir()
            .unwrap()
            .keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let (bin, home) = (programs(), dir.display().to_string());
        let bin = bin.display();
        let made = shell(&format!(
            "{AS_POSTGRES} {bin}/initdb -D {home}/data -A trust -U postgres -N >{home}/log 2>&1"
        ))
        .status()
        .unwrap();
        assert!(made.success(), "initdb failed, see {home}/log");
        let mut keeper = shell(&format!(
            "{AS_POSTGRES} {bin}/postgres -D {home}/data -k {home} -c listen_addresses= -c max_connections=200 \
             -c fsync={} -c synchronous_commit=on >>{home}/log 2>&1 & \
             server=$!; read -r end; kill -INT $server; wait $server; rm -rf {home}",
            if std::env::args().any(|a| a.contains("load")) {
                "on"
            } else {
                "off"
            },
        ))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
        keeper.stdin.as_mut().unwrap().flush().unwrap();
        wait_for("PostgreSQL starts", Duration::from_secs(30), || {
            psql(&dir, "postgres", "select 1").ok()
        });
        Cluster {
            dir,
            _keeper: keeper,
        }
    })
}

fn psql(dir: &Path, database: &str, query: &str) -> Result<String, String> {
    let output = Command::new(programs().join("psql"))
        .args(["-h", &dir.display().to_string(), "-U", "postgres", "-d"])
        .args([database, "-v", "ON_ERROR_STOP=1", "-XAtc", query])
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A fresh, empty database.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    name: String,
    dir: PathBuf,
}

impl Database {
    pub(crate) fn new() -> Self {
        let dir = cluster().dir.clone();
        let name = format!("dhcp{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        wait_for("a database is made", Duration::from_secs(30), || {
            psql(&dir, "postgres", &format!("create database {name}")).ok()
        });
        Self { name, dir }
    }

    pub(crate) fn url(&self) -> String {
        // A path as the host must be percent-encoded.
        let host = self.dir.display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{host}/{}", self.name)
    }

    /// Rows as text, columns split by `|`.
    pub(crate) fn query(&self, query: &str) -> String {
        psql(&self.dir, &self.name, query).unwrap()
    }
}
