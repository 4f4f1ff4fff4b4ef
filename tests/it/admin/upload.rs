//! Uploads: all or nothing.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::world::{World, answer, blamed, part};

/// Until nothing is left of an upload; it is taken back after the peer has gone.
async fn nothing_is_stored(world: &World) {
    let empty = async {
        while !world.stored().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), empty).await;
    assert!(waited.is_ok(), "left over: {:?}", world.stored());
    let rows = world.db.text("SELECT count(*) FROM images").await;
    assert_eq!(rows.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn initrds_keep_their_order() {
    let world = World::new().await;
    let form = reqwest::multipart::Form::new()
        .part("initrd", part(b"first"))
        .part("kernel", part(&vec![7_u8; 3_000_000]))
        .part("initrd", part(b"second"))
        .text("image", json!({"name": "two"}).to_string());
    let request = world.request("POST", "/api/v1/images").multipart(form);
    let response = request.send().await.unwrap();
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let (status, image) = answer(response).await;
    assert_eq!(status, 201, "{image}");
    assert_eq!(image["size_bytes"], 3_000_011);
    assert_eq!(world.get(&location).await.1, image);
    for (index, want) in [(1, "first"), (2, "second")] {
        let path = image["files"][index]["path"].as_str().unwrap();
        let text = std::fs::read_to_string(world.storage().join(path)).unwrap();
        assert_eq!(text, want);
        assert_eq!(image["files"][index]["position"], index - 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_violation_of_an_upload_comes_at_once_and_nothing_stays() {
    let world = World::new().await;
    let form = reqwest::multipart::Form::new()
        .text(
            "image",
            json!({"name": "a b", "cmdline": "x;y", "colour": 1}).to_string(),
        )
        .part("initrd", part(b"an initrd"))
        .part("disk", part(b"x"))
        .text("image", "{}");
    let request = world.request("POST", "/api/v1/images").multipart(form);
    let (status, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 400, "{body}");
    assert_eq!(
        blamed(&body),
        ["name", "cmdline", "colour", "disk", "image", "kernel"]
    );
    for (form, want) in [
        (reqwest::multipart::Form::new(), vec!["body"]),
        (
            reqwest::multipart::Form::new().part("kernel", part(b"k")),
            vec!["image"],
        ),
        (
            reqwest::multipart::Form::new()
                .text("image", json!({"name": "x"}).to_string())
                .part("kernel", part(b"")),
            vec!["kernel"],
        ),
        (
            reqwest::multipart::Form::new()
                .text("image", json!({"name": "x"}).to_string())
                .part("kernel", part(b"k"))
                .part("kernel", part(b"k")),
            vec!["kernel"],
        ),
        (
            reqwest::multipart::Form::new()
                .text("image", "[".repeat(100_000))
                .part("kernel", part(b"k")),
            vec!["image"],
        ),
        (
            reqwest::multipart::Form::new()
                .text(
                    "image",
                    json!({"name": "x", "parent_image_id": "00000000-0000-0000-0000-000000000009"})
                        .to_string(),
                )
                .part("kernel", part(b"k")),
            vec!["parent_image_id"],
        ),
    ] {
        let request = world.request("POST", "/api/v1/images").multipart(form);
        let (status, body) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 400, "{body}");
        // An empty form has no parts at all: it is told as such or as what is missing.
        assert!(blamed(&body) == want || want == ["body"], "{body} {want:?}");
    }
    for kind in ["application/json", "text/plain", "multipart/form-data"] {
        let request = world.request("POST", "/api/v1/images");
        let request = request.header("content-type", kind).body("{}");
        let (status, body) = answer(request.send().await.unwrap()).await;
        assert_eq!((status, blamed(&body)), (400, vec!["body".to_owned()]));
    }
    nothing_is_stored(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_leaves_nothing() {
    let world = World::new().await;
    let head = format!(
        "POST /api/v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 10000000\r\n\r\n",
        world.token
    );
    let image =
        "--B\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\n{\"name\":\"cut\"}\r\n";
    let kernel = "--B\r\nContent-Disposition: form-data; name=\"kernel\"; filename=\"k\"\r\n\r\n";
    let bulk = "x".repeat(2_000_000);
    let whole_kernel = format!("{kernel}{bulk}\r\n");
    let initrd = "--B\r\nContent-Disposition: form-data; name=\"initrd\"; filename=\"i\"\r\n\r\nzz";
    for cut in [
        format!("{head}{}", &image[..30]),
        format!("{head}{image}"),
        format!("{head}{image}{kernel}"),
        format!("{head}{image}{kernel}{bulk}"),
        format!("{head}{image}{whole_kernel}"),
        format!("{head}{image}{whole_kernel}{initrd}"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        stream.write_all(cut.as_bytes()).await.unwrap();
        // It is under way, then the peer is gone.
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
        nothing_is_stored(&world).await;
    }
    world.add_image("cut").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_uploads_of_one_name_one_is_told_of_the_conflict() {
    let world = World::new().await;
    let upload = || {
        let chunks = stream::iter((0..50).map(|_| Ok::<_, std::io::Error>(vec![1_u8; 20_000])))
            .then(|chunk| async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                chunk
            });
        let kernel = reqwest::multipart::Part::stream(reqwest::Body::wrap_stream(chunks));
        let form = reqwest::multipart::Form::new()
            .text("image", json!({"name": "same"}).to_string())
            .part("kernel", kernel.file_name("k"));
        world
            .request("POST", "/api/v1/images")
            .multipart(form)
            .send()
    };
    let (one, two) = tokio::join!(upload(), upload());
    let (one, two) = (answer(one.unwrap()).await, answer(two.unwrap()).await);
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409], "{one:?} {two:?}");
    let refused = if one.0 == 409 { one.1 } else { two.1 };
    assert_eq!(blamed(&refused), ["name"]);
    assert_eq!(world.stored().len(), 1, "{:?}", world.stored());
    let (_, list) = world.get("/api/v1/images").await;
    assert_eq!(list["images"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_refused_upload_gets_to_read_why() {
    let world = World::new().await;
    world.add_image("taken").await;
    let form = reqwest::multipart::Form::new()
        .text("image", json!({"name": "taken"}).to_string())
        .part("kernel", part(&vec![0_u8; 20_000_000]));
    let request = world.request("POST", "/api/v1/images").multipart(form);
    let (status, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(
        (status, blamed(&body)),
        (409, vec!["name".to_owned()]),
        "{body}"
    );
    assert_eq!(world.stored().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_fails_leaves_no_row() {
    let world = World::new().await;
    // Where the images should be there is a file: nothing can be placed.
    let images = world.storage().join("images");
    std::fs::remove_dir_all(&images).ok();
    std::fs::write(&images, "").unwrap();
    let form = reqwest::multipart::Form::new()
        .text("image", json!({"name": "x"}).to_string())
        .part("kernel", part(b"k"));
    let request = world.request("POST", "/api/v1/images").multipart(form);
    let (status, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 500);
    assert!(!body.to_string().contains("storage/"), "{body}");
    let rows = world.db.text("SELECT count(*) FROM images").await;
    assert_eq!(rows.as_deref(), Some("0"));
}
