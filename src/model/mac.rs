//! A 48-bit Ethernet address in its one normal spelling, `aa:bb:cc:dd:ee:ff`.

use std::fmt;
use std::str::FromStr;

/// An EUI-48 address. Parsed from any usual spelling, written in one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// Text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address (expected six bytes in hex, as in 52:54:00:12:34:56)")]
pub struct BadMac(pub String);

impl MacAddr {
    /// The six bytes in wire order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// True for an address that can be a machine's own: not multicast, not broadcast, not zero.
    #[must_use]
    pub const fn is_station(self) -> bool {
        let zero = matches!(self.0, [0, 0, 0, 0, 0, 0]);
        self.0[0] & 1 == 0 && !zero
    }

    /// Lower case with hyphens, `aa-bb-cc-dd-ee-ff`, as boot loaders spell it in file names.
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;

    /// Accepts `aa:bb:cc:dd:ee:ff`, `AA-BB-CC-DD-EE-FF`, `aabb.ccdd.eeff` and `aabbccddeeff`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadMac(text.chars().take(40).collect());
        let groups: Vec<&str> = text.split([':', '-', '.']).collect();
        let shape_ok = match groups.len() {
            6 => groups.iter().all(|g| g.len() == 2),
            3 => text.contains('.') && groups.iter().all(|g| g.len() == 4),
            1 => text.len() == 12,
            _ => false,
        };
        let separators = text.chars().filter(|c| !c.is_ascii_hexdigit());
        let mut kinds: Vec<char> = separators.collect();
        kinds.dedup();
        if !shape_ok || kinds.len() > 1 {
            return Err(bad());
        }
        let digits: String = groups.concat();
        let mut octets = [0_u8; 6];
        for (i, octet) in octets.iter_mut().enumerate() {
            let pair = digits.get(i * 2..i * 2 + 2).ok_or_else(bad)?;
            *octet = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(octets))
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_means_the_same() {
        let want = MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 1]);
        for text in [
            "52:54:00:aa:bb:01",
            "52-54-00-AA-BB-01",
            "5254.00aa.bb01",
            "525400AABB01",
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        assert_eq!(want.to_string(), "52:54:00:aa:bb:01");
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "52:54:00:aa:bb",
            "52:54:00:aa:bb:0g",
            "52:54-00:aa:bb:01",
            "+2:54:00:aa:bb:01",
            "5254:00aa:bb01",
            "52:54:00:aa:bb:01:02",
            "ééé",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
