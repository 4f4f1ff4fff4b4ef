//! Rules of single values: each turns a JSON value into a typed one, or says in a sentence
//! without subject what is wrong with it.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde_json::Value;
use uuid::Uuid;

use super::Strictness;
use crate::model::{Hostname, MacAddr, Pool, Route};

/// Longest command line of an image or of a client's own parameters, in bytes. Linux on
/// x86-64 and arm64 takes 2048 in all; the rest is for what the server adds.
pub const CMDLINE_MAX: usize = 1536;

/// Any text, without NUL or other control characters except line ends and tabs, which
/// free text may have.
///
/// # Errors
/// If it is no text, or too long, or has such characters.
fn plain_text(value: &Value, most: usize) -> Result<&str, String> {
    let text = value.as_str().ok_or("must be text")?;
    if text.chars().count() > most {
        return Err(format!("may have at most {most} characters"));
    }
    if text
        .chars()
        .any(|c| c.is_control() && !"\n\r\t".contains(c))
    {
        return Err("has control characters".into());
    }
    Ok(text)
}

/// A text of one line: blanks around it are cut, or refused in strict mode.
fn line(value: &Value, most: usize, strictness: Strictness) -> Result<&str, String> {
    let text = plain_text(value, most)?;
    let cut = text.trim();
    if cut.chars().any(char::is_control) {
        return Err("has control characters or line ends".into());
    }
    if cut.len() != text.len() && strictness == Strictness::Strict {
        return Err("has blanks or line ends around it".into());
    }
    Ok(cut)
}

fn parsed<T: FromStr>(value: &Value, strictness: Strictness) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    line(value, 255, strictness)?
        .parse()
        .map_err(|e: T::Err| format!("is wrong: {e}"))
}

/// Free text of several lines, at most 4096 characters.
///
/// # Errors
/// As all rules.
pub fn description(value: &Value, _: Strictness) -> Result<String, String> {
    plain_text(value, 4096).map(str::to_owned)
}

/// Free text such as `debian-12`, at most 100 characters.
///
/// # Errors
/// As all rules.
pub fn os_type(value: &Value, strictness: Strictness) -> Result<String, String> {
    line(value, 100, strictness).map(str::to_owned)
}

/// A name that can stand in a URL and on a command line: letters, digits, `.`, `_` and
/// `-`, beginning with a letter or digit, 1 to 64 characters, and no UUID (a name that reads as an
/// id would hide the row of that id).
///
/// # Errors
/// As all rules.
pub fn image_name(value: &Value, strictness: Strictness) -> Result<String, String> {
    let name = line(value, 255, strictness)?;
    let chars_ok = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let start_ok = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !chars_ok || !start_ok || name.len() > 64 {
        return Err(
            "must have 1 to 64 letters, digits, dots, underscores and hyphens, beginning with a letter or digit"
                .into(),
        );
    }
    if name.parse::<Uuid>().is_ok() {
        return Err("must not look like an id".into());
    }
    Ok(name.to_owned())
}

/// Name of a version, unique within its image: lower-case letters, digits, `.`, `_` and `-`,
/// beginning with a letter or digit, 1 to 64 characters, and no UUID.
///
/// # Errors
/// As all rules.
pub fn version_name(value: &Value, strictness: Strictness) -> Result<String, String> {
    let name = label(value, 64, strictness)?;
    if name.parse::<Uuid>().is_ok() {
        return Err("must not look like an id".into());
    }
    Ok(name)
}

/// Name of a ring of clients: as that of a version, at most 32 characters.
///
/// # Errors
/// As all rules.
pub fn ring(value: &Value, strictness: Strictness) -> Result<String, String> {
    label(value, 32, strictness)
}

fn label(value: &Value, most: usize, strictness: Strictness) -> Result<String, String> {
    let name = line(value, 255, strictness)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let chars_ok = name.chars().all(|c| plain(c) || "._-".contains(c));
    if !chars_ok || !name.starts_with(plain) || name.len() > most {
        return Err(format!(
            "must have 1 to {most} lower-case letters, digits, dots, underscores and hyphens, beginning with a letter or digit"
        ));
    }
    Ok(name.to_owned())
}

/// What a row that is there is called by: a name, a MAC or an id.
///
/// # Errors
/// As all rules.
pub fn called(value: &Value, strictness: Strictness) -> Result<String, String> {
    match line(value, 255, strictness)? {
        "" => Err("must not be empty".into()),
        name => Ok(name.to_owned()),
    }
}

