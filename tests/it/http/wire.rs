//! An HTTP client made of bytes: it sends what it is told and hides nothing of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            unread: vec![],
        }
    }

    pub(crate) const fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: vec![],
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// A request with these header lines.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, headers: &[&str]) -> Reply {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: boot\r\n");
        for line in headers {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        self.send(text.as_bytes()).await;
        self.reply(method == "HEAD").await.expect("an answer")
    }

    /// More bytes; false at the end of the connection.
    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 65536];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await;
        match read.expect("the server answers or hangs up") {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                true
            }
        }
    }

    /// Status line and headers; `None` if the server hangs up instead.
    pub(crate) async fn head(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await {
                return None;
            }
        };
        let head: Vec<u8> = self.unread.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1."), "{status}");
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        Some(Reply {
            status: status[9..12].parse().unwrap(),
            headers,
            body: vec![],
        })
    }

    /// A whole answer.
    pub(crate) async fn reply(&mut self, is_head: bool) -> Option<Reply> {
        let mut reply = self.head().await?;
        assert_eq!(reply.header("transfer-encoding"), None, "never chunked");
        for (name, value) in &reply.headers {
            assert!(!value.is_empty(), "{name} is empty");
        }
        if is_head || matches!(reply.status, 204 | 304) {
            return Some(reply);
        }
        let length = reply.header("content-length").unwrap().parse().unwrap();
        reply.body = self.body(length).await?;
        Some(reply)
    }

    /// So many bytes; `None` if the server hangs up before.
    pub(crate) async fn body(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.unread.drain(..length).collect())
    }

    /// Waits until the server has hung up, throwing away what it still sends.
    pub(crate) async fn hangs_up(&mut self) {
        while self.more().await {
            self.unread.clear();
        }
    }
}
