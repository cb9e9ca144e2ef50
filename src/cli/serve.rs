//! The service: how it starts, what signals do, and how it ends.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use actix_web::{App, HttpServer};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use super::Failure;
use super::settings::{Flags, LogFormat, Settings};
use crate::actor::FailureLogger;
use crate::handle::LoggerHandle;
use crate::http;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is kept that nobody uses.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long requests may go on after the service was told to end, in seconds.
const GRACE_SECONDS: u64 = 5;

pub(super) async fn serve(settings: &Settings, flags: &Flags) -> Result<(), Failure> {
    let log = begin_log(settings)?;
    let options = settings.http()?;
    let logger = FailureLogger::spawn(settings.logger.clone())?;
    let listen = settings.service.listen;
    let api = http::configure(logger.clone(), options.clone());
    let server = HttpServer::new(move || App::new().configure(api.clone()))
        .workers(settings.service.workers)
        .max_connections(settings.service.max_connections)
        .client_request_timeout(HEAD_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(GRACE_SECONDS)
        .disable_signals()
        .bind(listen)
        .map_err(|error| {
            Failure::Unreachable(format!("listen = {listen}: {error}; choose another address with --listen"))
        })?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    tracing::info!(%address, database = settings.logger.database_url, "failure-logger listens");
    // For people, and for programs that asked for any port.
    let url = format!("http://{address}");
    let _ = match settings.service.log_format {
        LogFormat::Text => writeln!(io::stdout(), "listening on {url}"),
        LogFormat::Json => writeln!(io::stdout(), "{}", serde_json::json!({"listening": url})),
    };

    let server = server.run();
    let handle = server.handle();
    let server = actix_rt::spawn(server);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    actix_rt::spawn(feed_watchdog(logger.clone()));
    wait_for_the_end(flags, address, &options, &log).await?;

    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tracing::info!("failure-logger ends: it answers what was asked, and stores what it accepted");
    let again = asked_to_end()?;
    actix_rt::spawn(async {
        again.await;
        // At once means at once.
        std::process::exit(130);
    });
    options.end_streams();
    handle.stop(true).await;
    let _ = server.await;
    let report = logger.shutdown().await?;
    tracing::info!(accounting = %report.stats, "failure-logger has ended");
    Ok(())
}

/// What of the log can be changed while it is written.
type LogFilter = reload::Handle<EnvFilter, Registry>;

fn begin_log(settings: &Settings) -> Result<LogFilter, Failure> {
    let (filter, handle) = reload::Layer::new(log_filter(settings)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match settings.service.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(handle)
}

fn log_filter(settings: &Settings) -> Result<EnvFilter, Failure> {
    let level = &settings.service.log_level;
    EnvFilter::try_new(level).map_err(|error| {
        Failure::Usage(format!("log_level = {level}: {error}; expected error, warn, info, debug or trace"))
    })
}

/// Returns when the service is told to end. Reads anew what can change whenever it is told to.
async fn wait_for_the_end(
    flags: &Flags,
    address: SocketAddr,
    options: &http::HttpOptions,
    log: &LogFilter,
) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup())?;
    // Once for all: the end must not be missed while settings are read.
    let mut end = std::pin::pin!(asked_to_end()?);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = hangups.recv() => match read_anew(flags, address) {
                Ok((anew, filter)) => {
                    options.replace_access(&anew);
                    // Fails only where there is no log any more.
                    let _ = log.reload(filter);
                    tracing::info!("hosts, tokens, rate limits and log_level were read anew; the rest needs a restart");
                }
                Err(Failure::Usage(error)) => tracing::error!(error, "the settings stay as they were"),
                Err(_) => {}
            },
        }
    }
}

/// All of it or nothing. What is allowed depends on where the service listens, and that does not change.
fn read_anew(flags: &Flags, address: SocketAddr) -> Result<(http::HttpOptions, EnvFilter), Failure> {
    let settings = Settings::load(flags)?;
    Ok((settings.http_on(address)?, log_filter(&settings)?))
}

/// Returns what ends with the next signal to end, from now on.
pub(super) fn asked_to_end() -> Result<impl Future<Output = ()> + use<>, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Tells systemd that records are kept, as often as it wants to hear it.
async fn feed_watchdog(logger: LoggerHandle) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    loop {
        if logger.health().is_ok() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
        actix_rt::time::sleep(interval / 2).await;
    }
}
