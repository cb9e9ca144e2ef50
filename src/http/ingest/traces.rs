//! Route that receives the traces of OpenTelemetry (OTLP over HTTP).
//!
//! Requests and responses follow the protocol's specification,
//! <https://opentelemetry.io/docs/specs/otlp/>: a response has the encoding of its request, an error
//! is a `google.rpc.Status`, and clients retry 503 only.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use utoipa::ToSchema;

use super::body::{Body, media_type};
use super::pending::{Arrival, Pending};
use super::{YieldTimer, submit};
use crate::handle::LoggerHandle;
use crate::http::problem::{Code, Problem};
use crate::http::wire::otlp::{
    JsonRequest, PartialSuccess, ProtobufReader, Retrieval, SpanFault, Step, status_to_protobuf,
};
use crate::http::wire::{RejectReason, Rejected, Sent, SentKind, repaired};
use crate::http::{Api, HttpOptions};
use crate::model::outcome::OutcomeKind;
use crate::model::stats::DropReason;

/// Maximum size of a protobuf body after decompression, as the specification recommends. It is
/// processed as it arrives and never held as a whole.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Interval at which retrievals that have waited long enough are counted.
const RELEASE_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum time that a shutdown spends on retrievals that find the buffer full.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Receives traces and counts the retrievals among their spans. Failed ones are logged.
///
/// docs/opentelemetry.md says which spans are retrievals and what their outcome is. All other spans
/// are ignored.
#[utoipa::path(post, path = "/v1/traces", operation_id = "report_traces", tag = "ingest",
    request_body(content = TraceRequest, content_type = "application/json", description = "An `ExportTraceServiceRequest` of OTLP. Exporters send it in protobuf (`application/x-protobuf`)."),
    responses(
        (status = 200, description = "The spans were processed.", body = TraceResponse),
        (status = 400, description = "The body is invalid. The spans before the fault were processed.", body = RpcStatus),
        (status = 401, description = "The token is missing or unknown.", body = RpcStatus),
        (status = 403, description = "The token lacks the scope, or a web page of another origin sent the request.", body = RpcStatus),
        (status = 405, description = "The path does not accept this method; `Allow` lists the accepted ones.", body = RpcStatus),
        (status = 413, description = "The body is too large.", body = RpcStatus),
        (status = 415, description = "The media type or encoding is not supported.", body = RpcStatus),
        (status = 421, description = "The Host header names an unknown host.", body = RpcStatus),
        (status = 503, description = "There is no room at present; see `Retry-After`.", body = RpcStatus),
    ))]
pub(crate) async fn traces(
    api: Data<Api>,
    request: HttpRequest,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    let encoding = Encoding::of(&request).ok_or_else(|| {
        let detail = "Content-Type: expected application/x-protobuf or application/json";
        Problem::new(Code::UnsupportedMediaType, detail)
    })?;
    let body = Body::new(&api, &request, body)?;
    let mut export = Export {
        api: &api,
        partial: PartialSuccess::default(),
        unknown: 0,
        yield_timer: YieldTimer::default(),
    };
    match encoding {
        Encoding::Protobuf => export.receive_protobuf(body).await?,
        Encoding::Json => export.receive_json(body).await?,
    }
    let partial = export.into_response();
    Ok(match encoding {
        Encoding::Protobuf => HttpResponse::Ok()
            .content_type(encoding.media_type())
            .body(partial.to_protobuf()),
        Encoding::Json => HttpResponse::Ok().json(partial.to_json()),
    })
}

/// The JSON of an export, as far as clients without a library of OpenTelemetry need it.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "only described")]
pub(crate) struct TraceRequest {
    /// Spans by resource, each with `resource` and `scopeSpans`.
    #[schema(value_type = Vec<Object>)]
    resource_spans: Vec<serde_json::Value>,
}

/// The JSON of the response to an export.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "only described")]
pub(crate) struct TraceResponse {
    /// Absent if all retrievals were accepted and have a known outcome.
    #[schema(required = false)]
    partial_success: Option<TracePartialSuccess>,
}

