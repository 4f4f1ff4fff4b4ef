//! The way to ZFS: every call goes through here and comes back, whatever the pool does. It knows
//! no volumes, and decides nothing about them.
//!
//! What a pool does when its disks are gone can't be helped from outside: a call into the kernel
//! then waits until an admin has brought them back, and no signal ends it. So a call is made on
//! a thread of its own. It is given up at once when the kernel says that the pool is suspended,
//! and when the kernel says nothing (a pool may hang without being suspended) after no call like it
//! has come back for [`PATIENCE`]: in a crowd at a slow pool each may wait for long, and all get there.
//! What was given up may still be done when the pool is back, like what a crash interrupts.
//!
//! While a change that was given up has not come back, further ones are refused, so that few
//! threads wait, and nothing is decided by what may just be changing; while a look has not come
//! back, everything is. One gate for each pool: other pools go on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::VolumeError;

/// How often a waiting call looks at the pool's state, and how often while nothing comes back: 45 s;
/// and in all: 5 minutes.
const TICK: Duration = Duration::from_millis(250);
const PATIENCE: u32 = 180;
const LONGEST: u32 = 1200;
/// Where the kernel says how pools are, without waiting for them.
const KSTAT: &str = "/proc/spl/kstat/zfs";

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It looks.
    Look,
    /// It changes what is there.
    Change,
}

/// One pool's.
#[derive(Debug)]
pub(super) struct Gate {
    pool: String,
    looks: Calls,
    changes: Calls,
}

/// Calls of one kind.
#[derive(Debug, Default)]
struct Calls {
    /// Given up, and not come back yet.
    lingering: AtomicUsize,
    /// Come back, ever.
    done: AtomicUsize,
}

/// How a pool is, as far as that is known without asking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is against it.
    Well,
    /// It stopped after errors of its disks.
    Suspended,
    /// It is not imported.
    Away,
}

/// Why a call was not made, or not waited for any longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct GivenUp(String);

/// Counts a call that was given up until it comes back.
struct Lingering(Arc<Gate>, Kind);

impl Lingering {
    fn new(gate: &Arc<Gate>, kind: Kind) -> Self {
        gate.calls(kind).lingering.fetch_add(1, Ordering::SeqCst);
        Self(gate.clone(), kind)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0
            .calls(self.1)
            .lingering
            .fetch_sub(1, Ordering::SeqCst);
    }
}

/// True if an error is of this file: the pool does not answer.
pub(super) fn is_away(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|e| e.is::<GivenUp>())
}

impl Gate {
    /// The gate of a dataset's pool.
    pub(super) fn of(dataset: &str) -> Arc<Self> {
        static GATES: Mutex<BTreeMap<String, Arc<Gate>>> = Mutex::new(BTreeMap::new());
        let pool = dataset.split(['/', '@']).next().unwrap_or_default();
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(pool.to_owned()).or_insert_with(|| {
            Arc::new(Self {
                pool: pool.to_owned(),
                looks: Calls::default(),
                changes: Calls::default(),
            })
        });
        gate.clone()
    }

    fn calls(&self, kind: Kind) -> &Calls {
        match kind {
            Kind::Look => &self.looks,
            Kind::Change => &self.changes,
        }
    }

    /// How the pool is; never waits for it.
    pub(super) fn state(&self) -> State {
        state(Path::new(KSTAT), &self.pool)
    }

    fn check(&self, kind: Kind) -> Result<(), GivenUp> {
        let pool = &self.pool;
        match self.state() {
            State::Well => {}
            State::Suspended => return Err(suspended(pool)),
            State::Away => return Err(away(pool)),
        }
        let looks = self.looks.lingering.load(Ordering::SeqCst);
        let changes = match kind {
            Kind::Look => 0,
            Kind::Change => self.changes.lingering.load(Ordering::SeqCst),
        };
        match looks + changes {
            0 => Ok(()),
            calls => Err(GivenUp(format!(
                "the pool {pool} does not answer ({calls} calls to it have not come back): \
                 `zpool status {pool}` may say why"
            ))),
        }
    }

