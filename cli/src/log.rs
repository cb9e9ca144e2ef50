//! The log of the service, on standard error.

use std::fmt;
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::CommandError;
use super::settings::{LogFormat, Settings};

/// Interval between two hints about HTTP/2. An exporter tries again every few seconds.
const HINT_INTERVAL: Duration = Duration::from_secs(60);

/// Handle that replaces the level filter of the log while the service runs.
pub(super) type LogFilter = reload::Handle<EnvFilter, Registry>;

/// Installs the subscriber that writes the log to standard error.
pub(super) fn install(settings: &Settings) -> Result<LogFilter, CommandError> {
    let (filter, handle) = reload::Layer::new(filter(settings)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match settings.service.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(Http2Hint::default())
        .init();
    Ok(handle)
}

/// Parses the filter. Fails with the level as it was set, because the error of the filter quotes
/// only a part of it.
pub(super) fn filter(settings: &Settings) -> Result<EnvFilter, CommandError> {
    let level = &settings.service.log_level;
    EnvFilter::try_new(level).map_err(|error| {
        CommandError::Usage(format!(
            "log_level = {level}: {error}; expected error, warn, info, debug or trace"
        ))
    })
}

/// Explains a request of HTTP/2, as an exporter over gRPC sends it.
///
/// actix answers such a request with 400 before any code of the service sees it. The event in which
/// actix reports the version is the only trace of it.
#[derive(Default)]
struct Http2Hint {
    /// Time of the last hint.
    last: Mutex<Option<Instant>>,
}

impl Http2Hint {
    /// Returns `true` at most once in [`HINT_INTERVAL`].
    fn is_due(&self, now: Instant) -> bool {
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|last| now.saturating_duration_since(last) < HINT_INTERVAL) {
            return false;
        }
        *last = Some(now);
        true
    }
}

impl<S: Subscriber> Layer<S> for Http2Hint {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() != Level::ERROR || metadata.target() != "actix_http::h1::dispatcher" {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        if message.0.contains("invalid HTTP version") && self.is_due(Instant::now()) {
            tracing::warn!(
                "a client sent HTTP/2 without TLS, as gRPC does, and the service has HTTP/1.1: set \
                 OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf in the application that exports traces"
            );
        }
    }
}

/// The message of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_comes_once_a_minute() {
        let (hint, begin) = (Http2Hint::default(), Instant::now());
        assert!(hint.is_due(begin));
        assert!(!hint.is_due(begin + HINT_INTERVAL - Duration::from_millis(1)));
        assert!(hint.is_due(begin + HINT_INTERVAL));
    }
}
