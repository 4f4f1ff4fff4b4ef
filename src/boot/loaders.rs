//! Loaders on disk: which are installed, and opening one by its base name.
//!
//! Debian's ipxe package has `ipxe.efi` as a symlink to `/boot/ipxe.efi`, so links are
//! followed, but only to where loaders lie: below a loader directory, or to the file of the
//! same name in `/boot`. It knows no client and no boot.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::dhcp::decide::Loader;
use crate::model::Arch;

/// Where Debian's ipxe package puts its loaders.
pub const DEFAULT_LOADER_DIR: &str = "/usr/lib/ipxe";
/// Where that package's links lead.
const LINKED: &str = "/boot";
/// How long an answer of [`Loaders::for_arch`] holds, so that a packet storm stats nothing
/// and a loader that is installed now is found at the next try.
const HOLDS: Duration = Duration::from_secs(1);

/// The loader directories.
#[derive(Debug)]
pub(super) struct Loaders {
    directories: Vec<PathBuf>,
    known: Mutex<Vec<(Arch, Instant, Loader)>>,
}

/// An open loader.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size: u64,
    /// From its time of change and size.
    pub(super) etag: String,
}

impl Loaders {
    pub(super) const fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            known: Mutex::new(Vec::new()),
        }
    }

    /// The best loader installed for an architecture, or what would be one.
    pub(super) fn for_arch(&self, arch: Arch, now: Instant) -> Loader {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < HOLDS;
        if let Some((_, _, loader)) = known.iter().find(|(a, at, _)| *a == arch && fresh(at)) {
            return loader.clone();
        }
        let wanted = arch.loaders();
        let found = wanted.iter().find(|name| self.find(name).is_some());
        let loader = match found {
            Some(name) => Loader::Found((*name).to_owned()),
            None => Loader::Missing {
                wanted,
                directory: self
                    .directories
                    .first()
                    .map(|d| d.display().to_string())
                    .unwrap_or_default(),
            },
        };
        known.retain(|(a, _, _)| *a != arch);
        known.push((arch, now, loader.clone()));
        loader
    }

    /// Opens a loader by a base name that `BootPath` has judged; `None` if there is none.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<Opened>> {
        let Some(path) = self.find(name) else {
            return Ok(None);
        };
        // Resolved already: a link put in between is not followed.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = File::from(openat2(nix::fcntl::AT_FDCWD, &path, how)?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        let (seconds, nanos, size) = (meta.mtime(), meta.mtime_nsec(), meta.len());
        Ok(Some(Opened {
            file,
            size,
            etag: format!("{seconds:x}-{nanos:x}-{size:x}"),
        }))
    }

    /// Where a loader really lies, if that is a place for loaders.
    fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().find_map(|directory| {
            let real = directory.join(name).canonicalize().ok()?;
            let at_home = |d: &PathBuf| d.canonicalize().is_ok_and(|d| real.starts_with(d));
            let linked = real == Path::new(LINKED).join(name);
            let lawful = linked || self.directories.iter().any(at_home);
            (lawful && real.is_file()).then_some(real)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn links_lead_to_loaders_only() {
        let outer = tempfile::tempdir().unwrap();
        let (one, two) = (outer.path().join("one"), outer.path().join("two"));
        std::fs::create_dir_all(one.join("sub")).unwrap();
        std::fs::create_dir(&two).unwrap();
        std::fs::write(outer.path().join("secret"), b"secret").unwrap();
        std::fs::write(one.join("plain.efi"), b"plain").unwrap();
        std::fs::write(one.join("sub/inner"), b"inner").unwrap();
        std::fs::write(two.join("second.efi"), b"second").unwrap();
        symlink("sub/inner", one.join("inner.rom")).unwrap();
        symlink("../two/second.efi", one.join("other.efi")).unwrap();
        symlink("../secret", one.join("secret.efi")).unwrap();
        symlink("/etc/hostname", one.join("hostname")).unwrap();
        let loaders = Loaders::new(vec![one.clone(), two, outer.path().join("none")]);
        for (name, want) in [
            ("plain.efi", b"plain".len()),
            ("second.efi", 6),
            ("inner.rom", 5),
            ("other.efi", 6),
        ] {
            let opened = loaders.open(name).unwrap();
            assert_eq!(opened.map(|o| o.size), Some(want as u64), "{name}");
        }
        for name in ["secret.efi", "hostname", "sub", "missing"] {
            assert!(loaders.open(name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_loader_that_comes_later_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let loaders = Loaders::new(vec![dir.path().to_owned()]);
        let now = Clock::system().instant();
        let missing = loaders.for_arch(Arch::EfiX64, now);
        assert_eq!(
            missing,
            Loader::Missing {
                wanted: &["snponly.efi", "ipxe.efi"],
                directory: dir.path().display().to_string()
            }
        );
        std::fs::write(dir.path().join("ipxe.efi"), b"x").unwrap();
        assert_eq!(
            loaders.for_arch(Arch::EfiX64, now),
            missing,
            "held a second"
        );
        let later = now + HOLDS;
        assert_eq!(
            loaders.for_arch(Arch::HttpX64, later),
            Loader::Found("ipxe.efi".into())
        );
        std::fs::write(dir.path().join("snponly.efi"), b"x").unwrap();
        assert_eq!(
            loaders.for_arch(Arch::EfiX64, later),
            Loader::Found("snponly.efi".into())
        );
        assert!(matches!(
            loaders.for_arch(Arch::Other, now),
            Loader::Missing { wanted: [], .. }
        ));
    }
}
