//! async-tftp with its own directory handler, as a peer for benchmarks:
//! `serve_async_tftp PORT FOLDER`. Nothing of the product is in it.

use std::env;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use async_tftp::server::TftpServerBuilder;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = || arguments.next().context("serve_async_tftp PORT FOLDER");
    let address = SocketAddr::from(([127, 0, 0, 1], argument()?.parse()?));
    let server = TftpServerBuilder::with_dir_ro(argument()?)?
        .bind(address)
        .build()
        .await?;
    server.serve().await?;
    Ok(())
}
