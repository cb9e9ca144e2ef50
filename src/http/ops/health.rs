//! Liveness and readiness of the service.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::Unhealthy;
use crate::handle::LoggerHandle;
use crate::http::Api;
use crate::http::params::Params;
use crate::http::problem::{Code, HealthProblems, Problem};

/// Interval of the heartbeats of an event loop.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Age of a heartbeat from which its event loop counts as blocked. A failed liveness check restarts
/// the process, so this is longer than any pause of a busy but healthy process.
const BLOCKED_AFTER: Duration = Duration::from_secs(20);

/// Result of a health check.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`. `/readyz` may also return `attempts_refused`: records are stored, but attempts cannot
    /// be counted.
    status: &'static str,
    /// Single checks. Present only with `verbose=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    checks: Option<Vec<Check>>,
}

/// Single check.
#[derive(Serialize, ToSchema)]
pub(crate) struct Check {
    /// Name of the check: `actor`, `workers`, `database` or `shutdown`.
    name: &'static str,
    /// `true` if the check passed.
    ok: bool,
    /// Description of the state.
    detail: String,
}

/// Options of a health check.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HealthQuery {
    /// `true` adds the single checks. Unknown parameters are ignored here, because probes add some.
    #[serde(default, deserialize_with = "crate::http::params::boolean")]
    #[param(value_type = bool)]
    verbose: bool,
}

/// Checks liveness: the event loops of the service and of the logger are running. If this fails,
/// restart the process.
#[utoipa::path(get, path = "/livez", operation_id = "get_livez", tag = "operations", params(HealthQuery), responses(
    (status = 200, description = "All checks passed.", body = Health),
    HealthProblems,
))]
pub(crate) async fn livez(
    api: Data<Api>,
    query: Params<HealthQuery>,
) -> Result<HttpResponse, Problem> {
    let checks = vec![actor(&api.logger), workers(&api.options.heartbeats)];
    respond("ok", checks, query.verbose)
}

/// Checks liveness, as `/livez` does. This path is older and kept for existing probes.
#[utoipa::path(get, path = "/healthz", operation_id = "get_healthz", tag = "operations", params(HealthQuery), responses(
    (status = 200, description = "All checks passed.", body = Health),
    HealthProblems,
))]
pub(crate) async fn healthz(
    api: Data<Api>,
    query: Params<HealthQuery>,
) -> Result<HttpResponse, Problem> {
    livez(api, query).await
}

/// Checks readiness: the logger commits records, and the service is not shutting down. If this
/// fails, send no requests.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readyz", tag = "operations", params(HealthQuery), responses(
    (status = 200, description = "All checks passed.", body = Health),
    HealthProblems,
))]
pub(crate) async fn readyz(
    api: Data<Api>,
    query: Params<HealthQuery>,
) -> Result<HttpResponse, Problem> {
    let health = api.logger.health();
    let (status, database) = match &health {
        Ok(()) => (
            "ok",
            Check {
                name: "database",
                ok: true,
                detail: "records are committed".into(),
            },
        ),
        // The service stays ready, because it still stores failures. If it got no requests, those
        // would be dropped, too.
        Err(unhealthy @ Unhealthy::AttemptsRefused { .. }) => (
            "attempts_refused",
            Check {
                name: "database",
                ok: true,
                detail: public_reason(unhealthy),
            },
        ),
        Err(unhealthy) => (
            "",
            Check {
                name: "database",
                ok: false,
                detail: public_reason(unhealthy),
            },
        ),
    };
    let draining = api.options.is_draining();
    let detail = if draining {
        "the service is shutting down"
    } else {
        "the service is not shutting down"
    };
    let shutdown = Check {
        name: "shutdown",
        ok: !draining,
        detail: detail.into(),
    };
    respond(status, vec![database, shutdown], query.verbose)
}

fn respond(
    status: &'static str,
    checks: Vec<Check>,
    is_verbose: bool,
) -> Result<HttpResponse, Problem> {
    match checks.iter().find(|check| !check.ok) {
        None => Ok(HttpResponse::Ok().json(Health {
            status,
            checks: is_verbose.then_some(checks),
        })),
        Some(failed) => Err(Problem::new(Code::NotReady, failed.detail.clone())),
    }
}

