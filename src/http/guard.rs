//! Middleware around every route: checks host, token and rate, completes the response, and writes
//! the access log.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use actix_web::http::{Method, Version};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage as _, HttpRequest, ResponseError as _};

use crate::http::Api;
use crate::http::access::{Caller, Decision, Scope};
use crate::http::access_log::{self, RequestId};
use crate::http::client::address_of;
use crate::http::host::host_name;
use crate::http::ingest::traces;
use crate::http::limits::Client;
use crate::http::problem::{Code, Problem};
use crate::http::route_metrics::RouteMetrics;

/// Wrong tokens per second and client that get a response at once. A client with a typing mistake
/// stays below this, an attacker does not.
const WRONG_TOKENS_PER_SECOND: u32 = 10;
/// Delay of the response to each further wrong token: it slows down an attacker on one connection.
const WRONG_TOKEN_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of delayed responses. Each one holds a connection; beyond this, the response is
/// sent at once.
const MAX_DELAYED: usize = 512;

/// Kind of access that a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Health checks: open to every client, under any Host header, because probes address a
    /// container by its IP address. The response reveals nothing of the log.
    Health,
    /// Open to every client. The response reveals nothing of the log.
    Open,
    Read,
    Ingest,
    Triage,
    Metrics,
    /// `GET` reads, `DELETE` erases, `POST` ingests.
    ByMethod,
}

impl Access {
    /// Returns the scope that a request needs, or `None` if it needs none.
    fn scope(self, method: &Method) -> Option<Scope> {
        match self {
            Self::Health | Self::Open => None,
            Self::Read => Some(Scope::Read),
            Self::Ingest => Some(Scope::Ingest),
            Self::Triage => Some(Scope::Triage),
            Self::Metrics => Some(Scope::Metrics),
            Self::ByMethod if method.is_safe() => Some(Scope::Read),
            Self::ByMethod if method == Method::DELETE => Some(Scope::Erase),
            Self::ByMethod => Some(Scope::Ingest),
        }
    }
}

/// The address of the client of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) Option<IpAddr>);

/// Routes of OpenTelemetry's protocol.
const OTLP_ROUTES: [&str; 3] = ["/v1/traces", "/v1/metrics", "/v1/logs"];

/// Headers that every response has, unless its route sets them.
const HEADERS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'",
    ),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    // Identifies this service to clients, also behind proxies that replace the `Server` header.
    (crate::http::VERSION_HEADER, env!("CARGO_PKG_VERSION")),
];

