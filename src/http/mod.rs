//! The service: the logger's routes, to be mounted into any actix-web application.
//!
//! ```no_run
//! use actix_web::{App, HttpServer, web};
//! use failure_logger::http::{self, HttpOptions};
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

mod dashboard;
mod delete;
mod guard;
mod health;
mod host;
mod ingest;
mod limits;
mod metrics;
mod openapi;
mod problem;
mod queries;
mod questions;
mod rejections;
mod stats;
mod tail;
pub(crate) mod wire;

use std::collections::HashSet;
use std::future::{Ready, ready};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use actix_cors::Cors;
use actix_web::dev::Payload;
use actix_web::middleware::{Condition, from_fn};
use actix_web::web::{Data, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, web};

pub use guard::{Origin, Token};
pub use host::Host;
use limits::Meter;
use problem::Problem;
#[cfg(feature = "cli")]
pub(crate) use questions::{parse_moment, parse_span};
use tokio::sync::watch;

use crate::handle::LoggerHandle;

/// Bytes of a JSON body at most.
pub const DEFAULT_MAX_JSON_BYTES: usize = 8 << 20;
/// Bytes of a body of JSON lines at most; it is never held in memory whole.
pub const DEFAULT_MAX_STREAM_BYTES: usize = 512 << 20;
/// Bytes of a line of JSON lines at most.
pub const DEFAULT_MAX_LINE_BYTES: usize = 64 << 10;
/// Followers of the log at the same time, at most.
pub const DEFAULT_MAX_FOLLOWERS: usize = 32;
/// Questions in a second from one address, at most.
pub const DEFAULT_MAX_QUESTIONS_PER_SECOND: u32 = 500;
/// Posts in a second from one address, at most: as many as come, for a full buffer slows senders down.
pub const DEFAULT_MAX_POSTS_PER_SECOND: u32 = 0;
/// How long a sender may take for the next piece of a body.
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long browsers remember what another origin may do, in seconds.
const ORIGINS_ARE_REMEMBERED_FOR: usize = 600;

/// What is allowed, and to whom. Default: everything to everybody who reaches a loopback address by
/// its name.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Shared by all clones, so that it can be changed while the routes are served.
    access: Arc<RwLock<AccessRules>>,
    origins: Vec<Origin>,
    body_timeout: Duration,
    max_json_bytes: usize,
    max_stream_bytes: usize,
    max_line_bytes: usize,
    max_followers: usize,
    reject_unknown_fields: bool,
    dashboard: bool,
    /// Whether these routes are all there are.
    alone: bool,
    /// Shared by all clones: whether what has no end is to end.
    ending: Arc<watch::Sender<bool>>,
}

/// Who may do what, and how often.
#[derive(Debug, Clone)]
struct AccessRules {
    hosts: Option<Vec<Host>>,
    read_token: Option<Token>,
    ingest_token: Option<Token>,
    delete_token: Option<Token>,
    max_questions_per_second: u32,
    max_posts_per_second: u32,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            access: Arc::new(RwLock::new(AccessRules {
                hosts: Some(["localhost", "127.0.0.1", "[::1]"].map(Host::exactly).into()),
                read_token: None,
                ingest_token: None,
                delete_token: None,
                max_questions_per_second: DEFAULT_MAX_QUESTIONS_PER_SECOND,
                max_posts_per_second: DEFAULT_MAX_POSTS_PER_SECOND,
            })),
            origins: Vec::new(),
            body_timeout: DEFAULT_BODY_TIMEOUT,
            max_json_bytes: DEFAULT_MAX_JSON_BYTES,
            max_stream_bytes: DEFAULT_MAX_STREAM_BYTES,
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
            max_followers: DEFAULT_MAX_FOLLOWERS,
            reject_unknown_fields: false,
            dashboard: true,
            alone: false,
            ending: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl HttpOptions {
    /// Another name by which the service may be addressed. Requests for any other host are refused, but for
    /// `/healthz` and `/readyz`: a page that has its own name resolve to a loopback address (DNS rebinding) must not
    /// read the log. Default: `localhost`, `127.0.0.1` and `[::1]`.
    ///
    /// ```
    /// # use failure_logger::http::HttpOptions;
    /// let options = HttpOptions::default().allow_host("logger.example".parse()?).allow_host("*.cluster.local".parse()?);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn allow_host(self, host: Host) -> Self {
        self.change(|access| access.hosts.get_or_insert_default().push(host))
    }

    /// Leaves the Host header to whoever stands before the service.
    pub fn allow_any_host(self) -> Self {
        self.change(|access| access.hosts = None)
    }

