//! Command `serve`: start, reload on SIGHUP, and graceful shutdown.
//!
//! The order of the start decides what a client and a supervisor see:
//!
//! - The signal handlers come first: a SIGHUP during the start would end the process.
//! - The sockets are bound before the database is opened. An address in use ends the start with no
//!   effect on the file, and clients that connect early wait in the backlog in place of a
//!   rejection.
//! - The options are read for the bound addresses, which systemd may have passed.
//! - The logger starts, then the workers.
//! - Readiness is reported to systemd last.
//!
//! The end has the reverse order. The drain lets load balancers notice, the streams end because
//! they have no end of their own, the workers finish their requests, and the logger commits what
//! these requests brought. A record that got a 202 is in the database, or in the report of the
//! shutdown.

use std::io::{self, Write as _};
use std::time::Duration;

use actix_web::{App, HttpServer};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use failure_logger::{FailureLogger, LoggerHandle, http, program};

use super::listen::{self, Bound, Listen};
use super::log::{self, LogFilter};
use super::settings::{DEFAULT_MAX_CONNECTIONS, Flags, LogFormat, Settings};
use super::{CommandError, descriptors};

/// Timeout for the head of a request. It covers the request line and the headers. A body has a
/// timeout of its own, between two pieces.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which an idle connection is closed. A dashboard that refreshes each few seconds keeps
/// its connection, and an abandoned client frees its descriptor soon.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Deadline for open requests after the listeners are closed, in seconds. Uploads and streams were
/// ended before, so that only short requests remain.
const SHUTDOWN_TIMEOUT_SECONDS: u64 = 5;

/// Runs the service until a signal. Returns an error if it cannot start, or if the logger dropped
/// records at its end.
///
/// `flags` are kept for SIGHUP, which reads all settings once more with the same precedence.
pub(super) async fn serve(
    settings: &Settings,
    flags: &Flags,
    signals: Signals,
) -> Result<(), CommandError> {
    let log = log::install(settings)?;
    let bound = listen::bind(&settings.service.listen)?;
    let addresses: Vec<Listen> = bound.iter().filter_map(Bound::address).collect();
    let options = settings.http_on(&addresses)?;
    let (workers, wanted) = (settings.service.workers, settings.service.max_connections);
    let connections = descriptors::connections_per_worker(workers, wanted, descriptors::raise());
    if connections < wanted {
        let needed = workers * wanted;
        let message = format!(
            "max_connections = {wanted} per worker needs {needed} file descriptors, more than the \
             limit; raise LimitNOFILE or ulimit -n"
        );
        // The default is meant as an upper bound: only a configured value deserves a warning.
        match wanted == DEFAULT_MAX_CONNECTIONS {
            true => tracing::info!(workers, connections_per_worker = connections, "{message}"),
            false => tracing::warn!(workers, connections_per_worker = connections, "{message}"),
        }
    }
    let logger = FailureLogger::spawn(settings.logger.clone())?;
    let api = http::configure(logger.clone(), options.clone());
    let mut server = HttpServer::new(move || App::new().configure(api.clone()))
        .workers(workers)
        .max_connections(connections)
        .client_request_timeout(HEAD_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(SHUTDOWN_TIMEOUT_SECONDS)
        .disable_signals();
    let mut socket_files = Vec::new();
    for bound in bound {
        server = match bound {
            Bound::Tcp(listener) => server.listen(listener)?,
            Bound::Unix(listener, file) => {
                socket_files.extend(file);
                server.listen_uds(listener)?
            }
        };
    }
    for address in &addresses {
        tracing::info!(%address, database = program::database_url(&settings.logger), "listening");
        // Standard output names the port, which a caller that set port 0 has to learn.
        let url = match address {
            Listen::Tcp(address) => format!("http://{address}"),
            Listen::Unix(_) => address.to_string(),
        };
        let _ = match settings.service.log_format {
            LogFormat::Text => writeln!(io::stdout(), "listening on {url}"),
            LogFormat::Json => writeln!(io::stdout(), "{}", serde_json::json!({"listening": url})),
        };
    }

    let server = server.run();
    let handle = server.handle();
    let server = actix_rt::spawn(server);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    actix_rt::spawn(notify_watchdog(logger.clone(), options.clone()));
    let stop = wait_for_stop_signal(signals, flags, &addresses, &options, &log).await;

    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let second_signal = stop_signal()?;
    actix_rt::spawn(async {
        second_signal.await;
        // A second signal skips the graceful shutdown. 128 + SIGINT is the exit code.
        std::process::exit(130);
    });
    options.begin_drain();
    let drain = if stop == StopSignal::Terminated {
        settings.drain(&addresses)
    } else {
        Duration::ZERO
    };
    if !drain.is_zero() {
        tracing::info!(
            drain_ms = drain.as_millis(),
            "draining: /readyz responds 503, requests are still served"
        );
        actix_rt::time::sleep(drain).await;
    }
    tracing::info!("shutting down: finishing requests, flushing the buffer");
    options.end_streams();
    handle.stop(true).await;
    let _ = server.await;
    drop(socket_files);
    // The logger is shut down after the workers, so that it commits the records of the last
    // requests.
    let report = logger.shutdown().await?;
    tracing::info!(accounting = %report.stats, "shutdown complete");
    Ok(())
}

/// Signal handlers of the service. They are installed before anything else, because the default
/// action of each signal ends the process.
pub(super) struct Signals {
    /// SIGHUP: reload the settings.
    hangup: Signal,
    /// SIGTERM: drain, then stop.
    terminate: Signal,
    /// SIGINT: stop without a drain.
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. A signal that arrives before `recv` is called is not lost.
    pub(super) fn listen() -> Result<Self, CommandError> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Signal that ended the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopSignal {
    /// SIGTERM, from a service manager.
    Terminated,
    /// SIGINT, from a terminal. The shutdown skips the drain time.
    Interrupted,
}

/// Waits for SIGTERM or SIGINT. Reloads the settings that can change at each SIGHUP.
///
/// An invalid setting is logged and changes nothing: a typing error in a file must not end a
/// service that runs. The new options are complete before the first of them takes effect.
async fn wait_for_stop_signal(
    mut signals: Signals,
    flags: &Flags,
    addresses: &[Listen],
    options: &http::HttpOptions,
    log: &LogFilter,
) -> StopSignal {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return StopSignal::Terminated,
            _ = signals.interrupt.recv() => return StopSignal::Interrupted,
            _ = signals.hangup.recv() => match reload_settings(flags, addresses, options) {
                Ok((access, filter)) => {
                    options.replace_rules(&access);
                    // The only error is a subscriber that no longer exists.
                    let _ = log.reload(filter);
                    tracing::info!("reloaded hosts, tokens, proxies, rate limits, trace_rules and log_level; \
                        other settings need a restart");
                }
                Err(CommandError::Usage(error)) => tracing::error!(error, "cannot reload the \
                    settings: the previous ones stay in force"),
                Err(_) => {}
            },
        }
    }
}

