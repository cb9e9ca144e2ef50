//! Routes that receive failures and attempts: one record, a list, or a stream of lines.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

pub(crate) mod body;
pub(crate) mod pending;
pub(crate) mod rejections;
pub(crate) mod traces;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::http::Api;
use crate::http::ingest::body::{Body, media_type};
use crate::http::ingest::rejections::Known;
use crate::http::params::Params;
use crate::http::problem::{
    Accepted, BodyProblems, Code, Fault, Problem, RecordProblems, shortened,
};
use crate::http::wire::lines::{Line, Lines, decoded};
use crate::http::wire::schema::{AttemptOrList, FailureOrList};
use crate::http::wire::{RejectReason, Rejected, Sent, SentKind, repaired};
use crate::model::stats::DropReason;

/// Maximum time that a record waits for room in the buffer. A flush usually takes much less.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which a waiting record retries.
const ROOM_INTERVAL: Duration = Duration::from_millis(2);
/// Maximum number of rejected records in a response that have their reason.
const MAX_ERRORS: usize = 100;
/// Maximum number of names of ignored fields in a response.
const MAX_IGNORED_NAMES: usize = 16;
/// Maximum size of one record of a JSON body in bytes.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Size of the slices in which a JSON body is divided into records.
const SLICE_BYTES: usize = 16 << 10;
/// Maximum time that a request occupies its event loop before other requests run.
const MAX_BUSY_TIME: Duration = Duration::from_millis(1);
/// Size above which a JSON body is parsed on a thread for blocking work, because the parser does
/// not yield to other requests.
const MAX_INLINE_BYTES: usize = 64 << 10;
/// Maximum length of an `Idempotency-Key`.
const MAX_KEY_CHARS: usize = 255;

/// Options of a request with records.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct IngestQuery {
    /// `true` accepts all records of the request, or none if one of them is rejected. In this mode,
    /// the maximum size of a JSON body (8 MiB by default) also applies to JSON lines.
    #[serde(default, deserialize_with = "crate::http::params::boolean")]
    #[param(value_type = bool)]
    strict: bool,
}

/// Receives failures: a JSON object, an array of objects, or JSON lines (`application/x-ndjson`),
/// which are processed as they arrive.
///
/// A request with an `Idempotency-Key` is idempotent: each record without an `event_id` gets one
/// that is derived from the key and the position of the record.
#[utoipa::path(post, path = "/v1/failures", operation_id = "report_failures", tag = "ingest",
    params(IngestQuery, ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "Identifies the request, so that a retry stores nothing twice.")),
    request_body(content(
        (FailureOrList = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 202, description = "At least one record was accepted, or the request has none; `rejected` counts the rejected ones.", body = Accepted),
        BodyProblems,
        RecordProblems,
    ))]
pub(crate) async fn failures(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<IngestQuery>,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    Intake::new(&api, Accepts::Failures, &request, query.strict)?
        .receive(&request, body)
        .await
}

/// Counts attempts and logs failed ones: a JSON object, an array of objects, or JSON lines
/// (`application/x-ndjson`).
///
/// A record with `failure_type` instead of `outcome` is handled as by `/v1/failures`. Attempts with
/// an `event_id` are idempotent: the service remembers the last 65,536 ids until it ends, and
/// counts each id once.
#[utoipa::path(post, path = "/v1/attempts", operation_id = "report_attempts", tag = "ingest",
    params(IngestQuery, ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "Identifies the request, so that a retry stores nothing twice.")),
    request_body(content(
        (AttemptOrList = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 202, description = "At least one record was accepted, or the request has none; `rejected` counts the rejected ones.", body = Accepted),
        BodyProblems,
        RecordProblems,
    ))]
pub(crate) async fn attempts(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<IngestQuery>,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    Intake::new(&api, Accepts::FailuresAndAttempts, &request, query.strict)?
        .receive(&request, body)
        .await
}