/// Rejected retrievals, or a warning.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "only described")]
pub(crate) struct TracePartialSuccess {
    /// Number of rejected retrievals, in decimal digits. They must not be sent again.
    rejected_spans: String,
    /// Reason for the first rejection, or the warning.
    error_message: String,
}

/// A `google.rpc.Status`, the form of errors of OTLP.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct RpcStatus {
    /// Code of gRPC, such as 3 for an invalid argument.
    code: i32,
    /// Cause of the error and its remedy.
    message: String,
}

/// Rejects metrics and logs, whose exporters send them to the same address.
pub(crate) async fn not_traces(request: HttpRequest) -> Problem {
    let signal = request.path().rsplit('/').next().unwrap_or_default();
    let (name, variable) = match signal {
        "metrics" => ("metrics", "OTEL_METRICS_EXPORTER"),
        _ => ("logs", "OTEL_LOGS_EXPORTER"),
    };
    Problem::not_found(format!(
        "this service takes traces, and no {name}; set {variable}=none in the sender"
    ))
}

/// Encoding of a request, which is also that of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    fn of(request: &HttpRequest) -> Option<Self> {
        match media_type(request).as_str() {
            "application/x-protobuf" | "application/protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }
}

/// Turns a problem into the response that the protocol demands: a `google.rpc.Status` in the
/// encoding of the request, with a status that clients retry exactly if a retry can succeed.
pub(crate) fn to_status_response(request: &HttpRequest, problem: &Problem) -> HttpResponse {
    let (status, code) = match problem.status() {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => (problem.status(), rpc::INVALID_ARGUMENT),
        StatusCode::UNAUTHORIZED => (problem.status(), rpc::UNAUTHENTICATED),
        StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
            (problem.status(), rpc::PERMISSION_DENIED)
        }
        StatusCode::NOT_FOUND => (problem.status(), rpc::NOT_FOUND),
        StatusCode::METHOD_NOT_ALLOWED => (problem.status(), rpc::UNIMPLEMENTED),
        // Some exporters take 408 or 429 as final, and all of them retry 503.
        _ => (StatusCode::SERVICE_UNAVAILABLE, rpc::UNAVAILABLE),
    };
    let encoding = Encoding::of(request).unwrap_or(Encoding::Json);
    let detail = problem.to_string();
    let body = match encoding {
        Encoding::Protobuf => status_to_protobuf(code, &detail),
        Encoding::Json => serde_json::json!({"code": code, "message": detail})
            .to_string()
            .into_bytes(),
    };
    let mut response = HttpResponse::build(status);
    problem.write_header(&mut response);
    response
        .insert_header((
            CONTENT_TYPE,
            HeaderValue::from_static(encoding.media_type()),
        ))
        .body(body)
}

/// Codes of gRPC, <https://grpc.io/docs/guides/status-codes/>.
mod rpc {
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const NOT_FOUND: u8 = 5;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

/// Processing of one request.
struct Export<'a> {
    api: &'a Api,
    partial: PartialSuccess,
    /// Retrievals of this request whose outcome is unknown.
    unknown: u64,
    yield_timer: YieldTimer,
}

