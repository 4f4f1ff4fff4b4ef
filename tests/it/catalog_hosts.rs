//! Several PostgreSQL hosts in one URL: the one that takes writes is used, and found again
//! after a failover. Each host is an embedded cluster behind a small TCP door.

use std::net::SocketAddr;

use dls::catalog::embedded::{Embedded, choose_user};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::{client, die_with_us, open, state_dir};

/// A TCP door to a cluster's unix socket; closing it cuts every connection.
struct Door {
    at: SocketAddr,
    keeper: JoinSet<()>,
}

impl Door {
    async fn to(embedded: &Embedded) -> Self {
        let url = embedded.url();
        let dir = url
            .split_once("host=")
            .unwrap()
            .1
            .split_once('&')
            .unwrap()
            .0;
        let socket = format!("{dir}/.s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            let mut through = JoinSet::new();
            while let Ok((mut outside, _)) = listener.accept().await {
                let socket = socket.clone();
                through.spawn(async move {
                    let mut inside = UnixStream::connect(socket).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { at, keeper }
    }
}

#[tokio::test]
async fn the_host_that_takes_writes_is_found_and_found_again() {
    let user = choose_user();
    let (one, two) = (state_dir(), state_dir());
    for dir in [&one, &two] {
        let embedded = Embedded::start(dir.path(), user.as_ref()).await.unwrap();
        die_with_us(embedded.pid(), None);
        open(&embedded.url(), Uuid::nil())
            .await
            .run_migrations()
            .await
            .unwrap();
        embedded.stop().await.unwrap();
    }
    // The first one starts as a standby: it answers, and refuses to write.
    std::fs::write(one.path().join("postgres/data/standby.signal"), "").unwrap();
    let standby = Embedded::start(one.path(), user.as_ref()).await.unwrap();
    let primary = Embedded::start(two.path(), user.as_ref()).await.unwrap();
    for embedded in [&standby, &primary] {
        die_with_us(embedded.pid(), None);
    }
    let (first, mut second) = (Door::to(&standby).await, Door::to(&primary).await);
    // And before both a host where nobody listens.
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let url = format!("postgres://dls@{nobody},{},{}/dls", first.at, second.at);
    let catalog = open(&url, Uuid::nil()).await;
    catalog.save_client_config(&client(1)).await.unwrap();
    assert_eq!(catalog.load().await.unwrap().clients.len(), 1);

    // The standby becomes the primary, the old primary is unplugged.
    let pool = sqlx::PgPool::connect(&standby.url()).await.unwrap();
    sqlx::query("SELECT pg_promote()")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    second.keeper.abort_all();
    while second.keeper.join_next().await.is_some() {}
    // It was no replica of the other, so its clients tell which one answered.
    assert_eq!(catalog.load().await.unwrap().clients.len(), 0);
    catalog.save_client_config(&client(2)).await.unwrap();
    catalog.close().await;

    // The old primary comes back and takes writes, too: its successor is asked, wherever it stands.
    let back = Door::to(&primary).await;
    let url = format!("postgres://dls@{},{}/dls", back.at, first.at);
    let catalog = open(&url, Uuid::nil()).await;
    let clients = catalog.load().await.unwrap().clients;
    assert_eq!(clients.len(), 1);
    assert_eq!(clients[0].mac_address, client(2).mac_address);
    catalog.close().await;
    standby.stop().await.unwrap();
    primary.stop().await.unwrap();
}
