//! The journal on a real disk: order, cuts at every byte, damage, folding, a full disk.

use super::*;
use std::os::unix::fs::FileExt;

fn keep(records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    records
}

fn last_hundred(mut records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    records.split_off(records.len().saturating_sub(100))
}

fn record(n: u32) -> Vec<u8> {
    format!("record {n}").into_bytes()
}

/// Waits for the thread, so that the file is as it will stay.
async fn all_written(journal: &Journal) {
    journal.append(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn what_was_handed_over_is_found_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, found) = Journal::open(dir.path(), "t", keep).unwrap();
    assert!(found.is_empty());
    journal.note(vec![record(1), record(2)]);
    journal.append(vec![record(3)]).await.unwrap();
    journal.note(vec![record(4)]);
    all_written(&journal).await;
    // As after kill -9: the first thread is still there and does nothing.
    let (_second, found) = Journal::open(dir.path(), "t", keep).unwrap();
    assert_eq!(found, [record(1), record(2), record(3), record(4)]);
    // What is put is there when it is said to be; nobody waits for the disk.
    let other = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(other.path(), "t", keep).unwrap();
    journal.put(vec![record(1)]).await.unwrap();
    let (_second, found) = Journal::open(other.path(), "t", keep).unwrap();
    assert_eq!(found, [record(1)]);
}

#[tokio::test]
async fn each_cut_of_the_file_leaves_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", keep).unwrap();
    journal.append((0..5).map(record).collect()).await.unwrap();
    let size = usize::try_from(journal.size()).unwrap();
    let path = dir.path().join("t.journal");
    let whole = std::fs::read(&path).unwrap();
    let mut seen = 0;
    for cut in 16..=size {
        // What lay behind the cut never reached the disk: zeros, or anything.
        for rest in [0_u8, 0xa5] {
            let mut bytes = whole.clone();
            bytes[cut..].fill(0);
            bytes[cut..size.max(cut + 9).min(whole.len())].fill(rest);
            let other = tempfile::tempdir().unwrap();
            std::fs::write(other.path().join("t.journal"), &bytes).unwrap();
            let (journal, found) = Journal::open(other.path(), "t", keep).unwrap();
            let want: Vec<Vec<u8>> = (0..5).map(record).take(found.len()).collect();
            assert_eq!(found, want, "cut at {cut}");
            assert!(found.len() >= seen, "cut at {cut}");
            if rest == 0 {
                seen = found.len();
            }
            // What is written next stands behind the prefix.
            journal.append(vec![record(9)]).await.unwrap();
            let (_again, more) = Journal::open(other.path(), "t", keep).unwrap();
            assert_eq!(more.last(), Some(&record(9)));
            assert_eq!(more.len(), found.len() + 1);
        }
    }
    assert_eq!(seen, 5);
}

#[tokio::test]
async fn a_flipped_bit_is_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", keep).unwrap();
    journal.append(vec![record(1), record(2)]).await.unwrap();
    let path = dir.path().join("t.journal");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // In the payload of the second one: head, frame, payload, frame, some bytes.
    let at = 16 + 8 + record(1).len() + 8 + 3;
    file.write_all_at(&[0xff], at as u64).unwrap();
    let (_journal, found) = Journal::open(dir.path(), "t", keep).unwrap();
    assert_eq!(found, [record(1)]);
    assert!(dir.path().join("t.torn").exists(), "a copy is kept");
}

#[tokio::test]
async fn it_is_folded_when_it_has_grown() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", last_hundred).unwrap();
    for k in 0..20 {
        let batch = (0..1000).map(|n| format!("{k} {n} {}", "x".repeat(1000)).into_bytes());
        journal.append(batch.collect()).await.unwrap();
    }
    assert!(journal.size() < 2 * FOLD_AT_LEAST, "{}", journal.size());
    let (_journal, found) = Journal::open(dir.path(), "t", last_hundred).unwrap();
    assert_eq!(found.len(), 100);
    assert!(found.last().unwrap().starts_with(b"19 999 "));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.journal");
    std::fs::write(&path, "something else, of a good length").unwrap();
    let refused = Journal::open(dir.path(), "t", keep).unwrap_err();
    assert!(refused.to_string().contains("t.journal"), "{refused}");
    assert!(path.exists());
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test calls itself in another process"
)]
async fn a_full_disk_is_told_and_nothing_is_half_written() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // A limit of file sizes stands in for the full disk: allocation fails at once. In a process
    // of its own, for the limit is the process's, and without its signal, which the shell ignores.
    if std::env::var_os("DLS_JOURNAL_FULL").is_none() {
        let test = "journal::tests::a_full_disk_is_told_and_nothing_is_half_written";
        let status = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env("DLS_JOURNAL_FULL", "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", keep).unwrap();
    journal.append(vec![record(1)]).await.unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, CHUNK, most).unwrap();
    let large = vec![7; usize::try_from(CHUNK).unwrap()];
    assert!(journal.append(vec![record(2), large]).await.is_err());
    // What is small still fits.
    journal.append(vec![record(3)]).await.unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
    let (_journal, found) = Journal::open(dir.path(), "t", keep).unwrap();
    assert_eq!(found, [record(1), record(3)]);
}
