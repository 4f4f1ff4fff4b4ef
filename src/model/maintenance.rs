//! A client whose machine mends its image.

use uuid::Uuid;

use super::Timestamp;

/// A row of `maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Maintenance {
    /// The client.
    pub client_id: Uuid,
    /// The image that it mends.
    pub image_id: Uuid,
    /// Who mends it, as they said.
    pub author: Option<String>,
    /// Since when.
    pub begun_at: Timestamp,
}
