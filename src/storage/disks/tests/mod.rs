//! Tests of the store in files: the suite, and what only files can get wrong.

mod crashes;
mod files;
mod many;
#[cfg(target_arch = "x86_64")]
mod steps;

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{DiskStore, TABLE_CACHE};
use crate::storage::Storage;
use crate::storage::conformance::{self, Subject};

pub(super) struct InFiles {
    pub(super) root: TempDir,
    pub(super) store: Option<DiskStore>,
}

impl InFiles {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Some(DiskStore::open(root.path(), TABLE_CACHE).unwrap());
        Self { root, store }
    }

    pub(super) fn get(&self) -> &DiskStore {
        self.store.as_ref().unwrap()
    }
}

impl Subject for InFiles {
    fn store(&self) -> &dyn Storage {
        self.get()
    }

    fn reopen(&mut self) {
        self.store = None;
        check(self.root.path());
        self.store = Some(DiskStore::open(self.root.path(), TABLE_CACHE).unwrap());
    }
}

/// Names of files in a folder of the store.
pub(super) fn files(root: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("disks").join(folder)).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// The long versions are asked for.
pub(super) fn torture() -> bool {
    crashes::variable("DLS_TORTURE").is_some()
}

/// `qemu-img check` finds nothing in any layer.
pub(super) fn check(root: &Path) {
    for name in files(root, "layers") {
        if name.ends_with(".qcow2") {
            let path = root.join("disks/layers").join(&name);
            let out = Command::new("qemu-img")
                .args(["check", "-f", "qcow2"])
                .arg(path)
                .output()
                .unwrap();
            assert!(out.status.success(), "{name}: {out:?}");
        }
    }
}

#[test]
fn the_store_in_files_conforms() {
    let mut subject = InFiles::new();
    conformance::all(&mut subject);
    subject.reopen();
    for folder in ["layers", "staging", "volumes"] {
        assert_eq!(files(subject.root.path(), folder), Vec::<String>::new());
    }
}

#[test]
fn changes_equal_models_of_many_histories() {
    for seed in 1..=8 {
        let mut subject = InFiles::new();
        println!("seed {seed}");
        conformance::changes(&mut subject, seed, 60);
        assert!(subject.get().list().unwrap().is_empty());
    }
}
