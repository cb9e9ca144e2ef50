//! Failures and attempts that come in: one, a list of them, or line by line without an end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use actix_web::web::{Bytes, BytesMut, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Api;
use super::problem::{NoneAccepted, NotTaken, Problem, shortened};
use super::rejections::Known;
use super::wire::lines::{Line, Lines, decoded};
use super::wire::schema::{AttemptOrList, FailureOrList};
use super::wire::{RejectReason, Rejected, Sent, SentKind, repaired};
use crate::attempts::OutcomeKind;
use crate::stats::DropReason;

/// How long a request waits for room in the buffer, before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon to look again whether there is room.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Bytes of bodies that are held in memory whole, all together.
const MAX_HELD_BYTES: usize = 64 << 20;
/// Rejected records of which the reason is told.
const MAX_REASONS: usize = 100;
/// Names of ignored fields that are told.
const MAX_IGNORED: usize = 16;

/// What became of the records of a request.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// Records that were accepted; they are written within a fraction of a second.
    pub(super) accepted: u64,
    /// Records that were not, because there is something wrong with them.
    pub(super) rejected: u64,
    /// Why, for the first hundred of them.
    pub(super) errors: Vec<LineError>,
    /// Of the accepted records, those whose `event_id` came before with the same content: they are stored and counted
    /// once. Older ones than the last 65,536 are recognised when they are stored: `duplicates` of `/v1/stats`.
    pub(super) duplicates: u64,
    /// Of the accepted records, those whose `event_id` was the nil UUID, which is ignored.
    pub(super) nil_event_ids: u64,
    /// Unknown fields, which were ignored: the first sixteen of their names.
    pub(super) ignored_fields: Vec<String>,
    /// Lines, or elements, that were looked at.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) line: u64,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct LineError {
    /// Its line, or its place in the list, from 1.
    line: u64,
    /// What is wrong.
    reason: String,
}

/// Takes failures: a JSON object, an array of them, or JSON lines (`application/x-ndjson`), which are
/// read piece by piece.
#[utoipa::path(post, path = "/v1/failures", tag = "ingest",
    request_body(content(
        (FailureOrList = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 202, body = Accepted),
        NotTaken,
        NoneAccepted,
    ))]
pub(super) async fn failures(api: Data<Api>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
    Intake { api: &api, takes: Takes::Failures, accepted: Accepted::default() }.take(&request, body).await
}

/// Counts attempts, and logs those that failed: a JSON object, an array of them, or JSON lines
/// (`application/x-ndjson`). A record with `failure_type` in the place of `outcome` is taken as by `/v1/failures`.
#[utoipa::path(post, path = "/v1/attempts", tag = "ingest",
    request_body(content(
        (AttemptOrList = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 202, body = Accepted),
        NotTaken,
        NoneAccepted,
    ))]
pub(super) async fn attempts(api: Data<Api>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
    Intake { api: &api, takes: Takes::Both, accepted: Accepted::default() }.take(&request, body).await
}

/// What a route takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Failures only. One that is sent as an attempt is a failure here.
    Failures,
    Both,
}

/// The records of one request.
struct Intake<'a> {
    api: &'a Api,
    takes: Takes,
    accepted: Accepted,
}

