//! A client of our own, to do what ready-made ones do not: probe, stray, repeat, crowd.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use dls::tftp::metrics::{Ending, Refusal, RefusalLabel, Silence, SilenceLabel};
use dls::tftp::room::Progress;
use dls::tftp::server::{BindError, Caps, TftpServer};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Running, memory, serve, serve_with};
use crate::support::noise;

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(300);

/// A client at an address of the loopback network.
pub(super) struct Client {
    pub(super) socket: UdpSocket,
    buffer: Vec<u8>,
}

/// What a fetch does beyond the ordinary.
#[derive(Clone, Copy)]
pub(super) struct Habits {
    pub(super) window: u64,
    /// Every ACK is sent so many times.
    pub(super) acks: usize,
}

pub(super) fn rrq(name: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = format!("\0\x01{name}\0octet\0").into_bytes();
    for (key, value) in options {
        bytes.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
    }
    bytes
}

fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

impl Client {
    pub(super) async fn at(address: Ipv4Addr) -> Self {
        Self {
            socket: UdpSocket::bind((address, 0)).await.unwrap(),
            buffer: vec![0; 70_000],
        }
    }

    pub(super) async fn local() -> Self {
        Self::at(Ipv4Addr::LOCALHOST).await
    }

    pub(super) async fn send(&self, bytes: &[u8], to: SocketAddr) {
        self.socket.send_to(bytes, to).await.unwrap();
    }

    /// The next packet.
    pub(super) async fn next(&mut self, within: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        let (n, from) = timeout(within, self.socket.recv_from(&mut self.buffer))
            .await
            .ok()?
            .unwrap();
        Some((self.buffer[..n].to_vec(), from))
    }

    /// The first answer; asks again as clients do.
    async fn first(
        &mut self,
        server: SocketAddrV4,
        request: &[u8],
    ) -> Option<(Vec<u8>, SocketAddr)> {
        for _ in 0..10 {
            if let Some(got) = self.next(Duration::from_secs(2)).await {
                return Some(got);
            }
            self.send(request, server.into()).await;
        }
        None
    }

    /// Fetches a file as RFC 1350 and RFC 7440 have it.
    pub(super) async fn fetch(
        &mut self,
        server: SocketAddrV4,
        name: &str,
        options: &[(&str, &str)],
        habits: Habits,
    ) -> Vec<u8> {
        let blksize = options
            .iter()
            .find(|(k, _)| *k == "blksize")
            .map_or(512, |(_, v)| v.parse().unwrap());
        self.send(&rrq(name, options), server.into()).await;
        let mut all = Vec::new();
        let mut expected = 1_u16;
        let mut since = 0;
        loop {
            let got = if all.is_empty() && since == 0 {
                self.first(server, &rrq(name, options)).await
            } else {
                self.next(SOON).await
            };
            let (packet, from) = got.expect("the server fell silent");
            let answer = match packet[1] {
                6 => ack(0),
                3 => {
                    let block = u16::from_be_bytes([packet[2], packet[3]]);
                    if block != expected {
                        continue;
                    }
                    all.extend_from_slice(&packet[4..]);
                    expected = expected.wrapping_add(1);
                    since += 1;
                    let done = packet.len() - 4 < blksize;
                    if since < habits.window && !done {
                        continue;
                    }
                    since = 0;
                    for _ in 0..habits.acks {
                        self.send(&ack(block), from).await;
                    }
                    if done {
                        return all;
                    }
                    continue;
                }
                _ => panic!("{packet:?}"),
            };
            for _ in 0..habits.acks {
                self.send(&answer, from).await;
            }
        }
    }
}

fn plain() -> Habits {
    Habits { window: 1, acks: 1 }
}

fn silent(server: &Running, reason: Silence) -> u64 {
    let label = SilenceLabel { reason };
    server.metrics.silences.get_or_create(&label).get()
}

fn refused(server: &Running, reason: Refusal) -> u64 {
    let label = RefusalLabel { reason };
    server.metrics.refusals.get_or_create(&label).get()
}

