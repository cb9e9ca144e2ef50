//! Failures and attempts in the form that clients send. The parser is lenient: it accepts every
//! value with one clear meaning. A rejection names the field, its value and the accepted values.
//! docs/api.md lists all cases.

#[cfg(feature = "program")]
pub mod counts;
pub mod lines;
mod moment;
pub(crate) mod otlp;
mod repair;
pub mod schema;
#[cfg(feature = "program")]
mod ubi;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::handle::LoggerHandle;
use crate::model::entry::{Origin, Unmeasured};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::record::RetrievalFailureRecord;
use crate::model::source::Labels;
use crate::model::stats::DropReason;
use crate::model::time::Timestamp;
use crate::monitor::Outcome;
use crate::rollup::ScoreDirection;
pub(crate) use repair::repaired;
use value::Value;

/// Maximum number of names of unknown fields that are kept from one record.
const MAX_UNKNOWN_NAMES: usize = 8;
/// Maximum length of a name or value that a message repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// Failure or attempt that a client sent.
#[derive(Debug)]
pub struct Sent {
    kind: SentKind,
    strategy: String,
    query_text: String,
    query_len: Option<u64>,
    pub event_id: Option<Uuid>,
    conversation_id: Option<String>,
    turn_index: Option<i64>,
    top_score: Option<f32>,
    confidence_threshold: Option<f32>,
    score_direction: Option<ScoreDirection>,
    result_count: Option<u64>,
    latency: Option<Latency>,
    edge_types: Option<String>,
    error_context: Option<String>,
    created_at: Option<SystemTime>,
    source: Option<String>,
    labels: Labels,
    /// `true` if the `event_id` was the nil UUID. It is ignored, because it identifies nothing.
    pub had_nil_id: bool,
    /// Names of the first unknown fields, which were ignored.
    pub unknown: Vec<String>,
}

/// Kind of a record, from its `failure_type` or `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentKind {
    /// Failure that no monitor counted.
    Failure(RetrievalFailureType),
    /// Attempt, which is counted. It is also logged if it failed.
    Attempt(OutcomeKind),
}

/// Latency of a retrieval.
#[derive(Debug, Clone, Copy)]
struct Latency {
    milliseconds: f64,
    /// Whole milliseconds, which the log stores.
    whole: u64,
}

/// Reason why a record is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// The record is no complete JSON object.
    NotJson,
    /// A required field is missing.
    MissingField,
    /// A field has an invalid value.
    InvalidValue,
    /// A field is unknown, and the settings reject unknown fields.
    UnknownField,
    /// The `event_id` was received before with different content.
    EventIdReused,
    /// The line is too long.
    TooLong,
    /// The record is older than the retention.
    TooOld,
}

impl RejectReason {
    pub const ALL: [Self; 7] = [
        Self::NotJson,
        Self::MissingField,
        Self::InvalidValue,
        Self::UnknownField,
        Self::EventIdReused,
        Self::TooLong,
        Self::TooOld,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::MissingField => "missing_field",
            Self::InvalidValue => "invalid_value",
            Self::UnknownField => "unknown_field",
            Self::EventIdReused => "event_id_reused",
            Self::TooLong => "too_long",
            Self::TooOld => "too_old",
        }
    }
}

/// Rejection of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub reason: RejectReason,
    /// Field at fault. `None` if the record as a whole is at fault.
    pub field: Option<&'static str>,
    /// Message for the sender.
    pub text: String,
}

impl Rejected {
    pub fn new(reason: RejectReason, text: impl Into<String>) -> Self {
        Self {
            reason,
            field: None,
            text: text.into(),
        }
    }

    pub fn of_field(field: &'static str, reason: RejectReason, text: String) -> Self {
        Self {
            field: Some(field),
            ..Self::new(reason, text)
        }
    }

    fn invalid(field: &'static str, value: &Value<'_>, expected: &str) -> Self {
        Self::of_field(
            field,
            RejectReason::InvalidValue,
            format!("{field} = {value}: expected {expected}"),
        )
    }

