//! Import and export, by files that qemu-img makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{InFiles, check, files};
use crate::storage::conformance::Dice;
use crate::storage::{Access, DiskFormat, Imported, SnapshotId, Storage, Volume, VolumeError};

fn qemu_img(arguments: &[&str]) {
    let out = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {out:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw file of 3 MiB and a bit, with holes.
fn sample(folder: &Path) -> (PathBuf, Vec<u8>) {
    let mut content = vec![0; 3 * 1024 * 1024 + 512];
    let mut dice = Dice(3);
    for block in content.chunks_mut(4096) {
        if dice.below(3) == 0 {
            block.fill_with(|| dice.below(256) as u8);
        }
    }
    let path = folder.join("sample.raw");
    std::fs::write(&path, &content).unwrap();
    (path, content)
}

fn import(
    store: &dyn Storage,
    n: u128,
    path: &Path,
    format: DiskFormat,
) -> Result<Imported, VolumeError> {
    let image = Volume::Image(Uuid::from_u128(n));
    store.import(image, path, format, &mut |_| {}, &CancellationToken::new())
}

fn sha256(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(content);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn images_come_in_and_go_out_whole_in_every_format() {
    let subject = InFiles::new();
    let store = subject.get();
    let outside = tempfile::tempdir().unwrap();
    let (raw, content) = sample(outside.path());
    for (n, format) in (0..).zip(DiskFormat::ALL) {
        let path = match format {
            DiskFormat::Raw => raw.clone(),
            _ => {
                let path = outside
                    .path()
                    .join(format!("odd, name.{}", format.as_str()));
                let to = text(&path);
                qemu_img(&["convert", "-O", format.as_str(), text(&raw), to]);
                path
            }
        };
        let imported = import(store, n, &path, *format).unwrap();
        let whole = content.len() as u64;
        // vhdx and vmdk round a disk up.
        assert!(
            (whole..whole + (1 << 20)).contains(&imported.size),
            "{format:?}"
        );
        let mut padded = content.clone();
        padded.resize(usize::try_from(imported.size).unwrap(), 0);
        assert_eq!(imported.sha256, sha256(&padded), "{format:?}");
        assert!(imported.used < whole * 2 / 3, "{format:?} is sparse");
        let image = Volume::Image(Uuid::from_u128(n));
        let disk = store.open(image, Access::Read).unwrap();
        let mut read = vec![0; padded.len()];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == padded, "{format:?}");
    }
    // Out again, from a layer upon a layer.
    let image = Volume::Image(Uuid::from_u128(0));
    let base = SnapshotId::base(Uuid::from_u128(0));
    store.snapshot(&base).unwrap();
    let child = Uuid::from_u128(77);
    store.clone_volume(&base, Volume::Image(child)).unwrap();
    let disk = store.open(Volume::Image(child), Access::Write).unwrap();
    let mut model = content;
    for at in [5, 70_000, 2_000_000] {
        let data = [at as u8; 9000];
        disk.write_at(at, &data, crate::storage::Durability::Volatile)
            .unwrap();
        model[at as usize..][..9000].copy_from_slice(&data);
    }
    store.snapshot(&SnapshotId::base(child)).unwrap();
    disk.discard(0, 1 << 20).unwrap();
    let expected = outside.path().join("expected.raw");
    std::fs::write(&expected, &model).unwrap();
    for format in [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Vhdx] {
        let to = outside.path().join(format!("out.{}", format.as_str()));
        let child = SnapshotId::base(child);
        let cancel = CancellationToken::new();
        let mut last = 0.0;
        store
            .export(&child, &to, format, &mut |p| last = p.done, &cancel)
            .unwrap();
        assert!((last - 1.0_f64).abs() < 1e-9, "{format:?}");
        let name = format.as_str();
        qemu_img(&[
            "compare",
            "-f",
            name,
            "-F",
            "raw",
            text(&to),
            text(&expected),
        ]);
        let again = store.export(&child, &to, format, &mut |_| {}, &cancel);
        assert!(matches!(again, Err(VolumeError::Exists(_))));
    }
    assert!(store.info(image).unwrap().unwrap().used > 0);
    drop(disk);
    check(subject.root.path());
}

#[test]
fn what_is_no_disk_is_refused_in_words_and_leaves_nothing() {
    let subject = InFiles::new();
    let store = subject.get();
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name);
    let (raw, _) = sample(outside.path());
    let secret = at("secret");
    std::fs::write(&secret, [b's'; 65536]).unwrap();

    let whole = at("whole.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&whole)]);
    let bytes = std::fs::read(&whole).unwrap();
    let cut = at("cut.qcow2");
    std::fs::write(&cut, &bytes[..bytes.len() / 3]).unwrap();
    let stump = at("stump.qcow2");
    std::fs::write(&stump, &bytes[..40]).unwrap();
    let backed = at("backed.qcow2");
    let (s, b) = (text(&secret), text(&backed));
    qemu_img(&["create", "-f", "qcow2", "-b", s, "-F", "raw", b]);
    let outer = at("outer.qcow2");
    let option = format!("data_file={},data_file_raw=on", text(&at("data")));
    qemu_img(&["create", "-f", "qcow2", "-o", &option, text(&outer), "1M"]);
    let flat = at("flat.vmdk");
    qemu_img(&[
        "create",
        "-f",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
        text(&flat),
        "1M",
    ]);
    let vhdx = at("x.vhdx");
    qemu_img(&["convert", "-O", "vhdx", text(&raw), text(&vhdx)]);
    let mut bytes = std::fs::read(&vhdx).unwrap();
    bytes[65536..65536 + 4096].fill(0x5a);
    bytes[131_072..131_072 + 4096].fill(0x5a);
    let broken = at("broken.vhdx");
    std::fs::write(&broken, bytes).unwrap();
    let empty = at("empty");
    std::fs::write(&empty, []).unwrap();
    let fifo = at("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();

    let cases = [
        (&cut, DiskFormat::Qcow2, "qcow2"),
        (&stump, DiskFormat::Qcow2, "qcow2"),
        (&backed, DiskFormat::Qcow2, "another file"),
        (&outer, DiskFormat::Qcow2, "another file"),
        (&flat, DiskFormat::Vmdk, "other files"),
        (&raw, DiskFormat::Qcow2, "no qcow2"),
        (&raw, DiskFormat::Vhdx, "no vhdx"),
        (&raw, DiskFormat::Vmdk, "no vmdk"),
        (&broken, DiskFormat::Vhdx, "vhdx"),
        (&empty, DiskFormat::Raw, "empty"),
        (&fifo, DiskFormat::Raw, "no file"),
        (&outside.path().to_owned(), DiskFormat::Raw, "no file"),
        (&at("missing"), DiskFormat::Raw, "can't be opened"),
    ];
    for (path, format, word) in cases {
        let said = import(store, 1, path, format).unwrap_err();
        assert!(
            matches!(&said, VolumeError::BadSource(why) if why.contains(word)),
            "{path:?} {format:?}: {said:?}"
        );
        for folder in ["layers", "staging", "volumes"] {
            assert!(files(subject.root.path(), folder).is_empty(), "{path:?}");
        }
    }
    // A sector that is cut short is padded.
    std::fs::write(at("odd"), [1; 700]).unwrap();
    assert_eq!(
        import(store, 2, &at("odd"), DiskFormat::Raw).unwrap().size,
        1024
    );
}

#[test]
fn an_import_that_is_cancelled_leaves_nothing() {
    let subject = InFiles::new();
    let outside = tempfile::tempdir().unwrap();
    let (raw, _) = sample(outside.path());
    let qcow2 = outside.path().join("x.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&qcow2)]);
    for (path, format) in [(&raw, DiskFormat::Raw), (&qcow2, DiskFormat::Qcow2)] {
        let cancel = CancellationToken::new();
        let image = Volume::Image(Uuid::from_u128(1));
        let done = subject
            .get()
            .import(image, path, format, &mut |_| cancel.cancel(), &cancel);
        assert!(matches!(done, Err(VolumeError::Cancelled)), "{done:?}");
        assert!(files(subject.root.path(), "layers").is_empty());
        assert!(subject.get().info(image).unwrap().is_none());
    }
}