/// Kinds of records that a route accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepts {
    /// Failures only. A failed attempt is logged as a failure, and is not counted.
    Failures,
    FailuresAndAttempts,
}

/// Processing of the records of one request.
struct Intake<'a> {
    api: &'a Api,
    accepts: Accepts,
    /// Namespace from which the ids of records without an `event_id` are derived.
    key: Option<Uuid>,
    /// `true` to accept either all records or none.
    all_or_none: bool,
    accepted: Accepted,
    /// Ids of checked records of this request, with the fingerprints of the records.
    checked: HashMap<Uuid, u64>,
    yield_timer: YieldTimer,
}

impl<'a> Intake<'a> {
    fn new(
        api: &'a Api,
        accepts: Accepts,
        request: &HttpRequest,
        all_or_none: bool,
    ) -> Result<Self, Problem> {
        let mut keys = request.headers().get_all("idempotency-key");
        let key = keys.next().map(|key| {
            let is_valid = keys.next().is_none()
                && (1..=MAX_KEY_CHARS).contains(&key.len())
                && key.as_bytes().iter().all(u8::is_ascii_graphic);
            let detail = format!(
                "Idempotency-Key: expected one key of 1 to {MAX_KEY_CHARS} visible ASCII \
                 characters, such as a UUID"
            );
            if is_valid {
                Ok(key)
            } else {
                Err(Problem::new(Code::InvalidHeader, detail))
            }
        });
        // The path is part of the namespace, because a key identifies a request to one route.
        let key = key.transpose()?.map(|key| {
            Uuid::new_v5(
                &Uuid::NAMESPACE_URL,
                &[request.path().as_bytes(), b"\n", key.as_bytes()].concat(),
            )
        });
        Ok(Self {
            api,
            accepts,
            key,
            all_or_none,
            accepted: Accepted::default(),
            checked: HashMap::new(),
            yield_timer: YieldTimer::default(),
        })
    }

    /// Processes the body and returns the response.
    async fn receive(
        mut self,
        request: &HttpRequest,
        body: Payload,
    ) -> Result<HttpResponse, Problem> {
        let body = Body::new(self.api, request, body)?;
        let is_lines = match media_type(request).as_str() {
            "application/json" => false,
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines" => true,
            _ => {
                let detail = "Content-Type: expected application/json, or application/x-ndjson \
                    for JSON lines";
                return Err(Problem::new(Code::UnsupportedMediaType, detail));
            }
        };
        let result = match is_lines && !self.all_or_none {
            true => self.receive_lines(body).await,
            false => self.receive_whole(body, is_lines).await,
        };
        let Self {
            accepted,
            all_or_none,
            ..
        } = self;
        match result {
            Ok(()) if accepted.rejected > 0 && (accepted.accepted == 0 || all_or_none) => {
                let first = accepted.errors.first().map_or("", |error| &error.detail);
                let problem = Problem::new(
                    Code::NoRecordAccepted,
                    format!("no record was accepted: {first}"),
                );
                Err(problem.with_progress(accepted))
            }
            Ok(()) => Ok(HttpResponse::Accepted().json(accepted)),
            Err(problem) if accepted.processed > 0 || problem.is_temporary() => {
                Err(problem.with_progress(accepted))
            }
            Err(problem) => Err(problem),
        }
    }

    /// Processes a body that is held in memory as a whole.
    async fn receive_whole(&mut self, body: Body<'_>, is_lines: bool) -> Result<(), Problem> {
        let remedy = if self.all_or_none {
            "send several requests"
        } else {
            "send JSON lines instead (application/x-ndjson)"
        };
        let (body, _held) = body
            .read_whole(self.api.options.max_json_bytes, remedy)
            .await?;
        let is_large = body.len() > MAX_INLINE_BYTES;
        let parse = move || Records::parse(&String::from_utf8_lossy(&decoded(&body)), is_lines);
        let records = match is_large {
            true => actix_web::web::block(parse)
                .await
                .map_err(|error| Problem::new(Code::Busy, error.to_string()))?,
            false => parse(),
        };
        let records = records.map_err(|rejected| {
            self.api.rejections.count(&rejected);
            Problem::new(Code::InvalidBody, rejected.text)
        })?;
        if self.all_or_none {
            self.process_all(&records, Pass::Check).await?;
            if self.accepted.rejected > 0 {
                return Ok(());
            }
            self.accepted = Accepted::default();
        }
        self.process_all(&records, Pass::Submit).await
    }

