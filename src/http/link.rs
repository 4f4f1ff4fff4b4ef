//! A TCP stream that gives up on a reader that does not read, and remembers how it ended.
//!
//! While writing is blocked, a timer runs; it starts anew only when a fair piece has gone
//! out, so that a client that takes a byte now and then holds nothing for long. Where bytes
//! stand for a file's ([`super::standin`]), the kernel sends those.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::standin::{Errands, is_stand_in};

/// Bytes that must go out for the timer to start anew.
const FAIR: usize = 16 * 1024;

/// How a connection stands; what a broken transfer says as its cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum End {
    /// It is open, or we closed it in order.
    None,
    /// The client closed it.
    Closed,
    /// It broke: reset, or no acknowledgement any more.
    Broken,
    /// The client took nothing for too long.
    Stalled,
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "given up by the server",
            Self::Closed => "closed by the client",
            Self::Broken => "the connection broke",
            Self::Stalled => "the client took nothing any more",
        }
    }
}

/// Shared by the connection and the bodies that go over it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate(Arc<AtomicU8>);

impl Fate {
    pub(super) fn get(&self) -> End {
        match self.0.load(Ordering::Acquire) {
            1 => End::Closed,
            2 => End::Broken,
            3 => End::Stalled,
            _ => End::None,
        }
    }

    /// The first end counts.
    fn set(&self, end: End) {
        let _ = self
            .0
            .compare_exchange(0, end as u8, Ordering::AcqRel, Ordering::Acquire);
    }
}

pub(super) struct Link {
    stream: TcpStream,
    fate: Fate,
    errands: Errands,
    patience: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
    since_reset: usize,
}

impl Link {
    pub(super) const fn new(
        stream: TcpStream,
        fate: Fate,
        errands: Errands,
        patience: Duration,
    ) -> Self {
        Self {
            stream,
            fate,
            errands,
            patience,
            blocked: None,
            since_reset: 0,
        }
    }

    fn disarm(&mut self) {
        self.blocked = None;
        self.since_reset = 0;
    }

    /// Writes when there is room.
    fn poll_when_writable(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self
                .stream
                .try_io(Interest::WRITABLE, || write(&self.stream))
            {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// What the next stand-in stands for.
    fn poll_errand(&self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        self.poll_when_writable(cx, |stream| self.errands.run(stream, most))
    }

    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(written)) => {
                self.since_reset += written;
                if self.since_reset >= FAIR {
                    self.disarm();
                }
                Poll::Ready(Ok(written))
            }
            // A file that has become shorter is nothing that the client has done.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::warn!("a file broke off while it was sent");
                Poll::Ready(Err(error))
            }
            Poll::Ready(Err(error)) => {
                self.fate.set(End::Broken);
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                let patience = self.patience;
                let timer = self
                    .blocked
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(timer.as_mut().poll(cx));
                self.fate.set(End::Stalled);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        match &result {
            Ok(()) if buf.filled().len() > before => self.disarm(),
            Ok(()) => self.fate.set(End::Closed),
            Err(_) => self.fate.set(End::Broken),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = if is_stand_in(buf) {
            self.poll_errand(cx, buf.len())
        } else {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        };
        self.after_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match bufs.iter().position(|b| is_stand_in(b)) {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            Some(at) => {
                let (before, stand_in) = bufs.split_at(at);
                if before.iter().all(|b| b.is_empty()) {
                    self.poll_errand(cx, stand_in.first().map_or(0, |b| b.len()))
                } else {
                    // The head of a file leaves in one packet with its first bytes.
                    let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
                    self.poll_when_writable(cx, |stream| {
                        SockRef::from(stream).send_vectored_with_flags(before, flags)
                    })
                }
            }
        };
        self.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
