//! Would an image boot? Asked at its import and later, by the API and by the command line.

use std::sync::Arc;

use dls::model::ImageCheck;
use dls::storage::Volume;
use serde_json::{Value, json};

use super::cli::{json as cli_json, run, said};
use super::disks::{disk, import};
use super::world::{World, answer, part};
use crate::image_check::fixture::{Debian, good_disk};

/// The words of what was found that is not good.
fn graves(found: &Value) -> Vec<&str> {
    let all = found["findings"].as_array().unwrap();
    let grave = all.iter().filter(|one| one["severity"] != "good");
    grave.map(|one| one["finding"].as_str().unwrap()).collect()
}

async fn in_catalog(world: &World, image: &Value) -> Option<ImageCheck> {
    let id = image["id"].as_str().unwrap().parse().unwrap();
    world.catalog.get_image_check(id).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_checked_and_the_result_is_kept() {
    let world = World::new().await;
    let told = import(&world, "good", "?format=raw", &good_disk()).await;
    assert_eq!(told["state"], "done", "{told}");
    let (_, image) = world.get("/api/v1/images/good").await;
    assert_eq!(image["os_type"], "debian-12");
    assert!(
        world
            .cache
            .get()
            .image_by_name("good")
            .unwrap()
            .os_type
            .is_some()
    );
    let (status, found) = world.get("/api/v1/images/good/check").await;
    assert_eq!(
        (status, &found["verdict"]),
        (200, &json!("bootable")),
        "{found}"
    );
    assert_eq!(graves(&found), [""; 0]);
    for (fact, want) in [
        ("bios", true),
        ("uefi", true),
        ("iscsi", true),
        ("nbd", true),
    ] {
        assert_eq!(found[fact], want, "{fact}");
    }
    assert_eq!(
        in_catalog(&world, &image).await.unwrap().os_type.as_deref(),
        Some("debian-12")
    );

    // What the admin says of it stays, and a disk that would not boot is imported all the same.
    let lame = Debian::good().lacking(&["iscsi_tcp"]).disk();
    let told = import(&world, "lame", "?format=raw&os_type=mine", &lame).await;
    assert_eq!(told["state"], "done", "{told}");
    let (_, image) = world.get("/api/v1/images/lame").await;
    assert_eq!(image["os_type"], "mine");
    let (_, found) = world.get("/api/v1/images/lame/check").await;
    assert_eq!(found["verdict"], "not_bootable");
    assert_eq!(graves(&found), ["no_iscsi"]);
    let way_out = found["findings"][0]["way_out"].as_str().unwrap();
    assert!(way_out.contains("update-initramfs -u"), "{way_out}");

    // With its image goes what was found.
    let (status, _) = world.ask("DELETE", "/api/v1/images/lame", None).await;
    assert_eq!(status, 204);
    assert_eq!(in_catalog(&world, &image).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_would_not_boot_is_refused_where_that_is_asked_for() {
    let world = World::new().await;
    let lame = Debian::good().lacking(&["iscsi_tcp"]).disk();
    let told = import(&world, "lame", "?format=raw&require_bootable=true", &lame).await;
    assert_eq!(told["state"], "failed", "{told}");
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("the initramfs has no iSCSI"), "{error}");
    assert_eq!(world.get("/api/v1/images/lame").await.0, 404);
    assert!(world.disks.list().unwrap().is_empty());
    let told = import(
        &world,
        "good",
        "?format=raw&require_bootable=true",
        &good_disk(),
    )
    .await;
    assert_eq!(told["state"], "done", "{told}");
    let request = world.request("PUT", "/api/v1/images/x/content?require_bootable=perhaps");
    let (status, _) = answer(request.body("x").send().await.unwrap()).await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_looks_at_what_is_there_now() {
    let world = World::new().await;
    let mut bytes = good_disk().to_vec();
    let told = import(&world, "d", "?format=raw", &bytes).await;
    let volume = Volume::Image(told["id"].as_str().unwrap().parse().unwrap());
    // Somebody writes over the boot loader.
    bytes[..440].fill(0);
    let opened = world
        .disks
        .open(volume, dls::storage::Access::Write)
        .unwrap();
    let written = opened.write_at(0, &bytes[..512], dls::storage::Durability::Volatile);
    written.unwrap();
    drop(opened);
    let (_, found) = world.get("/api/v1/images/d/check").await;
    assert_eq!(graves(&found), [""; 0], "the last one is kept");
    let (status, found) = world.ask("POST", "/api/v1/images/d/check", None).await;
    assert_eq!(
        (status, graves(&found)),
        (200, vec!["no_bios_loader"]),
        "{found}"
    );
    assert_eq!(world.get("/api/v1/images/d/check").await.1, found);
    // How it is booted decides what is grave.
    let change = json!({"boot_method": "nbd"});
    let (status, _) = world.ask("PATCH", "/api/v1/images/d", Some(change)).await;
    assert_eq!(status, 200);
    let (_, found) = world.ask("POST", "/api/v1/images/d/check", None).await;
    assert_eq!(
        (graves(&found), &found["verdict"]),
        (vec!["no_kernel_files"], &json!("unsure"))
    );
    // Its own kernel and initrd are looked at when they come.
    let initrd = Arc::new(Debian::good().packed());
    let form = reqwest::multipart::Form::new()
        .part("kernel", part(b"the kernel"))
        .part("initrd", part(&initrd));
    let request = world
        .request("POST", "/api/v1/images/d/files")
        .multipart(form);
    let (status, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 201, "{body}");
    let (_, found) = world.get("/api/v1/images/d/check").await;
    assert_eq!(
        (graves(&found), &found["verdict"]),
        (vec![], &json!("bootable")),
        "{found}"
    );

    let kernel = world.add_image("kernel").await;
    assert!(in_catalog(&world, &kernel).await.is_none());
    assert_eq!(world.get("/api/v1/images/kernel/check").await.0, 404);
    assert_eq!(
        world
            .ask("POST", "/api/v1/images/kernel/check", None)
            .await
            .0,
        409
    );
    assert_eq!(
        world
            .ask("POST", "/api/v1/images/nowhere/check", None)
            .await
            .0,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_command_line() {
    let world = World::new().await;
    let good = world.file("good", &good_disk());
    let args = [
        "image",
        "import",
        "good",
        good.to_str().unwrap(),
        "--require-bootable",
    ];
    let output = run(&world, &args).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("check        it boots"),
        "{text}"
    );
    let text = said(&world, &["image", "check", "good"]).await;
    for words in [
        "debian-12",
        "BIOS loader       yes",
        "good   the initramfs can do iSCSI",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let found = cli_json(&world, &["image", "check", "good", "--last"]).await;
    assert_eq!(found["verdict"], "bootable");

    let bare = world.file("bare", &disk(1 << 20));
    let args = [
        "image",
        "import",
        "bare",
        bare.to_str().unwrap(),
        "--require-bootable",
    ];
    let output = run(&world, &args).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(4) && error.contains("no partition table"),
        "{error}"
    );
    let args = ["image", "import", "bare", bare.to_str().unwrap()];
    assert!(run(&world, &args).await.status.success());
    let output = run(&world, &["image", "check", "bare"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("stops  the disk has no partition table\n       -> import the whole disk"),
        "{text}"
    );
}
