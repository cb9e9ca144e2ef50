//! Messages within the logger. Applications send records, and call the handle for everything else.

use actix::Message;
use tokio::sync::oneshot;

use crate::error::{LoggerError, StoreError};
use crate::stats::FlushReport;
use crate::store::Erased;
use crate::store::delete::{Deleted, Deletion};
use crate::store::marks::Mark;

/// Requests that everything that was logged or sent before is committed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Flush(pub(crate) oneshot::Sender<Result<FlushReport, LoggerError>>);

/// Requests that the logger commits what was accepted, and ends. The deadline is in the phase.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Shutdown;

/// Marks a question, from a handle.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct MarkQuestion {
    /// In lower case and without punctuation.
    pub(crate) question: String,
    pub(crate) mark: Mark,
    pub(crate) reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Deletes failures for good, from a handle.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct DeleteFailures {
    pub(crate) deletion: Deletion,
    pub(crate) so_far: Deleted,
    pub(crate) reply: oneshot::Sender<Result<(Deleted, Erased), StoreError>>,
}

/// Stands behind all records that were sent to the mailbox before. Answered, or dropped, when they are taken out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct MailboxMarker(pub(crate) oneshot::Sender<()>);

/// Ends what the actor reads of its mailbox at once. 0: the end of the logger.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct MailboxEnd(pub(crate) u64);

/// Records wait in the mailbox for room in the buffer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RoomWanted;
