//! A failure or an attempt as its sender writes it. What can be understood is accepted; what cannot is rejected with
//! the field, its value and what is accepted. The table of cases is in docs/api.md.

#[cfg(feature = "cli")]
pub(crate) mod counts;
pub(crate) mod lines;
mod moment;
mod repair;
pub(crate) mod schema;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::attempts::{OutcomeKind, ScoreDirection};
use crate::buffer::{Origin, Unmeasured};
use crate::handle::LoggerHandle;
use crate::monitor::Outcome;
use crate::record::{RetrievalFailureRecord, RetrievalFailureType};
use crate::stats::DropReason;
pub(crate) use repair::repaired;
use value::Value;

/// Names of unknown fields that are remembered of one record.
const MAX_UNKNOWN: usize = 8;
/// Characters of a name or value that are repeated in a reason.
const MAX_SHOWN: usize = 60;

/// A failure or an attempt.
#[derive(Debug)]
pub(crate) struct Sent {
    kind: SentKind,
    strategy: String,
    query_text: String,
    query_len: Option<u64>,
    pub(crate) event_id: Option<Uuid>,
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
    /// The `event_id` was the nil UUID, which identifies nothing, and is ignored.
    pub(crate) had_nil_id: bool,
    /// Fields that were ignored: the first of their names.
    pub(crate) unknown: Vec<String>,
}

/// What a line says by its `failure_type` or `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentKind {
    /// A failure that no monitor counted.
    Failure(RetrievalFailureType),
    /// An attempt, which is counted. It is logged, too, if it failed.
    Attempt(OutcomeKind),
}

/// A latency, with the milliseconds that the log keeps.
#[derive(Debug, Clone, Copy)]
struct Latency {
    milliseconds: f64,
    whole: u64,
}

/// Why a record is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RejectReason {
    /// No JSON object, or one that was cut.
    NotJson,
    /// A field that must be there is not.
    MissingField,
    /// A field has a value that is not understood.
    InvalidValue,
    /// A field is not known, and the settings make that an error.
    UnknownField,
    /// Another record was sent under the same `event_id`.
    EventIdReused,
    /// The line is longer than is accepted.
    TooLong,
    /// The record is older than the retention.
    TooOld,
}

impl RejectReason {
    pub(crate) const ALL: [Self; 7] = [
        Self::NotJson,
        Self::MissingField,
        Self::InvalidValue,
        Self::UnknownField,
        Self::EventIdReused,
        Self::TooLong,
        Self::TooOld,
    ];

    pub(crate) fn as_str(self) -> &'static str {
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

/// A record that is not accepted, with what its sender should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) reason: RejectReason,
    pub(crate) text: String,
}

impl Rejected {
    pub(crate) fn new(reason: RejectReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    fn invalid(field: &str, value: &Value<'_>, expected: &str) -> Self {
        Self::new(RejectReason::InvalidValue, format!("{field} = {value}: expected {expected}"))
    }

    fn missing(field: &str, expected: &str) -> Self {
        Self::new(RejectReason::MissingField, format!("{field} is missing: expected {expected}"))
    }
}

/// Names of the types and outcomes, as a sentence lists them.
const FAILURE_TYPES: &str = "no_hit, low_confidence, timeout or error";
const OUTCOMES: &str = "success, no_hit, low_confidence, timeout, error or cancelled";

impl Sent {
    /// Reads a JSON object. `strict` makes unknown fields errors.
    pub(crate) fn from_json(json: &[u8], strict: bool) -> Result<Self, Rejected> {
        // Bytes that are no UTF-8 become U+FFFD, as surrogates do.
        let json = String::from_utf8_lossy(json);
        let json = json.trim();
        if !json.starts_with('{') {
            let shown = if json.is_empty() { "nothing".to_owned() } else { shown(json) };
            return Err(Rejected::new(RejectReason::NotJson, format!("{shown}: expected a JSON object")));
        }
        match serde_json::from_str::<Fields<'_>>(json) {
            Ok(Fields(fields)) => {
                Self::from_fields(fields.iter().map(|(name, raw)| (&**name, Value::json(raw))), strict)
            }
            Err(_) => {
                let repaired = repaired(json);
                let Fields(fields) = serde_json::from_str(&repaired).map_err(|error| {
                    Rejected::new(RejectReason::NotJson, format!("this is no JSON object: {error}"))
                })?;
                Self::from_fields(fields.iter().map(|(name, raw)| (&**name, Value::json(raw))), strict)
            }
        }
    }

    /// Reads a line of CSV under its names. An empty cell is a field that is not there.
    #[cfg(feature = "cli")]
    pub(crate) fn from_csv(
        names: &csv::StringRecord,
        cells: &csv::StringRecord,
        strict: bool,
    ) -> Result<Self, Rejected> {
        Self::from_fields(names.iter().zip(cells.iter().map(Value::cell)), strict)
    }

