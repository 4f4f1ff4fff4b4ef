//! A file as a response body: read ahead on blocking threads, one chunk at a time.
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

/// Bytes read at a time; one more chunk is read ahead.
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
    /// What has not been asked of the disk yet.
    unread: Range<u64>,
    /// What has not been handed over yet.
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    transfer: Option<Transfer>,
    metrics: HttpMetrics,
}

impl FileBody {
    pub(super) fn new(
        file: File,
        range: Range<u64>,
        transfer: Option<Transfer>,
        metrics: HttpMetrics,
    ) -> Self {
        Self {
            file: Arc::new(file),
            left: range.end - range.start,
            unread: range,
            reading: None,
            transfer,
            metrics,
        }
    }

    fn read_next(&mut self) {
        if self.unread.is_empty() {
            self.reading = None;
            return;
        }
        let at = self.unread.start;
        let len = CHUNK.min(self.unread.end - at);
        self.unread.start += len;
        let file = self.file.clone();
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            file.read_exact_at(&mut chunk, at)?;
            Ok(Bytes::from(chunk))
        }));
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.reading.is_none() {
            self.read_next();
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let chunk = ready!(Pin::new(reading).poll(cx)).unwrap_or_else(|e| Err(io::Error::other(e)));
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!(%error, "a file broke off while it was read");
                self.reading = None;
                self.unread = 0..0;
                return Poll::Ready(Some(Err(error)));
            }
        };
        self.read_next();
        let len = chunk.len() as u64;
        self.left = self.left.saturating_sub(len);
        if let Some(transfer) = &mut self.transfer {
            transfer.advance(len);
        }
        self.metrics.sent(len);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    // `is_end_stream` stays false on purpose: hyper then drops the body only when it has room
    // again, which is when the last chunk has gone to the kernel.
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
