//! Disks by the real `dls` binary: in, out, cloned, interrupted and gone on with.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::cli::{dls, failed, json, run, said};
use super::disks::{Small, disk, garbage, qemu_img, sum, unclosed};
use super::world::World;

/// Output and standard error of a command that must succeed.
async fn told(world: &World, args: &[&str]) -> (String, String) {
    let output = run(world, args).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{args:?}: {err}");
    (out, err)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_by_command_line() {
    let world = World::new().await;
    let bytes = disk(3 << 20);
    let raw = world.file("disk.raw", &bytes);
    let raw = raw.to_str().unwrap();
    let qcow2 = world.file("disk.img", b"");
    let qcow2 = qcow2.to_str().unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    let kernel = world.file("vmlinuz", b"kernel");
    let kernel = kernel.to_str().unwrap();

    let import = [
        "image",
        "import",
        "base",
        qcow2,
        "--os-type",
        "debian-12",
        "--template",
    ];
    let (out, err) = told(&world, &import).await;
    assert!(
        err.contains("begins like qcow2") && err.contains("sending: 100 %"),
        "{err}"
    );
    assert!(
        !err.contains('\r') && !err.contains('\u{1b}'),
        "plain lines: {err:?}"
    );
    assert!(
        out.contains(&sum(&bytes)) && out.contains("source       qcow2"),
        "{out}"
    );
    let import = [
        "image",
        "import",
        "own",
        raw,
        "--format",
        "raw",
        "--boot-method",
        "nbd",
        "--cmdline",
        "quiet",
        "--kernel",
        kernel,
        "--initrd",
        kernel,
        "--sha256",
        &sum(&bytes),
    ];
    let (out, _) = told(&world, &import).await;
    assert!(out.contains("nbd") && out.contains("initrd0  6 B"), "{out}");
    let text = said(
        &world,
        &["image", "clone", "base", "child", "--description", "x"],
    )
    .await;
    assert!(text.contains("parent"), "{text}");
    let text = said(&world, &["image", "show", "base"]).await;
    assert!(
        text.contains("children     child") && text.contains("used"),
        "{text}"
    );
    let text = said(&world, &["image", "list", "--templates"]).await;
    assert!(text.contains("base") && !text.contains("child"), "{text}");

    for format in ["raw", "qcow2", "vhdx"] {
        let file = world.file("x", b"").with_file_name(format!("out.{format}"));
        let file = file.to_str().unwrap();
        let (out, _) = told(
            &world,
            &["image", "export", "child", file, "--format", format],
        )
        .await;
        assert!(out.contains("child written to"), "{out}");
        qemu_img(&["compare", "-f", "raw", "-F", format, raw, file]);
        let (code, text) = failed(&world, &["image", "export", "child", file]).await;
        assert!(code == 1 && text.contains("is there already"), "{text}");
    }

    let (code, text) = failed(&world, &["image", "delete", "base"]).await;
    assert!(
        code == 4 && text.contains("image child was made from it"),
        "{text}"
    );
    let set = json(
        &world,
        &[
            "image",
            "set",
            "child",
            "--boot-method",
            "iscsi",
            "--template",
            "true",
        ],
    )
    .await;
    assert_eq!(
        (&set["boot_method"], &set["is_template"]),
        (&"iscsi".into(), &true.into())
    );
    let text = said(&world, &["image", "orphans"]).await;
    assert_eq!(text.lines().count(), 1, "{text}");
    said(&world, &["image", "orphans", "--remove"]).await;
    for name in ["child", "base", "own"] {
        said(&world, &["image", "rm", name]).await;
    }
    assert!(world.stored().is_empty() && world.disks.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_imported_is_told_in_a_sentence() {
    let world = World::new().await;
    let bytes = disk(1 << 20);
    let raw = world.file("raw", &bytes);
    let raw = raw.to_str().unwrap();
    let empty = world.file("empty", b"");
    let qcow2 = world.file("q", b"");
    let qcow2 = qcow2.to_str().unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    let whole = std::fs::read(qcow2).unwrap();
    std::fs::write(qcow2, &whole[..whole.len() / 2]).unwrap();
    let vhdx = world.file("v", b"");
    let vhdx = vhdx.to_str().unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "vhdx", raw, vhdx]);
    let bad_log = unclosed(std::fs::read(vhdx).unwrap(), &garbage());
    std::fs::write(vhdx, bad_log).unwrap();
    let zeroes = "0".repeat(64);
    for (args, code, sentence) in [
        (vec!["x", "/nowhere/disk"], 1, "can't read /nowhere/disk"),
        (vec!["x", "/dev/null"], 1, "is no file"),
        (vec!["x", empty.to_str().unwrap()], 1, "is empty"),
        (vec!["a/b", raw], 4, "letters, digits"),
        (vec!["../x", raw], 4, "letters, digits"),
        (vec!["x", raw, "--format", "qcow2"], 4, "begins like raw"),
        (vec!["x", qcow2], 4, "the import came to nothing"),
        (vec!["x", vhdx], 4, "its log is damaged"),
        (vec!["x", raw, "--sha256", &zeroes], 4, "has the SHA-256"),
        (vec!["x", raw, "--cmdline", "a;b"], 4, "cmdline"),
    ] {
        let mut all = vec!["image", "import"];
        all.extend(args);
        let (got, text) = failed(&world, &all).await;
        assert_eq!(got, code, "{all:?}: {text}");
        assert!(text.contains(sentence), "{all:?}: {text}");
        let last = text.lines().rev().find(|line| line.starts_with("dls: "));
        assert!(last.is_some(), "{text}");
    }
    assert!(world.disks.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_import_goes_on_by_itself() {
    let world = World::new().await;
    // What an earlier try has left.
    let bytes = disk(2 << 20);
    let raw = world.file("raw", &bytes);
    let raw = raw.to_str().unwrap();
    let request = world
        .request("PUT", "/api/v1/images/half/content?format=raw")
        .header("content-range", format!("bytes 0-999999/{}", bytes.len()))
        .body(bytes[..1_000_000].to_vec());
    assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    let (out, err) = told(&world, &["image", "import", "half", raw]).await;
    assert!(
        err.contains("going on with an earlier upload: 976.6 KiB of 2.0 MiB"),
        "{err}"
    );
    assert!(out.contains(&sum(&bytes)), "{out}");
    // Another file of the same length under the same name is noticed at the end.
    let request = world
        .request("PUT", "/api/v1/images/other/content?format=raw")
        .header("content-range", format!("bytes 0-999999/{}", bytes.len()))
        .body(vec![7; 1_000_000]);
    assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    let (code, text) = failed(&world, &["image", "import", "other", raw]).await;
    assert!(code == 4 && text.contains("SHA-256"), "{text}");
    // Ctrl-C, in the middle of a large one.
    let large = world.file("large", b"");
    std::fs::File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(512 << 20)
        .unwrap();
    let large = large.to_str().unwrap();
    let import = ["image", "import", "large", large];
    let text = interrupted(&world, &import, |line| line.contains("sending: 10 %")).await;
    assert!(text.contains("the same command goes on with it"), "{text}");
    // Ctrl-C again, when the server has everything: it goes on by itself.
    let text = interrupted(&world, &import, |line| {
        line.contains('%') && !line.contains("sending")
    })
    .await;
    assert!(text.contains("going on with an earlier upload"), "{text}");
    assert!(text.contains("finishes the import by itself"), "{text}");
    let mut patience = 600;
    while !dls(&world)
        .args(["image", "show", "large"])
        .output()
        .await
        .unwrap()
        .status
        .success()
    {
        patience -= 1;
        assert!(patience > 0, "the image does not come");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        json(&world, &["image", "show", "large"]).await["size_bytes"],
        512 << 20
    );
}

/// Runs a command and sends it Ctrl-C at the first line that fits: what it said.
async fn interrupted(world: &World, arguments: &[&str], at: impl Fn(&str) -> bool) -> String {
    let mut child = dls(world)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut text, mut sent) = (String::new(), false);
    while let Some(line) = lines.next_line().await.unwrap() {
        text.push_str(&line);
        if !sent && at(&line) {
            let pid = i32::try_from(child.id().unwrap()).unwrap();
            kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
            sent = true;
        }
    }
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(1), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_without_space_says_so_and_the_same_command_goes_on() {
    let world = World::new().await;
    let bytes: Vec<u8> = disk(6 << 20).iter().map(|b| b | 1).collect();
    let raw = world.file("raw", &bytes);
    let raw = raw.to_str().unwrap();
    let layers = Small::over(world.storage().join("disks/layers"), "2M");
    let import = ["image", "import", "d", raw];
    let (code, text) = failed(&world, &import).await;
    assert_ne!(code, 0);
    assert!(
        text.contains("no space is left in the image store"),
        "{text}"
    );
    assert!(layers.is_empty() && world.disks.list().unwrap().is_empty());
    layers.grow("16M");
    let (out, err) = told(&world, &import).await;
    assert!(
        err.contains("going on with an earlier upload: 6.0 MiB of 6.0 MiB are there"),
        "{err}"
    );
    assert!(out.contains(&sum(&bytes)), "{out}");
}
