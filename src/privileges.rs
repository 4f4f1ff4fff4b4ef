//! Becoming an unprivileged user before anything from outside is read.
//!
//! Started as root, the process gives up root while it still has a single thread and keeps
//! just what binding low ports and raw frames need; children (PostgreSQL) inherit neither
//! capability. Started as an ordinary user it stays what it is.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, User};

/// Why privileges can't be given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// Neither the configured user nor a stand-in exists.
    #[error(
        "started as root, but there is no user `{0}` to become (nor postgres or nobody): make it with `adduser --system --group {0}`"
    )]
    NoUser(String),
    /// A directory of ours belongs to somebody else.
    #[error(
        "{path} belongs to uid {owner}, but dls runs as {user}: give it over with `chown -R {user}: {path}`"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are to be.
        user: String,
    },
    /// A directory can't be made or handed over.
    #[error("{action} {path}: {source}")]
    Directory {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The system refused.
    #[error("giving up root privileges: {0}")]
    System(String),
}

/// Who the process has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// It was no root: nothing changed.
    Same,
    /// The configured user.
    Configured(String),
    /// The configured user does not exist; this one was taken.
    StandIn(String),
}

/// Makes the directories (0750, private to us) and, when root, hands new or empty ones to
/// the user and becomes it. Call before any thread is started.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn prepare(user: &str, directories: &[PathBuf]) -> Result<Became, PrivilegeError> {
    if !Uid::effective().is_root() {
        for path in directories {
            make(path)?;
        }
        // A service manager gives capabilities as ambient ones, which children would inherit.
        caps::clear(None, CapSet::Ambient)
            .map_err(|e| PrivilegeError::System(format!("ambient capabilities: {e}")))?;
        return Ok(Became::Same);
    }
    let account = find(user)?;
    for path in directories {
        make(path)?;
        hand_over(path, &account)?;
    }
    become_user(&account)?;
    Ok(if account.name == user {
        Became::Configured(account.name)
    } else {
        Became::StandIn(account.name)
    })
}

fn find(user: &str) -> Result<User, PrivilegeError> {
    [user, "postgres", "nobody"]
        .into_iter()
        .find_map(|name| {
            User::from_name(name)
                .ok()
                .flatten()
                .filter(|u| !u.uid.is_root())
        })
        .ok_or_else(|| PrivilegeError::NoUser(user.to_owned()))
}

fn make(path: &Path) -> Result<(), PrivilegeError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| PrivilegeError::Directory {
        action: "making",
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::DirBuilder::new().mode(0o750).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(failed),
    }
}

/// A directory that is ours already stays; an empty one of root's is taken over; one with
/// contents of somebody else's is not touched.
fn hand_over(path: &Path, account: &User) -> Result<(), PrivilegeError> {
    let failed = |action| {
        move |source| PrivilegeError::Directory {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let owner = std::fs::metadata(path).map_err(failed("reading"))?.uid();
    if owner == account.uid.as_raw() {
        return Ok(());
    }
    let empty = std::fs::read_dir(path)
        .map_err(failed("reading"))?
        .next()
        .is_none();
    if !(empty && owner == 0) {
        return Err(PrivilegeError::NotOurs {
            path: path.to_owned(),
            owner,
            user: account.name.clone(),
        });
    }
    chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
        .map_err(failed("handing over"))
}

fn become_user(account: &User) -> Result<(), PrivilegeError> {
    let system =
        |what: &str, e: &dyn std::fmt::Display| PrivilegeError::System(format!("{what}: {e}"));
    let keep: CapsHashSet = [Capability::CAP_NET_BIND_SERVICE, Capability::CAP_NET_RAW]
        .into_iter()
        .collect();
    caps::securebits::set_keepcaps(true).map_err(|e| system("keepcaps", &e))?;
    nix::unistd::setgroups(&[account.gid]).map_err(|e| system("setgroups", &e))?;
    set_ids(account.uid, account.gid).map_err(|e| system("setuid", &e))?;
    caps::set(None, CapSet::Effective, &keep).map_err(|e| system("capabilities", &e))?;
    caps::set(None, CapSet::Permitted, &keep).map_err(|e| system("capabilities", &e))?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
        .map_err(|e| system("capabilities", &e))?;
    Ok(())
}

fn set_ids(uid: Uid, gid: Gid) -> nix::Result<()> {
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}