impl Intake<'_> {
    async fn take(mut self, request: &HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
        plain(request)?;
        let taken = match media_type(request).as_str() {
            "application/json" => self.take_json(body).await,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
                self.take_lines(body).await
            }
            _ => {
                return Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "Content-Type: expected application/json, or application/x-ndjson for JSON lines",
                ));
            }
        };
        let Self { accepted, .. } = self;
        match taken {
            Ok(()) if accepted.accepted == 0 && accepted.rejected > 0 => {
                let first = accepted.errors.first().map_or("", |error| &error.reason);
                Err(Problem::unprocessable(format!("no record was accepted: {first}")).after(accepted))
            }
            Ok(()) => Ok(HttpResponse::Accepted().json(accepted)),
            Err(problem) if accepted.line > 0 || problem.is_temporary() => Err(problem.after(accepted)),
            Err(problem) => Err(problem),
        }
    }

    async fn take_json(&mut self, body: Payload) -> Result<(), Problem> {
        let more = "send JSON lines instead (application/x-ndjson)";
        let (json, _held) = whole_body(self.api, body, self.api.options.max_json_bytes, more).await?;
        let json = decoded(&json);
        let json = String::from_utf8_lossy(&json);
        match json.trim_start().bytes().next() {
            Some(b'[') => self.take_list(&json).await,
            // JSON lines, sent as JSON.
            _ if has_more_than_one(&json) => {
                for (line, number) in json.lines().zip(1..) {
                    self.take_line(Line { number, text: Some(line.into()) }).await?;
                }
                Ok(())
            }
            _ => match Sent::from_json(json.as_bytes(), self.is_strict()) {
                Err(Rejected { reason: RejectReason::NotJson, text }) => {
                    self.api.rejections.count(&Rejected { reason: RejectReason::NotJson, text: text.clone() });
                    Err(Problem::bad_request(text))
                }
                sent => self.take_one(1, sent).await,
            },
        }
    }

    /// Takes a list element by element, because a bad one must not spoil the others.
    async fn take_list(&mut self, json: &str) -> Result<(), Problem> {
        let valid: String;
        let list = match serde_json::from_str::<Vec<&RawValue>>(json) {
            Ok(list) => list,
            Err(_) => {
                valid = repaired(json);
                serde_json::from_str(&valid).map_err(|error| {
                    let text = format!("this is no JSON list: {error}");
                    self.api.rejections.count(&Rejected::new(RejectReason::NotJson, text.clone()));
                    Problem::bad_request(text)
                })?
            }
        };
        for (element, number) in list.into_iter().zip(1..) {
            self.take_line(Line { number, text: Some(element.get().into()) }).await?;
        }
        Ok(())
    }

    async fn take_lines(&mut self, mut body: Payload) -> Result<(), Problem> {
        let (max_line, max_body) = (self.api.options.max_line_bytes, self.api.options.max_stream_bytes);
        let mut lines = Lines::new(max_line);
        let mut bytes = 0;
        loop {
            let piece = next_piece(self.api, &mut body).await?;
            match &piece {
                Some(piece) => {
                    bytes += piece.len();
                    if bytes > max_body {
                        let detail =
                            format!("a body of JSON lines has {max_body} bytes at most; send the rest by itself");
                        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
                    }
                    lines.push(piece);
                }
                None => lines.finish(),
            }
            while let Some(line) = lines.next() {
                self.take_line(line).await?;
            }
            self.accepted.line = lines.ended();
            if piece.is_none() {
                return Ok(());
            }
        }
    }

    async fn take_line(&mut self, Line { number, text }: Line) -> Result<(), Problem> {
        let sent = match text {
            Some(text) if text.trim_ascii().is_empty() => return Ok(()),
            Some(text) => Sent::from_json(&text, self.is_strict()),
            None => {
                let text = format!("a line has {} bytes at most (max_line_bytes)", self.api.options.max_line_bytes);
                Err(Rejected::new(RejectReason::TooLong, text))
            }
        };
        self.take_one(number, sent).await
    }

    async fn take_one(&mut self, line: u64, sent: Result<Sent, Rejected>) -> Result<(), Problem> {
        let taken = match sent.and_then(|sent| self.admitted(sent)) {
            Ok(sent) => hand_over(self.api, &sent).await?.map_or(Ok(sent), Err),
            Err(rejected) => Err(rejected),
        };
        match taken {
            Ok(sent) => self.note(&sent),
            Err(rejected) => {
                self.api.rejections.count(&rejected);
                self.accepted.rejected += 1;
                if self.accepted.errors.len() < MAX_REASONS {
                    self.accepted.errors.push(LineError { line, reason: shortened(rejected.text) });
                }
            }
        }
        self.accepted.line = line;
        Ok(())
    }

    /// Returns the record as this route takes it.
    fn admitted(&self, sent: Sent) -> Result<Sent, Rejected> {
        let sent = match (self.takes, sent.kind()) {
            (Takes::Failures, SentKind::Attempt(kind)) => match kind.failure() {
                Some(failure) => sent.into_failure(failure),
                None => {
                    let text = format!("outcome = \"{kind}\": this is no failure; send it to /v1/attempts");
                    return Err(Rejected::new(RejectReason::InvalidValue, text));
                }
            },
            (Takes::Failures, SentKind::Failure(_)) | (Takes::Both, _) => sent,
        };
        match self.api.rejections.known(&sent) {
            Some(Known::Other) => {
                let id = sent.event_id.unwrap_or_default();
                let text = format!("event_id = {id}: another record was sent under this id; send a new id");
                Err(Rejected::new(RejectReason::EventIdReused, text))
            }
            Some(Known::Same) | None => Ok(sent),
        }
    }

    /// Counts an accepted record.
    fn note(&mut self, sent: &Sent) {
        let Accepted { accepted, duplicates, nil_event_ids, ignored_fields, .. } = &mut self.accepted;
        *accepted += 1;
        *nil_event_ids += u64::from(sent.had_nil_id);
        if self.api.rejections.known(sent) == Some(Known::Same) {
            *duplicates += 1;
        }
        self.api.rejections.remember(sent);
        self.api.rejections.ignore(&sent.unknown);
        for name in &sent.unknown {
            if ignored_fields.len() < MAX_IGNORED && !ignored_fields.contains(name) {
                ignored_fields.push(name.clone());
            }
        }
    }

    fn is_strict(&self) -> bool {
        self.api.options.reject_unknown_fields
    }
}