    /// What readers must show, as `Authorization: Bearer …`. Default: nothing.
    pub fn read_token(self, token: Token) -> Self {
        self.change(|access| access.read_token = Some(token))
    }

    /// What those who report failures must show. Default: nothing.
    pub fn ingest_token(self, token: Token) -> Self {
        self.change(|access| access.ingest_token = Some(token))
    }

    /// What is shown to delete failures. Default: none, and nothing can be deleted over HTTP.
    pub fn delete_token(self, token: Token) -> Self {
        self.change(|access| access.delete_token = Some(token))
    }

    /// Questions that one address (in IPv6, one network of 64 bits) may ask in a second; 0 is no limit.
    /// More are answered with 429. Whether the service is well, and what it can do, may always be
    /// asked. Default: 500. Behind a proxy all clients have its address: limit them there.
    pub fn max_questions_per_second(self, questions: u32) -> Self {
        self.change(|access| access.max_questions_per_second = questions)
    }

    /// Posts that one address may send in a second; 0 is no limit. More are answered with 429.
    /// Default: 0, for where there is no room senders are slowed down anyway.
    ///
    /// Ten wrong tokens in a second are a limit that cannot be set: whoever shows more is answered with
    /// 429 for a while, whatever is shown.
    pub fn max_posts_per_second(self, posts: u32) -> Self {
        self.change(|access| access.max_posts_per_second = posts)
    }

    /// Another origin whose web pages may ask and report (CORS). Default: none, and no answer then has
    /// a header of CORS.
    pub fn allow_origin(mut self, origin: Origin) -> Self {
        self.origins.push(origin);
        self
    }

    /// Takes hosts, tokens and rate limits over from `other`, also where the routes are being served already with
    /// a clone of these options.
    pub fn replace_access(&self, other: &Self) {
        let other = other.access().clone();
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = other;
    }

    fn access(&self) -> RwLockReadGuard<'_, AccessRules> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(self, change: impl FnOnce(&mut AccessRules)) -> Self {
        change(&mut self.access.write().unwrap_or_else(PoisonError::into_inner));
        self
    }

    /// Bytes of a body at most: of JSON, which is read whole, and of JSON lines, which are not.
    /// Default: 8 MiB and 512 MiB.
    pub fn max_body_bytes(mut self, json: usize, lines: usize) -> Self {
        (self.max_json_bytes, self.max_stream_bytes) = (json, lines);
        self
    }

    /// Rejects a record with an unknown field. Default: the field is ignored and counted, and a warning names it.
    pub fn reject_unknown_fields(mut self, reject: bool) -> Self {
        self.reject_unknown_fields = reject;
        self
    }

    /// Mounts no dashboard, for applications that have a page of their own at its address.
    pub fn without_dashboard(mut self) -> Self {
        self.dashboard = false;
        self
    }

    /// How long a sender may take for the next piece of a body. Default: 20 seconds.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Answers for all other addresses, too: there is nothing beside these routes.
    #[cfg(feature = "cli")]
    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Ends tail streams and uploads, before the server is stopped: it would wait for them, and cut them
    /// off. Reaches all clones of these options. An upload is answered with 503, and with how far it was
    /// read.
    pub fn end_streams(&self) {
        self.ending.send_replace(true);
    }

    fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Returns once [`end_streams`](Self::end_streams) was called.
    async fn ended(&self) {
        // The sender is in `self`, so there is no error.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }

    /// Bytes of a line at most. Default: 64 KiB.
    pub fn max_line_bytes(mut self, bytes: usize) -> Self {
        self.max_line_bytes = bytes;
        self
    }

    /// What browsers are told, if there is somebody to be told.
    fn cors(&self) -> Condition<Cors> {
        let origins = self.origins.clone();
        let cors = Cors::default()
            .allowed_origin_fn(move |shown, _| origins.iter().any(|origin| origin.is(shown)))
            .allowed_methods(["GET", "POST", "PUT"])
            .allowed_headers(["authorization", "content-type", "last-event-id"])
            .expose_headers(["retry-after", "www-authenticate"])
            .max_age(ORIGINS_ARE_REMEMBERED_FOR);
        Condition::new(!self.origins.is_empty(), cors)
    }
}

/// What the routes share.
struct Api {
    logger: LoggerHandle,
    options: HttpOptions,
    followers: AtomicUsize,
    questions: Meter,
    posts: Meter,
    wrong_tokens: Meter,
    /// Records that came in over HTTP.
    received: std::sync::atomic::AtomicU64,
    answers: queries::Answers,
    /// Bytes of bodies that are held in memory whole.
    held: AtomicUsize,
    rejections: rejections::Rejections,
    /// Strategies of which an attempt was reported before the start. `None`: not read yet.
    stored_with_rate: Mutex<Option<HashSet<String>>>,
}

