//! From PostgreSQL's refusals to a field and a plain sentence.
//!
//! Constraint names are the interface: `migrations/` names them, the table below says what each
//! means. It must not guess: a name that is not in the table is reported as it came.

/// What the catalog refuses or can't do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// No connection in time, or it broke: worth trying again.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// A rule of the database refused a value. `field` is the column or JSON field it
    /// concerns where it can be told; the message is fit for people.
    #[error("{message}")]
    Refused {
        /// Column concerned.
        field: &'static str,
        /// In plain words.
        message: String,
    },
    /// Something by that name or MAC or address is there already.
    #[error("{message}")]
    Conflict {
        /// Column concerned.
        field: &'static str,
        /// In plain words.
        message: String,
    },
    /// Anything else.
    #[error("database error: {0}")]
    Other(String),
}

/// A constraint, the field it is about, and what its refusal means. `true`: something is there
/// already (a conflict) rather than wrong by itself.
type Rule = (&'static str, &'static str, bool, &'static str);

#[rustfmt::skip]
const RULES: &[Rule] = &[
    ("images_name_key", "name", true, "an image by that name is there already"),
    ("images_name_check", "name", false, "an image needs a name"),
    ("images_size_bytes_check", "size_bytes", false, "the size must be more than 0 bytes"),
    ("images_format_check", "format", false, "the format must be raw, qcow2 or vhdx"),
    ("images_kind_check", "kind", false, "the kind must be disk or kernel"),
    ("images_kernel_format_check", "format", false, "a kernel image has the format raw"),
    ("images_phone_home_check", "phone_home", false, "phone_home must be auto, expected or absent"),
    ("images_cmdline_check", "cmdline", false, "the command line must be one line of at most 4096 characters without ${, &&, || and ;"),
    ("images_parent_image_id_fkey", "parent_image_id", false, "there is no such parent image"),
    ("images_parent_cycle", "parent_image_id", false, "an image can't be its own ancestor"),
    ("image_files_pkey", "files", false, "two files have the same role and position"),
    ("image_files_role_check", "files", false, "a file's role must be kernel or initrd"),
    ("image_files_position_check", "files", false, "an image has one kernel and at most 256 initrds"),
    ("image_files_path_check", "files", false, "a file's path must lie below the storage root"),
    ("image_files_sha256_check", "files", false, "a SHA-256 sum is 64 hex digits in lower case"),
    ("image_files_size_check", "files", false, "a file must not be empty"),
    ("image_snapshots_pkey", "id", true, "a version by that id is there already"),
    ("image_snapshots_name_key", "name", true, "a version by that name is there already"),
    ("image_snapshots_name_check", "name", false, "a version's name has 1 to 64 lower-case letters, digits, hyphens, underscores and dots, and begins with a letter or digit"),
    ("image_snapshots_image_id_fkey", "image_id", false, "there is no such image"),
    ("image_snapshots_size_bytes_check", "size_bytes", false, "a size can't be negative"),
    ("image_snapshots_referenced_check", "referenced_bytes", false, "a size can't be negative"),
    ("image_snapshots_stage_check", "stage", false, "the stage must be draft, canary, production or retired"),
    ("image_snapshots_stage_steps", "stage", false, "a version begins as a draft, is released as canary or production, retired, and perhaps released again; production is left by releasing another version"),
    ("image_snapshots_ring_check", "ring", false, "a ring has 1 to 32 lower-case letters, digits, hyphens, underscores and dots, and begins with a letter or digit"),
    ("image_snapshots_canary_check", "ring", false, "a canary needs a ring"),
    ("image_snapshots_one_production", "stage", true, "another version was released at the same moment"),
    ("image_snapshots_one_canary", "ring", true, "another canary was released to that ring at the same moment"),
    ("image_snapshots_no_production", "stage", false, "the image would have no version in production: release another one"),
    ("image_snapshots_fixed", "id", false, "a version stays with its image and its volume"),
    ("image_snapshots_first", "id", false, "the first version of an image goes with the image only"),
    ("image_snapshots_released", "stage", false, "the version is released: release another one first, or send its machines back"),
    ("image_snapshots_pinned", "id", false, "clients are pinned to the version"),
    ("clients_ring_check", "ring", false, "a ring has 1 to 32 lower-case letters, digits, hyphens, underscores and dots, and begins with a letter or digit"),
    ("clients_pinned_version_fkey", "pinned_version", false, "there is no such version"),
    ("clients_pinned_version_own", "pinned_version", false, "a client can be pinned to a version of its own image only"),
    ("clients_pkey", "id", true, "a client by that id is there already"),
    ("clients_mac_address_key", "mac_address", true, "another client has that MAC address"),
    ("client_macs_pkey", "mac_address", true, "another client has that MAC address"),
    ("client_macs_first", "mac_address", false, "the first MAC address of a client is changed in mac_address"),
    ("mac_address_spelling", "mac_address", false, "that is not a MAC address (expected six bytes in hex, as in 52:54:00:12:34:56)"),
    ("mac_address_station", "mac_address", false, "that can't be the MAC address of one machine (it is zero or a group address)"),
    ("clients_ip_address_key", "ip_address", true, "that address is reserved for another client"),
    ("clients_ip_address_check", "ip_address", false, "the address must be the IPv4 address of one host"),
    ("clients_assigned_image_id_fkey", "assigned_image_id", false, "there is no such image"),
    ("clients_hostname_check", "hostname", false, "a host name has letters, digits, hyphens and dots, and each part of it begins and ends with a letter or digit"),
    ("clients_boot_mode_check", "boot_mode", false, "the boot mode must be pxe, uefi or legacy"),
    ("clients_cpu_cores_check", "cpu_cores", false, "a machine has at least 1 core"),
    ("clients_memory_mb_check", "memory_mb", false, "a machine has at least 1 MiB of memory"),
    ("clients_network_config_check", "network_config", false, "network_config may have the keys gateway, dns, domain, search, ntp, mtu and kernel_ip, each in its form"),
    ("clients_custom_boot_params_check", "custom_boot_params", false, "boot parameters must be one line of at most 2048 characters without ${, &&, || and ;"),
    ("clients_boot_count_check", "boot_count", false, "the number of boots can't be negative"),
    ("network_ranges_name_key", "name", true, "a network range by that name is there already"),
    ("network_ranges_network_check", "network", false, "the network must be an IPv4 network of hosts, /8 to /32"),
    ("network_ranges_overlap", "network", true, "the network overlaps that of another range"),
    ("network_ranges_mode_check", "mode", false, "the mode must be full, proxy or off"),
    ("network_ranges_serve_check", "serve", false, "serve must be all or known"),
    ("network_ranges_unready_check", "unready", false, "unready must be wait or local"),
    ("network_ranges_gateway_check", "gateway", false, "the gateway must be an address of the network"),
    ("network_ranges_dns_check", "dns", false, "name servers must be IPv4 addresses"),
    ("network_ranges_ntp_check", "ntp", false, "time servers must be IPv4 addresses"),
    ("network_ranges_domain_check", "domain", false, "that is not a domain name"),
    ("network_ranges_search_check", "search", false, "the search list must be domain names"),
    ("network_ranges_mtu_check", "mtu", false, "the MTU must be 68 to 65535 bytes"),
    ("network_ranges_routes_check", "routes", false, "each route needs `to` (a network) and `via` (an address)"),
    ("network_ranges_lease_seconds_check", "lease_seconds", false, "a lease lasts 1 to 4294967295 seconds"),
    ("network_ranges_options_check", "options", false, "options map a code (1 to 254, not 50-54, 58, 59, 61 or 82) to bytes in hex"),
    ("range_pools_pkey", "pools", false, "pools must not overlap"),
    ("range_pools_overlap", "pools", false, "pools must not overlap"),
    ("range_pools_order_check", "pools", false, "a pool's first address must not come after its last"),
    ("range_pools_inside_check", "pools", false, "a pool must lie inside the network"),
    ("range_pools_range_fkey", "pools", false, "there is no such network range"),
    ("range_exclusions_pkey", "exclusions", false, "exclusions must not overlap"),
    ("range_exclusions_overlap", "exclusions", false, "exclusions must not overlap"),
    ("range_exclusions_order_check", "exclusions", false, "an exclusion's first address must not come after its last"),
    ("range_exclusions_inside_check", "exclusions", false, "an exclusion must lie inside the network"),
    ("range_exclusions_range_fkey", "exclusions", false, "there is no such network range"),
    ("leases_inside_check", "address", false, "the address lies outside its network range"),
    ("leases_pkey", "address", true, "the address is leased to another machine"),
    ("leases_one_per_mac", "mac", true, "the machine has a lease in that range"),
    ("leases_range_fkey", "range_id", false, "there is no such network range"),
    ("boot_sessions_status_check", "status", false, "the status must be starting, booting, running, shutdown or error"),
    ("boot_sessions_boot_time_seconds_check", "boot_time_seconds", false, "a boot time can't be negative"),
    ("boot_sessions_client_id_fkey", "client_id", false, "there is no such client"),
    ("boot_sessions_image_id_fkey", "image_id", false, "there is no such image"),
    ("boot_sessions_pkey", "id", true, "a boot session by that id is there already"),
];

/// True where the same statement may well succeed when it is sent again: the connection broke,
/// the server is starting, stopping or has become a standby, or two transactions collided.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(db) => {
            // Class 08: connection; 40001, 40P01: serialization, deadlock; 57P0x: shutting
            // down, crashed, starting; 25006: read-only since a failover; 53300: too many
            // connections; 23P01 on leases_one_per_mac: two servers leased to one machine at
            // once, and the second now sees the first one's row.
            db.code().is_some_and(|code| {
                code.starts_with("08")
                    || matches!(
                        &*code,
                        "40001" | "40P01" | "57P01" | "57P02" | "57P03" | "25006" | "53300"
                    )
            }) || db.constraint() == Some("leases_one_per_mac")
        }
        _ => false,
    }
}