    fn missing(field: &'static str, expected: &str) -> Self {
        Self::of_field(
            field,
            RejectReason::MissingField,
            format!("{field} is missing: expected {expected}"),
        )
    }
}

/// Lists the names of all types of failure in the form `a, b or c`.
fn failure_types() -> String {
    one_of(&RetrievalFailureType::ALL.map(RetrievalFailureType::as_str))
}

/// Lists the names of all outcomes in the form `a, b or c`.
fn outcomes() -> String {
    one_of(&OutcomeKind::ALL.map(OutcomeKind::as_str))
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [name] => (*name).to_owned(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

impl Sent {
    /// Parses a JSON object. `strict` rejects unknown fields.
    pub fn from_json(json: &[u8], strict: bool) -> Result<Self, Rejected> {
        with_fields(json, |fields| Self::from_fields(fields.iter(), strict))
    }

    /// Parses a record of CSV. `names` is the header. An empty cell is a missing field.
    #[cfg(feature = "program")]
    pub fn from_csv(
        names: &csv::StringRecord,
        cells: &csv::StringRecord,
        strict: bool,
    ) -> Result<Self, Rejected> {
        Self::from_fields(names.iter().zip(cells.iter().map(Value::cell)), strict)
    }

    fn from_fields<'a>(
        fields: impl Iterator<Item = (&'a str, Value<'a>)>,
        strict: bool,
    ) -> Result<Self, Rejected> {
        let mut draft = Draft::default();
        let mut unknown = Vec::new();
        for (name, value) in fields {
            if draft.set(name, value) {
                continue;
            }
            if strict {
                let text = format!(
                    "{} is an unknown field; docs/api.md lists all fields",
                    excerpt(name)
                );
                return Err(Rejected::new(RejectReason::UnknownField, text));
            }
            if unknown.len() < MAX_UNKNOWN_NAMES {
                unknown.push(excerpt(name));
            }
        }
        draft.finish(unknown)
    }

    /// Turns the record into a failure that no monitor counted.
    pub fn into_failure(self, failure: RetrievalFailureType) -> Self {
        Self {
            kind: SentKind::Failure(failure),
            ..self
        }
    }

    #[cfg(feature = "program")]
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created_at
    }

    #[cfg(test)]
    pub(crate) fn top_score(&self) -> Option<f32> {
        self.top_score
    }

    pub fn kind(&self) -> SentKind {
        self.kind
    }

    /// Logs or counts the record at its own time, and once for each `event_id`. A record that the
    /// logger does not accept counts as neither received nor dropped, because the client retries
    /// it.
    pub fn offer(&self, logger: &LoggerHandle) -> Result<(), DropReason> {
        match self.kind {
            SentKind::Failure(failure) => self.offer_failure(logger, failure, false),
            SentKind::Attempt(kind) => self.offer_attempt(logger, kind),
        }
    }

    fn record(&self, failure: RetrievalFailureType) -> RetrievalFailureRecord {
        RetrievalFailureRecord {
            conversation_id: self.conversation_id.as_deref().map(Into::into),
            turn_index: self.turn_index.unwrap_or_default(),
            query_len: self.query_len.map_or(self.query_text.len(), size),
            top_score: self.top_score,
            confidence_threshold: self.confidence_threshold,
            result_count: self.result_count.map_or(0, size),
            latency_ms: self.latency.map_or(0, |latency| latency.whole),
            edge_types: self.edge_types.as_deref().map(Into::into),
            error_context: self.error_context.as_deref().map(Into::into),
            source: self.source.as_deref().map(Into::into),
            labels: self.labels.clone(),
            ..RetrievalFailureRecord::new(failure, self.strategy.as_str(), &self.query_text)
        }
    }

    fn offer_attempt(&self, logger: &LoggerHandle, kind: OutcomeKind) -> Result<(), DropReason> {
        let mut monitor = logger.strategy(&self.strategy);
        if let Some(direction) = self.score_direction {
            monitor = monitor.score_direction(direction);
        }
        if let Some(threshold) = self.confidence_threshold {
            monitor = monitor.confidence_threshold(threshold);
        }
        if let Some(conversation) = self.conversation_id.as_deref() {
            monitor = monitor.conversation(conversation);
        }
        if let Some(turn) = self.turn_index {
            monitor = monitor.turn(turn);
        }
        if let Some(edge_types) = self.edge_types.as_deref() {
            monitor = monitor.edge_types(edge_types);
        }
        if self.source.is_some() || !self.labels.is_empty() {
            let source = self.source.as_deref().map(Into::into);
            monitor = monitor.sender(source, self.labels.clone());
        }
        let latency = self
            .latency
            .and_then(|latency| Duration::try_from_secs_f64(latency.milliseconds / 1e3).ok());
        let mut outcome = Outcome::of(kind, &self.query_text, latency);
        if let Some(results) = self.result_count {
            outcome = outcome.result_count(size(results));
        }
        if let Some(score) = self.top_score {
            outcome = outcome.top_score(score);
        }
        if let Some(error) = &self.error_context {
            outcome = outcome.error(error);
        }
        if let Some(at) = self.created_at {
            outcome = outcome.at(at);
        }
        if let Some(length) = self.query_len {
            outcome = outcome.query_len(size(length));
        }
        monitor.offer(outcome, self.event_id)
    }

    /// Logs a failure without counting an attempt, because an import counts attempts separately.
    /// Does nothing for an attempt that did not fail.
    #[cfg(feature = "program")]
    pub fn offer_uncounted(&self, logger: &LoggerHandle) -> Result<(), DropReason> {
        match self.kind {
            SentKind::Failure(failure) => self.offer_failure(logger, failure, true),
            SentKind::Attempt(kind) => match kind.failure() {
                Some(failure) => self.offer_failure(logger, failure, true),
                None => Ok(()),
            },
        }
    }

    fn offer_failure(
        &self,
        logger: &LoggerHandle,
        failure: RetrievalFailureType,
        is_observed: bool,
    ) -> Result<(), DropReason> {
        let unmeasured = Unmeasured {
            turn_index: self.turn_index.is_none(),
            result_count: self.result_count.is_none(),
            latency_ms: self.latency.is_none(),
        };
        let origin = Origin {
            is_observed,
            event_id: self.event_id,
            unmeasured,
        };
        logger.offer(self.record(failure), self.created_at, origin)
    }

    /// Returns the rejection of a record that is older than the current retention.
    pub fn too_old(&self, logger: &LoggerHandle) -> Rejected {
        let days = logger.shared().retention.days();
        let (setting, days) = match self.kind {
            SentKind::Failure(_) => ("retention_days", days.failures),
            SentKind::Attempt(_) => ("attempts_retention_days", days.attempts),
        };
        let created_at = self.created_at.map_or(Timestamp::EPOCH, Timestamp::from);
        let text = format!(
            "created_at = {created_at}: older than {setting} = {days}; send a later date, or increase {setting}"
        );
        Rejected::of_field("created_at", RejectReason::TooOld, text)
    }

    /// Returns `true` if the record is older than the current retention.
    pub fn is_too_old(&self, logger: &LoggerHandle) -> bool {
        let Some(created_at) = self.created_at else {
            return false;
        };
        let (now, retention) = (Timestamp::now(), &logger.shared().retention);
        let at = retention.dated(created_at.into(), now);
        let (failures, attempts) = retention.cutoffs(now);
        match self.kind {
            SentKind::Failure(_) => at < failures,
            SentKind::Attempt(_) => at < attempts,
        }
    }

    /// Returns a hash of the content, without the `event_id`. `created_at` is part of it only if
    /// the client sent it.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};

        let mut hasher = DefaultHasher::new();
        let scores =
            [self.top_score, self.confidence_threshold].map(|score| score.map(f32::to_bits));
        let kind = match self.kind {
            SentKind::Failure(failure) => (0, failure.as_str()),
            SentKind::Attempt(kind) => (1, kind.as_str()),
        };
        (
            kind,
            &self.strategy,
            &self.query_text,
            &self.conversation_id,
            self.turn_index,
            scores,
        )
            .hash(&mut hasher);
        let latency = self.latency.map(|latency| latency.milliseconds.to_bits());
        (
            self.result_count,
            &self.edge_types,
            &self.error_context,
            self.created_at,
            &self.source,
            &self.labels,
        )
            .hash(&mut hasher);
        (
            latency,
            self.query_len,
            self.score_direction.map(|direction| direction as u8),
        )
            .hash(&mut hasher);
        hasher.finish()
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Values of the known fields of a record, before they are parsed.
#[derive(Default)]
struct Draft<'a> {
    failure_type: Value<'a>,
    outcome: Value<'a>,
    retrieval_strategy: Value<'a>,
    strategy: Value<'a>,
    query_text: Value<'a>,
    query_len: Value<'a>,
    event_id: Value<'a>,
    conversation_id: Value<'a>,
    turn_index: Value<'a>,
    top_score: Value<'a>,
    confidence_threshold: Value<'a>,
    score_direction: Value<'a>,
    result_count: Value<'a>,
    latency_ms: Value<'a>,
    edge_types: Value<'a>,
    error_context: Value<'a>,
    created_at: Value<'a>,
    source: Value<'a>,
    labels: Value<'a>,
}

