//! A host name that is safe in DHCP, in a boot script and in a log line.

use std::fmt;
use std::str::FromStr;

/// An RFC 1123 host name, one or more labels of letters, digits and inner hyphens,
/// at most 63 bytes in all (the seed's column is wider; Linux's `hostname` is not).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(String);

/// Why a text is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host name has 1 to 63 letters, digits, hyphens and dots, and each part begins and ends with a letter or digit"
)]
pub struct BadHostname;

impl Hostname {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a client sent in option 12, if it is a host name at all once trailing
    /// NULs are cut (RFC 2132 section 3.14 does not say which of both ends send).
    #[must_use]
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|b| *b != 0)? + 1;
        std::str::from_utf8(bytes.get(..end)?).ok()?.parse().ok()
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Hostname {
    type Err = BadHostname;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label_ok = |label: &str| {
            let alnum = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            alnum(label.chars().next())
                && alnum(label.chars().next_back())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if text.len() > 63 || !text.split('.').all(label_ok) {
            return Err(BadHostname);
        }
        Ok(Self(text.to_owned()))
    }
}

impl serde::Serialize for Hostname {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Hostname {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_is_none() {
        for good in ["pc-01", "a", "PC01.lab.example", "7seats"] {
            assert!(good.parse::<Hostname>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "a..b",
            "a b",
            "${x}",
            "a;b",
            "ä",
            "a\n",
            long.as_str(),
        ] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad}");
        }
        assert_eq!(
            Hostname::from_wire(b"pc\0\0").map(|h| h.to_string()),
            Some("pc".into())
        );
        assert_eq!(Hostname::from_wire(b"\0\0"), None);
        assert_eq!(Hostname::from_wire(b"\xff\xfe"), None);
    }
}
