//! The HTTP service: routes of the logger that mount into any actix-web application.
//!
//! ```no_run
//! use actix_web::{App, HttpServer, web};
//! use failure_logger::http::{HttpOptions, self};
//! use failure_logger::{FailureLogger, LoggerConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let logger = FailureLogger::spawn(LoggerConfig::new("failures.db"))?;
//! let api = http::configure(logger.clone(), HttpOptions::default());
//! HttpServer::new(move || App::new().service(web::scope("/failures").configure(api.clone())))
//!     .bind(("127.0.0.1", 8080))?
//!     .run()
//!     .await?;
//! logger.shutdown().await?;
//! # Ok(())
//! # }
//! ```

mod access;
mod access_log;
mod cached;
mod client;
mod dashboard;
#[doc = include_str!("errors.md")]
pub mod errors {}
mod guard;
mod host;
mod ingest;
mod limits;
mod openapi;
pub(crate) mod ops;
mod params;
mod problem;
mod read;
mod route_metrics;
mod trace_rules;
#[cfg_attr(
    feature = "program",
    expect(missing_docs, reason = "public for the program alone")
)]
pub(crate) mod wire;

use std::collections::HashSet;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use actix_cors::Cors;
use actix_web::dev::Payload;
use actix_web::middleware::{Compress, Condition, from_fn};
use actix_web::web::{Data, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, web};

use access::AccessRules;
#[doc(hidden)]
pub use access::NamedToken;
pub use access::{Origin, Scope, Token, TrustedProxy};
pub use access_log::AccessLog;
pub use host::Host;
use ingest::{body, rejections, traces};
use limits::Meter;
use ops::{delete, health, metrics, stats};
use problem::{Code, Problem};
#[cfg(feature = "program")]
#[doc(hidden)]
pub use read::{PeriodBounds, parse_labels, parse_moment, parse_span};
use read::{queries, shared, streams, tail};
use route_metrics::RouteMetrics;
use tokio::sync::watch;
pub use trace_rules::TraceRule;

use crate::handle::LoggerHandle;

/// Maximum size of a JSON body in bytes.
pub const DEFAULT_MAX_JSON_BYTES: usize = 8 << 20;
/// Maximum size of a JSON lines body in bytes. The service never holds the whole body in memory.
pub const DEFAULT_MAX_STREAM_BYTES: usize = 512 << 20;
/// Maximum size of one line of JSON lines in bytes.
pub const DEFAULT_MAX_LINE_BYTES: usize = 64 << 10;
/// Maximum number of concurrent tail streams: each one polls the database twice a second.
const MAX_TAILS: usize = 32;
/// Maximum number of concurrent exports: each one may read the whole log.
const MAX_EXPORTS: usize = 16;
/// Maximum number of reads per second and client.
pub const DEFAULT_MAX_READS_PER_SECOND: u32 = 500;
/// Maximum number of posts per second and client. 0 means no limit, because a full buffer slows
/// senders down.
pub const DEFAULT_MAX_POSTS_PER_SECOND: u32 = 0;
/// Response header that names the version of the service. Every response has it.
#[doc(hidden)]
pub const VERSION_HEADER: &str = "failure-logger-version";
/// Maximum time between two chunks of a body.
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Seconds for which a browser may cache the response to a preflight request. The cache saves one
/// request before most requests of a page.
const PREFLIGHT_MAX_AGE_SECONDS: usize = 600;

/// Options of the routes: access, limits and optional parts. By default, every client that
/// addresses the service by a loopback name may do everything except erase.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Shared by all clones, so that the rules can change while the routes are served.
    access: Arc<RwLock<AccessRules>>,
    /// Shared by all clones, for the same reason.
    trace_rules: Arc<RwLock<Vec<TraceRule>>>,
    origins: Vec<Origin>,
    access_log: AccessLog,
    body_timeout: Duration,
    max_json_bytes: usize,
    max_stream_bytes: usize,
    max_line_bytes: usize,
    reject_unknown_fields: bool,
    dashboard: bool,
    /// `true` if no other routes exist beside these.
    standalone: bool,
    /// Shared by all clones.
    phase: Arc<watch::Sender<Phase>>,
    /// Shared by all clones.
    heartbeats: Arc<health::Heartbeats>,
}

