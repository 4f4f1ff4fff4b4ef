//! TLS for NBD: whether it is offered or demanded, and certificates from PEM files. It makes
//! no certificates and asks clients for none: a disk's secret name is the proof.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::machine::Offer;

/// Whether connections go in TLS.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// Never.
    #[default]
    Off,
    /// If the client asks for it.
    Allow(Arc<ServerConfig>),
    /// Nothing is told without.
    Require(Arc<ServerConfig>),
}

impl Tls {
    pub(super) const fn offer(&self) -> Offer {
        match self {
            Self::Off => Offer::NoTls,
            Self::Allow(_) => Offer::Tls,
            Self::Require(_) => Offer::OnlyTls,
        }
    }

    pub(super) fn config(&self) -> Option<Arc<ServerConfig>> {
        match self {
            Self::Off => None,
            Self::Allow(config) | Self::Require(config) => Some(config.clone()),
        }
    }
}

/// Why a certificate and its key can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadTls {
    /// A file can't be read, or is no PEM.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{0}: no certificate in it (a PEM section \"CERTIFICATE\" is needed)")]
    NoCertificate(PathBuf),
    /// There is no private key in the file.
    #[error("{0}: no private key in it (a PEM section \"PRIVATE KEY\" is needed)")]
    NoKey(PathBuf),
    /// They do not fit each other, or are of a kind that is not supported.
    #[error("{certificate} and {key}: {source}")]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// A server's TLS settings from a chain of certificates (its own first) and a private key, both
/// PEM.
///
/// # Errors
/// Which file is the matter, and why.
pub fn tls_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, BadTls> {
    let failed = |file: &Path| {
        let file = file.to_path_buf();
        move |source| BadTls::File { file, source }
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(failed(certificate))?;
    if chain.is_empty() {
        return Err(BadTls::NoCertificate(certificate.to_path_buf()));
    }
    let secret = match PrivateKeyDer::from_pem_file(key) {
        Ok(secret) => secret,
        Err(pem::Error::NoItemsFound) => return Err(BadTls::NoKey(key.to_path_buf())),
        Err(source) => return Err(failed(key)(source)),
    };
    let unfit = |source| BadTls::Unfit {
        certificate: certificate.to_path_buf(),
        key: key.to_path_buf(),
        source,
    };
    // Named outright: a process-wide default may not have been chosen, or be another one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(unfit)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_at_fault_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let at = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let certificate = at("cert.pem", made.cert.pem());
        let key = at("key.pem", made.signing_key.serialize_pem());
        let strange = at("strange.pem", other.serialize_pem());
        let empty = at("empty.pem", String::new());
        let missing = folder.path().join("missing.pem");
        assert!(tls_config(&certificate, &key).is_ok());
        let said = |c: &Path, k: &Path| tls_config(c, k).unwrap_err().to_string();
        assert!(said(&missing, &key).contains("missing.pem"));
        assert!(said(&certificate, &missing).contains("missing.pem"));
        assert!(said(&empty, &key).contains("no certificate"));
        assert!(said(&certificate, &empty).contains("no private key"));
        assert!(said(&certificate, &certificate).contains("no private key"));
        assert!(said(&certificate, &strange).contains("strange.pem"));
    }
}
