//! The embedded default: a private PostgreSQL cluster under `state_dir`, run from the
//! installed programs, never as root, reached by a unix socket.
//!
//! The map: `programs` (what is installed, and whether it suits the cluster), `place`
//! (directories, the socket's, whose they are), `cluster` (making one, its configuration),
//! `postmaster` (the process: start, adopt, watch, stop), `upgrade` (carrying a cluster over to
//! a newer major version). Nothing here knows the catalog's tables.
//!
//! What may be found at a start, and what becomes of it: a live postmaster is adopted; one that
//! died is started again and recovers; its left-over processes are waited for; a half-made
//! cluster (`data.building`) is thrown away; an upgrade that was cut short begins anew, or is
//! finished where only the last rename was missing.

mod cluster;
mod place;
mod postmaster;
mod programs;
mod upgrade;

use std::path::{Path, PathBuf};

use place::Place;
pub use place::choose_user;
use postmaster::Postmaster;
pub use programs::Search;
use programs::{Installed, Plan};

/// A running cluster of our own. Dropped without [`Embedded::stop`]: it goes on running and
/// the next start adopts it.
#[derive(Debug)]
pub struct Embedded {
    place: Place,
    programs: Installed,
    postmaster: Postmaster,
    /// Keeps a second server off the same cluster; released with the process, however it ends.
    _lock: place::Lock,
}

/// Who runs the cluster's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// User name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why there is no embedded cluster. Each message is one clear sentence for an operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// No PostgreSQL programs on this machine.
    #[error(
        "PostgreSQL is not installed: install it with `apt-get install postgresql` (Debian, Ubuntu), or set [database] url"
    )]
    NotInstalled,
    /// The installed PostgreSQL does not suit the cluster, or is too old; says what to install.
    #[error("{0}")]
    Version(String),
    /// A directory can't be used; says which and what to do.
    #[error("{0}")]
    Place(String),
    /// Another server uses this cluster.
    #[error(
        "another dls uses the database under {}: stop it, or give this one a state_dir of its own", .0.display()
    )]
    InUse(PathBuf),
    /// Something else, in a sentence.
    #[error("{0}")]
    Failed(String),
}

impl Embedded {
    /// Makes the cluster where missing, upgrades it where it was made by an older major
    /// version and both programs are there, adopts a live postmaster or starts one, and
    /// waits until it answers. `run_as`: whom to run it as when we are root; `None`: as we are.
    ///
    /// # Errors
    /// See [`EmbeddedError`].
    pub async fn start(state_dir: &Path, run_as: Option<&RunAs>) -> Result<Self, EmbeddedError> {
        Self::start_from(state_dir, run_as, &Search::usual()).await
    }

    /// As [`Embedded::start`], with the places to look for PostgreSQL's programs.
    ///
    /// # Errors
    /// See [`EmbeddedError`].
    pub async fn start_from(
        state_dir: &Path,
        run_as: Option<&RunAs>,
        search: &Search,
    ) -> Result<Self, EmbeddedError> {
        let installed = search.installed().await;
        let place = Place::prepare(state_dir, run_as)?;
        let lock = place.lock()?;
        upgrade::repair(&place)?;
        let plan = programs::plan(place.version()?, &installed)?;
        let programs = match plan {
            Plan::Create(programs) => {
                cluster::create(&place, &programs).await?;
                programs
            }
            Plan::Run(programs) => programs,
            Plan::Upgrade { from, to } => {
                upgrade::upgrade(&place, &from, &to).await?;
                to
            }
        };
        cluster::admit(&place)?;
        let postmaster = Postmaster::adopt_or_start(&place, &programs).await?;
        cluster::make_database(&place).await?;
        Ok(Self {
            place,
            programs,
            postmaster,
            _lock: lock,
        })
    }

    /// Carries the cluster over from the programs in one directory to those in another: it
    /// is dumped, loaded into a new cluster, and the old one is kept beside it as
    /// `data.old-MAJOR`. The cluster must not be in use. A start does this by itself.
    ///
    /// # Errors
    /// See [`EmbeddedError`]; the old cluster is then as it was.
    pub async fn upgrade(
        state_dir: &Path,
        run_as: Option<&RunAs>,
        from_bin: &Path,
        to_bin: &Path,
    ) -> Result<(), EmbeddedError> {
        let place = Place::prepare(state_dir, run_as)?;
        let _lock = place.lock()?;
        upgrade::repair(&place)?;
        let from = Installed::look(from_bin)
            .await
            .ok_or(EmbeddedError::NotInstalled)?;
        let to = Installed::look(to_bin)
            .await
            .ok_or(EmbeddedError::NotInstalled)?;
        upgrade::upgrade(&place, &from, &to).await
    }

    /// Connection URL through its unix socket.
    #[must_use]
    pub fn url(&self) -> String {
        self.place.url("dls")
    }

    /// Process id of the postmaster.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.postmaster.pid()
    }

    /// True if the postmaster was found running rather than started.
    #[must_use]
    pub fn was_adopted(&self) -> bool {
        self.postmaster.was_adopted()
    }

    /// Looks whether the postmaster lives, and starts it again if not (it recovers by
    /// itself). Call it every second or so; returns `true` if it had to start it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn supervise(&mut self) -> Result<bool, EmbeddedError> {
        if self.postmaster.lives(&self.place) {
            return Ok(false);
        }
        self.postmaster = Postmaster::adopt_or_start(&self.place, &self.programs).await?;
        Ok(true)
    }

    /// Stops the cluster in an orderly way (fast shutdown), within 30 s.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(mut self) -> Result<(), EmbeddedError> {
        self.postmaster.stop(&self.place).await?;
        self.place.leave();
        Ok(())
    }

    /// URL and bin directory of the cluster under `state_dir` without starting it, for
    /// `dls psql`.
    ///
    /// # Errors
    /// When there is none.
    pub fn locate(state_dir: &Path) -> Result<(String, PathBuf), EmbeddedError> {
        place::locate(state_dir)
    }
}
