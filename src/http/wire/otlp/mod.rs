//! Retrievals in the traces of OpenTelemetry (OTLP), in protobuf and JSON.
//!
//! A body is read span by span. [`dialect`] decides which spans are retrievals; all others are
//! skipped by their length. Of a retrieval, only what a record has is kept.

mod dialect;
pub(crate) mod protobuf;
mod span;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::web::BytesMut;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

pub(crate) use self::dialect::Role;
use self::dialect::Scan;
use self::protobuf::{Field, Fields, Malformed, Message};
use self::span::{Attributes, JsonAttribute, Span};
use crate::http::trace_rules::{Judgement, TraceRule, TraceRuling};
use crate::http::wire::{Latency, Sent, SentKind};
use crate::model::outcome::OutcomeKind;
use crate::model::record::BoundedQuery;
use crate::model::source::Labels;
use crate::rollup::ScoreDirection;

/// Maximum size of one span in bytes. A larger one is skipped and rejected, so that the reader holds
/// no more than this of a body.
pub(crate) const MAX_SPAN_BYTES: usize = 4 << 20;
/// Maximum length of other texts in characters.
const MAX_TEXT_CHARS: usize = 256;
/// Source of spans whose resource has no `service.name`, by the semantic conventions.
const UNKNOWN_SOURCE: &str = "unknown_service";

/// Attempt at a retrieval, from one span.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Retrieval {
    pub(crate) id: SpanId,
    /// Id of the parent span, which is of the same trace.
    pub(crate) parent: Option<SpanId>,
    pub(crate) role: Role,
    /// Unix nanoseconds.
    pub(crate) started_at: u64,
    /// Unix nanoseconds.
    pub(crate) ended_at: u64,
    /// `service.name` of the resource.
    pub(crate) source: Arc<str>,
    strategy: String,
    query: Option<String>,
    /// Length of the whole query in bytes.
    query_len: usize,
    conversation: Option<String>,
    count: Option<u64>,
    score: Option<f32>,
    direction: ScoreDirection,
    fault: Option<Fault>,
}

/// Identity of a span: the ids of its trace and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SpanId {
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
}

/// Reason why a retrieval has no result.
#[derive(Debug, Clone, PartialEq)]
struct Fault {
    kind: OutcomeKind,
    text: String,
}

/// Reason why the span of a retrieval is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanFault {
    MissingId,
    MissingEnd,
    TooLong,
    /// The span is no valid JSON, or has a field of another type.
    NotJson,
}

impl SpanFault {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::MissingId => {
                "a retrieval has no trace id or span id: expected 16 and 8 bytes, without which a \
                 repeated export would count twice"
            }
            Self::MissingEnd => "a retrieval has no end_time_unix_nano: expected Unix nanoseconds",
            Self::TooLong => "a span is larger than 4 MiB: reduce what its attributes capture",
            Self::NotJson => "a span is no valid OTLP/JSON",
        }
    }
}

impl Retrieval {
    fn from_span(
        scan: &Scan<'_>,
        span: &Span<'_>,
        source: &Arc<str>,
    ) -> Option<Result<Self, SpanFault>> {
        let dialect = scan.dialect()?;
        let (Some(trace), Some(id)) = (span.trace_id, span.span_id) else {
            return Some(Err(SpanFault::MissingId));
        };
        if span.ended_at == 0 {
            return Some(Err(SpanFault::MissingEnd));
        }
        let found = dialect.found(span);
        let query = dialect.query(&span.attributes);
        Some(Ok(Self {
            id: SpanId { trace, span: id },
            parent: span.parent_id.map(|span| SpanId { trace, span }),
            role: dialect.role,
            started_at: span.started_at,
            ended_at: span.ended_at,
            source: Arc::clone(source),
            strategy: cut(dialect.strategy(span), MAX_TEXT_CHARS).to_owned(),
            query_len: query.as_ref().map_or(0, String::len),
            query: query.map(|query| cut(&query, BoundedQuery::MAX_CHARACTERS).to_owned()),
            conversation: dialect
                .conversation(&span.attributes)
                .map(|conversation| cut(conversation, MAX_TEXT_CHARS).to_owned()),
            count: found.count,
            score: found.score,
            direction: found.direction,
            fault: Fault::of_span(span),
        }))
    }

    /// Returns the effect of the rules on this retrieval.
    pub(crate) fn ruling(&self, rules: &[TraceRule]) -> TraceRuling {
        TraceRule::ruling(rules, &self.source, &self.strategy)
    }

