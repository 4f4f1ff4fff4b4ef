//! Failures become HTTP here and nowhere else in the admin API.
//!
//! Every body is JSON: `{"error": SENTENCE, "details": [{"field", "message"}]}`, with
//! `details` where fields are to blame. A failure of ours is logged here, once, and told without
//! its inside.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::catalog::CatalogError;
use crate::storage::StorageError;
use crate::validate::Violations;

/// What an error's body holds.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct ErrorBody {
    /// A sentence.
    pub(crate) error: String,
    /// Fields to blame.
    #[serde(default, skip_serializing_if = "Violations::is_empty")]
    pub(crate) details: Violations,
}

/// Why a request fails.
#[derive(Debug)]
pub(super) enum ApiError {
    /// 400: the input, with everything that is wrong with it.
    Invalid(Violations),
    /// 401: no token, or another one.
    Unauthorized(&'static str),
    /// 404: what was not found.
    NotFound(String),
    /// 405.
    MethodNotAllowed,
    /// 409: something else has it, or uses it.
    Conflict {
        /// Field concerned; empty if none.
        field: &'static str,
        /// Who has or uses it.
        message: String,
    },
    /// 413.
    TooLarge,
    /// 507: no room for the upload.
    Full,
    /// 503: the database is away.
    Unavailable,
    /// 500: ours; logged when it is answered.
    Internal(String),
}

impl ApiError {
    /// 400 for one field.
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Violations::of(field, message))
    }

    /// For deletions: what a rule refuses is in use.
    pub(super) fn in_use(error: CatalogError) -> Self {
        match error {
            CatalogError::Refused { field, message } => Self::Conflict { field, message },
            other => other.into(),
        }
    }
}

impl From<Violations> for ApiError {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Refused { field, message } => Self::invalid(field, message),
            CatalogError::Conflict { field, message } => Self::Conflict { field, message },
            CatalogError::Unavailable(_) => {
                tracing::warn!(%error, "an admin request can't be answered");
                Self::Unavailable
            }
            other => Self::Internal(other.to_string()),
        }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match &error {
            StorageError::Io { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull
                    || source.kind() == std::io::ErrorKind::QuotaExceeded =>
            {
                tracing::warn!(%error, "no room for an upload");
                Self::Full
            }
            _ => Self::Internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error, details) = match self {
            Self::Invalid(violations) => (
                StatusCode::BAD_REQUEST,
                "Validation failed".to_owned(),
                violations,
            ),
            Self::Unauthorized(sentence) => {
                (StatusCode::UNAUTHORIZED, sentence.into(), Violations::new())
            }
            Self::NotFound(sentence) => (StatusCode::NOT_FOUND, sentence, Violations::new()),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not know this method".into(),
                Violations::new(),
            ),
            Self::Conflict { field, message } => {
                let details = if field.is_empty() {
                    Violations::new()
                } else {
                    Violations::of(field, message.clone())
                };
                (StatusCode::CONFLICT, message, details)
            }
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request is too large".into(),
                Violations::new(),
            ),
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "the server's storage is full".into(),
                Violations::new(),
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the database can't be reached; try again in a moment".into(),
                Violations::new(),
            ),
            Self::Internal(inside) => {
                tracing::error!(error = inside, "an admin request failed");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the server failed; its log says why".into(),
                    Violations::new(),
                )
            }
        };
        let mut response = (status, Json(ErrorBody { error, details })).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
