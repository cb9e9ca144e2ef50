//! Failing questions in groups, and what people say of them.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
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

/// Age at which a ranking is computed once more, and so many times as long as that took.
const FRESH: Duration = Duration::from_secs(2);
const FRESH_TIMES: u32 = 10;
/// Time without a request after which a ranking is dropped, or its computation given up.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Time after which the first partial ranking is there.
const FIRST_PARTIAL: Duration = Duration::from_millis(500);
/// Longest time that a request waits, unless it says how long.
const WAIT: Duration = Duration::from_millis(2500);
/// Rankings that are kept or worked on at most.
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
    /// How long to wait for the whole ranking, in milliseconds; 2500 by default. If it takes longer, the response has what
    /// there is by then (`partial`), and the same request gets more later; 202, if there is nothing yet.
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
    let wait = query.wait_ms.map_or(WAIT, Duration::from_millis);
    let (began, mut state) = api.answers.ask(&api, range, query)?;
    // Whoever works on it ends with a result: an error of the wait is one of nobody.
    let _ = actix_rt::time::timeout(wait, state.wait_for(|state| !state.is_working)).await;
    let State { latest, is_working } = state.borrow().clone();
    match latest {
        Some(Ok(ranking)) if ranking.in_progress => {
            Ok(json(&*ranking)?).map(|response| with_header(response, (RETRY_AFTER, "1")))
        }
        Some(Ok(ranking)) => json(&*ranking),
        Some(Err(error)) => Err(error.into()),
        None if is_working => {
            let for_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let working = Working { status: "working", for_ms };
            Ok(HttpResponse::Accepted().insert_header((RETRY_AFTER, "1")).json(working))
        }
        None => Err(Problem::unavailable("the ranking could not be computed; ask again")),
    }
}

fn with_header(mut response: HttpResponse, (name, value): (HeaderName, &'static str)) -> HttpResponse {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

/// Rankings that are there or worked on, by what was asked. A ranking looks at up to a million failures: those who ask the
/// same share it, and one is computed at a time, so that quick questions find a thread.
pub(super) struct Answers {
    by_query: Mutex<HashMap<QueriesQuery, Asked>>,
    turn: Semaphore,
}

struct Asked {
    /// When somebody asked last: it is given up a minute later.
    asked: Arc<Mutex<Instant>>,
    began: Instant,
    /// When the last whole ranking was there, and how long it took.
    done: Arc<Mutex<Option<(Instant, Duration)>>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Default)]
struct State {
    /// The last whole ranking, or what there is of the first one.
    latest: Option<Result<Arc<TopQueries>, ReadError>>,
    is_working: bool,
}

impl Asked {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            asked: Arc::new(Mutex::new(now)),
            began: now,
            done: Arc::default(),
            state: watch::Sender::new(State::default()),
        }
    }

    fn is_wanted(asked: &Mutex<Instant>) -> bool {
        lock(asked).elapsed() < FORGET_AFTER
    }

    /// Returns `true` if the last ranking is too old, and nobody works on a new one.
    fn is_stale(&self) -> bool {
        let is_fresh = lock(&self.done).is_some_and(|(at, took)| at.elapsed() < FRESH.max(FRESH_TIMES * took));
        !self.state.borrow().is_working && !is_fresh
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self { by_query: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Answers {
    /// Returns the state of the ranking, which is begun unless it is there, and since when it is worked on.
    fn ask(
        &self,
        api: &Data<Api>,
        range: TimeRange,
        query: QueriesQuery,
    ) -> Result<(Instant, watch::Receiver<State>), Problem> {
        // However long somebody waits, it is the same question.
        let query = QueriesQuery { wait_ms: None, ..query };
        let mut by_query = lock(&self.by_query);
        by_query.retain(|_, asked| Asked::is_wanted(&asked.asked));
        if by_query.len() >= MAX_ANSWERS && !by_query.contains_key(&query) {
            return Err(Problem::unavailable("too many questions at once; ask again later"));
        }
        let asked = by_query.entry(query.clone()).or_insert_with(Asked::new);
        *lock(&asked.asked) = Instant::now();
        if asked.is_stale() {
            asked.began = Instant::now();
            asked.state.send_modify(|state| state.is_working = true);
            compute(api.clone(), range, query, asked);
        }
        Ok((asked.began, asked.state.subscribe()))
    }

    /// What was answered before does not hold any more.
    pub(super) fn forget(&self) {
        lock(&self.by_query).clear();
    }
}

/// Computes a ranking in the background, for all who ask.
fn compute(api: Data<Api>, range: TimeRange, query: QueriesQuery, asked: &Asked) {
    let (wanted, done, state) = (Arc::clone(&asked.asked), Arc::clone(&asked.done), asked.state.clone());
    actix_rt::spawn(async move {
        let turn = api.answers.turn.acquire().await;
        let began = Instant::now();
        let filter = QueryFilter { failure_type: query.failure_type, strategy: query.strategy, status: query.status };
        let partial = state.clone();
        let publish = move |ranking: TopQueries| {
            partial.send_modify(|state| {
                // A whole one is better than a part of a newer one.
                let has_whole = matches!(&state.latest, Some(Ok(latest)) if !latest.in_progress);
                if !has_whole {
                    state.latest = Some(Ok(Arc::new(ranking)));
                }
            });
        };
        let is_wanted = move || Asked::is_wanted(&wanted);
        let limit = query.limit.unwrap_or(50);
        let ranking = api.logger.reader().rank_queries(range, filter, limit, FIRST_PARTIAL, is_wanted, publish).await;
        *lock(&done) = ranking.is_ok().then(|| (Instant::now(), began.elapsed()));
        state.send_replace(State { latest: Some(ranking.map(Arc::new)), is_working: false });
        drop(turn);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
