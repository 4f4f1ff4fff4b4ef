//! What the catalog says after files went through the door.

use std::net::Ipv4Addr;
use std::time::Duration;

use dls::http::HttpLimits;
use dls::model::FileRole;
use tokio::io::AsyncReadExt;

use super::site::{KERNEL_BYTES, Site, eventually};
use super::wire::Wire;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The stages alone.
fn stages(timeline: &str) -> Vec<&str> {
    timeline
        .lines()
        .filter_map(|line| line.split('|').next())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_boot_is_written_down() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let mut wire = Wire::connect(site.address).await;
    for (method, path) in [
        ("HEAD", "/loader/snponly.efi".to_owned()),
        ("GET", "/loader/snponly.efi".to_owned()),
        ("GET", site.path(boot.id, "boot.ipxe")),
        ("GET", site.path(boot.id, "kernel")),
        ("GET", site.path(boot.id, "initrd0")),
        ("POST", site.path(boot.id, "up")),
        ("POST", site.path(boot.id, "beat")),
        ("POST", site.path(boot.id, "bye")),
    ] {
        let reply = wire.ask(method, &path, &["Content-Length: 0"]).await;
        assert!(reply.status < 300, "{path}");
    }
    let timeline = site.timeline(boot.id, |t| t.contains("ended|")).await;
    let seen = stages(&timeline);
    let mut at = 0;
    for stage in [
        "discover",
        "loader_requested",
        "loader_sent",
        "script",
        "kernel_requested",
        "kernel_sent",
        "initrd_requested",
        "initrd_sent",
        "up",
        "bye",
        "ended",
    ] {
        let found = seen[at..].iter().position(|s| *s == stage);
        at += found.unwrap_or_else(|| panic!("no {stage} after {at} in\n{timeline}")) + 1;
    }
    assert!(!timeline.contains("transfer_broken"), "{timeline}");
    assert!(
        timeline.contains(&format!("\"bytes\": {KERNEL_BYTES}")),
        "{timeline}"
    );
    let (database, id) = (site.database.clone(), boot.id);
    let query = format!(
        "select status, client_ip, boot_server_ip, boot_time_seconds is not null from boot_sessions where id = '{id}'"
    );
    let row = eventually(
        "the session",
        move || database.query(&query),
        |r| r.starts_with("shutdown"),
    )
    .await;
    assert_eq!(row, "shutdown|127.0.0.1|127.0.0.1|t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_after_a_drop_ends_in_sent() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let kernel = site.path(boot.id, "kernel");
    let mut wire = Wire::connect(site.address).await;
    // A small window: on loopback the whole file could be in the sockets' buffers otherwise,
    // and then it was sent.
    socket2::SockRef::from(&wire.stream)
        .set_recv_buffer_size(64 * 1024)
        .unwrap();
    wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    wire.send(format!("GET {kernel} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await;
    let head = wire.head().await.unwrap();
    let etag = head.header("etag").unwrap().to_owned();
    let mut part = vec![0; 700_000];
    wire.stream.read_exact(&mut part).await.unwrap();
    drop(wire);
    let broken = site
        .timeline(boot.id, |t| t.contains("transfer_broken"))
        .await;
    assert!(broken.contains("\"file\": \"kernel\""), "{broken}");
    assert!(!broken.contains("kernel_sent"), "{broken}");
    let mut wire = Wire::connect(site.address).await;
    let (range, fresh) = ("Range: bytes=500000-", format!("If-Range: {etag}"));
    let rest = wire.ask("GET", &kernel, &[range, &fresh]).await;
    assert!(rest.status == 206 && rest.body == site.bytes_of(FileRole::Kernel, 0)[500_000..]);
    site.timeline(boot.id, |t| t.contains("kernel_sent")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn block_reads_are_one_transfer() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let initrd = site.path(boot.id, "initrd0");
    let mut wire = Wire::connect(site.address).await;
    wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    for range in ["0-29999", "50000-", "30000-49999"] {
        let range = format!("Range: bytes={range}");
        assert_eq!(wire.ask("GET", &initrd, &[&range]).await.status, 206);
    }
    let timeline = site.timeline(boot.id, |t| t.contains("initrd_sent")).await;
    let of = |stage| stages(&timeline).iter().filter(|s| **s == stage).count();
    assert_eq!(
        (of("initrd_requested"), of("initrd_sent")),
        (1, 1),
        "{timeline}"
    );
    assert!(!timeline.contains("transfer_broken"), "{timeline}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_is_cut_and_named() {
    let site = Site::with(HttpLimits {
        stall: Duration::from_millis(400),
        ..HttpLimits::default()
    })
    .await;
    let boot = site.power_on(1, HERE);
    let mut wire = Wire::connect(site.address).await;
    wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    let kernel = site.path(boot.id, "kernel");
    // A window that three megabytes do not fit into.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(65536).unwrap();
    let mut stalled = socket.connect(site.address).await.unwrap();
    let ask = format!("GET {kernel} HTTP/1.1\r\nHost: x\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stalled, ask.as_bytes())
        .await
        .unwrap();
    let timeline = site
        .timeline(boot.id, |t| t.contains("transfer_broken"))
        .await;
    assert!(timeline.contains("kernel_requested"), "{timeline}");
    assert!(!timeline.contains("kernel_sent"), "{timeline}");
    drop(stalled);
}

/// The connection of a machine that was reset is found dead only later: that is no news of
/// its next boot.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_says_nothing_of_the_next_boot() {
    let site = Site::start().await;
    let old = site.power_on(1, HERE);
    let mut wire = Wire::connect(site.address).await;
    wire.ask("GET", &site.path(old.id, "boot.ipxe"), &[]).await;
    wire.send(
        format!(
            "GET {} HTTP/1.1\r\nHost: x\r\n\r\n",
            site.path(old.id, "kernel")
        )
        .as_bytes(),
    )
    .await;
    wire.head().await.unwrap();
    let next = site.power_on(1, HERE);
    assert_ne!(next.id, old.id);
    drop(wire);
    let mut wire = Wire::connect(site.address).await;
    wire.ask("GET", &site.path(next.id, "boot.ipxe"), &[]).await;
    wire.ask("GET", &site.path(next.id, "initrd0"), &[]).await;
    let timeline = site.timeline(next.id, |t| t.contains("initrd_sent")).await;
    assert!(!timeline.contains("transfer_broken"), "{timeline}");
}
