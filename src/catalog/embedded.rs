//! The embedded default: a private PostgreSQL cluster under `state_dir`, run from the
//! installed programs, never as root, reached by a unix socket.

use std::path::{Path, PathBuf};

/// A running cluster of our own. Dropped without [`Embedded::stop`]: it goes on running and
/// the next start adopts it.
#[derive(Debug)]
pub struct Embedded {}

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
        let _ = (state_dir, run_as);
        unimplemented!()
    }

    /// Connection URL through its unix socket.
    #[must_use]
    pub fn url(&self) -> String {
        unimplemented!()
    }

    /// Looks whether the postmaster lives, and starts it again if not (it recovers by
    /// itself). Call it every second or so; returns `true` if it had to start it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn supervise(&mut self) -> Result<bool, EmbeddedError> {
        unimplemented!()
    }

    /// Stops the cluster in an orderly way (fast shutdown), within 30 s.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        unimplemented!()
    }

    /// URL and bin directory of the cluster under `state_dir` without starting it, for
    /// `dls psql`.
    ///
    /// # Errors
    /// When there is none.
    pub fn locate(state_dir: &Path) -> Result<(String, PathBuf), EmbeddedError> {
        let _ = state_dir;
        unimplemented!()
    }
}
