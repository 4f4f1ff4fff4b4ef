//! TLS: by libnbd (GnuTLS) and by a client of rustls, offered and demanded, and plain text
//! where it must not be.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use dls::export::nbd::{NbdLimits, Tls, tls_config};
use dls::storage::Access;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::raw::{Client, info, length, meta, option};
use super::{NAME, Running, aside, limits, memory, run, serve, succeed};

const SIZE: u64 = 16 << 20;

/// A certificate for 127.0.0.1 as server and as authority, where libnbd looks for it.
fn certificate(folder: &Path) -> Arc<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]);
    let made = made.unwrap();
    fs::write(folder.join("ca-cert.pem"), made.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    tls_config(&folder.join("ca-cert.pem"), &folder.join("key.pem")).unwrap()
}

async fn serve_tls(folder: &Path, wrap: impl Fn(Arc<rustls::ServerConfig>) -> Tls) -> Running {
    let limits = NbdLimits {
        tls: wrap(certificate(folder)),
        ..limits()
    };
    serve(memory(SIZE, Access::Write), limits).await
}

fn secure(
    folder: &Path,
    mut client: Client<TcpStream>,
) -> Client<StreamOwned<ClientConnection, TcpStream>> {
    assert_eq!(client.ask(5, &[]), [(1, vec![])]);
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(folder.join("ca-cert.pem")).unwrap();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    Client::on(StreamOwned::new(connection, client.stream))
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_comes_in_tls() {
    let folder = tempfile::tempdir().unwrap();
    for required in [false, true] {
        let wrap = if required { Tls::Require } else { Tls::Allow };
        let server = serve_tls(folder.path(), wrap).await;
        let path = folder.path().to_path_buf();
        let address = server.address;
        aside(move || {
            let at = |name: &str| path.join(name).to_str().unwrap().to_owned();
            let query = format!("tls-certificates={}", path.display());
            let uri = format!("nbds://{address}/{NAME}?{query}");
            let said = succeed("nbdinfo", &[&uri]);
            assert!(said.contains("newstyle-fixed with TLS"), "{said}");
            let bytes: Vec<u8> = (0..SIZE).map(|n| (n * n >> 9) as u8).collect();
            fs::write(at("in"), &bytes).unwrap();
            succeed("nbdcopy", &[&at("in"), &uri]);
            succeed("nbdcopy", &[&uri, &at("out")]);
            assert!(fs::read(at("out")).unwrap() == bytes);
            let plain = run("nbdinfo", &[&format!("nbd://{address}/{NAME}")]);
            assert_eq!(plain.status.success(), !required);
        })
        .await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_tls_where_it_is_demanded() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_tls(folder.path(), Tls::Require).await;
    let (address, path) = (server.address, folder.path().to_path_buf());
    aside(move || {
        let mut client = Client::greeted(address);
        for code in [0, 3, 4, 6, 7, 8, 9, 10, 11, 99] {
            assert_eq!(client.refused(code, &[]).0, 5, "{code}");
        }
        assert_eq!(client.refused(7, &info(NAME, &[])).0, 5);
        assert_eq!(client.refused(5, b"x").0, 3);
        let mut client = secure(&path, client);
        assert_eq!(client.refused(5, &[]).0, 3, "a second time");
        client.open(true);
        let written = client.exchange(1, 1, 0, 4, b"text");
        assert_eq!(written.error, 0);
        let read = client.exchange(0, 0, 0, 1 << 20, &[]);
        assert_eq!(read.whole(0, 1 << 20)[..4], *b"text");
        // EXPORT_NAME can't be refused in words.
        let mut client = Client::greeted(address);
        client.send(&option(1, length(NAME.as_bytes()), NAME.as_bytes()));
        assert!(client.is_closed());
        let mut client = Client::greeted(address);
        assert_eq!(client.ask(2, &[]), [(1, vec![])]);
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_agreed_in_plain_text_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_tls(folder.path(), Tls::Allow).await;
    let (address, path) = (server.address, folder.path().to_path_buf());
    aside(move || {
        // CVE-2021-3716: structured replies and contexts that somebody put in before TLS.
        let mut client = Client::greeted(address);
        client.ask(8, &[]);
        client.ask(10, &meta(NAME, &["base:allocation"]));
        let mut client = secure(&path, client);
        let (error, _) = client.refused(10, &meta(NAME, &["base:allocation"]));
        assert_eq!(error, 3, "structured replies are to be asked for again");
        client.ask(7, &info(NAME, &[]));
        let read = client.exchange(0, 0, 0, 512, &[]);
        assert_eq!((read.chunks, read.error), (0, 0), "a simple reply");
        assert_eq!(client.exchange(7, 0, 0, 512, &[]).error, 22);
        // Bytes behind STARTTLS in the same packet: never taken as said within TLS.
        let mut client = Client::greeted(address);
        let mut bytes = option(5, 0, &[]);
        bytes.extend(option(8, 0, &[]));
        client.send(&bytes);
        assert!(client.is_closed());
        // Plain text where TLS should begin.
        let mut client = Client::greeted(address);
        client.ask(5, &[]);
        client.send(&option(7, length(&info(NAME, &[])), &info(NAME, &[])));
        assert!(client.is_closed());
    })
    .await;
    server.counts("nbd_connections_ended_total{how=\"injected\"} 1");
    server.counts("nbd_connections_ended_total{how=\"tls_failed\"} 1");
    server.stop().await;
}