/// RFC 1350 section 5, RFC 1123 section 4.2.3; reliability case 1: one ERROR, once.
#[tokio::test]
async fn case_1_only_good_read_requests_are_served() {
    let server = serve(&[("f", memory(b"x"))]);
    let long = rrq(&"a".repeat(600), &[]);
    let cases: [(&[u8], u8, Refusal); 6] = [
        (b"\0\x02f\0octet\0", 2, Refusal::Write),
        (b"\0\x01f\0netascii\0", 0, Refusal::Netascii),
        (b"\0\x01f\0octet", 4, Refusal::Malformed),
        (b"\0\x01\0octet\0", 4, Refusal::Malformed),
        (&long, 4, Refusal::Malformed),
        (b"\0\x01g\0octet\0", 1, Refusal::NoLoader),
    ];
    for (bytes, code, reason) in cases {
        let mut client = Client::local().await;
        let before = refused(&server, reason);
        client.send(bytes, server.address.into()).await;
        let (answer, from) = client.next(SOON).await.expect("an answer");
        assert_eq!(answer[..4], [0, 5, 0, code], "{reason:?}");
        assert_eq!(answer.last(), Some(&0));
        assert_eq!(from, server.address.into());
        assert!(
            client.next(QUIET).await.is_none(),
            "answered twice: {reason:?}"
        );
        assert_eq!(refused(&server, reason), before + 1);
    }
}

/// RFC 1350 section 2; reliability case 2: the empty last block on the wire.
#[tokio::test]
async fn case_2_sizes_that_end_in_an_empty_block() {
    for size in [0, 512, 1024] {
        let all = noise(size, 2);
        let server = serve(&[("f", memory(&all))]);
        let got = Client::local()
            .await
            .fetch(server.address, "f", &[], plain())
            .await;
        assert!(got == all, "{size}");
        server.wait_for(Ending::Complete, 1).await;
    }
}

/// RFC 2347, 2348, 2349, 7440; reliability cases 3, 5 and 10: what the OACK says.
#[tokio::test]
async fn cases_3_5_10_options_on_the_wire() {
    let server = serve(&[("f", memory(&noise(100_000, 3)))]);
    for (options, want) in [
        (
            vec![("BlkSize", "1468"), ("TSIZE", "0")],
            "BlkSize 1468 TSIZE 100000 ",
        ),
        // The loopback takes datagrams of nearly 64 KiB.
        (vec![("blksize", "65464")], "blksize 65464 "),
        (vec![("blksize", "7"), ("tsize", "0")], "tsize 100000 "),
        (vec![("timeout", "255")], "timeout 255 "),
        (vec![("windowsize", "65535")], "windowsize 64 "),
        (
            vec![("blksize", "1468"), ("windowsize", "64")],
            "blksize 1468 windowsize 43 ",
        ),
        (
            vec![("blksize", "1432"), ("tsize", "0"), ("multicast", "")],
            "blksize 1432 tsize 100000 ",
        ),
        (vec![("tsize", "0"), ("tsize", "5")], "tsize 100000 "),
    ] {
        let mut client = Client::local().await;
        client
            .send(&rrq("f", &options), server.address.into())
            .await;
        let (answer, from) = client.next(SOON).await.unwrap();
        assert_eq!(answer[..2], [0, 6]);
        let text = String::from_utf8(answer[2..].to_vec()).unwrap();
        assert_eq!(text.replace('\0', " "), want);
        client.send(b"\0\x05\0\x08\0", from).await;
    }
    // Nothing to grant: DATA at once.
    let mut client = Client::local().await;
    let options = [("multicast", ""), ("timeout", "0")];
    client
        .send(&rrq("f", &options), server.address.into())
        .await;
    let (answer, from) = client.next(SOON).await.unwrap();
    assert_eq!((answer.len(), &answer[..4]), (516, &[0, 3, 0, 1][..]));
    client.send(b"\0\x05\0\0\0", from).await;
    server.wait_for(Ending::Probe, 8).await;
    server.wait_for(Ending::ClientError, 1).await;
}

