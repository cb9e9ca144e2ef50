//! Messages within the logger. Applications send records, and call the handle for everything else.

use tokio::sync::oneshot;

use crate::error::{LoggerError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::StatusChange;
use crate::model::stats::FlushReport;
use crate::store::write::Erased;

/// Implements `Message` without a result. These messages are answered, if at all, through a channel
/// that they carry: actix cancels a message whose `send` future is dropped, and a request to commit
/// must not be cancelled because its caller stopped waiting.
macro_rules! unanswered {
    ($($message:ty),* $(,)?) => {
        $(impl actix::Message for $message {
            type Result = ();
        })*
    };
}
pub(crate) use unanswered;

unanswered!(
    Flush,
    Shutdown,
    SetQueryStatus,
    DeleteFailures,
    MailboxMarker,
    MailboxEnd,
    RoomWanted
);

/// Requests that everything that was logged or sent before is committed.
#[derive(Debug)]
pub(crate) struct Flush(pub(crate) oneshot::Sender<Result<FlushReport, LoggerError>>);

/// Requests that the logger commits what was accepted, and ends. The deadline is in the phase.
#[derive(Debug)]
pub(crate) struct Shutdown;

/// Sets the status of queries, from a handle.
#[derive(Debug)]
pub(crate) struct SetQueryStatus {
    /// In their normal form.
    pub(crate) queries: Vec<String>,
    pub(crate) change: StatusChange,
    pub(crate) reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Deletes failures for good, from a handle.
#[derive(Debug)]
pub(crate) struct DeleteFailures {
    pub(crate) deletion: Deletion,
    /// The chunks that are done. The message goes back to its queue with it after each chunk.
    pub(crate) so_far: Deleted,
    pub(crate) reply: oneshot::Sender<Result<(Deleted, Erased), StoreError>>,
}

/// Stands behind all records that were sent to the mailbox before. Answered, or dropped, when they
/// are taken out.
#[derive(Debug)]
pub(crate) struct MailboxMarker(pub(crate) oneshot::Sender<()>);

/// Marks the end of the records that the actor reads now. Each mark has its own number.
#[derive(Debug)]
pub(crate) struct MailboxEnd(pub(crate) u64);

/// Says that records wait in the mailbox for room in the buffer, so that the control actor flushes
/// without waiting for its timer.
#[derive(Debug)]
pub(crate) struct RoomWanted;