/// Returns `true` if an object is followed by another one.
fn has_more_than_one(json: &str) -> bool {
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<&RawValue>();
    let begins_with_object = values.next().is_some_and(|first| first.is_ok_and(|first| first.get().starts_with('{')));
    let rest = json.get(values.byte_offset()..).unwrap_or_default();
    begins_with_object && rest.contains('\n') && !rest.trim().is_empty()
}

/// Refuses what is compressed: its lines would all be bad ones.
pub(super) fn plain(request: &HttpRequest) -> Result<(), Problem> {
    match request.headers().get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let detail = "Content-Encoding: expected none; send the body as it is";
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
        }
        _ => Ok(()),
    }
}

/// What a body is said to be.
pub(super) fn media_type(request: &HttpRequest) -> String {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A whole body; `more`: what to do with more than `max` bytes.
pub(super) async fn whole_body<'a>(
    api: &'a Api,
    mut body: Payload,
    max: usize,
    more: &str,
) -> Result<(BytesMut, Held<'a>), Problem> {
    let mut json = BytesMut::new();
    let mut held = Held { api, bytes: 0 };
    while let Some(piece) = next_piece(api, &mut body).await? {
        held.take(piece.len())?;
        if json.len() + piece.len() > max {
            let detail = format!("a JSON body has {max} bytes at most; {more}");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        json.extend_from_slice(&piece);
    }
    Ok((json, held))
}

/// Bytes of bodies that are held in memory whole, all together: however many send slowly.
pub(super) struct Held<'a> {
    api: &'a Api,
    bytes: usize,
}

impl Held<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        self.bytes += bytes;
        let all = self.api.held.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if all <= MAX_HELD_BYTES {
            return Ok(());
        }
        Err(Problem::unavailable("too many large bodies at once; send JSON lines instead, or come again later"))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.api.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Hands a record over, and waits a little if there is no room: that slows the sender down. Returns why the record is
/// rejected, if it is.
async fn hand_over(api: &Api, sent: &Sent) -> Result<Option<Rejected>, Problem> {
    let is_known = api.rejections.known(sent).is_some();
    if is_known && matches!(sent.kind(), SentKind::Attempt(_)) {
        api.rejections.count_repeated_attempt();
        return Ok(None);
    }
    let mut waited = Duration::ZERO;
    while !api.logger.has_room() && waited < PATIENCE && !api.options.is_ending() {
        actix_rt::time::sleep(LOOK_AGAIN).await;
        waited += LOOK_AGAIN;
    }
    let full = (!api.logger.has_room()).then_some(DropReason::BufferFull);
    let turned_away = api.logger.shared().closed_door().or(full);
    let offered = turned_away.map_or_else(|| sent.offer(&api.logger), Err);
    // One that is too old is counted as received and dropped.
    if is_logged(sent) && matches!(offered, Ok(()) | Err(DropReason::TooOld)) {
        api.received.fetch_add(1, Ordering::Relaxed);
    }
    match offered {
        Ok(()) => Ok(None),
        // The same at any later time.
        Err(DropReason::TooOld) => Ok(Some(sent.too_old(&api.logger))),
        Err(DropReason::BufferFull) => Err(Problem::unavailable("the buffer is full; send the rest later")),
        Err(reason) => Err(Problem::unavailable(format!("nothing is taken now ({reason}); send the rest later"))),
    }
}

/// Returns `true` for what becomes a record of the log.
fn is_logged(sent: &Sent) -> bool {
    match sent.kind() {
        SentKind::Failure(_) => true,
        SentKind::Attempt(OutcomeKind::Success | OutcomeKind::Cancelled) => false,
        SentKind::Attempt(_) => true,
    }
}

/// The next piece of a body; `None`: that was all. Once the service shuts down, only what has arrived
/// is taken: the payload of a connection is not filled while a handler does not wait.
async fn next_piece(api: &Api, body: &mut Payload) -> Result<Option<Bytes>, Problem> {
    let piece = tokio::select! {
        // In this order: a request that is here in full is answered as always.
        biased;
        piece = actix_rt::time::timeout(api.options.body_timeout, body.next()) => piece,
        () = api.options.ended() => {
            return Err(Problem::unavailable("the service shuts down; send what comes after `line` later"));
        }
    };
    match piece {
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(None) => Ok(None),
        Ok(Some(Err(error))) => Err(Problem::bad_request(format!("the body ended early: {error}"))),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly")),
    }
}