/// The name of a finding of a doctor.
///
/// # Errors
/// As all rules.
pub fn finding(value: &Value, strictness: Strictness) -> Result<String, String> {
    match line(value, 511, strictness)? {
        "" => Err("must not be empty".into()),
        name => Ok(name.to_owned()),
    }
}

/// Who did something, as they call themselves: one line, at most 128 characters.
///
/// # Errors
/// As all rules.
pub fn author(value: &Value, strictness: Strictness) -> Result<String, String> {
    line(value, 128, strictness).map(str::to_owned)
}

/// Name of a network range: printable ASCII, 1 to 64 characters, no UUID.
///
/// # Errors
/// As all rules.
pub fn range_name(value: &Value, strictness: Strictness) -> Result<String, String> {
    let name = line(value, 255, strictness)?;
    let chars_ok = name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    if name.is_empty() || name.len() > 64 || !chars_ok {
        return Err("must have 1 to 64 printable ASCII characters".into());
    }
    if name.parse::<Uuid>().is_ok() {
        return Err("must not look like an id".into());
    }
    Ok(name.to_owned())
}

/// A MAC address of a machine: not multicast, broadcast or zero. In strict mode in its
/// normal spelling.
///
/// # Errors
/// As all rules.
pub fn mac(value: &Value, strictness: Strictness) -> Result<MacAddr, String> {
    let text = line(value, 64, strictness)?;
    let mac: MacAddr = text
        .parse()
        .map_err(|e: crate::model::mac::BadMac| format!("is wrong: {e}"))?;
    if !mac.is_station() {
        return Err("is a multicast, broadcast or zero address, which no machine has".into());
    }
    if strictness == Strictness::Strict && text != mac.to_string() {
        return Err(format!("must be spelt {mac}"));
    }
    Ok(mac)
}

/// A host name (RFC 1123).
///
/// # Errors
/// As all rules.
pub fn hostname(value: &Value, strictness: Strictness) -> Result<String, String> {
    let name = line(value, 255, strictness)?;
    name.parse::<Hostname>()
        .map(|name| name.to_string())
        .map_err(|e| format!("is wrong: {e}"))
}

/// A DNS domain: like a host name, but up to 253 bytes and labels up to 63 (RFC 1035
/// section 2.3.4).
///
/// # Errors
/// As all rules.
pub fn domain(value: &Value, strictness: Strictness) -> Result<String, String> {
    let name = line(value, 255, strictness)?;
    let alnum = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let label_ok = |label: &str| {
        label.len() <= 63
            && alnum(label.chars().next())
            && alnum(label.chars().next_back())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() > 253 || !name.split('.').all(label_ok) {
        return Err("must be a DNS domain, as in lab.example".into());
    }
    Ok(name.to_owned())
}

/// An IPv4 address that a machine can have.
///
/// # Errors
/// As all rules.
pub fn host_address(value: &Value, strictness: Strictness) -> Result<Ipv4Addr, String> {
    let text = line(value, 64, strictness)?;
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| "must be an IPv4 address, as in 10.0.0.20")?;
    let [first, ..] = address.octets();
    if first == 0 || first >= 224 || address.is_loopback() {
        return Err(format!("{address} is no address that a machine can have"));
    }
    Ok(address)
}

/// Text that ends up in a boot script and on a kernel command line. iPXE has no quoting:
/// line ends and other control characters, `${`, `&&`, `||` and `;` are refused, and anything but
/// printable ASCII.
///
/// # Errors
/// As all rules.
pub fn boot_text(value: &Value, strictness: Strictness) -> Result<String, String> {
    let text = value.as_str().ok_or("must be text")?;
    if text.chars().any(|c| !(c.is_ascii_graphic() || c == ' ')) {
        return Err("may have only printable ASCII characters, and no line ends".into());
    }
    if let Some(bad) = ["${", "&&", "||", ";"].iter().find(|b| text.contains(**b)) {
        return Err(format!(
            "must not contain `{bad}`, which means something to the boot loader"
        ));
    }
    if text.split(' ').any(|word| word.starts_with("dls.report=")) {
        return Err("must not set `dls.report`, which the server sets".into());
    }
    if text.len() > CMDLINE_MAX {
        return Err(format!("may have at most {CMDLINE_MAX} characters"));
    }
    let cut = text.trim();
    if cut.len() != text.len() && strictness == Strictness::Strict {
        return Err("has blanks around it".into());
    }
    Ok(cut.to_owned())
}