    /// Returns `true` if the span is no evidence of an outcome.
    pub(crate) fn is_unknown(&self) -> bool {
        self.outcome(Judgement::default()) == OutcomeKind::Unknown
    }

    /// Takes what a part of this retrieval says: a nested retriever or a reranker.
    pub(crate) fn join(&mut self, part: &Self) {
        match part.role {
            Role::Retriever => self.absorb(part),
            Role::Reranker => self.rerank(part),
        }
    }

    /// Takes from a nested retrieval what this one lacks. The outer span's own values win, because
    /// they are what the application saw.
    fn absorb(&mut self, inner: &Self) {
        self.query_len = match self.query {
            Some(_) => self.query_len,
            None => inner.query_len,
        };
        self.query = self.query.take().or_else(|| inner.query.clone());
        self.conversation = self
            .conversation
            .take()
            .or_else(|| inner.conversation.clone());
        // A count of the outer span that is 0 means that the results of the inner one were
        // discarded, and with them their scores.
        if self.score.is_none() && self.count != Some(0) {
            (self.score, self.direction) = (inner.score, inner.direction);
        }
        self.count = self.count.or(inner.count);
    }

    /// Takes the score and the number of results of a reranker, which the application saw last.
    fn rerank(&mut self, reranker: &Self) {
        if reranker.score.is_some() {
            (self.score, self.direction) = (reranker.score, reranker.direction);
        }
        self.count = reranker.count.or(self.count);
    }

    /// Returns the outcome, as far as the span is evidence of one. Absent documents are none: many
    /// instrumentations leave them out.
    pub(crate) fn outcome(&self, judgement: Judgement) -> OutcomeKind {
        if let Some(fault) = &self.fault {
            return fault.kind;
        }
        let direction = judgement.direction.unwrap_or(self.direction);
        match (self.count, self.score, judgement.threshold) {
            (Some(0), _, _) => OutcomeKind::NoHit,
            (_, Some(score), Some(threshold)) if direction.misses(score, threshold) => {
                OutcomeKind::LowConfidence
            }
            (Some(_), _, _) | (None, Some(_), _) => OutcomeKind::Success,
            (None, None, _) => OutcomeKind::Unknown,
        }
    }

    /// Returns the retrieval as a record that the routes for records submit.
    pub(crate) fn into_sent(
        self,
        TraceRuling {
            name, judgement, ..
        }: TraceRuling,
    ) -> Sent {
        let kind = self.outcome(judgement);
        let milliseconds = self.ended_at.checked_sub(self.started_at);
        let latency = milliseconds
            .filter(|_| self.started_at > 0)
            .map(|nanoseconds| Latency {
                milliseconds: nanoseconds as f64 / 1e6,
                whole: nanoseconds.saturating_add(500_000) / 1_000_000,
            });
        Sent {
            kind: SentKind::Attempt(kind),
            event_id: Some(self.event_id()),
            strategy: name.unwrap_or(self.strategy),
            query_text: self.query.unwrap_or_default(),
            query_len: Some(self.query_len as u64),
            conversation_id: self.conversation,
            turn_index: None,
            top_score: self.score,
            confidence_threshold: judgement.threshold,
            score_direction: Some(judgement.direction.unwrap_or(self.direction)),
            result_count: self.count,
            latency,
            edge_types: None,
            error_context: self.fault.map(|fault| fault.text),
            created_at: Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(self.ended_at)),
            source: (&*self.source != UNKNOWN_SOURCE).then(|| self.source.as_ref().to_owned()),
            labels: Labels::default(),
            had_nil_id: false,
            unknown: Vec::new(),
        }
    }

    /// Returns the id of the record: a UUID of version 8 with the layout of version 7. The time is
    /// the end of the span, and the rest is a hash of its identity, so that a repeated export has
    /// the same id and the unique index grows at its right edge.
    pub(crate) fn event_id(&self) -> Uuid {
        let SpanId { trace, span } = self.id;
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, &[&trace[..], &span[..]].concat());
        let milliseconds = (self.ended_at / 1_000_000).to_be_bytes();
        let mut bytes = hash.into_bytes();
        // 48 bits of time, as in RFC 9562, 5.7.
        for (byte, time) in bytes.iter_mut().zip(&milliseconds[2..]) {
            *byte = *time;
        }
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

