//! Where the cluster lies: directories, their owners, the socket's directory, the lock.
//!
//! ```text
//! state_dir/postgres/        0700, of the user who runs the cluster
//!   data/                    the cluster
//!   data.building/           one that is being made; thrown away if found at a start
//!   data.upgrading/          the new one of an upgrade
//!   data.old-15/             the old one after an upgrade
//!   log, log.1               what PostgreSQL says
//!   lock                     held while a dls uses the cluster
//!   where                    socket directory and program directory of the last start
//! ```

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid, User};
use sha2::{Digest, Sha256};

use super::programs::Installed;
use super::{EmbeddedError, RunAs};

/// Held for as long as the cluster is ours.
pub(super) type Lock = Flock<fs::File>;

/// A path in `sockaddr_un` has 107 bytes; PostgreSQL adds this name.
const LONGEST_SOCKET_DIR: usize = 107 - "/.s.PGSQL.5432".len();

/// The directories of a cluster, and who runs it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// `state_dir/postgres`.
    pub(super) home: PathBuf,
    /// Where the sockets are.
    pub(super) sockets: PathBuf,
    /// Whom to become, where we are root.
    pub(super) run_as: Option<RunAs>,
}

/// The user an embedded cluster runs as when we are root: `dls`, else `postgres`, else
/// `nobody`. `None`: we are not root (it runs as we are), or none of them exists.
#[must_use]
pub fn choose_user() -> Option<RunAs> {
    if !Uid::effective().is_root() {
        return None;
    }
    ["dls", "postgres", "nobody"].iter().find_map(|name| {
        let user = User::from_name(name).ok()??;
        Some(RunAs {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        })
    })
}

fn failed(doing: &str, path: &Path, error: &dyn std::fmt::Display) -> EmbeddedError {
    EmbeddedError::Place(format!("can't {doing} {}: {error}", path.display()))
}

impl Place {
    /// Makes the directories, and checks that the user who runs the cluster can get there.
    pub(super) fn prepare(state_dir: &Path, run_as: Option<&RunAs>) -> Result<Self, EmbeddedError> {
        let root = Uid::effective().is_root();
        let run_as = run_as.filter(|_| root).cloned();
        if root && run_as.as_ref().is_none_or(|user| user.uid == 0) {
            return Err(EmbeddedError::Place(
                "PostgreSQL refuses to run as root: make a user for it (`useradd --system dls`), or start dls as another user"
                    .to_owned(),
            ));
        }
        fs::create_dir_all(state_dir).map_err(|e| failed("make", state_dir, &e))?;
        let state_dir = fs::canonicalize(state_dir).map_err(|e| failed("use", state_dir, &e))?;
        if let Some(user) = &run_as {
            open_the_way(&state_dir, user)?;
        }
        let home = state_dir.join("postgres");
        private_dir(&home, run_as.as_ref())?;
        let sockets = socket_dir(&home, run_as.as_ref(), root)?;
        Ok(Self {
            home,
            sockets,
            run_as,
        })
    }

    pub(super) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Major version the cluster was made by; `None`: there is no cluster yet.
    pub(super) fn version(&self) -> Result<Option<String>, EmbeddedError> {
        let path = self.data().join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound && !self.data().exists() => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Connection URL of one of its databases.
    pub(super) fn url(&self, database: &str) -> String {
        url(&self.sockets, database)
    }

    /// Keeps a second server off the cluster.
    pub(super) fn lock(&self) -> Result<Lock, EmbeddedError> {
        let path = self.home.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed("open", &path, &e))?;
        self.give(&path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| EmbeddedError::InUse(self.home.clone()))
    }

    /// Gives a file that we made to the user who runs the cluster.
    pub(super) fn give(&self, path: &Path) -> Result<(), EmbeddedError> {
        if let Some(user) = &self.run_as {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            nix::unistd::chown(path, Some(uid), Some(gid))
                .map_err(|e| failed("give away", path, &e))?;
        }
        Ok(())
    }

    /// Writes a file whole or not at all, as the user's who runs the cluster.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), EmbeddedError> {
        let beside = path.with_extension("new");
        fs::write(&beside, text).map_err(|e| failed("write", &beside, &e))?;
        self.give(&beside)?;
        fs::rename(&beside, path).map_err(|e| failed("write", path, &e))
    }

    /// Remembers what `dls psql` needs.
    pub(super) fn remember(
        &self,
        sockets: &Path,
        programs: &Installed,
    ) -> Result<(), EmbeddedError> {
        let text = format!("{}\n{}\n", sockets.display(), programs.bin.display());
        self.write(&self.home.join("where"), &text)
    }

    /// Makes renames in `postgres/` last.
    pub(super) fn sync(&self) -> Result<(), EmbeddedError> {
        fs::File::open(&self.home)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| failed("sync", &self.home, &e))
    }

    /// Name of the user who runs the cluster, and of the one we are.
    pub(super) fn users(&self) -> Vec<String> {
        let own = User::from_uid(Uid::effective()).ok().flatten();
        let mut names = vec!["root".to_owned()];
        names.extend(own.map(|user| user.name));
        names.extend(self.run_as.as_ref().map(|user| user.name.clone()));
        names.sort();
        names.dedup();
        names
    }

    /// Deletes a directory tree of the cluster's if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), EmbeddedError> {
        let path = self.home.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Leaves nothing behind in /run or /tmp. It does not matter if it can't be removed.
    pub(super) fn leave(&self) {
        if !self.sockets.starts_with(&self.home) {
            let _ = fs::remove_dir(&self.sockets);
        }
    }

    /// Renames one of the cluster's directories.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), EmbeddedError> {
        let from = self.home.join(from);
        fs::rename(&from, self.home.join(to)).map_err(|e| failed("rename", &from, &e))
    }
}

