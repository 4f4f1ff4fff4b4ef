//! How much a machine may write to its copy of an image.

use uuid::Uuid;

/// Bytes of the unit in which quotas are set.
pub const QUOTA_UNIT: u64 = 1 << 20;

/// What is set at an image or at a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CloneQuota {
    /// The image, or the client, whose own limit wins.
    pub owner_id: Uuid,
    /// MiB; 0 at a client: no limit, whatever its image says.
    pub clone_quota_mb: i32,
}

/// Bytes that a client may write to its copy of an image, by what is set at both; `None`: no
/// limit.
#[must_use]
pub fn limit(client: Option<i32>, image: Option<i32>) -> Option<u64> {
    let mib = u64::try_from(client.or(image)?).ok()?;
    (mib > 0).then(|| mib.saturating_mul(QUOTA_UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_own_limit_wins_and_nought_is_none() {
        for (client, image, expected) in [
            (None, None, None),
            (None, Some(3), Some(3 << 20)),
            (Some(2), Some(3), Some(2 << 20)),
            (Some(4), None, Some(4 << 20)),
            (Some(0), Some(3), None),
            (Some(i32::MAX), None, Some(2_147_483_647 << 20)),
        ] {
            assert_eq!(limit(client, image), expected, "{client:?} {image:?}");
        }
    }
}
