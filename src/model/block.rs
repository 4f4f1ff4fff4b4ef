//! A block of a range: addresses that one server may give away by itself.

use uuid::Uuid;

use super::Pool;

/// See the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Of which range.
    pub range_id: Uuid,
    /// Which addresses.
    pub addresses: Pool,
    /// Whose.
    pub server_id: Uuid,
    /// It was claimed so long ago that no lease of another server is still under way in it.
    pub ripe: bool,
}
