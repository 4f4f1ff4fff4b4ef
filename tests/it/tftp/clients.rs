//! Programs that people have: tftp-hpa, atftp, curl, busybox. Each must get files of every
//! awkward size, byte for byte.

use std::path::Path;
use std::time::Duration;

use dls::tftp::metrics::Ending;
use dls::tftp::room::Progress;
use tokio::process::Command;

use super::{Running, Served, memory, serve};
use crate::support::noise;

/// Runs a client to its end.
async fn run(program: &str, args: &[&str], folder: &Path) -> bool {
    let child = Command::new(program)
        .args(args)
        .current_dir(folder)
        .kill_on_drop(true)
        .output();
    let done = tokio::time::timeout(Duration::from_secs(60), child)
        .await
        .unwrap_or_else(|_| panic!("{program} {args:?} hangs"))
        .unwrap_or_else(|e| panic!("{program}: {e} (tests need tftp-hpa, atftp, curl, busybox)"));
    if !done.status.success() {
        eprintln!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    done.status.success()
}

/// Fetches `name` into `folder/out` with every client; `check` sees each result.
async fn with_every_client(
    server: &Running,
    name: &str,
    mut check: impl FnMut(&str, Option<Vec<u8>>),
) {
    let port = server.address.port().to_string();
    let url = format!("tftp://127.0.0.1:{port}/{name}");
    let cases: Vec<(&str, Vec<&str>)> = vec![
        (
            "tftp",
            vec!["-m", "binary", "127.0.0.1", &port, "-c", "get", name, "out"],
        ),
        (
            "atftp",
            vec!["--get", "-r", name, "-l", "out", "127.0.0.1", &port],
        ),
        (
            "atftp",
            vec![
                "--option",
                "blksize 1428",
                "--option",
                "windowsize 16",
                "--option",
                "tsize 0",
                "--get",
                "-r",
                name,
                "-l",
                "out",
                "127.0.0.1",
                &port,
            ],
        ),
        (
            "atftp",
            vec![
                "--option",
                "blksize 100",
                "--option",
                "windowsize 64",
                "--option",
                "timeout 3",
                "--get",
                "-r",
                name,
                "-l",
                "out",
                "127.0.0.1",
                &port,
            ],
        ),
        ("curl", vec!["-sS", "-o", "out", &url]),
        ("curl", vec!["-sS", "--tftp-no-options", "-o", "out", &url]),
        (
            "curl",
            vec!["-sS", "--tftp-blksize", "1468", "-o", "out", &url],
        ),
        (
            "busybox",
            vec!["tftp", "-g", "-r", name, "-l", "out", "127.0.0.1", &port],
        ),
        (
            "busybox",
            vec![
                "tftp",
                "-b",
                "1432",
                "-g",
                "-r",
                name,
                "-l",
                "out",
                "127.0.0.1",
                &port,
            ],
        ),
    ];
    for (program, args) in cases {
        let folder = tempfile::tempdir().unwrap();
        let good = run(program, &args, folder.path()).await;
        let got = std::fs::read(folder.path().join("out")).ok();
        check(&format!("{program} {args:?}"), got.filter(|_| good));
    }
}

/// RFC 1350 section 2; reliability case 2, through real clients: empty files, sizes that are
/// a multiple of the block.
#[tokio::test]
async fn every_client_gets_every_size() {
    for size in [0, 1, 511, 512, 1428 * 16, 1468 * 3, 70_000] {
        let all = noise(size, size as u64);
        let server = serve(&[("file", memory(&all))]);
        with_every_client(&server, "file", |what, got| {
            // curl takes the truth about an empty file, tsize 0, for an error.
            if size == 0 && what.starts_with("curl") {
                return;
            }
            assert!(got.as_deref() == Some(&all), "{what}, {size} bytes");
        })
        .await;
        let complete = if size == 0 { 7 } else { 9 };
        server.wait_for(Ending::Complete, complete).await;
        let told = server.told("file");
        let sent = told.iter().filter(|p| matches!(p, Progress::Sent { .. }));
        assert_eq!(sent.count() as u64, complete, "{told:?}");
    }
}

/// A missing file is told at once, not by silence (shim asks for optional files).
#[tokio::test]
async fn a_missing_file_is_refused_at_once() {
    let server = serve(&[]);
    let began = std::time::Duration::from_secs(8);
    let all = with_every_client(&server, "revocations_sku.efi", |what, got| {
        assert!(got.is_none_or(|bytes| bytes.is_empty()), "{what}");
    });
    tokio::time::timeout(began, all)
        .await
        .expect("clients waited");
}

/// Reliability case 6: a file past 65,535 blocks, from disk, at the default block size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_past_the_rollover_arrives_whole() {
    let all = noise(40_000_000, 6);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big");
    std::fs::write(&path, &all).unwrap();
    let server = serve(&[("big", Served::Path(path))]);
    let url = format!("tftp://{}/big", server.address);
    assert!(run("curl", &["-sS", "-o", "out", &url], folder.path()).await);
    assert!(std::fs::read(folder.path().join("out")).unwrap() == all);
    let port = server.address.port().to_string();
    let args = [
        "--option",
        "windowsize 32",
        "--option",
        "blksize 512",
        "--get",
        "-r",
        "big",
        "-l",
        "out2",
        "127.0.0.1",
        &port,
    ];
    assert!(run("atftp", &args, folder.path()).await);
    assert!(std::fs::read(folder.path().join("out2")).unwrap() == all);
}

/// Reliability case 9: a file that is replaced or removed while it is sent goes out as it was.
#[tokio::test]
async fn a_file_removed_on_the_way_arrives_whole() {
    let all = noise(3_000_000, 9);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, &all).unwrap();
    let server = serve(&[("image", Served::Path(path.clone()))]);
    let url = format!("tftp://{}/image", server.address);
    let args = ["-sS", "-o", "out", &url];
    let get = run("curl", &args, folder.path());
    let replace = async {
        while server.told("image").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, noise(10, 1)).unwrap();
    };
    let (good, ()) = tokio::join!(get, replace);
    assert!(good && std::fs::read(folder.path().join("out")).unwrap() == all);
}
