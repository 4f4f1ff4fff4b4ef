//! Boot tokens: HMAC-SHA256(site key, attempt id, purpose), cut to 16 bytes; the secrets of
//! CHAP and the names of NBD exports, made in the same way.
//!
//! Checked without a query, never stored, never logged; the same after a restart and on
//! every server of a site. What it proves: whoever shows it was told it in this boot. A
//! purpose never gives away what belongs to another.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// Characters of a CHAP secret: 64 of them, so that each carries six bits. None means
/// anything to iPXE's parser, to a shell, or at the head of a word (no `-`).
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._";

/// Proof of belonging to one boot, for its URLs or as a part of its NBD export's name.
#[derive(Clone, Copy)]
pub struct BootToken([u8; 16]);

fn derive(site_key: &[u8], attempt: Uuid, purpose: &[u8]) -> [u8; 16] {
    let mut token = [0_u8; 16];
    // HMAC takes keys of any length (RFC 2104 section 2), so this never fails.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(site_key) {
        mac.update(attempt.as_bytes());
        mac.update(purpose);
        let full = mac.finalize().into_bytes();
        token.copy_from_slice(&full[..16]);
    }
    token
}

impl BootToken {
    /// The token of an attempt under a site key.
    #[must_use]
    pub fn make(site_key: &[u8], attempt: Uuid) -> Self {
        Self(derive(site_key, attempt, b"boot"))
    }

    /// The token in the name of an attempt's NBD export.
    #[must_use]
    pub fn nbd(site_key: &[u8], attempt: Uuid) -> Self {
        Self(derive(site_key, attempt, b"nbd"))
    }

    /// The token that a system makes itself of what the firmware was told of its disk: the
    /// first 16 bytes of SHA-256 over the machine's CHAP secret and `:report`. It opens the
    /// way to report and nothing else, and tells nothing of the secret.
    ///
    /// A plain hash, because the system has no more than a shell and `sha256sum`; what goes in
    /// is of fixed length, so nothing can be appended to it and be another boot's.
    #[must_use]
    pub fn report(site_key: &[u8], attempt: Uuid) -> Self {
        let mut hash = Sha256::new();
        hash.update(chap_secret(site_key, attempt, Chap::Machine));
        hash.update(b":report");
        let full = hash.finalize();
        let mut token = [0_u8; 16];
        token.copy_from_slice(&full[..16]);
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
        crate::model::hex(&self.0)
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

/// Whose secret of CHAP (RFC 1994) it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chap {
    /// The machine's: it shows that it is in this boot.
    Machine,
    /// The server's, in mutual CHAP: it shows the machine that the server has the site key.
    Server,
}

/// A CHAP secret of a boot: 16 characters (initiators of Windows take 12 to 16), 96 bits.
#[must_use]
pub fn chap_secret(site_key: &[u8], attempt: Uuid, whose: Chap) -> String {
    let purpose: &[u8] = match whose {
        Chap::Machine => b"chap",
        Chap::Server => b"chap-mutual",
    };
    let token = derive(site_key, attempt, purpose);
    let letter = |byte: &u8| LETTERS.get(usize::from(byte & 63)).copied();
    token.iter().filter_map(letter).map(char::from).collect()
}

/// The CHAP name of a boot: its attempt's id, 32 hex digits.
#[must_use]
pub fn chap_name(attempt: Uuid) -> String {
    attempt.simple().to_string()
}

/// The attempt that a CHAP name means; nothing but 32 hex digits is one.
#[must_use]
pub fn read_chap_name(name: &str) -> Option<Uuid> {
    (name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| Uuid::try_parse(name).ok())
        .flatten()
}

/// The name of a boot's NBD export: `ID.TOKEN`, 32 hex digits each.
#[must_use]
pub fn export_name(site_key: &[u8], attempt: Uuid) -> String {
    let token = BootToken::nbd(site_key, attempt).reveal();
    format!("{}.{token}", attempt.simple())
}

/// The attempt that an export's name means, if its token fits.
#[must_use]
pub fn read_export_name(site_key: &[u8], name: &str) -> Option<Uuid> {
    let (id, token) = name.split_once('.')?;
    let attempt = read_chap_name(id)?;
    let token = BootToken::parse(token)?;
    BootToken::nbd(site_key, attempt)
        .matches(&token)
        .then_some(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chap_secrets_can_stand_in_a_script_and_tell_nothing_of_each_other() {
        let boot = Uuid::from_u128(7);
        let machine = chap_secret(b"key", boot, Chap::Machine);
        let server = chap_secret(b"key", boot, Chap::Server);
        assert_ne!(machine, server);
        assert_ne!(machine, chap_secret(b"kez", boot, Chap::Machine));
        assert_ne!(
            machine,
            chap_secret(b"key", Uuid::from_u128(8), Chap::Machine)
        );
        for n in 0..500 {
            let secret = chap_secret(b"key", Uuid::from_u128(n), Chap::Machine);
            assert_eq!(secret.len(), 16);
            assert!(crate::boot::script::is_safe(&secret) && !secret.contains(' '));
            assert!(secret.bytes().all(|b| LETTERS.contains(&b)));
        }
        assert_eq!(read_chap_name(&chap_name(boot)), Some(boot));
        for bad in [
            "",
            "7",
            "../../etc/passwd",
            &boot.to_string(),
            &format!("{}0", boot.simple()),
        ] {
            assert_eq!(read_chap_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_export_s_name_is_of_one_boot_and_key() {
        let boot = Uuid::from_u128(7);
        let name = export_name(b"key", boot);
        assert_eq!(name.len(), 65);
        assert_eq!(read_export_name(b"key", &name), Some(boot));
        assert_eq!(read_export_name(b"kez", &name), None);
        // The token of the URLs opens no disk.
        let url = BootToken::make(b"key", boot).reveal();
        assert_eq!(
            read_export_name(b"key", &format!("{}.{url}", boot.simple())),
            None
        );
        for bad in [
            "",
            ".",
            "..",
            &name[1..],
            &format!("{name}0"),
            &name.replace('.', "/"),
        ] {
            assert_eq!(read_export_name(b"key", bad), None, "{bad}");
        }
    }

    #[test]
    fn a_report_s_token_is_what_a_shell_makes_of_the_secret() {
        let boot = Uuid::from_u128(7);
        let token = BootToken::report(b"key", boot);
        // printf '%s:report' "$secret" | sha256sum
        let secret = chap_secret(b"key", boot, Chap::Machine);
        assert_eq!(secret, "Tzij1UzrBbIlsLYu");
        assert_eq!(token.reveal(), "df63b0307b3127561268fd930dd19cca");
        for other in [
            BootToken::make(b"key", boot),
            BootToken::nbd(b"key", boot),
            BootToken::report(b"kez", boot),
            BootToken::report(b"key", Uuid::from_u128(8)),
        ] {
            assert!(!token.matches(&other));
        }
    }

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
