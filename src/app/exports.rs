//! What the configuration says of the ports that disks are given out by.

use anyhow::{Context, anyhow};

use crate::config::{Config, NbdTls};
use crate::export::iscsi::IscsiLimits;
use crate::export::nbd::{NbdLimits, Tls, tls_config};

/// `[iscsi]`.
pub(super) fn iscsi_limits(config: &Config) -> IscsiLimits {
    IscsiLimits {
        sessions: config.iscsi.max_connections as usize,
        ..IscsiLimits::default()
    }
}

/// `[nbd]`; reads certificate and key.
///
/// # Errors
/// When they can't be read, or don't fit each other.
pub(super) fn nbd_limits(config: &Config) -> anyhow::Result<NbdLimits> {
    let nbd = &config.nbd;
    let loaded = || {
        let missing = || anyhow!("nbd.certificate and nbd.key are needed for TLS");
        let certificate = nbd.certificate.as_ref().ok_or_else(missing)?;
        let key = nbd.key.as_ref().ok_or_else(missing)?;
        tls_config(certificate, key).context("TLS of NBD")
    };
    let tls = match nbd.tls {
        NbdTls::Off => Tls::Off,
        NbdTls::Allow => Tls::Allow(loaded()?),
        NbdTls::Require => Tls::Require(loaded()?),
    };
    Ok(NbdLimits {
        connections: nbd.max_connections as usize,
        tls,
        ..NbdLimits::default()
    })
}
