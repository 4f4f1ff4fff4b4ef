//! A path -> bytes: the one room behind both doors.
//!
//! Knows the loaders in `loader_dir` and the files of images in storage; decides who may
//! have what; knows no socket.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::path::BootPath;
use super::session::{BootFile, Door};

/// Which of our addresses the client reached, and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// The client's address.
    pub client: Ipv4Addr,
    /// Ours.
    pub server: Ipv4Addr,
    /// By which door.
    pub door: Door,
}

/// The room; clones share it.
#[derive(Debug, Clone)]
pub struct Files {}

/// What is behind a path.
#[derive(Debug)]
pub enum Content {
    /// Text made for this request.
    Text {
        /// The bytes.
        body: bytes::Bytes,
        /// MIME type.
        mime: &'static str,
    },
    /// A file; open already, so that a change under it does not tear it.
    File {
        /// To read from.
        file: std::fs::File,
        /// Bytes.
        size: u64,
        /// Strong ETag without quotes.
        etag: String,
        /// How the timeline names it, and whose it is (`None`: a loader for a machine we
        /// have no attempt of).
        attempt: Option<(Uuid, crate::model::MacAddr)>,
        /// The file's name in the timeline.
        name: BootFile,
    },
    /// A report was taken.
    Noted,
}

/// Why there is nothing; a metric label, and `Display` is what the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoFile {
    /// Bad path.
    #[error("no such file")]
    BadPath,
    /// No such loader in `loader_dir`.
    #[error("no such file")]
    NoLoader,
    /// Wrong token.
    #[error("not yours")]
    BadToken,
    /// That boot is over.
    #[error("this boot is over")]
    Over,
    /// No machine with that address boots from us.
    #[error("not yours")]
    NotBooting,
    /// The image has no such file.
    #[error("no such file")]
    NoSuchItem,
    /// The file is in the catalog but can't be read on this server.
    #[error("the file can't be read on the server")]
    Unreadable,
}

impl Files {
    /// What is behind a path for this visitor. `report` is the body of a phone-home call.
    ///
    /// # Errors
    /// See [`NoFile`].
    pub async fn open(
        &self,
        path: &BootPath,
        visitor: Visitor,
        report: Option<&str>,
    ) -> Result<Content, NoFile> {
        let _ = (path, visitor, report);
        unimplemented!()
    }
}
