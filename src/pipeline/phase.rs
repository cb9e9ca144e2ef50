//! The states of a logger: its phase, and its admission of records.

use std::time::Instant;

use crate::error::LoggerError;
use crate::model::stats::ShutdownReport;

/// Phase of the logger.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Running,
    /// Restarts keep failing. Records come in while the buffer has room, and a flush that succeeds
    /// leads back to `Running`.
    Unavailable {
        cause: String,
    },
    /// A shutdown drains mailbox and buffer, at most until the deadline. `persisted_before` is the
    /// count at its beginning, from which the report computes how many records the shutdown saved.
    Closing {
        deadline: Instant,
        persisted_before: u64,
    },
    Closed {
        result: Result<ShutdownReport, LoggerError>,
    },
}

/// Admission of records through the handle. The actor admits those of its mailbox until the mailbox
/// is drained, because they were sent before the shutdown.
///
/// | admission | a call | set by |
/// | --- | --- | --- |
/// | `Open` | is accepted, or dropped as `buffer_full` | the start, a store that works again |
/// | `Unavailable` | is accepted, or dropped as `unavailable` | restarts that keep failing |
/// | `Unusable` | is dropped as `unavailable` | invalid settings; never left but by a shutdown |
/// | `Closed` | is dropped as `closed` | a shutdown; never left |
/// | `Disabled` | does nothing, and counts nothing | `enabled(false)`; never left |
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Admission {
    Open,
    /// Open, but a full buffer has a worse reason than speed.
    Unavailable,
    /// There is no database, and will be none.
    Unusable,
    Closed,
    Disabled,
}

/// Returns `true` for the combinations that occur: the table of docs/architecture.md, "States".
///
/// - A sealed buffer or a closed gate without a shutdown would keep all records for ever.
/// - A closed gate before the seal would let a record in that is in no report.
/// - An open admission during a shutdown would let callers fill the buffer while the writer drains
///   it.
/// - An unsealed buffer after the end would accept a record that no writer takes out.
#[cfg(test)]
pub(crate) fn is_legal(
    phase: &Phase,
    admission: Admission,
    is_sealed: bool,
    gate_is_closed: bool,
) -> bool {
    match phase {
        Phase::Running | Phase::Unavailable { .. } if is_sealed || gate_is_closed => false,
        // Phase and admission change one after the other, so that each may be seen with the old
        // value of the other.
        Phase::Running => admission != Admission::Unusable,
        Phase::Unavailable { .. } => admission != Admission::Disabled,
        Phase::Closing { .. } => admission == Admission::Closed && (is_sealed || !gate_is_closed),
        Phase::Closed { .. } => {
            matches!(admission, Admission::Closed | Admission::Disabled)
                && is_sealed
                && gate_is_closed
        }
    }
}
