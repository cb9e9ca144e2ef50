//! Queries of User Behavior Insights (UBI) 1.3: the documents of the index `ubi_queries`.
//!
//! A document becomes the JSON of an attempt, so that a database and a service get the same record.
//! Rejections name the fields of the document, because those are what the sender can repair.

use serde_json::value::RawValue;
use serde_json::{Map, json};
use uuid::Uuid;

use crate::http::wire::value::Value;
use crate::http::wire::{Fields, MAX_UNKNOWN_NAMES, Rejected, Sent, excerpt, with_fields};
use crate::model::outcome::OutcomeKind;

/// Strategy of a document without an `application`.
const DEFAULT_STRATEGY: &str = "ubi";
/// Maximum length of a query in characters. The log stores 512. UBI sets no limit, and a service
/// rejects a line of more than 64 KiB.
const MAX_QUERY_CHARS: usize = 512;

impl Sent {
    /// Parses a document of `ubi_queries`. Returns the attempt, and its JSON on one line.
    pub fn from_ubi(document: &[u8]) -> Result<(Self, Vec<u8>), Rejected> {
        let (attempt, unknown) = with_fields(document, |fields| {
            let draft = Draft::new(fields);
            match draft.source {
                Value::Object(source) => with_fields(source.as_bytes(), |fields| {
                    Draft::new(fields).into_attempt()
                }),
                _ => draft.into_attempt(),
            }
        })?;
        let json = serde_json::Value::Object(attempt).to_string().into_bytes();
        let sent = Self::from_json(&json, false)?;
        Ok((Self { unknown, ..sent }, json))
    }
}

/// Values of the known fields of a document, before they are parsed.
#[derive(Default)]
struct Draft<'a> {
    application: Value<'a>,
    query_id: Value<'a>,
    client_id: Value<'a>,
    user_query: Value<'a>,
    query_attributes: Value<'a>,
    timestamp: Value<'a>,
    query_response_hit_ids: Value<'a>,
    /// Field of the documents of `ubi_events`, which are no queries.
    action_name: Value<'a>,
    /// Document within a hit of a search, or within a line of a dump.
    source: Value<'a>,
    unknown: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(fields: &'a Fields<'_>) -> Self {
        let mut draft = Self::default();
        for (name, value) in fields.iter() {
            if !draft.set(name, value) && draft.unknown.len() < MAX_UNKNOWN_NAMES {
                draft.unknown.push(excerpt(name));
            }
        }
        draft
    }

    /// Sets a field. Returns `false` if no field has this name.
    fn set(&mut self, name: &str, value: Value<'a>) -> bool {
        let field = match name {
            "application" => &mut self.application,
            "query_id" => &mut self.query_id,
            "client_id" => &mut self.client_id,
            "user_query" => &mut self.user_query,
            "query_attributes" => &mut self.query_attributes,
            "timestamp" => &mut self.timestamp,
            "query_response_hit_ids" => &mut self.query_response_hit_ids,
            "action_name" => &mut self.action_name,
            "_source" => &mut self.source,
            // The log has no place for these. OpenSearch adds `query`, the whole request.
            "query" | "query_response_id" | "object_id_field" => return true,
            _ => return false,
        };
        *field = value;
        true
    }

    /// Returns the fields of an attempt, and the names of the first unknown fields.
    fn into_attempt(self) -> Result<(Map<String, serde_json::Value>, Vec<String>), Rejected> {
        if !matches!(self.action_name, Value::Null) {
            return Err(Rejected::invalid(
                "action_name",
                &self.action_name,
                "a document of ubi_queries, and this one is of ubi_events",
            ));
        }
        let event_id = event_id(self.query_id)?;
        let hits = hits(&self.query_response_hit_ids)?;
        let outcome = match hits {
            Some(0) => OutcomeKind::NoHit,
            Some(_) => OutcomeKind::Success,
            // The search engine did not report the hits, which is no evidence that there were none.
            None => OutcomeKind::Unknown,
        };
        let strategy = self
            .application
            .text("application")?
            .filter(|name| !name.trim().is_empty())
            .unwrap_or_else(|| DEFAULT_STRATEGY.to_owned());
        let query = self.user_query.text("user_query")?.unwrap_or_default();
        let conversation = match session(&self.query_attributes) {
            Some(session) => Some(session),
            None => self.client_id.conversation("client_id")?,
        };
        self.timestamp.moment("timestamp")?;
        let fields = [
            ("outcome", json!(outcome.as_str())),
            ("retrieval_strategy", json!(strategy)),
            (
                "query_text",
                query
                    .chars()
                    .take(MAX_QUERY_CHARS)
                    .collect::<String>()
                    .into(),
            ),
            ("query_len", json!(query.len())),
            ("event_id", json!(event_id)),
            ("conversation_id", json!(conversation)),
            ("result_count", json!(hits)),
            ("created_at", json!(self.timestamp.text_ref())),
        ];
        let attempt = fields
            .into_iter()
            // `ingest` adds the time to a delayed line without `created_at`.
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Ok((attempt, self.unknown))
    }
}

/// Returns the id of the record: the `query_id` if it is a UUID, otherwise a UUID that follows from
/// it. A repeated ingest has the same ids, so that it stores no failure twice.
fn event_id(query_id: Value<'_>) -> Result<Uuid, Rejected> {
    let expected = "the id of one query, by which a repeated ingest recognises the query";
    let text = query_id.conversation("query_id")?.unwrap_or_default();
    let text = text.trim();
    if text.is_empty() {
        return Err(Rejected::missing("query_id", expected));
    }
    match Uuid::try_parse(text) {
        Ok(id) if id.is_nil() => Err(Rejected::invalid(
            "query_id",
            &Value::Text(text.into()),
            expected,
        )),
        Ok(id) => Ok(id),
        Err(_) => Ok(Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())),
    }
}

/// Returns the number of hits, or `None` if the document does not report them.
///
/// OpenSearch stores a list of one value and the value alone as the same, and a null in a list as
/// no value.
fn hits(ids: &Value<'_>) -> Result<Option<usize>, Rejected> {
    let invalid = || {
        let expected = "a list of ids, which is empty if nothing was found, or null";
        Rejected::invalid("query_response_hit_ids", ids, expected)
    };
    match ids {
        Value::Null => Ok(None),
        Value::Number(_) => Ok(Some(1)),
        Value::Text(id) if !id.trim().is_empty() => Ok(Some(1)),
        Value::List(json) => {
            let ids: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| invalid())?;
            Ok(Some(ids.iter().filter(|id| id.get() != "null").count()))
        }
        Value::Text(_) | Value::Bool(_) | Value::Object(_) => Err(invalid()),
    }
}

/// Returns the session of the query. UBI leaves the attributes to the application, so that a
/// `session_id` of another type is no session.
fn session(query_attributes: &Value<'_>) -> Option<String> {
    let Value::Object(json) = query_attributes else {
        return None;
    };
    let session = with_fields(json.as_bytes(), |fields| {
        let session = fields.iter().filter(|(name, _)| *name == "session_id");
        session
            .last()
            .map_or(Ok(None), |(_, value)| value.conversation("session_id"))
    });
    session.ok()?.filter(|session| !session.trim().is_empty())
}
