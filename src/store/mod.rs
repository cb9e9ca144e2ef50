//! What a store does, and who may commit to it.

mod application;
pub(crate) mod attempts;
#[cfg(feature = "cli")]
pub(crate) mod backup;
mod checkpoint;
pub(crate) mod delete;
pub(crate) mod drops;
mod file;
pub(crate) mod log;
pub(crate) mod marks;
pub(crate) mod migrate;
mod models;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod retention;
mod schema;
mod sqlite;
mod uncounted;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) use attempts::Resolution;
use delete::{Deleted, Deletion};
pub(crate) use models::{FEW_ROWS, Row};
pub(crate) use retention::StoredRetention;
pub(crate) use sqlite::{Database, Quarantine};
#[cfg(test)]
pub(crate) use sqlite::{migrated, plan};

use crate::attempts::{AttemptBatch, Owner};
use crate::error::StoreError;
use crate::stats::DropCounts;

/// Keeps rows. Blocking: only ever called on a thread that may block.
pub(crate) trait Store: Send {
    /// Stores all `rows` and `attempts`, or none, in one transaction. What is stored already, by
    /// its `event_id`, is left as it is. If the store refuses to count `attempts`, it takes the rows alone, and says why.
    ///
    /// The permit says that the rows are committed; while it is held, `gate` cannot be closed, so
    /// that the caller can account for them.
    fn insert<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, StoreError>;

    /// Whether the store takes a row of which nothing is known to be wrong. It is not kept.
    fn takes_a_plain_row(&mut self) -> bool;

    /// Returns how many rows are dated within `range`.
    #[cfg(feature = "cli")]
    fn count_within(&mut self, range: Range<i64>) -> Result<u64, StoreError>;

    /// Deletes at most `limit` rows dated within `range`, oldest first. Returns how many.
    fn purge(&mut self, range: Range<i64>, limit: u32) -> Result<u64, StoreError>;

    /// Deletes the counts of attempts in spans that begin at `from` or later.
    #[cfg(feature = "cli")]
    fn purge_attempts_from(&mut self, from: i64) -> Result<(), StoreError>;

    /// Reads the retention in force and the state of its clock.
    fn retention(&mut self) -> Result<StoredRetention, StoreError>;

    /// Replaces both by what `change` makes of them, in one transaction: several processes do so.
    fn change_retention(
        &mut self,
        change: &mut dyn FnMut(StoredRetention) -> StoredRetention,
    ) -> Result<(), StoreError>;

    /// Adds some of the attempts that were stored last to their minutes, hours and days. Returns `true` if those were
    /// all. `own`: whose need not be some time old, because all of them are acknowledged. `None`: not all of them are.
    fn roll_up(&mut self, own: Option<Owner>) -> Result<bool, StoreError>;

    /// Says that nothing of `owner` is written once more, so that others may roll it up.
    fn release(&mut self, owner: Owner) -> Result<(), StoreError>;

    /// Deletes some attempts whose span ended before a moment, at one resolution: whether those
    /// were all.
    fn expire(&mut self, resolution: Resolution, before: i64) -> Result<bool, StoreError>;

    /// Adds to what was lost, by the beginning of the minute in Unix milliseconds.
    fn count_drops(&mut self, drops: &BTreeMap<i64, DropCounts>) -> Result<(), StoreError>;

    /// Forgets what was lost before a moment.
    fn expire_drops(&mut self, before: i64) -> Result<(), StoreError>;

    /// Marks a question, which is given in lower case and without punctuation.
    fn mark(&mut self, question: &str, mark: marks::Mark) -> Result<(), StoreError>;

    /// Deletes some failures for good, after `so_far`: with the last of them the file is written anew without them.
    /// Returns what was deleted, and whether a reader keeps the journal with the deleted text.
    fn delete(&mut self, deletion: &Deletion, so_far: Deleted) -> Result<(Deleted, Erased), StoreError>;

    /// Size of the file. `None`: others have tables in it.
    fn size(&mut self) -> Result<Option<Size>, StoreError>;

    /// Gives some free pages of the file back to the file system.
    fn shrink(&mut self) -> Result<(), StoreError>;

    /// Lets the store tidy up before it is dropped.
    fn close(&mut self);
}

/// Bytes of a database, without its journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Those of pages that are not free.
    pub(crate) used: u64,
    pub(crate) all: u64,
}

/// What is left of deleted text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erased {
    /// Not looked at yet, because there is more to delete.
    NotYet,
    Everywhere,
    /// A reader keeps the journal: it is overwritten or emptied later.
    NotInTheJournal,
    /// The file is an application's, and is not written anew.
    NotInFreePages,
}

/// What an insert did.
pub(crate) struct Inserted<'g> {
    pub(crate) permit: Permit<'g>,
    /// Positions of the rows that their senders repeated: they are stored already.
    pub(crate) duplicates: Vec<usize>,
    /// Readers must look at the rows, because they are not rolled up.
    pub(crate) are_behind: bool,
    /// Why no attempts were counted, if the store refused any of them.
    pub(crate) refused: Option<String>,
}

