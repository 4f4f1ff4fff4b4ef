//! dls.toml and the environment become a checked [`Config`].
//!
//! Unknown keys are refused with key and line; every `DLS_SECTION_KEY` variable overrides its
//! key; [`Config::check`] then tells every contradiction at once. This file and the command
//! line are the only readers of the environment.
//!
//! `environment`: which variable is which key. `check`: what can't work together.

mod check;
mod environment;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The whole configuration. Every default is right for a first start on one server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything that must outlive a restart lies: database, admin token, storage.
    pub state_dir: PathBuf,
    /// The user that `dls` becomes when it is started as root.
    pub user: String,
    /// What other servers of the same catalog and people call this one; the host's name if not
    /// given.
    pub server_name: Option<String>,
    /// `[database]`
    pub database: Database,
    /// `[dhcp]`
    pub dhcp: Dhcp,
    /// `[tftp]`
    pub tftp: Tftp,
    /// `[http]`
    pub http: Http,
    /// `[admin]`
    pub admin: Admin,
    /// `[iscsi]`
    pub iscsi: Iscsi,
    /// `[nbd]`
    pub nbd: Nbd,
    /// `[replication]`
    pub replication: Replication,
    /// `[storage]`
    pub storage: Storage,
    /// `[boot]`
    pub boot: Boot,
    /// `[validation]`
    pub validation: Validation,
    /// `[log]`
    pub log: Log,
}

/// `[database]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `embedded`, or `postgres://USER[:PASSWORD]@HOST[:PORT]/NAME`.
    pub url: DatabaseUrl,
    /// Connections kept open.
    pub min_connections: u32,
    /// Connections at most.
    pub max_connections: u32,
    /// How long a task waits for a free connection, seconds.
    pub pool_timeout_seconds: u64,
}

/// Which database.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum DatabaseUrl {
    /// A private cluster under `state_dir`.
    Embedded,
    /// An ordinary PostgreSQL.
    Server(String),
}

impl From<String> for DatabaseUrl {
    fn from(text: String) -> Self {
        if text == "embedded" {
            Self::Embedded
        } else {
            Self::Server(text)
        }
    }
}

impl std::fmt::Debug for DatabaseUrl {
    /// Never shows a URL: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Server(_) => "postgres://..",
        })
    }
}

/// `[dhcp]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp {
    /// Interfaces to listen on; empty: those whose address lies in a network range.
    pub interfaces: Vec<String>,
    /// How much of a range's pools machines may hold that nobody has registered, percent.
    pub unknown_share_percent: u8,
    /// So much of a lease may be gone, percent, and a machine that asks again is told what is left
    /// of it, with nothing written; 0: every ACK is written. Not where several servers share a
    /// database.
    pub keep_percent: u8,
    /// Where several servers share a database: for how long each claims the addresses that it
    /// gives away while it can't reach it, seconds.
    pub claim_seconds: u32,
}

/// `[tftp]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tftp {
    /// Address and port.
    pub listen: SocketAddr,
}

/// `[http]`: the boot listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port.
    pub listen: SocketAddr,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address and port.
    pub listen: SocketAddr,
}

/// `[iscsi]`: disks over iSCSI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Iscsi {
    /// Address and port.
    pub listen: SocketAddr,
    /// Connections at most.
    pub max_connections: u32,
}

/// Whether NBD is spoken under TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdTls {
    /// Never.
    Off,
    /// Where the client asks for it.
    Allow,
    /// Always: nothing is given out without.
    Require,
}

/// `[nbd]`: disks over NBD.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nbd {
    /// Address and port.
    pub listen: SocketAddr,
    /// Connections at most.
    pub max_connections: u32,
    /// TLS.
    pub tls: NbdTls,
    /// PEM file with the server's certificate and those between it and its root.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
}

/// `[replication]`: versions of images from other servers of the same catalog. An embedded
/// database has no other servers, and so no listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// Address and port.
    pub listen: SocketAddr,
}

/// Kinds of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageBackend {
    /// Files below one directory.
    Directory,
    /// Zvols below one dataset (programs built with the feature `zfs`).
    Zfs,
}

/// For which new zvols space is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZfsReserve {
    /// For none: they are sparse, and may be promised more than the pool has.
    Nothing,
    /// For disks that came in or were made empty; clones are sparse.
    Images,
    /// For clones as well: none of them ever finds the pool full.
    All,
}

