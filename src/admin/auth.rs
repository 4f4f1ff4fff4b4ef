//! Who is let in: the token file, and the gate in front of every route.
//!
//! The token is compared in constant time and never logged or shown.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use subtle::ConstantTimeEq;

use super::Shared;
use super::error::ApiError;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Anybody who reaches the listener.
    Public,
    /// Who knows the admin token.
    Admin,
}

/// The admin token.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token. Each message is one clear sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is not there.
    #[error("there is no admin token at {0}: `dls serve` makes it at its first start")]
    Missing(PathBuf),
    /// An input or output error.
    #[error("{action} the admin token {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Others could read it.
    #[error(
        "the admin token {path} has mode {mode:04o}, so that others can read it: make it 0600, or remove it to get a new one"
    )]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It can't be a token.
    #[error(
        "the admin token {0} has to be 32 or more printable characters in one line: remove the file to get a new one"
    )]
    Malformed(PathBuf),
}

/// Fewest characters of a token that somebody wrote by hand.
const SHORTEST: usize = 32;
/// Most.
const LONGEST: usize = 1024;

impl Token {
    /// A token from text: 32 to 1024 printable ASCII characters without blanks.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let chars_ok = text.chars().all(|c| c.is_ascii_graphic());
        let length_ok = (SHORTEST..=LONGEST).contains(&text.len());
        (chars_ok && length_ok).then(|| Self(text.into()))
    }

    /// The token as it goes into a header.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// True if it is the one, in a time that does not tell how much of it is right.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

/// Path of the token in a state directory.
#[must_use]
pub fn token_path(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.token")
}

/// Reads `admin.token` in the state directory, or makes it: 32 random bytes in hex, mode
/// 0600. Two servers that start at once get the same one.
///
/// # Errors
/// If it can't be read or made, is no token, or others can read it.
pub fn token_file(state_dir: &Path) -> Result<Token, TokenError> {
    let path = token_path(state_dir);
    match read_token(&path) {
        Err(TokenError::Missing(_)) => {}
        read => return read,
    }
    let failed = |action, source| TokenError::Io {
        action,
        path: path.clone(),
        source,
    };
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| failed("making", std::io::Error::other(e.to_string())))?;
    let text = crate::model::hex(&bytes);
    let draft = state_dir.join(format!("admin.token.{}.new", std::process::id()));
    let make = || {
        match std::fs::remove_file(&draft) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        // A link never replaces: whoever comes second reads the first one's.
        let linked = std::fs::hard_link(&draft, &path);
        std::fs::remove_file(&draft)?;
        std::fs::File::open(state_dir)?.sync_all()?;
        match linked {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    make().map_err(|e| failed("making", e))?;
    read_token(&path)
}

/// Reads a token file.
///
/// # Errors
/// If it is missing, can't be read, is no token, or others can read it.
pub fn read_token(path: &Path) -> Result<Token, TokenError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => TokenError::Missing(path.to_owned()),
        _ => TokenError::Io {
            action: "reading",
            path: path.to_owned(),
            source,
        },
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let malformed = || TokenError::Malformed(path.to_owned());
    let mut bytes = Vec::new();
    file.take(2 * LONGEST as u64)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Token::parse(line).ok_or_else(malformed)
}

/// Requests by route and status.
#[derive(Debug, Clone, Default)]
pub struct AdminMetrics {
    requests: Family<Vec<(&'static str, String)>, Counter>,
}

impl AdminMetrics {
    /// Counters in a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "admin_requests",
            "Requests to the admin API by method, route and status",
            metrics.requests.clone(),
        );
        metrics
    }

    fn count(&self, method: &str, route: &str, response: &Response) {
        let labels = vec![
            ("method", method.to_owned()),
            ("route", route.to_owned()),
            ("status", response.status().as_str().to_owned()),
        ];
        self.requests.get_or_create(&labels).inc();
    }
}

/// The rule of one route.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) api: Shared,
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) access: Access,
}

/// Stands in front of each route: lets in or refuses, and counts.
pub(super) async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let admitted = match gate.access {
        Access::Public => Ok(()),
        Access::Admin => admit(&gate.api, request.headers()),
    };
    let response = match admitted {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    gate.api.metrics.count(gate.method, gate.path, &response);
    response
}

/// Whatever is not in the list of routes; told only to those who are let in.
pub(super) async fn unknown_path(State(api): State<Shared>, headers: HeaderMap) -> Response {
    answer_unknown(
        &api,
        &headers,
        ApiError::NotFound("there is no such path".into()),
    )
}

/// A known path with another method.
pub(super) async fn unknown_method(State(api): State<Shared>, headers: HeaderMap) -> Response {
    answer_unknown(&api, &headers, ApiError::MethodNotAllowed)
}

fn answer_unknown(api: &Shared, headers: &HeaderMap, error: ApiError) -> Response {
    let error = admit(api, headers).err().unwrap_or(error);
    let response = error.into_response();
    api.metrics.count("other", "none", &response);
    response
}

/// RFC 6750 section 2.1; exactly one `Authorization` header.
fn admit(api: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(ApiError::Unauthorized(
            "this needs the admin token: send `Authorization: Bearer TOKEN`, with the token from admin.token in the server's state directory",
        ));
    };
    let bytes = value.as_bytes();
    let token = match bytes.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer ") => token.trim_ascii(),
        _ => {
            return Err(ApiError::Unauthorized(
                "this needs the admin token as `Authorization: Bearer TOKEN`",
            ));
        }
    };
    if api.token.is(token) {
        Ok(())
    } else {
        Err(ApiError::Unauthorized("this is not the admin token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_token_is_made_once_and_privately() {
        let dir = tempfile::tempdir().unwrap();
        let first = token_file(dir.path()).unwrap();
        assert_eq!(first.reveal().len(), 64);
        let path = token_path(dir.path());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(token_file(dir.path()).unwrap().reveal(), first.reveal());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no litter"
        );
    }

    #[test]
    fn two_at_once_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        // A draft left by a killed process of the same id does no harm.
        let litter = format!("admin.token.{}.new", std::process::id());
        std::fs::write(dir.path().join(litter), "x").unwrap();
        let first = token_file(dir.path()).unwrap();
        assert!(first.is(token_file(dir.path()).unwrap().reveal().as_bytes()));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = token_path(dir.path());
        let long = "a".repeat(LONGEST + 1);
        let spaced = format!("{} {}", "a".repeat(20), "b".repeat(20));
        for text in [
            "",
            "\n",
            "short",
            "   \n",
            long.as_str(),
            spaced.as_str(),
            "\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}",
        ] {
            write(&path, text, 0o600);
            let refused = token_file(dir.path());
            assert!(matches!(refused, Err(TokenError::Malformed(_))), "{text:?}");
        }
        write(&path, &"a".repeat(64), 0o640);
        let refused = token_file(dir.path()).unwrap_err();
        assert!(matches!(refused, TokenError::Exposed { .. }), "{refused}");
        write(&path, &"a".repeat(64), 0o400);
        assert!(token_file(dir.path()).is_ok());
    }
}