/// Outermost middleware: checks the host, adds the common headers, turns every error into a
/// [`Problem`], counts the request, and writes the access log.
pub(crate) async fn receive(
    api: Data<Api>,
    (access, metrics): (Access, Data<RouteMetrics>),
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let began = Instant::now();
    let id = RequestId::from_request(&request);
    let client = address_of(&request, &api.options.access().trusted_proxies);
    request.extensions_mut().insert(ClientAddress(client));
    let mut response = if access == Access::Health || has_known_host(&api, &request) {
        let http = request.request().clone();
        match next.call(request).await {
            Ok(response) => response.map_into_boxed_body(),
            Err(error) => ServiceResponse::new(http, error.error_response()),
        }
    } else {
        let setting = if api.options.standalone {
            "--allow-host"
        } else {
            "HttpOptions::allow_host"
        };
        let detail = format!(
            "the host `{}` is not one of this service; allow it with {setting}",
            requested_host(&request)
        );
        reject(request, &Problem::new(Code::UnknownHost, detail))
    };
    if let Some(error) = response
        .response()
        .error()
        .and_then(|error| error.as_error::<actix_cors::CorsError>())
    {
        let problem = Problem::new(Code::CrossSite, error.to_string());
        response = response.into_response(problem.error_response());
    }
    if OTLP_ROUTES.contains(&metrics.route) {
        let problem = response.response().extensions().get::<Problem>().cloned();
        if let Some(problem) = problem {
            let status = traces::to_status_response(response.request(), &problem);
            response = response.into_response(status);
        }
    }
    // A client of HTTP/1.0 does not understand chunks. The end of the connection ends the body.
    if response.request().version() < Version::HTTP_11 {
        let head = response.response_mut().head_mut();
        head.no_chunking(true);
        head.set_connection_type(actix_web::http::ConnectionType::Close);
    }
    for (name, value) in HEADERS {
        let name = HeaderName::from_static(name);
        if !response.headers().contains_key(&name) {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
    }
    id.write(response.headers_mut());
    let took = began.elapsed();
    metrics.observe(response.request().method(), response.status(), took);
    access_log::write(&api, &response, &id, client, took);
    Ok(response)
}

/// Inner middleware: passes a request on if its origin, rate and token allow it. The CORS
/// middleware around this one has already responded to preflight requests, which have no token.
pub(crate) async fn admit(
    api: Data<Api>,
    access: Access,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let mut rate = None;
    if let Some(scope) = access.scope(request.method()) {
        // The rate is checked before the token, so that it also limits requests with wrong tokens.
        let checked = match cross_site(&api, &request) {
            Some(problem) => Err(problem),
            None => check_rate(&api, scope, &request, &mut rate),
        };
        let checked = match checked {
            Ok(()) => authorize(&api, scope, &request).await,
            Err(problem) => Err(problem),
        };
        if let Err(problem) = checked {
            let mut response = reject(request, &problem);
            Rate::write(rate, response.headers_mut());
            return Ok(response);
        }
    }
    let http = request.request().clone();
    // Turns an error into a response here, because the headers below need a response.
    let mut response = match next.call(request).await {
        Ok(response) => response.map_into_boxed_body(),
        Err(error) => ServiceResponse::new(http, error.error_response()),
    };
    Rate::write(rate, response.headers_mut());
    Ok(response)
}

fn reject(request: ServiceRequest, problem: &Problem) -> ServiceResponse {
    request.into_response(problem.error_response())
}

fn has_known_host(api: &Api, request: &ServiceRequest) -> bool {
    let rules = api.options.access();
    rules.hosts.as_ref().is_none_or(|hosts| {
        let requested = requested_host(request);
        hosts.iter().any(|host| host.allows(&requested))
    })
}

/// Returns a problem if a web page of an origin that is not allowed sent the request. Browsers name
/// the relation of the two origins in each request (Fetch Metadata).
///
/// CORS alone is not enough: it hides the response from the page, but any page could still start
/// reads on a service at the loopback address.
fn cross_site(api: &Api, request: &ServiceRequest) -> Option<Problem> {
    let site = request.headers().get("sec-fetch-site")?;
    let is_ours = matches!(site.as_bytes(), b"same-origin" | b"none");
    let is_allowed = || {
        request.headers().get(ORIGIN).is_some_and(|header| {
            api.options
                .origins
                .iter()
                .any(|origin| origin.matches(header))
        })
    };
    if is_ours || is_allowed() {
        return None;
    }
    Some(Problem::new(
        Code::CrossSite,
        "a web page of another origin sent this request; add its origin to allow_origins",
    ))
}

/// Rate limit of a client, and the number of requests that it may still send at once.
#[derive(Clone, Copy)]
struct Rate {
    policy: &'static str,
    per_second: u32,
    left: u32,
}

impl Rate {
    /// Writes the headers of draft-ietf-httpapi-ratelimit-headers.
    fn write(rate: Option<Self>, headers: &mut HeaderMap) {
        let Some(Self {
            policy,
            per_second,
            left,
        }) = rate
        else {
            return;
        };
        let mut write = |name, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        write(
            "ratelimit-policy",
            format!("\"{policy}\";q={per_second};w=1"),
        );
        write("ratelimit", format!("\"{policy}\";r={left};t=1"));
    }
}

/// Counts the request and stores its limit in `rate`. Returns a problem if it exceeds the limit.
fn check_rate(
    api: &Api,
    scope: Scope,
    request: &ServiceRequest,
    rate: &mut Option<Rate>,
) -> Result<(), Problem> {
    let (meter, policy, per_second) = {
        let rules = api.options.access();
        match scope {
            Scope::Ingest => (
                &api.posts_meter,
                "max_posts_per_second",
                rules.max_posts_per_second,
            ),
            Scope::Read | Scope::Triage | Scope::Metrics | Scope::Erase => (
                &api.reads_meter,
                "max_reads_per_second",
                rules.max_reads_per_second,
            ),
        }
    };
    if per_second == 0 {
        return Ok(());
    }
    let left = meter.take(client(request), per_second);
    *rate = Some(Rate {
        policy,
        per_second,
        left: left.unwrap_or(0),
    });
    match left {
        Some(_) => Ok(()),
        None => {
            let detail = format!(
                "rate limit exceeded ({policy} = {per_second} for each client); retry in 1 s"
            );
            Err(Problem::new(Code::RateLimited, detail))
        }
    }
}

/// Returns a problem if the token of the request does not grant the scope.
///
/// Responses to wrong tokens are delayed once a client sends too many. The delay never affects a
/// valid token, so that an attacker cannot lock out clients that share its address.
async fn authorize(api: &Api, scope: Scope, request: &ServiceRequest) -> Result<(), Problem> {
    let decision = api
        .options
        .access()
        .decide(scope, request.headers().get(AUTHORIZATION));
    let setting = if api.options.standalone {
        "token_file"
    } else {
        "HttpOptions::token"
    };
    match decision {
        Decision::Granted(token) => {
            request.extensions_mut().insert(Caller { token, scope });
            return Ok(());
        }
        Decision::LacksScope(name) => {
            api.auth_failures.count(AuthFailure::MissingScope);
            let detail = format!(
                "the token `{name}` lacks the scope `{}`; {setting} grants it",
                scope.as_str()
            );
            request.extensions_mut().insert(Caller {
                token: Some(name),
                scope,
            });
            return Err(Problem::missing_scope(scope.as_str(), detail));
        }
        Decision::NoSuchToken => {
            api.auth_failures.count(AuthFailure::MissingScope);
            let scope = scope.as_str();
            let detail = format!(
                "this request needs the scope `{scope}`, which no token has; {setting} grants it"
            );
            return Err(Problem::missing_scope(scope, detail));
        }
        Decision::Missing => {
            api.auth_failures.count(AuthFailure::MissingToken);
            return Err(Problem::unauthorized());
        }
        Decision::Wrong => api.auth_failures.count(AuthFailure::WrongToken),
    }
    if api
        .wrong_tokens_meter
        .take(client(request), WRONG_TOKENS_PER_SECOND)
        .is_some()
    {
        return Err(Problem::wrong_token());
    }
    if let Some(_slot) = DelaySlot::take(api) {
        actix_rt::time::sleep(WRONG_TOKEN_DELAY).await;
    }
    let detail =
        format!("more than {WRONG_TOKENS_PER_SECOND} wrong tokens in one second from this address");
    Err(Problem::new(Code::WrongTokens, detail))
}

/// Reason why a request was rejected because of its token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AuthFailure {
    MissingToken,
    WrongToken,
    MissingScope,
}

