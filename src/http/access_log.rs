//! The access log: one line for each request that the setting [`AccessLog`] selects.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::HttpMessage as _;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::http::Api;
use crate::http::access::{Caller, Scope};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a request id that a client sends.
const MAX_ID_CHARS: usize = 64;
/// Maximum number of lines per second: a flood of rejected requests must not fill the disk.
const LINES_PER_SECOND: u32 = 100;
/// Minimum duration of a slow request.
const SLOW: Duration = Duration::from_secs(1);

/// Selection of requests that are logged. Requests that erase failures or set a status are always
/// logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AccessLog {
    /// Requests that failed, and requests that took a second or longer.
    #[default]
    Failed,
    /// All requests.
    All,
    /// No requests.
    Off,
}

/// Id of a request: the one that the client sent, or a new one.
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// Returns the id that the client sent if it is short and visible ASCII, or a new id.
    pub(crate) fn from_request(request: &ServiceRequest) -> Self {
        let sent = request.headers().get(X_REQUEST_ID).filter(|id| {
            (1..=MAX_ID_CHARS).contains(&id.len())
                && id.as_bytes().iter().all(|byte| byte.is_ascii_graphic())
        });
        Self(sent.cloned().unwrap_or_else(new_id))
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID, self.0.clone());
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Returns a new id: a random number of this process and a counter. A random number for each
/// request would cost a system call.
fn new_id() -> HeaderValue {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let process = PROCESS.get_or_init(|| (uuid::Uuid::new_v4().as_u128() >> 96) as u32);
    // Relaxed: uniqueness needs only the atomic increment.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    HeaderValue::try_from(format!("{process:08x}-{count:x}"))
        .unwrap_or(HeaderValue::from_static("-"))
}

/// Budget of lines for the current second.
#[derive(Default)]
pub(crate) struct LogBudget(Mutex<Option<Second>>);

struct Second {
    began: Instant,
    lines: u32,
    /// Lines that were suppressed since the last line, in this second or an earlier one.
    suppressed: u64,
}

impl LogBudget {
    /// Takes one line of the budget. Returns the number of lines that were suppressed before it, or
    /// `None` if the budget is spent.
    fn take(&self) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = second.get_or_insert_with(|| Second {
            began: Instant::now(),
            lines: 0,
            suppressed: 0,
        });
        if second.began.elapsed() >= Duration::from_secs(1) {
            (second.began, second.lines) = (Instant::now(), 0);
        }
        if second.lines >= LINES_PER_SECOND {
            second.suppressed += 1;
            return None;
        }
        second.lines += 1;
        Some(std::mem::take(&mut second.suppressed))
    }
}

/// Logs a request. The line omits the query string, because it may contain queries of users.
pub(crate) fn write(
    api: &Api,
    response: &ServiceResponse,
    id: &RequestId,
    client: Option<IpAddr>,
    took: Duration,
) {
    let request = response.request();
    let caller = request.extensions().get::<Caller>().cloned();
    let is_audited = matches!(
        caller,
        Some(Caller {
            scope: Scope::Triage | Scope::Erase,
            ..
        })
    );
    let is_logged = is_audited
        || match api.options.access_log {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Failed => response.status().as_u16() >= 400 || took >= SLOW,
        };
    if !is_logged {
        return;
    }
    // Audited requests are logged even if the budget is spent.
    let suppressed = match (is_audited, api.log_budget.take()) {
        (_, Some(suppressed)) => suppressed,
        (true, None) => 0,
        (false, None) => return,
    };
    tracing::info!(
        target: "failure_logger::access",
        request_id = id.as_str(),
        method = %request.method(),
        path = request.path(),
        status = response.status().as_u16(),
        duration_ms = took.as_micros() as f64 / 1e3,
        client = client.map(tracing::field::display),
        token = caller.and_then(|caller| caller.token),
        suppressed = (suppressed > 0).then_some(suppressed),
        "request"
    );
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn request_keeps_its_own_id_unless_it_is_unfit_for_a_log() {
        let id = |sent: &str| {
            RequestId::from_request(
                &TestRequest::default()
                    .insert_header(("x-request-id", sent))
                    .to_srv_request(),
            )
        };
        assert_eq!(id("4711/a").as_str(), "4711/a");
        let long = "x".repeat(MAX_ID_CHARS + 1);
        for unfit in ["", "a b", "ä", &long] {
            let id = id(unfit);
            assert!(id.as_str() != unfit && id.as_str().len() > 8, "{unfit}");
        }
        let new = || {
            RequestId::from_request(&TestRequest::default().to_srv_request())
                .as_str()
                .to_owned()
        };
        assert_ne!(new(), new());
    }

    #[test]
    fn lines_beyond_the_limit_of_a_second_are_counted_in_the_next() {
        let budget = LogBudget::default();
        assert!((0..LINES_PER_SECOND).all(|_| budget.take() == Some(0)));
        assert_eq!((budget.take(), budget.take()), (None, None));
        let earlier = |second: &mut Second| {
            second.began = second.began.checked_sub(Duration::from_secs(1)).unwrap()
        };
        budget.0.lock().unwrap().as_mut().map(earlier).unwrap();
        assert_eq!((budget.take(), budget.take()), (Some(2), Some(0)));
    }
}
