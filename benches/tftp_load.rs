//! A crowd of TFTP clients, for benchmarks: `tftp_load HOST:PORT NAME FILE CLIENTS SECONDS
//! BLKSIZE WINDOW`.
//!
//! Each client (a thread) fetches NAME over and over, and breaks off when the time is up; octet
//! mode with the options `tsize`, `blksize` and, where WINDOW is more than 1, `windowsize` (RFC 1350,
//! 2347 to 2349, 7440). Every byte is compared with FILE as it comes. Prints one line of JSON;
//! exit status 1 if a transfer failed.

use std::env;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dls::clock::Clock;

/// A client's own timer, as long as that of the usual ROMs.
const SILENCE: Duration = Duration::from_secs(1);
/// Silences in a row after which a client gives up.
const PATIENCE: u32 = 6;

/// What all clients share.
struct Work {
    clock: Clock,
    server: SocketAddr,
    name: String,
    expected: Vec<u8>,
    blksize: usize,
    window: u16,
    end: Instant,
}

/// One transfer's figures.
struct Fetched {
    /// `None` if it was broken off.
    took: Option<Duration>,
    first_data: Duration,
    packets: u64,
    bytes: usize,
}

impl Work {
    fn request(&self) -> Vec<u8> {
        let mut request = vec![0, 1];
        let blksize = self.blksize.to_string();
        let window = self.window.to_string();
        let mut words = vec![&self.name, "octet", "tsize", "0", "blksize", &blksize];
        if self.window > 1 {
            words.extend(["windowsize", &window]);
        }
        for word in words {
            request.extend_from_slice(word.as_bytes());
            request.push(0);
        }
        request
    }

    fn since(&self, begin: Instant) -> Duration {
        self.clock.instant().saturating_duration_since(begin)
    }

    /// Fetches the file once.
    fn fetch(&self) -> Result<Fetched> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(SILENCE))?;
        let begin = self.clock.instant();
        let mut last = self.request();
        socket.send_to(&last, self.server)?;
        let mut buffer = vec![0_u8; 65536];
        let (mut peer, mut silences) = (None, 0);
        let (mut blksize, mut window) = (512, 1);
        // The block that comes next, blocks since the last ACK, and whether the gap before
        // what comes has been told of: once is enough for all packets behind it.
        let (mut next, mut unacked, mut told) = (1_u16, 0, false);
        let (mut at, mut packets, mut first_data) = (0, 0, None);
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                if self.clock.instant() > self.end {
                    return Ok(broken_off(at, packets, first_data));
                }
                silences += 1;
                ensure!(silences < PATIENCE, "no answer at block {next}");
                socket.send_to(&last, peer.unwrap_or(self.server))?;
                (unacked, told) = (0, false);
                continue;
            };
            if *peer.get_or_insert(from) != from {
                continue;
            }
            let packet = buffer.get(..length).unwrap_or_default();
            match packet {
                [0, 3, high, low, payload @ ..] => {
                    packets += 1;
                    let block = u16::from_be_bytes([*high, *low]);
                    if block != next {
                        if !told {
                            last = ack(next.wrapping_sub(1));
                            socket.send_to(&last, from)?;
                            (unacked, told) = (0, true);
                        }
                        continue;
                    }
                    let end = at + payload.len();
                    ensure!(
                        self.expected.get(at..end) == Some(payload),
                        "block {block} is not what the file has at {at}"
                    );
                    first_data.get_or_insert_with(|| self.since(begin));
                    (at, silences, told) = (end, 0, false);
                    unacked += 1;
                    next = next.wrapping_add(1);
                    let done = payload.len() < blksize;
                    if done || unacked >= window {
                        if !done && self.clock.instant() > self.end {
                            socket.send_to(b"\0\x05\0\0time is up\0", from)?;
                            return Ok(broken_off(at, packets, first_data));
                        }
                        last = ack(block);
                        socket.send_to(&last, from)?;
                        unacked = 0;
                    }
                    if done {
                        ensure!(at == self.expected.len(), "it ended at {at}");
                        let took = self.since(begin);
                        let first_data = first_data.unwrap_or(took);
                        return Ok(Fetched {
                            took: Some(took),
                            first_data,
                            packets,
                            bytes: at,
                        });
                    }
                }
                [0, 6, options @ ..] => {
                    let text = String::from_utf8_lossy(options).to_lowercase();
                    let mut words = text.split('\0');
                    while let (Some(key), Some(value)) = (words.next(), words.next()) {
                        match key {
                            "blksize" => blksize = value.parse()?,
                            "windowsize" => window = value.parse()?,
                            _ => {}
                        }
                    }
                    last = ack(0);
                    socket.send_to(&last, from)?;
                }
                [0, 5, rest @ ..] => bail!("the server says {:?}", String::from_utf8_lossy(rest)),
                _ => bail!("an unexpected packet of {length} bytes"),
            }
        }
    }
}

