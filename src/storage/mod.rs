//! Images as bytes on this server. The `directory` backend keeps files below one root.
//!
//! Issue 2 serves kernel images: whole files. The two traits for disks (names, bytes) join
//! this folder with the block backends. Nothing here knows PostgreSQL.

pub mod directory;

pub use directory::{Directory, Staged, StorageError};