    /// Processes all records in one pass.
    async fn process_all(&mut self, records: &Records, pass: Pass) -> Result<(), Problem> {
        match records {
            Records::One(json) => {
                let text = (json.len() <= MAX_RECORD_BYTES).then(|| json.clone().into_bytes());
                self.process(Line { number: 1, text }, pass, MAX_RECORD_BYTES)
                    .await
            }
            Records::Many(json) => {
                let mut lines = Lines::new(MAX_RECORD_BYTES);
                for slice in json.as_bytes().chunks(SLICE_BYTES) {
                    lines.push(slice);
                    while let Some(line) = lines.pop() {
                        self.process(line, pass, MAX_RECORD_BYTES).await?;
                    }
                    self.yield_timer.yield_if_due().await;
                }
                lines.finish();
                while let Some(line) = lines.pop() {
                    self.process(line, pass, MAX_RECORD_BYTES).await?;
                }
                self.accepted.processed = self.accepted.processed.max(lines.ended());
                Ok(())
            }
        }
    }

    /// Processes JSON lines as they arrive.
    async fn receive_lines(&mut self, mut body: Body<'_>) -> Result<(), Problem> {
        let (max_line, max_body) = (
            self.api.options.max_line_bytes,
            self.api.options.max_stream_bytes,
        );
        let mut lines = Lines::new(max_line);
        let mut bytes = 0;
        loop {
            let chunk = body.next().await?;
            match &chunk {
                Some(chunk) => {
                    bytes += chunk.len();
                    if bytes > max_body {
                        let detail = format!(
                            "a body of JSON lines has {max_body} bytes at most; send the rest in \
                             another request"
                        );
                        return Err(Problem::new(Code::BodyTooLarge, detail));
                    }
                    lines.push(chunk);
                }
                None => lines.finish(),
            }
            while let Some(line) = lines.pop() {
                self.process(line, Pass::Submit, max_line).await?;
            }
            self.accepted.processed = lines.ended();
            if chunk.is_none() {
                return Ok(());
            }
        }
    }

    /// Processes one record. Returns an error only if the rest of the request must stop.
    async fn process(
        &mut self,
        Line { number, text }: Line,
        pass: Pass,
        max: usize,
    ) -> Result<(), Problem> {
        self.yield_timer.yield_if_due().await;
        let sent = match text {
            Some(text) if text.trim_ascii().is_empty() => return Ok(()),
            Some(text) => Sent::from_json(&text, self.api.options.reject_unknown_fields),
            None => Err(Rejected::new(
                RejectReason::TooLong,
                format!("a record has {max} bytes at most"),
            )),
        };
        let sent = sent.and_then(|sent| self.validate(self.with_event_id(sent, number), pass));
        let result = match (sent, pass) {
            (Ok(sent), Pass::Submit) => submit(self.api, &sent).await?.map_or(Ok(sent), Err),
            (Ok(sent), Pass::Check) if sent.is_too_old(&self.api.logger) => {
                Err(sent.too_old(&self.api.logger))
            }
            (sent, _) => sent,
        };
        match result {
            Ok(sent) if pass == Pass::Submit => self.accept(&sent),
            Ok(_) => {}
            Err(rejected) => self.reject(number, rejected),
        }
        self.accepted.processed = number;
        Ok(())
    }

