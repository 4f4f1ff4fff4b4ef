//! A file as a response body: what is in memory goes out by the kernel alone, what is not is
//! read on blocking threads, one chunk at a time.
//!
//! It knows exactly how long it is; a file that turns out shorter breaks the connection
//! rather than end early. A body that is dropped closes its file at once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::ledger::Transfer;
use super::metrics::HttpMetrics;
use super::standin::{self, Errands, Sent};
use crate::storage::is_at_hand;

/// Bytes read at a time where they must be waited for.
const CHUNK: u64 = 128 * 1024;

/// What a response carries.
pub(super) enum Answer {
    /// Nothing, or text; sent at once.
    Text(Option<Bytes>),
    /// A file or a part of one.
    File(FileBody),
}

pub(super) struct FileBody {
    file: Arc<File>,
    /// What has not been handed over yet.
    left: Range<u64>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    errands: Errands,
    /// Bytes that are out.
    sent: Arc<Sent>,
}

impl FileBody {
    /// `transfer` is told what went out.
    pub(super) fn new(
        file: File,
        range: Range<u64>,
        errands: Errands,
        transfer: Option<Transfer>,
        metrics: HttpMetrics,
    ) -> Self {
        Self {
            file: Arc::new(file),
            left: range,
            reading: None,
            errands,
            sent: Sent::new(move |bytes| {
                metrics.sent(bytes);
                if let Some(transfer) = &transfer {
                    transfer.has_ended(bytes);
                }
            }),
        }
    }

    /// Starts to read what comes next.
    fn read(&self, range: Range<u64>) -> JoinHandle<io::Result<Bytes>> {
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || {
            let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, range.start)?;
            Ok(Bytes::from(chunk))
        })
    }

    /// The next bytes: stand-ins for what is in memory, else what was read.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.reading.is_none() {
            let at = self.left.start;
            let warm = at..self.left.end.min(at + standin::LONGEST as u64);
            if is_at_hand(&self.file, warm.start, warm.end - warm.start) {
                return Poll::Ready(Ok(self.errands.note(&self.file, warm, &self.sent)));
            }
            self.reading = Some(self.read(at..warm.end.min(at + CHUNK)));
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Pending;
        };
        let chunk = ready!(Pin::new(reading).poll(cx)).unwrap_or_else(|e| Err(io::Error::other(e)));
        self.reading = None;
        if let Ok(chunk) = &chunk {
            self.sent.add(chunk.len());
        }
        Poll::Ready(chunk)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = match ready!(self.poll_next(cx)) {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!(%error, "a file broke off while it was read");
                self.left = 0..0;
                return Poll::Ready(Some(Err(error)));
            }
        };
        self.left.start += chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end.saturating_sub(self.left.start))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|t| Ok(Frame::data(t)))),
            Self::File(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::File(body) => body.size_hint(),
        }
    }
}
