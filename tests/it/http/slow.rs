//! Slow clients by the thousand (scoreboard, row 30), with the limits that the product has.
//!
//! 300 connections once in `make test`; under `DLS_TORTURE` 5,000 of them, for a minute: what
//! the server has closed is opened again. Beside them an honest machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dls::clock::Clock;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::site::Site;
use super::wire::Wire;

/// Connections of one address; the server takes 64.
const PER_ADDRESS: usize = 60;
/// Each slow connection is over by then.
const LONGEST: Duration = Duration::from_secs(15);

/// What a slow client is slow at.
#[derive(Debug, Clone, Copy)]
enum Slow {
    /// Says nothing.
    Mute,
    /// A header, a byte now and then.
    Header,
    /// The same, a new line of it at a time.
    Lines,
    /// A report's body, a byte now and then.
    Body,
    /// Asks for a large file, and takes a few bytes of it now and then.
    Reader,
    /// Asks for a large file, and takes nothing.
    Deaf,
}

impl Slow {
    const ALL: [Self; 6] = [
        Self::Mute,
        Self::Header,
        Self::Lines,
        Self::Body,
        Self::Reader,
        Self::Deaf,
    ];

    /// What is sent at once.
    fn begins(self, kernel: &str, bye: &str) -> String {
        match self {
            Self::Mute => String::new(),
            Self::Header => "GET /loader/snponly.efi HT".to_owned(),
            Self::Lines => "GET /loader/snponly.efi HTTP/1.1\r\nHost: x\r\n".to_owned(),
            Self::Body => format!("POST {bye} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"),
            Self::Reader | Self::Deaf => format!("GET {kernel} HTTP/1.1\r\nHost: x\r\n\r\n"),
        }
    }
}

async fn connect(server: SocketAddr, from: Ipv4Addr, receive: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = receive {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.bind((from, 0).into()).unwrap();
    socket.connect(server).await.unwrap()
}

/// One slow connection, until the server ends it; how long that took.
async fn crawl(
    server: SocketAddr,
    from: Ipv4Addr,
    slow: Slow,
    begin: &str,
    clock: &Clock,
) -> Duration {
    let small = matches!(slow, Slow::Reader | Slow::Deaf).then_some(4096);
    let mut stream = connect(server, from, small).await;
    let began = clock.instant();
    let since = || clock.instant().saturating_duration_since(began);
    let _ = stream.write_all(begin.as_bytes()).await;
    let mut byte = [0];
    let mut line = [0; 64];
    loop {
        let pause = tokio::time::sleep(Duration::from_secs(1));
        // An end that did not come is found out below.
        let patience = LONGEST + Duration::from_secs(6);
        let over = match slow {
            Slow::Mute => {
                let read = tokio::time::timeout(patience, stream.read(&mut line)).await;
                read.is_ok_and(|read| read.map_or(true, |n| n == 0))
            }
            Slow::Header | Slow::Lines | Slow::Body => {
                let more: &[u8] = match slow {
                    Slow::Lines => b"A: b\r\n",
                    _ => b"x",
                };
                tokio::select! {
                    read = stream.read(&mut line) => read.map_or(true, |n| n == 0),
                    () = pause => stream.write_all(more).await.is_err(),
                }
            }
            Slow::Reader => {
                pause.await;
                let read = tokio::time::timeout(patience, stream.read(&mut byte)).await;
                read.is_ok_and(|read| read.map_or(true, |n| n == 0))
            }
            Slow::Deaf => {
                pause.await;
                // An end is seen without reading.
                let gone = stream.peer_addr().is_err();
                gone || matches!(stream.take_error(), Ok(Some(_)) | Err(_))
            }
        };
        // What is still in a buffer is no connection: the server's side is looked at below.
        if over || since() > LONGEST + Duration::from_secs(5) {
            return since();
        }
    }
}

/// All descriptors that we may have: each connection takes two here.
fn room_for_all() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// How many connections the server has.
fn open(metrics: &str) -> usize {
    let line = metrics
        .lines()
        .find(|l| l.starts_with("dls_http_connections "));
    line.and_then(|l| l.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_slow_connections_are_gone_in_time_and_hinder_nobody() {
    let torture = crate::support::torture();
    let count = if torture { 5_000 } else { 300 };
    assert!(
        room_for_all() > 3 * count,
        "too few descriptors are allowed"
    );
    let site = Arc::new(Site::start().await);
    let boot = site.power_on(1, Ipv4Addr::LOCALHOST);
    let (kernel, bye) = (site.path(boot.id, "kernel"), site.path(boot.id, "bye"));
    let stored = site.dir.path().join("storage");
    let stored = stored.join(format!("images/{}/kernel", site.image.id));
    let again = Arc::new(AtomicBool::new(torture));
    let clock = Clock::system();
    let mut crowd = JoinSet::new();
    for n in 0..count {
        let host = u8::try_from(n / PER_ADDRESS % 250).unwrap() + 1;
        let from = Ipv4Addr::new(127, 9, 0, host);
        let slow = Slow::ALL[n % Slow::ALL.len()];
        let begin = slow.begins(&kernel, &bye);
        let (server, again, clock) = (site.address, again.clone(), clock.clone());
        crowd.spawn(async move {
            let mut longest = Duration::ZERO;
            loop {
                longest = longest.max(crawl(server, from, slow, &begin, &clock).await);
                if !again.load(Ordering::Relaxed) {
                    return (slow, longest);
                }
            }
        });
    }
    // The honest one, all the while, at the place where it may have to wait longest: a new
    // connection and a large file.
    let mut waits = Vec::new();
    let began = clock.instant();
    let while_slow = if torture { 60 } else { 8 };
    while clock.instant().saturating_duration_since(began) < Duration::from_secs(while_slow) {
        let asked = clock.instant();
        let stream = connect(site.address, Ipv4Addr::new(127, 8, 0, 1), None).await;
        let reply = Wire::over(stream).ask("GET", &kernel, &[]).await;
        assert_eq!(
            (reply.status, reply.body.len()),
            (200, super::site::KERNEL_BYTES)
        );
        waits.push(clock.instant().saturating_duration_since(asked));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    again.store(false, Ordering::Relaxed);
    waits.sort();
    let p99 = waits[(waits.len() - 1) * 99 / 100];
    eprintln!(
        "{count} slow connections; {} honest requests, p99 {p99:?}",
        waits.len()
    );
    // Nobody has come since: within the longest time all that are slow are over.
    let last = clock.instant();
    while open(&site.metrics()) > 0 {
        let waited = clock.instant().saturating_duration_since(last);
        assert!(
            waited <= LONGEST,
            "{} live after {waited:?}",
            open(&site.metrics())
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut longest = Duration::ZERO;
    while let Some(one) = crowd.join_next().await {
        let (slow, took) = one.unwrap();
        // Whoever reads slowly first finds what was sent before; the server had ended it.
        if !matches!(slow, Slow::Reader | Slow::Deaf) {
            assert!(
                took <= LONGEST + Duration::from_secs(1),
                "{slow:?}: {took:?}"
            );
            longest = longest.max(took);
        }
    }
    eprintln!("the longest took {longest:?}");
    assert_eq!(
        super::hostile::open_on(&stored),
        0,
        "files of readers that are gone"
    );
    let cut = site.metrics();
    assert!(
        cut.contains("cause=\"slow_request\"") && cut.contains("cause=\"slow_reader\""),
        "{cut}"
    );
    assert!(
        site.tracker.attempt(boot.id).is_some(),
        "half a bye is none"
    );
}
