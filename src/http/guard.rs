//! Who may do what, looked at before anything else of a request.

use std::fmt;
use std::str::FromStr;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, ResponseError as _};
use subtle::ConstantTimeEq as _;

use super::Api;
use super::host::host_name;
use super::limits::Client;
use super::problem::{Problem, shortened};

/// Wrong tokens that an address may show in a second.
const WRONG_TOKENS_PER_SECOND: u32 = 10;

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

    fn is(&self, shown: &HeaderValue) -> bool {
        let Some((scheme, shown)) = shown.to_str().ok().and_then(|value| value.split_once(' ')) else { return false };
        scheme.eq_ignore_ascii_case("bearer") && shown.trim().as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Where web pages may come from that are to read what the service answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = &'static str;

    /// A scheme and a host, perhaps with a port, as browsers send it: `https://dashboard.example`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected an origin, as https://dashboard.example or http://localhost:3000";
        let origin = text.trim().to_ascii_lowercase();
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).ok_or(expected)?;
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(fine) {
            return Err(expected);
        }
        Ok(Self(origin))
    }
}

impl Origin {
    pub(super) fn is(&self, shown: &HeaderValue) -> bool {
        shown.as_bytes().eq_ignore_ascii_case(self.0.as_bytes())
    }
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// For health checks, which know an address and no name. Tells nothing of what was logged.
    Health,
    /// Tells nothing of what was logged.
    Open,
    Read,
    Ingest,
    /// `GET` reads, `DELETE` deletes, anything else brings something.
    ByMethod,
}

const NO_SECRETS: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
];

/// The outermost: looks at the host, and gives every answer the headers and every error the form that
/// all of them have.
pub(super) async fn receive(
    api: Data<Api>,
    access: Access,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let mut response = if access == Access::Health || is_addressed(&api, &request) {
        let http = request.request().clone();
        match next.call(request).await {
            Ok(response) => response.map_into_boxed_body(),
            Err(error) => ServiceResponse::new(http, error.error_response()),
        }
    } else {
        let cure = if api.options.alone { "--allow-host" } else { "HttpOptions::allow_host" };
        let refused = format!("this service does not answer to the host `{}`; allow it with {cure}", host_of(&request));
        refuse(request, &Problem::new(StatusCode::MISDIRECTED_REQUEST, shortened(refused)))
    };
    if let Some(error) = response.response().error().and_then(|error| error.as_error::<actix_cors::CorsError>()) {
        let problem = Problem::bad_request(error.to_string());
        response = response.into_response(problem.error_response());
    }
    for (name, value) in NO_SECRETS {
        let name = HeaderName::from_static(name);
        if !response.headers().contains_key(&name) {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    Ok(response)
}

/// Lets those in who may do what they want to do, and as often as they may. What a browser asks
/// before (CORS) was answered already: it has no token then.
pub(super) async fn admit(
    api: Data<Api>,
    access: Access,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if let Err(problem) = may(&api, access, &request) {
        return Ok(refuse(request, &problem));
    }
    let http = request.request().clone();
    // Here, so that whatever is around this sees an answer.
    Ok(match next.call(request).await {
        Ok(response) => response.map_into_boxed_body(),
        Err(error) => ServiceResponse::new(http, error.error_response()),
    })
}

fn refuse(request: ServiceRequest, problem: &Problem) -> ServiceResponse {
    request.into_response(problem.error_response())
}

fn is_addressed(api: &Api, request: &ServiceRequest) -> bool {
    let rules = api.options.access();
    rules.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host.allows(&host_of(request))))
}

fn may(api: &Api, access: Access, request: &ServiceRequest) -> Result<(), Problem> {
    let deletes = access == Access::ByMethod && request.method() == actix_web::http::Method::DELETE;
    let reads = match access {
        Access::Health | Access::Open => return Ok(()),
        Access::Read => true,
        Access::Ingest => false,
        Access::ByMethod => request.method().is_safe() || deletes,
    };
    let rules = api.options.access();
    let (meter, per_second, setting, token) = if reads {
        (&api.questions, rules.max_questions_per_second, "max_questions_per_second", &rules.read_token)
    } else {
        (&api.posts, rules.max_posts_per_second, "max_posts_per_second", &rules.ingest_token)
    };
    let token = if deletes { &rules.delete_token } else { token };
    // Not what a proxy claims: anybody can claim that.
    let client = Client::at(request.peer_addr());
    if !meter.allows(client, per_second) {
        return Err(Problem::too_many(format!("{setting}: {per_second} from one address; come again in a second")));
    }
    if deletes && token.is_none() {
        let cure =
            if api.options.alone { "a line `delete = TOKEN` in the token file" } else { "HttpOptions::delete_token" };
        let detail = format!("nothing can be deleted over HTTP without a token for it: {cure}");
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let Some(token) = token else { return Ok(()) };
    let Some(shown) = request.headers().get(AUTHORIZATION) else { return Err(Problem::unauthorized()) };
    // Before the token is looked at: whoever guesses must not learn that it was right.
    if !api.wrong_tokens.is_used_up(client, WRONG_TOKENS_PER_SECOND) {
        if token.is(shown) {
            return Ok(());
        }
        if api.wrong_tokens.allows(client, WRONG_TOKENS_PER_SECOND) {
            return Err(Problem::unauthorized());
        }
    }
    let detail = format!("{WRONG_TOKENS_PER_SECOND} wrong tokens a second from one address; come again in a second");
    Err(Problem::too_many(detail))
}

/// The host that the request is for, in lower case and without its port; empty if there is none.
fn host_of(request: &ServiceRequest) -> String {
    // Not what a proxy claims: anybody can claim that.
    let header = request.headers().get(actix_web::http::header::HOST).and_then(|value| value.to_str().ok());
    let authority =
        header.or_else(|| request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default();
    host_name(authority)
}
