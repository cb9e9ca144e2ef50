//! Errors as `application/problem+json` (RFC 9457). A problem names the cause and the remedy. It
//! never contains paths or error texts of the system.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, Responder, ResponseError};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::error::{ReadError, StoreError};

/// Maximum length of a detail. Details may repeat input, which may be long.
const MAX_DETAIL_CHARS: usize = 300;

/// URL of the documentation of a code, without the code at its end.
const CODE_DOCS_URL: &str =
    "https://docs.rs/failure-logger/latest/failure_logger/http/errors/index.html#";

macro_rules! codes {
    ($($(#[$about:meta])* $name:ident = $code:literal, $status:ident;)+) => {
        /// Code that identifies the kind of problem to programs. Clients must expect new codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub(crate) enum Code {
            $($(#[$about])* #[serde(rename = $code)] $name,)+
        }

        impl Code {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),+];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    InvalidParameter = "invalid_parameter", BAD_REQUEST;
    UnknownParameter = "unknown_parameter", BAD_REQUEST;
    ConflictingParameters = "conflicting_parameters", BAD_REQUEST;
    InvalidCursor = "invalid_cursor", BAD_REQUEST;
    InvalidHeader = "invalid_header", BAD_REQUEST;
    InvalidBody = "invalid_body", BAD_REQUEST;
    Unauthorized = "unauthorized", UNAUTHORIZED;
    MissingScope = "missing_scope", FORBIDDEN;
    CrossSite = "cross_site", FORBIDDEN;
    NotFound = "not_found", NOT_FOUND;
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    BodyTooSlow = "body_too_slow", REQUEST_TIMEOUT;
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE;
    UnsupportedEncoding = "unsupported_encoding", UNSUPPORTED_MEDIA_TYPE;
    UnknownHost = "unknown_host", MISDIRECTED_REQUEST;
    NoRecordAccepted = "no_record_accepted", UNPROCESSABLE_ENTITY;
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    WrongTokens = "wrong_tokens", TOO_MANY_REQUESTS;
    Unreadable = "unreadable", INTERNAL_SERVER_ERROR;
    NotReady = "not_ready", SERVICE_UNAVAILABLE;
    BufferFull = "buffer_full", SERVICE_UNAVAILABLE;
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE;
    Busy = "busy", SERVICE_UNAVAILABLE;
    TimedOut = "timed_out", SERVICE_UNAVAILABLE;
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE;
}

/// Error response in the format of RFC 9457.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// URL of the documentation of the code.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    docs_url: String,
    /// Text of the HTTP status.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// Code that identifies the kind of problem to programs. The documentation lists all codes.
    /// This is no enum, because later versions add codes.
    #[schema(value_type = String)]
    code: Code,
    /// Cause of the problem and its remedy.
    #[schema(value_type = String)]
    detail: Box<str>,
    #[serde(flatten)]
    #[schema(value_type = Taken)]
    progress: Option<Box<Taken>>,
    /// Single faults: parameters of the request, or the first hundred rejected records of its body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Fault>,
    #[serde(skip)]
    header: Option<Box<(HeaderName, String)>>,
}

/// Progress of a request before the problem. Only problems of requests with records have it.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct Taken {
    /// Number of processed lines or list elements. Resend the request from the next one on.
    processed: Option<u64>,
    /// Number of accepted records.
    accepted: Option<u64>,
    /// Number of accepted records whose `event_id` was received before.
    duplicates: Option<u64>,
    /// Number of rejected records.
    rejected: Option<u64>,
}

/// Single fault of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Fault {
    /// Parameter at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(crate) parameter: Option<String>,
    /// Record at fault: the number of its line or list element, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(crate) line: Option<u64>,
    /// Field at fault, as a JSON pointer into the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(crate) pointer: Option<String>,
    /// Code that identifies the kind of fault to programs.
    pub(crate) code: &'static str,
    /// Description of the fault and of the accepted values.
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = code.status();
        Self {
            docs_url: format!("{CODE_DOCS_URL}{}", code.as_str()),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: shortened(detail.into()).into(),
            progress: None,
            errors: Vec::new(),
            // `Retry-After: 1`, because rate limits have room again after a second at most.
            header: matches!(
                status,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
            )
            .then(|| Box::new((RETRY_AFTER, "1".into()))),
        }
    }

    /// Returns a problem with one parameter. An empty `name` stands for the whole query string.
    pub(crate) fn parameter(code: Code, name: &str, detail: impl Into<String>) -> Self {
        let detail = shortened(detail.into());
        let problem = Self::new(
            code,
            if name.is_empty() {
                detail.clone()
            } else {
                format!("{name}: {detail}")
            },
        );
        let fault = Fault {
            parameter: Some(name.into()),
            line: None,
            pointer: None,
            code: code.as_str(),
            detail,
        };
        Self {
            errors: if name.is_empty() {
                Vec::new()
            } else {
                vec![fault]
            },
            ..problem
        }
    }

    /// Returns a problem with the value of a parameter.
    pub(crate) fn invalid(parameter: &str, expected: &str) -> Self {
        Self::parameter(
            Code::InvalidParameter,
            parameter,
            format!("expected {expected}"),
        )
    }

    /// Returns a problem with parameters that are valid each, but contradict each other.
    pub(crate) fn conflict(parameters: &[&str], detail: impl Into<String>) -> Self {
        let (code, detail) = (Code::ConflictingParameters, shortened(detail.into()));
        let fault = |name: &&str| Fault {
            parameter: Some((*name).into()),
            line: None,
            pointer: None,
            code: code.as_str(),
            detail: detail.clone(),
        };
        Self {
            errors: parameters.iter().map(fault).collect(),
            ..Self::new(code, detail)
        }
    }

    /// Returns a problem with a field of a JSON body. `path` is a path of `serde_path_to_error`.
    pub(crate) fn field(path: &str, detail: impl Into<String>) -> Self {
        let (code, detail) = (Code::InvalidBody, shortened(detail.into()));
        let pointer =
            Some(format!("/{}", path.replace('.', "/"))).filter(|_| !matches!(path, "." | "?"));
        let problem = Self::new(
            code,
            pointer
                .as_ref()
                .map_or(detail.clone(), |_| format!("{path}: {detail}")),
        );
        let fault = Fault {
            parameter: None,
            line: None,
            pointer,
            code: code.as_str(),
            detail,
        };
        Self {
            errors: vec![fault],
            ..problem
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Adds the header of the problem, such as `Retry-After`.
    pub(crate) fn write_header(&self, response: &mut HttpResponseBuilder) {
        if let Some((name, value)) = self.header.as_deref() {
            response.insert_header((name.clone(), value.as_str()));
        }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// Returns a problem with the method. `methods` lists the allowed ones, separated by spaces.
    pub(crate) fn method_not_allowed(methods: &str) -> Self {
        let allowed = methods
            .split_whitespace()
            .map(str::to_ascii_uppercase)
            .collect::<Vec<_>>()
            .join(", ");
        let detail = format!("this path accepts only {allowed}");
        Self {
            header: Some(Box::new((ALLOW, allowed))),
            ..Self::new(Code::MethodNotAllowed, detail)
        }
    }

    /// Returns the problem of a request without a token.
    pub(crate) fn unauthorized() -> Self {
        Self::challenge(
            Code::Unauthorized,
            "Bearer",
            "this request needs a token; send it as Authorization: Bearer TOKEN",
        )
    }

    /// Returns the problem of a request whose token is unknown or was withdrawn.
    pub(crate) fn wrong_token() -> Self {
        let detail = "this token is unknown; send a valid one as Authorization: Bearer TOKEN";
        Self::challenge(Code::Unauthorized, "Bearer error=\"invalid_token\"", detail)
    }

    /// Returns the problem of a request whose token lacks `scope`.
    pub(crate) fn missing_scope(scope: &str, detail: impl Into<String>) -> Self {
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
        Self::challenge(Code::MissingScope, challenge, detail)
    }

    /// Returns a problem with a `WWW-Authenticate` header (RFC 6750).
    fn challenge(code: Code, challenge: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            header: Some(Box::new((WWW_AUTHENTICATE, challenge.into()))),
            ..Self::new(code, detail)
        }
    }

    /// Returns `true` if the same request may succeed later.
    pub(crate) fn is_temporary(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE.as_u16()
    }

    /// Adds the progress of the request before this problem.
    pub(crate) fn with_progress(self, accepted: Accepted) -> Self {
        let Accepted {
            accepted,
            rejected,
            duplicates,
            processed,
            errors,
            ..
        } = accepted;
        let progress = Taken {
            processed: Some(processed),
            accepted: Some(accepted),
            duplicates: Some(duplicates),
            rejected: Some(rejected),
        };
        Self {
            progress: Some(Box::new(progress)),
            errors,
            ..self
        }
    }
}

/// Truncates a text to [`MAX_DETAIL_CHARS`].
pub(crate) fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_DETAIL_CHARS) {
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
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status());
        self.write_header(&mut response);
        // A busy service also frees the connection.
        if self.code == Code::Busy {
            response.force_close();
        }
        response.insert_header((CONTENT_TYPE, "application/problem+json"));
        // For routes whose protocol has another form of errors.
        response.extensions_mut().insert(self.clone());
        response.body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl Responder for Problem {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

/// Problems of a health check.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum HealthProblems {
    /// A parameter is invalid.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// A check failed; `detail` describes the first one.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Problems of a route that is open to every client.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum OpenProblems {
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names an unknown host.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
}

