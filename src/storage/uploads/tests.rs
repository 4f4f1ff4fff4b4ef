//! Uploads over restarts, between holders, and with holes.

use super::*;
use crate::model::{BootMethod, ImageFormat, ImageKind, PhoneHome};

fn image(name: &str) -> Image {
    Image {
        id: Uuid::new_v4(),
        name: name.into(),
        description: None,
        os_type: None,
        size_bytes: 0,
        format: ImageFormat::Raw,
        kind: ImageKind::Disk,
        boot_method: BootMethod::San,
        sha256: None,
        source_format: None,
        path: String::new(),
        zfs_dataset: None,
        cmdline: String::new(),
        phone_home: PhoneHome::Auto,
        tags: None,
        is_template: false,
        parent_image_id: None,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        files: Vec::new(),
    }
}

fn claim(uploads: &Uploads, name: &str) -> Held {
    let new = || Some(Upload::new(image(name), Timestamp::UNIX_EPOCH));
    let claimed = uploads.claim(name, Hold::Receiving, new).unwrap();
    claimed.unwrap().unwrap()
}

#[test]
fn what_came_before_a_restart_is_there_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    let mut held = claim(&uploads, "a");
    held.change(|upload| upload.total = Some(30_000)).unwrap();
    let bytes: Vec<u8> = (0..20_000).map(|n| (n % 251) as u8).collect();
    held.append(&bytes).unwrap();
    // The process is killed: nothing is synced, nothing is dropped.
    std::mem::forget(held);
    let uploads = Uploads::open(dir.path()).unwrap();
    let standing = uploads.get("a").unwrap();
    assert_eq!((standing.offset, standing.hold), (20_000, None));
    assert!(!standing.is_complete());
    let mut held = claim(&uploads, "a");
    held.append(&[0; 10_000]).unwrap();
    held.sync().unwrap();
    assert!(uploads.get("a").unwrap().is_complete());
    let back = std::fs::read(held.source()).unwrap();
    assert_eq!(back.len(), 30_000);
    assert!(back.starts_with(&bytes) && back[20_000..].iter().all(|b| *b == 0));
    held.discard();
    assert!(uploads.get("a").is_none());
    assert_eq!(
        std::fs::read_dir(dir.path().join(UPLOADS)).unwrap().count(),
        0
    );
}

#[test]
fn after_a_power_cut_only_what_was_synced_counts() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    let mut held = claim(&uploads, "a");
    held.append(&[1; 5_000]).unwrap();
    held.sync().unwrap();
    held.append(&[2; 5_000]).unwrap();
    let id = held.upload().image.id;
    std::mem::forget(held);
    let record = dir.path().join(UPLOADS).join(id.to_string()).join("record");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(&machine_run(), "another")).unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    let held = claim(&uploads, "a");
    assert_eq!(held.offset(), 5_000);
    assert_eq!(std::fs::read(held.source()).unwrap(), [1; 5_000]);
}

#[test]
fn one_has_it_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    let held = claim(&uploads, "a");
    let other = uploads.claim("a", Hold::Receiving, || None).unwrap();
    assert_eq!(other.unwrap_err().hold, Some(Hold::Receiving));
    let another = claim(&uploads, "b");
    drop(held);
    let again = claim(&uploads, "a");
    // A late goodbye of one that is gone does not touch the new one.
    again.discard();
    let new = claim(&uploads, "a");
    assert!(uploads.get("a").unwrap().hold.is_some());
    drop((new, another));
    assert_eq!(uploads.list().len(), 2);
    assert!(
        uploads
            .claim("none", Hold::Importing, || None)
            .unwrap()
            .unwrap()
            .is_none()
    );
}

#[test]
fn beginnings_and_litter_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(UPLOADS);
    for litter in [Uuid::new_v4().to_string(), "x".into()] {
        std::fs::create_dir_all(folder.join(&litter)).unwrap();
        std::fs::write(folder.join(&litter).join("data"), "x").unwrap();
    }
    let uploads = Uploads::open(dir.path()).unwrap();
    assert!(uploads.list().is_empty());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn zeroes_take_no_room() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    let mut held = claim(&uploads, "a");
    let mut bytes = vec![0_u8; 8 * 1024 * 1024];
    bytes[5_000_000] = 7;
    held.append(&bytes).unwrap();
    held.append(&[3]).unwrap();
    held.sync().unwrap();
    bytes.push(3);
    assert!(std::fs::read(held.source()).unwrap() == bytes);
    let stored = std::fs::metadata(held.source()).unwrap().blocks() * 512;
    assert!(stored < 1024 * 1024, "{stored}");
    held.rewind().unwrap();
    assert!(std::fs::read(held.source()).unwrap().is_empty());
}
