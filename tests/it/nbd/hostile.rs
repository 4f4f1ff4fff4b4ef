//! Handshakes and requests that no client sends: lengths that lie, names that are none, bytes
//! at the wrong time, connections that end anywhere. Beside each, a client with its disk goes
//! on as if nothing were there. Rows 42 to 47 of what went wrong in other servers.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use dls::export::nbd::NbdLimits;
use dls::storage::Access;

use super::raw::{Client, connect, info, length, meta, option};
use super::{NAME, aside, limits, memory, serve};

const SIZE: u64 = 4 << 20;

/// The live client beside: it reads what it wrote.
fn lives(client: &mut Client<std::net::TcpStream>) {
    let written = client.exchange(1, 0, 4096, 4, &[1, 2, 3, 4]);
    assert_eq!(written.error, 0);
    let read = client.exchange(0, 0, 4096, 4, &[]);
    assert_eq!(read.whole(4096, 4), [1, 2, 3, 4]);
}

async fn with_neighbour(act: impl FnOnce(SocketAddr) + Send + 'static) {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let address = server.address;
    aside(move || {
        let mut neighbour = Client::ready(address, true);
        lives(&mut neighbour);
        act(address);
        lives(&mut neighbour);
        // And a new one is served.
        lives(&mut Client::ready(address, false));
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_lengths_of_every_field() {
    with_neighbour(|address| {
        let lengths = |most: u32| [0, 1, most - 1, most, most + 1, 1 << 31, u32::MAX];
        // The option's own length, for every option: the connection is told off or closed, and
        // nothing waits for bytes that will not come.
        for code in (0..=12).chain([255, u32::MAX]) {
            for claimed in lengths(65_536).into_iter().chain(lengths(4096)) {
                let mut client = Client::greeted(address);
                let _ = client.stream.write_all(&option(code, claimed, &[0; 16]));
                let _ = client.stream.shutdown(std::net::Shutdown::Write);
                assert!(client.is_closed(), "{code} {claimed}");
            }
        }
        // Lengths within INFO, GO and the metadata options.
        for claimed in lengths(4096) {
            for code in [6, 7, 9, 10] {
                let mut client = Client::greeted(address);
                client.ask(8, &[]);
                let mut data = if code < 8 {
                    info("x", &[3])
                } else {
                    meta("x", &["base:"])
                };
                data[..4].copy_from_slice(&claimed.to_be_bytes());
                if claimed != 1 {
                    assert_eq!(client.refused(code, &data).0, 3, "{code} {claimed}");
                }
                // The count of what follows, and a query's length.
                for at in [5, 9] {
                    let mut data = if code < 8 {
                        info("x", &[3, 3])
                    } else {
                        meta("x", &["base:"])
                    };
                    let bytes = claimed.to_be_bytes();
                    if code < 8 {
                        data[5..7].copy_from_slice(&bytes[2..]);
                    } else {
                        data[at..at + 4].copy_from_slice(&bytes);
                    }
                    let fits = claimed == if at == 5 { 1 } else { 5 };
                    let second_name = code < 8 && claimed & 0xffff == 2;
                    if !(fits || second_name) {
                        assert_eq!(client.refused(code, &data).0, 3, "{code} {claimed}");
                    }
                }
                client.open(true);
                lives(&mut client);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_options_are_refused_by_name() {
    with_neighbour(|address| {
        let mut client = Client::greeted(address);
        // Unknown ones, extended headers among them.
        for code in [0, 4, 11, 99, u32::MAX] {
            assert_eq!(client.refused(code, &[]).0, 1);
        }
        assert_eq!(client.refused(99, &[7; 5000]).0, 1);
        // Too long to keep, short enough to pass over: the stream stays in step.
        assert_eq!(client.refused(99, &[7; 8193]).0, 9);
        assert_eq!(client.refused(7, &[7; 65_536]).0, 9);
        assert_eq!(client.refused(5, &[]).0, 2, "no certificate");
        assert_eq!(client.refused(3, b"x").0, 3);
        assert_eq!(client.refused(8, b"x").0, 3);
        assert_eq!(client.refused(10, &meta(NAME, &["base:allocation"])).0, 3);
        assert_eq!(client.ask(3, &[]), [(1, vec![])], "no name is listed");
        // Names.
        for (name, error, text) in [
            ("", 6, "no disk is there"),
            ("../../etc/passwd", 6, "no disk is there"),
            ("over", 2, "a restart begins a new one"),
            ("in-use", 2, "another boot of this machine"),
            ("full", 2, "no space is left"),
            ("stopping", 7, "gives out no disks now"),
            ("nul\0", 3, "control characters"),
        ] {
            let (number, said) = client.refused(7, &info(name, &[]));
            assert_eq!(number, error, "{name:?}");
            assert!(said.contains(text), "{said}");
        }
        assert_eq!(client.refused(6, &info("shy", &[])).0, 2);
        let mut data = info("xxxx", &[]);
        data[4..8].copy_from_slice(&[0xff; 4]);
        assert_eq!(client.refused(7, &data).0, 3, "not UTF-8");
        client.open(true);
        lives(&mut client);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ends_of_handshakes() {
    with_neighbour(|address| {
        // Client flags that we do not know.
        for flags in [4, 1 << 31, u32::MAX] {
            let mut client = Client::on(connect(address));
            client.greet(flags);
            assert!(client.is_closed());
        }
        // The 33rd option, whatever it is.
        let mut client = Client::greeted(address);
        for _ in 0..32 {
            client.ask(3, &[]);
        }
        client.send(&option(3, 0, &[]));
        assert!(client.is_closed());
        // EXPORT_NAME can't be refused in words.
        for name in [&b"wrong"[..], &[0xff; 10], &[b'a'; 4097]] {
            let mut client = Client::greeted(address);
            client.send(&option(1, length(name), name));
            assert!(client.is_closed());
        }
        // No option without fixed newstyle, but EXPORT_NAME.
        let mut client = Client::on(connect(address));
        client.greet(0);
        client.send(&option(3, 0, &[]));
        assert!(client.is_closed());
        let mut client = Client::on(connect(address));
        client.greet(0);
        client.send(&option(1, length(NAME.as_bytes()), NAME.as_bytes()));
        assert_eq!(client.u64(), SIZE);
        assert_eq!(client.bytes(126)[2..], [0; 124]);
        lives(&mut client);
        // ABORT is answered.
        let mut client = Client::greeted(address);
        assert_eq!(client.ask(2, &[]), [(1, vec![])]);
        assert!(client.is_closed());
    })
    .await;
}

/// A whole session of an ordinary client: handshake, a write, a read, its end.
fn session() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option(8, 0, &[]));
    let contexts = meta(NAME, &["base:allocation"]);
    bytes.extend(option(10, length(&contexts), &contexts));
    let go = info(NAME, &[3]);
    bytes.extend(option(7, length(&go), &go));
    for (command, length, payload) in [(1, 8, &b"payload!"[..]), (0, 8, b""), (2, 0, b"")] {
        let request = dls::export::nbd::wire::transmission::Request {
            flags: 0,
            command,
            cookie: 9,
            offset: 0,
            length,
        };
        bytes.extend(request.to_bytes());
        bytes.extend(payload);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_disconnects_after_every_byte() {
    with_neighbour(|address| {
        let bytes = session();
        for end in 0..=bytes.len() {
            let mut stream = connect(address);
            let _ = stream.write_all(&bytes[..end]);
            if end % 2 == 0 {
                // An abrupt end: a reset in place of a FIN.
                socket2::SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            drop(stream);
        }
        // All of it in one piece, and byte by byte, is a session like any other.
        for step in [bytes.len(), 1] {
            let mut client = Client::on(connect(address));
            for piece in bytes.chunks(step) {
                client.send(piece);
            }
            assert!(client.is_closed());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_half_handshakes_take_no_place_of_others() {
    let mut limits = limits();
    limits.handshake = Duration::from_secs(2);
    let server = serve(memory(SIZE, Access::Write), limits).await;
    let address = server.address;
    aside(move || {
        let mut neighbour = Client::ready(address, true);
        for round in 0..4 {
            let waiting: Vec<_> = (0..250)
                .map(|n| {
                    let mut stream = connect(address);
                    let bytes = session();
                    let _ = stream.write_all(&bytes[..(n + round) % 100]);
                    stream
                })
                .collect();
            lives(&mut neighbour);
            lives(&mut Client::ready(address, true));
            if round == 3 {
                // Each is closed in time, by the server.
                for stream in waiting {
                    assert!(Client::on(stream).is_closed());
                }
            }
        }
        lives(&mut neighbour);
    })
    .await;
    server.counts("nbd_handshakes 0");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_crowds_of_one_address_are_kept_out() {
    let limits = NbdLimits {
        handshakes_per_address: 4,
        connections: 2,
        ..NbdLimits::default()
    };
    let server = serve(memory(SIZE, Access::Write), limits).await;
    let address = server.address;
    let door = server.door.clone();
    aside(move || {
        let mut first = Client::ready(address, true);
        let mut second = Client::ready(address, true);
        // Who is served has left its place among the handshakes.
        lives(&mut first);
        lives(&mut second);
        let mut third = Client::greeted(address);
        let (error, text) = third.refused(7, &info(NAME, &[]));
        assert_eq!((error, text.contains("too many")), (2, true));
        assert_eq!(door.attached(), 2, "nothing was opened for it");
        let _waiting: Vec<_> = (0..3).map(|_| Client::greeted(address)).collect();
        assert!(Client::on(connect(address)).is_closed());
        lives(&mut first);
    })
    .await;
    assert!(
        server
            .counted("nbd_connections_refused_total{reason=\"too_many_handshakes_of_address\"} 1")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests() {
    with_neighbour(|address| {
        for structured in [true, false] {
            let mut client = Client::ready(address, structured);
            let edges = [
                SIZE,
                (1 << 32) - 1,
                1 << 32,
                (1 << 32) + 1,
                (1 << 63) - 1,
                1 << 63,
                (1 << 63) + 1,
                u64::MAX,
            ];
            for offset in edges {
                for length in [1, 512, u32::MAX] {
                    for (command, error) in [(0, 22), (4, 28), (5, 22), (6, 28), (7, 22)] {
                        let answer = client.exchange(command, 0, offset, length, &[]);
                        assert_eq!(answer.error, error, "{command} {offset:#x} {length}");
                    }
                }
                let answer = client.exchange(1, 0, offset, 3, &[1, 2, 3]);
                assert_eq!(answer.error, 28);
            }
            // Lengths that end at the very edge of 32 bits.
            for command in [0, 4, 5, 6, 7] {
                for offset in [0, 1, SIZE - 1] {
                    let answer = client.exchange(command, 0, offset, u32::MAX, &[]);
                    assert_ne!(answer.error, 0);
                }
            }
            // Commands and flags that there are not.
            for command in [8, 9, 255, u16::MAX] {
                assert_eq!(client.exchange(command, 0, 0, 0, &[]).error, 22);
            }
            for command in [0, 3, 4, 5, 6, 7] {
                assert_eq!(client.exchange(command, 1 << 15, 0, 512, &[]).error, 22);
            }
            assert_eq!(client.exchange(1, 1 << 15, 0, 3, b"abc").error, 22);
            assert_eq!(client.exchange(3, 0, 1, 0, &[]).error, 22);
            // Nothing is not an error.
            for command in [0, 1, 4, 5, 6] {
                assert_eq!(client.exchange(command, 0, SIZE, 0, &[]).error, 0);
            }
            lives(&mut client);
            // What is no request ends the connection.
            client.send(&[0; 28]);
            assert!(client.is_closed());
        }
    })
    .await;
}