/// Problems of a route that needs a scope and does not read the database.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum ScopedProblems {
    /// The token is missing or unknown.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The token lacks the scope, or a web page of another origin sent the request.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names an unknown host.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// The client sent too many requests or too many wrong tokens; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
}

/// Problems of a route that reads the database.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum ReadProblems {
    /// A parameter is invalid; `detail` names it.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or unknown.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The token lacks the scope, or a web page of another origin sent the request.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names an unknown host.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// The client sent too many requests or too many wrong tokens; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The database cannot be read; the log of the service has the cause.
    #[response(status = 500, content_type = "application/problem+json")]
    Unreadable(#[to_schema] Problem),
    /// The read timed out, or the service is busy or shutting down. Retry later, or read less.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Problems of a route that reads a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum BodyProblems {
    /// The body is not valid JSON.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or unknown.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The token lacks the scope, or a web page of another origin sent the request.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The body arrived too slowly.
    #[response(status = 408, content_type = "application/problem+json")]
    Timeout(#[to_schema] Problem),
    /// The body is too large; `accepted` counts the records that were accepted before the limit.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] Problem),
    /// The body is neither JSON nor JSON lines.
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(#[to_schema] Problem),
    /// The Host header names an unknown host.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// The client sent too many requests or too many wrong tokens; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The buffer is full, or the service is busy or shutting down. `accepted` counts the records
    /// that were accepted before. See `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Problems of a deletion.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum EraseProblems {
    /// No parameter selects the failures, or both do.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(#[to_schema] Problem),
    /// The token is missing or unknown.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The token lacks the scope `erase`, or no token has it.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// The path does not accept this method; `Allow` lists the accepted ones.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(#[to_schema] Problem),
    /// The Host header names an unknown host.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(#[to_schema] Problem),
    /// The client sent too many requests or too many wrong tokens; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The database cannot be written at present. The deletion may be incomplete: retry it.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Problems of a request whose records were all rejected.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum RecordProblems {
    /// No record was accepted; `errors` has the reasons.
    #[response(status = 422, content_type = "application/problem+json")]
    Unprocessable(#[to_schema] Problem),
}

/// Replaces the error text of the system, which may contain paths, by a remedy. The text is logged.
impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Invalid {
                parameter: "cursor",
                expected,
                ..
            } => Self::parameter(
                Code::InvalidCursor,
                "cursor",
                format!("expected {expected}"),
            ),
            ReadError::Invalid {
                parameter,
                expected,
                ..
            } => Self::invalid(parameter, expected),
            ReadError::TimedOut => Self::new(Code::TimedOut, error.to_string()),
            ReadError::Busy => Self::new(Code::Busy, error.to_string()),
            ReadError::Disabled => Self::new(Code::NotReady, "the logger is disabled"),
            ReadError::Store(StoreError::Retry(_)) => {
                tracing::warn!(%error, "cannot read the database");
                Self::new(
                    Code::DatabaseUnavailable,
                    "the database cannot be read at present; retry later, or see the service's log",
                )
            }
            error => {
                tracing::error!(%error, "cannot read the database");
                Self::new(
                    Code::Unreadable,
                    "the database cannot be read; see the service's log",
                )
            }
        }
    }
}

