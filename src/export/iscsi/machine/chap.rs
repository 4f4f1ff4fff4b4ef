//! CHAP (RFC 1994, RFC 7143 section 12.1.3): algorithms, responses and their comparison.
//! Secrets and responses are never in a `Debug` output.

use md5::Md5;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

/// Bytes of the longest challenge or response that we look at (RFC 7143 section 12.1.3).
pub const LONGEST: usize = 1024;

/// A hash of CHAP, by its number at IANA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 5.
    Md5,
    /// 7.
    Sha256,
    /// 8.
    Sha3,
}

impl Algorithm {
    /// The first of an initiator's list that we have (RFC 7143 section 12.1.3: in the order
    /// of its preference).
    #[must_use]
    pub fn choose(list: &str) -> Option<Self> {
        list.split(',').find_map(|one| match one.trim() {
            "5" => Some(Self::Md5),
            "7" => Some(Self::Sha256),
            "8" => Some(Self::Sha3),
            _ => None,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> &'static str {
        match self {
            Self::Md5 => "5",
            Self::Sha256 => "7",
            Self::Sha3 => "8",
        }
    }

    /// Bytes of its responses, and of the challenges that we send with it.
    #[must_use]
    pub const fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Sha3 => 32,
        }
    }

    /// The response to a challenge: hash of identifier, secret and challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
            let mut hash = D::new();
            hash.update([id]);
            hash.update(secret.as_bytes());
            hash.update(challenge);
            hash.finalize().to_vec()
        }
        match self {
            Self::Md5 => hash::<Md5>(id, secret, challenge),
            Self::Sha256 => hash::<Sha256>(id, secret, challenge),
            Self::Sha3 => hash::<Sha3_256>(id, secret, challenge),
        }
    }

    /// Compares a response in constant time.
    #[must_use]
    pub fn proves(self, id: u8, secret: &str, challenge: &[u8], response: &[u8]) -> bool {
        let right = self.response(id, secret, challenge);
        right.as_slice().ct_eq(response).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_in_their_order() {
        assert_eq!(Algorithm::choose("8,7,6,5"), Some(Algorithm::Sha3));
        assert_eq!(Algorithm::choose("6,5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("7"), Some(Algorithm::Sha256));
        for none in ["", "6", "55", "0x5", "5x"] {
            assert_eq!(Algorithm::choose(none), None, "{none}");
        }
    }

    #[test]
    fn only_the_right_response_proves() {
        for algorithm in [Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha3] {
            let right = algorithm.response(1, "secret-of-12", b"challenge");
            assert_eq!(right.len(), algorithm.length());
            assert!(algorithm.proves(1, "secret-of-12", b"challenge", &right));
            assert!(!algorithm.proves(2, "secret-of-12", b"challenge", &right));
            assert!(!algorithm.proves(1, "secret-of-13", b"challenge", &right));
            assert!(!algorithm.proves(1, "secret-of-12", b"challenge", &right[1..]));
            assert!(!algorithm.proves(1, "secret-of-12", b"challenge", b""));
        }
    }

    #[test]
    fn md5_as_others_compute_it() {
        // MD5 of 00 || "" || "" is that of one zero byte.
        assert_eq!(
            Algorithm::Md5.response(0, "", b"")[..4],
            [0x93, 0xb8, 0x85, 0xad]
        );
    }
}
