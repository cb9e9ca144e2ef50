//! Failures that come in: one, a list of them, or line by line without an end.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use actix_web::web::{Bytes, BytesMut, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::StreamExt as _;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::problem::{NotTaken, Problem, shortened};
use crate::handle::LoggerHandle;
use crate::record::{ConversationId, RetrievalFailureRecord, RetrievalFailureType};
use crate::stats::DropReason;

/// How long a request waits for room in the buffer, before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon to look again whether there is room.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Bytes of bodies that are held in memory whole, all together.
const MAX_HELD_BYTES: usize = 64 << 20;
/// Bad lines of which the reason is told.
const MAX_REASONS: usize = 100;
/// The largest number that every JSON reader understands.
const MAX_NUMBER: f64 = 9_007_199_254_740_991.0;

/// A retrieval that failed. All but the first three may be missing.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewFailure)]
pub(crate) struct NewFailure {
    /// How it failed.
    failure_type: RetrievalFailureType,
    /// The strategy that was tried; its first 64 characters are kept.
    #[serde(deserialize_with = "not_empty")]
    #[schema(min_length = 1)]
    retrieval_strategy: String,
    /// The query; its first 512 characters are kept.
    query_text: String,
    /// Length of the query in bytes; that of `query_text` by default.
    #[serde(default, deserialize_with = "optional_count")]
    #[schema(minimum = 0, maximum = 9007199254740991_i64)]
    query_len: Option<u64>,
    /// Makes a repetition harmless: a failure is stored once for each id. Best a UUIDv7.
    #[serde(default)]
    event_id: Option<Uuid>,
    /// The conversation; its first 128 characters are kept.
    #[serde(default)]
    #[schema(schema_with = conversation_schema)]
    conversation_id: Option<ConversationKey>,
    /// Turn within the conversation.
    #[serde(default, deserialize_with = "integer")]
    #[schema(minimum = -9007199254740991_i64, maximum = 9007199254740991_i64)]
    turn_index: i64,
    /// Best score that was found.
    #[serde(default, deserialize_with = "score")]
    #[schema(minimum = -3.4e38, maximum = 3.4e38)]
    top_score: Option<f32>,
    /// Score below which a result does not count.
    #[serde(default, deserialize_with = "score")]
    #[schema(minimum = -3.4e38, maximum = 3.4e38)]
    confidence_threshold: Option<f32>,
    /// Number of results.
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 0, maximum = 9007199254740991_i64)]
    result_count: u64,
    /// How long it took, in milliseconds.
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 0, maximum = 9007199254740991_i64)]
    latency_ms: u64,
    /// The graph edge types that were followed.
    #[serde(default)]
    edge_types: Option<Vec<String>>,
    /// What the backend said; its first 256 characters are kept.
    #[serde(default)]
    error_context: Option<String>,
    /// When it failed, in RFC 3339; now by default.
    #[serde(default, deserialize_with = "moment")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<SystemTime>,
}

/// Text, or a number that stands for itself.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ConversationKey {
    Number(serde_json::Number),
    Text(String),
}

impl ConversationKey {
    pub(super) fn id(&self) -> ConversationId {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

pub(super) fn conversation_schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    use utoipa::openapi::{ObjectBuilder, OneOfBuilder, Type};
    let of = |of| ObjectBuilder::new().schema_type(of);
    OneOfBuilder::new()
        .item(of(Type::String))
        .item(of(Type::Number))
        .item(of(Type::Null))
        .description(Some("The conversation; its first 128 characters are kept."))
        .into()
}

/// One failure, or a list. The elements of a list are looked at one by one: a bad one is reported,
/// and does not spoil the others.
#[derive(ToSchema)]
#[schema(as = FailureOrList)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
pub(super) enum FailureOrList {
    One(NewFailure),
    List(Vec<serde_json::Value>),
}

/// What became of the records of a request.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// Records that were taken; they are written within a fraction of a second.
    pub(super) accepted: u64,
    /// Records that were not, because there is something wrong with them.
    pub(super) rejected: u64,
    /// Why, for the first hundred of them.
    pub(super) errors: Vec<LineError>,
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
    ))]
pub(super) async fn failures(api: Data<Api>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
    take::<NewFailure>(&api, &request, body).await
}

/// Something that comes in.
pub(super) trait Incoming: DeserializeOwned {
    /// Hands it over. `Err`: there is no room for it now, or it is too old.
    fn hand_over(&self, api: &Api) -> Result<(), DropReason>;