/// A transfer that the end of the measurement cut short.
fn broken_off(bytes: usize, packets: u64, first_data: Option<Duration>) -> Fetched {
    Fetched {
        took: None,
        first_data: first_data.unwrap_or_default(),
        packets,
        bytes,
    }
}

fn ack(block: u16) -> Vec<u8> {
    let [high, low] = block.to_be_bytes();
    vec![0, 4, high, low]
}

/// The value below which that share of a sorted list lies, in milliseconds.
fn share(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len().saturating_sub(1)) * percent / 100;
    sorted.get(at).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, name, file, clients, seconds, blksize, window] = arguments.as_slice() else {
        bail!("usage: tftp_load HOST:PORT NAME FILE CLIENTS SECONDS BLKSIZE WINDOW");
    };
    let clock = Clock::system();
    let (clients, seconds): (usize, u64) = (clients.parse()?, seconds.parse()?);
    let begin = clock.instant();
    let end = begin + Duration::from_secs(seconds);
    let work = Arc::new(Work {
        clock: clock.clone(),
        server: server.parse()?,
        name: name.clone(),
        expected: std::fs::read(file).context("reading FILE")?,
        blksize: blksize.parse()?,
        window: window.parse()?,
        end,
    });
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let (work, clock) = (Arc::clone(&work), clock.clone());
            std::thread::spawn(move || {
                let (mut fetched, mut failed) = (Vec::new(), 0_usize);
                while clock.instant() < end {
                    match work.fetch() {
                        Ok(one) => fetched.push(one),
                        Err(error) => {
                            if failed == 0 {
                                eprintln!("{error}");
                            }
                            failed += 1;
                        }
                    }
                }
                (fetched, failed)
            })
        })
        .collect();
    let (mut fetched, mut failed) = (Vec::new(), 0);
    for thread in threads {
        let Ok((more, bad)) = thread.join() else {
            bail!("a client panicked");
        };
        fetched.extend(more);
        failed += bad;
    }
    let took = clock.instant().saturating_duration_since(begin);
    let bytes: usize = fetched.iter().map(|f| f.bytes).sum();
    let packets: u64 = fetched.iter().map(|f| f.packets).sum();
    let mut first: Vec<_> = fetched.iter().map(|f| f.first_data).collect();
    let mut whole: Vec<_> = fetched.iter().filter_map(|f| f.took).collect();
    first.sort();
    whole.sort();
    println!(
        "{{\"mb_s\": {:.2}, \"bytes\": {bytes}, \"transfers\": {}, \"failed\": {failed}, \"packets\": {packets}, \
         \"first_data_ms\": [{:.2}, {:.2}], \"transfer_ms\": [{:.2}, {:.2}]}}",
        bytes as f64 / took.as_secs_f64() / 1e6,
        whole.len(),
        share(&first, 50),
        share(&first, 99),
        share(&whole, 50),
        share(&whole, 100),
    );
    ensure!(failed == 0, "{failed} transfers failed");
    Ok(())
}
