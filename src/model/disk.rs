//! Disks as machines see them: the names that a client's disk keeps for ever.

use std::fmt;

use uuid::Uuid;

use super::{DiskMode, Timestamp, words};

words! {
    /// The protocol that a disk is reached by.
    pub enum DiskProtocol {
        /// iSCSI, RFC 7143.
        Iscsi = "iscsi",
        /// NBD, newstyle.
        Nbd = "nbd",
    }
}

/// What all targets' names begin with (RFC 7143 section 4.2.7.4). `.internal` is reserved for
/// private use, so the name is nobody else's.
pub const IQN_PREFIX: &str = "iqn.2026-11.internal.dls:";

/// The names of a client's disk. They come from the client alone, never from clone, image or
/// session: a system that sees another serial number sees another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskIdentity {
    /// The client, or whatever else owns the disk.
    pub owner: Uuid,
}

impl DiskIdentity {
    /// `iqn.2026-11.internal.dls:` and 32 hex digits.
    #[must_use]
    pub fn iqn(&self) -> String {
        format!("{IQN_PREFIX}{}", self.owner.simple())
    }

    /// Reads what [`DiskIdentity::iqn`] writes; names compare without regard to case
    /// (RFC 3722), so any case is taken.
    #[must_use]
    pub fn from_iqn(name: &str) -> Option<Self> {
        let head = name.get(..IQN_PREFIX.len())?;
        let rest = name.get(IQN_PREFIX.len()..)?;
        if !head.eq_ignore_ascii_case(IQN_PREFIX)
            || rest.len() != 32
            || !rest.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return None;
        }
        Uuid::try_parse(rest).ok().map(|owner| Self { owner })
    }

    /// Unit serial number (SPC-4 7.8.18), 32 hex digits.
    #[must_use]
    pub fn serial(&self) -> String {
        self.owner.simple().to_string()
    }

    /// NAA identifier of type 3, locally assigned (SPC-4 7.8.6.6.4): 8 bytes.
    #[must_use]
    pub fn naa(&self) -> [u8; 8] {
        // The last 60 bits of the id: in a random UUID all of them but two are random.
        let low = self.owner.as_u128() & 0x0fff_ffff_ffff_ffff;
        let low = u64::try_from(low).unwrap_or(0);
        (0x3000_0000_0000_0000 | low).to_be_bytes()
    }
}

/// What a server tells of a clone in its store: a row of `clones`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneReport {
    /// Its name in the store.
    pub name: String,
    /// Whether what is written to it is kept.
    pub mode: DiskMode,
    /// Whose, if known.
    pub client_id: Option<Uuid>,
    /// The boot that it belongs to, or that has it.
    pub session_id: Option<Uuid>,
    /// The image that it was made from.
    pub image_id: Option<Uuid>,
    /// That image's name.
    pub image_name: Option<String>,
    /// The version of it that it was made from.
    pub version_name: Option<String>,
    /// Bytes that the machine sees.
    pub size_bytes: i64,
    /// Bytes that it takes, without what it shares.
    pub used_bytes: i64,
    /// Bytes that it refers to, what it shares included.
    pub referenced_bytes: i64,
    /// Bytes that its machine has written, where a quota has them counted.
    pub own_bytes: Option<i64>,
    /// Bytes that its machine may write.
    pub quota_bytes: Option<i64>,
    /// When a machine last logged in to it, as far as this run of the server knows.
    pub last_attached_at: Option<Timestamp>,
    /// When its last connection ended, as far as this run of the server knows.
    pub idle_since: Option<Timestamp>,
    /// Spoken how, while a machine has it.
    pub protocol: Option<DiskProtocol>,
    /// From where, while a machine has it.
    pub peer: Option<String>,
}

/// A clone as the catalog knows it, with the names of what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClientDisk {
    /// Its name in its server's store.
    pub name: String,
    /// Host name of its client, while its row exists.
    pub client: Option<String>,
    /// Whether what is written to it is kept.
    pub mode: DiskMode,
    /// Name of the image that it was made from.
    pub image: Option<String>,
    /// Name of the version that it was made from.
    pub version: Option<String>,
    /// Bytes that the machine sees.
    pub size_bytes: i64,
    /// Bytes that only it takes in the store.
    pub used_bytes: i64,
    /// Bytes that it refers to, what it shares included.
    pub referenced_bytes: i64,
    /// Bytes that its machine has written, where a quota has them counted.
    pub own_bytes: Option<i64>,
    /// Bytes that its machine may write.
    pub quota_bytes: Option<i64>,
    /// The boot that it belongs to, or that has it.
    pub session_id: Option<Uuid>,
    /// Address and port of the machine that has it.
    pub peer: Option<String>,
    /// When its last connection ended.
    pub idle_since: Option<Timestamp>,
    /// When it was first told of.
    pub created_at: Timestamp,
    /// Name of the server whose store holds it.
    pub server: Option<String>,
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iqn())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_owner_and_lead_back_to_it() {
        let id = DiskIdentity {
            owner: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        };
        assert_eq!(
            id.iqn(),
            "iqn.2026-11.internal.dls:0123456789abcdef0123456789abcdef"
        );
        assert_eq!(DiskIdentity::from_iqn(&id.iqn()), Some(id));
        assert_eq!(DiskIdentity::from_iqn(&id.iqn().to_uppercase()), Some(id));
        assert_eq!(id.naa(), [0x31, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        for bad in [
            "",
            "iqn.2026-11.internal.dls:",
            "iqn.2026-11.internal.dls:../../etc/passwd",
            "iqn.2026-11.internal.dls:01234567-89ab-cdef-0123-456789abcdef",
            "iqn.2003-01.org.linux-iscsi:0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(DiskIdentity::from_iqn(bad), None, "{bad}");
        }
    }
}