fn actor(logger: &LoggerHandle) -> Check {
    let age = logger.heartbeat_age().unwrap_or_default();
    let (ok, detail) = check_age(age, "the event loop of the logger");
    Check {
        name: "actor",
        ok,
        detail,
    }
}

fn workers(heartbeats: &Heartbeats) -> Check {
    let (ok, detail) = check_age(heartbeats.oldest(), "an event loop of the service");
    Check {
        name: "workers",
        ok,
        detail,
    }
}

/// Returns the result of a check and its description. `event_loop` names the loop whose last
/// heartbeat has this age.
fn check_age(age: Duration, event_loop: &str) -> (bool, String) {
    match age < BLOCKED_AFTER {
        true => (true, "the event loops are running".into()),
        false => (
            false,
            format!("{event_loop} has been blocked for {} s", age.as_secs()),
        ),
    }
}

/// Returns the reason without error texts of the system, which may contain paths.
pub(crate) fn public_reason(unhealthy: &Unhealthy) -> String {
    match unhealthy {
        Unhealthy::Unavailable { .. } => {
            "the logger cannot restart and keeps retrying; see the service's log".to_owned()
        }
        Unhealthy::Stale { seconds, .. } => {
            format!("no batch could be committed for {seconds} s; see the service's log")
        }
        Unhealthy::AttemptsRefused { .. } => {
            "attempts cannot be counted; see the service's log".to_owned()
        }
        without_cause => without_cause.to_string(),
    }
}

/// Heartbeats of the event loops that serve HTTP.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    started: Instant,
    /// Last heartbeat of each event loop, in milliseconds since `started`. A heartbeat is gone if
    /// its event loop has ended.
    beats: Mutex<Vec<Weak<AtomicU64>>>,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            beats: Mutex::default(),
        }
    }
}

impl Heartbeats {
    /// Starts the heartbeat of the current event loop.
    pub(crate) fn add(self: &Arc<Self>) {
        let beat = Arc::new(AtomicU64::new(self.now()));
        let mut beats = lock(&self.beats);
        beats.retain(|beat| beat.strong_count() > 0);
        beats.push(Arc::downgrade(&beat));
        drop(beats);
        let heartbeats = Arc::clone(self);
        actix_rt::spawn(async move {
            loop {
                // Pairs with the load in `oldest`. No other memory depends on the value.
                beat.store(heartbeats.now(), Ordering::Release);
                actix_rt::time::sleep(BEAT_INTERVAL).await;
            }
        });
    }

    /// Returns the age of the oldest heartbeat.
    fn oldest(&self) -> Duration {
        let now = self.now();
        let beats = lock(&self.beats);
        let ages = beats
            .iter()
            .filter_map(Weak::upgrade)
            .map(|beat| now.saturating_sub(beat.load(Ordering::Acquire)));
        Duration::from_millis(ages.max().unwrap_or(0))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Returns `true` if all event loops are running. The watchdog of the program calls this.
#[cfg(feature = "program")]
pub(crate) fn is_alive(logger: &LoggerHandle, options: &crate::http::HttpOptions) -> bool {
    actor(logger).ok && workers(&options.heartbeats).ok
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_event_loop_is_not_alive_and_an_ended_one_is_ignored() {
        let mut heartbeats = Heartbeats::default();
        heartbeats.started = heartbeats
            .started
            .checked_sub(Duration::from_secs(60))
            .unwrap();
        assert!(workers(&heartbeats).ok, "no event loop has a heartbeat");
        let beat = |seconds: u64| Arc::new(AtomicU64::new(seconds * 1000));
        let (running, blocked) = (beat(59), beat(30));
        lock(&heartbeats.beats).extend([&running, &blocked].map(Arc::downgrade));
        assert!(!workers(&heartbeats).ok);
        drop(blocked);
        assert!(workers(&heartbeats).ok);
    }
}
