//! Files by TFTP and HTTP, as firmware and iPXE fetch them, each byte handed on as it comes. From
//! the machine's own address where that is asked for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use reqwest::Client;
use tokio::net::UdpSocket;

use super::words::{Cause, Trouble};
use crate::tftp::wire::client::{FromServer, ack, parse, read_request};

const TFTP_PORT: u16 = 69;
/// Times that a TFTP packet is sent before its transfer is given up: after 1, 2, 4, 8 and 16 s.
const TFTP_TRIES: u32 = 5;
/// Longest file by TFTP, in bytes.
const TFTP_LONGEST: usize = 1 << 30;

/// What a TFTP client asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct TftpHabits {
    /// Block size.
    pub(super) blksize: u16,
    /// Blocks for one ACK.
    pub(super) window: u16,
    /// Percent of the usual times between retransmissions.
    pub(super) patience: u32,
}

/// What came of a transfer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Got {
    /// Bytes.
    pub(super) bytes: usize,
    /// Packets that were sent again.
    pub(super) again: u32,
}

/// Takes a piece of a file: its place and its bytes.
pub(super) trait Taker {
    /// Says whether they are right.
    fn take(&mut self, at: usize, piece: &[u8]) -> Result<(), Trouble>;
}

impl<F: FnMut(usize, &[u8]) -> Result<(), Trouble>> Taker for F {
    fn take(&mut self, at: usize, piece: &[u8]) -> Result<(), Trouble> {
        self(at, piece)
    }
}

fn not_local(own: Ipv4Addr, error: &std::io::Error) -> Option<Trouble> {
    (error.kind() == std::io::ErrorKind::AddrNotAvailable).then(|| {
        let detail = format!("{own} is no address of this host");
        Trouble::new(Cause::AddressNotLocal, detail)
    })
}

/// Reads a file by TFTP (RFC 1350, 2347, 2348, 7440), in octet mode.
pub(super) async fn tftp(
    own: Option<Ipv4Addr>,
    server: Ipv4Addr,
    name: &str,
    habits: TftpHabits,
    taker: &mut (impl Taker + ?Sized),
) -> Result<Got, Trouble> {
    let silent = |e: std::io::Error| Trouble::new(Cause::TftpSilence, format!("{server}: {e}"));
    let from = own.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let bound = UdpSocket::bind((from, 0)).await;
    let socket = bound.map_err(|e| not_local(from, &e).unwrap_or_else(|| silent(e)))?;
    let mut to = SocketAddr::from((server, TFTP_PORT));
    let mut packet = read_request(name, habits.blksize, habits.window);
    let mut blksize = 512;
    let mut window = 1;
    let (mut begun, mut complained) = (false, false);
    let (mut expected, mut since_ack) = (1_u16, 0_u16);
    let mut got = Got::default();
    let mut tries = 0;
    let mut buffer = vec![0; 65536];
    socket.send_to(&packet, to).await.map_err(silent)?;
    loop {
        let millis = (1000_u64 << tries) * u64::from(habits.patience) / 100;
        let wait = Duration::from_millis(millis);
        let heard = tokio::time::timeout(wait, socket.recv_from(&mut buffer)).await;
        let Ok(heard) = heard else {
            tries += 1;
            if tries == TFTP_TRIES {
                let detail = format!("`{name}` at {server}: {} bytes, then silence", got.bytes);
                return Err(Trouble::new(Cause::TftpSilence, detail));
            }
            got.again += 1;
            since_ack = 0;
            socket.send_to(&packet, to).await.map_err(silent)?;
            continue;
        };
        let (length, sender) = heard.map_err(silent)?;
        // RFC 1350 section 4: the other end's port is that of its first answer.
        if sender.ip() != to.ip() || (begun && sender.port() != to.port()) {
            continue;
        }
        match parse(&buffer[..length]) {
            Ok(Some(FromServer::OptionAck(granted))) if got.bytes == 0 => {
                (begun, to) = (true, sender);
                blksize = granted
                    .blksize
                    .map_or(512, |n| usize::try_from(n).unwrap_or(512));
                window = granted
                    .windowsize
                    .and_then(|n| u16::try_from(n).ok())
                    .unwrap_or(1);
                packet = ack(0).to_vec();
            }
            Ok(Some(FromServer::Data(block, data))) => {
                (begun, to) = (true, sender);
                if block == expected {
                    taker.take(got.bytes, data)?;
                    got.bytes += data.len();
                    (tries, complained) = (0, false);
                    let last = data.len() < blksize;
                    since_ack += 1;
                    packet = ack(block).to_vec();
                    expected = expected.wrapping_add(1);
                    if last || got.bytes > TFTP_LONGEST {
                        // The last ACK may be lost; whoever waits for it gives up by itself.
                        let _ = socket.send_to(&packet, to).await;
                        return Ok(got);
                    }
                    if since_ack < window {
                        continue;
                    }
                    since_ack = 0;
                } else if complained || expected.wrapping_sub(block) < 0x8000 {
                    // An old one again: an answer to each would double the transfer for good
                    // (RFC 1123 section 4.2.3.1).
                    continue;
                } else {
                    // A gap: the last good block again, once (RFC 7440 section 4).
                    complained = true;
                    got.again += 1;
                    since_ack = 0;
                }
            }
            Ok(Some(FromServer::Error(code, text))) => {
                let text = String::from_utf8_lossy(text);
                let detail = format!("`{name}` at {server}: {} {text}", code.number());
                return Err(Trouble::new(Cause::TftpError, detail));
            }
            _ => continue,
        }
        socket.send_to(&packet, to).await.map_err(silent)?;
    }
}

