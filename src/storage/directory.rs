//! The `directory` backend: files of images below one root, written once, never changed.
//!
//! A file arrives in `staging/`, is hashed while it is written, is fsynced, and is renamed to
//! its place with its directory fsynced: a crash leaves either the whole file or only litter
//! in `staging/`, which [`Directory::open`] sweeps (unless another process holds the root
//! open, whose work in progress it would be). No path from outside is ever joined: names here
//! come from ids of ours, and files are opened beneath the root by the kernel's own rule.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;

use crate::model::FileRole;

const STAGING: &str = "staging";
const IMAGES: &str = "images";
/// Bytes hashed and written at a time.
const CHUNK: usize = 256 * 1024;

/// The storage root; clones share it.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    /// The root itself, open: files are opened beneath this, wherever the path points later.
    beneath: Arc<File>,
    /// Held while any clone lives; tells other processes not to sweep.
    _lock: Arc<Option<File>>,
}

/// A file that has been received whole and hashed, not yet in its place. Dropped: removed.
#[derive(Debug)]
pub struct Staged {
    /// Bytes.
    pub size_bytes: i64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    litter: Litter,
}

/// A file in staging; removed when dropped, unless it has been renamed away.
#[derive(Debug)]
struct Litter(Option<PathBuf>);

/// A name in staging for whoever writes a file there; what lies there when this is dropped is
/// removed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _litter: Litter,
}

impl Scratch {
    /// Where; nothing is there yet.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What can go wrong with stored files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// An input or output error at a path.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a gerund phrase (`writing`, `opening`).
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk (or the quota) is full. What had been written of the file is gone again.
    #[error(
        "no space left for images below {root}: free some, or give [storage] path a larger disk"
    )]
    Full {
        /// The storage root.
        root: PathBuf,
    },
    /// The file could not be received to its end.
    #[error("the file broke off while it was received: {0}")]
    Source(io::Error),
    /// The image has such a file already; stored files are never changed.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// A path of the catalog that leaves the root, or is no regular file.
    #[error("{0} is no file below the storage root")]
    NotBeneath(String),
}

impl StorageError {
    pub(super) fn io(action: &'static str, path: &Path, root: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                root: root.to_owned(),
            },
            _ => Self::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}

impl Drop for Litter {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What can't be removed now is swept at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(StorageError::Source(io::Error::other(e))))
}

impl Directory {
    /// Opens (making it where missing) the root and sweeps `staging/`.
    ///
    /// # Errors
    /// When the root can't be made, read or written.
    pub async fn open(root: &Path) -> Result<Self, StorageError> {
        let root = root.to_owned();
        blocking(move || Self::open_now(&root)).await
    }