/// Counters of requests that were rejected because of their token, in the order of [`AuthFailure`].
#[derive(Debug, Default)]
pub(crate) struct AuthFailures([std::sync::atomic::AtomicU64; 3]);

impl AuthFailures {
    fn count(&self, failure: AuthFailure) {
        if let Some(counter) = self.0.get(failure as usize) {
            // Relaxed: a statistic that no other memory depends on.
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn by_reason(&self) -> [(&'static str, u64); 3] {
        let [missing, wrong, missing_scope] = &self.0;
        [
            ("missing", missing),
            ("wrong", wrong),
            ("missing_scope", missing_scope),
        ]
        .map(|(reason, counter)| (reason, counter.load(Ordering::Relaxed)))
    }
}

/// Slot of a delayed response, which bounds the connections that delays hold. Dropping it frees the
/// slot.
struct DelaySlot<'a>(&'a AtomicUsize);

impl<'a> DelaySlot<'a> {
    /// Returns `None` if all slots are taken.
    fn take(api: &'a Api) -> Option<Self> {
        // The counter may exceed the maximum for a moment: a slot that is not returned is dropped
        // here, which undoes the increment. No other memory depends on the counter, so the ordering
        // only pairs with the decrement.
        let taken = api.delayed_responses.fetch_add(1, Ordering::AcqRel);
        let slot = Self(&api.delayed_responses);
        (taken < MAX_DELAYED).then_some(slot)
    }
}

impl Drop for DelaySlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn client(request: &ServiceRequest) -> Client {
    Client::at(
        request
            .extensions()
            .get::<ClientAddress>()
            .and_then(|client| client.0),
    )
}

/// Authorization of a request. A stream checks it repeatedly, because an operator may withdraw the
/// token while the stream runs.
pub(crate) struct Grant {
    api: Data<Api>,
    scope: Scope,
    authorization: Option<HeaderValue>,
}

impl Grant {
    pub(crate) fn new(api: &Data<Api>, request: &HttpRequest) -> Self {
        let scope = request
            .extensions()
            .get::<Caller>()
            .map_or(Scope::Read, |caller| caller.scope);
        Self {
            api: api.clone(),
            scope,
            authorization: request.headers().get(AUTHORIZATION).cloned(),
        }
    }

    /// Returns `false` if the token was withdrawn in the meantime.
    pub(crate) fn is_valid(&self) -> bool {
        matches!(
            self.api
                .options
                .access()
                .decide(self.scope, self.authorization.as_ref()),
            Decision::Granted(_)
        )
    }
}

/// Returns the host that the request addresses, in the form of [`host_name`]. It is empty if the
/// request names none.
fn requested_host(request: &ServiceRequest) -> String {
    // `X-Forwarded-Host` is ignored, because every client can send it.
    let header = request
        .headers()
        .get(actix_web::http::header::HOST)
        .and_then(|value| value.to_str().ok());
    let authority = header
        .or_else(|| {
            request
                .uri()
                .authority()
                .map(|authority| authority.as_str())
        })
        .unwrap_or_default();
    host_name(authority)
}