/// RFC 2349 and the field; reliability case 4: probe, ERROR, second request. No failure, and
/// nothing more is sent to the first port.
#[tokio::test]
async fn case_4_a_size_probe_is_freed_at_once() {
    let all = noise(50_000, 4);
    let server = serve(&[("shimx64.efi", memory(&all))]);
    for code in [0, 8] {
        let mut probe = Client::local().await;
        let options = [("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")];
        probe
            .send(&rrq("shimx64.efi", &options), server.address.into())
            .await;
        let (_, from) = probe.next(SOON).await.unwrap();
        probe.send(&[0, 5, 0, code, b'x', 0], from).await;
        assert!(probe.next(Duration::from_millis(900)).await.is_none());
    }
    server.wait_for(Ending::Probe, 2).await;
    assert!(server.told("shimx64.efi").is_empty(), "a probe is no event");
    let habits = Habits { window: 4, acks: 1 };
    let options = [("blksize", "1468"), ("windowsize", "4")];
    let got = Client::local()
        .await
        .fetch(server.address, "shimx64.efi", &options, habits)
        .await;
    assert!(got == all);
    server.wait_for(Ending::Complete, 1).await;
    assert!(matches!(
        server.told("shimx64.efi")[..],
        [Progress::Started, Progress::Sent { .. }]
    ));
}

/// RFC 1123 section 4.2.3.1 (Sorcerer's Apprentice); reliability case 7 and the scoreboard's
/// 1.05: every ACK comes twice.
#[tokio::test]
async fn case_7_repeated_acks_repeat_no_data() {
    let all = noise(1_468_000, 7);
    for window in [1_u64, 16] {
        let text = window.to_string();
        let options = [("blksize", "1468"), ("windowsize", text.as_str())];
        let habits = Habits { window, acks: 2 };
        let mut sent = Vec::new();
        // What an ACK repeats it repeats each time; a machine that stands still for longer than a
        // client's round trip, and makes the server send again, does not.
        for _ in 0..3 {
            let server = serve(&[("f", memory(&all))]);
            let got = Client::local()
                .await
                .fetch(server.address, "f", &options, habits)
                .await;
            assert!(got == all);
            server.wait_for(Ending::Complete, 1).await;
            sent.push(server.metrics.blocks.get());
        }
        let least = sent.iter().min().unwrap();
        assert!(
            least * 100 <= 1001 * 105,
            "window {window}: {sent:?} of 1001"
        );
    }
}

/// RFC 1350 section 6; reliability case 7: the last ACK never comes. The file counts as sent
/// soon, since the machine may be running it already, and the transfer ends without a word.
#[tokio::test]
async fn case_7_a_missing_last_ack_is_no_broken_transfer() {
    let server = serve(&[("f", memory(&noise(700, 7)))]);
    let mut client = Client::local().await;
    let options = [("timeout", "1")];
    client
        .send(&rrq("f", &options), server.address.into())
        .await;
    let (_, port) = client.next(SOON).await.unwrap();
    client.send(&ack(0), port).await;
    client.next(SOON).await.unwrap();
    client.send(&ack(1), port).await;
    let (last, _) = client.next(SOON).await.unwrap();
    assert_eq!(last[..4], [0, 3, 0, 2]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(
        server.told("f")[..],
        [Progress::Started, Progress::Sent { .. }]
    ));
    server.wait_for(Ending::Unconfirmed, 1).await;
    assert_eq!(server.told("f").len(), 2);
    while let Some((packet, _)) = client.next(QUIET).await {
        assert_eq!(packet, last, "no last word");
    }
}

