//! The postmaster: starting it, adopting one that lives, watching it, stopping it.
//!
//! Whether a process is *our* postmaster is told by its working directory, which PostgreSQL
//! sets to the data directory: a process id alone may have been given to somebody else, and a
//! zombie still has one. The postmaster has a process group of its own, so that Ctrl-C reaches
//! dls first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use sqlx::{ConnectOptions, Connection};
use tokio::process::{Child, Command};

use super::EmbeddedError;
use super::cluster::options;
use super::place::Place;
use super::programs::Installed;

const STEP: Duration = Duration::from_millis(20);
/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(30);
/// How long a start may take: after a crash the log is replayed first.
const START: Duration = Duration::from_secs(600);
/// When left-over processes of a dead postmaster are told to go, and when we give up on them.
const LEFT_OVER_PATIENCE: Duration = Duration::from_secs(5);
const LEFT_OVER_LIMIT: Duration = Duration::from_secs(30);
/// The log is renamed to `log.1` at a start when it has grown to this.
const LOG_BYTES: u64 = 10 << 20;

/// A running postmaster.
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    /// `None`: adopted, not a child of ours.
    child: Option<Child>,
}

impl Postmaster {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub(super) fn was_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// Adopts the live postmaster of `data`, or starts one; returns when it answers.
    pub(super) async fn adopt_or_start(
        place: &Place,
        programs: &Installed,
    ) -> Result<Self, EmbeddedError> {
        if let Some((pid, sockets)) = running(&place.data()) {
            let adopted = Self { pid, child: None };
            if sockets == place.sockets {
                // New users may have been admitted.
                let _ = kill(pid, Signal::SIGHUP);
                if let Some(adopted) = adopted.answering(place, 5432).await? {
                    place.remember(&place.sockets, programs)?;
                    return Ok(adopted);
                }
                // It was on its way out; start another.
            } else {
                // The state directory was moved under it: it can't be reached where we look.
                let mut adopted = adopted;
                adopted.stop(place).await?;
            }
        }
        let started = Self::start(place, programs, &place.data(), 5432).await?;
        place.remember(&place.sockets, programs)?;
        Ok(started)
    }

