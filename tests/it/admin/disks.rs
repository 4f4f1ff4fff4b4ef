//! Disks over the API: in by pieces and by formats, out again, cloned, refused, removed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dls::storage::{SnapshotId, Volume};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::world::{World, answer, blamed, part};
use crate::support;

/// A disk with data, zeroes in between and at its end; a multiple of 512 bytes.
pub(super) fn disk(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size as u64)
        .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect();
    bytes[size / 4..size / 2].fill(0);
    bytes[size - size / 8..].fill(0);
    bytes
}

pub(super) fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// A vhdx as it is if it was not closed: both headers refer to a log, with right sums.
pub(super) fn unclosed(mut vhdx: Vec<u8>, log: &[u8]) -> Vec<u8> {
    for at in [64 << 10, 128 << 10] {
        let header = &mut vhdx[at..at + 4096];
        assert_eq!(&header[..4], b"head");
        header[48..64].fill(0x11);
        header[4..8].fill(0);
        let sum = crc32c::crc32c(header);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    let place = vhdx[(64 << 10) + 72..][..8].try_into().unwrap();
    let place = usize::try_from(u64::from_le_bytes(place)).unwrap();
    vhdx[place..place + log.len()].copy_from_slice(log);
    vhdx
}

/// Entries of a log of which nothing is right but their beginnings.
pub(super) fn garbage() -> Vec<u8> {
    let mut log = vec![0xa5; 64 << 10];
    for entry in log.chunks_mut(4096) {
        entry[..4].copy_from_slice(b"loge");
        entry[8..12].copy_from_slice(&4096_u32.to_le_bytes());
        entry[32..48].fill(0x11);
    }
    log
}

/// One that is right, and says nothing.
fn entry() -> Vec<u8> {
    let mut entry = garbage()[..4096].to_vec();
    entry[4..8].fill(0);
    let sum = crc32c::crc32c(&entry);
    entry[4..8].copy_from_slice(&sum.to_le_bytes());
    entry
}

/// A small file system in memory in place of a folder; gone when dropped.
pub(super) struct Small(PathBuf);

impl Small {
    pub(super) fn over(folder: PathBuf, size: &str) -> Self {
        let small = Self(folder);
        small.mount(&format!("size={size}"), &["-t", "tmpfs", "dls-test"]);
        small
    }

    fn mount(&self, options: &str, more: &[&str]) {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-o", options]).args(more).arg(&self.0);
        assert!(mount.status().unwrap().success(), "mounting needs root");
    }

    pub(super) fn grow(&self, size: &str) {
        self.mount(&format!("remount,size={size}"), &[]);
    }

    pub(super) fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sends a piece of a file.
async fn put(
    world: &World,
    name: &str,
    query: &str,
    range: Option<&str>,
    bytes: &[u8],
) -> (u16, HeaderMap, Value) {
    let path = format!("/api/v1/images/{name}/content{query}");
    let mut request = world.request("PUT", &path).body(bytes.to_vec());
    if let Some(range) = range {
        request = request.header("content-range", range);
    }
    let response = request.send().await.unwrap();
    let headers = response.headers().clone();
    let (status, body) = answer(response).await;
    (status, headers, body)
}

/// Waits for an import; what is told of it at its end.
async fn ended(world: &World, location: &str) -> Value {
    for _ in 0..3000 {
        let (status, told) = world.get(location).await;
        assert_eq!(status, 200, "{told}");
        if told["ended"] != Value::Null {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("an import does not end");
}

/// Uploads a file whole and waits for what becomes of it.
pub(super) async fn import(world: &World, name: &str, query: &str, bytes: &[u8]) -> Value {
    let (status, headers, body) = put(world, name, query, None, bytes).await;
    assert_eq!(status, 202, "{body}");
    ended(world, headers["location"].to_str().unwrap()).await
}

/// Imports a small raw disk.
async fn add(world: &World, name: &str) -> Value {
    let told = import(world, name, "", &disk(1 << 20)).await;
    assert_eq!(told["state"], "done", "{told}");
    world.get(&format!("/api/v1/images/{name}")).await.1
}

/// Until nothing is stored: no disk, no upload, no intention.
async fn nothing_is_left(world: &World) {
    let left = || -> Vec<PathBuf> {
        ["uploads", "pending", "staging"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(world.storage().join(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    for _ in 0..500 {
        if left().is_empty() && world.disks.list().unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("left over: {:?} {:?}", left(), world.disks.list());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_in_and_comes_out_as_it_was() {
    let world = World::new().await;
    let bytes = disk(3 << 20);
    let query = format!(
        "?format=raw&sha256={}&os_type=debian-12&description=a%20disk&boot_method=nbd&is_template=true",
        sum(&bytes)
    );
    let told = import(&world, "d", &query, &bytes).await;
    assert_eq!(
        (&told["state"], &told["error"]),
        (&json!("done"), &Value::Null)
    );
    let (_, image) = world.get("/api/v1/images/d").await;
    assert_eq!(image["id"], told["id"]);
    for (field, want) in [
        ("kind", json!("disk")),
        ("format", json!("raw")),
        ("size_bytes", json!(bytes.len())),
        ("sha256", json!(sum(&bytes))),
        ("source_format", json!("raw")),
        ("os_type", json!("debian-12")),
        ("description", json!("a disk")),
        ("boot_method", json!("nbd")),
        ("is_template", json!(true)),
    ] {
        assert_eq!(image[field], want, "{field}");
    }
    assert!(world.cache.get().image_by_name("d").is_some());
    let id: Uuid = image["id"].as_str().unwrap().parse().unwrap();
    let info = world.disks.info(Volume::Image(id)).unwrap().unwrap();
    assert_eq!(info.snapshots, [SnapshotId::base(id).name]);
    assert_eq!(image["path"], info.path);

    let content = |range: Option<&'static str>, method: &'static str| {
        let request = world.request(method, "/api/v1/images/d/content");
        let request = match range {
            Some(range) => request.header("range", range),
            None => request,
        };
        async move {
            let response = request.send().await.unwrap();
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            (status, headers, response.bytes().await.unwrap())
        }
    };
    let (status, headers, body) = content(None, "GET").await;
    assert_eq!(status, 200);
    assert_eq!(headers["etag"], format!("\"{}\"", sum(&bytes)));
    assert_eq!(headers["content-length"], bytes.len().to_string());
    assert!(body == bytes);
    let (status, headers, body) = content(None, "HEAD").await;
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(headers["content-length"], bytes.len().to_string());
    for (range, want) in [
        ("bytes=0-0", 0..1),
        ("bytes=700000-900000", 700_000..900_001),
        ("bytes=-10", bytes.len() - 10..bytes.len()),
    ] {
        let (status, headers, body) = content(Some(range), "GET").await;
        assert_eq!(status, 206, "{range}");
        assert!(body == bytes[want.clone()], "{range}");
        let said = format!("bytes {}-{}/{}", want.start, want.end - 1, bytes.len());
        assert_eq!(headers["content-range"], said);
    }
    let (status, headers, _) = content(Some("bytes=99999999-"), "GET").await;
    assert_eq!(status, 416);
    assert_eq!(headers["content-range"], format!("bytes */{}", bytes.len()));
    let known = world
        .request("GET", "/api/v1/images/d/content")
        .header("if-none-match", format!("\"{}\"", sum(&bytes)));
    assert_eq!(known.send().await.unwrap().status().as_u16(), 304);
    // It is there: another one by that name is refused before anything is sent.
    let (status, _, body) = put(&world, "d", "", None, &bytes).await;
    assert_eq!((status, blamed(&body)), (409, vec!["name".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_go_on_where_the_last_one_ended() {
    let world = World::new().await;
    let bytes = disk(1 << 20);
    let total = bytes.len();
    let (status, _, _) = put(
        &world,
        "p",
        "",
        Some(&format!("bytes 5-9/{total}")),
        &bytes[5..10],
    )
    .await;
    assert_eq!(status, 409, "the first piece begins at 0");
    let range = format!("bytes 0-299999/{total}");
    let (status, headers, body) = put(&world, "p", "", Some(&range), &bytes[..300_000]).await;
    assert_eq!((status, &body["offset"]), (200, &json!(300_000)));
    assert_eq!(headers["upload-offset"], "300000");
    let head = world
        .request("HEAD", "/api/v1/images/p/content")
        .send()
        .await
        .unwrap();
    assert_eq!(head.status().as_u16(), 200);
    assert_eq!(head.headers()["upload-offset"], "300000");
    assert_eq!(head.headers()["upload-length"], total.to_string());
    for (range, piece) in [
        (format!("bytes 0-9/{total}"), &bytes[..10]),
        (
            format!("bytes 300001-300009/{total}"),
            &bytes[300_001..300_010],
        ),
        (format!("bytes */{total}"), &bytes[..0]),
    ] {
        let (status, headers, body) = put(&world, "p", "", Some(&range), piece).await;
        assert_eq!(status, 409, "{range} {body}");
        assert_eq!(headers["upload-offset"], "300000");
        assert!(body["error"].as_str().unwrap().contains("300000"), "{body}");
    }
    let (status, _, body) = put(
        &world,
        "p",
        "",
        Some("bytes 300000-300009/400000"),
        &bytes[..10],
    )
    .await;
    assert!(
        status == 409 && body["error"].as_str().unwrap().contains("another file"),
        "{body}"
    );
    assert_eq!(
        world.get("/api/v1/images/p").await.0,
        404,
        "no row before it is whole"
    );
    let (_, list) = world.get("/api/v1/uploads").await;
    assert_eq!(
        (&list["uploads"][0]["name"], &list["uploads"][0]["offset"]),
        (&json!("p"), &json!(300_000))
    );
    let range = format!("bytes 300000-{}/{total}", total - 1);
    let (status, headers, _) = put(&world, "p", "", Some(&range), &bytes[300_000..]).await;
    assert_eq!(status, 202);
    let told = ended(&world, headers["location"].to_str().unwrap()).await;
    assert_eq!(told["state"], "done", "{told}");
    let (_, image) = world.get("/api/v1/images/p").await;
    assert_eq!(image["sha256"], sum(&bytes));
    // One that was begun may be given up.
    put(&world, "q", "", Some("bytes 0-9/100"), &bytes[..10]).await;
    assert_eq!(world.ask("DELETE", "/api/v1/uploads/q", None).await.0, 204);
    assert_eq!(world.ask("DELETE", "/api/v1/uploads/q", None).await.0, 404);
    assert_eq!(world.ask("DELETE", "/api/v1/images/p", None).await.0, 204);
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_goes_in_and_out() {
    let world = World::new().await;
    let bytes = disk(4 << 20);
    let raw = world.file("raw", &bytes);
    let raw = raw.to_str().unwrap();
    for format in ["qcow2", "vhdx", "vmdk"] {
        let file = world.file(format, b"");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            raw,
            file.to_str().unwrap(),
        ]);
        let told = import(&world, format, "", &std::fs::read(&file).unwrap()).await;
        assert_eq!(told["state"], "done", "{format}: {told}");
        let (_, image) = world.get(&format!("/api/v1/images/{format}")).await;
        assert_eq!(image["source_format"], format);
        assert_eq!(
            (&image["sha256"], &image["size_bytes"]),
            (&json!(sum(&bytes)), &json!(bytes.len()))
        );
    }
    for format in ["qcow2", "vhdx", "raw"] {
        let path = format!("/api/v1/images/vmdk/content?format={format}");
        let out = world.request("GET", &path).send().await.unwrap();
        let out = world.file("out", &out.bytes().await.unwrap());
        qemu_img(&[
            "compare",
            "-f",
            "raw",
            "-F",
            format,
            raw,
            out.to_str().unwrap(),
        ]);
    }
    let (status, body) = world.get("/api/v1/images/vmdk/content?format=vmdk").await;
    assert_eq!((status, blamed(&body)), (400, vec!["format".to_owned()]));
    assert_eq!(
        std::fs::read_dir(world.storage().join("staging"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_disk_is_refused_and_leaves_nothing() {
    let world = World::new().await;
    let bytes = disk(2 << 20);
    let raw = world.file("raw", &bytes);
    let raw = raw.to_str().unwrap();
    let secret = world.file("secret", &[0x5a; 4096]);
    let make = |name: &str, args: &[&str]| -> Vec<u8> {
        let file = world.file(name, b"");
        std::fs::remove_file(&file).unwrap();
        let mut all = args.to_vec();
        let file = file.to_str().unwrap().to_owned();
        all.insert(all.iter().position(|a| *a == "FILE").unwrap(), &file);
        all.retain(|a| *a != "FILE");
        qemu_img(&all);
        std::fs::read(file).unwrap()
    };
    let whole = make(
        "whole",
        &["convert", "-f", "raw", "-O", "qcow2", raw, "FILE"],
    );
    let secret = secret.to_str().unwrap();
    let backed = make(
        "backed",
        &["create", "-f", "qcow2", "-b", secret, "-F", "raw", "FILE"],
    );
    let data = format!("data_file={}", world.storage().join("../data").display());
    let apart = make(
        "apart",
        &["create", "-f", "qcow2", "-o", &data, "FILE", "1M"],
    );
    let huge = make("huge", &["create", "-f", "qcow2", "FILE", "65T"]);
    let descriptor = b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n".to_vec();
    let mut bad_vhdx = make("vhdx", &["convert", "-f", "raw", "-O", "vhdx", raw, "FILE"]);
    let bad_log = unclosed(bad_vhdx.clone(), &garbage());
    let unplayed = unclosed(bad_vhdx.clone(), &entry());
    bad_vhdx.truncate(200 * 1024);
    for (what, query, file, sentence) in [
        ("truncated", "", whole[..whole.len() / 2].to_vec(), "qcow2"),
        ("backed", "", backed, "backing file"),
        ("apart", "", apart, "another file"),
        ("huge", "", huge, "large"),
        ("descriptor", "", descriptor, "other files"),
        ("short-vhdx", "", bad_vhdx, "vhdx"),
        ("bad-log", "", bad_log, "its log is damaged"),
        ("unplayed", "", unplayed, "must be replayed first"),
        ("not-raw", "?format=raw", whole.clone(), "begins like qcow2"),
        (
            "not-qcow2",
            "?format=qcow2",
            bytes.clone(),
            "begins like raw",
        ),
        (
            "wrong-sum",
            "?sha256=0000000000000000000000000000000000000000000000000000000000000000",
            bytes.clone(),
            "SHA-256",
        ),
    ] {
        let told = import(&world, what, query, &file).await;
        assert_eq!(told["state"], "failed", "{what}: {told}");
        let why = told["error"].as_str().unwrap();
        assert!(why.contains(sentence), "{what}: {why}");
        assert!(!why.contains("/storage/"), "{what}: {why}");
        assert_eq!(world.get(&format!("/api/v1/images/{what}")).await.0, 404);
        nothing_is_left(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_words_are_looked_at_before_anything_is_stored() {
    let world = World::new().await;
    for (name, query, field) in [
        ("..", "", ""),
        ("%2e%2e%2fetc", "", "name"),
        ("%2e%2e", "", ""),
        ("a%2fb", "", "name"),
        ("a%0ab", "", "name"),
        ("%00", "", "name"),
        (".hidden", "", "name"),
        ("00000000-0000-0000-0000-000000000001", "", "name"),
        ("ok", "?format=vdi", "format"),
        ("ok", "?sha256=zz", "sha256"),
        ("ok", "?boot_method=floppy", "boot_method"),
        ("ok", "?cmdline=a%3bb", "cmdline"),
        ("ok", "?colour=red", "colour"),
        ("ok", "?is_template=perhaps", "is_template"),
    ] {
        let (status, _, body) = put(&world, name, query, None, b"x").await;
        if field.is_empty() {
            // A client takes such a path apart before it is sent.
            assert!(status == 404 || status == 405, "{name}: {status}");
        } else {
            assert_eq!(
                (status, blamed(&body)),
                (400, vec![field.to_owned()]),
                "{name}{query}"
            );
        }
    }
    for range in [
        "bytes 5-4/10",
        "bytes 0-9/5",
        "pages 1-2/3",
        "bytes 0-0/1,2-2/3",
    ] {
        let (status, _, body) = put(&world, "ok", "", Some(range), b"x").await;
        assert_eq!(
            (status, blamed(&body)),
            (400, vec!["Content-Range".to_owned()]),
            "{range}"
        );
    }
    let huge = format!("bytes 0-0/{}", 2_u64 << 30);
    let (status, _, body) = put(&world, "ok", "", Some(&huge), b"x").await;
    assert!(
        status == 400 && body.to_string().contains("too large"),
        "{body}"
    );
    let (status, _, body) = put(&world, "ok", "", None, b"").await;
    assert!(
        status == 400 && body.to_string().contains("empty"),
        "{body}"
    );
    let (_, list) = world.get("/api/v1/uploads").await;
    assert!(list["uploads"].as_array().unwrap().len() <= 1, "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_a_time_are_refused_and_a_cut_one_goes_on() {
    let world = World::new().await;
    let bytes = disk(1 << 20);
    let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "PUT /api/v1/images/two/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Range: bytes 0-{}/{}\r\nContent-Length: {}\r\n\r\n",
        world.token,
        bytes.len() - 1,
        bytes.len(),
        bytes.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..500_000]).await.unwrap();
    let mut refused = None;
    for _ in 0..200 {
        if world.get("/api/v1/uploads/two").await.1["busy"] == "received" {
            refused = Some(put(&world, "two", "", None, b"other").await);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, _, body) = refused.unwrap();
    let why = body["error"].as_str().unwrap();
    assert!(
        status == 409 && why.contains("`two` is being received already"),
        "{why}"
    );
    drop(stream);
    let offset = loop {
        let (_, told) = world.get("/api/v1/uploads/two").await;
        if told["busy"] == Value::Null {
            break usize::try_from(told["offset"].as_u64().unwrap()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(offset > 0 && offset <= 500_000, "{offset}");
    let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
    let (status, headers, body) = put(&world, "two", "", Some(&range), &bytes[offset..]).await;
    assert_eq!(status, 202, "{body}");
    let told = ended(&world, headers["location"].to_str().unwrap()).await;
    assert_eq!(told["state"], "done", "{told}");
    assert_eq!(
        world.get("/api/v1/images/two").await.1["sha256"],
        sum(&bytes)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_share_and_keep_what_they_stand_on() {
    let world = World::new().await;
    let parent = add(&world, "base").await;
    let clone = |from: &'static str, body: Value| {
        let path = format!("/api/v1/images/{from}/clone");
        let world = &world;
        async move { world.ask("POST", &path, Some(body)).await }
    };
    let (status, child) = clone("base", json!({"name": "child", "description": "second"})).await;
    assert_eq!(status, 201, "{child}");
    assert_eq!(child["parent_image_id"], parent["id"]);
    assert_eq!(
        (&child["sha256"], &child["kind"]),
        (&parent["sha256"], &json!("disk"))
    );
    let (status, grand) = clone("child", json!({"name": "grand", "is_template": true})).await;
    assert_eq!((status, &grand["is_template"]), (201, &json!(true)));
    let body = world
        .request("GET", "/api/v1/images/grand/content")
        .send()
        .await
        .unwrap();
    assert!(body.bytes().await.unwrap() == disk(1 << 20));
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": "a/b"}), "name"),
        (json!({"name": "x", "colour": 1}), "colour"),
        (
            json!({"name": "x", "parent_image_id": Uuid::nil()}),
            "parent_image_id",
        ),
    ] {
        let (status, body) = clone("base", body).await;
        assert_eq!((status, blamed(&body)), (400, vec![field.to_owned()]));
    }
    assert_eq!(clone("base", json!({"name": "grand"})).await.0, 409);
    let (_, list) = world.get("/api/v1/images?templates=true").await;
    assert_eq!(list["images"].as_array().unwrap().len(), 1);
    let (_, usage) = world.get("/api/v1/images/base/usage").await;
    assert_eq!(usage["children"], json!(["child"]));

    for force in ["", "?force=true"] {
        let (status, body) = world
            .ask("DELETE", &format!("/api/v1/images/child{force}"), None)
            .await;
        let why = body["error"].as_str().unwrap();
        assert!(
            status == 409 && why.contains("image grand was made from it"),
            "{why}"
        );
    }
    for name in ["grand", "child", "base"] {
        assert_eq!(
            world
                .ask("DELETE", &format!("/api/v1/images/{name}"), None)
                .await
                .0,
            204
        );
    }
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_names_who_uses_it_and_takes_what_nobody_needs() {
    let world = World::new().await;
    let image = add(&world, "used").await;
    let id: Uuid = image["id"].as_str().unwrap().parse().unwrap();
    let mut client = support::client(1);
    client.assigned_image_id = Some(id);
    world.catalog.save_client_config(&client).await.unwrap();
    world.cache.refresh().await.unwrap();
    let personal = Volume::Personal {
        client: client.id,
        image: id,
    };
    let session = Volume::Session(Uuid::new_v4());
    for clone in [personal, session] {
        world
            .disks
            .clone_volume(&SnapshotId::base(id), clone)
            .unwrap();
    }
    let delete = |query: &'static str| {
        let world = &world;
        async move {
            let path = format!("/api/v1/images/used{query}");
            let (status, body) = world.ask("DELETE", &path, None).await;
            (
                status,
                body["error"].as_str().unwrap_or_default().to_owned(),
            )
        }
    };
    for query in ["", "?force=true"] {
        let (status, why) = delete(query).await;
        assert!(
            status == 409 && why.contains(&format!("client {}", client.hostname)),
            "{why}"
        );
        assert!(why.contains("would be lost"), "{why}");
    }
    let (status, why) = delete("?discard_disks=true").await;
    assert!(status == 409 && why.contains("is assigned to it"), "{why}");
    assert_eq!(world.disks.list().unwrap().len(), 3, "nothing was touched");
    let (status, why) = delete("?discard_disks=true&force=true").await;
    assert_eq!(status, 204, "{why}");
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_gets_a_kernel_of_its_own() {
    let world = World::new().await;
    add(&world, "d").await;
    let files = |parts: Vec<(&'static str, &'static [u8])>| {
        let form = parts
            .into_iter()
            .fold(reqwest::multipart::Form::new(), |form, (name, bytes)| {
                form.part(name, part(bytes))
            });
        let request = world
            .request("POST", "/api/v1/images/d/files")
            .multipart(form);
        async move { answer(request.send().await.unwrap()).await }
    };
    let (status, body) = files(vec![("initrd", b"i")]).await;
    assert_eq!((status, blamed(&body)), (400, vec!["kernel".to_owned()]));
    let (status, body) = files(vec![("image", b"{}"), ("kernel", b"k")]).await;
    assert_eq!((status, blamed(&body)), (400, vec!["image".to_owned()]));
    let (status, image) = files(vec![("kernel", b"k1"), ("initrd", b"i1")]).await;
    assert_eq!(status, 201, "{image}");
    assert_eq!(
        (
            image["files"].as_array().unwrap().len(),
            &image["size_bytes"]
        ),
        (2, &json!(1 << 20))
    );
    let (status, _) = files(vec![("kernel", b"k2")]).await;
    assert_eq!(status, 409, "files are never changed under a boot");
    let patch = json!({"boot_method": "nbd", "cmdline": "quiet"});
    let (status, image) = world.ask("PATCH", "/api/v1/images/d", Some(patch)).await;
    assert_eq!((status, &image["boot_method"]), (200, &json!("nbd")));
    // A clone has its own names for the same content.
    let (status, child) = world
        .ask("POST", "/api/v1/images/d/clone", Some(json!({"name": "c"})))
        .await;
    assert_eq!(status, 201, "{child}");
    let path = child["files"][0]["path"].as_str().unwrap().to_owned();
    assert_eq!(
        world.ask("DELETE", "/api/v1/images/d/files", None).await.0,
        204
    );
    assert_eq!(std::fs::read(world.storage().join(path)).unwrap(), b"k1");
    let (status, image) = files(vec![("kernel", b"k2")]).await;
    assert_eq!((status, image["files"].as_array().unwrap().len()), (201, 1));
    world.add_image("kernels").await;
    let (status, _) = world
        .ask("DELETE", "/api/v1/images/kernels/files", None)
        .await;
    assert_eq!(status, 409);
    assert_eq!(world.get("/api/v1/images/kernels/content").await.0, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_told_and_removed_when_asked() {
    let world = World::new().await;
    let image = add(&world, "kept").await;
    let lost = Uuid::new_v4();
    world.disks.create(Volume::Image(lost), 1 << 20).unwrap();
    world.disks.snapshot(&SnapshotId::base(lost)).unwrap();
    let child = Uuid::new_v4();
    world
        .disks
        .clone_volume(&SnapshotId::base(lost), Volume::Image(child))
        .unwrap();
    let of_nobody = Volume::Personal {
        client: Uuid::new_v4(),
        image: image["id"].as_str().unwrap().parse().unwrap(),
    };
    let base = SnapshotId::base(image["id"].as_str().unwrap().parse().unwrap());
    world.disks.clone_volume(&base, of_nobody).unwrap();
    let files = world
        .storage()
        .join("images")
        .join(Uuid::new_v4().to_string());
    std::fs::create_dir_all(files.join("x")).unwrap();
    let (status, stock) = world.get("/api/v1/orphans").await;
    assert_eq!(
        (status, stock["orphans"].as_array().unwrap().len()),
        (200, 4),
        "{stock}"
    );
    assert_eq!(stock["missing"], json!([]));
    let (status, stock) = world.ask("DELETE", "/api/v1/orphans", None).await;
    assert_eq!((status, &stock["orphans"]), (200, &json!([])), "{stock}");
    assert_eq!(world.disks.list().unwrap().len(), 1, "what has a row stays");
    assert!(!Path::new(&files).exists());
    world.disks.destroy(base.volume).unwrap();
    let (_, stock) = world.get("/api/v1/orphans").await;
    assert_eq!(stock["missing"][0]["name"], "kept");
}

/// Waits until an import is at a step.
async fn at(world: &World, location: &str, step: &str) {
    loop {
        let (_, told) = world.get(location).await;
        assert_eq!(told["ended"], Value::Null, "it was too fast: {told}");
        if told["step"] == step {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Processes that have a word in their command line.
fn processes(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let found = lines.filter(|line| String::from_utf8_lossy(line).contains(word));
    found.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_given_up_at_any_step_leaves_nothing() {
    let world = World::new().await;
    let mut bytes = disk(48 << 20);
    // Nothing of it is quick.
    bytes.iter_mut().for_each(|b| *b |= 1);
    let raw = world.file("raw", &bytes);
    let qcow2 = world.file("qcow2", b"");
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", from, to]);
    let packed = std::fs::read(&qcow2).unwrap();
    let sums = [sum(&bytes), sum(&packed)];
    for (file, sum, step) in [
        (&bytes, &sums[0], "checking"),
        (&bytes, &sums[0], "copying"),
        (&bytes, &sums[0], "verifying"),
        (&packed, &sums[1], "verifying"),
    ] {
        let query = format!("?sha256={sum}");
        let (status, headers, body) = put(&world, "given-up", &query, None, file).await;
        assert_eq!(status, 202, "{body}");
        let location = headers["location"].to_str().unwrap();
        at(&world, location, step).await;
        assert_eq!(world.ask("DELETE", location, None).await.0, 204);
        let told = ended(&world, location).await;
        assert_eq!(
            (&told["state"], &told["upload_kept"]),
            (&json!("cancelled"), &json!(false)),
            "{step}: {told}"
        );
        nothing_is_left(&world).await;
        let layers = world.storage().join("disks/layers");
        let left: Vec<_> = std::fs::read_dir(&layers).unwrap().collect();
        assert!(left.is_empty(), "{step}: {left:?}");
        assert_eq!(processes(layers.to_str().unwrap()), 0, "{step}");
        assert_eq!(world.get("/api/v1/images/given-up").await.0, 404);
        // One that has ended is forgotten.
        assert_eq!(world.ask("DELETE", location, None).await.0, 204);
        assert_eq!(world.get(location).await.0, 404);
    }
    // The name is free.
    add(&world, "given-up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_space_is_told_and_goes_on_when_there_is_some() {
    let world = World::new().await;
    add(&world, "before").await;
    assert_eq!(
        world.ask("DELETE", "/api/v1/images/before", None).await.0,
        204
    );
    nothing_is_left(&world).await;
    let bytes: Vec<u8> = disk(6 << 20).iter().map(|b| b | 1).collect();
    let total = bytes.len();
    let uploads = Small::over(world.storage().join("uploads"), "2M");
    let layers = Small::over(world.storage().join("disks/layers"), "2M");
    // Too large as it is said: nothing of it is taken.
    let range = format!("bytes 0-{}/{total}", total - 1);
    let (status, _, body) = put(&world, "d", "", Some(&range), &bytes).await;
    let why = body["error"].as_str().unwrap();
    assert!(status == 507 && why.contains("full"), "{status} {why}");
    assert_eq!(world.get("/api/v1/uploads/d").await.1["offset"], 0);
    // Nobody said how large: what fits stays.
    let chunks: Vec<_> = bytes
        .chunks(100_000)
        .map(|c| Ok::<_, std::io::Error>(c.to_vec()))
        .collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let request = world.request("PUT", "/api/v1/images/d/content").body(body);
    if let Ok(response) = request.send().await {
        // The answer may be lost, as the rest of the body is not read.
        let (status, body) = answer(response).await;
        assert_eq!(status, 507, "{body}");
    }
    let offset = loop {
        let (_, there) = world.get("/api/v1/uploads/d").await;
        if there["busy"] == Value::Null {
            break usize::try_from(there["offset"].as_u64().unwrap()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(offset > 0 && offset < 2 << 20, "{offset}");
    uploads.grow("16M");
    let range = format!("bytes {offset}-{}/{total}", total - 1);
    let (status, headers, body) = put(&world, "d", "", Some(&range), &bytes[offset..]).await;
    assert_eq!(status, 202, "{body}");
    // The conversion finds none: what was sent is kept.
    let told = ended(&world, headers["location"].to_str().unwrap()).await;
    assert_eq!(
        (&told["state"], &told["upload_kept"]),
        (&json!("failed"), &json!(true)),
        "{told}"
    );
    let why = told["error"].as_str().unwrap();
    assert!(why.contains("no space is left in the image store"), "{why}");
    assert!(layers.is_empty());
    assert!(world.disks.list().unwrap().is_empty());
    assert_eq!(world.get("/api/v1/images/d").await.0, 404);
    layers.grow("16M");
    let range = format!("bytes */{total}");
    let (status, headers, body) = put(&world, "d", "", Some(&range), b"").await;
    assert_eq!(status, 202, "{body}");
    let told = ended(&world, headers["location"].to_str().unwrap()).await;
    assert_eq!(told["state"], "done", "{told}");
    assert_eq!(world.get("/api/v1/images/d").await.1["sha256"], sum(&bytes));
    assert!(uploads.is_empty());
}
