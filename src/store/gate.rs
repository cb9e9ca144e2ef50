//! The commit gate: a transaction commits only with a permit, and no permit is given after the
//! deadline of a shutdown.
//!
//! | state | entered by | left by |
//! | --- | --- | --- |
//! | open | the start, the drop of a permit | `enter`, `close` |
//! | committing | `enter` | `Permit::counts`, the drop of the permit (rolled back), `close` after its timeout |
//! | committed | `Permit::counts` | the drop of the permit |
//! | closed | `close` | never |
//!
//! The decisive exchange is that of `counts` and `close`: both start from committing, and only one
//! succeeds. If `counts` wins, `close` waits until the rows are accounted for. If `close` wins, the
//! rows are in doubt, and the writer must not count them.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Lets the writer commit until a shutdown closes it. No transaction commits afterwards, so that
/// the report of the shutdown has the exact number of persisted records.
#[derive(Default)]
pub(crate) struct CommitGate {
    state: AtomicU8,
    /// Rows of the transaction that is being committed. `close` reads it after its timeout, to
    /// report how many rows are in doubt.
    rows: AtomicUsize,
}

const OPEN: u8 = 0;
const COMMITTING: u8 = 1;
const COMMITTED: u8 = 2;
const CLOSED: u8 = 3;

impl CommitGate {
    /// Returns the permission to commit `rows` rows. `None`: the gate is closed, or another
    /// transaction has the permit.
    pub(crate) fn enter(&self, rows: usize) -> Option<Permit<'_>> {
        let entered = self.advance(OPEN, COMMITTING);
        if entered {
            self.rows.store(rows, Ordering::Release);
        }
        // `then` makes a permit only if the exchange succeeded, because the drop of a permit opens
        // the gate.
        entered.then(|| Permit(self))
    }

    /// Closes the gate. Waits at most `timeout` for a commit that is under way. Returns the number
    /// of rows that are in doubt, because their commit was not done by then.
    pub(crate) fn close(&self, timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(in_doubt) = self.try_close(Instant::now() >= deadline) {
                return in_doubt;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes the gate if no commit is on its way, or if `too_late` and that commit is not done.
    /// Returns the number of rows in doubt. A commit that is done has to be accounted for first.
    fn try_close(&self, too_late: bool) -> Option<usize> {
        if self.advance(OPEN, CLOSED) || self.is_closed() {
            return Some(0);
        }
        (too_late && self.advance(COMMITTING, CLOSED)).then(|| self.rows.load(Ordering::Acquire))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Changes the state if it is `from`. AcqRel, so that the thread that closes the gate sees the
    /// counts that the writer changed before it dropped its permit.
    fn advance(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// Permission to commit and to account for what was committed.
#[must_use = "no other transaction can commit while the permit exists"]
pub(crate) struct Permit<'g>(&'g CommitGate);

impl Permit<'_> {
    /// Notes that the transaction is committed. Returns `true` if the caller must count its rows as
    /// persisted. Returns `false` if the gate was closed during the commit, because the shutdown
    /// has reported the rows as unsaved.
    pub(crate) fn counts(&self) -> bool {
        self.0.advance(COMMITTING, COMMITTED)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // Nothing changes if the gate was closed meanwhile: neither exchange begins with `CLOSED`.
        let _ = self.0.advance(COMMITTED, OPEN) || self.0.advance(COMMITTING, OPEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_gate_commits_nothing() {
        let gate = CommitGate::default();
        drop(gate.enter(1).unwrap());
        assert_eq!(gate.close(Duration::ZERO), 0);
        assert!(gate.enter(1).is_none());
    }

    #[test]
    fn commit_beyond_its_deadline_is_in_doubt_and_does_not_count() {
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
