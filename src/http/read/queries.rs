//! Groups of similar failing queries, and their status.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use utoipa::{IntoParams, ToSchema};

use crate::error::{ChangeError, ReadError, StoreError};
use crate::http::Api;
use crate::http::ingest::body::{Body, media_type};
use crate::http::params::Params;
use crate::http::problem::{BodyProblems, Code, Problem, ReadProblems};
use crate::http::read::{
    cursor, json, limit, list_request, milliseconds, or_last_day, ranged, streams,
};
use crate::model::outcome::RetrievalFailureType;
use crate::model::query_status::QueryStatus;
use crate::model::time::TimeRange;
use crate::report::{ListCursor, QueryFilter, QueryOrder, TopQueries, group_id};
use crate::similarity::normalized;

/// Minimum time for which a ranking is fresh.
const MIN_FRESH_TIME: Duration = Duration::from_secs(2);
/// Ratio of the fresh time of a ranking to its computation time. One ranking thus occupies a reader
/// for at most about a tenth of the time.
const FRESH_FACTOR: u32 = 10;
/// Time without a request after which a ranking is dropped or its computation cancelled.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which a computation publishes its first partial ranking.
const FIRST_PARTIAL_AFTER: Duration = Duration::from_millis(500);
/// Default and maximum time that a request waits for a ranking.
const DEFAULT_WAIT: Duration = Duration::from_millis(2500);
/// Maximum number of rankings in memory, including those in progress.
const MAX_RANKINGS: usize = 16;
/// Maximum size of a request that sets a status. It fits a query of maximum length with all its
/// characters escaped.
const MAX_STATUS_BYTES: usize = 64 << 10;
/// Maximum number of groups whose texts are remembered, and of the bytes of these texts. A page of
/// the largest groups may have more, and is remembered in part.
const MAX_GROUPS: usize = 10_000;
const MAX_GROUP_BYTES: usize = 16 << 20;

ranged! {
/// Filter of the failing queries that are grouped.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct QueriesQuery {
    /// Only failures of this type. May occur several times.
    #[serde(default)]
    failure_type: Vec<RetrievalFailureType>,
    /// Only failures of this strategy. May occur several times.
    #[serde(default)]
    retrieval_strategy: Vec<String>,
    /// Only groups with this status.
    #[serde(default)]
    status: Option<QueryStatus>,
    /// Only failures whose query contains this text.
    #[serde(default)]
    text: Option<String>,
    /// Order of the groups: `failures` (the largest first, by default), `attention` (reopened
    /// groups first), `last_seen` or `first_seen` (the newest first).
    #[serde(default)]
    #[param(inline)]
    order: QueryOrder,
    /// Maximum number of groups on the page; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor of the page: `next` of another page.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<ListCursor>,
    /// Maximum time to wait for the complete ranking, in milliseconds; 2500 by default. If the
    /// ranking takes longer, the response is partial (`in_progress`), or 202 if there is no partial
    /// ranking yet. Retry the same request to get more.
    #[serde(default, deserialize_with = "milliseconds")]
    #[param(minimum = 1, maximum = 2500)]
    wait_ms: Option<u64>,
    }
}

/// Response while a ranking is being computed.
#[derive(Serialize, ToSchema)]
pub(crate) struct Working {
    /// Always `working`.
    status: &'static str,
    /// Time since the computation began, in milliseconds.
    for_ms: u64,
}

/// Lists groups of similar failing queries, the largest group first.
#[utoipa::path(get, path = "/v1/queries", operation_id = "list_query_groups", tag = "reads", params(QueriesQuery), responses(
    (status = 200, description = "A page of groups.", body = TopQueries),
    (status = 202, body = Working, description = "The ranking is being computed. Retry after \
        the seconds in `Retry-After`."),
    ReadProblems,
))]
pub(crate) async fn queries(
    api: Data<Api>,
    query: Params<QueriesQuery>,
) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let range = or_last_day(query.period()?)?;
    let wait = query.wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
    let (began, mut state) = api.rankings.subscribe(&api, range, query)?;
    // The result of the wait does not matter, because the state below has all outcomes.
    let _ = actix_rt::time::timeout(wait, state.wait_for(|state| !state.is_working)).await;
    let State { latest, is_working } = state.borrow().clone();
    match latest {
        Some(Ok(ranking)) => {
            api.groups.remember(&ranking);
            let response = streams::json(&api, json(&*ranking)?)?;
            Ok(if ranking.in_progress {
                with_header(response, (RETRY_AFTER, "1"))
            } else {
                response
            })
        }
        Some(Err(error)) => Err(error.into()),
        None if is_working => {
            let for_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let working = Working {
                status: "working",
                for_ms,
            };
            Ok(HttpResponse::Accepted()
                .insert_header((RETRY_AFTER, "1"))
                .json(working))
        }
        None => Err(Problem::new(
            Code::Busy,
            "the ranking was interrupted; retry",
        )),
    }
}

