//! Storage on a disk that is full.

use std::path::Path;
use std::process::Command;

use dls::storage::{Directory, StorageError};

/// A file system of one MiB; gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1M", "dls-test"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(made.success(), "mounting a tmpfs needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn staged(root: &Path) -> usize {
    std::fs::read_dir(root.join("staging")).unwrap().count()
}

#[tokio::test]
async fn a_full_disk_is_named_leaves_nothing_and_is_survived() {
    let disk = SmallDisk::new();
    let root = disk.path().join("storage");
    let storage = Directory::open(&root).await.unwrap();
    let large = vec![7_u8; 3 << 20];
    let error = storage.stage(large.as_slice()).await.unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("no space left") && said.contains("[storage] path"),
        "{said}"
    );
    assert!(said.contains(root.to_str().unwrap()), "{said}");
    assert_eq!(staged(&root), 0);
    // What fits is taken afterwards, without a restart.
    let fits = storage.stage(&large[..500_000]).await.unwrap();
    assert_eq!(fits.size_bytes, 500_000);
    assert_eq!(staged(&root), 1);
}