/// Lets the writer commit until a shutdown closes it. What was not committed by then never will
/// be, so that the shutdown can tell exactly what was saved.
#[derive(Default)]
pub(crate) struct CommitGate {
    state: AtomicU8,
    /// Rows of the transaction that is being committed.
    rows: AtomicUsize,
}

const OPEN: u8 = 0;
const COMMITTING: u8 = 1;
const COMMITTED: u8 = 2;
const CLOSED: u8 = 3;

impl CommitGate {
    /// Permission to commit `rows`, unless the gate is closed.
    pub(crate) fn enter(&self, rows: usize) -> Option<Permit<'_>> {
        let entered = self.advance(OPEN, COMMITTING);
        if entered {
            self.rows.store(rows, Ordering::Release);
        }
        // Not before it is entered: a permit that is dropped opens the gate.
        entered.then(|| Permit(self))
    }

    /// Closes the gate, after a commit that is on its way, for which it waits at most `patience`:
    /// how many rows are in doubt, because their commit was not done by then.
    pub(crate) fn close(&self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(in_doubt) = self.try_close(Instant::now() >= deadline) {
                return in_doubt;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes the gate if no commit is on its way, or if `too_late` and that commit is not done. Returns the number of
    /// rows in doubt. A commit that is done has to be accounted for first.
    fn try_close(&self, too_late: bool) -> Option<usize> {
        if self.advance(OPEN, CLOSED) || self.is_closed() {
            return Some(0);
        }
        (too_late && self.advance(COMMITTING, CLOSED)).then(|| self.rows.load(Ordering::Acquire))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    fn advance(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Permission to commit and to account for what was committed.
#[must_use = "the gate stays shut for others while the permit lives"]
pub(crate) struct Permit<'g>(&'g CommitGate);

impl Permit<'_> {
    /// To be called after the commit: whether it counts. It does not if the gate was closed
    /// during the commit, because the rows were reported as unsaved then.
    pub(crate) fn counts(&self) -> bool {
        self.0.advance(COMMITTING, COMMITTED)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.advance(COMMITTED, OPEN) || self.0.advance(COMMITTING, OPEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_commit() {
        let gate = CommitGate::default();
        drop(gate.enter(1).unwrap());
        assert_eq!(gate.close(Duration::ZERO), 0);
        assert!(gate.enter(1).is_none());
    }

    #[test]
    fn a_commit_that_outlasts_the_patience_is_in_doubt_and_does_not_count() {
        let gate = CommitGate::default();
        let permit = gate.enter(7).unwrap();
        assert_eq!(gate.close(Duration::ZERO), 7);
        assert!(!permit.counts());
        drop(permit);
        assert!(gate.enter(1).is_none());
    }

    #[test]
    fn gate_with_a_commit_on_its_way_waits_until_it_is_too_late() {
        let gate = CommitGate::default();
        let permit = gate.enter(7).unwrap();
        assert_eq!(gate.try_close(false), None);
        assert!(gate.enter(1).is_none(), "one transaction at a time");
        assert_eq!(gate.try_close(true), Some(7));
        assert!(gate.is_closed() && !permit.counts());
        assert_eq!(gate.try_close(true), Some(0), "the rows are in doubt once");
    }

    #[test]
    fn gate_with_a_committed_transaction_waits_for_its_accounting() {
        let gate = CommitGate::default();
        let permit = gate.enter(7).unwrap();
        assert!(permit.counts());
        for _ in 0..3 {
            assert_eq!(gate.try_close(true), None);
            assert!(!gate.is_closed());
        }
        drop(permit);
        assert_eq!(gate.try_close(true), Some(0), "nothing is in doubt");
        assert!(gate.enter(1).is_none());
    }

    #[test]
    fn gate_that_is_closed_during_the_accounting_closes_after_it() {
        let gate = CommitGate::default();
        let accounted = std::sync::atomic::AtomicBool::new(false);
        let permit = gate.enter(7).unwrap();
        assert!(permit.counts());
        let (begin, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| {
                begin.send(()).unwrap();
                let in_doubt = gate.close(Duration::ZERO);
                (in_doubt, accounted.load(Ordering::Acquire))
            });
            begun.recv().unwrap();
            accounted.store(true, Ordering::Release);
            drop(permit);
            assert_eq!(closing.join().unwrap(), (0, true));
        });
    }

    #[test]
    fn gate_without_a_commit_opens_for_the_next_transaction() {
        let gate = CommitGate::default();
        // Rolled back.
        drop(gate.enter(7).unwrap());
        let permit = gate.enter(8).unwrap();
        assert!(permit.counts());
        drop(permit);
        let _permit = gate.enter(9).unwrap();
        assert_eq!(gate.close(Duration::ZERO), 9, "the rows of the last one");
    }
}
