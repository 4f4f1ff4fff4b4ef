//! Logs and metrics: set up once, by the root.
//!
//! Logs go to standard error; per packet at debug, per change of state at info. Metrics are
//! counted by each part in its own closed set of labels and are gathered in one registry.

use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging. A filter that can't be read is told and `info` is taken.
///
/// # Errors
/// When logging has been started already.
pub fn start_logging(log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (filter, complaint) = match log.filter.parse::<EnvFilter>() {
        Ok(filter) => (filter, None),
        Err(e) => (EnvFilter::new("info"), Some(e)),
    };
    // sqlx looks for root's .pgpass after we have stopped being root, and complains.
    let filter = filter.add_directive("sqlx_postgres::options::pgpass=error".parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init()?,
        LogFormat::Json => builder.json().try_init()?,
    }
    if let Some(e) = complaint {
        tracing::warn!(filter = log.filter, error = %e, "log.filter can't be read, logging at info");
    }
    Ok(())
}

/// An empty registry; every name in it begins with `dls_`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("dls")
}

/// Lets closed sets with `as_str` stand as the values of labels.
macro_rules! label_by_word {
    ($($name:ty),+) => { $(
        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                std::fmt::Write::write_str(encoder, self.as_str())
            }
        }
    )+ };
}
pub(crate) use label_by_word;