/// How new zvols compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZfsCompression {
    /// As the dataset says.
    Inherit,
    /// Not at all.
    Off,
    /// Fast.
    Lz4,
    /// Smaller.
    Zstd,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `directory` or `zfs`: where disks lie. Files of kernel images are below `path` with both.
    pub backend: StorageBackend,
    /// With `zfs`: the parent dataset, such as `tank/dls`.
    pub dataset: Option<String>,
    /// With `zfs`: KiB of a new zvol's block, a power of two from 4 to 128.
    pub volblocksize_kib: u32,
    /// With `zfs`: how new zvols compress.
    pub compression: ZfsCompression,
    /// With `zfs`: for which new zvols space is set aside.
    pub reserve: ZfsReserve,
    /// The root; default: `storage` in `state_dir`.
    pub path: Option<PathBuf>,
    /// Most GiB of an uploaded disk file.
    pub upload_limit_gib: u64,
    /// The folder whose files may be imported by their path; `None`: none.
    pub import_dir: Option<PathBuf>,
}

/// What happens to machines nobody has registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownClients {
    /// They are registered, disabled, and wait on their screen to be enabled.
    Register,
    /// Their boot requests get no boot part.
    Ignore,
}

/// `[boot]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Where the boot loaders are.
    pub loader_dir: PathBuf,
    /// Unknown machines that ask to boot.
    pub unknown_clients: UnknownClients,
    /// How many self-registered machines may wait at once.
    pub unknown_limit: u32,
    /// Name of the image of clients that have none of their own.
    pub default_image: Option<String>,
    /// Seconds between two looks of a waiting machine.
    pub wait_seconds: u32,
    /// Seconds without progress after which a boot has stalled, up to the initrd.
    pub stall_seconds: u32,
    /// Seconds from the initrd to `up` after which the system has failed to come up.
    pub os_seconds: u32,
}

/// `[validation]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Validation {
    /// Refuse what could be corrected (host bits in a network, a MAC in another spelling).
    pub enable_strict_mode: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `info`, `debug`, or per module as in `info,dls::dhcp=debug`.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/dls"),
            user: "dls".to_owned(),
            server_name: None,
            database: Database::default(),
            dhcp: Dhcp::default(),
            tftp: Tftp::default(),
            http: Http::default(),
            admin: Admin::default(),
            iscsi: Iscsi::default(),
            nbd: Nbd::default(),
            replication: Replication::default(),
            storage: Storage::default(),
            boot: Boot::default(),
            validation: Validation::default(),
            log: Log::default(),
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: DatabaseUrl::Embedded,
            min_connections: 2,
            max_connections: 20,
            pool_timeout_seconds: 30,
        }
    }
}

impl Default for Dhcp {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            unknown_share_percent: 90,
            keep_percent: 25,
            claim_seconds: 86_400,
        }
    }
}

impl Default for Tftp {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 69)),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8069)),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
        }
    }
}

impl Default for Iscsi {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 3260)),
            max_connections: 4096,
        }
    }
}

impl Default for Nbd {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 10809)),
            max_connections: 4096,
            tls: NbdTls::Off,
            certificate: None,
            key: None,
        }
    }
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8070)),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            backend: StorageBackend::Directory,
            dataset: None,
            volblocksize_kib: 16,
            compression: ZfsCompression::Lz4,
            reserve: ZfsReserve::Nothing,
            path: None,
            upload_limit_gib: 4096,
            import_dir: None,
        }
    }
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            loader_dir: PathBuf::from("/usr/lib/ipxe"),
            unknown_clients: UnknownClients::Register,
            unknown_limit: 500,
            default_image: None,
            wait_seconds: 5,
            stall_seconds: 60,
            os_seconds: 300,
        }
    }
}

impl Default for Validation {
    fn default() -> Self {
        Self {
            enable_strict_mode: true,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no valid configuration; the message names line and key.
    #[error("{path}: {message}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line, key, what was expected.
        message: String,
    },
    /// A `DLS_*` variable has no valid value.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// Its name.
        name: String,
        /// What was expected.
        message: String,
    },
    /// Values that can't work, all of them, one a line.
    #[error("{}", .0.join("\n"))]
    Contradictions(Vec<String>),
}

/// Where the configuration is looked for when none is named; it may be missing.
pub const DEFAULT_PATH: &str = "/etc/dls/dls.toml";