impl<'a> Draft<'a> {
    /// Sets a field. Returns `false` if no field has this name.
    fn set(&mut self, name: &str, value: Value<'a>) -> bool {
        let field = match name {
            "failure_type" => &mut self.failure_type,
            "outcome" => &mut self.outcome,
            "retrieval_strategy" => &mut self.retrieval_strategy,
            "strategy" => &mut self.strategy,
            "query_text" => &mut self.query_text,
            "query_len" => &mut self.query_len,
            "event_id" => &mut self.event_id,
            "conversation_id" => &mut self.conversation_id,
            "turn_index" => &mut self.turn_index,
            "top_score" => &mut self.top_score,
            "confidence_threshold" => &mut self.confidence_threshold,
            "score_direction" => &mut self.score_direction,
            "result_count" => &mut self.result_count,
            "latency_ms" => &mut self.latency_ms,
            "edge_types" => &mut self.edge_types,
            "error_context" => &mut self.error_context,
            "created_at" => &mut self.created_at,
            "source" => &mut self.source,
            "labels" => &mut self.labels,
            // Exports contain the row id of the table, which an import ignores.
            "id" => return true,
            _ => return false,
        };
        *field = value;
        true
    }

    fn finish(self, unknown: Vec<String>) -> Result<Sent, Rejected> {
        let (kind, score_direction) = (self.kind()?, self.score_direction()?);
        let strategy = match self
            .retrieval_strategy
            .or(self.strategy)
            .text("retrieval_strategy")?
        {
            Some(strategy) if !strategy.trim().is_empty() => strategy,
            _ => {
                return Err(Rejected::missing(
                    "retrieval_strategy",
                    "the name of the strategy",
                ));
            }
        };
        let query_text = match (self.query_text.text("query_text")?, kind) {
            (Some(query), _) => query,
            (None, SentKind::Attempt(_)) => String::new(),
            (None, SentKind::Failure(_)) => {
                return Err(Rejected::missing(
                    "query_text",
                    "the text that was searched for",
                ));
            }
        };
        let (event_id, had_nil_id) = match self.event_id.uuid("event_id")? {
            Some(id) if id.is_nil() => (None, true),
            id => (id, false),
        };
        Ok(Sent {
            kind,
            strategy,
            query_text,
            query_len: self.query_len.count("query_len")?,
            event_id,
            conversation_id: self.conversation_id.conversation("conversation_id")?,
            turn_index: self.turn_index.integer("turn_index")?,
            top_score: self.top_score.score("top_score")?,
            confidence_threshold: self.confidence_threshold.score("confidence_threshold")?,
            score_direction,
            result_count: self.result_count.count("result_count")?,
            latency: self.latency_ms.milliseconds("latency_ms")?,
            edge_types: self.edge_types.list("edge_types")?,
            error_context: self.error_context.text("error_context")?,
            created_at: self.created_at.moment("created_at")?,
            source: self.source.text("source")?,
            labels: self.labels.labels("labels")?,
            had_nil_id,
            unknown,
        })
    }