/// A word of one of the model's closed sets.
///
/// # Errors
/// As all rules.
pub fn word<T: FromStr<Err = crate::model::UnknownWord>>(
    value: &Value,
    _: Strictness,
) -> Result<T, String> {
    let text = value.as_str().ok_or("must be text")?;
    text.parse()
        .map_err(|e: crate::model::UnknownWord| format!("must be one of: {}", e.allowed))
}

/// True or false.
///
/// # Errors
/// As all rules.
pub fn flag(value: &Value, _: Strictness) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| "must be true or false".into())
}

/// An id.
///
/// # Errors
/// As all rules.
pub fn id(value: &Value, strictness: Strictness) -> Result<Uuid, String> {
    parsed::<Uuid>(value, strictness).map_err(|_| "must be an id (a UUID)".into())
}

/// A whole number within bounds, both included.
fn whole<T: TryFrom<u64>>(value: &Value, least: u64, most: u64, unit: &str) -> Result<T, String> {
    let bad = || format!("must be a whole number from {least} to {most}{unit}");
    let number = value.as_u64().ok_or_else(bad)?;
    if number < least || number > most {
        return Err(bad());
    }
    T::try_from(number).map_err(|_| bad())
}

/// Cores: 1 to 128.
///
/// # Errors
/// As all rules.
pub fn cpu_cores(value: &Value, _: Strictness) -> Result<i32, String> {
    whole(value, 1, 128, "")
}

/// Good boots that release a canary: 1 to 10,000.
///
/// # Errors
/// As all rules.
pub fn good_boots(value: &Value, _: Strictness) -> Result<u32, String> {
    whole(value, 1, 10_000, " (boots)")
}

/// Memory: 64 MiB to 1 TiB.
///
/// # Errors
/// As all rules.
pub fn memory_mb(value: &Value, _: Strictness) -> Result<i32, String> {
    whole(value, 64, 1_048_576, " (MiB)")
}

/// MTU. RFC 2132 section 5.1 allows from 68; below 576 a DHCP reply itself need not get
/// through (RFC 2131 section 2), so such a value is a mistake.
///
/// # Errors
/// As all rules.
pub fn mtu(value: &Value, _: Strictness) -> Result<u16, String> {
    whole(value, 576, 9216, " (bytes)")
}

/// Length of a lease: a minute to a year. Shorter ones make machines renew without pause,
/// longer ones never come back.
///
/// # Errors
/// As all rules.
pub fn lease_seconds(value: &Value, _: Strictness) -> Result<u32, String> {
    whole(value, 60, 31_536_000, " (seconds)")
}

/// An IPv4 network in CIDR. Host bits are cut, or refused in strict mode.
///
/// # Errors
/// As all rules.
pub fn network(value: &Value, strictness: Strictness) -> Result<Ipv4Network, String> {
    let text = line(value, 64, strictness)?;
    let bad = "must be an IPv4 network, as in 10.0.0.0/24";
    // Without a prefix it would be taken as a network of one address: never meant.
    let (_, prefix) = text.split_once('/').ok_or(bad)?;
    if prefix.is_empty() || !prefix.chars().all(|c| c.is_ascii_digit()) {
        return Err(bad.into());
    }
    let given: Ipv4Network = text.parse().map_err(|_| bad)?;
    let normal = Ipv4Network::new(given.network(), given.prefix()).map_err(|_| bad)?;
    if given != normal && strictness == Strictness::Strict {
        return Err(format!("has host bits; the network is {normal}"));
    }
    Ok(normal)
}

/// A network that can be served: /8 or smaller, unicast.
///
/// # Errors
/// As all rules.
pub fn served_network(value: &Value, strictness: Strictness) -> Result<Ipv4Network, String> {
    let network = network(value, strictness)?;
    let [first, ..] = network.network().octets();
    if network.prefix() < 8 {
        return Err("may be at most a /8".into());
    }
    if first == 0 || first == 127 || first >= 224 {
        return Err("holds no addresses that machines can have".into());
    }
    Ok(network)
}