impl Fault {
    /// Returns the fault of a span with an error. Otherwise `None`.
    fn of_span(span: &Span<'_>) -> Option<Self> {
        let exception = span
            .events
            .iter()
            .rev()
            .find(|event| event.name == "exception");
        let type_of_exception = exception.and_then(|event| event.attributes.text("exception.type"));
        let error_type = span.attributes.text("error.type");
        if !span.has_error && error_type.is_none() {
            // An exception that was handled is no fault.
            return None;
        }
        let message = exception
            .and_then(|event| event.attributes.text("exception.message"))
            .unwrap_or(&span.status_message);
        let types = [type_of_exception, error_type].into_iter().flatten();
        let kind = types
            .filter_map(|name| kind_of_error(name, &["timeout", "deadline"]))
            .next()
            // Words of a message are weaker: "timeout must be positive" is none.
            .or_else(|| kind_of_error(message, &["timed out", "deadline exceeded"]));
        let name = type_of_exception.or(error_type);
        let text = match name {
            Some(name) if message.is_empty() => name.to_owned(),
            Some(name) if !message.starts_with(name) => format!("{name}: {message}"),
            Some(_) | None => message.to_owned(),
        };
        Some(Self {
            kind: kind.unwrap_or(OutcomeKind::Error),
            text: cut(&text, MAX_TEXT_CHARS).to_owned(),
        })
    }
}

/// Returns the outcome that the name or the message of an error says. `None`: an error of another
/// kind.
fn kind_of_error(text: &str, timeouts: &[&str]) -> Option<OutcomeKind> {
    // The beginning of a message is enough, and bounds the work.
    let text = cut(text, MAX_TEXT_CHARS).to_ascii_lowercase();
    let contains = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if contains(timeouts) {
        return Some(OutcomeKind::Timeout);
    }
    contains(&["cancelled", "canceled"]).then_some(OutcomeKind::Cancelled)
}

/// Returns the first characters of a text.
fn cut(text: &str, characters: usize) -> &str {
    match text.char_indices().nth(characters) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Result of one step of a reader.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Retrieval(Box<Retrieval>),
    /// The span of a retrieval cannot be used.
    Rejected(SpanFault),
    /// More bytes are needed.
    End,
}

/// Reader of a protobuf body as it arrives. It holds one span at most, whatever the size of the
/// body.
pub(crate) struct ProtobufReader {
    buffer: BytesMut,
    /// Bytes of a field that is skipped, and that have not arrived yet.
    to_skip: usize,
    /// Remaining bytes of the messages that are open, the outermost first.
    open: [usize; 2],
    depth: usize,
    source: Arc<str>,
    /// Number of spans so far, whatever they are.
    spans: u64,
}

/// Level of a message: the request, a `ResourceSpans`, a `ScopeSpans`.
const SCOPE_SPANS: usize = 2;

impl ProtobufReader {
    pub(crate) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            to_skip: 0,
            open: [0; 2],
            depth: 0,
            source: UNKNOWN_SOURCE.into(),
            spans: 0,
        }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        let skipped = self.to_skip.min(chunk.len());
        self.to_skip -= skipped;
        let (_, chunk) = chunk.split_at(skipped);
        self.buffer.extend_from_slice(chunk);
    }

    pub(crate) fn spans(&self) -> u64 {
        self.spans
    }

    /// Returns an error if the body ended within a field.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        self.close();
        if self.buffer.is_empty() && self.to_skip == 0 && self.depth == 0 {
            Ok(())
        } else {
            Err(Malformed::Truncated)
        }
    }

    /// Reads up to the next retrieval.
    pub(crate) fn next(&mut self) -> Result<Step, Malformed> {
        loop {
            self.close();
            let Some(header) = Header::read(&self.buffer, self.room())? else {
                return Ok(Step::End);
            };
            match (self.depth, header.number, header.length) {
                (0 | 1, number, Some(length)) if number == self.depth + 1 => {
                    // `ResourceSpans` is field 1 of the request, `ScopeSpans` field 2 of those.
                    self.consume(header.size);
                    self.spend(header.size + length);
                    if self.depth == 0 {
                        self.source = UNKNOWN_SOURCE.into();
                    }
                    if let Some(room) = self.open.get_mut(self.depth) {
                        *room = length;
                    }
                    self.depth += 1;
                }
                (1, 1, Some(length)) | (SCOPE_SPANS, 2, Some(length)) => {
                    let total = header.size + length;
                    let is_span = self.depth == SCOPE_SPANS;
                    if length > MAX_SPAN_BYTES {
                        self.spans += u64::from(is_span);
                        self.skip(total);
                        return Ok(Step::Rejected(SpanFault::TooLong));
                    }
                    if self.buffer.len() < total {
                        return Ok(Step::End);
                    }
                    self.consume(header.size);
                    let message = &self.buffer.split_to(length)[..];
                    self.spend(total);
                    if !is_span {
                        self.source = source_from_protobuf(message)?;
                        continue;
                    }
                    self.spans += 1;
                    match retrieval_from_protobuf(message, &self.source)? {
                        Some(Ok(retrieval)) => return Ok(Step::Retrieval(Box::new(retrieval))),
                        Some(Err(fault)) => return Ok(Step::Rejected(fault)),
                        None => {}
                    }
                }
                (0, 1, None) | (1, 1 | 2, None) | (SCOPE_SPANS, 2, None) => {
                    return Err(Malformed::UnexpectedWireType);
                }
                (_, _, length) => self.skip(header.size + length.unwrap_or(0)),
            }
        }
    }

    /// Returns the number of bytes that the innermost open message has left.
    fn room(&self) -> usize {
        match self.depth.checked_sub(1) {
            Some(innermost) => self.open.get(innermost).copied().unwrap_or(0),
            None => usize::MAX,
        }
    }

    /// Closes the messages that have ended.
    fn close(&mut self) {
        while self.depth > 0 && self.room() == 0 {
            self.depth -= 1;
        }
    }

    fn consume(&mut self, bytes: usize) {
        let _ = self.buffer.split_to(bytes);
    }

    /// Subtracts a field from the innermost open message.
    fn spend(&mut self, bytes: usize) {
        if let Some(room) = self
            .depth
            .checked_sub(1)
            .and_then(|at| self.open.get_mut(at))
        {
            *room -= bytes;
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.spend(bytes);
        let here = bytes.min(self.buffer.len());
        self.consume(here);
        self.to_skip = bytes - here;
    }
}

