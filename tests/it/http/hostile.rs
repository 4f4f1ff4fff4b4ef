//! Slow, greedy and malformed clients beside an honest one.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dls::http::HttpLimits;

use super::site::{Site, eventually};
use super::wire::Wire;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn hasty() -> HttpLimits {
    HttpLimits {
        connections: 300,
        connections_per_address: 200,
        request: Duration::from_millis(700),
        body: Duration::from_millis(700),
        stall: Duration::from_millis(700),
        ..HttpLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_while_an_honest_one_is_served() {
    let site = Site::with(hasty()).await;
    let boot = site.power_on(1, HERE);
    let mut slow = vec![];
    for n in 0..150 {
        let mut wire = Wire::connect(site.address).await;
        match n % 4 {
            0 => {}
            1 => wire.send(b"GET /loader/snponly.efi HT").await,
            2 => wire.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").await,
            _ => {
                let bye = site.path(boot.id, "bye");
                let head =
                    format!("POST {bye} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\npow");
                wire.send(head.as_bytes()).await;
            }
        }
        slow.push(wire);
    }
    let mut honest = Wire::connect(site.address).await;
    let reply = honest.ask("GET", &site.path(boot.id, "kernel"), &[]).await;
    assert_eq!(reply.status, 200);
    for mut wire in slow {
        wire.hangs_up().await;
    }
    assert!(
        site.tracker.attempt(boot.id).is_some(),
        "half a bye is none"
    );
    let reply = Wire::connect(site.address)
        .await
        .ask("GET", "/loader/snponly.efi", &[])
        .await;
    assert_eq!(reply.status, 200);
    let metrics = site.metrics();
    assert!(
        metrics.contains("dls_http_connections_cut_total{cause=\"slow_request\"}"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_can_not_take_all_places() {
    let site = Site::with(HttpLimits {
        connections_per_address: 5,
        ..HttpLimits::default()
    })
    .await;
    let mut held = vec![];
    for _ in 0..5 {
        let mut wire = Wire::connect(site.address).await;
        assert_eq!(
            wire.ask("HEAD", "/loader/snponly.efi", &[]).await.status,
            200
        );
        held.push(wire);
    }
    Wire::connect(site.address).await.hangs_up().await;
    // Another machine is served.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 9], 0).into()).unwrap();
    let stream = socket.connect(site.address).await.unwrap();
    let mut other = Wire::over(stream);
    assert_eq!(
        other.ask("HEAD", "/loader/snponly.efi", &[]).await.status,
        200
    );
    drop(held);
    let address = site.address;
    for _ in 0..100 {
        let mut wire = Wire::connect(address).await;
        wire.send(b"HEAD /loader/snponly.efi HTTP/1.1\r\nHost: x\r\n\r\n")
            .await;
        if wire.reply(true).await.is_some() {
            assert!(site.metrics().contains("too_many_of_address"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("places are not given back");
}

/// How many descriptors of this process are open on a file.
pub(super) fn open_on(path: &std::path::Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter(|fd| {
            let fd = fd.as_ref().unwrap().path();
            std::fs::read_link(fd).is_ok_and(|to| to == path)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_file() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let stored = site
        .dir
        .path()
        .join("storage")
        .join(format!("images/{}/kernel", site.image.id));
    let mut left = vec![];
    for _ in 0..10 {
        let mut wire = Wire::connect(site.address).await;
        let ask = format!(
            "GET {} HTTP/1.1\r\nHost: x\r\n\r\n",
            site.path(boot.id, "kernel")
        );
        wire.send(ask.as_bytes()).await;
        wire.head().await.unwrap();
        left.push(wire);
    }
    assert!(open_on(&stored) > 0);
    drop(left);
    let read = move || open_on(&stored).to_string();
    eventually("open files", read, |n| n == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_answered_or_cut_and_nothing_breaks() {
    let site = Site::start().await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(7000));
    let cases: [&[u8]; 14] = [
        b"\r\n\r\n\r\n",
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /loader/\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /loader/a b HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzzz",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"CONNECT other:443 HTTP/1.1\r\n\r\n",
        many.as_bytes(),
        long.as_bytes(),
    ];
    for case in cases {
        let mut wire = Wire::connect(site.address).await;
        wire.send(case).await;
        // A clean half-close, so that a server that waits for more sees that none comes.
        tokio::io::AsyncWriteExt::shutdown(&mut wire.stream)
            .await
            .unwrap();
        if let Some(reply) = wire.head().await {
            assert!(reply.status >= 400, "{}", String::from_utf8_lossy(case));
        }
    }
    let reply = Wire::connect(site.address)
        .await
        .ask("GET", "/loader/snponly.efi", &[])
        .await;
    assert_eq!(reply.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_lets_a_download_end() {
    let mut site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let mut wire = Wire::connect(site.address).await;
    let ask = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\n\r\n",
        site.path(boot.id, "kernel")
    );
    wire.send(ask.as_bytes()).await;
    let head = wire.head().await.unwrap();
    site.cancel.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let body = wire
        .body(head.header("content-length").unwrap().parse().unwrap())
        .await;
    assert_eq!(body.unwrap().len(), super::site::KERNEL_BYTES);
    wire.hangs_up().await;
    site.serving.take().unwrap().await.unwrap();
}

/// Everything that is logged, at the finest level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_ever_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber alone, tracing asks the thread that comes first to a line of code
    // whether it is wanted, and keeps the answer: other tests' threads have none and say no.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let mut wire = Wire::connect(site.address).await;
    for item in [
        "boot.ipxe",
        "kernel",
        "initrd0",
        "initrd9",
        "nothing",
        "up",
        "bye",
    ] {
        wire.ask("GET", &site.path(boot.id, item), &[]).await;
    }
    let stored = site
        .dir
        .path()
        .join("storage")
        .join(format!("images/{}", site.image.id));
    std::fs::remove_file(stored.join("kernel")).unwrap();
    let next = site.power_on(1, HERE);
    wire.ask("GET", &site.path(next.id, "kernel"), &[]).await;
    drop(wire);
    site.timeline(boot.id, |t| t.contains("ended|")).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("answered a request"), "the log is on");
    for id in [boot.id, next.id] {
        assert!(!text.contains(&site.token(id)), "a token in the log");
    }
}
