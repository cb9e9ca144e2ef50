//! The service: how it starts, what signals do, and how it ends.

use std::io::{self, Write as _};
use std::time::Duration;

use actix_web::{App, HttpServer};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

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
    begin_log(settings)?;
    let options = settings.http()?;
    let logger = FailureLogger::spawn(settings.logger.clone())?;
    let listen = settings.service.listen;
    let api = http::configure(logger.clone(), options.clone());
    let server = HttpServer::new(move || App::new().configure(api.clone()))
        .workers(settings.service.workers.clamp(1, 256))
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
    let _ = writeln!(io::stdout(), "listening on http://{address}");

    let server = server.run();
    let handle = server.handle();
    let server = actix_rt::spawn(server);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    actix_rt::spawn(feed_watchdog(logger.clone()));
    wait_for_the_end(flags, &options).await?;

    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tracing::info!("failure-logger ends: it answers what was asked, and stores what it accepted");
    actix_rt::spawn(async {
        if asked_to_end().await.is_ok() {
            // At once means at once.
            std::process::exit(130);
        }
    });
    handle.stop(true).await;
    let _ = server.await;
    let report = logger.shutdown().await?;
    tracing::info!(accounting = %report.stats, "failure-logger has ended");
    Ok(())
}

fn begin_log(settings: &Settings) -> Result<(), Failure> {
    let level = &settings.service.log_level;
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::Usage(format!("log_level = {level}: {error}; expected error, warn, info, debug or trace"))
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.service.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Returns when the service is told to end. Reads tokens, hosts anew whenever it is told to.
async fn wait_for_the_end(flags: &Flags, options: &http::HttpOptions) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            ended = asked_to_end() => return ended,
            _ = hangups.recv() => match Settings::load(flags).and_then(|settings| settings.http()) {
                Ok(anew) => {
                    options.replace_access(&anew);
                    tracing::info!("tokens and hosts were read anew; other settings need a restart");
                }
                Err(Failure::Usage(error)) => tracing::error!(error, "the settings stay as they were"),
                Err(_) => {}
            },
        }
    }
}

async fn asked_to_end() -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
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