    fn from_fields<'a>(fields: impl Iterator<Item = (&'a str, Value<'a>)>, strict: bool) -> Result<Self, Rejected> {
        let mut draft = Draft::default();
        let mut unknown = Vec::new();
        for (name, value) in fields {
            if draft.set(name, value) {
                continue;
            }
            if strict {
                let text = format!("{} is no field: expected those of docs/api.md", shown(name));
                return Err(Rejected::new(RejectReason::UnknownField, text));
            }
            if unknown.len() < MAX_UNKNOWN {
                unknown.push(shown(name));
            }
        }
        draft.finish(unknown)
    }

    /// Returns the same as a failure that no monitor counted.
    pub(crate) fn into_failure(self, failure: RetrievalFailureType) -> Self {
        Self { kind: SentKind::Failure(failure), ..self }
    }

    #[cfg(feature = "cli")]
    pub(crate) fn created_at(&self) -> Option<SystemTime> {
        self.created_at
    }

    pub(crate) fn kind(&self) -> SentKind {
        self.kind
    }

    /// Logs or counts it as it was sent: at its moment, and once if it has an id. One that is not taken is not counted,
    /// because its sender retries it.
    pub(crate) fn offer(&self, logger: &LoggerHandle) -> Result<(), DropReason> {
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
        let latency = self.latency.and_then(|latency| Duration::try_from_secs_f64(latency.milliseconds / 1e3).ok());
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

    /// Logs a failure that is counted elsewhere, and nothing else.
    #[cfg(feature = "cli")]
    pub(crate) fn offer_uncounted(&self, logger: &LoggerHandle) -> Result<(), DropReason> {
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
        let origin = Origin { is_observed, event_id: self.event_id, unmeasured };
        logger.offer(self.record(failure), self.created_at, origin)
    }

    /// Returns the reason for which the retention in force rejects it.
    pub(crate) fn too_old(&self, logger: &LoggerHandle) -> Rejected {
        let days = logger.shared().retention.days();
        let (setting, days) = match self.kind {
            SentKind::Failure(_) => ("retention_days", days.failures),
            SentKind::Attempt(_) => ("attempts_retention_days", days.attempts),
        };
        let created_at = self.created_at.map_or(0, crate::clock::milliseconds_of);
        let text = format!(
            "created_at = {}: older than {setting} = {days}; send a later date, or keep rows for longer",
            crate::report::rfc3339(created_at)
        );
        Rejected::new(RejectReason::TooOld, text)
    }

    /// A number that differs if the content does. The moment counts only if it was sent.
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};

        let mut hasher = DefaultHasher::new();
        let scores = [self.top_score, self.confidence_threshold].map(|score| score.map(f32::to_bits));
        let kind = match self.kind {
            SentKind::Failure(failure) => (0, failure.as_str()),
            SentKind::Attempt(kind) => (1, kind.as_str()),
        };
        (kind, &self.strategy, &self.query_text, &self.conversation_id, self.turn_index, scores).hash(&mut hasher);
        (self.result_count, &self.edge_types, &self.error_context, self.created_at).hash(&mut hasher);
        hasher.finish()
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The fields of a record, as far as they are known.
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
}

impl<'a> Draft<'a> {
    /// Returns `false` if there is no field of this name.
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
            // The place in the table that a row was exported from.
            "id" => return true,
            _ => return false,
        };
        *field = value;
        true
    }

    fn finish(self, unknown: Vec<String>) -> Result<Sent, Rejected> {
        let (kind, score_direction) = (self.kind()?, self.score_direction()?);
        let strategy = match self.retrieval_strategy.or(self.strategy).text("retrieval_strategy")? {
            Some(strategy) if !strategy.trim().is_empty() => strategy,
            _ => return Err(Rejected::missing("retrieval_strategy", "the name of the strategy")),
        };
        let query_text = match (self.query_text.text("query_text")?, kind) {
            (Some(query), _) => query,
            (None, SentKind::Attempt(_)) => String::new(),
            (None, SentKind::Failure(_)) => {
                return Err(Rejected::missing("query_text", "the text that was searched for"));
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
            had_nil_id,
            unknown,
        })
    }

    /// An outcome makes an attempt, also beside a type of failure.
    fn kind(&self) -> Result<SentKind, Rejected> {
        if let Some(name) = self.outcome.name() {
            let kind =
                OutcomeKind::parse(&name).ok_or_else(|| Rejected::invalid("outcome", &self.outcome, OUTCOMES))?;
            return Ok(SentKind::Attempt(kind));
        }
        match self.failure_type.name() {
            Some(name) => RetrievalFailureType::parse(&name)
                .map(SentKind::Failure)
                .ok_or_else(|| Rejected::invalid("failure_type", &self.failure_type, FAILURE_TYPES)),
            None => {
                let expected = format!("{FAILURE_TYPES}; or outcome, {OUTCOMES}");
                Err(Rejected::missing("failure_type", &expected))
            }
        }
    }

    fn score_direction(&self) -> Result<Option<ScoreDirection>, Rejected> {
        let Some(name) = self.score_direction.name() else { return Ok(None) };
        match name.as_str() {
            "higher_is_better" => Ok(Some(ScoreDirection::HigherIsBetter)),
            "lower_is_better" => Ok(Some(ScoreDirection::LowerIsBetter)),
            _ => {
                let expected = "higher_is_better or lower_is_better";
                Err(Rejected::invalid("score_direction", &self.score_direction, expected))
            }
        }
    }
}

/// The names and values of an object, in their order. A name may occur twice: the last one counts.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

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

/// The beginning of what was sent, on one line and without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).flat_map(escaped).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let (escape, plain) = match character.is_control() {
        true => (Some(character.escape_default()), None),
        false => (None, Some(character)),
    };
    escape.into_iter().flatten().chain(plain)
}