/// RFC 1350 section 4; reliability case 8: strangers are told, transfers unharmed, ports fresh.
#[tokio::test]
async fn case_8_strangers_do_no_harm() {
    let all = noise(3000, 8);
    let server = serve(&[("f", memory(&all))]);
    let (mut client, mut stranger) = (Client::local().await, Client::local().await);
    client.send(&rrq("f", &[]), server.address.into()).await;
    let (first, port) = client.next(SOON).await.unwrap();
    assert_ne!(port, server.address.into(), "a port of its own");
    for bytes in [&ack(1)[..], b"\0\x03\0\x01x", b"junk"] {
        stranger.send(bytes, port).await;
        let (answer, from) = stranger.next(SOON).await.unwrap();
        assert_eq!((&answer[..4], from), (&[0, 5, 0, 5][..], port));
    }
    // An ERROR of a stranger ends nothing and gets no answer (CVE-2024-2169).
    stranger.send(b"\0\x05\0\0\0", port).await;
    assert!(stranger.next(QUIET).await.is_none());
    let mut got = first[4..].to_vec();
    for block in 1..=6 {
        client.send(&ack(block), port).await;
        if block < 6 {
            loop {
                let (packet, _) = client.next(SOON).await.unwrap();
                if packet[..4] == [0, 3, 0, u8::try_from(block + 1).unwrap()] {
                    got.extend_from_slice(&packet[4..]);
                    break;
                }
            }
        }
    }
    assert!(got == all);
    server.wait_for(Ending::Complete, 1).await;
    assert_eq!(refused(&server, Refusal::Stranger), 3);
}

/// RFC 2349, RFC 6298; reliability case 9 and the scoreboard: six sends to a silent client,
/// the first retry soon, and all of it small.
#[tokio::test]
async fn case_9_a_silent_client_gets_six_packets() {
    let server = serve(&[("f", memory(&noise(100_000, 9)))]);
    let mut client = Client::local().await;
    let options = [("timeout", "1"), ("blksize", "1468"), ("windowsize", "64")];
    client
        .send(&rrq("f", &options), server.address.into())
        .await;
    let mut bytes = 0;
    let mut packets = 0;
    let first = client.next(Duration::from_secs(1)).await;
    let second = client.next(Duration::from_millis(700)).await;
    for (packet, _) in [first, second].into_iter().flatten() {
        packets += 1;
        bytes += packet.len();
    }
    assert_eq!(
        packets, 2,
        "first retry soon (150 ms; this machine may be busy)"
    );
    while let Some((packet, _)) = client.next(Duration::from_millis(2500)).await {
        packets += 1;
        bytes += packet.len();
    }
    assert_eq!(packets, 6);
    assert!(
        bytes <= 516,
        "{bytes} bytes to an address that may be forged"
    );
    server.wait_for(Ending::TimedOut, 1).await;
    assert!(matches!(
        server.told("f")[..],
        [Progress::Started, Progress::Broken { sent: 0, .. }]
    ));
}

/// The same request again, while its transfer lives, is one transfer.
#[tokio::test]
async fn a_repeated_request_is_one_transfer() {
    let server = serve(&[("f", memory(&noise(2000, 1)))]);
    let mut client = Client::local().await;
    for _ in 0..5 {
        client.send(&rrq("f", &[]), server.address.into()).await;
    }
    let (_, port) = client.next(SOON).await.unwrap();
    // The one transfer may send its block again; nobody else says anything.
    while let Some((packet, from)) = client.next(QUIET).await {
        assert_eq!((&packet[..4], from), (&[0, 3, 0, 1][..], port));
    }
    assert_eq!(silent(&server, Silence::Repeated), 4);
    // Another request from the same port takes over (ROMs with one fixed port).
    client
        .send(&rrq("f", &[("tsize", "0")]), server.address.into())
        .await;
    let (answer, newer) = loop {
        let (answer, from) = client.next(SOON).await.unwrap();
        if from != port {
            break (answer, from);
        }
    };
    assert_eq!(answer[1], 6);
    server.wait_for(Ending::Superseded, 1).await;
    client.send(b"\0\x05\0\x08\0", newer).await;
    server.wait_for(Ending::Probe, 1).await;
}

/// The answer leaves by the address that was asked, and the transfer stays there.
#[tokio::test]
async fn replies_leave_by_the_address_that_was_asked() {
    let all = noise(5000, 1);
    let server = serve(&[("f", memory(&all))]);
    for host in [1, 2, 77] {
        let asked = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), server.address.port());
        let mut client = Client::local().await;
        client.socket.connect(asked).await.unwrap();
        // A connected socket hears nobody else: the refusal must come from just there.
        client.socket.send(&rrq("missing", &[])).await.unwrap();
        let (answer, _) = client.next(SOON).await.unwrap();
        assert_eq!(answer[..4], [0, 5, 0, 1]);
        let mut client = Client::local().await;
        client.send(&rrq("f", &[]), asked.into()).await;
        let (_, from) = client.next(SOON).await.unwrap();
        assert_eq!(from.ip(), *asked.ip());
        client.send(b"\0\x05\0\0\0", from).await;
    }
}

