//! What the actor can be asked, besides being sent records.

use actix::Message;
use tokio::sync::oneshot;

use crate::error::{LoggerError, StoreError};
use crate::stats::{FlushReport, ShutdownReport, Stats};
use crate::store::marks::Mark;

/// Asks to commit everything that was logged before; answered when it is done, or has failed.
/// Records that the same sender sent to the actor before are included.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<FlushReport, LoggerError>")]
pub struct Flush;

/// Asks for the counters.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stats")]
pub struct GetStats;

/// Asks to refuse new records, commit what was accepted, and end, within the configured
/// `shutdown_timeout`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<ShutdownReport, LoggerError>")]
pub struct Shutdown;

/// [`Flush`], from a handle. Sent without the mailbox's bound: a request that waits for an answer
/// would be refused, and never asked again, while the mailbox is full of records.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FlushFor(pub(crate) oneshot::Sender<Result<FlushReport, LoggerError>>);

/// Marks a question, from a handle.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct MarkQuestion {
    /// In lower case and without punctuation.
    pub(crate) question: String,
    pub(crate) mark: Mark,
    pub(crate) reply: oneshot::Sender<Result<(), StoreError>>,
}
