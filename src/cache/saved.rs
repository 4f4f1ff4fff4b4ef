//! The last picture of the catalog on this server's own disk, for a start without PostgreSQL.
//!
//! One file, replaced as a whole: a head (what it is, the version of its form, how long, the
//! SHA-256 of what follows), then the rows as MessagePack with field names, compressed. It holds
//! the site key, so only its owner may read it. A file that is damaged or of another form is as
//! good as none: the catalog has it all.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::catalog::Loaded;
use crate::journal::replace_file;

/// What it is, and in the last byte the version of its form.
const MAGIC: [u8; 16] = *b"DLS catalog\0\0\0\0\x01";
/// With the length (8 bytes) and the sum (32).
const HEAD: usize = MAGIC.len() + 8 + 32;

/// Why there is no saved picture.
#[derive(Debug, thiserror::Error)]
pub enum NoPicture {
    /// It was never saved.
    #[error("none was saved yet")]
    None,
    /// The file can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Torn, damaged, or of another version of dls.
    #[error("{0}")]
    Damaged(&'static str),
}

/// Where it lies.
#[derive(Debug, Clone)]
pub struct Saved {
    path: PathBuf,
}

impl Saved {
    /// In that directory.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            path: dir.join("catalog.cache"),
        }
    }

    /// Writes it, synced, in the place of the former one. Blocks.
    ///
    /// # Errors
    /// When it can't be written; the former one then stays.
    pub fn write(&self, loaded: &Loaded) -> io::Result<()> {
        let bytes = encode(loaded)?;
        replace_file(&self.path, &bytes)
    }

    /// Is there one of this form? Whether it is whole is found out when it is read. Blocks.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let mut magic = [0; MAGIC.len()];
        let head = std::fs::File::open(&self.path).and_then(|mut f| f.read_exact(&mut magic));
        head.is_ok() && magic == MAGIC
    }

    /// Reads it. Blocks.
    ///
    /// # Errors
    /// See [`NoPicture`].
    pub fn read(&self) -> Result<Loaded, NoPicture> {
        match std::fs::read(&self.path) {
            Ok(bytes) => decode(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(NoPicture::None),
            Err(e) => Err(e.into()),
        }
    }
}

fn encode(loaded: &Loaded) -> io::Result<Vec<u8>> {
    let mut packed = lz4_flex::frame::FrameEncoder::new(Vec::new());
    rmp_serde::encode::write_named(&mut packed, loaded).map_err(io::Error::other)?;
    let body = packed.finish().map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend(MAGIC);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(Sha256::digest(&body));
    bytes.extend(body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Loaded, NoPicture> {
    let torn = NoPicture::Damaged("it is torn");
    let Some((head, body)) = bytes.split_at_checked(HEAD) else {
        return Err(torn);
    };
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(NoPicture::Damaged("it is of another version of dls"));
    }
    let (length, sum) = rest.split_at(8);
    if length != (body.len() as u64).to_le_bytes() {
        return Err(torn);
    }
    if sum != Sha256::digest(body).as_slice() {
        return Err(NoPicture::Damaged("its checksum does not fit"));
    }
    let mut plain = Vec::new();
    lz4_flex::frame::FrameDecoder::new(body)
        .read_to_end(&mut plain)
        .map_err(|_| NoPicture::Damaged("it can't be unpacked"))?;
    rmp_serde::from_slice(&plain)
        .map_err(|_| NoPicture::Damaged("its rows are of another version of dls"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;
    use crate::model::{BootMode, Client, DiskMode, MacAddr, NetworkConfig, Timestamp};

    fn client(n: u32) -> Client {
        let [_, a, b, c] = n.to_be_bytes();
        Client {
            id: Uuid::from_u128(u128::from(n)),
            mac_address: MacAddr([2, 0, 0, a, b, c]),
            more_macs: vec![MacAddr([6, 0, 0, a, b, c])],
            hostname: format!("pc-{n}"),
            ip_address: Some([10, a, b, c].into()),
            assigned_image_id: Some(Uuid::from_u128(7)),
            boot_mode: BootMode::Pxe,
            cpu_cores: 4,
            memory_mb: 4096,
            network_config: Some(NetworkConfig {
                mtu: Some(1500),
                ..NetworkConfig::default()
            }),
            custom_boot_params: None,
            disk_mode: DiskMode::Ephemeral,
            ring: None,
            pinned_version_id: None,
            enabled: true,
            auto_registered: false,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            last_boot_at: None,
            boot_count: 3,
        }
    }

    fn loaded(clients: u32) -> Loaded {
        Loaded {
            clients: (0..clients).map(client).collect(),
            site_key: vec![9; 32],
            ..Loaded::default()
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::at(dir.path());
        assert!(matches!(saved.read(), Err(NoPicture::None)));
        assert!(!saved.is_there());
        let what = loaded(3);
        saved.write(&what).unwrap();
        assert!(saved.is_there());
        assert_eq!(saved.read().unwrap(), what);
        let mode = std::fs::metadata(dir.path().join("catalog.cache")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn each_damage_is_found() {
        let whole = encode(&loaded(2)).unwrap();
        for n in 0..whole.len() {
            assert!(decode(&whole[..n]).is_err(), "cut at {n}");
            let mut flipped = whole.clone();
            flipped[n] ^= 0x10;
            assert!(decode(&flipped).is_err(), "flipped at {n}");
        }
    }

    #[test]
    fn ten_thousand_clients_are_small() {
        let bytes = encode(&loaded(10_000)).unwrap();
        assert!(bytes.len() < 10_000 * 120, "{} bytes", bytes.len());
    }
}
