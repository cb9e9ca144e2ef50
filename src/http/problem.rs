//! Errors as `application/problem+json` (RFC 9457): what is wrong and what to do, never more.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpRequest, HttpResponse, Responder, ResponseError};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::ingest::{Accepted, LineError};
use crate::error::{ReadError, StoreError};

/// Characters of what is wrong that are told.
const MAX_SAID: usize = 300;

/// Why a request was not answered.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The HTTP status.
    status: u16,
    /// The status in words.
    title: &'static str,
    /// What is wrong, and what to do.
    #[schema(value_type = String)]
    detail: Box<str>,
    #[serde(flatten)]
    #[schema(value_type = Taken)]
    taken: Option<Box<Taken>>,
    /// Which part of the request is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    parameter: Option<Box<str>>,
    #[serde(skip)]
    header: Option<Box<(HeaderName, String)>>,
}

/// What became of a request's records before the problem. Described as optional: most problems have none of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct Taken {
    /// Records that were taken all the same.
    accepted: Option<u64>,
    /// Records that were not, because there is something wrong with them.
    rejected: Option<u64>,
    /// Why, for the first hundred of them.
    errors: Option<Vec<LineError>>,
    /// Lines, or elements, of the request that were looked at: go on after them.
    line: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<Box<str>>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error"),
            detail: detail.into(),
            taken: None,
            parameter: None,
            header: None,
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, shortened(detail.into()))
    }

    /// No record of the request was accepted.
    pub(super) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, shortened(detail.into()))
    }

    /// Parameters that contradict each other, each of which is fine by itself.
    pub(super) fn conflict(detail: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(super) fn not_found(detail: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn invalid(parameter: &str, expected: &str) -> Self {
        let detail = format!("{parameter}: expected {expected}");
        Self { parameter: Some(parameter.into()), ..Self::bad_request(detail) }
    }

    /// `methods`: those that are, in lower case, with spaces between them.
    pub(super) fn method_not_allowed(methods: &str) -> Self {
        let allowed = methods.split_whitespace().map(str::to_ascii_uppercase).collect::<Vec<_>>().join(", ");
        let detail = format!("this address takes {allowed}");
        Self { header: Some(Box::new((ALLOW, allowed))), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "show the token for this: Authorization: Bearer TOKEN";
        Self {
            header: Some(Box::new((WWW_AUTHENTICATE, "Bearer".into()))),
            ..Self::new(StatusCode::UNAUTHORIZED, detail)
        }
    }

    /// Try again later.
    pub(super) fn unavailable(detail: impl Into<Box<str>>) -> Self {
        Self { header: Some(Box::new((RETRY_AFTER, "1".into()))), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// Too often; come again in a second, for that is what limits are counted by.
    pub(super) fn too_many(detail: impl Into<Box<str>>) -> Self {
        Self { header: Some(Box::new((RETRY_AFTER, "1".into()))), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    /// Whether the same may be taken later.
    pub(super) fn is_temporary(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE.as_u16()
    }

    /// Says what became of the request up to here.
    pub(super) fn after(self, taken: Accepted) -> Self {
        let Accepted { accepted, rejected, errors, line, .. } = taken;
        let taken =
            Taken { accepted: Some(accepted), rejected: Some(rejected), errors: Some(errors), line: Some(line) };
        Self { taken: Some(Box::new(taken)), ..self }
    }
}

/// Text that may repeat what was sent, which may be anything: its beginning.
pub(super) fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_SAID) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some((name, value)) = self.header.as_deref() {
            response.insert_header((name.clone(), value.as_str()));
        }
        response.insert_header((CONTENT_TYPE, "application/problem+json"));
        response.body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl Responder for Problem {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

/// What a health check may be answered.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum WrongMethod {
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
}

/// What a route may answer that anybody may ask.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum Refused {
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names nobody here.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
}

/// What a route may answer that is for readers only.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum NotShown {
    /// The token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names nobody here.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// Too many requests, or wrong tokens, from this address; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
}

/// What a question may be answered instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum NotAnswered {
    /// A parameter is wrong; `detail` says which.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names nobody here.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// Too many requests, or wrong tokens, from this address; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The database cannot be read; the service's log says more.
    #[response(status = 500, content_type = "application/problem+json")]
    Unreadable(#[to_schema] Problem),
    /// Ask again later, or for less.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// What a question about a time may be answered, too.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum Contradicted {
    /// Two parameters contradict each other.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(#[to_schema] Problem),
}

/// What may be said of a body that is not taken, or not whole.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum NotTaken {
    /// The body is no JSON.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The body came too slowly.
    #[response(status = 408, content_type = "application/problem+json")]
    Timeout(#[to_schema] Problem),
    /// The body is too large; `accepted` says how many records were taken, from the beginning.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] Problem),
    /// Neither JSON nor JSON lines.
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(#[to_schema] Problem),
    /// The Host header names nobody here.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// Too many requests, or wrong tokens, from this address; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// No room, or the service shuts down; `accepted` says how many records were taken, from the
    /// beginning. See `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// What a deletion may be answered instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum NotDeleted {
    /// It is not said what is to be deleted.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// No token for `delete` is set.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// See `Allow`.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names nobody here.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// Too many requests, or wrong tokens, from this address; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The database cannot be written now. What was deleted stays deleted: send the same again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// What may be said of records.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum NoneAccepted {
    /// No record was accepted; `errors` says why.
    #[response(status = 422, content_type = "application/problem+json")]
    Unprocessable(#[to_schema] Problem),
}

/// Says what the reader should do, without paths or what the system said: that is logged.
impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Invalid { parameter, expected, .. } => Self::invalid(parameter, expected),
            ReadError::TimedOut | ReadError::Busy => Self::unavailable(error.to_string()),
            ReadError::Disabled => Self::unavailable("the logger is disabled"),
            ReadError::Store(StoreError::Retry(_)) => {
                tracing::warn!(%error, "a question could not be answered");
                Self::unavailable("the database cannot be read now; see the service's log")
            }
            error => {
                tracing::error!(%error, "a question could not be answered");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database cannot be read; see the service's log")
            }
        }
    }
}