    /// Returns the kind of the record. An `outcome` takes precedence over a `failure_type`.
    fn kind(&self) -> Result<SentKind, Rejected> {
        if let Some(name) = self.outcome.name() {
            let kind = OutcomeKind::parse(&name)
                .ok_or_else(|| Rejected::invalid("outcome", &self.outcome, &outcomes()))?;
            return Ok(SentKind::Attempt(kind));
        }
        match self.failure_type.name() {
            Some(name) => RetrievalFailureType::parse(&name)
                .map(SentKind::Failure)
                .ok_or_else(|| {
                    Rejected::invalid("failure_type", &self.failure_type, &failure_types())
                }),
            None => {
                let expected = format!("{}; or outcome, {}", failure_types(), outcomes());
                Err(Rejected::missing("failure_type", &expected))
            }
        }
    }

    fn score_direction(&self) -> Result<Option<ScoreDirection>, Rejected> {
        let Some(name) = self.score_direction.name() else {
            return Ok(None);
        };
        match name.as_str() {
            "higher_is_better" => Ok(Some(ScoreDirection::HigherIsBetter)),
            "lower_is_better" => Ok(Some(ScoreDirection::LowerIsBetter)),
            _ => {
                let expected = "higher_is_better or lower_is_better";
                Err(Rejected::invalid(
                    "score_direction",
                    &self.score_direction,
                    expected,
                ))
            }
        }
    }
}