/// Phase of the service. The order matters: a phase never goes back to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Readiness fails, but requests are still served.
    Draining,
    /// Tail streams and uploads end.
    Ending,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            access: Arc::default(),
            trace_rules: Arc::default(),
            origins: Vec::new(),
            access_log: AccessLog::default(),
            body_timeout: DEFAULT_BODY_TIMEOUT,
            max_json_bytes: DEFAULT_MAX_JSON_BYTES,
            max_stream_bytes: DEFAULT_MAX_STREAM_BYTES,
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
            reject_unknown_fields: false,
            dashboard: true,
            standalone: false,
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            heartbeats: Arc::default(),
        }
    }
}

impl HttpOptions {
    /// Adds a host name under which clients may address the service. Default: `localhost`,
    /// `127.0.0.1` and `[::1]`.
    ///
    /// The service rejects requests for any other host, except on `/livez`, `/healthz` and
    /// `/readyz`. This prevents DNS rebinding: a web page whose own name resolves to a loopback
    /// address must not read the log.
    ///
    /// ```
    /// # use failure_logger::http::HttpOptions;
    /// let options = HttpOptions::default().allow_host("logger.example".parse()?).allow_host("*.cluster.local".parse()?);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn allow_host(self, host: Host) -> Self {
        self.change(|access| access.hosts.get_or_insert_default().push(host))
    }

    /// Accepts any Host header. Use this if a proxy in front of the service checks it.
    pub fn allow_any_host(self) -> Self {
        self.change(|access| access.hosts = None)
    }

    /// Adds a token. Clients send it as `Authorization: Bearer …`. The access log records the name
    /// of the token. Default: no tokens.
    ///
    /// As soon as one token has a scope, every request of that scope needs a token with it. Several
    /// tokens may share a scope, so that an operator can hand out a new token before the old one is
    /// withdrawn.
    ///
    /// If no token has the scope [`Erase`](Scope::Erase), no client may erase. If no token has
    /// [`Triage`](Scope::Triage) or [`Metrics`](Scope::Metrics), that scope is open exactly if
    /// [`Read`](Scope::Read) is.
    ///
    /// ```
    /// # use failure_logger::http::{HttpOptions, Scope};
    /// let token = "0123456789abcdef".parse()?;
    /// let options = HttpOptions::default().token("grafana", token, [Scope::Read, Scope::Metrics]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn token(
        self,
        name: impl Into<String>,
        token: Token,
        scopes: impl IntoIterator<Item = Scope>,
    ) -> Self {
        let named = NamedToken {
            name: name.into(),
            token,
            scopes: scopes.into_iter().collect(),
        };
        self.change(|access| access.tokens.push(named))
    }

    /// Trusts the `Forwarded` or `X-Forwarded-For` header of a proxy. Rate limits and the access
    /// log then distinguish the clients behind it. Default: no proxy is trusted.
    pub fn trust_proxy(self, proxy: TrustedProxy) -> Self {
        self.change(|access| access.trusted_proxies.push(proxy))
    }

    /// Sets the maximum number of reads per second and client. 0 means no limit. A client is an
    /// IPv4 address or an IPv6 network of 64 bits. Requests beyond the limit fail with 429. Health
    /// checks and the API description do not count. Default: 500.
    pub fn max_reads_per_second(self, reads: u32) -> Self {
        self.change(|access| access.max_reads_per_second = reads)
    }

    /// Sets the maximum number of posts per second and client. 0 means no limit. Requests beyond
    /// the limit fail with 429. Default: 0, because a full buffer slows senders down.
    pub fn max_posts_per_second(self, posts: u32) -> Self {
        self.change(|access| access.max_posts_per_second = posts)
    }

    /// Selects the requests that the access log records, as events of the target
    /// `failure_logger::access`. Default: requests that failed or took at least a second. Requests
    /// that erase failures or set a status are always logged.
    pub fn access_log(mut self, access_log: AccessLog) -> Self {
        self.access_log = access_log;
        self
    }

    /// Allows web pages of an origin to read and report (CORS). Default: no origin is allowed, and
    /// no response has a CORS header.
    pub fn allow_origin(mut self, origin: Origin) -> Self {
        self.origins.push(origin);
        self
    }

    /// Adds a rule for the retrievals of traces. It follows those that were added before.
    ///
    /// # Errors
    ///
    /// The rule has no effect, or a value of its fields cannot be used. The text names it.
    pub fn trace_rule(self, rule: TraceRule) -> Result<Self, String> {
        rule.validate()?;
        self.trace_rules
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(rule);
        Ok(self)
    }

    /// Replaces hosts, tokens, proxies, rate limits and rules for traces by those of `other`. All
    /// clones of these options change, so this also works while the routes are served. Streams end
    /// if their token was withdrawn.
    pub fn replace_rules(&self, other: &Self) {
        // Copies before it locks: with two locks at once, `a.replace_rules(&a)` would deadlock.
        let access = other.access().clone();
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = access;
        let trace_rules = other.trace_rules().clone();
        *self
            .trace_rules
            .write()
            .unwrap_or_else(PoisonError::into_inner) = trace_rules;
    }

    fn trace_rules(&self) -> RwLockReadGuard<'_, Vec<TraceRule>> {
        self.trace_rules
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the scopes that need a token under these options and no token under `after`.
    #[cfg(feature = "program")]
    pub(crate) fn opened_by(&self, after: &Self) -> Vec<Scope> {
        let (before, after) = (self.access(), after.access());
        Scope::ALL
            .into_iter()
            .filter(|scope| !before.is_open(*scope) && after.is_open(*scope))
            .collect()
    }

    fn access(&self) -> RwLockReadGuard<'_, AccessRules> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(self, change: impl FnOnce(&mut AccessRules)) -> Self {
        change(&mut self.access.write().unwrap_or_else(PoisonError::into_inner));
        self
    }

    /// Sets the maximum size of a body in bytes. `json` limits JSON bodies, which are held in
    /// memory. `lines` limits JSON lines, which are processed as they arrive. Default: 8 MiB and
    /// 512 MiB.
    pub fn max_body_bytes(mut self, json: usize, lines: usize) -> Self {
        (self.max_json_bytes, self.max_stream_bytes) = (json, lines);
        self
    }

    /// Rejects records that have an unknown field. By default, the field is ignored and counted,
    /// and a warning names it.
    pub fn reject_unknown_fields(mut self, reject: bool) -> Self {
        self.reject_unknown_fields = reject;
        self
    }

    /// Mounts no dashboard. Applications need this if they serve a page of their own at its
    /// address.
    pub fn without_dashboard(mut self) -> Self {
        self.dashboard = false;
        self
    }

    /// Sets the maximum time between two chunks of a body. Default: 20 seconds.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Also responds to all other addresses, because no other routes exist beside these.
    #[cfg(feature = "program")]
    pub(crate) fn alone(mut self) -> Self {
        self.standalone = true;
        self
    }

    /// Makes `/readyz` respond with 503, so that load balancers send no further requests. All other
    /// requests are served as before. Takes effect for all clones of these options.
    pub fn begin_drain(&self) {
        self.enter(Phase::Draining);
    }

    /// Ends tail streams and uploads. Call this before the server is stopped, because the server
    /// would wait for them and then cut them off. An upload fails with 503, and `processed` in the
    /// response counts the records that were read. Takes effect for all clones of these options.
    pub fn end_streams(&self) {
        self.enter(Phase::Ending);
    }

    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let enters = *phase < next;
            if enters {
                *phase = next;
            }
            enters
        });
    }

    fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    fn is_ending(&self) -> bool {
        *self.phase.borrow() >= Phase::Ending
    }

    /// Waits until [`end_streams`](Self::end_streams) is called.
    async fn until_ending(&self) {
        // `wait_for` fails only if the sender is gone, and `self` holds the sender.
        let _ = self
            .phase
            .subscribe()
            .wait_for(|phase| *phase >= Phase::Ending)
            .await;
    }

    /// Sets the maximum size of one line of JSON lines in bytes. Default: 64 KiB.
    pub fn max_line_bytes(mut self, bytes: usize) -> Self {
        self.max_line_bytes = bytes;
        self
    }

    /// Returns the CORS middleware. It is inactive if no origin is allowed.
    fn cors(&self) -> Condition<Cors> {
        let origins = self.origins.clone();
        let cors = Cors::default()
            .allowed_origin_fn(move |header, _| origins.iter().any(|origin| origin.matches(header)))
            .allowed_methods(["GET", "HEAD", "POST", "PUT"])
            .allowed_headers([
                "authorization",
                "content-type",
                "content-encoding",
                "idempotency-key",
                "last-event-id",
            ])
            .expose_headers([
                "retry-after",
                "www-authenticate",
                "ratelimit",
                "ratelimit-policy",
                "x-request-id",
            ])
            .max_age(PREFLIGHT_MAX_AGE_SECONDS);
        Condition::new(!self.origins.is_empty(), cors)
    }
}

