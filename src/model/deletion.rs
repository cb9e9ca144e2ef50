//! Deletion of failures for good.

/// Selects the failures that a delete removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// Those of a conversation, by its id.
    Conversation(String),
    /// Those with exactly this query; its first 512 characters count, which are stored.
    Query(String),
}

/// Progress of a deletion.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deleted {
    pub(crate) rows: u64,
    pub(crate) statuses: u64,
    /// The id after which the next chunk begins.
    pub(crate) after: i64,
    /// Nothing is left.
    pub(crate) is_done: bool,
}
