//! By what servers know each other: a key pair of each server's own, a certificate that it signs
//! itself, and in the catalog the SHA-256 of that certificate. TLS 1.3, both sides show theirs,
//! and exactly those are accepted that the catalog has for a server that is alive. Names, times
//! and authorities in certificates mean nothing; that the other side has the key is proved by
//! its signature. It opens no connection.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::model::hex;

/// The file in the state directory: key and certificate.
const FILE: &str = "replication.pem";

/// Why this server has no identity.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no key and certificate.
    #[error(
        "{0} holds no key and certificate: restore it, or remove it to get new ones (other servers take them from the catalog)"
    )]
    Strange(PathBuf),
    /// None can be made, or they don't fit each other.
    #[error("a key and certificate for replication: {0}")]
    Unfit(String),
}

/// This server's key and certificate.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: String,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate, 64 hex digits in lower case.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> String {
    hex(&Sha256::digest(certificate))
}

impl Identity {
    /// That of a state directory; made at the first start, readable by the server alone.
    ///
    /// # Errors
    /// See [`NoIdentity`].
    pub fn open(state_dir: &Path) -> Result<Self, NoIdentity> {
        let path = state_dir.join(FILE);
        let failed = |source| NoIdentity::Io {
            path: path.clone(),
            source,
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = make()?;
                keep(state_dir, &path, text.as_bytes()).map_err(failed)?;
                text.into_bytes()
            }
            Err(e) => return Err(failed(e)),
        };
        let strange = |_| NoIdentity::Strange(path.clone());
        let certificate = CertificateDer::from_pem_slice(&text).map_err(strange)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(strange)?;
        Ok(Self {
            fingerprint: fingerprint(&certificate),
            certificate,
            key,
        })
    }

    /// What the catalog is told.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// TLS for those who connect to us; `known` says whose fingerprints are accepted.
    ///
    /// # Errors
    /// `Unfit`.
    pub fn server(&self, known: Known) -> Result<Arc<ServerConfig>, NoIdentity> {
        let unfit = |e: Error| NoIdentity::Unfit(e.to_string());
        let pinned = Arc::new(Pinned::new(known));
        let mut config = ServerConfig::builder_with_provider(pinned.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .with_client_cert_verifier(pinned)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(unfit)?;
        // A ticket would let somebody in again whom the catalog knows no more.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// TLS for connecting to another server.
    ///
    /// # Errors
    /// `Unfit`.
    pub fn client(&self, known: Known) -> Result<Arc<ClientConfig>, NoIdentity> {
        let unfit = |e: Error| NoIdentity::Unfit(e.to_string());
        let pinned = Arc::new(Pinned::new(known));
        let mut config = ClientConfig::builder_with_provider(pinned.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unfit)?
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(unfit)?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Says whether a certificate's fingerprint is one of those that are accepted now.
pub type Known = Arc<dyn Fn(&str) -> bool + Send + Sync>;

fn make() -> Result<String, NoIdentity> {
    let made = rcgen::generate_simple_self_signed(["dls".to_owned()]);
    let made = made.map_err(|e| NoIdentity::Unfit(e.to_string()))?;
    Ok(format!(
        "{}{}",
        made.signing_key.serialize_pem(),
        made.cert.pem()
    ))
}

fn keep(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    std::fs::File::open(folder)?.sync_all()
}

/// Accepts certificates by their fingerprints.
struct Pinned {
    known: Known,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl Pinned {
    fn new(known: Known) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Self { known, provider }
    }

    fn look(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if (self.known)(&fingerprint(certificate)) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn old() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.look(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.look(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests;
