//! Two `dls` servers on one catalog: versions of images go from one to the other.
//!
//! `pair` starts them; here is what they must show: equal content, only differences sent, kills
//! at any point survived, what is damaged found, and machines sent to who has their version.

mod boots;
mod pair;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use self::pair::{Pair, noise, sum};

#[tokio::test(flavor = "multi_thread")]
async fn a_version_goes_to_another_server_and_then_only_its_changes() {
    let pair = Pair::new().await;
    let (a, b) = (&pair.a, &pair.b);
    let size = 24 << 20;
    let mut bytes = noise(size, 1);
    bytes[8 << 20..16 << 20].fill(0);
    let image = a.import("debian", &bytes).await;
    // Whoever made it has it, without being told so by anybody.
    let own = pair.replica("base", "one", "verified").await;
    assert_eq!(own["sha256"], Value::Null);
    let (status, told) = b
        .ask(
            Method::POST,
            "/api/v1/images/debian/replicas",
            json!({"to": "one"}),
        )
        .await;
    assert_eq!(status, 409, "{told}");

    let (status, told) = a.replicate("debian", "base", "two").await;
    assert_eq!((status, &told["state"]), (202, &json!("copying")), "{told}");
    let row = pair.replica("base", "two", "verified").await;
    assert_eq!(row["sha256"], json!(sum(&bytes)));
    assert_eq!(row["sha256"], json!(sum(&bytes)));
    pair.sent("base", 16 << 20).await;
    assert!(b.content("debian", "base").await == bytes);
    let again = a.replicate("debian", "base", "two").await;
    assert_eq!((again.0, &again.1["state"]), (200, &json!("verified")));

    // A machine mends the image on A; 3 blocks of it change.
    let changes = [(4096, 1), (12 << 20, 100), (size - 4096, 4096)];
    for (at, length) in changes {
        bytes[at..at + length].fill(7);
    }
    pair.publish(&image, "mended", &changes).await;
    let (status, told) = a.replicate("debian", "mended", "two").await;
    assert_eq!(status, 202, "{told}");
    let row = pair.replica("mended", "two", "verified").await;
    pair.sent("mended", 3 * 4096).await;
    assert_eq!(row["sha256"], json!(sum(&bytes)));
    assert!(b.content("debian", "mended").await == bytes);
    assert!(a.content("debian", "mended").await == bytes);
    let sent = a.logged("sent=12288");
    assert!(sent, "no more than that went over the line");

    // It stands upon the first one there, as it does here.
    let (status, told) = b.remove("debian", "base", "two").await;
    assert_eq!(status, 409, "{told}");
    let (status, told) = b.remove("debian", "mended", "two").await;
    assert_eq!(status, 204, "{told}");
    let (status, told) = a.remove("debian", "base", "two").await;
    assert_eq!(status, 204, "{told}");
    let (status, told) = a.remove("debian", "base", "one").await;
    assert_eq!(status, 409, "the last one: {told}");
    assert!(told["error"].as_str().unwrap().contains("no other server"));
    assert_eq!(b.disks(), Vec::<String>::new(), "nothing is left there");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_ten_times_it_ends_equal() {
    let pair = Pair::new().await;
    let size = 256 << 20;
    let bytes = noise(size, 2);
    let image = pair.a.import("debian", &bytes).await;
    pair.replica("base", "one", "verified").await;
    let (status, told) = pair.a.replicate("debian", "base", "two").await;
    assert_eq!(status, 202, "{told}");
    let mut seen = vec![0];
    for n in 0..10_u64 {
        // Sender and receiver by turns, each time when some more has arrived.
        let last = seen[seen.len() - 1];
        seen.push(pair.b.received(&image, last).await);
        // What came between the last look and the kill counts as received without a connection.
        for _ in 0..3000 {
            if pair.b.numbers("through=").len() as u64 > n {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(7 * n)).await;
        let server = match n % 2 {
            0 => &pair.b,
            _ => &pair.a,
        };
        server.killed_and_started().await;
    }
    let row = pair.replica("base", "two", "verified").await;
    assert_eq!(row["sha256"], json!(sum(&bytes)));
    assert!(pair.b.content("debian", "base").await == bytes);
    let within = seen.iter().filter(|at| (1..size as u64).contains(*at));
    assert!(within.count() >= 5, "killed in the middle: {seen:?}");
    // Each connection went on where the one before it was.
    let begun = pair.b.numbers("through=");
    assert!(begun.is_sorted() && begun.len() >= 10, "{begun:?}");
    assert!(begun.iter().filter(|at| **at > 0).count() >= 5, "{begun:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_goes_with_its_version_and_with_its_row() {
    let pair = Pair::new().await;
    let (a, b) = (&pair.a, &pair.b);
    let bytes = noise(4 << 20, 3);
    let image = a.import("debian", &bytes).await;
    // What machines boot it by belongs to it, on each server.
    let (kernel, initrd) = (noise(700_001, 5), noise(3000, 6));
    a.add_files("debian", &kernel, &initrd).await;
    pair.replica("base", "one", "verified").await;
    a.replicate("debian", "base", "two").await;
    pair.replica("base", "two", "verified").await;
    assert_eq!(b.disks().len(), 1);
    let files = format!("storage/images/{}", image["id"].as_str().unwrap());
    let files = b.state.join(files);
    assert!(std::fs::read(files.join("kernel")).unwrap() == kernel);
    assert!(std::fs::read(files.join("initrd0")).unwrap() == initrd);
    let (status, told) = a
        .ask(Method::DELETE, "/api/v1/images/debian", Value::Null)
        .await;
    assert_eq!(status, 204, "{told}");
    for _ in 0..300 {
        if b.disks().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(b.disks(), Vec::<String>::new());
    let (status, told) = a.replicate("debian", "base", "two").await;
    assert_eq!(status, 404, "{told}");
    let (status, told) = a
        .ask(
            Method::POST,
            "/api/v1/images/none/replicas",
            json!({"to": 1, "x": 2}),
        )
        .await;
    assert_eq!(status, 400, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_whom_the_catalog_does_not_know() {
    let pair = Pair::new().await;
    let bytes = noise(2 << 20, 4);
    pair.a.import("debian", &bytes).await;
    pair.replica("base", "one", "verified").await;
    // As if A's row were of another key: B accepts A's certificate no more.
    pair.sql("UPDATE servers SET certificate_sha256 = repeat('0', 64) WHERE name = 'one'")
        .await;
    // B hears of it in its own time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    pair.a.replicate("debian", "base", "two").await;
    let waits = "SELECT count(*) FROM image_replicas WHERE state = 'copying' AND (reason LIKE '%TLS%' OR reason LIKE '%broke%')";
    pair.until(waits, "1").await;
    assert_eq!(pair.b.disks(), Vec::<String>::new());
    // A's next heartbeat puts it right by itself.
    let row = pair.replica("base", "two", "verified").await;
    assert_eq!(row["sha256"], json!(sum(&bytes)));
    // What is no TLS at all ends nothing but itself.
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096]] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(pair.b.replication)
            .await
            .unwrap();
        let _ = stream.write_all(junk).await;
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
        let _ = read.await.expect("it is closed");
    }
    assert_eq!(pair.b.content("debian", "base").await, bytes);
}