    /// Makes a call, and gives what it gives.
    ///
    /// # Errors
    /// One that [`is_away`] when the pool is not imported, suspended, or does not answer; or of
    /// the system, when it gives no thread.
    pub(super) fn call<T: Send + 'static>(
        self: &Arc<Self>,
        kind: Kind,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let given_up = |why| io::Error::new(ErrorKind::TimedOut, why);
        self.check(kind).map_err(given_up)?;
        // Whoever comes second, the call or the end of patience, finds the other's word here.
        let (answer, answered) = mpsc::sync_channel(1);
        let wait = Arc::new(Mutex::new(None::<Lingering>));
        let (kept, gate) = (wait.clone(), self.clone());
        thread::Builder::new()
            .name("zfs".to_owned())
            .spawn(move || {
                let answered = work();
                gate.calls(kind).done.fetch_add(1, Ordering::SeqCst);
                let _ = answer.send(answered);
                kept.lock().unwrap_or_else(PoisonError::into_inner).take();
            })?;
        let done = || self.calls(kind).done.load(Ordering::SeqCst);
        let (mut seen, mut quiet, mut ticks) = (done(), 0, 0);
        let why = loop {
            match answered.recv_timeout(TICK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other(format!(
                        "{what} came to an end of its own"
                    )));
                }
                Err(RecvTimeoutError::Timeout) => ticks += 1,
            }
            let now = done();
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
            match self.state() {
                State::Suspended => break suspended(&self.pool),
                State::Away | State::Well if quiet < PATIENCE && ticks < LONGEST => {}
                State::Away | State::Well => {
                    let seconds = (TICK * ticks).as_secs();
                    break GivenUp(format!(
                        "the pool {0} does not answer ({what} has not come back within {seconds} s): \
                         `zpool status {0}` may say why",
                        self.pool
                    ));
                }
            }
        };
        let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
        // It is counted before anybody can see that it is not there any more.
        *wait = Some(Lingering::new(self, kind));
        if let Ok(answer) = answered.try_recv() {
            *wait = None;
            return Ok(answer);
        }
        drop(wait);
        tracing::warn!(pool = %self.pool, call = what, "a call to ZFS was given up: {why}");
        Err(given_up(why))
    }

    /// Makes a call that looks for as long as there is something to read, and counts what it has
    /// read in `moved`: it is given up when that stands still. It may take hours, so what was
    /// given up keeps nobody from other calls.
    ///
    /// # Errors
    /// As [`Gate::call`].
    pub(super) fn stream<T: Send + 'static>(
        &self,
        what: &str,
        moved: &AtomicU64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let given_up = |why| io::Error::new(ErrorKind::TimedOut, why);
        self.check(Kind::Look).map_err(given_up)?;
        let (answer, answered) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("zfs-stream".to_owned())
            .spawn(move || answer.send(work()))?;
        let (mut seen, mut quiet) = (0, 0);
        loop {
            match answered.recv_timeout(TICK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other(format!(
                        "{what} came to an end of its own"
                    )));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = moved.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
            match self.state() {
                State::Suspended => return Err(given_up(suspended(&self.pool))),
                State::Away | State::Well if quiet < PATIENCE => {}
                State::Away | State::Well => {
                    return Err(given_up(GivenUp(format!(
                        "the pool {0} does not answer ({what} stands still): `zpool status {0}` \
                         may say why",
                        self.pool
                    ))));
                }
            }
        }
    }

    /// The error of a dataset that is not there although the store needs it.
    pub(super) fn without(&self, dataset: &str) -> VolumeError {
        let pool = &self.pool;
        VolumeError::Away(match self.state() {
            State::Away => away(pool).0,
            State::Suspended => suspended(pool).0,
            State::Well => format!(
                "the dataset {dataset} does not exist: `zfs create` makes it, and `zpool import` \
                 brings a pool that is not imported"
            ),
        })
    }
}

fn suspended(pool: &str) -> GivenUp {
    GivenUp(format!(
        "the pool {pool} is suspended after errors of its disks: once they are back, \
         `zpool clear {pool}` lets it go on"
    ))
}

fn away(pool: &str) -> GivenUp {
    GivenUp(format!(
        "the pool {pool} is not imported: `zpool import {pool}` brings it back"
    ))
}

fn state(kstat: &Path, pool: &str) -> State {
    let folder = kstat.join(pool);
    match fs::read_to_string(folder.join("state")) {
        Ok(state) if state.trim() == "SUSPENDED" => State::Suspended,
        // Where the module says how other pools are, it would say it of this one.
        Err(_) if kstat.join("arcstats").exists() && !folder.exists() => State::Away,
        _ => State::Well,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let says = |pool: &str| state(folder.path(), pool);
        // Without the module nothing is said, and the call itself will tell.
        assert_eq!(says("tank"), State::Well);
        std::fs::write(folder.path().join("arcstats"), "").unwrap();
        assert_eq!(says("tank"), State::Away);
        std::fs::create_dir(folder.path().join("tank")).unwrap();
        assert_eq!(says("tank"), State::Well);
        for (word, state) in [
            ("ONLINE\n", State::Well),
            ("DEGRADED\n", State::Well),
            ("SUSPENDED\n", State::Suspended),
        ] {
            std::fs::write(folder.path().join("tank/state"), word).unwrap();
            assert_eq!(says("tank"), state, "{word}");
        }
        assert_eq!(says("tan"), State::Away);
    }

    #[test]
    fn a_call_that_was_given_up_holds_changes_back_until_it_is_over() {
        let gate = Gate::of("gate-of-a-test/x");
        assert!(Arc::ptr_eq(&gate, &Gate::of("gate-of-a-test/y@z")));
        let change = Lingering::new(&gate, Kind::Change);
        let look = |gate: &Arc<Gate>| gate.call(Kind::Look, "a look", || 1);
        let changes = |gate: &Arc<Gate>| gate.call(Kind::Change, "a change", || 2);
        // On a machine with the module this pool is away, which is said first.
        if gate.state() == State::Well {
            assert_eq!(look(&gate).unwrap(), 1);
            let error = changes(&gate).unwrap_err();
            assert!(is_away(&error) && error.to_string().contains("does not answer"));
            let other = Lingering::new(&gate, Kind::Look);
            assert!(is_away(&look(&gate).unwrap_err()));
            drop((change, other));
            assert_eq!(changes(&gate).unwrap(), 2);
        }
    }
}