/// True where PostgreSQL is there and can do nothing for the time being: nothing is wrong with what
/// was asked for, and trying again at once is of no use. Class 28: it lets nobody in, as while
/// it is being looked after; 53: see [`is_want`], or it has no connection left.
fn is_indisposed(error: &sqlx::Error) -> bool {
    is_want(error) || has_code(error, &["28", "53"])
}

/// True where PostgreSQL can't write: no disk (53100) or memory (53200) is left, its disk fails
/// (class 58), or it is read-only (25006).
pub(super) fn is_want(error: &sqlx::Error) -> bool {
    has_code(error, &["53100", "53200", "58", "25006"])
}

fn has_code(error: &sqlx::Error, begins: &[&str]) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| begins.iter().any(|begin| code.starts_with(begin)))
}

/// True where PostgreSQL refused the data itself (class 22: it can't be such a value,
/// class 23: a constraint), so that sending it again is of no use.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    has_code(error, &["22", "23"])
}

/// The constraint that refused, if one did.
pub(super) fn constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.constraint()
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        if let Some(name) = constraint(&error) {
            let found = RULES.iter().find(|(rule, ..)| *rule == name);
            if let Some((_, field, conflict, sentence)) = found {
                let message = (*sentence).to_owned();
                return if *conflict {
                    Self::Conflict { field, message }
                } else {
                    Self::Refused { field, message }
                };
            }
        }
        match &error {
            sqlx::Error::PoolTimedOut => {
                Self::Unavailable("no connection became free in time".to_owned())
            }
            sqlx::Error::PoolClosed => Self::Unavailable("it is closed".to_owned()),
            _ if is_transient(&error) || is_indisposed(&error) => {
                Self::Unavailable(error.to_string())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl CatalogError {
    /// The same refusal in other words, for callers that know more (who has the address).
    pub(super) fn in_words(self, words: impl FnOnce() -> String) -> Self {
        match self {
            Self::Refused { field, .. } => Self::Refused {
                field,
                message: words(),
            },
            Self::Conflict { field, .. } => Self::Conflict {
                field,
                message: words(),
            },
            other => other,
        }
    }

    /// A value in the database that the program does not understand.
    pub(super) fn strange(what: &str, value: impl std::fmt::Display) -> Self {
        Self::Other(format!("the database holds a strange {what}: {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_rule_is_in_the_migrations_and_none_twice() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let sql: String = std::fs::read_dir(dir)
            .unwrap()
            .map(|f| f.unwrap().path())
            .filter(|p| p.to_string_lossy().ends_with(".up.sql"))
            .map(|p| std::fs::read_to_string(p).unwrap())
            .collect();
        for (i, (name, ..)) in RULES.iter().enumerate() {
            assert!(RULES.iter().skip(i + 1).all(|r| r.0 != *name), "{name}");
            // PostgreSQL makes these names up itself, from the table and the column.
            let made_up = ["_key", "_pkey", "_fkey", "_check"]
                .iter()
                .any(|end| name.ends_with(end));
            assert!(made_up || sql.contains(name), "{name}");
        }
    }
}