fn with_header(
    mut response: HttpResponse,
    (name, value): (HeaderName, &'static str),
) -> HttpResponse {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    response
}

/// Rankings in memory or in progress, by their requests.
///
/// A ranking reads up to a million failures. Equal requests therefore share a ranking, and only one
/// ranking is computed at a time.
///
/// Lock order: `by_query`, then the mutexes of a [`Ranking`]. The computation locks only the
/// latter.
pub(crate) struct Rankings {
    by_query: Mutex<HashMap<QueriesQuery, Ranking>>,
    /// Permit to compute a ranking.
    computation: Semaphore,
}

/// Ranking of one request.
struct Ranking {
    /// Time of the last request. The computation reads it to notice that no client waits any more.
    last_request: Arc<Mutex<Instant>>,
    began: Instant,
    /// Time at which the last complete ranking was ready, and the duration of its computation.
    completed: Arc<Mutex<Option<(Instant, Duration)>>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Default)]
struct State {
    /// The last complete ranking, or a partial one until the first is complete.
    latest: Option<Result<Arc<TopQueries>, ReadError>>,
    is_working: bool,
}

impl Ranking {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            last_request: Arc::new(Mutex::new(now)),
            began: now,
            completed: Arc::default(),
            state: watch::Sender::new(State::default()),
        }
    }

    fn is_wanted(last_request: &Mutex<Instant>) -> bool {
        lock(last_request).elapsed() < IDLE_TIMEOUT
    }

    /// Returns `true` if the last ranking is too old and no computation is in progress.
    fn is_stale(&self) -> bool {
        let is_fresh = lock(&self.completed)
            .is_some_and(|(at, took)| at.elapsed() < MIN_FRESH_TIME.max(FRESH_FACTOR * took));
        !self.state.borrow().is_working && !is_fresh
    }
}

impl Default for Rankings {
    fn default() -> Self {
        Self {
            by_query: Mutex::default(),
            computation: Semaphore::new(1),
        }
    }
}

impl Rankings {
    /// Returns the time at which the last computation of a ranking began, and the state of the
    /// ranking. Starts a computation if the ranking is stale.
    fn subscribe(
        &self,
        api: &Data<Api>,
        range: TimeRange,
        query: QueriesQuery,
    ) -> Result<(Instant, watch::Receiver<State>), Problem> {
        // Requests share a ranking regardless of the time that they wait for it.
        let query = QueriesQuery {
            wait_ms: None,
            ..query
        };
        let mut by_query = lock(&self.by_query);
        by_query.retain(|_, ranking| Ranking::is_wanted(&ranking.last_request));
        if by_query.len() >= MAX_RANKINGS && !by_query.contains_key(&query) {
            return Err(Problem::new(
                Code::Busy,
                "too many different rankings at once; retry later",
            ));
        }
        let ranking = by_query.entry(query.clone()).or_insert_with(Ranking::new);
        *lock(&ranking.last_request) = Instant::now();
        if ranking.is_stale() {
            ranking.began = Instant::now();
            ranking.state.send_modify(|state| state.is_working = true);
            compute(api.clone(), range, query, ranking);
        }
        Ok((ranking.began, ranking.state.subscribe()))
    }

    /// Removes all rankings. Call this after a change to the failures or the statuses.
    pub(crate) fn clear(&self) {
        lock(&self.by_query).clear();
    }
}

