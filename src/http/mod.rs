//! The boot listener: loaders, scripts, kernels, initrds, phone-home, over HTTP/1.1.
//!
//! The second door to [`crate::boot::files`]; it judges no path and makes no plan. hyper
//! speaks the protocol; what firmware needs beyond it (exact lengths, a connection that stays
//! open after HEAD, no empty header) is held by the tests of `answer`.
//!
//! - `server`: listening, connections and their limits
//! - `answer`: one request -> one response
//! - `body`: a file as a response body
//! - `standin`: which bytes of a body are a file's, sent by the kernel alone
//! - `ledger`: what of a file has gone out, over several requests
//! - `link`: a TCP stream that gives up on a reader that does not read
//! - `metrics`: counters

mod answer;
mod body;
mod ledger;
mod link;
mod metrics;
mod server;
mod standin;

pub use metrics::HttpMetrics;
pub use server::{BindError, HttpLimits, HttpServer};