/// Calls `read` with the fields of a JSON object.
fn with_fields<T>(
    json: &[u8],
    read: impl FnOnce(&Fields<'_>) -> Result<T, Rejected>,
) -> Result<T, Rejected> {
    // Invalid UTF-8 becomes U+FFFD, as lone surrogates do in `repaired`.
    let json = String::from_utf8_lossy(json);
    let json = json.trim();
    if !json.starts_with('{') {
        let beginning = if json.is_empty() {
            "nothing".to_owned()
        } else {
            excerpt(json)
        };
        return Err(Rejected::new(
            RejectReason::NotJson,
            format!("{beginning}: expected a JSON object"),
        ));
    }
    match serde_json::from_str(json) {
        Ok(fields) => read(&fields),
        Err(_) => {
            let repaired = repaired(json);
            let fields = serde_json::from_str(&repaired).map_err(|error| {
                Rejected::new(
                    RejectReason::NotJson,
                    format!("this is no valid JSON object: {error}"),
                )
            })?;
            read(&fields)
        }
    }
}

/// Names and values of an object, in their order. If a name occurs twice, the last value counts.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Fields<'_> {
    fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.0.iter().map(|(name, raw)| (&**name, Value::json(raw)))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                #[derive(serde::Deserialize)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

                let mut fields = Vec::with_capacity(16);
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Returns the beginning of a text with its control characters escaped, so that it fits on one line
/// of a message.
pub fn excerpt(text: &str) -> String {
    let mut excerpt: String = text
        .chars()
        .take(MAX_SHOWN_CHARS)
        .flat_map(escaped)
        .collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        excerpt.push('…');
    }
    excerpt
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let (escape, plain) = match character.is_control() {
        true => (Some(character.escape_default()), None),
        false => (None, Some(character)),
    };
    escape.into_iter().flatten().chain(plain)
}
