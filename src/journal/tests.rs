//! The journal on a real disk: order, cuts at every byte, damage, folding, a full disk.

use super::*;
use std::os::unix::fs::FileExt;

fn keep(records: &[&[u8]]) -> Vec<Vec<u8>> {
    records.iter().map(|r| r.to_vec()).collect()
}

fn last_hundred(records: &[&[u8]]) -> Vec<Vec<u8>> {
    keep(&records[records.len().saturating_sub(100)..])
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
    shrinks(&journal).await;
    let (_journal, found) = Journal::open(dir.path(), "t", last_hundred).unwrap();
    assert_eq!(found.len(), 100);
    assert!(found.iter().any(|r| r.starts_with(b"19 999 ")));
}

/// Writes until what was folded has taken the file's place.
async fn shrinks(journal: &Journal) -> u32 {
    for n in 0..10_000 {
        if journal.size() < FOLD_AT_LEAST / 2 {
            return n;
        }
        journal
            .append(vec![format!("later {n}").into_bytes()])
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("never folded, {} bytes", journal.size());
}

/// None but those of the test's own kind that matter, and it takes its time.
fn slowly(records: &[&[u8]]) -> Vec<Vec<u8>> {
    if records.len() > 1000 {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let counted = records.iter().filter(|r| !r.starts_with(b"x"));
    counted.map(|r| r.to_vec()).collect()
}

#[tokio::test]
async fn who_writes_while_it_is_folded_does_not_wait_and_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", slowly).unwrap();
    let filler = || vec![vec![b'x'; 1000]; 1000];
    let large = || journal.size() >= FOLD_AT_LEAST;
    while !large() {
        journal.put(filler()).await.unwrap();
    }
    // It is under way now, and takes half a second: all of these are written before it ends.
    let mut count = 0;
    while large() {
        journal.append(vec![record(count)]).await.unwrap();
        count += 1;
        // More than the folding leaves to the writer, so that it follows.
        if count % 10 == 0 {
            journal.put(filler()[..10].to_vec()).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(count > 20, "{count} were written beside it");
    journal.append(vec![record(count)]).await.unwrap();
    // As after kill -9, and with what such a run may leave.
    std::fs::write(dir.path().join("t.folding"), b"half").unwrap();
    let (_journal, found) = Journal::open(dir.path(), "t", slowly).unwrap();
    assert_eq!(found, (0..=count).map(record).collect::<Vec<_>>());
    assert!(!dir.path().join("t.folding").exists());
}

#[tokio::test]
async fn a_folding_that_fails_leaves_the_journal_as_it_was() {
    fn breaks(records: &[&[u8]]) -> Vec<Vec<u8>> {
        assert!(records.len() < 1000, "a bug in what folds");
        keep(records)
    }
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), "t", breaks).unwrap();
    for _ in 0..12 {
        journal.put(vec![vec![b'x'; 1000]; 1000]).await.unwrap();
    }
    for n in 0..50 {
        journal.append(vec![record(n)]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let (_journal, found) = Journal::open(dir.path(), "t", keep).unwrap();
    assert_eq!(found.len(), 12_050);
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
