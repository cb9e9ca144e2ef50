//! A record on its way, and what is known beside its fields.

use uuid::Uuid;

use crate::model::record::RetrievalFailureRecord;
use crate::model::time::Timestamp;

/// A record and the moment of the call that logged it.
pub(crate) struct Entry {
    pub(crate) record: RetrievalFailureRecord,
    pub(crate) logged_at: Timestamp,
    pub(crate) origin: Origin,
}

/// Facts about a record beside its fields.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Origin {
    /// `true` if a monitor has counted the attempt.
    pub(crate) is_observed: bool,
    /// The id under which its sender may send it again.
    pub(crate) event_id: Option<Uuid>,
    pub(crate) unmeasured: Unmeasured,
}

/// The numbers of a record that its sender did not measure. Their columns are NULL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unmeasured {
    pub(crate) turn_index: bool,
    pub(crate) result_count: bool,
    pub(crate) latency_ms: bool,
}

/// A failure that a monitor saw.
pub(crate) struct Observed {
    pub(crate) record: RetrievalFailureRecord,
    pub(crate) unmeasured: Unmeasured,
}

impl Origin {
    /// A record from a caller.
    pub(crate) const LOGGED: Self = Self {
        is_observed: false,
        event_id: None,
        unmeasured: Unmeasured {
            turn_index: false,
            result_count: false,
            latency_ms: false,
        },
    };
}