/// Result of a request with records.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Accepted {
    /// Number of processed lines or list elements.
    pub(crate) processed: u64,
    /// Number of accepted records. They are committed within a fraction of a second.
    pub(crate) accepted: u64,
    /// Number of accepted records whose `event_id` was received before with the same content. Such
    /// a record is stored and counted once. This number includes only the last 65,536 ids: the
    /// store recognises older ones, and `duplicates` of `/v1/stats` counts them.
    pub(crate) duplicates: u64,
    /// Number of rejected records.
    pub(crate) rejected: u64,
    /// Faults of the first hundred rejected records.
    pub(crate) errors: Vec<Fault>,
    /// Number of accepted records whose `event_id` was the nil UUID, which is ignored.
    pub(crate) nil_event_ids: u64,
    /// Names of the first sixteen unknown fields, which were ignored.
    pub(crate) ignored_fields: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_and_its_own() {
        let documentation = include_str!("errors.md");
        for (nth, code) in Code::ALL.iter().enumerate() {
            let heading = format!("# {}\n", code.as_str());
            assert!(documentation.contains(&heading), "{heading}");
            assert!(documentation.contains(&format!("{}", code.status().as_u16())));
            assert!(
                Code::ALL
                    .iter()
                    .skip(nth + 1)
                    .all(|other| other.as_str() != code.as_str())
            );
        }
        assert_eq!(documentation.matches("\n# ").count(), Code::ALL.len());
    }
}