impl Export<'_> {
    async fn receive_protobuf(&mut self, mut body: Body<'_>) -> Result<(), Problem> {
        let mut reader = ProtobufReader::new();
        let mut bytes = 0;
        loop {
            let chunk = body.next().await?;
            let Some(chunk) = chunk else {
                return reader.finish().map_err(|fault| malformed(&fault));
            };
            bytes += chunk.len();
            if bytes > MAX_BODY_BYTES {
                return Err(too_large(MAX_BODY_BYTES));
            }
            reader.push(&chunk);
            loop {
                let spans = reader.spans();
                let step = reader.next();
                self.api.traces.count_spans(reader.spans() - spans);
                match step.map_err(|fault| malformed(&fault))? {
                    Step::Retrieval(retrieval) => self.process(retrieval).await?,
                    Step::Rejected(fault) => self.reject(&fault_of_span(fault)),
                    Step::End => break,
                }
                self.yield_timer.yield_if_due().await;
            }
        }
    }

    async fn receive_json(&mut self, body: Body<'_>) -> Result<(), Problem> {
        let max = self.api.options.max_json_bytes;
        let remedy =
            "send smaller batches, or protobuf (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)";
        let (body, _held) = body.read_whole(max, remedy).await?;
        let parse = move || {
            let json = String::from_utf8_lossy(&body);
            JsonRequest::parse(&json).or_else(|_| JsonRequest::parse(&repaired(&json)))
        };
        // The parser does not yield to other requests of its event loop.
        let parsed = actix_web::web::block(parse)
            .await
            .map_err(|error| Problem::new(Code::Busy, error.to_string()))?;
        let JsonRequest { steps, spans } = parsed.map_err(|fault| malformed(&fault))?;
        self.api.traces.count_spans(spans);
        for step in steps {
            match step {
                Ok(retrieval) => self.process(Box::new(retrieval)).await?,
                Err(fault) => self.reject(&fault_of_span(fault)),
            }
            self.yield_timer.yield_if_due().await;
        }
        Ok(())
    }

    async fn process(&mut self, retrieval: Box<Retrieval>) -> Result<(), Problem> {
        let traces = &self.api.traces;
        let is_unknown = retrieval.is_unknown();
        let Arrival {
            ready,
            is_duplicate,
            is_part,
            joined: _,
        } = traces.arrive(retrieval);
        if is_unknown && !is_duplicate && !is_part {
            self.unknown += 1;
        }
        let mut ready = Ready {
            traces,
            retrievals: ready.into(),
        };
        while let Some(retrieval) = ready.retrievals.front() {
            if let Some(sent) = traces.ruled(retrieval) {
                match submit(self.api, &sent).await? {
                    None => traces.count_retrieval(&sent),
                    Some(rejected) => self.reject(&rejected),
                }
            }
            ready.retrievals.pop_front();
        }
        Ok(())
    }

    fn reject(&mut self, rejected: &Rejected) {
        self.api.rejections.count(rejected);
        self.partial.rejected += 1;
        if self.partial.message.is_empty() {
            self.partial.message.clone_from(&rejected.text);
        }
    }

    fn into_response(self) -> PartialSuccess {
        let mut partial = self.partial;
        if partial.rejected > 0 {
            partial.message = format!(
                "{} retrievals were rejected, the first one because: {}",
                partial.rejected, partial.message
            );
        } else if self.unknown > 0 {
            partial.message = format!(
                "{} retrievals have an unknown outcome, because their spans have neither \
                 documents nor a count nor a score; switch on content capture in the \
                 instrumentation (docs/opentelemetry.md)",
                self.unknown
            );
        }
        partial
    }
}

/// Retrievals that are being submitted. The others are kept if the submission ends early: with an
/// error, or because the client closed its connection, which drops the request's future.
///
/// Their spans are known by now, so that a retry would not count them, and some of them are of
/// earlier requests, which were acknowledged.
struct Ready<'a> {
    traces: &'a Arc<Traces>,
    retrievals: VecDeque<Retrieval>,
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        if !self.retrievals.is_empty() {
            self.traces.put_back(self.retrievals.drain(..));
            // The client may not retry. The next arrival starts the thread if this fails.
            self.traces.start_release();
        }
    }
}

fn malformed(fault: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        Code::InvalidBody,
        format!(
            "the body is no ExportTraceServiceRequest: {fault}; the spans before the fault were \
             processed"
        ),
    )
}

fn too_large(max: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("a body of traces has {max} bytes at most; send smaller batches"),
    )
}

fn fault_of_span(fault: SpanFault) -> Rejected {
    let reason = match fault {
        SpanFault::MissingId | SpanFault::MissingEnd => RejectReason::MissingField,
        SpanFault::TooLong => RejectReason::TooLong,
        SpanFault::NotJson => RejectReason::NotJson,
    };
    Rejected::new(reason, fault.text())
}

