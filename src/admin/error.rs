//! Failures become HTTP here and nowhere else in the admin API.
//!
//! Every body is JSON: `{"error": SENTENCE, "details": [{"field", "message"}]}`, with
//! `details` where fields are to blame. A failure of ours is logged here, once, and told without
//! its inside.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::catalog::CatalogError;
use crate::storage::{StorageError, VolumeError};
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
    /// 409: a piece of an upload that does not begin where the last one ended.
    WrongOffset {
        /// Bytes that are there: where to go on.
        there: u64,
    },
    /// 413.
    TooLarge,
    /// 507: no room for the upload.
    Full,
    /// 503: the database is away.
    Unavailable,
    /// 503: the image store is away; the sentence says what it lacks.
    StoreAway(String),
    /// 500: ours; logged when it is answered.
    Internal(String),
}

impl ApiError {
    /// 400 for one field.
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Violations::of(field, message))
    }

    /// What is wrong, in a sentence, for the log and for jobs.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Invalid(violations) => violations.to_string(),
            Self::NotFound(sentence) | Self::StoreAway(sentence) | Self::Internal(sentence) => {
                sentence.clone()
            }
            Self::Unauthorized(sentence) => (*sentence).to_owned(),
            Self::Conflict { message, .. } => message.clone(),
            Self::WrongOffset { there } => {
                format!("the upload goes on at byte {there}, not where this piece begins")
            }
            Self::MethodNotAllowed => "this path does not know this method".to_owned(),
            Self::TooLarge => "the request is too large".to_owned(),
            Self::Full => "the server's storage is full".to_owned(),
            Self::Unavailable => "the database can't be reached; try again in a moment".to_owned(),
        }
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
            StorageError::Full { .. } => {
                tracing::warn!(%error, "no room for an upload");
                Self::Full
            }
            _ => Self::Internal(error.to_string()),
        }
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::NoSpace => {
                tracing::warn!("no room in the image store");
                Self::Full
            }
            VolumeError::Away(_) => {
                tracing::warn!(%error, "an admin request can't be answered");
                Self::StoreAway(error.to_string())
            }
            VolumeError::BadSource(why) => Self::invalid("file", why),
            VolumeError::Exists(_) | VolumeError::Busy { .. } => Self::Conflict {
                field: "",
                message: error.to_string(),
            },
            VolumeError::Missing(_) | VolumeError::BadName(_) => Self::NotFound(error.to_string()),
            other => Self::Internal(other.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let there = match &self {
            Self::WrongOffset { there } => Some(*there),
            _ => None,
        };
        let sentence = self.sentence();
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
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, sentence, Violations::new()),
            Self::WrongOffset { .. } => (
                StatusCode::CONFLICT,
                sentence.clone(),
                Violations::of("Content-Range", sentence),
            ),
            Self::Conflict { field, message } => {
                let details = if field.is_empty() {
                    Violations::new()
                } else {
                    Violations::of(field, message.clone())
                };
                (StatusCode::CONFLICT, message, details)
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, sentence, Violations::new()),
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                sentence,
                Violations::new(),
            ),
            Self::Unavailable | Self::StoreAway(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, sentence, Violations::new())
            }
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
        if let Some(there) = there {
            headers.insert("upload-offset", HeaderValue::from(there));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
