//! The admin API, seen from the command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Failure, Global};
use crate::admin::auth::{self, TokenError};
use crate::config::Config;
use crate::validate::Violations;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer. Streams send something every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// Between two signs of life of a connection on which nothing is sent.
const ALIVE: Duration = Duration::from_secs(15);

/// A server, and what lets us in.
pub(super) struct Remote {
    http: reqwest::Client,
    /// For what takes its time before it answers (a file that is sent or converted).
    patient: reqwest::Client,
    base: String,
    token: auth::Token,
    json: bool,
}

/// An error's body.
#[derive(serde::Deserialize)]
struct ErrorBody {
    error: String,
    #[serde(default)]
    details: Violations,
}

impl Remote {
    /// From the options and, for what they leave open, the configuration.
    pub(super) fn new(global: &Global) -> Result<Self, Failure> {
        let load =
            || Config::load(global.config.as_deref()).map_err(|e| Failure::Failed(e.to_string()));
        let base = match &global.server {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", reachable(load()?.admin.listen)),
        };
        if !base.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "--server {base}: expected a URL that begins with http://"
            )));
        }
        let token = match &global.token_file {
            Some(path) => auth::read_token(path),
            None => auth::read_token(&auth::token_path(&load()?.state_dir)),
        };
        let token = token.map_err(|e| match &e {
            TokenError::Io { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Failure::NoAccess(format!(
                    "{e}: run this as root or as the server's user, or name a copy with --token-file"
                ))
            }
            _ => Failure::NoAccess(e.to_string()),
        })?;
        // The server is on this host or on the LAN: no proxy from the environment.
        let builder = || {
            reqwest::Client::builder()
                .no_proxy()
                .connect_timeout(CONNECT)
                .tcp_keepalive(ALIVE)
                .user_agent(concat!("dls/", env!("CARGO_PKG_VERSION")))
        };
        let failed = |e| Failure::Failed(format!("can't start an HTTP client: {e}"));
        let http = builder().read_timeout(SILENCE).build().map_err(failed)?;
        let patient = builder().build().map_err(failed)?;
        Ok(Self {
            http,
            patient,
            base,
            token,
            json: global.json,
        })
    }

    /// True if JSON was asked for.
    pub(super) fn wants_json(&self) -> bool {
        self.json
    }

    /// A request to a path.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token.reveal())
    }

    /// A request whose answer may take as long as it takes, if only the server is there.
    pub(super) fn request_slowly(&self, method: Method, path: &str) -> RequestBuilder {
        self.patient
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token.reveal())
    }

    /// Sends a request; an answer that is no success becomes a failure.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let ErrorBody { error, details } =
            serde_json::from_str(&text).unwrap_or_else(|_| ErrorBody {
                error: format!("{} answered {status}, which is no answer of dls", self.base),
                details: Violations::new(),
            });
        Err(match status {
            StatusCode::NOT_FOUND => Failure::NotFound(error),
            StatusCode::BAD_REQUEST | StatusCode::CONFLICT => Failure::Refused(error, details),
            StatusCode::UNAUTHORIZED => Failure::NoAccess(error),
            _ => Failure::Failed(error),
        })
    }

    /// Sends a request and reads the JSON of its answer.
    pub(super) async fn fetch(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.fetched(self.request(method, path), body).await
    }

    /// The same of an answer that may take as long as it takes.
    pub(super) async fn fetch_slowly(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.fetched(self.request_slowly(method, path), body).await
    }

    async fn fetched(
        &self,
        mut request: RequestBuilder,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(request).await?;
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::Failed(format!("{} sent an answer that is no JSON: {e}", self.base))
        })
    }

    /// `GET` of a list: the rows under `key`.
    pub(super) async fn list(&self, path: &str, key: &str) -> Result<Value, Failure> {
        let mut body = self.fetch(Method::GET, path, None).await?;
        Ok(body.get_mut(key).map(Value::take).unwrap_or_default())
    }

    /// A transport error in a sentence.
    pub(super) fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        if error.is_connect() {
            let base = &self.base;
            Failure::NoAccess(format!(
                "no dls server answers at {base} ({cause}): is `dls serve` running?"
            ))
        } else {
            Failure::NoAccess(format!("the connection to {} broke: {cause}", self.base))
        }
    }
}

/// A value of the API as a type of the model.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|e| Failure::Failed(format!("the server's answer is of another version: {e}")))
}

/// A name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let mut path = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// A listening address as one can connect to it.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// A file's name for messages.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(segment("10.0.0.0/24"), "10%2E0%2E0%2E0%2F24");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("a b?c#d"), "a%20b%3Fc%23d");
        assert_eq!(segment("debian-12"), "debian-12");
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        assert_eq!(
            reachable(SocketAddr::from(([0, 0, 0, 0], 8080))).to_string(),
            "127.0.0.1:8080"
        );
    }
}