/// State that all routes share.
pub(crate) struct Api {
    logger: LoggerHandle,
    options: HttpOptions,
    tails: streams::StreamSlots,
    exports: streams::StreamSlots,
    reads_meter: Meter,
    posts_meter: Meter,
    wrong_tokens_meter: Meter,
    /// Responses to wrong tokens that are delayed at present.
    delayed_responses: AtomicUsize,
    auth_failures: guard::AuthFailures,
    log_budget: access_log::LogBudget,
    routes: Vec<Data<RouteMetrics>>,
    /// Records that were received over HTTP.
    received: AtomicU64,
    reads: shared::SharedReads,
    rankings: queries::Rankings,
    groups: queries::Groups,
    /// Bytes of responses that their clients have not read yet.
    queued_bytes: AtomicUsize,
    bodies: body::Bodies,
    rejections: rejections::Rejections,
    traces: Arc<traces::Traces>,
    /// Strategies with an attempt in the database. `None` until the database was read.
    stored_with_rate: Mutex<Option<HashSet<String>>>,
}

/// Routes that have counters of their own.
const ROUTES: [&str; 25] = [
    "/v1/failures",
    "/v1/failures/{event_id}",
    "/v1/attempts",
    "/v1/traces",
    "/v1/metrics",
    "/v1/logs",
    "/v1/summary",
    "/v1/timeseries",
    "/v1/strategies",
    "/v1/queries",
    "/v1/queries/status",
    "/v1/conversations",
    "/v1/calibration",
    "/v1/export",
    "/v1/tail",
    "/v1/stats",
    "/metrics",
    "/livez",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/",
    "",
    "/assets/{name:.*}",
    "/{any:.*}",
];

