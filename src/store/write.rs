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

/// Writing half of a backend. All methods block, so that only threads for blocking work call them.
///
/// A transaction that fails changes nothing: `store_suite!` fails each operation at each table.
pub(crate) trait Store: Send {
    /// Inserts all `rows` and `attempts`, or none, in one transaction. A row whose `event_id` is
    /// stored already stays as it is. If the store rejects only `attempts`, it inserts the rows
    /// without them and returns the reason.
    ///
    /// The permit proves the commit. `gate` cannot be closed while the caller holds the permit, so
    /// that the caller can count the rows as persisted first.
    fn insert<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, StoreError>;

    /// Inserts a known-good row and rolls back: distinguishes an unstorable row from a failing
    /// store.
    fn takes_a_plain_row(&mut self) -> Result<(), StoreError>;

    /// Returns the number of rows dated within `range`.
    #[cfg(feature = "program")]
    fn count_within(&mut self, range: Range<Timestamp>) -> Result<u64, StoreError>;

    /// Deletes at most `limit` rows dated within `range`, the oldest first. Returns their number.
    fn purge(&mut self, range: Range<Timestamp>, limit: u32) -> Result<u64, StoreError>;

    /// Deletes the counts of attempts in spans that begin at `from` or later.
    #[cfg(feature = "program")]
    fn purge_attempts_from(&mut self, from: Timestamp) -> Result<(), StoreError>;

    /// Reads the retention in force and the state of its clock.
    fn retention(&mut self) -> Result<StoredRetention, StoreError>;

    /// Replaces both by the result of `change`, in one transaction, because several processes may
    /// change them at once.
    fn change_retention(
        &mut self,
        change: &mut dyn FnMut(StoredRetention) -> StoredRetention,
    ) -> Result<(), StoreError>;

    /// Adds one chunk of the latest deltas to the buckets of minutes, hours and days. Deltas of
    /// other owners must have a minimum age, because their owner may still retry them. `own` names
    /// an owner whose deltas are all acknowledged, so that they need none.
    fn roll_up(&mut self, own: Option<Owner>) -> Result<Progress, StoreError>;

    /// Marks the deltas of `owner` as final: the owner retries none of them, so that other
    /// processes may roll them up at once.
    fn release(&mut self, owner: Owner) -> Result<(), StoreError>;

    /// Deletes one chunk of the buckets of one resolution that ended before a moment.
    fn expire(&mut self, resolution: Resolution, before: Timestamp)
    -> Result<Progress, StoreError>;

    /// Adds drops to the stored ones. The keys are the beginnings of minutes.
    fn count_drops(&mut self, drops: &BTreeMap<Timestamp, DropCounts>) -> Result<(), StoreError>;

    /// Deletes the drops of minutes before a moment.
    fn expire_drops(&mut self, before: Timestamp) -> Result<(), StoreError>;

    /// Sets the status of a query. `query` is given in its normal form.
    fn set_query_status(&mut self, query: &str, change: StatusChange) -> Result<(), StoreError>;

    /// Deletes one chunk of failures, from the id on at which `so_far` ended. After the last chunk,
    /// it rewrites the file without the deleted text. Returns the sum of all chunks, and the places
    /// in which the text may still be found.
    fn delete(
        &mut self,
        deletion: &Deletion,
        so_far: Deleted,
    ) -> Result<(Deleted, Erased), StoreError>;

    /// Returns the size of the file, or `None` if other applications have tables in it.
    fn size(&mut self) -> Result<Option<Size>, StoreError>;

    /// Returns some free pages of the file to the file system.
    fn shrink(&mut self) -> Result<(), StoreError>;

    /// Ends the work of the store, such as a checkpoint, before it is dropped.
    fn close(&mut self);
}

/// Result of one chunk of work. The caller runs other jobs, such as a flush, before the next chunk.
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

/// Size of a database in bytes, without its journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Bytes of pages that are not free.
    pub(crate) used: u64,
    pub(crate) all: u64,
}

/// Places in which deleted text may still be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erased {
    /// Unknown yet, because there is more to delete.
    NotYet,
    Everywhere,
    /// Everywhere but in the journal, which a reader still uses. A later checkpoint overwrites or
    /// empties it.
    NotInTheJournal,
    /// Everywhere but in free pages: the file belongs to an application, and is not rewritten.
    NotInFreePages,
}

/// Result of an insert.
pub(crate) struct Inserted<'g> {
    pub(crate) permit: Permit<'g>,
    /// Positions of the rows whose `event_id` was stored already.
    pub(crate) duplicates: Vec<usize>,
    /// Readers must look at the rows, because they are not rolled up.
    pub(crate) are_behind: bool,
    /// Number of rows whose source or labels were left out: see
    /// [`MAX_SOURCES`](crate::store::row::MAX_SOURCES).
    pub(crate) sources_left_out: u64,
    /// Reason why no attempts were counted, if the store rejected any of them.
    pub(crate) refused: Option<String>,
}