/// Retrievals of traces, and counters of spans.
pub(crate) struct Traces {
    logger: LoggerHandle,
    options: HttpOptions,
    state: Mutex<State>,
    spans: AtomicU64,
    retrievals: AtomicU64,
    unknown: AtomicU64,
    duplicates: AtomicU64,
    ignored: AtomicU64,
    /// Spans that are counted with another span.
    parts: AtomicU64,
    /// `true` while a thread counts the retrievals that have waited long enough.
    is_releasing: AtomicBool,
}

#[derive(Default)]
struct State {
    pending: Pending,
    /// `true` once the logger closes. No retrieval waits from then on.
    is_closed: bool,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, ToSchema)]
pub(crate) struct TraceCounts {
    /// Spans that were received, whatever they are.
    pub(crate) spans: u64,
    /// Retrievals that were counted.
    pub(crate) retrievals: u64,
    /// Of these, retrievals whose outcome is unknown.
    pub(crate) unknown: u64,
    /// Spans of retrievals that were received before.
    pub(crate) duplicates: u64,
    /// Retrievals that a rule ignores.
    pub(crate) ignored: u64,
    /// Spans that are no attempts by themselves: nested retrievers, and rerankers, also without
    /// their retrieval.
    pub(crate) parts: u64,
    /// Retrievals that wait for the span around them, for ten seconds at most.
    pub(crate) waiting: u64,
}

impl Traces {
    pub(crate) fn new(logger: LoggerHandle, options: HttpOptions) -> Arc<Self> {
        let traces = Arc::new(Self {
            logger,
            options,
            state: Mutex::default(),
            spans: AtomicU64::new(0),
            retrievals: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            is_releasing: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&traces);
        traces.logger.shared().before_close(move || {
            if let Some(traces) = weak.upgrade() {
                traces.close();
            }
        });
        traces
    }

    pub(crate) fn counts(&self) -> TraceCounts {
        // Relaxed, as all counters here: statistics that no other memory depends on.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (waiting, lone_rerankers) = {
            let pending = &self.state().pending;
            (pending.len() as u64, pending.lone_rerankers())
        };
        TraceCounts {
            spans: count(&self.spans),
            retrievals: count(&self.retrievals),
            unknown: count(&self.unknown),
            duplicates: count(&self.duplicates),
            ignored: count(&self.ignored),
            parts: count(&self.parts) + lone_rerankers,
            waiting,
        }
    }

