//! Failures as they come in, as server-sent events.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::web::{Bytes, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::problem::{NotAnswered, Problem};
use crate::record::RetrievalFailureType;
use crate::report::{FailureFilter, FailureReader};

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

/// Failures as they are stored: events named `failure`, whose data is a failure. With
/// `Last-Event-ID`, the ones since then come first.
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
    let last = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<i64>().ok());
    let after = match last {
        Some(id) => id,
        None => reader.follow(filter.clone(), None, 1).await?.1,
    };
    let tail = Tail { place, reader, filter, after, ready: VecDeque::new(), looks: 0, more: false };
    let events = futures_util::stream::unfold(tail, Tail::next);
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

struct Tail {
    place: Place,
    reader: FailureReader,
    filter: FailureFilter,
    after: i64,
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
                let comment = format!("id: {}\n: the log is followed\n\n", self.after);
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
            match self.reader.follow(self.filter.clone(), Some(self.after), AT_A_TIME).await {
                Ok((failures, after)) => {
                    self.after = after;
                    self.more = failures.len() == AT_A_TIME;
                    for failure in failures {
                        // JSON has no line feeds.
                        let Ok(json) = serde_json::to_string(&failure) else { continue };
                        let event = format!("event: failure\nid: {}\ndata: {json}\n\n", failure.id);
                        self.ready.push_back(event.into());
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
