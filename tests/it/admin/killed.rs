//! `dls serve` itself, killed in the middle of an upload and of a conversion.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::disks::{disk, sum};
use super::process::{Server, answer};
use crate::support::{TestDb, state_dir};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_goes_on_with_uploads_and_conversions() {
    let (db, dir) = (TestDb::new().await, state_dir());
    let mut server = Server::new(&db, dir.path()).await;
    let bytes = disk(64 << 20);
    let total = bytes.len();
    let part = 20_000_000;
    let put = |server: &Server, range: String, bytes: &[u8]| {
        let request = server.request(Method::PUT, "/api/v1/images/k/content");
        let request = request.header("content-range", range).body(bytes.to_vec());
        async move { answer(request.send().await.unwrap()).await }
    };
    let (status, _) = put(
        &server,
        format!("bytes 0-{}/{total}", part - 1),
        &bytes[..part],
    )
    .await;
    assert_eq!(status, 200);
    // Killed while more comes in.
    let more = put(
        &server,
        format!("bytes {part}-{}/{total}", total - 1),
        &bytes[part..],
    );
    let sending = tokio::spawn(async move {
        tokio::time::timeout(Duration::from_millis(30), more)
            .await
            .is_ok()
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    server.killed_and_started().await;
    let _ = sending.await;
    let (status, told) = server.get("/api/v1/uploads/k").await;
    if status == 200 && told["busy"] == Value::Null {
        let at = usize::try_from(told["offset"].as_u64().unwrap()).unwrap();
        assert!(at >= part, "{told}");
        let range = match at == total {
            true => format!("bytes */{total}"),
            false => format!("bytes {at}-{}/{total}", total - 1),
        };
        let (status, told) = put(&server, range, &bytes[at..]).await;
        assert_eq!(status, 202, "{told}");
    }
    // Killed in the middle of the conversion, again and again, at other points of it.
    for pause in [5, 60, 150] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.killed_and_started().await;
    }
    let mut image = Value::Null;
    for _ in 0..600 {
        let (status, told) = server.get("/api/v1/images/k").await;
        if status == 200 {
            image = told;
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(image["sha256"], sum(&bytes), "it went on by itself");
    let content = server
        .request(Method::GET, "/api/v1/images/k/content")
        .send()
        .await
        .unwrap();
    assert!(content.bytes().await.unwrap() == bytes);
    for _ in 0..200 {
        let (_, uploads) = server.get("/api/v1/uploads").await;
        if uploads["uploads"] == serde_json::json!([]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let storage = dir.path().join("state/storage");
    for folder in ["uploads", "pending", "staging"] {
        let left: Vec<_> = std::fs::read_dir(storage.join(folder)).unwrap().collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    let (_, stock) = server.get("/api/v1/orphans").await;
    assert_eq!(stock, serde_json::json!({"orphans": [], "missing": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_goes_on_with_is_removed_after_a_day() {
    let (db, dir) = (TestDb::new().await, state_dir());
    let mut server = Server::new(&db, dir.path()).await;
    for name in ["old", "young"] {
        let request = server.request(Method::PUT, &format!("/api/v1/images/{name}/content"));
        let request = request.header("content-range", "bytes 0-99999/200000");
        let sent = request.body(vec![7; 100_000]).send().await.unwrap();
        assert_eq!(sent.status().as_u16(), 200);
    }
    let uploads = dir.path().join("state/storage/uploads");
    for place in std::fs::read_dir(&uploads).unwrap() {
        let place = place.unwrap().path();
        let record = std::fs::read_to_string(place.join("record")).unwrap();
        let hours = if record.contains("\"old\"") { 25 } else { 23 };
        for file in ["data", "record"] {
            let file = std::fs::File::options().write(true).open(place.join(file));
            let file = file.unwrap();
            let now = file.metadata().unwrap().modified().unwrap();
            file.set_modified(now - Duration::from_hours(hours))
                .unwrap();
        }
    }
    server.killed_and_started().await;
    for _ in 0..300 {
        if server.get("/api/v1/uploads/old").await.0 == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, told) = server.get("/api/v1/uploads").await;
    assert_eq!(told["uploads"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(
        (&told["uploads"][0]["name"], &told["uploads"][0]["offset"]),
        (&"young".into(), &100_000.into())
    );
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 1);
}