impl Api {
    fn new(logger: LoggerHandle, options: HttpOptions) -> Self {
        Self {
            traces: traces::Traces::new(logger.clone(), options.clone()),
            logger,
            options,
            tails: streams::StreamSlots::new("tail streams", MAX_TAILS),
            exports: streams::StreamSlots::new("exports", MAX_EXPORTS),
            reads_meter: Meter::default(),
            posts_meter: Meter::default(),
            wrong_tokens_meter: Meter::default(),
            delayed_responses: AtomicUsize::new(0),
            auth_failures: guard::AuthFailures::default(),
            log_budget: access_log::LogBudget::default(),
            routes: ROUTES
                .map(|route| Data::new(RouteMetrics::new(route)))
                .into(),
            received: AtomicU64::new(0),
            reads: shared::SharedReads::default(),
            rankings: queries::Rankings::default(),
            groups: queries::Groups::default(),
            queued_bytes: AtomicUsize::new(0),
            bodies: body::Bodies::default(),
            rejections: rejections::Rejections::default(),
            stored_with_rate: Mutex::default(),
        }
    }

    fn metrics_for(&self, route: &'static str) -> Data<RouteMetrics> {
        let metrics = self.routes.iter().find(|metrics| metrics.route == route);
        // A route that is missing in `ROUTES` gets counters that `/metrics` never shows. A test
        // finds such a route.
        metrics
            .cloned()
            .unwrap_or_else(|| Data::new(RouteMetrics::new(route)))
    }
}