/// A machine's HTTP: its own connections, kept alive as iPXE keeps them.
pub(super) fn http_client(own: Option<Ipv4Addr>) -> Result<Client, Trouble> {
    let client = Client::builder()
        .no_proxy()
        .local_address(own.map(IpAddr::V4))
        .connect_timeout(Duration::from_secs(20))
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none());
    client
        .build()
        .map_err(|e| Trouble::new(Cause::HttpConnect, e.to_string()))
}

/// The words of an error down to its first cause, without the URL: that has a token in it.
fn said(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(one) = cause {
        words = one.to_string();
        cause = one.source();
    }
    words
}

/// Reads a file by HTTP.
pub(super) async fn http(
    client: &Client,
    url: &str,
    taker: &mut (impl Taker + ?Sized),
) -> Result<Got, Trouble> {
    let asked = client.get(url).send().await;
    let mut response = asked.map_err(connect_trouble)?;
    if response.status() != reqwest::StatusCode::OK {
        let detail = format!("{} for `{}`", response.status(), last_part(url));
        return Err(Trouble::new(Cause::HttpStatus, detail));
    }
    let mut got = Got::default();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                taker.take(got.bytes, &piece)?;
                got.bytes += piece.len();
            }
            Ok(None) => return Ok(got),
            Err(e) => {
                let detail = format!(
                    "`{}` after {} bytes: {}",
                    last_part(url),
                    got.bytes,
                    said(e)
                );
                return Err(Trouble::new(Cause::HttpCut, detail));
            }
        }
    }
}

/// Tells the server something; what it answers but its status is of no concern.
pub(super) async fn tell(client: &Client, url: &str) -> Result<(), Trouble> {
    let asked = client.post(url).send().await;
    let response = asked.map_err(connect_trouble)?;
    if response.status().is_success() {
        return Ok(());
    }
    let detail = format!("{} for `{}`", response.status(), last_part(url));
    Err(Trouble::new(Cause::HttpStatus, detail))
}

fn connect_trouble(error: reqwest::Error) -> Trouble {
    let connecting = error.is_connect();
    let words = said(error);
    let cause = match connecting {
        true if words.contains("Cannot assign requested address") => Cause::AddressNotLocal,
        true => Cause::HttpConnect,
        false => Cause::HttpCut,
    };
    Trouble::new(cause, words)
}

/// What may be shown of a URL.
fn last_part(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// A TCP connection, from the machine's own address.
pub(super) async fn connect(
    own: Option<Ipv4Addr>,
    server: SocketAddrV4,
) -> Result<tokio::net::TcpStream, Trouble> {
    let failed = |e: std::io::Error| {
        let local = own.and_then(|own| not_local(own, &e));
        local.unwrap_or_else(|| Trouble::new(Cause::DiskConnect, format!("{server}: {e}")))
    };
    let socket = tokio::net::TcpSocket::new_v4().map_err(failed)?;
    if let Some(own) = own {
        socket.bind((own, 0).into()).map_err(failed)?;
    }
    let stream = socket.connect(server.into()).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}
