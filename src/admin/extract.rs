//! Takes requests apart: JSON bodies, names in paths, query parameters. Whatever is wrong
//! is answered like any other violation.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::catalog::Page;
use crate::validate::Violations;

/// Most bytes of a JSON body.
pub(super) const BODY_MAX: usize = 256 * 1024;

/// A body that is one JSON object. `serde_json` refuses nesting beyond 128 levels before it
/// costs anything.
pub(super) struct JsonObject(pub(super) Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes =
            Bytes::from_request(request, state)
                .await
                .map_err(|e: BytesRejection| match e.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge,
                    _ => ApiError::invalid("body", "broke off"),
                })?;
        json_object("body", &bytes).map(Self)
    }
}

/// Reads one JSON object; `field` is to blame if it is none.
pub(super) fn json_object(field: &str, bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::invalid(field, "must be a JSON object")),
        Err(e) => Err(ApiError::invalid(field, format!("is not JSON: {e}"))),
    }
}

/// The name or id in the path.
pub(super) struct Called(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Called {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(ApiError::NotFound("there is no such path".into())),
        }
    }
}

/// The names or ids in a path that has two.
pub(super) struct CalledTwo(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for CalledTwo {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((one, two))) => Ok(Self(one, two)),
            Err(_) => Err(ApiError::NotFound("there is no such path".into())),
        }
    }
}

/// A name from outside as it may stand in a sentence: one line, not at any length.
pub(super) fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        shown.push_str("..");
    }
    shown
}

/// Query parameters, taken out one by one; [`Asked::finish`] refuses what is left.
pub(super) struct Asked {
    given: Vec<(String, String)>,
    violations: Violations,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<Vec<(String, String)>>::from_request_parts(parts, state).await {
            Ok(Query(given)) => Ok(Self {
                given,
                violations: Violations::new(),
            }),
            Err(_) => Err(ApiError::invalid("query", "can't be read")),
        }
    }
}

impl Asked {
    /// The text of a parameter.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.given.iter().position(|(n, _)| n == name)?;
        let (_, value) = self.given.remove(at);
        if self.given.iter().any(|(n, _)| n == name) {
            self.violations.add(name, "is there twice");
        }
        self.given.retain(|(n, _)| n != name);
        Some(value)
    }

    /// A parameter of a type; `expected` completes the sentence `must be ..`.
    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.violations.add(name, format!("must be {expected}"));
        }
        parsed
    }

    /// `limit` and `offset`.
    pub(super) fn page(&mut self) -> Page {
        let mut bound = |name: &str, least: i64| {
            let expected = format!("a whole number, {least} or more");
            let number = self.parsed::<i64>(name, &expected)?;
            if number < least {
                self.violations.add(name, format!("must be {expected}"));
                return None;
            }
            Some(number)
        };
        Page {
            limit: bound("limit", 1),
            offset: bound("offset", 0),
        }
    }

    /// Ends the reading.
    pub(super) fn finish(mut self) -> Result<(), ApiError> {
        for (name, _) in &self.given {
            self.violations
                .add(shown(name), "is not a known query parameter");
        }
        Ok(self.violations.into_result()?)
    }
}