/// Returns a function that mounts the routes, and the dashboard at their root. Pass a clone of it
/// to `App::configure`, or to `configure` of a scope, in each worker. Handlers beside these routes
/// get the logger as an argument of type [`LoggerHandle`].
pub fn configure(
    logger: LoggerHandle,
    options: HttpOptions,
) -> impl Fn(&mut ServiceConfig) + Clone + Send + 'static {
    let handle = Data::new(logger.clone());
    let api = Data::new(Api::new(logger, options));
    move |config| {
        config.app_data(handle.clone());
        config.app_data(api.clone());
        // Each worker runs this once, on its own event loop.
        if api.options.standalone {
            api.options.heartbeats.add();
        }
        // The middleware that is wrapped last runs first: host, then CORS, then token and rate. No
        // handler sees a request before all three have accepted it.
        macro_rules! mount {
            ($path:literal, $access:ident, $($method:ident => $handler:expr),+) => {
                let (outer, inner, access) = (api.clone(), api.clone(), guard::Access::$access);
                let metrics = api.metrics_for($path);
                config.service(
                    web::resource($path)
                        .app_data(web::PathConfig::default().error_handler(|error, _| {
                            Problem::new(Code::InvalidParameter, error.to_string()).into()
                        }))
                        .wrap(Compress::default())
                        .wrap(from_fn(move |request, next| guard::admit(inner.clone(), access, request, next)))
                        .wrap(api.options.cors())
                        .wrap(from_fn(move |request, next| {
                            guard::receive(outer.clone(), (access, metrics.clone()), request, next)
                        }))
                        $(.route(mount!(@route $method).to($handler)))+
                        .default_service(web::to(|| async {
                            Problem::method_not_allowed(concat!($(mount!(@name $method)),+))
                        })),
                );
            };
            // Every route with GET also responds to HEAD (RFC 9110, 9.3.2).
            (@route get) => { web::route().guard(ReadGuard) };
            (@route $method:ident) => { web::$method() };
            (@name get) => { "get head " };
            (@name $method:ident) => { concat!(stringify!($method), " ") };
        }
        mount!("/v1/failures", ByMethod, get => read::failures, post => ingest::failures, delete => delete::delete);
        mount!("/v1/failures/{event_id}", Read, get => read::failure);
        mount!("/v1/attempts", Ingest, post => ingest::attempts);
        mount!("/v1/traces", Ingest, post => traces::traces);
        mount!("/v1/metrics", Open, post => traces::not_traces);
        mount!("/v1/logs", Open, post => traces::not_traces);
        mount!("/v1/summary", Read, get => read::summary);
        mount!("/v1/timeseries", Read, get => read::timeseries);
        mount!("/v1/strategies", Read, get => read::strategies);
        mount!("/v1/queries", Read, get => queries::queries);
        mount!("/v1/queries/status", Triage, put => queries::set_status);
        mount!("/v1/conversations", Read, get => read::conversations);
        mount!("/v1/calibration", Read, get => read::calibration);
        mount!("/v1/export", Read, get => read::export);
        mount!("/v1/tail", Read, get => tail::tail);
        mount!("/v1/stats", Read, get => stats::stats);
        mount!("/metrics", Metrics, get => metrics::metrics);
        mount!("/livez", Health, get => health::livez);
        mount!("/healthz", Health, get => health::healthz);
        mount!("/readyz", Health, get => health::readyz);
        mount!("/openapi.json", Open, get => openapi::openapi);
        if api.options.dashboard {
            mount!("/", Open, get => dashboard::page);
            mount!("", Open, get => dashboard::to_page);
            mount!("/assets/{name:.*}", Open, get => dashboard::asset);
        }
        if api.options.standalone {
            let (outer, metrics) = (api.clone(), api.metrics_for("/{any:.*}"));
            config.service(
                web::resource("/{any:.*}")
                    .wrap(from_fn(move |request, next| {
                        guard::receive(
                            outer.clone(),
                            (guard::Access::Open, metrics.clone()),
                            request,
                            next,
                        )
                    }))
                    .route(web::route().to(|| async {
                        Problem::not_found("no route has this path; see /openapi.json")
                    })),
            );
        }
    }
}

/// Guard that matches `GET` and `HEAD`.
struct ReadGuard;

impl actix_web::guard::Guard for ReadGuard {
    fn check(&self, context: &actix_web::guard::GuardContext<'_>) -> bool {
        matches!(
            context.head().method,
            actix_web::http::Method::GET | actix_web::http::Method::HEAD
        )
    }
}

/// Extracts the logger whose routes are mounted in this application or scope.
impl FromRequest for LoggerHandle {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let logger = request
            .app_data::<Data<Self>>()
            .map(|logger| logger.get_ref().clone());
        ready(logger.ok_or_else(|| {
            actix_web::error::ErrorInternalServerError(
                "this scope has no logger: call `http::configure` on it, or \
                 `App::app_data(web::Data::new(logger.clone()))` for handlers outside of it",
            )
        }))
    }
}