    fn open_now(root: &Path) -> Result<Self, StorageError> {
        let err = |action, path: &Path, e| StorageError::io(action, path, root, e);
        for folder in [root.to_owned(), root.join(STAGING), root.join(IMAGES)] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(&folder)
                .map_err(|e| err("making", &folder, e))?;
        }
        let beneath = File::open(root).map_err(|e| err("opening", root, e))?;
        let lock_path = root.join(".lock");
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o640)
            .open(&lock_path)
            .map_err(|e| err("opening", &lock_path, e))?;
        let lock = lock.try_lock().is_ok().then_some(lock);
        if lock.is_some() {
            sweep(root)?;
        }
        Ok(Self {
            root: root.to_owned(),
            beneath: Arc::new(beneath),
            _lock: Arc::new(lock),
        })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A name for a file that is soon gone again.
    #[must_use]
    pub fn scratch(&self) -> Scratch {
        let path = self.root.join(STAGING).join(Uuid::new_v4().to_string());
        Scratch {
            _litter: Litter(Some(path.clone())),
            path,
        }
    }

    /// Gives an image the files of another one, without copying: both names stay for one
    /// content, whichever is removed first. Durable when this returns.
    ///
    /// # Errors
    /// When linking or syncing fails; then some may be there.
    pub async fn link_image(&self, from: Uuid, to: Uuid) -> Result<(), StorageError> {
        let root = self.root.clone();
        blocking(move || {
            let images = root.join(IMAGES);
            let (from, to) = (images.join(from.to_string()), images.join(to.to_string()));
            let err = |e| StorageError::io("linking files to", &to, &root, e);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(&to)
                .map_err(err)?;
            for entry in std::fs::read_dir(&from).map_err(err)? {
                let entry = entry.map_err(err)?;
                std::fs::hard_link(entry.path(), to.join(entry.file_name())).map_err(err)?;
            }
            sync_folder(&to)
                .and_then(|()| sync_folder(&images))
                .map_err(err)
        })
        .await
    }

    /// Receives a file into staging, hashing as it goes; fsynced when this returns.
    ///
    /// # Errors
    /// When reading the source or writing fails; nothing of the file stays then.
    pub async fn stage<R: AsyncRead + Unpin>(&self, mut source: R) -> Result<Staged, StorageError> {
        let root = self.root.clone();
        let path = root.join(STAGING).join(Uuid::new_v4().to_string());
        let litter = Litter(Some(path.clone()));
        let mut file = blocking({
            let (root, path) = (root.clone(), path.clone());
            move || {
                std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o640)
                    .open(&path)
                    .map_err(|e| StorageError::io("making", &path, &root, e))
            }
        })
        .await?;
        let mut hasher = Sha256::new();
        let mut size = 0_i64;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            while chunk.len() < CHUNK {
                let more = (&mut source).take((CHUNK - chunk.len()) as u64);
                let mut more = more;
                let read = more.read_buf(&mut chunk).await;
                if read.map_err(StorageError::Source)? == 0 {
                    break;
                }
            }
            if chunk.is_empty() {
                break;
            }
            size += i64::try_from(chunk.len()).unwrap_or(0);
            let (root, path) = (root.clone(), path.clone());
            (file, hasher) = blocking(move || {
                hasher.update(&chunk);
                file.write_all(&chunk)
                    .map_err(|e| StorageError::io("writing", &path, &root, e))?;
                Ok((file, hasher))
            })
            .await?;
        }
        blocking(move || {
            file.sync_all()
                .map_err(|e| StorageError::io("syncing", &path, &root, e))
        })
        .await?;
        Ok(Staged {
            size_bytes: size,
            sha256: crate::model::hex(&hasher.finalize()),
            litter,
        })
    }

    /// Puts a staged file in its place; returns its path below the root,
    /// `images/<id>/kernel` or `images/<id>/initrd<position>`. It is durable then.
    ///
    /// # Errors
    /// When the image has that file already, or when renaming or syncing fails.
    pub async fn place(
        &self,
        mut staged: Staged,
        image: Uuid,
        role: FileRole,
        position: i32,
    ) -> Result<String, StorageError> {
        let name = match role {
            FileRole::Kernel => "kernel".to_owned(),
            FileRole::Initrd => format!("initrd{position}"),
        };
        let path = format!("{IMAGES}/{image}/{name}");
        let root = self.root.clone();
        blocking(move || {
            let err = |action, path: &Path, e| StorageError::io(action, path, &root, e);
            let (images, to) = (root.join(IMAGES), root.join(&path));
            let folder = images.join(image.to_string());
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(&folder)
                .map_err(|e| err("making", &folder, e))?;
            if to.symlink_metadata().is_ok() {
                return Err(StorageError::Exists(to));
            }
            if let Some(from) = &staged.litter.0 {
                std::fs::rename(from, &to).map_err(|e| err("renaming to", &to, e))?;
            }
            let _ = staged.litter.0.take();
            for folder in [&folder, &images] {
                sync_folder(folder).map_err(|e| err("syncing", folder, e))?;
            }
            Ok(path)
        })
        .await
    }

    /// Opens a placed file for reading, by its path below the root as the catalog holds it;
    /// the second value is its size in bytes. The path may not leave the root (no `..`, no
    /// absolute path) and no part of it may be a symlink.
    ///
    /// # Errors
    /// When it is not there or can't be read.
    pub async fn open_file(&self, path: &str) -> Result<(File, u64), StorageError> {
        let (path, root, beneath) = (path.to_owned(), self.root.clone(), self.beneath.clone());
        blocking(move || {
            let how = OpenHow::new()
                // NONBLOCK: a FIFO by that name must not hold a thread.
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            let file = match openat2(&*beneath, path.as_str(), how) {
                Ok(fd) => File::from(fd),
                Err(nix::Error::EXDEV | nix::Error::ELOOP) => {
                    return Err(StorageError::NotBeneath(path));
                }
                Err(e) => {
                    return Err(StorageError::io(
                        "opening",
                        &root.join(&path),
                        &root,
                        e.into(),
                    ));
                }
            };
            let meta = file
                .metadata()
                .map_err(|e| StorageError::io("reading", &root.join(&path), &root, e))?;
            if !meta.is_file() {
                return Err(StorageError::NotBeneath(path));
            }
            Ok((file, meta.len()))
        })
        .await
    }

    /// Removes all files of an image; fine if there are none.
    ///
    /// # Errors
    /// When removal fails.
    pub async fn remove_image(&self, image: Uuid) -> Result<(), StorageError> {
        let root = self.root.clone();
        blocking(move || {
            let images = root.join(IMAGES);
            let folder = images.join(image.to_string());
            match std::fs::remove_dir_all(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(StorageError::io("removing", &folder, &root, e)),
                Ok(()) => {
                    sync_folder(&images).map_err(|e| StorageError::io("syncing", &images, &root, e))
                }
            }
        })
        .await
    }

    /// Image ids that have files here (to compare with the catalog after a crash), sorted.
    ///
    /// # Errors
    /// When the root can't be read.
    pub async fn images(&self) -> Result<Vec<Uuid>, StorageError> {
        let root = self.root.clone();
        blocking(move || {
            let images = root.join(IMAGES);
            let err = |e| StorageError::io("reading", &images, &root, e);
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&images).map_err(err)? {
                let name = entry.map_err(err)?.file_name();
                if let Some(id) = name.to_str().and_then(|n| Uuid::try_parse(n).ok()) {
                    found.push(id);
                }
            }
            found.sort();
            Ok(found)
        })
        .await
    }
}