    /// Sets the `event_id` of a record without one, if the request has an `Idempotency-Key`.
    fn with_event_id(&self, mut sent: Sent, number: u64) -> Sent {
        let from_key = || {
            self.key
                .map(|key| Uuid::new_v5(&key, &number.to_be_bytes()))
        };
        if sent.event_id.is_none() {
            sent.event_id = from_key();
        }
        sent
    }

    fn reject(&mut self, line: u64, rejected: Rejected) {
        self.api.rejections.count(&rejected);
        self.accepted.rejected += 1;
        if self.accepted.errors.len() < MAX_ERRORS {
            self.accepted.errors.push(Fault {
                parameter: None,
                line: Some(line),
                pointer: rejected.field.map(|field| format!("/{field}")),
                code: rejected.reason.as_str(),
                detail: shortened(rejected.text),
            });
        }
    }

    /// Returns the record in the form that this route accepts, or the reason for its rejection.
    fn validate(&mut self, sent: Sent, pass: Pass) -> Result<Sent, Rejected> {
        let sent = match (self.accepts, sent.kind()) {
            (Accepts::Failures, SentKind::Attempt(kind)) => match kind.failure() {
                Some(failure) => sent.into_failure(failure),
                None => {
                    let text = format!(
                        "outcome = \"{kind}\": this is no failure; send it to /v1/attempts"
                    );
                    return Err(Rejected::of_field(
                        "outcome",
                        RejectReason::InvalidValue,
                        text,
                    ));
                }
            },
            (Accepts::Failures, SentKind::Failure(_)) | (Accepts::FailuresAndAttempts, _) => sent,
        };
        // `rejections` remembers only accepted records, so a check needs ids of its own to find two
        // records of this request with the same id.
        let is_consistent = sent.event_id.filter(|_| pass == Pass::Check).map(|id| {
            let fingerprint = sent.fingerprint();
            *self.checked.entry(id).or_insert(fingerprint) == fingerprint
        });
        match self.api.rejections.known(&sent) {
            _ if is_consistent == Some(false) => Err(event_id_reused(&sent)),
            Some(Known::Different) => Err(event_id_reused(&sent)),
            Some(Known::Same) | None => Ok(sent),
        }
    }

    /// Counts an accepted record.
    fn accept(&mut self, sent: &Sent) {
        let Accepted {
            accepted,
            duplicates,
            nil_event_ids,
            ignored_fields,
            ..
        } = &mut self.accepted;
        *accepted += 1;
        *nil_event_ids += u64::from(sent.had_nil_id);
        if self.api.rejections.known(sent) == Some(Known::Same) {
            *duplicates += 1;
        }
        self.api.rejections.remember(sent);
        self.api.rejections.count_ignored(&sent.unknown);
        for name in &sent.unknown {
            if ignored_fields.len() < MAX_IGNORED_NAMES && !ignored_fields.contains(name) {
                ignored_fields.push(name.clone());
            }
        }
    }
}

/// Returns the rejection of a record whose id was received before with different content.
fn event_id_reused(sent: &Sent) -> Rejected {
    let id = sent.event_id.unwrap_or_default();
    let text = format!("event_id = {id}: another record already has this id; send a new id");
    Rejected::of_field("event_id", RejectReason::EventIdReused, text)
}

/// Purpose of a pass over the records of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Finds records that would be rejected, without submitting any.
    Check,
    /// Submits the records to the logger.
    Submit,
}

/// Records of a body that is held in memory.
enum Records {
    One(String),
    /// A list or lines.
    Many(String),
}