/// Mounts the routes, and the dashboard at their root: give what it returns to `App::configure` or to a
/// scope's `configure`, once for each worker. Handlers beside them get the logger as an argument of type
/// [`LoggerHandle`].
pub fn configure(logger: LoggerHandle, options: HttpOptions) -> impl Fn(&mut ServiceConfig) + Clone + Send + 'static {
    let handle = Data::new(logger.clone());
    let api = Data::from(Arc::new(Api {
        logger,
        options,
        followers: AtomicUsize::new(0),
        questions: Meter::default(),
        posts: Meter::default(),
        wrong_tokens: Meter::default(),
        received: std::sync::atomic::AtomicU64::new(0),
        answers: queries::Answers::default(),
        held: AtomicUsize::new(0),
        rejections: rejections::Rejections::default(),
        stored_with_rate: Mutex::default(),
    }));
    move |config| {
        config.app_data(handle.clone());
        config.app_data(api.clone());
        // Who may do what is decided before anything else is looked at. The last is the outermost.
        macro_rules! mount {
            ($path:literal, $access:ident, $($method:ident => $handler:expr),+) => {
                let (outer, inner) = (api.clone(), api.clone());
                config.service(
                    web::resource($path)
                        .app_data(questions::query_config())
                        .app_data(web::PathConfig::default().error_handler(|error, _| {
                            Problem::bad_request(error.to_string()).into()
                        }))
                        .wrap(from_fn(move |request, next| {
                            guard::admit(inner.clone(), guard::Access::$access, request, next)
                        }))
                        .wrap(api.options.cors())
                        .wrap(from_fn(move |request, next| guard::receive(outer.clone(), guard::Access::$access, request, next)))
                        $(.route(web::$method().to($handler)))+
                        .default_service(web::to(|| async {
                            Problem::method_not_allowed(concat!($(stringify!($method), " "),+))
                        })),
                );
            };
        }
        mount!("/v1/failures", ByMethod, get => questions::failures, post => ingest::failures, delete => delete::delete);
        mount!("/v1/failures/{event_id}", Read, get => questions::failure);
        mount!("/v1/attempts", Ingest, post => ingest::attempts);
        mount!("/v1/summary", Read, get => questions::summary);
        mount!("/v1/timeseries", Read, get => questions::timeseries);
        mount!("/v1/strategies", Read, get => questions::strategies);
        mount!("/v1/queries", Read, get => queries::queries);
        // Whoever may read the questions may say what became of them.
        mount!("/v1/queries/status", Read, put => queries::mark);
        mount!("/v1/conversations", Read, get => questions::conversations);
        mount!("/v1/calibration", Read, get => questions::calibration);
        mount!("/v1/export", Read, get => questions::export);
        mount!("/v1/tail", Read, get => tail::tail);
        mount!("/v1/stats", Read, get => stats::stats);
        mount!("/metrics", Read, get => metrics::metrics, head => metrics::metrics);
        mount!("/healthz", Health, get => health::healthz, head => health::healthz);
        mount!("/readyz", Health, get => health::readyz, head => health::readyz);
        mount!("/openapi.json", Open, get => openapi::openapi);
        if api.options.dashboard {
            mount!("/", Open, get => dashboard::page, head => dashboard::page);
            mount!("", Open, get => dashboard::to_page, head => dashboard::to_page);
            mount!("/assets/{name:.*}", Open, get => dashboard::asset, head => dashboard::asset);
        }
        if api.options.alone {
            let outer = api.clone();
            config.service(
                web::resource("/{any:.*}")
                    .wrap(from_fn(move |request, next| {
                        guard::receive(outer.clone(), guard::Access::Open, request, next)
                    }))
                    .route(
                        web::route().to(|| async { Problem::not_found("there is nothing here; see /openapi.json") }),
                    ),
            );
        }
    }
}

/// The logger whose routes are mounted in this application or scope.
impl FromRequest for LoggerHandle {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let logger = request.app_data::<Data<Self>>().map(|logger| logger.get_ref().clone());
        ready(logger.ok_or_else(|| {
            actix_web::error::ErrorInternalServerError(
                "no logger here: call `http::configure` on this scope, or `App::app_data(web::Data::new(logger.clone()))` \
                 for handlers outside of it",
            )
        }))
    }
}