impl Config {
    /// Reads the named file, or [`DEFAULT_PATH`] if that is there, or else takes defaults;
    /// then the environment; then checks.
    ///
    /// # Errors
    /// See [`ConfigError`].
    #[expect(clippy::disallowed_methods, reason = "the environment is read here")]
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_PATH));
        let mut config = match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.is_none() => Self::default(),
            Err(source) => {
                return Err(ConfigError::Unreadable {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        config.override_with(|name| std::env::var(name).ok())?;
        config.check()?;
        Ok(config)
    }

    /// Reads one file's text, without environment and checks. `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Malformed`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|s| text.get(..s.start).unwrap_or(text).matches('\n').count() + 1);
            let place = line.map_or(String::new(), |n| format!("line {n}: "));
            ConfigError::Malformed {
                path: path.to_owned(),
                message: format!("{place}{}", e.message()),
            }
        })
    }

    /// The storage root.
    #[must_use]
    pub fn storage_path(&self) -> PathBuf {
        self.storage
            .path
            .clone()
            .unwrap_or_else(|| self.state_dir.join("storage"))
    }

    /// How long a task waits for a database connection.
    #[must_use]
    pub const fn pool_timeout(&self) -> Duration {
        Duration::from_secs(self.database.pool_timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("dls.toml"))
    }

    #[test]
    fn nothing_is_a_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        config.check().unwrap();
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let message = parse("state_dir = \"/x\"\n\n[tftp]\nlisten = \"0.0.0.0:69\"\nlissten = 1\n")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("dls.toml: line 5") && message.contains("lissten"),
            "{message}"
        );
        let message = parse("[databse]\n").unwrap_err().to_string();
        assert!(
            message.contains("line 1") && message.contains("databse"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let message = parse("[http]\nlisten = \"8069\"\n")
            .unwrap_err()
            .to_string();
        assert!(message.contains("line 2"), "{message}");
        let message = parse("[storage]\nbackend = \"btrfs\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("line 2") && message.contains("directory"),
            "{message}"
        );
    }

    #[test]
    fn zfs_needs_a_dataset_and_the_other_package() {
        let said = |text: &str| {
            let checked = parse(text).unwrap().check();
            checked.map_or_else(|e| e.to_string(), |()| String::new())
        };
        let whole = said("[storage]\nbackend = \"zfs\"\ndataset = \"tank/dls\"\n");
        let other = whole.contains("dls-zfs") && whole.contains("feature `zfs`");
        assert_eq!(other, !cfg!(feature = "zfs"), "{whole}");
        let bare = said("[storage]\nbackend = \"zfs\"\nvolblocksize_kib = 24\n");
        assert!(
            bare.contains("storage.dataset") && bare.contains("storage.volblocksize_kib"),
            "{bare}"
        );
        let idle = said("[storage]\ndataset = \"tank/dls\"\n");
        assert!(idle.contains("storage.dataset"), "{idle}");
    }

    #[test]
    fn the_environment_overrides() {
        let mut config = Config::default();
        let vars = |name: &str| match name {
            "DLS_DATABASE_URL" => Some("postgres://db/dls".to_owned()),
            "DLS_HTTP_LISTEN" => Some("127.0.0.1:9".to_owned()),
            "DLS_DHCP_INTERFACES" => Some("eth1, br0".to_owned()),
            "DLS_BOOT_UNKNOWN_CLIENTS" => Some("ignore".to_owned()),
            _ => None,
        };
        config.override_with(vars).unwrap();
        assert_eq!(
            config.database.url,
            DatabaseUrl::Server("postgres://db/dls".into())
        );
        assert_eq!(config.http.listen.port(), 9);
        assert_eq!(config.dhcp.interfaces, ["eth1", "br0"]);
        assert_eq!(config.boot.unknown_clients, UnknownClients::Ignore);
        let bad = config.override_with(|n| (n == "DLS_TFTP_LISTEN").then(|| "x".to_owned()));
        assert!(bad.unwrap_err().to_string().contains("DLS_TFTP_LISTEN"));
        let bad = config.override_with(|n| (n == "DLS_LOG_FORMAT").then(|| "x".to_owned()));
        assert!(bad.unwrap_err().to_string().contains("DLS_LOG_FORMAT"));
    }

    #[test]
    fn contradictions_come_all_at_once() {
        let config = parse("state_dir = \"x\"\n[database]\nurl = \"mysql://\"\nmin_connections = 30\n[http]\nlisten = \"0.0.0.0:8080\"\n").unwrap();
        let Err(ConfigError::Contradictions(wrong)) = config.check() else {
            panic!()
        };
        assert_eq!(wrong.len(), 4, "{wrong:?}");
    }

    #[test]
    fn a_password_does_not_reach_a_log() {
        let url = DatabaseUrl::Server("postgres://u:secret@h/d".into());
        assert!(!format!("{url:?}").contains("secret"));
    }
}
