//! Packets no client sends. The server must count each, answer few, and go on serving.

use std::net::Ipv4Addr;
use std::time::Duration;

use dls::tftp::metrics::{Ending, Silence, SilenceLabel};

use super::protocol::{Client, Habits, rrq};
use super::{memory, serve};
use crate::support::noise;

fn silent(server: &super::Running, reason: Silence) -> u64 {
    let label = SilenceLabel { reason };
    server.metrics.silences.get_or_create(&label).get()
}

/// How many packets, and from which seed: more under `DLS_TORTURE=1`, another with `DLS_SEED`.
#[expect(clippy::disallowed_methods, reason = "the knobs of the long runs")]
fn effort() -> (u64, u64) {
    let count = std::env::var("DLS_TORTURE").map_or(10_000, |_| 300_000);
    let seed = std::env::var("DLS_SEED").ok().and_then(|s| s.parse().ok());
    (count, seed.unwrap_or(0x5eed_0000_0000_0001))
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides).unwrap()
    }
}

fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.roll(seeds.len() as u64)].clone();
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(bytes.len() as u64 + 1);
        match dice.roll(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            1 if at < bytes.len() => bytes[at] = 0,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, u8::try_from(dice.roll(256)).unwrap()),
            4 => {
                let more = &seeds[dice.roll(seeds.len() as u64)];
                let from = dice.roll(more.len() as u64 + 1);
                bytes.extend_from_slice(&more[from..]);
            }
            _ => {
                let more = vec![bytes.get(at).copied().unwrap_or(b'9'); dice.roll(700)];
                bytes.splice(at..at, more);
            }
        }
    }
    bytes
}

/// Mutated packets at the port for requests and at a transfer's port; then a good transfer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_packets_do_no_harm() {
    let (count, seed) = effort();
    eprintln!("DLS_SEED={seed} packets={count}");
    let all = noise(300_000, 1);
    let server = serve(&[("f", memory(&all))]);
    let seeds: Vec<Vec<u8>> = std::fs::read_dir(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fuzz/corpus/tftp_wire"
    ))
    .unwrap()
    .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
    .chain([rrq("f", &[("blksize", "1468"), ("windowsize", "8")])])
    .collect();
    let mut dice = Dice(seed | 1);
    // A transfer that is under fire from its own client.
    let mut victim = Client::at(Ipv4Addr::new(127, 0, 0, 3)).await;
    victim.send(&rrq("f", &[]), server.address.into()).await;
    let (_, victim_port) = victim.next(Duration::from_secs(5)).await.unwrap();
    let mut sender = Client::local().await;
    for n in 0..count {
        let bytes = mutate(&mut dice, &seeds);
        sender.send(&bytes, server.address.into()).await;
        if n % 4 == 0 && bytes.get(1) != Some(&5) {
            victim.send(&bytes, victim_port).await;
        }
        if n % 50 == 0 {
            // Fresh ports, so that requests are not all taken for repetitions.
            sender = Client::local().await;
            tokio::task::yield_now().await;
        }
    }
    let mut client = Client::at(Ipv4Addr::new(127, 0, 0, 2)).await;
    let habits = Habits { window: 8, acks: 1 };
    let options = [("blksize", "1468"), ("windowsize", "8")];
    let got = client.fetch(server.address, "f", &options, habits).await;
    assert!(got == all);
    server.wait_for(Ending::Complete, 1).await;
    assert!(!server.task.is_finished());
    assert!(silent(&server, Silence::Opcode) > 0 && silent(&server, Silence::Error) > 0);
}

/// CVE-2024-2169; scoreboard: no answer to an ERROR, to stray packets, or to server ports.
#[tokio::test]
async fn loops_can_not_begin() {
    let server = serve(&[("f", memory(b"x"))]);
    let mut client = Client::local().await;
    for (bytes, reason) in [
        (&b"\0\x05\0\x01no\0"[..], Silence::Error),
        (b"\0\x04\0\x01", Silence::NoRequest),
        (b"\0\x03\0\x01data", Silence::NoRequest),
        (b"\0\x06", Silence::NoRequest),
        (b"\0\x09zz", Silence::Opcode),
        (b"", Silence::Short),
    ] {
        client.send(bytes, server.address.into()).await;
        assert!(
            client.next(Duration::from_millis(100)).await.is_none(),
            "{bytes:?}"
        );
        assert!(silent(&server, reason) > 0, "{bytes:?}");
    }
    // Two servers that were made to talk to each other by a forged request: neither answers
    // the other's port. The ports below 1024 need root, which these tests have.
    for port in [67, 69, 1023] {
        let Ok(socket) = tokio::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 9, 9), port)).await
        else {
            panic!("tests run as root");
        };
        socket
            .send_to(&rrq("f", &[]), server.address)
            .await
            .unwrap();
        let mut buffer = [0; 600];
        let answer = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer));
        assert!(answer.await.is_err(), "port {port} was answered");
    }
    // Our own port, forged: the server would talk to itself for ever.
    let own = server.address.port();
    let mut forged = Vec::new();
    let request = rrq("f", &[]);
    for word in [own, own, u16::try_from(8 + request.len()).unwrap(), 0] {
        forged.extend_from_slice(&word.to_be_bytes());
    }
    forged.extend_from_slice(&request);
    let (domain, kind) = (socket2::Domain::IPV4, socket2::Type::RAW);
    let raw = socket2::Socket::new(domain, kind, Some(socket2::Protocol::UDP)).unwrap();
    let to = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    raw.send_to(&forged, &to.into()).unwrap();
    for _ in 0..500 {
        if silent(&server, Silence::SourcePort) == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(silent(&server, Silence::SourcePort), 4);
    assert_eq!(server.metrics.blocks.get(), 0, "no DATA for any of them");
}

/// RFC 1123 section 4.2.3.5: a request to a broadcast address is ignored.
#[tokio::test]
async fn broadcasts_are_ignored() {
    let server = serve(&[("f", memory(b"x"))]);
    let client = Client::local().await;
    client.socket.set_broadcast(true).unwrap();
    let everybody = (Ipv4Addr::new(127, 255, 255, 255), server.address.port());
    client.send(&rrq("f", &[]), everybody.into()).await;
    for _ in 0..500 {
        if silent(&server, Silence::Broadcast) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", server.metrics);
}