/// The caps: silence with a name, and room again once a transfer ends.
#[tokio::test]
async fn caps_are_named_silences() {
    let caps = Caps {
        transfers: 100,
        per_source: 100,
        unconfirmed_per_source: 2,
    };
    let server = serve_with(&[("f", memory(&noise(2000, 1)))], caps);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = Client::local().await;
        client.send(&rrq("f", &[]), server.address.into()).await;
        clients.push(client);
    }
    let mut third = clients.pop().unwrap();
    assert!(third.next(QUIET).await.is_none());
    assert_eq!(silent(&server, Silence::SourceUnconfirmed), 1);
    // Another address is not hindered.
    let got = Client::at(Ipv4Addr::new(127, 0, 0, 2))
        .await
        .fetch(server.address, "f", &[], plain())
        .await;
    assert_eq!(got.len(), 2000);
    // Once the two are known to be there, there is room.
    for client in &mut clients {
        let (_, port) = client.next(SOON).await.unwrap();
        client.send(&ack(1), port).await;
        client.next(SOON).await.unwrap();
    }
    let got = third.fetch(server.address, "f", &[], plain()).await;
    assert_eq!(got.len(), 2000);
}

/// Scoreboard: many at once; all arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_at_once() {
    let all = noise(200_000, 5);
    let server = serve(&[("f", memory(&all))]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..500_u16 {
        let address = server.address;
        tasks.spawn(async move {
            let [high, low] = n.to_be_bytes();
            let mut client =
                Client::at(Ipv4Addr::new(127, 1, high, low + u8::from(low == 0))).await;
            let window = if n % 2 == 0 { "1" } else { "8" };
            let options = [("blksize", "1468"), ("windowsize", window)];
            let habits = Habits {
                window: window.parse().unwrap(),
                acks: 1,
            };
            timeout(
                Duration::from_secs(60),
                client.fetch(address, "f", &options, habits),
            )
            .await
            .expect("not done in a minute")
        });
    }
    while let Some(got) = tasks.join_next().await {
        assert!(got.unwrap() == all);
    }
    server.wait_for(Ending::Complete, 500).await;
    assert_eq!(server.metrics.active.get(), 0);
}

/// Stopping: what is on its way may finish, nothing new begins.
#[tokio::test]
async fn a_stop_drains() {
    let all = noise(100_000, 5);
    let mut server = serve(&[("f", memory(&all))]);
    let mut client = Client::local().await;
    client.send(&rrq("f", &[]), server.address.into()).await;
    let (packet, port) = client.next(SOON).await.unwrap();
    assert_eq!(packet[1], 3);
    server.cancel.cancel();
    client.send(&ack(1), port).await;
    let (packet, _) = client.next(SOON).await.unwrap();
    assert_eq!(packet[..4], [0, 3, 0, 2], "still served");
    let mut late = Client::local().await;
    late.send(&rrq("f", &[]), server.address.into()).await;
    assert!(late.next(QUIET).await.is_none());
    // A client that never ends is cut off, and told.
    let told = loop {
        let (packet, _) = client.next(Duration::from_secs(8)).await.unwrap();
        if packet[1] == 5 {
            break packet;
        }
    };
    assert!(String::from_utf8_lossy(&told).contains("stopping"));
    timeout(SOON, &mut server.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(server.ended(Ending::Stopped), 1);
}

/// A taken port: one clear sentence.
#[tokio::test]
async fn a_taken_port_is_named() {
    let holder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap();
    let error = TftpServer::bind(address).unwrap_err();
    assert!(matches!(error, BindError::Taken(_)));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let foreign = TftpServer::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert!(matches!(foreign, BindError::NoSuchAddress(_)), "{foreign}");
    let six = TftpServer::bind("[::1]:0".parse().unwrap()).unwrap_err();
    assert!(matches!(six, BindError::NotIpv4(_)), "{six}");
}