/// Removes what a crash left in staging.
fn sweep(root: &Path) -> Result<(), StorageError> {
    let staging = root.join(STAGING);
    let err = |action, path: &Path, e| StorageError::io(action, path, root, e);
    for entry in std::fs::read_dir(&staging).map_err(|e| err("reading", &staging, e))? {
        let path = entry.map_err(|e| err("reading", &staging, e))?.path();
        let is_folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let removed = if is_folder {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|e| err("removing", &path, e))?;
    }
    Ok(())
}

/// A rename lasts only once its directory is on disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn left_in_staging(root: &Path) -> usize {
        std::fs::read_dir(root.join(STAGING)).unwrap().count()
    }

    #[tokio::test]
    async fn a_file_is_staged_hashed_placed_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Directory::open(dir.path()).await.unwrap();
        let bytes: Vec<u8> = (0..CHUNK * 2 + 7).map(|n| (n % 251) as u8).collect();
        let staged = storage.stage(bytes.as_slice()).await.unwrap();
        assert_eq!(staged.size_bytes, bytes.len() as i64);
        let want: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(staged.sha256, want);
        let id = Uuid::from_u128(7);
        let path = storage
            .place(staged, id, FileRole::Initrd, 3)
            .await
            .unwrap();
        assert_eq!(path, format!("images/{id}/initrd3"));
        assert_eq!(left_in_staging(dir.path()), 0);
        let (mut file, size) = storage.open_file(&path).await.unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == bytes && size == bytes.len() as u64);
        assert_eq!(storage.images().await.unwrap(), [id]);
        storage.remove_image(id).await.unwrap();
        storage.remove_image(id).await.unwrap();
        assert!(storage.images().await.unwrap().is_empty());
        // A file that is open is read to its end even then.
        assert_eq!(
            std::os::unix::fs::FileExt::read_at(&file, &mut back, 0).unwrap(),
            back.len()
        );
    }

    #[tokio::test]
    async fn an_empty_file_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Directory::open(dir.path()).await.unwrap();
        let staged = storage.stage(tokio::io::empty()).await.unwrap();
        assert_eq!(staged.size_bytes, 0);
        assert!(staged.sha256.starts_with("e3b0c442"));
    }

    #[tokio::test]
    async fn stored_files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Directory::open(dir.path()).await.unwrap();
        let id = Uuid::from_u128(7);
        let first = storage.stage(&b"one"[..]).await.unwrap();
        let path = storage.place(first, id, FileRole::Kernel, 0).await.unwrap();
        let second = storage.stage(&b"two"[..]).await.unwrap();
        let again = storage.place(second, id, FileRole::Kernel, 0).await;
        assert!(matches!(again, Err(StorageError::Exists(_))), "{again:?}");
        assert_eq!(std::fs::read(dir.path().join(path)).unwrap(), b"one");
        assert_eq!(left_in_staging(dir.path()), 0);
    }

    #[tokio::test]
    async fn what_is_dropped_or_breaks_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Directory::open(dir.path()).await.unwrap();
        let staged = storage.stage(&b"abc"[..]).await.unwrap();
        assert_eq!(left_in_staging(dir.path()), 1);
        drop(staged);
        assert_eq!(left_in_staging(dir.path()), 0);

        let (mut to, from) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut to, b"half")
            .await
            .unwrap();
        let waiting = tokio::spawn({
            let storage = storage.clone();
            async move { storage.stage(from).await.map(|_| ()) }
        });
        while left_in_staging(dir.path()) == 0 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        let _ = waiting.await;
        drop(to);
        // A write that was on its way may end after the abort; the file is unlinked already.
        assert_eq!(left_in_staging(dir.path()), 0);

        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        let broken = storage
            .stage(AsyncReadExt::chain(&b"start"[..], Broken))
            .await;
        assert!(matches!(broken, Err(StorageError::Source(_))), "{broken:?}");
        assert_eq!(left_in_staging(dir.path()), 0);
    }

    #[tokio::test]
    async fn litter_of_a_crash_is_swept_but_not_anothers_work() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Directory::open(dir.path()).await.unwrap();
        let staged = storage.stage(&b"abc"[..]).await.unwrap();
        let second = Directory::open(dir.path()).await.unwrap();
        assert_eq!(
            left_in_staging(dir.path()),
            1,
            "its owner still works on it"
        );
        drop(second);
        // A killed process runs no destructors.
        std::mem::forget(staged);
        drop(storage);
        std::fs::create_dir(dir.path().join("staging/odd")).unwrap();
        let kept = dir.path().join("images").join(Uuid::nil().to_string());
        std::fs::create_dir(&kept).unwrap();
        let _storage = Directory::open(dir.path()).await.unwrap();
        assert_eq!(left_in_staging(dir.path()), 0);
        assert!(kept.exists());
    }

    #[tokio::test]
    async fn nothing_outside_the_root_is_opened() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        let storage = Directory::open(&root).await.unwrap();
        std::fs::write(outer.path().join("secret"), b"x").unwrap();
        std::fs::write(root.join("inside"), b"x").unwrap();
        symlink(outer.path().join("secret"), root.join("out")).unwrap();
        symlink("inside", root.join("in")).unwrap();
        symlink(outer.path(), root.join("images/up")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(storage.open_file("inside").await.is_ok());
        for path in [
            "../secret",
            "images/../../secret",
            "out",
            "in",
            "images/up/secret",
            "/etc/passwd",
            "images",
            "",
            ".",
            "fifo",
            "missing",
            "images/\0x",
        ] {
            assert!(storage.open_file(path).await.is_err(), "{path:?}");
        }
    }

    #[tokio::test]
    async fn a_root_that_can_not_be_made_is_named() {
        let error = Directory::open(Path::new("/proc/dls-no-such"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/proc/dls-no-such"), "{error}");
    }
}