/// Computes a ranking in the background. Publishes partial rankings and the result in its state.
fn compute(api: Data<Api>, range: TimeRange, query: QueriesQuery, ranking: &Ranking) {
    let (last_request, completed, state) = (
        Arc::clone(&ranking.last_request),
        Arc::clone(&ranking.completed),
        ranking.state.clone(),
    );
    actix_rt::spawn(async move {
        let permit = api.rankings.computation.acquire().await;
        let began = Instant::now();
        let page = list_request(query.limit, query.cursor);
        let QueriesQuery {
            failure_type,
            retrieval_strategy,
            status,
            text,
            order,
            ..
        } = query;
        let filter = QueryFilter {
            failure_type,
            retrieval_strategy,
            status,
            text,
            order,
        };
        let partial = state.clone();
        let publish = move |ranking: TopQueries| {
            partial.send_modify(|state| {
                // A stale complete ranking is more useful than a partial new one.
                let is_complete = matches!(&state.latest, Some(Ok(latest)) if !latest.in_progress);
                if !is_complete {
                    state.latest = Some(Ok(Arc::new(ranking)));
                }
            });
        };
        let is_wanted = move || Ranking::is_wanted(&last_request);
        let ranking = api
            .logger
            .reader()
            .rank_queries(range, filter, page, FIRST_PARTIAL_AFTER, is_wanted, publish)
            .await;
        *lock(&completed) = ranking.is_ok().then(|| (Instant::now(), began.elapsed()));
        state.send_replace(State {
            latest: Some(ranking.map(Arc::new)),
            is_working: false,
        });
        drop(permit);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// New status of a group of failing queries.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewStatus {
    /// `id` of the group.
    #[serde(default)]
    id: Option<String>,
    /// Any query of the group, as an alternative to the `id`.
    #[serde(default)]
    #[schema(max_length = 512)]
    query_text: Option<String>,
    /// Status that the group gets.
    status: QueryStatus,
}

/// Sets the status of a group of failing queries: resolved, ignored or open. A resolved group
/// reopens when one of its queries fails later.
#[utoipa::path(put, path = "/v1/queries/status", operation_id = "set_query_status", tag = "triage", request_body = NewStatus, responses(
    (status = 204, description = "The status is committed."),
    (status = 404, description = "No failure is in this group.", body = Problem, content_type = "application/problem+json"),
    BodyProblems,
))]
pub(crate) async fn set_status(
    api: Data<Api>,
    request: HttpRequest,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    // A browser sends other media types across sites without a preflight request.
    if media_type(&request) != "application/json" {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "Content-Type: expected application/json",
        ));
    }
    let body = Body::new(&api, &request, body)?;
    let (json, _held) = body
        .read_whole(MAX_STATUS_BYTES, "send the `id` of the group")
        .await?;
    let mut deserializer = serde_json::Deserializer::from_slice(&json);
    let status: NewStatus =
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let (path, detail) = (error.path().to_string(), error.inner().to_string());
            // The line and column add nothing to the path.
            Problem::field(&path, detail.split(" at line ").next().unwrap_or_default())
        })?;
    let group = match (status.id, status.query_text) {
        (Some(id), None) => {
            let texts = api.groups.texts(&api, &id).await?;
            let texts = texts.ok_or_else(|| Problem::not_found(NO_GROUP))?;
            api.logger.set_status_of_texts(texts, status.status).await?;
            id
        }
        (None, Some(text)) => {
            api.logger.set_query_status(&text, status.status).await?;
            group_id(&normalized(&text))
        }
        (Some(_), Some(_)) | (None, None) => {
            return Err(Problem::new(
                Code::InvalidBody,
                "expected either `id` or `query_text`",
            ));
        }
    };
    tracing::info!(
        group,
        status = status.status.as_str(),
        "the status of a group was set"
    );
    // Cached rankings contain the old status.
    api.rankings.clear();
    Ok(HttpResponse::NoContent().finish())
}

/// Cache of the texts of listed groups, by their ids. A client usually sets the status of a group
/// that it has just listed, and the status covers the texts that were listed.
#[derive(Default)]
pub(crate) struct Groups(Mutex<GroupTexts>);

#[derive(Default)]
struct GroupTexts {
    by_id: HashMap<String, Vec<String>>,
    bytes: usize,
}

impl Groups {
    fn remember(&self, ranking: &TopQueries) {
        // A partial ranking has each text by itself.
        if ranking.partial {
            return;
        }
        let mut cache = lock(&self.0);
        for group in &ranking.groups {
            let texts = match group.members.is_empty() {
                true => vec![group.key.clone()],
                false => group.members.clone(),
            };
            let bytes = texts.iter().map(String::len).sum::<usize>();
            // Clearing is enough as eviction, because `texts` falls back to the database.
            if cache.by_id.len() >= MAX_GROUPS || cache.bytes + bytes > MAX_GROUP_BYTES {
                *cache = GroupTexts::default();
            }
            cache.bytes += bytes;
            cache.by_id.insert(group.id.clone(), texts);
        }
    }

    /// Returns the texts of a group, from this cache or from the database. Returns `None` if no
    /// group has this id.
    pub(crate) async fn texts(&self, api: &Api, id: &str) -> Result<Option<Vec<String>>, Problem> {
        if let Some(texts) = lock(&self.0).by_id.get(id) {
            return Ok(Some(texts.clone()));
        }
        let reader = api.logger.reader();
        let Some(key) = reader.key_of_group(id.to_owned()).await? else {
            return Ok(None);
        };
        let texts = reader.group_of(&key).await?;
        Ok(Some(if texts.is_empty() { vec![key] } else { texts }))
    }
}

/// Detail of a problem with the id of a group.
pub(crate) const NO_GROUP: &str = "no group of queries has this id; /v1/queries lists all groups";

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Closed => Self::new(Code::ShuttingDown, error.to_string()),
            ChangeError::NotFound => Self::not_found(error.to_string()),
            ChangeError::TooLong { .. } => Self::new(Code::InvalidBody, error.to_string()),
            ChangeError::Store(StoreError::Split(_)) => {
                Self::new(Code::InvalidBody, "this query cannot have a status")
            }
            ChangeError::Store(_) => {
                tracing::warn!(%error, "cannot write to the database");
                Self::new(
                    Code::DatabaseUnavailable,
                    "the database cannot be written at present; retry later, or see the service's log",
                )
            }
        }
    }
}
