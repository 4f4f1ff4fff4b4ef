//! The fields of a network range, and how they fit each other.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Reader, Violations, rules};
use crate::model::{NetworkRange, Pool};

/// Reads a range's fields into `range`. Whether it overlaps another one is the catalog's to
/// say. A range without a name is called by its network.
///
/// # Errors
/// Every violation; `range` is then half changed and to be dropped.
pub fn range(mut reader: Reader, range: &mut NetworkRange) -> Result<(), Violations> {
    let named_by_network = range.name.is_empty() || range.name == range.network.to_string();
    reader.required("network", &mut range.network, rules::served_network);
    if named_by_network {
        range.name = range.network.to_string();
    }
    reader.value("name", &mut range.name, rules::range_name);
    // Never guessed: a second DHCP server that nobody wanted takes a network down.
    reader.required("mode", &mut range.mode, rules::word);
    reader.value("serve", &mut range.serve, rules::word);
    reader.value("unready", &mut range.unready, rules::word);
    reader.value("always_chainload", &mut range.always_chainload, rules::flag);
    reader.list("pools", &mut range.pools, 64, rules::pool);
    reader.list("exclusions", &mut range.exclusions, 256, rules::pool);
    reader.optional("gateway", &mut range.gateway, rules::host_address);
    reader.list("dns", &mut range.dns, 8, rules::host_address);
    reader.optional("domain", &mut range.domain, rules::domain);
    reader.list("search", &mut range.search, 16, rules::domain);
    reader.list("ntp", &mut range.ntp, 8, rules::host_address);
    reader.optional("mtu", &mut range.mtu, rules::mtu);
    reader.list("routes", &mut range.routes, 32, rules::route);
    reader.value(
        "lease_seconds",
        &mut range.lease_seconds,
        rules::lease_seconds,
    );
    options(&mut reader, range);
    reader.read_only(&["id"]);
    // A wrong network would make everything else look wrong too.
    if !reader.is_refused("network") {
        fit(&mut reader, range);
    }
    reader.finish()
}

/// What has to lie inside the network, and what must not overlap.
fn fit(reader: &mut Reader, range: &NetworkRange) {
    let network = range.network;
    for (i, pool) in range.pools.iter().enumerate() {
        let field = format!("pools[{i}]");
        if !range.is_host(pool.first) || !range.is_host(pool.last) {
            reader.refuse(
                &field,
                format!("{pool} is not inside the host addresses of {network}"),
            );
        }
        if let Some(other) = range.pools.iter().take(i).find(|o| overlap(o, pool)) {
            reader.refuse(&field, format!("{pool} overlaps {other}"));
        }
    }
    for (i, excluded) in range.exclusions.iter().enumerate() {
        let field = format!("exclusions[{i}]");
        if !network.contains(excluded.first) || !network.contains(excluded.last) {
            reader.refuse(&field, format!("{excluded} is not inside {network}"));
        }
        if let Some(other) = range
            .exclusions
            .iter()
            .take(i)
            .find(|o| overlap(o, excluded))
        {
            reader.refuse(&field, format!("{excluded} overlaps {other}"));
        }
    }
    if let Some(gateway) = range.gateway
        && !range.is_host(gateway)
    {
        reader.refuse(
            "gateway",
            format!("{gateway} is not a host address of {network}"),
        );
    }
    for (i, route) in range.routes.iter().enumerate() {
        if !route.via.is_unspecified() && !range.is_host(route.via) {
            let message = format!("{} can't be reached in {network}", route.via);
            reader.refuse(&format!("routes[{i}]"), message);
        }
    }
}

fn overlap(a: &Pool, b: &Pool) -> bool {
    a.first <= b.last && b.first <= a.last
}

/// `{"CODE": "hex"}`.
fn options(reader: &mut Reader, range: &mut NetworkRange) {
    let map = match reader.take("options") {
        None => return,
        Some(Value::Null) => {
            range.options.clear();
            return;
        }
        Some(Value::Object(map)) => map,
        Some(_) => return reader.refuse("options", "must be an object of code and hex"),
    };
    let mut options = BTreeMap::new();
    for (code, bytes) in &map {
        let shown: String = code.chars().take(16).collect();
        let field = format!("options.{shown}");
        let known = rules::option_code(code);
        let bytes = rules::hex_bytes(bytes, reader.strictness());
        match (known, bytes) {
            (Ok(code), Ok(bytes)) => {
                if options.insert(code, bytes).is_some() {
                    reader.refuse(&field, "is there twice");
                }
            }
            (code, bytes) => {
                for message in [code.err(), bytes.err()].into_iter().flatten() {
                    reader.refuse(&field, message);
                }
            }
        }
    }
    range.options = options;
}