    /// Returns the reason for which the retention in force rejects it.
    fn too_old(&self, api: &Api) -> String;
}

impl Incoming for NewFailure {
    fn hand_over(&self, api: &Api) -> Result<(), DropReason> {
        let offered = self.offer(&api.logger);
        // One that is too old is counted as dropped.
        if matches!(offered, Ok(()) | Err(DropReason::TooOld)) {
            api.received.fetch_add(1, Ordering::Relaxed);
        }
        offered
    }

    fn too_old(&self, api: &Api) -> String {
        self.too_old(&api.logger)
    }
}

/// Returns the reason that a record dated `created_at` is too old.
pub(super) fn too_old(created_at: Option<SystemTime>, setting: &str, days: u32) -> String {
    let created_at = created_at.map_or(0, crate::clock::milliseconds_of);
    format!(
        "created_at = {}: older than {setting} = {days}; send a later date, or keep rows for longer",
        crate::report::rfc3339(created_at)
    )
}

impl NewFailure {
    /// Returns the reason for which the retention in force rejects it.
    pub(crate) fn too_old(&self, logger: &LoggerHandle) -> String {
        too_old(self.created_at, "retention_days", logger.shared().retention.days().failures)
    }

    /// Logs it as it was sent: at its moment, and once if it has an id. One that is not taken is not counted, because
    /// its sender retries it.
    pub(crate) fn offer(&self, logger: &LoggerHandle) -> Result<(), DropReason> {
        logger.offer(self.record(), self.created_at, self.event_id)
    }

    fn record(&self) -> RetrievalFailureRecord {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        RetrievalFailureRecord {
            conversation_id: self.conversation_id.as_ref().map(ConversationKey::id),
            turn_index: self.turn_index,
            query_len: self.query_len.map_or(self.query_text.len(), size),
            top_score: self.top_score,
            confidence_threshold: self.confidence_threshold,
            result_count: size(self.result_count),
            latency_ms: self.latency_ms,
            edge_types: self.edge_types.as_ref().and_then(|types| serde_json::to_string(types).ok()).map(Into::into),
            error_context: self.error_context.as_deref().map(Into::into),
            ..RetrievalFailureRecord::new(self.failure_type, self.retrieval_strategy.as_str(), &self.query_text)
        }
    }
}

/// Takes all records of a request's body.
pub(super) async fn take<T: Incoming>(
    api: &Api,
    request: &HttpRequest,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    plain(request)?;
    let mut accepted = Accepted::default();
    let taken = match media_type(request).as_str() {
        "application/json" => take_json::<T>(api, body, &mut accepted).await,
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
            take_lines::<T>(api, body, &mut accepted).await
        }
        _ => {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Type: expected application/json, or application/x-ndjson for JSON lines",
            ));
        }
    };
    match taken {
        Ok(()) => Ok(HttpResponse::Accepted().json(accepted)),
        Err(problem) if accepted.line > 0 || problem.is_temporary() => Err(problem.after(accepted)),
        Err(problem) => Err(problem),
    }
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

async fn take_json<T: Incoming>(api: &Api, body: Payload, accepted: &mut Accepted) -> Result<(), Problem> {
    let more = "send JSON lines instead (application/x-ndjson)";
    let (json, _held) = whole_body(api, body, api.options.max_json_bytes, more).await?;
    let begins = json.trim_ascii_start().first().copied();
    if begins != Some(b'[') {
        let one: T = serde_json::from_slice(&json).map_err(|error| Problem::bad_request(error.to_string()))?;
        return match hand_over(api, &one).await? {
            None => {
                accepted.accepted += 1;
                Ok(())
            }
            Some(reason) => Err(Problem::bad_request(reason)),
        };
    }
    // Element by element, for a bad one must not spoil the others.
    let list: Vec<&RawValue> =
        serde_json::from_slice(&json).map_err(|error| Problem::bad_request(error.to_string()))?;
    for (element, line) in list.into_iter().zip(1..) {
        accepted.take::<T>(api, element.get().as_bytes(), line).await?;
    }
    Ok(())
}

