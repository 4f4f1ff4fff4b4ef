//! A client of NBD: fixed newstyle, GO, simple replies, one request at a time. No TLS.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::words::{Cause, Trouble};
use crate::export::nbd::wire::client::{
    GREETING, REPLY_HEADER, ReplyKind, export_info, flags, go, is_greeting, reply_header,
    simple_header,
};
use crate::export::nbd::wire::handshake::SEND_FLUSH;
use crate::export::nbd::wire::transmission::{Request, SIMPLE_HEADER};

/// Longest data of an option reply that is taken.
const LONGEST_REPLY: u32 = 64 << 10;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// An open export.
pub(crate) struct Nbd {
    stream: TcpStream,
    size: u64,
    flags: u16,
    cookie: u64,
}

fn closed(error: std::io::Error) -> Trouble {
    Trouble::new(Cause::DiskClosed, format!("nbd: {error}"))
}

fn nonsense(what: &str) -> Trouble {
    Trouble::new(Cause::DiskProtocol, format!("nbd: {what}"))
}

impl Nbd {
    /// The handshake, to the transmission phase.
    pub(super) async fn open(mut stream: TcpStream, export: &str) -> Result<Self, Trouble> {
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting).await.map_err(closed)?;
        if !is_greeting(&greeting) {
            return Err(nonsense("it does not greet as fixed newstyle does"));
        }
        let mut asked = flags(&greeting).to_vec();
        asked.extend_from_slice(&go(export));
        stream.write_all(&asked).await.map_err(closed)?;
        let mut told = None;
        loop {
            let mut head = [0; REPLY_HEADER];
            stream.read_exact(&mut head).await.map_err(closed)?;
            let (kind, length) = reply_header(&head).ok_or_else(|| nonsense("no option reply"))?;
            if length > LONGEST_REPLY {
                return Err(nonsense("an option reply without end"));
            }
            let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
            stream.read_exact(&mut data).await.map_err(closed)?;
            match kind {
                ReplyKind::Info => told = told.or(export_info(&data)),
                ReplyKind::Ack => break,
                ReplyKind::Error(number) => {
                    let text = String::from_utf8_lossy(&data);
                    let detail = format!("nbd: error {} {text}", number & 0x7fff_ffff);
                    return Err(Trouble::new(Cause::DiskRefused, detail));
                }
                ReplyKind::Other => {}
            }
        }
        let (size, flags) = told.ok_or_else(|| nonsense("an export of no size"))?;
        Ok(Self {
            stream,
            size,
            flags,
            cookie: 0,
        })
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    async fn ask(
        &mut self,
        command: u16,
        at: u64,
        length: usize,
        data: &[u8],
    ) -> Result<(), Trouble> {
        self.cookie += 1;
        let request = Request {
            flags: 0,
            command,
            cookie: self.cookie,
            offset: at,
            length: u32::try_from(length).unwrap_or(0),
        };
        let head = request.to_bytes();
        if data.is_empty() {
            return self.stream.write_all(&head).await.map_err(closed);
        }
        // One packet for head and data.
        let whole = [&head[..], data].concat();
        self.stream.write_all(&whole).await.map_err(closed)
    }

    async fn answer(&mut self, what: &str, at: u64) -> Result<(), Trouble> {
        let mut head = [0; SIMPLE_HEADER];
        self.stream.read_exact(&mut head).await.map_err(closed)?;
        match simple_header(&head) {
            Some((cookie, 0)) if cookie == self.cookie => Ok(()),
            Some((cookie, error)) if cookie == self.cookie => {
                let detail = format!("nbd: {what} at {at}: error {error}");
                Err(Trouble::new(Cause::DiskError, detail))
            }
            _ => Err(nonsense("an answer to nothing")),
        }
    }

    pub(super) async fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Trouble> {
        self.ask(READ, at, into.len(), &[]).await?;
        self.answer("read", at).await?;
        self.stream.read_exact(into).await.map_err(closed)?;
        Ok(())
    }

    pub(super) async fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        self.ask(WRITE, at, bytes.len(), bytes).await?;
        self.answer("write", at).await
    }

    pub(super) async fn flush(&mut self) -> Result<(), Trouble> {
        if self.flags & SEND_FLUSH == 0 {
            return Ok(());
        }
        self.ask(FLUSH, 0, 0, &[]).await?;
        self.answer("flush", 0).await
    }

    /// The server says nothing unasked: what comes is the end.
    pub(super) async fn rest(&mut self, pause: Duration) -> Result<(), Trouble> {
        let mut one = [0; 1];
        match tokio::time::timeout(pause, self.stream.peek(&mut one)).await {
            Err(_) => Ok(()),
            Ok(Ok(0)) => Err(Trouble::new(Cause::DiskClosed, "nbd: closed by the server")),
            Ok(Ok(_)) => Err(nonsense("it speaks unasked")),
            Ok(Err(e)) => Err(closed(e)),
        }
    }

    pub(super) async fn close(mut self) {
        if self.ask(DISCONNECT, 0, 0, &[]).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}