    /// Starts one on a data directory; returns when it answers.
    pub(super) async fn start(
        place: &Place,
        programs: &Installed,
        data: &Path,
        port: u16,
    ) -> Result<Self, EmbeddedError> {
        wait_for_left_overs(data).await?;
        // Nothing runs on this directory: what says otherwise is stale, and would mislead
        // PostgreSQL where the number belongs to another process by now.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        for name in [format!(".s.PGSQL.{port}"), format!(".s.PGSQL.{port}.lock")] {
            let _ = fs::remove_file(place.sockets.join(name));
        }
        let log = place.log();
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
            let _ = fs::rename(&log, log.with_extension("1"));
        }
        let before = fs::metadata(&log).map_or(0, |meta| meta.len());
        let failed =
            |e: std::io::Error| EmbeddedError::Failed(format!("can't start PostgreSQL: {e}"));
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed)?;
        place.give(&log)?;
        let errors = output.try_clone().map_err(failed)?;
        let mut command = program(place, programs, "postgres");
        command
            .arg("-D")
            .arg(data)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=on",
                "-c",
                "full_page_writes=on",
                "-c",
                "unix_socket_permissions=0700",
            ])
            .arg("-k")
            .arg(&place.sockets)
            .arg("-p")
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        let child = command.spawn().map_err(failed)?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .ok_or_else(|| {
                EmbeddedError::Failed("PostgreSQL ended as it was started".to_owned())
            })?;
        let started = Self {
            pid: Pid::from_raw(pid),
            child: Some(child),
        };
        match started.answering(place, port).await? {
            Some(started) => Ok(started),
            None => Err(EmbeddedError::Failed(format!(
                "PostgreSQL did not start: {} (more in {})",
                last_words(&log, before),
                log.display()
            ))),
        }
    }

    /// Waits until it answers; `None` if it ends before that. The answer may be that we are not
    /// let in: the next step says that better.
    async fn answering(mut self, place: &Place, port: u16) -> Result<Option<Self>, EmbeddedError> {
        let waiting = async {
            while self.is_there() {
                match ask(place, port).await {
                    Ok(()) => return true,
                    Err(error) if is_wrong_user(&error) => return true,
                    Err(error) => tracing::debug!(%error, "PostgreSQL does not answer yet"),
                }
                tokio::time::sleep(STEP).await;
            }
            false
        };
        match tokio::time::timeout(START, waiting).await {
            Ok(false) => Ok(None),
            Ok(true) => Ok(Some(self)),
            Err(_) => Err(EmbeddedError::Failed(format!(
                "PostgreSQL did not answer for {} minutes: see {}",
                START.as_secs() / 60,
                place.log().display()
            ))),
        }
    }

    /// True while the process is there.
    fn is_there(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => working_directory(self.pid).is_some(),
        }
    }

    /// True while it is the postmaster of the place.
    pub(super) fn lives(&mut self, place: &Place) -> bool {
        self.is_there()
            && (self.child.is_some() || working_directory(self.pid) == canonical(&place.data()))
    }

    /// Fast shutdown: sessions are ended, everything is written.
    pub(super) async fn stop(&mut self, place: &Place) -> Result<(), EmbeddedError> {
        if !self.is_there() {
            return Ok(());
        }
        let _ = kill(self.pid, Signal::SIGINT);
        let gone = async {
            while self.is_there() {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::time::timeout(STOP, gone).await.map_err(|_| {
            EmbeddedError::Failed(format!(
                "PostgreSQL did not stop within {} s: see {}",
                STOP.as_secs(),
                place.log().display()
            ))
        })
    }
}

/// Stops whatever runs on the cluster's data directory.
pub(super) async fn stop_running(place: &Place) -> Result<(), EmbeddedError> {
    match running(&place.data()) {
        Some((pid, _)) => Postmaster { pid, child: None }.stop(place).await,
        None => Ok(()),
    }
}

async fn ask(place: &Place, port: u16) -> Result<(), sqlx::Error> {
    let asking = async {
        let mut connection = options(place, "postgres", port).connect().await?;
        connection.ping().await?;
        connection.close().await
    };
    match tokio::time::timeout(Duration::from_secs(5), asking).await {
        Ok(answer) => answer,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// It answers, but not to us (class 28): waiting would not help.
fn is_wrong_user(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("28"))
}

/// The live postmaster of a data directory, and where its socket is.
pub(super) fn running(data: &Path) -> Option<(Pid, PathBuf)> {
    // Process, data directory, start time, port, socket directory, ..
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let pid = Pid::from_raw(pid.abs());
    let sockets = PathBuf::from(text.lines().nth(4).unwrap_or_default());
    (working_directory(pid)? == canonical(data)?).then_some((pid, sockets))
}

fn canonical(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok()
}

/// Where a process works; `None` if there is none, or it is a zombie.
fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Processes whose working directory is this one.
fn processes_in(dir: &Path) -> Vec<Pid> {
    let Some(dir) = canonical(dir) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .map(Pid::from_raw)
        .filter(|pid| working_directory(*pid).is_some_and(|at| at == dir) && is_postgres(*pid))
        .collect()
}

/// A shell that somebody left in the data directory is none.
fn is_postgres(pid: Pid) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().starts_with("postgres")
}

/// A postmaster that was killed leaves processes that notice it at their next pause. Two
/// generations must not work on one directory.
async fn wait_for_left_overs(data: &Path) -> Result<(), EmbeddedError> {
    let mut waited = Duration::ZERO;
    loop {
        let left = processes_in(data);
        if left.is_empty() {
            return Ok(());
        }
        if waited >= LEFT_OVER_LIMIT {
            let pids: Vec<String> = left.iter().map(Pid::to_string).collect();
            return Err(EmbeddedError::Failed(format!(
                "processes of an earlier PostgreSQL still work in {} and do not end: {}",
                data.display(),
                pids.join(", ")
            )));
        }
        if waited >= LEFT_OVER_PATIENCE {
            for pid in left {
                let _ = kill(pid, Signal::SIGQUIT);
            }
        }
        tokio::time::sleep(STEP).await;
        waited += STEP;
    }
}

/// A program of PostgreSQL, to be run as the cluster's user, with nothing of our environment.
pub(super) fn program(place: &Place, programs: &Installed, name: &str) -> Command {
    let mut command = Command::new(programs.program(name));
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &place.home)
        .current_dir(&place.home);
    if let Some(user) = place.run_as.as_ref().filter(|_| Uid::effective().is_root()) {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Runs a program to its end.
pub(super) async fn run(
    place: &Place,
    programs: &Installed,
    name: &str,
    arguments: &[&Path],
) -> Result<String, EmbeddedError> {
    let path = programs.program(name);
    let output = program(place, programs, name)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| EmbeddedError::Failed(format!("can't run {}: {e}", path.display())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = errors.lines().rev().take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(EmbeddedError::Failed(format!(
        "{} failed: {}",
        path.display(),
        last.join("; ")
    )))
}

/// The last complaint in the log since it had so many bytes. That a connection came too early
/// or too late is none.
fn last_words(log: &Path, from: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(0);
    let text = String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned();
    let mut lines = text
        .lines()
        .filter(|line| !line.contains("the database system is"));
    let complaint = lines.clone().rev().find(|line| {
        [
            "FATAL",
            "PANIC",
            "ERROR",
            "could not",
            "performing immediate",
        ]
        .iter()
        .any(|word| line.contains(word))
    });
    complaint
        .or(lines.next_back())
        .unwrap_or("it said nothing")
        .trim()
        .to_owned()
}
