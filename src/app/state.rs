//! What this server keeps for itself under `state_dir`: the lock and the server's id.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use crate::journal::replace_file;

/// Held while `dls serve` runs; a second one on the same state directory is refused.
/// The kernel lets go of it with the process, however that ends.
#[derive(Debug)]
pub(super) struct StateLock(#[expect(dead_code, reason = "held, not read")] Flock<std::fs::File>);

/// Takes the lock and writes our process id into it.
///
/// # Errors
/// When another server holds it, or the file can't be made.
pub(super) fn lock(state_dir: &Path) -> anyhow::Result<StateLock> {
    let path = state_dir.join("dls.lock");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, _)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok();
            bail!(
                "another dls (process {}) serves from {} already",
                holder.trim(),
                state_dir.display()
            );
        }
    };
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(StateLock(lock))
}

/// The directory of what has to be known without the database: journals, and a picture of the
/// catalog with the site's key. Only its owner may enter it.
///
/// # Errors
/// When it can't be made.
pub(super) fn journals(state_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = state_dir.join("local");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// This server's id: made once, then the same for ever.
///
/// # Errors
/// When the file can't be read or made, or holds no id.
pub(super) fn server_id(state_dir: &Path) -> anyhow::Result<Uuid> {
    let path = state_dir.join("server-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!(
                "{} holds no server id: restore it, or remove it to get a new one",
                path.display()
            )
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            replace_file(&path, format!("{id}\n").as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let refused = lock(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn the_id_stays() {
        let dir = tempfile::tempdir().unwrap();
        let id = server_id(dir.path()).unwrap();
        assert_eq!(server_id(dir.path()).unwrap(), id);
        std::fs::write(dir.path().join("server-id"), "x").unwrap();
        assert!(server_id(dir.path()).is_err());
    }
}
