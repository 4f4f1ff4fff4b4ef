//! The fields of a client that people set, and the keys of its `network_config`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::{Reader, Strictness, Violations, rules};
use crate::model::{Client, NetworkConfig, NetworkRange};

/// Reads a client's fields into `client`. `ranges` are those of the catalog, by which a
/// reserved address is judged; `image` finds an image by name or id for `assigned_image`,
/// `version` one of its versions for `pinned_version`.
///
/// # Errors
/// Every violation; `client` is then half changed and to be dropped.
pub fn client(
    mut reader: Reader,
    client: &mut Client,
    ranges: &[Arc<NetworkRange>],
    image: impl Fn(&str) -> Option<Uuid>,
    version: impl Fn(Uuid, &str) -> Option<Uuid>,
) -> Result<(), Violations> {
    let before = client.assigned_image_id;
    reader.required("mac_address", &mut client.mac_address, rules::mac);
    reader.list("more_macs", &mut client.more_macs, 16, rules::mac);
    if client.more_macs.contains(&client.mac_address) {
        match reader.strictness() {
            Strictness::Lenient => client.more_macs.retain(|m| *m != client.mac_address),
            Strictness::Strict => reader.refuse("more_macs", "repeats `mac_address`"),
        }
    }
    reader.required("hostname", &mut client.hostname, rules::hostname);
    let reserved = client.ip_address;
    reader.optional("ip_address", &mut client.ip_address, rules::host_address);
    // One that the row has had is not judged anew: the ranges may have changed since.
    if let Some(address) = client.ip_address.filter(|a| Some(*a) != reserved) {
        reserved_address(&mut reader, address, ranges);
    }
    assigned_image(&mut reader, client, image);
    reader.value("boot_mode", &mut client.boot_mode, rules::word);
    reader.value("cpu_cores", &mut client.cpu_cores, rules::cpu_cores);
    reader.value("memory_mb", &mut client.memory_mb, rules::memory_mb);
    if let Some(given) = reader.object("network_config", network_config) {
        client.network_config = given;
    }
    reader.optional(
        "custom_boot_params",
        &mut client.custom_boot_params,
        rules::boot_text,
    );
    reader.value("disk_mode", &mut client.disk_mode, rules::word);
    reader.optional("ring", &mut client.ring, rules::ring);
    if client.assigned_image_id != before {
        // A pin is to a version of one image.
        client.pinned_version_id = None;
    }
    pinned_version(&mut reader, client, version);
    reader.value("enabled", &mut client.enabled, rules::flag);
    reader.read_only(&[
        "id",
        "auto_registered",
        "created_at",
        "updated_at",
        "last_boot_at",
        "boot_count",
    ]);
    reader.finish()
}

/// A reserved address may lie anywhere, but within a range it must be a host's, and not
/// the gateway's.
fn reserved_address(reader: &mut Reader, address: Ipv4Addr, ranges: &[Arc<NetworkRange>]) {
    let range = ranges.iter().find(|r| r.network.contains(address));
    match range {
        Some(range) if !range.is_host(address) => reader.refuse(
            "ip_address",
            format!(
                "{address} is the network or broadcast address of {}",
                range.network
            ),
        ),
        Some(range) if range.gateway == Some(address) => reader.refuse(
            "ip_address",
            format!("{address} is the gateway of {}", range.network),
        ),
        None if reader.strictness() == Strictness::Strict && !ranges.is_empty() => reader.refuse(
            "ip_address",
            format!("{address} lies in none of the network ranges"),
        ),
        _ => {}
    }
}

/// `assigned_image` (name or id) and `assigned_image_id` (id) mean the same column. The
/// name is what people write; both are in answers, so both may come back.
fn assigned_image(reader: &mut Reader, client: &mut Client, image: impl Fn(&str) -> Option<Uuid>) {
    let resolve = |reader: &mut Reader, field: &str| -> Option<Option<Uuid>> {
        match reader.take(field)? {
            Value::Null => Some(None),
            Value::String(name) => {
                let found = image(&name);
                if found.is_none() {
                    let shown: String = name.chars().take(64).collect();
                    reader.refuse(field, format!("there is no image `{shown}`"));
                }
                found.map(Some)
            }
            _ => {
                reader.refuse(field, "must be the name or id of an image");
                None
            }
        }
    };
    let by_id = resolve(reader, "assigned_image_id");
    let by_name = resolve(reader, "assigned_image");
    match (by_id, by_name) {
        (None, None) => {}
        (Some(id), None) | (None, Some(id)) => client.assigned_image_id = id,
        (Some(id), Some(named)) if id == named => client.assigned_image_id = id,
        // One of them was edited in what GET answered: that one is meant.
        (Some(id), Some(named)) if named == client.assigned_image_id => {
            client.assigned_image_id = id;
        }
        (Some(id), Some(named)) if id == client.assigned_image_id => {
            client.assigned_image_id = named;
        }
        (Some(_), Some(_)) => reader.refuse(
            "assigned_image",
            "names another image than `assigned_image_id`",
        ),
    }
}

/// `pinned_version` (name or id) and `pinned_version_id` (id) mean the same column, as those
/// of the image do.
fn pinned_version(
    reader: &mut Reader,
    client: &mut Client,
    version: impl Fn(Uuid, &str) -> Option<Uuid>,
) {
    let image = client.assigned_image_id;
    let resolve = |reader: &mut Reader, field: &str| -> Option<Option<Uuid>> {
        match reader.take(field)? {
            Value::Null => Some(None),
            Value::String(name) => {
                let found = image.and_then(|image| version(image, &name));
                if found.is_none() {
                    let shown: String = name.chars().take(64).collect();
                    reader.refuse(
                        field,
                        match image {
                            Some(_) => format!("the client's image has no version `{shown}`"),
                            None => "needs an assigned image, of which it is a version".to_owned(),
                        },
                    );
                }
                found.map(Some)
            }
            _ => {
                reader.refuse(field, "must be the name or id of a version");
                None
            }
        }
    };
    let by_id = resolve(reader, "pinned_version_id");
    let by_name = resolve(reader, "pinned_version");
    match (by_id, by_name) {
        (None, None) => {}
        (Some(id), None) | (None, Some(id)) => client.pinned_version_id = id,
        (Some(id), Some(named)) if id == named => client.pinned_version_id = id,
        (Some(id), Some(named)) if named == client.pinned_version_id => {
            client.pinned_version_id = id;
        }
        (Some(id), Some(named)) if id == client.pinned_version_id => {
            client.pinned_version_id = named;
        }
        (Some(_), Some(_)) => reader.refuse(
            "pinned_version",
            "names another version than `pinned_version_id`",
        ),
    }
}

fn network_config(reader: &mut Reader, config: &mut NetworkConfig) {
    reader.optional("gateway", &mut config.gateway, rules::host_address);
    reader.optional_list("dns", &mut config.dns, 8, rules::host_address);
    reader.optional("domain", &mut config.domain, rules::domain);
    reader.optional_list("search", &mut config.search, 16, rules::domain);
    reader.optional_list("ntp", &mut config.ntp, 8, rules::host_address);
    reader.optional("mtu", &mut config.mtu, rules::mtu);
    reader.optional("kernel_ip", &mut config.kernel_ip, rules::word);
}