impl Records {
    /// Detects the layout of a body. A list must be valid as a whole: if it was truncated in
    /// transport, none of its records is accepted, so that the client can simply retry.
    fn parse(json: &str, is_lines: bool) -> Result<Self, Rejected> {
        match json.trim_start().bytes().next() {
            _ if is_lines => Ok(Self::Many(json.to_owned())),
            Some(b'[') => match serde_json::from_str::<serde::de::IgnoredAny>(json) {
                Ok(_) => Ok(Self::Many(json.to_owned())),
                Err(_) => {
                    let valid = repaired(json);
                    serde_json::from_str::<serde::de::IgnoredAny>(&valid).map_err(|error| {
                        Rejected::new(
                            RejectReason::NotJson,
                            format!("the body is no valid JSON list: {error}"),
                        )
                    })?;
                    Ok(Self::Many(valid))
                }
            },
            // Some clients send JSON lines as `application/json`.
            _ if has_more_than_one(json) => Ok(Self::Many(json.to_owned())),
            _ => match Sent::from_json(json.as_bytes(), false) {
                Err(
                    rejected @ Rejected {
                        reason: RejectReason::NotJson,
                        ..
                    },
                ) => Err(rejected),
                _ => Ok(Self::One(json.to_owned())),
            },
        }
    }
}

/// Returns `true` if the first value is an object and more text follows on another line.
fn has_more_than_one(json: &str) -> bool {
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<&RawValue>();
    let begins_with_object = values
        .next()
        .is_some_and(|first| first.is_ok_and(|first| first.get().starts_with('{')));
    let rest = json.get(values.byte_offset()..).unwrap_or_default();
    begins_with_object && rest.contains('\n') && !rest.trim().is_empty()
}

/// Timer since a request last yielded to other requests of its event loop.
struct YieldTimer(Instant);

impl Default for YieldTimer {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl YieldTimer {
    async fn yield_if_due(&mut self) {
        if self.0.elapsed() >= MAX_BUSY_TIME {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}

/// Submits a record to the logger. If the buffer is full, waits up to [`ROOM_TIMEOUT`], which slows
/// the sender down. Returns the reason if the record is rejected.
async fn submit(api: &Api, sent: &Sent) -> Result<Option<Rejected>, Problem> {
    let is_known = api.rejections.known(sent).is_some();
    if is_known && matches!(sent.kind(), SentKind::Attempt(_)) {
        api.rejections.count_duplicate_attempt();
        return Ok(None);
    }
    let mut waited = Duration::ZERO;
    while !api.logger.has_room() && waited < ROOM_TIMEOUT && !api.options.is_ending() {
        actix_rt::time::sleep(ROOM_INTERVAL).await;
        waited += ROOM_INTERVAL;
    }
    let full = (!api.logger.has_room()).then_some(DropReason::BufferFull);
    // A closed or disabled logger takes precedence over a full buffer, because the client needs
    // another remedy.
    let unavailable = api.logger.shared().refusal().or(full);
    let result = unavailable.map_or_else(|| sent.offer(&api.logger), Err);
    // The logger counts a record that is too old as received and dropped.
    if is_logged(sent) && matches!(result, Ok(()) | Err(DropReason::TooOld)) {
        // Relaxed: a statistic that no other memory depends on.
        api.received.fetch_add(1, Ordering::Relaxed);
    }
    match result {
        Ok(()) => Ok(None),
        // A rejection instead of an error, because a retry would have the same result.
        Err(DropReason::TooOld) => Ok(Some(sent.too_old(&api.logger))),
        Err(DropReason::BufferFull) => Err(Problem::new(
            Code::BufferFull,
            "the buffer is full; resend the records after the first `processed` later",
        )),
        Err(DropReason::Closed) => Err(Problem::new(
            Code::ShuttingDown,
            "the service is shutting down; resend the records after the first `processed` later",
        )),
        Err(reason) => Err(Problem::new(
            Code::NotReady,
            format!("the service accepts no records at present ({reason}); retry later"),
        )),
    }
}

/// Returns `true` if the log stores a row for the record. Others are only counted.
fn is_logged(sent: &Sent) -> bool {
    match sent.kind() {
        SentKind::Failure(_) => true,
        SentKind::Attempt(kind) => kind.failure().is_some(),
    }
}
