//! Which `DLS_SECTION_KEY` variable is which key. It is given the variables, it does not
//! read the environment.

use std::path::PathBuf;

use super::{Config, ConfigError, DatabaseUrl};

impl Config {
    /// Applies `DLS_*` variables; `lookup` answers a name with its value.
    ///
    /// # Errors
    /// [`ConfigError::Variable`].
    pub fn override_with(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        let set = Overrides { lookup: &lookup };
        set.parsed("DLS_STATE_DIR", &mut self.state_dir)?;
        set.parsed("DLS_USER", &mut self.user)?;
        if let Some(name) = lookup("DLS_SERVER_NAME") {
            self.server_name = (!name.is_empty()).then_some(name);
        }
        if let Some(url) = lookup("DLS_DATABASE_URL") {
            self.database.url = DatabaseUrl::from(url);
        }
        set.parsed(
            "DLS_DATABASE_MIN_CONNECTIONS",
            &mut self.database.min_connections,
        )?;
        set.parsed(
            "DLS_DATABASE_MAX_CONNECTIONS",
            &mut self.database.max_connections,
        )?;
        set.parsed(
            "DLS_DATABASE_POOL_TIMEOUT_SECONDS",
            &mut self.database.pool_timeout_seconds,
        )?;
        if let Some(names) = lookup("DLS_DHCP_INTERFACES") {
            let names = names.split(',').map(str::trim).filter(|n| !n.is_empty());
            self.dhcp.interfaces = names.map(str::to_owned).collect();
        }
        set.parsed(
            "DLS_DHCP_UNKNOWN_SHARE_PERCENT",
            &mut self.dhcp.unknown_share_percent,
        )?;
        set.parsed("DLS_DHCP_KEEP_PERCENT", &mut self.dhcp.keep_percent)?;
        set.parsed("DLS_DHCP_CLAIM_SECONDS", &mut self.dhcp.claim_seconds)?;
        set.parsed("DLS_TFTP_LISTEN", &mut self.tftp.listen)?;
        set.parsed("DLS_HTTP_LISTEN", &mut self.http.listen)?;
        set.parsed("DLS_ADMIN_LISTEN", &mut self.admin.listen)?;
        set.parsed("DLS_ISCSI_LISTEN", &mut self.iscsi.listen)?;
        set.parsed("DLS_ISCSI_MAX_CONNECTIONS", &mut self.iscsi.max_connections)?;
        set.parsed("DLS_NBD_LISTEN", &mut self.nbd.listen)?;
        set.parsed("DLS_NBD_MAX_CONNECTIONS", &mut self.nbd.max_connections)?;
        set.word("DLS_NBD_TLS", &mut self.nbd.tls)?;
        if let Some(path) = lookup("DLS_NBD_CERTIFICATE") {
            self.nbd.certificate = (!path.is_empty()).then(|| PathBuf::from(path));
        }
        if let Some(path) = lookup("DLS_NBD_KEY") {
            self.nbd.key = (!path.is_empty()).then(|| PathBuf::from(path));
        }
        set.parsed("DLS_REPLICATION_LISTEN", &mut self.replication.listen)?;
        set.word("DLS_STORAGE_BACKEND", &mut self.storage.backend)?;
        if let Some(dataset) = lookup("DLS_STORAGE_DATASET") {
            self.storage.dataset = (!dataset.is_empty()).then_some(dataset);
        }
        set.parsed(
            "DLS_STORAGE_VOLBLOCKSIZE_KIB",
            &mut self.storage.volblocksize_kib,
        )?;
        set.word("DLS_STORAGE_COMPRESSION", &mut self.storage.compression)?;
        set.word("DLS_STORAGE_RESERVE", &mut self.storage.reserve)?;
        if let Some(path) = lookup("DLS_STORAGE_PATH") {
            self.storage.path = Some(PathBuf::from(path));
        }
        set.parsed(
            "DLS_STORAGE_UPLOAD_LIMIT_GIB",
            &mut self.storage.upload_limit_gib,
        )?;
        if let Some(path) = lookup("DLS_STORAGE_IMPORT_DIR") {
            self.storage.import_dir = (!path.is_empty()).then(|| PathBuf::from(path));
        }
        set.parsed("DLS_BOOT_LOADER_DIR", &mut self.boot.loader_dir)?;
        set.word("DLS_BOOT_UNKNOWN_CLIENTS", &mut self.boot.unknown_clients)?;
        set.parsed("DLS_BOOT_UNKNOWN_LIMIT", &mut self.boot.unknown_limit)?;
        if let Some(image) = lookup("DLS_BOOT_DEFAULT_IMAGE") {
            self.boot.default_image = (!image.is_empty()).then_some(image);
        }
        set.parsed("DLS_BOOT_WAIT_SECONDS", &mut self.boot.wait_seconds)?;
        set.parsed("DLS_BOOT_STALL_SECONDS", &mut self.boot.stall_seconds)?;
        set.parsed("DLS_BOOT_OS_SECONDS", &mut self.boot.os_seconds)?;
        set.parsed(
            "DLS_VALIDATION_ENABLE_STRICT_MODE",
            &mut self.validation.enable_strict_mode,
        )?;
        set.parsed("DLS_LOG_FILTER", &mut self.log.filter)?;
        set.word("DLS_LOG_FORMAT", &mut self.log.format)?;
        Ok(())
    }
}

struct Overrides<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Overrides<'_> {
    fn parsed<T>(&self, name: &str, target: &mut T) -> Result<(), ConfigError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        if let Some(text) = (self.lookup)(name) {
            *target = text.parse().map_err(|e: T::Err| ConfigError::Variable {
                name: name.to_owned(),
                message: format!("`{text}`: {e}"),
            })?;
        }
        Ok(())
    }

    fn word<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        target: &mut T,
    ) -> Result<(), ConfigError> {
        if let Some(text) = (self.lookup)(name) {
            *target =
                T::deserialize(toml::Value::String(text)).map_err(|e| ConfigError::Variable {
                    name: name.to_owned(),
                    message: e.message().to_owned(),
                })?;
        }
        Ok(())
    }
}