/// Beginning of a field at the upper levels of a request.
struct Header {
    number: usize,
    /// Bytes of the key, and of the length or of the value.
    size: usize,
    /// Length of a value of bytes. `None` for numbers.
    length: Option<usize>,
}

impl Header {
    /// Returns `None` if more bytes are needed. `room` is what the enclosing message has left.
    fn read(buffer: &[u8], room: usize) -> Result<Option<Self>, Malformed> {
        // The longest header: a key and a number of ten bytes each.
        let (window, _) = buffer.split_at(buffer.len().min(room).min(20));
        let is_whole = window.len() == 20 || window.len() == room;
        match protobuf::header(window) {
            Ok((number, size, length)) => {
                let fits = size
                    .checked_add(length.unwrap_or(0))
                    .is_some_and(|total| total <= room);
                if fits {
                    Ok(Some(Self {
                        number,
                        size,
                        length,
                    }))
                } else {
                    Err(Malformed::Truncated)
                }
            }
            Err(Malformed::Truncated) if !is_whole || buffer.is_empty() => Ok(None),
            Err(malformed) => Err(malformed),
        }
    }
}

fn source_from_protobuf(resource: &[u8]) -> Result<Arc<str>, Malformed> {
    let mut attributes = Attributes::default();
    for field in Fields::new(resource) {
        if let (1, attribute) = field? {
            span::attribute_from_protobuf(attribute.bytes()?, &mut attributes)?;
        }
    }
    Ok(source(&attributes))
}

fn source(attributes: &Attributes<'_>) -> Arc<str> {
    let name = attributes.text("service.name").unwrap_or(UNKNOWN_SOURCE);
    cut(name, MAX_TEXT_CHARS).into()
}

/// Reads a span if it is a retrieval. Allocates nothing for other spans.
fn retrieval_from_protobuf(
    message: &[u8],
    source: &Arc<str>,
) -> Result<Option<Result<Retrieval, SpanFault>>, Malformed> {
    let mut scan = Scan::default();
    for field in Fields::new(message) {
        match field? {
            (5, Field::Bytes(name)) => scan.set_name(name),
            (9, Field::Bytes(attribute)) => {
                let (key, value) = span::key_and_value(attribute)?;
                if Scan::needs(key)
                    && let Some(text) = value.map(span::text_of_value).transpose()?.flatten()
                {
                    scan.set(key, text);
                }
            }
            _ => {}
        }
    }
    if scan.dialect().is_none() {
        return Ok(None);
    }
    Ok(Retrieval::from_span(
        &scan,
        &span::from_protobuf(message)?,
        source,
    ))
}

/// Spans of a JSON body.
#[derive(Debug, Default)]
pub(crate) struct JsonRequest {
    /// Retrievals and the faults of those that cannot be used, in their order.
    pub(crate) steps: Vec<Result<Retrieval, SpanFault>>,
    /// Number of spans, whatever they are.
    pub(crate) spans: u64,
}

