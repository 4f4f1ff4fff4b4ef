//! Imports of files that lie on the server.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::cli::{failed, run};
use super::disks::{disk, qemu_img, sum};
use super::world::{World, blamed};

/// What the command line answers; how far it is goes to standard error.
async fn imported(world: &World, args: &[&str]) -> Value {
    let mut all = vec!["--json", "image", "import"];
    all.extend_from_slice(args);
    let output = run(world, &all).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_server_is_imported_by_its_path() {
    let world = World::new().await;
    let outside = world.file("outside.raw", &disk(1 << 20));
    let folder = outside.with_file_name("import");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let bytes = disk(3 << 20);
    let raw = folder.join("sub/disk.raw");
    std::fs::write(&raw, &bytes).unwrap();
    let qcow2 = folder.join("disk.qcow2");
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", from, to]);

    let here = ["a", "--on-server", "sub/disk.raw", "--os-type", "bare"];
    let made = imported(&world, &here).await;
    assert_eq!(made["sha256"], sum(&bytes).as_str(), "{made}");
    assert_eq!(
        (&made["os_type"], &made["source_format"]),
        (&json!("bare"), &json!("raw"))
    );
    // By its whole path, through qemu-img, with a sum that is compared.
    let wanted = sum(&std::fs::read(&qcow2).unwrap());
    let here = ["b", "--on-server", to, "--sha256", &wanted];
    let made = imported(&world, &here).await;
    assert_eq!(made["sha256"], sum(&bytes).as_str(), "{made}");
    assert_eq!(made["source_format"], "qcow2");
    assert_eq!(std::fs::read(&raw).unwrap(), bytes, "it is left as it is");
    assert!(qcow2.exists());

    let other = sum(b"another file");
    let here = [
        "image",
        "import",
        "c",
        "--on-server",
        "sub/disk.raw",
        "--sha256",
        &other,
    ];
    let (_, text) = failed(&world, &here).await;
    assert!(text.contains("SHA-256"), "{text}");
    let (status, body) = world.get("/api/v1/images/c").await;
    assert_eq!(status, 404, "{body}");

    symlink(&outside, folder.join("link.raw")).unwrap();
    symlink(folder.join("sub"), folder.join("through")).unwrap();
    for path in [
        "../outside.raw",
        outside.to_str().unwrap(),
        "link.raw",
        "through/disk.raw",
        "sub",
        "none.raw",
        "/etc/passwd",
    ] {
        let body = json!({"name": "d", "path": path});
        let (status, answer) = world.ask("POST", "/api/v1/imports", Some(body)).await;
        assert_eq!(status, 400, "{path}: {answer}");
        assert_eq!(blamed(&answer), ["path"], "{path}");
    }
    for (body, field) in [
        (json!({"name": "d"}), "path"),
        (json!({"name": "d", "path": 7}), "path"),
        (
            json!({"name": "d", "path": "sub/disk.raw", "format": "iso"}),
            "format",
        ),
        (json!({"name": "", "path": "sub/disk.raw"}), "name"),
        (
            json!({"name": "d", "path": "sub/disk.raw", "color": "red"}),
            "color",
        ),
    ] {
        let (status, answer) = world.ask("POST", "/api/v1/imports", Some(body)).await;
        assert_eq!(
            (status, blamed(&answer)),
            (400, vec![field.to_owned()]),
            "{answer}"
        );
    }
    let (_, uploads) = world.get("/api/v1/uploads").await;
    assert_eq!(
        uploads["uploads"],
        json!([]),
        "nothing is left of what was refused"
    );
    let body = json!({"name": "a", "path": "sub/disk.raw"});
    let (status, answer) = world.ask("POST", "/api/v1/imports", Some(body)).await;
    assert_eq!(status, 409, "{answer}");
}
