//! Failures as they come in, as server-sent events.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use actix_web::web::{Bytes, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::problem::{NotAnswered, Problem};
use crate::record::RetrievalFailureType;
use crate::report::{FailureFilter, FailureReader, Followed, Position};

/// How often to look for new failures.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A sign of life, without which a broken connection would go unnoticed.
const LOOKS_PER_COMMENT: u32 = 30;
/// Failures that are fetched at a time.
const AT_A_TIME: usize = 200;

/// Which failures are followed.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TailQuery {
    /// Only failures of this type.
    #[serde(default)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy.
    #[serde(default)]
    strategy: Option<String>,
    /// Only failures of this conversation.
    #[serde(default)]
    conversation: Option<String>,
    /// Only failures whose query or error contains this.
    #[serde(default)]
    text: Option<String>,
    /// Only failures with exactly this query, as it is stored.
    #[serde(default)]
    query: Option<String>,
    /// Only failures whose query is nearly the same: those of a group, by its `key`.
    #[serde(default)]
    question: Option<String>,
}

/// Failures as they are stored: events named `failure`, whose data is a failure. With `Last-Event-ID`, the ones
/// since then come first. An event named `replaced` says that another log has the name now: what follows is from
/// that one.
#[utoipa::path(get, path = "/v1/tail", tag = "questions", params(TailQuery), responses(
    (status = 200, body = String, content_type = "text/event-stream"),
    NotAnswered,
))]
pub(super) async fn tail(
    api: Data<Api>,
    request: HttpRequest,
    query: Query<TailQuery>,
) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let filter = FailureFilter {
        range: None,
        failure_type: query.failure_type,
        strategy: query.strategy,
        conversation: query.conversation,
        text: query.text,
        query: query.query,
        question: query.question,
    };
    let place = Place::take(api.into_inner())?;
    let reader = place.0.logger.reader();
    let position = match request.headers().get("last-event-id").map(position_of).transpose()?.flatten() {
        Some(position) => position,
        None => reader.follow(filter.clone(), None, 1).await?.position,
    };
    let tail = Tail { place, reader, filter, position, ready: VecDeque::new(), looks: 0, more: false };
    let events = futures_util::stream::unfold(tail, Tail::next);
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

/// Returns the position that an id tells; `None` for an id of the version before, a number alone, which tells no log:
/// a client that was connected during the upgrade resumes from now.
fn position_of(id: &HeaderValue) -> Result<Option<Position>, Problem> {
    let parse = || {
        let id = id.to_str().ok()?;
        let is_number = id.bytes().all(|byte| byte.is_ascii_digit()) && id.parse::<i64>().is_ok();
        if is_number { Some(None) } else { id.parse().ok().map(Some) }
    };
    parse().ok_or_else(|| {
        Problem::bad_request(format!("Last-Event-ID = {id:?}: expected an id that an event of this stream had"))
    })
}

struct Tail {
    place: Place,
    reader: FailureReader,
    filter: FailureFilter,
    position: Position,
    ready: VecDeque<Bytes>,
    looks: u32,
    /// Whether more wait already.
    more: bool,
}

impl Tail {
    async fn next(mut self) -> Option<(Result<Bytes, Problem>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            // At once at the beginning, so that the client knows that it is connected.
            if self.looks.is_multiple_of(LOOKS_PER_COMMENT) {
                self.looks += 1;
                // With where it is, for whoever is cut off before the first failure.
                let comment = format!("id: {}\n: the log is followed\n\n", self.position);
                return Some((Ok(comment.into()), self));
            }
            self.looks += 1;
            if !std::mem::take(&mut self.more) {
                actix_rt::time::sleep(LOOK_EVERY).await;
            }
            // The client comes again, and says where it was.
            if self.place.0.options.is_ending() || self.place.0.logger.shared().closed_door().is_some() {
                return None;
            }
            match self.reader.follow(self.filter.clone(), Some(self.position), AT_A_TIME).await {
                Ok(Followed { failures, position, replaced, .. }) => {
                    self.position = position;
                    self.more = failures.len() == AT_A_TIME;
                    if replaced {
                        // Without an id: a client that is cut off here is told once more.
                        self.ready.push_back("event: replaced\ndata: {}\n\n".into());
                        if failures.is_empty() {
                            self.ready.push_back(format!("id: {position}\n\n").into());
                        }
                    }
                    for failure in failures {
                        // JSON has no line feeds.
                        let Ok(json) = serde_json::to_string(&failure) else { continue };
                        let id = position.after(&failure);
                        self.ready.push_back(format!("event: failure\nid: {id}\ndata: {json}\n\n").into());
                    }
                }
                // It may go better next time.
                Err(error) => tracing::debug!(%error, "the log could not be followed"),
            }
        }
    }
}

/// One of the followers there may be.
struct Place(Arc<Api>);

impl Place {
    fn take(api: Arc<Api>) -> Result<Self, Problem> {
        let followers = api.followers.fetch_add(1, Ordering::AcqRel);
        let place = Self(api);
        if followers < place.0.options.max_followers {
            Ok(place)
        } else {
            Err(Problem::unavailable("too many follow the log already"))
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::AcqRel);
    }
}