impl JsonRequest {
    /// Reads a body. The spans are visited one after the other, and none is kept that is no
    /// retrieval.
    pub(crate) fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let mut request = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Object {
            name: "resourceSpans",
            each: |resource: &RawValue| request.read_resource(resource),
        }
        .deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(request)
    }

    fn read_resource(&mut self, json: &RawValue) -> Result<(), serde_json::Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ResourceSpans<'a> {
            #[serde(borrow, default)]
            resource: Option<Resource<'a>>,
        }

        #[derive(serde::Deserialize)]
        struct Resource<'a> {
            #[serde(borrow, default)]
            attributes: Option<Vec<JsonAttribute<'a>>>,
        }

        let ResourceSpans { resource } = serde_json::from_str(json.get())?;
        let attributes = resource.and_then(|resource| resource.attributes);
        let source = source(&span::attributes_from_json(attributes.unwrap_or_default()));
        in_list(json.get(), "scopeSpans", |scope| {
            in_list(scope.get(), "spans", |span| {
                self.read_span(span, &source);
                Ok(())
            })
        })
    }

    fn read_span(&mut self, json: &RawValue, source: &Arc<str>) {
        self.spans += 1;
        let Ok(span) = span::from_json(json.get()) else {
            self.steps.push(Err(SpanFault::NotJson));
            return;
        };
        let mut scan = Scan::default();
        scan.set_name(span.name.as_bytes());
        for (key, value) in &span.attributes.0 {
            if Scan::needs(key.as_bytes())
                && let Some(text) = value.text()
            {
                scan.set(key.as_bytes(), text.as_bytes());
            }
        }
        let retrieval = match json.get().len() {
            0..=MAX_SPAN_BYTES => Retrieval::from_span(&scan, &span, source),
            _ => scan.dialect().map(|_| Err(SpanFault::TooLong)),
        };
        self.steps.extend(retrieval);
    }
}

/// Calls `each` with the elements of a list in a JSON object.
fn in_list(
    json: &str,
    name: &'static str,
    each: impl FnMut(&RawValue) -> Result<(), serde_json::Error>,
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    Object { name, each }.deserialize(&mut deserializer)
}

/// Visitor of an object that calls `each` with the elements of one of its lists. All other members
/// are ignored.
struct Object<F> {
    name: &'static str,
    each: F,
}

impl<'de, F> DeserializeSeed<'de> for Object<F>
where
    F: FnMut(&'de RawValue) -> Result<(), serde_json::Error>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F> Visitor<'de> for Object<F>
where
    F: FnMut(&'de RawValue) -> Result<(), serde_json::Error>,
{
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an object with the list `{}`", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if name == self.name {
                map.next_value_seed(List(&mut self.each))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Visitor of a list, or of `null`, which is an empty one.
struct List<'f, F>(&'f mut F);

impl<'de, F> DeserializeSeed<'de> for List<'_, F>
where
    F: FnMut(&'de RawValue) -> Result<(), serde_json::Error>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F> Visitor<'de> for List<'_, F>
where
    F: FnMut(&'de RawValue) -> Result<(), serde_json::Error>,
{
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element::<&RawValue>()? {
            (self.0)(element).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }
}

/// Response to an export: the number of spans that are rejected, with a message. Without rejected
/// spans, the message is a warning, and the client must not retry in either case.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct PartialSuccess {
    pub(crate) rejected: u64,
    pub(crate) message: String,
}

impl PartialSuccess {
    /// Encodes an `ExportTraceServiceResponse`.
    pub(crate) fn to_protobuf(&self) -> Vec<u8> {
        if *self == Self::default() {
            return Vec::new();
        }
        let mut partial = Message::default().varint(1, self.rejected);
        if !self.message.is_empty() {
            partial = partial.bytes(2, self.message.as_bytes());
        }
        Message::default()
            .bytes(1, &partial.into_bytes())
            .into_bytes()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        if *self == Self::default() {
            return serde_json::json!({});
        }
        // 64-bit numbers are text in protobuf's JSON.
        serde_json::json!({"partialSuccess": {
            "rejectedSpans": self.rejected.to_string(),
            "errorMessage": self.message,
        }})
    }
}

/// Encodes a `google.rpc.Status`.
pub(crate) fn status_to_protobuf(code: u8, message: &str) -> Vec<u8> {
    Message::default()
        .varint(1, u64::from(code))
        .bytes(2, message.as_bytes())
        .into_bytes()
}
