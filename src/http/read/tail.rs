//! Tail streams: new failures as server-sent events.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use actix_web::http::header::{ContentEncoding, HeaderValue};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::Api;
use crate::http::params::Params;
use crate::http::problem::{Code, Problem, ReadProblems};
use crate::http::read::streams::StreamSlot;
use crate::http::read::{MAX_VALUES, filtered, ranged};
use crate::model::failure::FailureFilter;
use crate::model::outcome::RetrievalFailureType;
use crate::report::{FailureReader, Position, TailPage};

/// Interval between two reads of the log.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum time without an event or a comment. Without a comment, the service would not notice that
/// the connection is broken, and proxies would close an idle one.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum number of failures in one read. It bounds the memory of a stream.
const MAX_FAILURES_PER_READ: usize = 200;

filtered! {
/// Filter of the streamed failures. The time range applies to the time of a failure, not to the
/// time at which it was stored.
    struct TailQuery {
    }
}

/// Streams failures as they are stored. The data of each event `failure` is a failure.
///
/// With `Last-Event-ID`, the stream begins with the failures that were stored after that event. An
/// event `replaced` means that another database took the place of this one. All further failures
/// are from the new database.
#[utoipa::path(get, path = "/v1/tail", operation_id = "tail_failures", tag = "reads", params(TailQuery), responses(
    (status = 200, description = "Server-sent events. The stream has no end.", body = String, content_type = "text/event-stream"),
    ReadProblems,
))]
pub(crate) async fn tail(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<TailQuery>,
) -> Result<HttpResponse, Problem> {
    let filter = query.filter(&api).await?;
    let slot = api.tails.take(&api, &request)?;
    let reader = api.logger.reader();
    let position = match request
        .headers()
        .get("last-event-id")
        .map(position_of)
        .transpose()?
        .flatten()
    {
        Some(position) => position,
        None => reader.tail(filter.clone(), None, 1).await?.position,
    };
    let tail = Tail {
        api,
        slot,
        reader,
        filter,
        position,
        ready: VecDeque::new(),
        last_sent: None,
        has_more: false,
    };
    let events = futures_util::stream::unfold(tail, Tail::next);
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("x-accel-buffering", "no"))
        // The compression middleware would hold events back until its buffer is full.
        .insert_header(ContentEncoding::Identity)
        .streaming(events))
}

/// Parses the position in an event id.
///
/// Returns `None` for an id of an earlier version, which is a bare number and names no log. A
/// client that was connected during the upgrade then resumes at the end of the log.
fn position_of(id: &HeaderValue) -> Result<Option<Position>, Problem> {
    let parse = || {
        let id = id.to_str().ok()?;
        let is_number = id.bytes().all(|byte| byte.is_ascii_digit()) && id.parse::<i64>().is_ok();
        if is_number {
            Some(None)
        } else {
            id.parse().ok().map(Some)
        }
    };
    parse().ok_or_else(|| {
        Problem::new(
            Code::InvalidHeader,
            format!("Last-Event-ID = {id:?}: expected the id of an event of this stream"),
        )
    })
}

/// State of one tail stream.
struct Tail {
    api: Data<Api>,
    slot: StreamSlot,
    reader: FailureReader,
    filter: FailureFilter,
    position: Position,
    /// Events that were read but not sent.
    ready: VecDeque<Bytes>,
    /// Time at which the last event or comment was sent.
    last_sent: Option<Instant>,
    /// `true` if the last read did not reach the end of the log.
    has_more: bool,
}

impl Tail {
    /// Returns the next event or comment, or `None` if the stream ends.
    async fn next(mut self) -> Option<(Result<Bytes, Problem>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last_sent = Some(Instant::now());
                return Some((Ok(event), self));
            }
            // The first comment is sent at once, so that the client knows that it is connected.
            if self
                .last_sent
                .is_none_or(|last_sent| last_sent.elapsed() >= COMMENT_INTERVAL)
            {
                self.last_sent = Some(Instant::now());
                // The id lets a client resume here if it is disconnected before the first failure.
                let comment = format!("id: {}\n: the log is followed\n\n", self.position);
                return Some((Ok(comment.into()), self));
            }
            if !std::mem::take(&mut self.has_more) {
                actix_rt::time::sleep(POLL_INTERVAL).await;
            }
            // The client reconnects with `Last-Event-ID`, so an end loses no events.
            let has_ended =
                self.api.options.is_ending() || self.api.logger.shared().refusal().is_some();
            if has_ended || !self.slot.is_allowed() {
                return None;
            }
            match self
                .reader
                .tail(
                    self.filter.clone(),
                    Some(self.position),
                    MAX_FAILURES_PER_READ,
                )
                .await
            {
                Ok(TailPage {
                    failures,
                    position,
                    replaced,
                    has_more,
                    ..
                }) => {
                    self.position = position;
                    self.has_more = has_more;
                    if replaced {
                        // This event has no id, so that a client that is disconnected here gets it
                        // once more.
                        self.ready.push_back("event: replaced\ndata: {}\n\n".into());
                        if failures.is_empty() {
                            self.ready.push_back(format!("id: {position}\n\n").into());
                        }
                    }
                    for failure in failures {
                        // Compact JSON contains no line feeds, which would end the event.
                        let Ok(json) = serde_json::to_string(&failure) else {
                            continue;
                        };
                        let id = position.after(&failure);
                        self.ready.push_back(
                            format!("event: failure\nid: {id}\ndata: {json}\n\n").into(),
                        );
                    }
                }
                // The next poll retries.
                Err(error) => tracing::debug!(%error, "cannot read new failures"),
            }
        }
    }
}