/// Reads the settings that can change. Returns an error and no part of them if any setting is
/// invalid. `addresses` are those that are bound, because a reload does not change them.
fn read_settings(
    flags: &Flags,
    addresses: &[Listen],
) -> Result<(http::HttpOptions, EnvFilter), CommandError> {
    let settings = Settings::load(flags)?;
    Ok((settings.http_on(addresses)?, log::filter(&settings)?))
}

/// Reads the settings for a running service. Fails if a scope loses its last token, because a scope
/// without tokens is open to all clients.
fn reload_settings(
    flags: &Flags,
    addresses: &[Listen],
    options: &http::HttpOptions,
) -> Result<(http::HttpOptions, EnvFilter), CommandError> {
    let (access, filter) = read_settings(flags, addresses)?;
    match program::opened_scopes(options, &access).as_slice() {
        [] => Ok((access, filter)),
        [scope, ..] => Err(CommandError::Usage(format!(
            "token_file: no token has the scope `{}` any more, which would open it to all clients; add the scope \
             to a token or restart the service",
            scope.as_str()
        ))),
    }
}

/// Installs handlers for SIGTERM and SIGINT. The returned future ends at the first signal since
/// this call. A second call sees only later signals, so that the caller can distinguish a second
/// Ctrl-C from the first.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()> + use<>, CommandError> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Notifies the watchdog of systemd while the event loops respond. A locked database does not count
/// as a failure, because a restart would drop the buffered records.
///
/// The notification comes twice per interval of systemd, so that one late timer does not cause a
/// restart. Without a watchdog in the unit, the task ends at once.
async fn notify_watchdog(logger: LoggerHandle, options: http::HttpOptions) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if program::is_alive(&logger, &options) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
        actix_rt::time::sleep(interval / 2).await;
    }
}
