//! Failing questions in groups, and what people say of them.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::{Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Contradicted, NotAnswered, NotTaken, Problem};
use super::questions::{json, limit, milliseconds, or_a_day, question};
use super::{Api, ingest};
use crate::error::{MarkError, ReadError, StoreError};
use crate::record::RetrievalFailureType;
use crate::report::{QueryFilter, QuestionStatus, TimeRange, TopQueries};

/// How long an answer is kept for whoever asks again, as those do who were told to wait.
const KEEP: Duration = Duration::from_secs(2);
/// Answers that are kept or worked on at most.
const MAX_ANSWERS: usize = 32;
/// Bytes of a mark at most: such a question fits, though each of its characters be escaped.
const MAX_MARK_BYTES: usize = 64 << 10;

question! {
/// Which questions are grouped.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct QueriesQuery {
    /// Only failures of this type.
    #[serde(default)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy.
    #[serde(default)]
    strategy: Option<String>,
    /// Only groups with this status.
    #[serde(default)]
    status: Option<QuestionStatus>,
    /// Groups; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// How long to wait for the answer, in milliseconds. If it takes longer, 202 says so, and the same
    /// question gets the answer later; it may be two seconds old. By default: until it is there.
    #[serde(default, deserialize_with = "milliseconds")]
    #[param(minimum = 1, maximum = 2500)]
    wait_ms: Option<u64>,
    }
}

/// The answer is being worked on.
#[derive(Serialize, ToSchema)]
pub(super) struct Working {
    /// `working`.
    status: &'static str,
    /// Since when, in milliseconds.
    for_ms: u64,
}

/// Failing questions, grouped with those that are nearly the same.
#[utoipa::path(get, path = "/v1/queries", tag = "questions", params(QueriesQuery), responses(
    (status = 200, body = TopQueries),
    (status = 202, body = Working, description = "ask again, as `Retry-After` says"),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn queries(api: Data<Api>, query: Query<QueriesQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let range = or_a_day(query.range()?);
    let Some(wait) = query.wait_ms.map(Duration::from_millis) else {
        return json(&group(&api, range, &query).await?);
    };
    let (began, mut answer) = api.answers.ask(&api, range, query)?;
    let Ok(waited) = actix_rt::time::timeout(wait, answer.wait_for(Option::is_some)).await else {
        let for_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let working = Working { status: "working", for_ms };
        return Ok(HttpResponse::Accepted().insert_header((RETRY_AFTER, "1")).json(working));
    };
    match waited.as_deref() {
        Ok(Some((_, answer))) => json(answer.as_ref().map_err(|error| Problem::from(error.clone()))?),
        // Whoever worked on it has gone.
        _ => Err(Problem::unavailable("the question could not be answered; ask again")),
    }
}

async fn group(api: &Api, range: TimeRange, query: &QueriesQuery) -> Result<TopQueries, ReadError> {
    let filter =
        QueryFilter { failure_type: query.failure_type, strategy: query.strategy.clone(), status: query.status };
    api.logger.reader().top_queries(range, filter, query.limit.unwrap_or(50)).await
}

/// What has been answered, or is worked on, by what was asked. Grouping looks at up to a million failures:
/// whoever asks need not wait for it, two who ask the same share it, and one runs at a time, so that
/// quick questions find a thread.
pub(super) struct Answers {
    by_query: Mutex<HashMap<QueriesQuery, Asked>>,
    turn: Semaphore,
}

struct Asked {
    at: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

/// When it was there, and what it is.
type Answer = (Instant, Result<TopQueries, ReadError>);

impl Asked {
    /// Whether it is worked on, or was answered a moment ago.
    fn is_of_use(&self) -> bool {
        match &*self.answer.borrow() {
            Some((answered, _)) => answered.elapsed() < KEEP,
            None => self.answer.has_changed().is_ok(),
        }
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self { by_query: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Answers {
    /// The answer, now or later, and since when it is worked on.
    fn ask(
        &self,
        api: &Data<Api>,
        range: TimeRange,
        query: QueriesQuery,
    ) -> Result<(Instant, watch::Receiver<Option<Answer>>), Problem> {
        // However long somebody waits, it is the same question.
        let query = QueriesQuery { wait_ms: None, ..query };
        let mut by_query = self.by_query.lock().unwrap_or_else(PoisonError::into_inner);
        by_query.retain(|_, asked| asked.is_of_use());
        if let Some(asked) = by_query.get(&query) {
            return Ok((asked.at, asked.answer.clone()));
        }
        if by_query.len() >= MAX_ANSWERS {
            return Err(Problem::unavailable("too many questions at once; ask again later"));
        }
        let (answered, answer) = watch::channel(None);
        let at = Instant::now();
        by_query.insert(query.clone(), Asked { at, answer: answer.clone() });
        let api = api.clone();
        actix_rt::spawn(async move {
            let turn = api.answers.turn.acquire().await;
            let answer = group(&api, range, &query).await;
            answered.send_replace(Some((Instant::now(), answer)));
            drop(turn);
        });
        Ok((at, answer))
    }

    /// What was answered before does not hold any more.
    pub(super) fn forget(&self) {
        self.by_query.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What is said of a failing question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionMark {
    /// The `key` of a group, or any question of it.
    #[schema(max_length = 512)]
    question: String,
    /// What is said.
    status: QuestionStatus,
}

/// Marks a group of failing questions as resolved or ignored, or as open again. A group that is
/// resolved is open again when one of its questions fails later.
#[utoipa::path(put, path = "/v1/queries/status", tag = "questions", request_body = QuestionMark, responses(
    (status = 204, description = "it is kept in the database"),
    (status = 404, description = "no failure is in this group", body = Problem, content_type = "application/problem+json"),
    NotTaken,
))]
pub(super) async fn mark(api: Data<Api>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Problem> {
    // A page of another site could send anything else without asking first.
    if ingest::media_type(&request) != "application/json" {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json"));
    }
    ingest::plain(&request)?;
    let (json, _held) = ingest::whole_body(&api, body, MAX_MARK_BYTES, "send the question's `key`").await?;
    let mark: QuestionMark = serde_json::from_slice(&json).map_err(|error| Problem::bad_request(error.to_string()))?;
    api.logger.mark_question(&mark.question, mark.status).await?;
    api.answers.forget();
    Ok(HttpResponse::NoContent().finish())
}

impl From<MarkError> for Problem {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Closed => Self::unavailable(error.to_string()),
            MarkError::NotFound => Self::not_found(error.to_string()),
            MarkError::TooLong { .. } => Self::bad_request(error.to_string()),
            MarkError::Store(StoreError::Split(_)) => Self::bad_request("this question cannot be marked"),
            MarkError::Store(_) => {
                tracing::warn!(%error, "a question could not be marked");
                Self::unavailable("the database cannot be written now; see the service's log")
            }
        }
    }
}
