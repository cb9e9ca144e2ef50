//! Responses that take long to send, bounded in number and in memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};

use crate::http::Api;
use crate::http::guard::Grant;
use crate::http::problem::{Code, Problem};

/// Maximum size of all responses together that wait for their clients.
const MAX_QUEUED_BYTES: usize = 8 << 20;
/// Size of the slices that a connection gets. It takes the next slice once it has sent this one, so
/// that a slow client does not hold a second copy of the response.
const SLICE_BYTES: usize = 32 << 10;

/// Slots for streams of one kind, which bound their number.
pub(crate) struct StreamSlots {
    taken: AtomicUsize,
    max: usize,
    /// Kind of the streams, in the plural.
    kind: &'static str,
}

impl StreamSlots {
    pub(crate) fn new(kind: &'static str, max: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            max,
            kind,
        }
    }

    /// Takes a slot for the stream of a request.
    pub(crate) fn take(
        &self,
        api: &Data<Api>,
        request: &HttpRequest,
    ) -> Result<StreamSlot, Problem> {
        let taken = self.taken.fetch_add(1, Ordering::AcqRel);
        // The counter may exceed the maximum for a moment: a slot that is not returned is dropped
        // here, which undoes the increment. No other memory depends on the counter, so the ordering
        // only pairs with the decrement.
        let slot = StreamSlot {
            grant: Grant::new(api, request),
            api: api.clone(),
            kind: self.kind,
        };
        if taken < self.max {
            return Ok(slot);
        }
        Err(Problem::new(
            Code::Busy,
            format!("all {} {} are in use; retry later", self.max, self.kind),
        ))
    }
}

/// Slot of one stream. Dropping it frees the slot.
pub(crate) struct StreamSlot {
    api: Data<Api>,
    grant: Grant,
    kind: &'static str,
}

impl StreamSlot {
    /// Returns `false` if the token of the request was withdrawn in the meantime.
    pub(crate) fn is_allowed(&self) -> bool {
        self.grant.is_valid()
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let all = [&self.api.exports, &self.api.tails];
        if let Some(slots) = all.into_iter().find(|slots| slots.kind == self.kind) {
            slots.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Responds with serialized JSON. Large JSON is sent in slices, and counts against
/// [`MAX_QUEUED_BYTES`] until it is sent.
pub(crate) fn json(api: &Data<Api>, json: Bytes) -> Result<HttpResponse, Problem> {
    let mut response = HttpResponse::Ok();
    response.content_type("application/json");
    if json.len() <= SLICE_BYTES {
        return Ok(response.body(json));
    }
    Ok(response.body(QueuedBody::new(api, json)?))
}

/// Body that its connection takes in slices. Its whole size counts as queued until it is dropped,
/// because the slices share one allocation.
struct QueuedBody {
    api: Data<Api>,
    bytes: usize,
    rest: Bytes,
}

impl QueuedBody {
    fn new(api: &Data<Api>, rest: Bytes) -> Result<Self, Problem> {
        let bytes = rest.len();
        // The counter may exceed the maximum for a moment, as with `StreamSlots::take`.
        let all = api.queued_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let body = Self {
            api: api.clone(),
            bytes,
            rest,
        };
        if all <= MAX_QUEUED_BYTES {
            return Ok(body);
        }
        Err(Problem::new(
            Code::Busy,
            "too many clients read large responses too slowly; retry later",
        ))
    }
}

impl Drop for QueuedBody {
    fn drop(&mut self) {
        self.api
            .queued_bytes
            .fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl MessageBody for QueuedBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let rest = &mut self.get_mut().rest;
        let slice = rest.split_to(SLICE_BYTES.min(rest.len()));
        Poll::Ready((!slice.is_empty()).then_some(Ok(slice)))
    }
}