/// What [`super::Embedded::locate`] promises.
pub(super) fn locate(state_dir: &Path) -> Result<(String, PathBuf), EmbeddedError> {
    let path = state_dir.join("postgres").join("where");
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => EmbeddedError::Place(format!(
            "there is no embedded database under {} yet: `dls serve` makes it",
            state_dir.display()
        )),
        ErrorKind::PermissionDenied => EmbeddedError::Place(format!(
            "you may not read {}: try it as root or as the user who runs dls",
            path.display()
        )),
        _ => failed("read", &path, &error),
    })?;
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(sockets), Some(bin)) => Ok((url(Path::new(sockets), "dls"), PathBuf::from(bin))),
        _ => Err(EmbeddedError::Place(format!(
            "{} is damaged: start `dls serve`",
            path.display()
        ))),
    }
}

fn url(sockets: &Path, database: &str) -> String {
    let mut host = String::new();
    for byte in sockets.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                host.push(char::from(*byte));
            }
            other => host.push_str(&format!("%{other:02X}")),
        }
    }
    format!("postgres:///{database}?host={host}&user=dls")
}

/// May the user enter each directory down to here? The last one is ours to open.
fn open_the_way(state_dir: &Path, user: &RunAs) -> Result<(), EmbeddedError> {
    let ancestors: Vec<&Path> = state_dir.ancestors().collect();
    for dir in ancestors.into_iter().rev() {
        let meta = fs::metadata(dir).map_err(|e| failed("use", dir, &e))?;
        let bit = if meta.uid() == user.uid {
            0o100
        } else if meta.gid() == user.gid {
            0o010
        } else {
            0o001
        };
        if meta.mode() & bit != 0 {
            continue;
        }
        if dir == state_dir {
            // To pass through, not to read: what is in it has modes of its own.
            let mode = fs::Permissions::from_mode((meta.mode() & 0o7777) | bit);
            fs::set_permissions(dir, mode).map_err(|e| failed("open", dir, &e))?;
        } else {
            return Err(EmbeddedError::Place(format!(
                "PostgreSQL runs as user `{}`, who may not enter {}: choose a state_dir elsewhere, such as /var/lib/dls, or `chmod o+x {}`",
                user.name,
                dir.display(),
                dir.display()
            )));
        }
    }
    Ok(())
}

/// A directory that only the cluster's user (and root) can enter. One that is there already
/// must be that: in /tmp it might be somebody else's trap.
fn private_dir(path: &Path, run_as: Option<&RunAs>) -> Result<(), EmbeddedError> {
    let owner = run_as.map_or(Uid::effective().as_raw(), |user| user.uid);
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            if let Some(user) = run_as {
                let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
                nix::unistd::chown(path, Some(uid), Some(gid))
                    .map_err(|e| failed("give away", path, &e))?;
            }
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(path).map_err(|e| failed("use", path, &e))?;
            if !meta.is_dir() {
                return Err(EmbeddedError::Place(format!(
                    "{} is no directory",
                    path.display()
                )));
            }
            if meta.uid() != owner {
                return Err(EmbeddedError::Place(format!(
                    "{} belongs to user {}, not to {} who would run PostgreSQL: start dls as before, or `chown -R` it",
                    path.display(),
                    name_of(meta.uid()),
                    name_of(owner)
                )));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(|e| failed("use", path, &e))
        }
        Err(error) => Err(failed("make", path, &error)),
    }
}

fn name_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Beside the data where the path is short enough, else in /run or /tmp under a name that
/// follows from the place.
fn socket_dir(home: &Path, run_as: Option<&RunAs>, root: bool) -> Result<PathBuf, EmbeddedError> {
    let beside = home.join("run");
    // The directory list is comma separated in PostgreSQL's setting.
    let plain = !beside
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|b| matches!(b, b',' | b'"' | b'\''));
    let dir = if plain && beside.as_os_str().len() <= LONGEST_SOCKET_DIR {
        beside
    } else {
        let digest = Sha256::digest(home.as_os_str().as_bytes());
        let name = crate::model::hex(&digest[..8]);
        let base = if root { "/run" } else { "/tmp" };
        Path::new(base).join(format!("dls-{name}"))
    };
    private_dir(&dir, run_as)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_escapes_what_a_url_must() {
        assert_eq!(
            url(Path::new("/a b/c?d"), "dls"),
            "postgres:///dls?host=/a%20b/c%3Fd&user=dls"
        );
    }

    #[test]
    fn nothing_there_is_said_plainly() {
        let dir = tempfile::tempdir().unwrap();
        let error = locate(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no embedded database"), "{error}");
    }

    #[test]
    fn a_directory_that_is_a_trap_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(private_dir(&link, None).is_err());
    }
}
