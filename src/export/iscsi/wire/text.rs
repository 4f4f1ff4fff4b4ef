//! Text segments: `key=value` pairs separated by NUL (RFC 7143 section 6.1), bounded in
//! number and length, and the answers to them. It knows no key.

/// Pairs in one text; more is no initiator's.
pub const MOST_PAIRS: usize = 96;
/// Bytes of a key (RFC 7143 section 6.1).
pub const LONGEST_KEY: usize = 63;

/// Why a text is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadText {
    /// A pair without `=`, or with an empty key.
    NoKey,
    /// A key that is too long or has bytes that keys don't have.
    Key,
    /// A value that is not UTF-8.
    Value,
    /// Too many pairs.
    TooMany,
}

/// Reads all pairs. The last NUL may be missing: some initiators leave it out.
///
/// # Errors
/// See [`BadText`].
pub fn pairs(bytes: &[u8]) -> Result<Vec<(&str, &str)>, BadText> {
    let mut found = Vec::new();
    for part in bytes.split(|b| *b == 0) {
        if part.is_empty() {
            continue;
        }
        if found.len() == MOST_PAIRS {
            return Err(BadText::TooMany);
        }
        let equals = part.iter().position(|b| *b == b'=');
        let equals = equals.filter(|at| *at > 0).ok_or(BadText::NoKey)?;
        let (key, value) = (&part[..equals], &part[equals + 1..]);
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b".-+@_/#:".contains(b);
        if key.len() > LONGEST_KEY || !key.iter().all(allowed) {
            return Err(BadText::Key);
        }
        let key = std::str::from_utf8(key).map_err(|_| BadText::Key)?;
        let value = std::str::from_utf8(value).map_err(|_| BadText::Value)?;
        found.push((key, value));
    }
    Ok(found)
}

/// A text that is being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// Appends a pair.
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    /// The bytes of the data segment.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A number: decimal, or hexadecimal with `0x` (RFC 7143 section 6.1).
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    match hex {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    }
}

/// A large binary: `0x` and hex digits, or `0b` and base64 (RFC 7143 section 6.1), at most
/// `most` bytes.
#[must_use]
pub fn binary(text: &str, most: usize) -> Option<Vec<u8>> {
    let body = text.get(2..)?.as_bytes();
    match text.get(..2)? {
        "0x" | "0X" => hex(body, most),
        "0b" | "0B" => base64(body, most),
        _ => None,
    }
}

fn hex(body: &[u8], most: usize) -> Option<Vec<u8>> {
    if body.is_empty() || body.len().div_ceil(2) > most {
        return None;
    }
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut bytes = Vec::with_capacity(body.len().div_ceil(2));
    // An odd number of digits: the first byte has one.
    let (first, rest) = body.split_at(body.len() % 2);
    for b in first {
        bytes.push(digit(*b)?);
    }
    for pair in rest.chunks_exact(2) {
        bytes.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(bytes)
}

fn base64(body: &[u8], most: usize) -> Option<Vec<u8>> {
    // A last group of one character would be six bits of nothing.
    let end = body.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    let (body, pads) = (&body[..end], body.len() - end);
    if body.is_empty() || pads > 2 || body.len() % 4 == 1 || body.len() * 3 / 4 > most {
        return None;
    }
    let mut bytes = Vec::with_capacity(body.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for b in body {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff).to_le_bytes()[0]);
        }
    }
    Some(bytes)
}

/// `0x` and hex digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    format!("0x{}", crate::model::hex(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_read_and_bounded() {
        assert_eq!(pairs(b"a=b\0c=\0"), Ok(vec![("a", "b"), ("c", "")]));
        assert_eq!(pairs(b"a=b=c"), Ok(vec![("a", "b=c")]));
        assert_eq!(pairs(b""), Ok(vec![]));
        assert_eq!(pairs(b"=b\0"), Err(BadText::NoKey));
        assert_eq!(pairs(b"ab\0"), Err(BadText::NoKey));
        assert_eq!(pairs(b"a b=c\0"), Err(BadText::Key));
        assert_eq!(pairs(&b"a=b\0".repeat(2048)), Err(BadText::TooMany));
        let key = |n: usize| [&vec![b'k'; n][..], b"=v"].concat();
        assert!(pairs(&key(63)).is_ok());
        assert_eq!(pairs(&key(64)), Err(BadText::Key));
    }

    #[test]
    fn numbers_and_binaries() {
        assert_eq!(number("262144"), Some(262_144));
        assert_eq!(number("0x1F"), Some(31));
        for bad in [
            "",
            "+1",
            "0x",
            "0x+1",
            "-1",
            "1k",
            "99999999999999999999999",
        ] {
            assert_eq!(number(bad), None, "{bad}");
        }
        assert_eq!(binary("0x0a0b", 16), Some(vec![10, 11]));
        assert_eq!(binary("0xa0b", 16), Some(vec![10, 11]));
        assert_eq!(binary("0bCgs=", 16), Some(vec![10, 11]));
        assert_eq!(binary("0bTWFu", 16), Some(b"Man".to_vec()));
        assert_eq!(binary("0xffff", 1), None);
        for bad in [
            "", "0x", "0b", "0b=", "0bA", "0b====", "0xzz", "hello", "0b*AAA",
        ] {
            assert_eq!(binary(bad, 16), None, "{bad}");
        }
        assert_eq!(to_hex(&[0, 255]), "0x00ff");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(found) = pairs(&bytes) {
                prop_assert!(found.len() <= MOST_PAIRS);
            }
        }

        #[test]
        fn binaries_survive_the_way_there_and_back(bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            prop_assert_eq!(binary(&to_hex(&bytes), 64), Some(bytes));
        }

        #[test]
        fn any_text_is_a_binary_or_none(text: String) {
            let _ = binary(&text, 64);
            let _ = number(&text);
            let _ = base64(text.as_bytes(), 64);
        }
    }
}