    /// Returns the record of a retrieval by the rules in force. `None`: they ignore it.
    fn ruled(&self, retrieval: &Retrieval) -> Option<Sent> {
        let ruling = retrieval.ruling(&self.options.trace_rules());
        if ruling.ignore {
            self.ignored.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(retrieval.clone().into_sent(ruling))
    }

    fn count_spans(&self, spans: u64) {
        self.spans.fetch_add(spans, Ordering::Relaxed);
    }

    fn count_retrieval(&self, sent: &Sent) {
        self.retrievals.fetch_add(1, Ordering::Relaxed);
        if sent.kind() == SentKind::Attempt(OutcomeKind::Unknown) {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn arrive(self: &Arc<Self>, retrieval: Box<Retrieval>) -> Arrival {
        let mut state = self.state();
        let mut arrival = state.pending.arrive(retrieval, Instant::now());
        if state.is_closed {
            arrival
                .ready
                .extend(std::iter::from_fn(|| state.pending.pop()));
        }
        let must_release = !state.pending.is_empty();
        drop(state);
        for (counter, counts) in [
            (&self.duplicates, u64::from(arrival.is_duplicate)),
            (&self.parts, u64::from(arrival.is_part) + arrival.joined),
        ] {
            counter.fetch_add(counts, Ordering::Relaxed);
        }
        if must_release && !self.start_release() {
            arrival
                .ready
                .extend(std::iter::from_fn(|| self.state().pending.pop()));
        }
        arrival
    }

    /// Starts the thread that counts the retrievals that have waited long enough, unless it runs.
    /// Returns `false` if it cannot start.
    fn start_release(self: &Arc<Self>) -> bool {
        // SeqCst: see `release`.
        if self.is_releasing.swap(true, Ordering::SeqCst) {
            return true;
        }
        let traces = Arc::downgrade(self);
        let thread = std::thread::Builder::new()
            .name("failure-logger-traces".into())
            .spawn(move || release(&traces));
        if let Err(error) = &thread {
            self.is_releasing.store(false, Ordering::SeqCst);
            tracing::error!(%error, "cannot start a thread: retrievals of traces are counted \
                without waiting for the spans around them");
        }
        thread.is_ok()
    }

    /// Keeps retrievals that could not be submitted. They are submitted next.
    fn put_back(&self, retrievals: impl DoubleEndedIterator<Item = Retrieval>) {
        let mut state = self.state();
        for retrieval in retrievals.rev() {
            state.pending.put_back(Box::new(retrieval), Instant::now());
        }
    }

    /// Counts the retrievals that have waited long enough. Returns `false` if the logger has no room
    /// at present.
    fn release_expired(&self) -> bool {
        loop {
            let expired = self.state().pending.pop_expired(Instant::now());
            let Some(retrieval) = expired else {
                return true;
            };
            if !self.offer(&retrieval) {
                self.put_back([retrieval].into_iter());
                return false;
            }
        }
    }

    /// Gives a retrieval to the logger. Returns `false` if it has no room.
    fn offer(&self, retrieval: &Retrieval) -> bool {
        let Some(sent) = self.ruled(retrieval) else {
            return true;
        };
        match sent.offer(&self.logger) {
            Ok(()) => {
                self.count_retrieval(&sent);
                true
            }
            // The retention changed while it waited. The logger has counted it as dropped.
            Err(DropReason::TooOld) => true,
            Err(_) => false,
        }
    }

    /// Counts everything that waits, before the logger closes.
    fn close(&self) {
        self.state().is_closed = true;
        let began = Instant::now();
        let mut lost = 0_u64;
        loop {
            let next = self.state().pending.pop();
            let Some(retrieval) = next else { break };
            while !self.offer(&retrieval) {
                if began.elapsed() >= CLOSE_TIMEOUT {
                    lost += 1;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if lost > 0 {
            tracing::error!(
                lost,
                "retrievals of traces are lost: the buffer was full at the shutdown"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.close();
    }
}

/// Counts retrievals that have waited long enough, until none waits.
fn release(traces: &Weak<Traces>) {
    loop {
        std::thread::sleep(RELEASE_INTERVAL);
        let Some(traces) = traces.upgrade() else {
            return;
        };
        traces.release_expired();
        if traces.state().pending.is_empty() {
            traces.is_releasing.store(false, Ordering::SeqCst);
            // A request may have added a retrieval between the look and the store, and have seen
            // that this thread still ran. SeqCst puts the store before the second look.
            let is_empty = traces.state().pending.is_empty();
            if is_empty || traces.is_releasing.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FailureLogger, LoggerConfig};

    /// A request whose client closes its connection is dropped at any point of its work.
    #[test]
    fn retrievals_of_a_dropped_request_are_kept() {
        let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
        let traces = Traces::new(logger, HttpOptions::default());
        // No thread releases the retrieval before this test looks.
        traces.is_releasing.store(true, Ordering::SeqCst);
        let json = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{
            "traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174",
            "endTimeUnixNano":"1790000000000000000","attributes":[
            {"key":"openinference.span.kind","value":{"stringValue":"RETRIEVER"}}]}]}]}]}"#;
        let span = JsonRequest::parse(json).unwrap().steps.remove(0).unwrap();
        let arrival = traces.arrive(Box::new(span.clone()));
        assert_eq!((arrival.ready.len(), traces.counts().waiting), (1, 0));
        drop(Ready {
            traces: &traces,
            retrievals: arrival.ready.into(),
        });
        assert_eq!(traces.counts().waiting, 1);
        assert!(traces.arrive(Box::new(span)).is_duplicate);
        traces.close();
        assert_eq!(
            (traces.counts().retrievals, traces.counts().waiting),
            (1, 0)
        );
    }
}
