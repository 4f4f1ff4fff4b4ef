//! Who is let in: the certificates that are known, with their keys, and nobody else.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::*;

fn only(fingerprint: &str) -> Known {
    let fingerprint = fingerprint.to_owned();
    Arc::new(move |shown| shown == fingerprint)
}

/// The handshake in memory, and a word each way.
fn talk(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), String> {
    let mut near = ClientConnection::new(client, ServerName::try_from("dls").unwrap()).unwrap();
    let mut far = ServerConnection::new(server).unwrap();
    near.writer().write_all(b"hello").unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while near.wants_write() {
            near.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            far.read_tls(&mut rest).unwrap();
            far.process_new_packets()
                .map_err(|e| format!("server: {e}"))?;
        }
        let mut bytes = Vec::new();
        while far.wants_write() {
            far.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            near.read_tls(&mut rest).unwrap();
            near.process_new_packets()
                .map_err(|e| format!("client: {e}"))?;
        }
    }
    let mut word = [0; 5];
    far.reader().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    Ok(())
}

fn new() -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open(dir.path()).unwrap();
    (dir, identity)
}

#[test]
fn the_identity_stays_and_is_nobody_else_s_to_read() {
    let (dir, identity) = new();
    let again = Identity::open(dir.path()).unwrap();
    assert_eq!(identity.fingerprint(), again.fingerprint());
    let mode = std::fs::metadata(dir.path().join(FILE)).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    assert!(!format!("{identity:?}").contains("PRIVATE"));
    std::fs::write(dir.path().join(FILE), "x").unwrap();
    let said = Identity::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains("replication.pem"), "{said}");
}

#[test]
fn exactly_the_known_certificates_are_accepted_on_both_sides() {
    let ((_a, a), (_b, b), (_c, c)) = (new(), new(), new());
    let (of_a, of_b) = (only(a.fingerprint()), only(b.fingerprint()));
    talk(
        a.client(of_b.clone()).unwrap(),
        b.server(of_a.clone()).unwrap(),
    )
    .unwrap();
    let refused = talk(
        c.client(of_b.clone()).unwrap(),
        b.server(of_a.clone()).unwrap(),
    );
    assert!(refused.unwrap_err().starts_with("server"));
    let refused = talk(a.client(of_b.clone()).unwrap(), c.server(of_a).unwrap());
    assert!(refused.unwrap_err().starts_with("client"));
    let nobody: Known = Arc::new(|_| false);
    assert!(talk(a.client(of_b).unwrap(), b.server(nobody).unwrap()).is_err());
}

#[test]
fn a_known_certificate_without_its_key_is_of_no_use() {
    let ((_a, a), (_b, b), (_c, c)) = (new(), new(), new());
    let (of_a, of_b) = (only(a.fingerprint()), only(b.fingerprint()));
    // What anybody may read of A, with a key of their own.
    let thief = Identity {
        certificate: a.certificate.clone(),
        key: c.key.clone_key(),
        fingerprint: a.fingerprint.clone(),
    };
    match thief.client(of_b) {
        // rustls compares the two itself.
        Err(NoIdentity::Unfit(_)) => {}
        Ok(client) => {
            let refused = talk(client, b.server(of_a).unwrap());
            assert!(refused.unwrap_err().starts_with("server"));
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_stolen_certificate_is_caught_by_its_signature() {
    // Past the comparison that rustls makes on its own side: the verifier itself.
    let ((_a, a), (_c, c)) = (new(), new());
    let pinned = Pinned::new(only(a.fingerprint()));
    assert!(pinned.look(&a.certificate).is_ok());
    assert!(pinned.look(&c.certificate).is_err());
    let provider = rustls::crypto::ring::default_provider();
    let key = provider
        .key_provider
        .load_private_key(c.key.clone_key())
        .unwrap();
    let signer = key
        .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
        .unwrap();
    let signature = signer.sign(b"the handshake").unwrap();
    let mut bytes = u16::from(SignatureScheme::ECDSA_NISTP256_SHA256)
        .to_be_bytes()
        .to_vec();
    bytes.extend_from_slice(&u16::try_from(signature.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&signature);
    let signed = || {
        use rustls::internal::msgs::codec::{Codec, Reader};
        DigitallySignedStruct::read(&mut Reader::init(&bytes)).unwrap()
    };
    let of_c = pinned.signed(b"the handshake", &c.certificate, &signed());
    assert!(of_c.is_ok(), "the signature is good: {of_c:?}");
    assert!(
        pinned
            .signed(b"the handshake", &a.certificate, &signed())
            .is_err()
    );
}
