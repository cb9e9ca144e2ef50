//! Who may do what, looked at before anything else of a request.

use std::fmt;
use std::str::FromStr;

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Data;
use subtle::ConstantTimeEq as _;

use super::Api;
use super::problem::Problem;

/// A secret that is never shown, and compared in constant time.
#[derive(Clone)]
pub struct Token(String);

impl FromStr for Token {
    type Err = &'static str;

    /// At least 16 visible ASCII characters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() < 16 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a token has at least 16 visible ASCII characters");
        }
        Ok(Self(text.into()))
    }
}

impl Token {
    /// The secret itself, for whoever has to show it.
    #[cfg(feature = "cli")]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    fn is_shown_by(&self, request: &ServiceRequest) -> bool {
        let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, shown)) = shown.and_then(|value| value.split_once(' ')) else { return false };
        scheme.eq_ignore_ascii_case("bearer") && shown.trim().as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Tells nothing of what was logged.
    Open,
    Read,
    Ingest,
    /// `GET` reads, anything else brings something.
    ByMethod,
}

const NO_SECRETS: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
];

pub(super) async fn guard(
    api: Data<Api>,
    access: Access,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let mut response = match refusal(&api, access, &request) {
        Some(problem) => {
            request.into_response(actix_web::ResponseError::error_response(&problem)).map_into_boxed_body()
        }
        None => {
            let http = request.request().clone();
            match next.call(request).await {
                Ok(response) => response.map_into_boxed_body(),
                // Here, so that errors have the headers too.
                Err(error) => ServiceResponse::new(http, error.error_response()),
            }
        }
    };
    for (name, value) in NO_SECRETS {
        let name = HeaderName::from_static(name);
        if !response.headers().contains_key(&name) {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    Ok(response)
}

fn refusal(api: &Api, access: Access, request: &ServiceRequest) -> Option<Problem> {
    let rules = api.options.access();
    if let Some(hosts) = &rules.hosts
        && !hosts.iter().any(|host| *host == host_of(request))
    {
        return Some(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this service does not answer to that host; allow it with --allow-host",
        ));
    }
    let token = match access {
        Access::Open => None,
        Access::Read => rules.read_token.as_ref(),
        Access::ByMethod if request.method() == Method::GET => rules.read_token.as_ref(),
        Access::Ingest | Access::ByMethod => rules.ingest_token.as_ref(),
    };
    token.is_some_and(|token| !token.is_shown_by(request)).then(Problem::unauthorized)
}

/// The host that the request is for, in lower case and without its port; empty if there is none.
fn host_of(request: &ServiceRequest) -> String {
    // Not what a proxy claims: anybody can claim that.
    let header = request.headers().get(actix_web::http::header::HOST).and_then(|value| value.to_str().ok());
    let authority =
        header.or_else(|| request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        // Not a part of an IPv6 address.
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}