async fn take_lines<T: Incoming>(api: &Api, mut body: Payload, accepted: &mut Accepted) -> Result<(), Problem> {
    let (max_line, max_body) = (api.options.max_line_bytes, api.options.max_stream_bytes);
    let mut begun = BytesMut::new();
    // Of a line that is too long, the rest is skipped.
    let mut skipping = false;
    let (mut line, mut bytes) = (0, 0);
    loop {
        let piece = next_piece(api, &mut body).await?;
        let end = piece.is_none();
        let mut piece = piece.unwrap_or_default();
        bytes += piece.len();
        if bytes > max_body {
            let detail = format!("a body of JSON lines has {max_body} bytes at most; send the rest by itself");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        loop {
            let found = piece.iter().position(|byte| *byte == b'\n');
            let part = piece.split_to(found.unwrap_or(piece.len()));
            if begun.len() + part.len() > max_line && !skipping {
                skipping = true;
                accepted.reject(line + 1, format!("a line has {max_line} bytes at most"));
            }
            if found.is_none() && !end {
                if !skipping {
                    begun.extend_from_slice(&part);
                }
                break;
            }
            line += 1;
            if !std::mem::take(&mut skipping) {
                if begun.is_empty() {
                    accepted.take::<T>(api, &part, line).await?;
                } else {
                    begun.extend_from_slice(&part);
                    accepted.take::<T>(api, &begun, line).await?;
                }
            }
            accepted.line = line;
            begun.clear();
            if found.is_none() {
                return Ok(());
            }
            // The line feed.
            let _ = piece.split_to(1);
        }
    }
}

impl Accepted {
    /// Takes one line or element; an empty one is none.
    async fn take<T: Incoming>(&mut self, api: &Api, json: &[u8], line: u64) -> Result<(), Problem> {
        let json = json.trim_ascii();
        match json.first() {
            None => {}
            // serde would take a list of values for a record.
            Some(b'[') => self.reject(line, "expected an object".into()),
            Some(_) => match serde_json::from_slice::<T>(json) {
                Ok(incoming) => match hand_over(api, &incoming).await? {
                    None => self.accepted += 1,
                    Some(reason) => self.reject(line, reason),
                },
                Err(error) => self.reject(line, error.to_string()),
            },
        }
        self.line = line;
        Ok(())
    }

    fn reject(&mut self, line: u64, reason: String) {
        self.rejected += 1;
        if self.errors.len() < MAX_REASONS {
            self.errors.push(LineError { line, reason: shortened(reason) });
        }
    }
}

/// Hands a record over, and waits a little if there is no room: that slows the sender down. Returns why the record is
/// rejected, if it is.
async fn hand_over<T: Incoming>(api: &Api, incoming: &T) -> Result<Option<String>, Problem> {
    let mut waited = Duration::ZERO;
    while !api.logger.has_room() && waited < PATIENCE && !api.options.is_ending() {
        actix_rt::time::sleep(LOOK_AGAIN).await;
        waited += LOOK_AGAIN;
    }
    let full = (!api.logger.has_room()).then_some(DropReason::BufferFull);
    let turned_away = api.logger.shared().closed_door().or(full);
    match turned_away.map_or_else(|| incoming.hand_over(api), Err) {
        Ok(()) => Ok(None),
        // The same at any later time.
        Err(DropReason::TooOld) => Ok(Some(incoming.too_old(api))),
        Err(DropReason::BufferFull) => Err(Problem::unavailable("the buffer is full; send the rest later")),
        Err(reason) => Err(Problem::unavailable(format!("nothing is taken now ({reason}); send the rest later"))),
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

/// A whole number that every JSON reader understands; `1.0` is one.
fn whole(number: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53")]
    (number.fract() == 0.0 && number.abs() <= MAX_NUMBER).then_some(number as i64)
}

pub(super) fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(D::Error::custom("expected a name, at least one character")) } else { Ok(text) }
}

pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = whole(f64::deserialize(deserializer)?).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| D::Error::custom("expected a whole number, 0 to 2^53 - 1"))
}

fn optional_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let number = Option::<f64>::deserialize(deserializer)?;
    number.map(|number| whole(number).and_then(|number| u64::try_from(number).ok())).map_or(Ok(None), |number| {
        number.map(Some).ok_or_else(|| D::Error::custom("expected a whole number, 0 to 2^53 - 1"))
    })
}

pub(super) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    whole(f64::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("expected a whole number, at most 2^53 - 1"))
}

pub(super) fn score<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    match Option::<f64>::deserialize(deserializer)? {
        Some(score) if score.abs() > 3.4e38 => Err(D::Error::custom("expected a score within ±3.4e38")),
        #[expect(clippy::cast_possible_truncation, reason = "scores are kept as f32, and this one fits")]
        score => Ok(score.map(|score| score as f32)),
    }
}

pub(super) fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    super::questions::parse_moment(&text).map(Some).map_err(D::Error::custom)
}
