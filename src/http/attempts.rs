//! Attempts that come in, for applications that cannot hold a monitor.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::Api;
use super::ingest::{self, Accepted, ConversationKey, Incoming};
use super::problem::{NotTaken, Problem};
use crate::attempts::{OutcomeKind, ScoreDirection};
use crate::monitor::Outcome;
use crate::stats::DropReason;

/// A retrieval that was attempted, however it ended. A failure is logged too: do not send it to
/// `/v1/failures` as well.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAttempt)]
pub(super) struct NewAttempt {
    /// The strategy that was tried; its first 64 characters are kept.
    #[serde(deserialize_with = "ingest::not_empty")]
    #[schema(min_length = 1)]
    strategy: String,
    /// How it ended.
    outcome: OutcomeKind,
    /// How long it took, in milliseconds.
    #[serde(default, deserialize_with = "milliseconds")]
    #[schema(minimum = 0, maximum = 86400000)]
    latency_ms: f64,
    /// Best score that was found.
    #[serde(default, deserialize_with = "ingest::score")]
    #[schema(minimum = -3.4e38, maximum = 3.4e38)]
    top_score: Option<f32>,
    /// The threshold that was in force; it becomes the strategy's present one.
    #[serde(default, deserialize_with = "ingest::score")]
    #[schema(minimum = -3.4e38, maximum = 3.4e38)]
    confidence_threshold: Option<f32>,
    /// Which scores are better; higher ones by default.
    #[serde(default)]
    score_direction: Option<ScoreDirection>,
    /// Number of results.
    #[serde(default, deserialize_with = "ingest::count")]
    #[schema(minimum = 0, maximum = 9007199254740991_i64)]
    result_count: u64,
    /// The query, for the log of failures.
    #[serde(default)]
    query_text: String,
    /// The conversation, for the log of failures.
    #[serde(default)]
    #[schema(schema_with = ingest::conversation_schema)]
    conversation_id: Option<ConversationKey>,
    /// Turn within the conversation.
    #[serde(default, deserialize_with = "ingest::integer")]
    #[schema(minimum = -9007199254740991_i64, maximum = 9007199254740991_i64)]
    turn_index: i64,
    /// What the backend said.
    #[serde(default)]
    error_context: Option<String>,
    /// When it ended, in RFC 3339; now by default.
    #[serde(default, deserialize_with = "ingest::moment")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<SystemTime>,
}

/// One attempt, or a list, whose elements are looked at one by one.
#[derive(ToSchema)]
#[schema(as = AttemptOrList)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
pub(super) enum AttemptOrList {
    One(NewAttempt),
    List(Vec<serde_json::Value>),
}

/// Counts attempts, and logs those that failed: a JSON object, an array of them, or JSON lines
/// (`application/x-ndjson`).
#[utoipa::path(post, path = "/v1/attempts", tag = "ingest",
    request_body(content(
        (AttemptOrList = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 202, body = Accepted),
        NotTaken,
    ))]
pub(super) async fn attempts(api: Data<Api>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
    ingest::take::<NewAttempt>(&api, &request, body).await
}

impl Incoming for NewAttempt {
    fn hand_over(&self, api: &Api) -> Result<(), DropReason> {
        let mut monitor = api.logger.strategy(&self.strategy);
        if let Some(direction) = self.score_direction {
            monitor = monitor.score_direction(direction);
        }
        if let Some(threshold) = self.confidence_threshold {
            monitor = monitor.confidence_threshold(threshold);
        }
        if let Some(conversation) = &self.conversation_id {
            monitor = monitor.conversation(conversation.id());
        }
        if self.turn_index != 0 {
            monitor = monitor.turn(self.turn_index);
        }
        let latency = Duration::from_secs_f64(self.latency_ms / 1e3);
        let mut outcome = match self.outcome.failure() {
            Some(failure) => Outcome::failure(failure, &self.query_text, latency),
            None if self.outcome == OutcomeKind::Cancelled => Outcome::cancelled(latency),
            None => Outcome::success(latency),
        };
        outcome = outcome.result_count(usize::try_from(self.result_count).unwrap_or(usize::MAX));
        if let Some(score) = self.top_score {
            outcome = outcome.top_score(score);
        }
        if let Some(error) = &self.error_context {
            outcome = outcome.error(error);
        }
        if let Some(at) = self.created_at {
            outcome = outcome.at(at);
        }
        // Both or neither: what is not logged comes again, and is counted then.
        let offered = monitor.offer(outcome);
        if self.outcome.failure().is_some() && matches!(offered, Ok(()) | Err(DropReason::TooOld)) {
            api.received.fetch_add(1, Ordering::Relaxed);
        }
        offered
    }

    fn too_old(&self, api: &Api) -> String {
        let days = api.logger.shared().retention.days().attempts;
        ingest::too_old(self.created_at, "attempts_retention_days", days)
    }
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if (0.0..=86_400_000.0).contains(&number) {
        Ok(number)
    } else {
        Err(serde::de::Error::custom("expected milliseconds, 0 to a day"))
    }
}
