//! The writing half of the interface.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::StoreError;
use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::StatusChange;
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
use crate::retention::StoredRetention;
use crate::rollup::resolution::Resolution;
use crate::rollup::{AttemptBatch, Owner};
use crate::store::gate::{CommitGate, Permit};
use crate::store::row::Row;

/// Keeps rows. Blocking: only ever called on a thread that may block.
pub(crate) trait Store: Send {
    /// Stores all `rows` and `attempts`, or none, in one transaction. What is stored already, by
    /// its `event_id`, is left as it is. If the store refuses to count `attempts`, it takes the
    /// rows alone, and says why.
    ///
    /// The permit says that the rows are committed; while it is held, `gate` cannot be closed, so
    /// that the caller can account for them.
    fn insert<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, StoreError>;

    /// Inserts a known-good row and rolls back: distinguishes an unstorable row from a failing
    /// store.
    fn takes_a_plain_row(&mut self) -> Result<(), StoreError>;

    /// Returns how many rows are dated within `range`.
    #[cfg(feature = "program")]
    fn count_within(&mut self, range: Range<Timestamp>) -> Result<u64, StoreError>;

    /// Deletes at most `limit` rows dated within `range`, oldest first. Returns how many.
    fn purge(&mut self, range: Range<Timestamp>, limit: u32) -> Result<u64, StoreError>;

    /// Deletes the counts of attempts in spans that begin at `from` or later.
    #[cfg(feature = "program")]
    fn purge_attempts_from(&mut self, from: Timestamp) -> Result<(), StoreError>;

    /// Reads the retention in force and the state of its clock.
    fn retention(&mut self) -> Result<StoredRetention, StoreError>;

    /// Replaces both by what `change` makes of them, in one transaction: several processes do so.
    fn change_retention(
        &mut self,
        change: &mut dyn FnMut(StoredRetention) -> StoredRetention,
    ) -> Result<(), StoreError>;

    /// Adds one chunk of the attempts that were stored last to their minutes, hours and days.
    /// `own`: whose need not be some time old, because all of them are acknowledged. `None`: not
    /// all of them are.
    fn roll_up(&mut self, own: Option<Owner>) -> Result<Progress, StoreError>;

    /// Says that nothing of `owner` is written once more, so that others may roll it up.
    fn release(&mut self, owner: Owner) -> Result<(), StoreError>;

    /// Deletes one chunk of the attempts whose span ended before a moment, at one resolution.
    fn expire(&mut self, resolution: Resolution, before: Timestamp)
    -> Result<Progress, StoreError>;

    /// Adds to what was lost, by the beginning of the minute.
    fn count_drops(&mut self, drops: &BTreeMap<Timestamp, DropCounts>) -> Result<(), StoreError>;

    /// Forgets what was lost before a moment.
    fn expire_drops(&mut self, before: Timestamp) -> Result<(), StoreError>;

    /// Sets the status of a query, which is given in lower case and without punctuation.
    fn set_query_status(&mut self, query: &str, change: StatusChange) -> Result<(), StoreError>;

    /// Deletes some failures for good, after `so_far`, and rewrites the file without them after the
    /// last one. Returns the number of deleted rows, and `true` if a reader keeps the journal with
    /// the deleted text.
    fn delete(
        &mut self,
        deletion: &Deletion,
        so_far: Deleted,
    ) -> Result<(Deleted, Erased), StoreError>;

    /// Size of the file. `None`: others have tables in it.
    fn size(&mut self) -> Result<Option<Size>, StoreError>;

    /// Gives some free pages of the file back to the file system.
    fn shrink(&mut self) -> Result<(), StoreError>;

    /// Lets the store tidy up before it is dropped.
    fn close(&mut self);
}

/// Result of one chunk of work. The next chunk waits for the next turn, so that other work gets its
/// turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Progress {
    Done,
    More,
}

impl Progress {
    /// Returns `Done` if nothing `is_left`.
    pub(crate) fn unless(is_left: bool) -> Self {
        if is_left { Self::More } else { Self::Done }
    }

    /// Returns `Done` if both are.
    pub(crate) fn and(self, other: Self) -> Self {
        Self::unless(self == Self::More || other == Self::More)
    }
}

/// Bytes of a database, without its journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Those of pages that are not free.
    pub(crate) used: u64,
    pub(crate) all: u64,
}

/// Places in which deleted text may still be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erased {
    /// Not looked at yet, because there is more to delete.
    NotYet,
    Everywhere,
    /// A reader keeps the journal: it is overwritten or emptied later.
    NotInTheJournal,
    /// The file belongs to an application, and is not rewritten.
    NotInFreePages,
}

/// Result of an insert.
pub(crate) struct Inserted<'g> {
    pub(crate) permit: Permit<'g>,
    /// Positions of the rows that their senders repeated: they are stored already.
    pub(crate) duplicates: Vec<usize>,
    /// Readers must look at the rows, because they are not rolled up.
    pub(crate) are_behind: bool,
    /// Reason why no attempts were counted, if the store rejected any of them.
    pub(crate) refused: Option<String>,
}