/// A pool: `{"first": .., "last": ..}`, or the text `FIRST-LAST`.
///
/// # Errors
/// As all rules.
pub fn pool(value: &Value, strictness: Strictness) -> Result<Pool, String> {
    let pool = match value {
        Value::String(_) => parsed::<Pool>(value, strictness)?,
        Value::Object(map) if map.len() == 2 => {
            let end = |name: &str| {
                let given = map.get(name).ok_or("must have `first` and `last`")?;
                host_address(given, strictness).map_err(|e| format!("`{name}`: {e}"))
            };
            Pool {
                first: end("first")?,
                last: end("last")?,
            }
        }
        _ => return Err("must be FIRST-LAST, or an object with `first` and `last`".into()),
    };
    if pool.first > pool.last {
        return Err(format!("{pool} ends before it begins"));
    }
    Ok(pool)
}

/// A route: `{"to": .., "via": ..}`, or the text `NET=VIA`.
///
/// # Errors
/// As all rules.
pub fn route(value: &Value, strictness: Strictness) -> Result<Route, String> {
    let shape = "must be NETWORK=VIA, or an object with `to` and `via`";
    let (to, via) = match value {
        Value::String(text) => {
            let (to, via) = text.split_once('=').ok_or(shape)?;
            (Value::from(to), Value::from(via))
        }
        Value::Object(map) if map.len() == 2 => (
            map.get("to").ok_or(shape)?.clone(),
            map.get("via").ok_or(shape)?.clone(),
        ),
        _ => return Err(shape.into()),
    };
    Ok(Route {
        to: network(&to, strictness).map_err(|e| format!("`to`: {e}"))?,
        via: match via.as_str() {
            // RFC 3442: 0.0.0.0 means "on this link".
            Some("0.0.0.0") => Ipv4Addr::UNSPECIFIED,
            _ => host_address(&via, strictness).map_err(|e| format!("`via`: {e}"))?,
        },
    })
}

/// Codes that belong to the protocol itself and can't be set by hand.
pub const PROTOCOL_OPTIONS: [u8; 11] = [0, 50, 51, 52, 53, 54, 58, 59, 61, 82, 255];

/// The code of an option of one's own.
///
/// # Errors
/// As all rules.
pub fn option_code(text: &str) -> Result<u8, String> {
    let canonical = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let code = text.parse::<u8>().ok().filter(|_| canonical);
    let code = code.ok_or("is not an option code (1 to 254)")?;
    if PROTOCOL_OPTIONS.contains(&code) {
        return Err("belongs to the protocol and is set by the server".into());
    }
    Ok(code)
}

/// 1 to 255 bytes in hex; colons and capitals are put right, or refused in strict mode.
///
/// # Errors
/// As all rules.
pub fn hex_bytes(value: &Value, strictness: Strictness) -> Result<String, String> {
    let text = line(value, 1024, strictness)?;
    let digits = text.replace(':', "").to_ascii_lowercase();
    let hex = digits.chars().all(|c| c.is_ascii_hexdigit());
    if !hex || digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 510 {
        return Err("must be 1 to 255 bytes in hex, as in 0a000001".into());
    }
    if digits != text && strictness == Strictness::Strict {
        return Err("must be lower-case hex without colons".into());
    }
    Ok(digits)
}

/// Free labels: any JSON object, at most 16 KiB, at most 16 levels deep, without NUL (which
/// PostgreSQL's jsonb can't hold).
///
/// # Errors
/// As all rules.
pub fn tags(value: &Value, _: Strictness) -> Result<Value, String> {
    fn fit(value: &Value, levels: usize) -> bool {
        let text_ok = |text: &str| !text.contains('\0');
        levels > 0
            && match value {
                Value::String(text) => text_ok(text),
                Value::Array(list) => list.iter().all(|v| fit(v, levels - 1)),
                Value::Object(map) => map.iter().all(|(k, v)| text_ok(k) && fit(v, levels - 1)),
                Value::Null | Value::Bool(_) | Value::Number(_) => true,
            }
    }
    if !value.is_object() {
        return Err("must be an object".into());
    }
    if !fit(value, 16) {
        return Err("has NUL characters or is nested more than 16 levels deep".into());
    }
    if value.to_string().len() > 16 * 1024 {
        return Err("may have at most 16 KiB".into());
    }
    Ok(value.clone())
}
