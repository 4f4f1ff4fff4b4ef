//! Values that are each well formed and can't work, alone or together. Pure.

use std::net::SocketAddr;

use super::{Config, ConfigError, DatabaseUrl, NbdTls, StorageBackend};

impl Config {
    /// Finds values that can't work together, all at once.
    ///
    /// # Errors
    /// [`ConfigError::Contradictions`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        let mut require = |ok: bool, message: String| {
            if !ok {
                wrong.push(message);
            }
        };
        let database = &self.database;
        require(
            database.max_connections >= 2,
            "database.max_connections: at least 2, one listens for changes while the other works"
                .into(),
        );
        require(
            database.min_connections <= database.max_connections,
            format!(
                "database.min_connections: {} is more than database.max_connections ({})",
                database.min_connections, database.max_connections
            ),
        );
        require(
            database.pool_timeout_seconds > 0,
            "database.pool_timeout_seconds: must be at least 1".into(),
        );
        if let DatabaseUrl::Server(url) = &database.url {
            require(
                url.starts_with("postgres://") || url.starts_with("postgresql://"),
                "database.url: expected \"embedded\" or postgres://USER@HOST/NAME".into(),
            );
        }
        require(
            self.state_dir.is_absolute(),
            "state_dir: must be an absolute path".into(),
        );
        require(
            self.boot.loader_dir.is_absolute(),
            "boot.loader_dir: must be an absolute path".into(),
        );
        if let Some(path) = &self.storage.path {
            require(
                path.is_absolute(),
                "storage.path: must be an absolute path".into(),
            );
        }
        let zfs = self.storage.backend == StorageBackend::Zfs;
        require(
            !zfs || cfg!(feature = "zfs"),
            "storage.backend: this dls was built without ZFS; \"zfs\" needs the package dls-zfs \
             (a build with the feature `zfs`)"
                .into(),
        );
        require(
            zfs == self.storage.dataset.is_some(),
            "storage.dataset: the parent dataset, such as \"tank/dls\", is needed with \
             storage.backend = \"zfs\" and has no meaning without"
                .into(),
        );
        require(
            self.storage.volblocksize_kib.is_power_of_two()
                && (4..=128).contains(&self.storage.volblocksize_kib),
            "storage.volblocksize_kib: must be 4, 8, 16, 32, 64 or 128".into(),
        );
        require(
            (1..=65_536).contains(&self.storage.upload_limit_gib),
            "storage.upload_limit_gib: must be between 1 and 65536".into(),
        );
        let fits = |name: &String| {
            (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        require(
            self.server_name.as_ref().is_none_or(fits),
            "server_name: must be 1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `-`".into(),
        );
        let folder = self.storage.import_dir.as_ref();
        require(
            folder.is_none_or(|folder| folder.is_absolute() && folder.parent().is_some()),
            "storage.import_dir: must be an absolute path, and not /".into(),
        );
        for (a, b) in self.clashes() {
            require(false, format!("{a} and {b}: both take the same port"));
        }
        let connections = [
            ("iscsi.max_connections", self.iscsi.max_connections),
            ("nbd.max_connections", self.nbd.max_connections),
        ];
        for (key, value) in connections {
            require(
                (1..=65_536).contains(&value),
                format!("{key}: must be between 1 and 65536"),
            );
        }
        let pem = [
            ("nbd.certificate", &self.nbd.certificate),
            ("nbd.key", &self.nbd.key),
        ];
        for (key, path) in pem {
            require(
                path.is_some() || self.nbd.tls == NbdTls::Off,
                format!("{key}: is needed for nbd.tls = \"allow\" and \"require\""),
            );
            require(
                path.as_ref().is_none_or(|path| path.is_absolute()),
                format!("{key}: must be an absolute path"),
            );
        }
        let seconds = [
            ("boot.wait_seconds", self.boot.wait_seconds),
            ("boot.stall_seconds", self.boot.stall_seconds),
            ("boot.os_seconds", self.boot.os_seconds),
        ];
        for (key, value) in seconds {
            require(
                (1..=86_400).contains(&value),
                format!("{key}: must be between 1 and 86400"),
            );
        }
        require(
            self.dhcp.unknown_share_percent <= 100,
            "dhcp.unknown_share_percent: must be between 0 and 100".to_owned(),
        );
        require(
            self.dhcp.keep_percent <= 50,
            "dhcp.keep_percent: must be between 0 and 50 (machines renew at half of a lease)"
                .to_owned(),
        );
        require(
            (60..=31_536_000).contains(&self.dhcp.claim_seconds),
            "dhcp.claim_seconds: must be between 60 and 31536000 (a year)".to_owned(),
        );
        for name in &self.dhcp.interfaces {
            require(
                !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' ']),
                format!("dhcp.interfaces: `{name}` is not an interface name (at most 15 bytes)"),
            );
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Contradictions(wrong))
        }
    }

    /// TCP listeners that want one port at one address.
    fn clashes(&self) -> Vec<(&'static str, &'static str)> {
        let listeners = [
            ("http.listen", self.http.listen),
            ("admin.listen", self.admin.listen),
            ("iscsi.listen", self.iscsi.listen),
            ("nbd.listen", self.nbd.listen),
            ("replication.listen", self.replication.listen),
        ];
        let clash = |a: SocketAddr, b: SocketAddr| {
            a.port() != 0
                && a.port() == b.port()
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        };
        let mut found = Vec::new();
        for (i, (a, at)) in listeners.iter().enumerate() {
            let later = listeners.iter().skip(i + 1);
            found.extend(
                later
                    .filter(|(_, other)| clash(*at, *other))
                    .map(|(b, _)| (*a, *b)),
            );
        }
        found
    }
}
