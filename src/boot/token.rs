//! Boot tokens: HMAC-SHA256(site key, attempt id, purpose), cut to 16 bytes.
//!
//! Checked without a query, never stored, never logged; the same after a restart and on
//! every server of a site. What it proves: whoever shows it was told it in this boot.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// Proof of belonging to one boot, for its URLs.
#[derive(Clone, Copy)]
pub struct BootToken([u8; 16]);

impl BootToken {
    /// The token of an attempt under a site key.
    #[must_use]
    pub fn make(site_key: &[u8], attempt: Uuid) -> Self {
        let mut token = [0_u8; 16];
        // HMAC takes keys of any length (RFC 2104 section 2), so this never fails.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(site_key) {
            mac.update(attempt.as_bytes());
            mac.update(b"boot");
            let full = mac.finalize().into_bytes();
            token.copy_from_slice(&full[..16]);
        }
        Self(token)
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// 32 hex digits, for a URL. The only way out of this type.
    #[must_use]
    pub fn reveal(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads 32 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut token = [0_u8; 16];
        for (i, byte) in token.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
        }
        Some(Self(token))
    }
}

impl fmt::Debug for BootToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootToken(..)")
    }
}

/// The start of all URLs of a boot: `http://HOST:PORT/b/ID.TOKEN/`.
#[must_use]
pub fn boot_url(server: std::net::Ipv4Addr, port: u16, site_key: &[u8], attempt: Uuid) -> String {
    let token = BootToken::make(site_key, attempt).reveal();
    format!("http://{server}:{port}/b/{}.{token}/", attempt.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_its_boot_and_key_only() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let token = BootToken::make(b"key", a);
        assert!(
            BootToken::parse(&token.reveal())
                .unwrap()
                .matches(&BootToken::make(b"key", a))
        );
        assert!(!token.matches(&BootToken::make(b"key", b)));
        assert!(!token.matches(&BootToken::make(b"kez", a)));
        assert!(BootToken::parse("+f").is_none());
        assert_eq!(format!("{token:?}"), "BootToken(..)");
        assert!(
            boot_url(std::net::Ipv4Addr::BROADCAST, 65535, b"k", a).len() + "boot.ipxe".len()
                <= 127
        );
    }
}
