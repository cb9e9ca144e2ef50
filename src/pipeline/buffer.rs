//! The bounded buffer and the accounting.
//!
//! A caller counts its record before it enqueues the record, and every count only grows. Any
//! snapshot of the counters therefore balances: an accepted record is settled (persisted, rejected
//! or unsaved) or still held. A record that was counted and never enqueued would stay `buffered`,
//! and `shutdown` would report it as unsaved.
//!
//! # Counts
//!
//! | count | changed by | meaning |
//! | --- | --- | --- |
//! | `accepted` | callers | records that were admitted |
//! | `settled` | the writer, and the end of a shutdown | accepted records with a final state: persisted, rejected or unsaved |
//! | `dropped` | callers | records that were not admitted |
//!
//! Three equations follow. `received = accepted + dropped`. `buffered = accepted - settled`. The
//! queue has at most `buffered` records, because the writer takes a record out before it settles
//! it.
//!
//! # The wake-up
//!
//! A caller makes no system call unless it wakes the writer, and it wakes the writer only if its
//! record completes a batch while `writer_is_awake` is `false`. Both sides write one variable and
//! then read the other one:
//!
//! 1. The caller pushes its record, and then reads `writer_is_awake`.
//! 2. The writer clears `writer_is_awake`, and then reads the length of the queue.
//!
//! All four operations are `SeqCst`, so that they have one order that both threads agree about. In
//! any such order the thread that writes second reads what the other one wrote. With `Acquire` and
//! `Release` alone, each side may read the old value of the other one. The caller then finds the
//! writer awake, the writer finds the batch incomplete, and the batch waits for the timer.
//!
//! # Room
//!
//! A task that waits for room, and the writer that makes room, must not miss each other either.
//! Each of them executes a `SeqCst` fence between its write and its read. A fence is cheap here,
//! because the writer executes one in each transaction, and a call executes none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use crate::model::entry::Entry;
use crate::model::stats::{DropCounts, DropReason};

/// The queue of records between callers and the writer. Shared by all handles, the actor and the
/// writer; outlives the actor. Callers take no lock, make no system call and allocate nothing.
pub(crate) struct Buffer {
    queue: ArrayQueue<Entry>,
    capacity: u64,
    /// Number of held records at which the buffer admits no record of a call. The places above it
    /// are for records from the mailbox.
    call_limit: AtomicU64,
    batch_size: usize,
    /// Number of admitted records, and the bit [`SEALED`]. It is the only counter that all callers
    /// change.
    accepted: CachePadded<AtomicU64>,
    /// Counts of accepted records that have a final state. The writer changes them once in each
    /// transaction.
    settled: CachePadded<Settled>,
    /// Records that were dropped before they were accepted. A caller changes it only if its record
    /// is dropped.
    dropped: CachePadded<Dropped>,
    /// `true` while the writer drains the buffer, or is already being woken; callers then skip the
    /// wake-up. It has a cache line of its own, because each call reads it and only the writer and
    /// the waking caller change it.
    writer_is_awake: CachePadded<AtomicBool>,
    /// Holds one permit if it is notified before the writer waits, so that a wake-up between
    /// [`Buffer::try_sleep`] and [`Buffer::woken`] is not missed.
    wake: Notify,
    /// `true` if a task may wait for room. The writer then notifies all waiters, and each of them
    /// checks the room by itself.
    room_wanted: AtomicBool,
    room: Notify,
}

/// The records for which the buffer has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    ForAll,
    /// Only for those that were sent to the mailbox.
    ForMailbox,
    None,
}

/// Bit of `accepted` that is set when the buffer is sealed. Seal and count share one word, because
/// a caller must see the seal in the very step in which it counts its record. With a flag beside
/// the count, a caller could find the flag unset, a shutdown could then seal the buffer and report
/// the count, and the caller would add a record that no report has.
const SEALED: u64 = 1 << 63;

/// Proof that a record is counted, and permission to enqueue it. The counts are those of the moment
/// of the admission: [`Buffer::enqueue`] compares them with later ones.
pub(crate) struct Admission {
    /// Number of admitted records at that moment, this one included. If `accepted` still has this
    /// value, no other record has been admitted since.
    accepted: u64,
    /// Upper bound of the records in the buffer at that moment, this one included. The writer may
    /// have settled some of them meanwhile.
    held: u64,
}

/// Counts of accepted records that have a final state. Each of them only grows.
#[derive(Default)]
struct Settled {
    persisted: AtomicU64,
    rejected: AtomicU64,
    unsaved: AtomicU64,
}

/// Counts of records that were dropped before they were accepted, by reason. Each of them only
/// grows.
#[derive(Default)]
struct Dropped {
    buffer_full: AtomicU64,
    unavailable: AtomicU64,
    closed: AtomicU64,
    too_old: AtomicU64,
}

impl Settled {
    /// Returns the number of settled records.
    ///
    /// `Acquire` pairs with the release in `settle`. The writer settles a record after it has taken
    /// it out of the queue, so that a caller that counts on a settled record also finds its slot
    /// free.
    fn total(&self) -> u64 {
        self.persisted.load(Ordering::Acquire)
            + self.rejected.load(Ordering::Acquire)
            + self.unsaved.load(Ordering::Acquire)
    }
}

/// Counts of all records so far, by their state, at one instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Balance {
    /// `persisted + buffered + dropped`, at any instant.
    pub(crate) received: u64,
    pub(crate) persisted: u64,
    /// Accepted and not settled: in the queue, or in the batch that is being written.
    pub(crate) buffered: u64,
    pub(crate) dropped: DropCounts,
}

impl Buffer {
    /// Returns a buffer for `capacity` records that wakes its writer when `batch_size` of them
    /// wait.
    pub(crate) fn new(capacity: usize, batch_size: usize) -> Self {
        Self {
            queue: ArrayQueue::new(capacity),
            capacity: capacity as u64,
            call_limit: AtomicU64::new(capacity as u64),
            batch_size,
            accepted: CachePadded::default(),
            settled: CachePadded::default(),
            dropped: CachePadded::default(),
            writer_is_awake: CachePadded::default(),
            wake: Notify::new(),
            room_wanted: AtomicBool::new(false),
            room: Notify::new(),
        }
    }

    /// Reserves `places` places for records from the mailbox. Returns `true` if that changes the
    /// number of reserved places.
    pub(crate) fn reserve(&self, places: usize) -> bool {
        let limit = self.capacity.saturating_sub(places as u64);
        // Relaxed, because the limit protects no other data: a call that still reads the old limit
        // decides as it would have a moment earlier.
        // A load comes first, because `addr` calls this often, and a swap would take the cache line
        // away from all callers.
        self.call_limit.load(Ordering::Relaxed) != limit
            && self.call_limit.swap(limit, Ordering::AcqRel) != limit
    }

    /// Admits and enqueues `entry`. Wakes the writer if `entry` completes a batch while the writer
    /// sleeps.
    ///
    /// The bound includes the batch that is being written.
    pub(crate) fn push(&self, entry: Entry) -> Result<(), DropReason> {
        let admission = self.admit()?;
        self.enqueue(entry, admission)
    }

    /// Admits and enqueues a record from the mailbox. The record may use the places above
    /// `call_limit`.
    pub(crate) fn push_sent(&self, entry: Entry) -> Result<(), DropReason> {
        let admission = self.admit_below(self.capacity)?;
        self.enqueue(entry, admission)
    }

    /// Puts an admitted record into the queue.
    pub(crate) fn enqueue(&self, entry: Entry, admission: Admission) -> Result<(), DropReason> {
        if self.queue.push(entry).is_err() {
            // Cannot happen, because the queue has a slot for each admitted record: see
            // `Settled::total`. If a mistake in this file made it happen, the record would be
            // dropped, and the counts would still balance.
            self.accepted.fetch_sub(1, Ordering::AcqRel);
            return Err(DropReason::BufferFull);
        }
        // Callers may push in another order than that of their admissions. A batch is completed by
        // the call whose push is the last of the batch in the order of the queue's tail. This call
        // need not be the one that was admitted last. No wake-up is missed, because
        // - the queue changes its tail, and reads it in `len`, by SeqCst operations, as this file
        //   does with `writer_is_awake`. Either `try_sleep` sees this push after it has cleared
        //   `writer_is_awake`, or the load below finds `writer_is_awake` cleared;
        // - the call whose push is the last one sees the pushes before it in `len`;
        // - the condition skips `waiting` only if this call was admitted with fewer than a batch of
        //   held records, and no call has been admitted since. Fewer than a batch of records wait
        //   then, because each of them was held. The change of the tail makes the admission of
        //   every earlier push visible to the load of `accepted`.
        //
        // The comparison with `held` comes before `waiting`, because most calls end there:
        // `waiting` reads two cache lines that the writer and other callers change.
        if !self.writer_is_awake.load(Ordering::SeqCst)
            && (admission.held >= self.batch_size as u64
                || self.accepted.load(Ordering::Acquire) != admission.accepted)
            && self.waiting() >= self.batch_size
        {
            self.wake();
        }
        Ok(())
    }

    /// Wakes the writer, unless it drains the buffer already. The load comes before the swap, so
    /// that calls share the cache line while the writer is awake. If several callers load `false`,
    /// only the one whose swap returns `false` notifies the writer.
    pub(crate) fn wake(&self) {
        if !self.writer_is_awake.load(Ordering::SeqCst)
            && !self.writer_is_awake.swap(true, Ordering::SeqCst)
        {
            self.wake.notify_one();
        }
    }

    /// Counts one more record if there is room for a record of a call.
    ///
    /// # Errors
    ///
    /// [`DropReason::Closed`] if the buffer is sealed, [`DropReason::BufferFull`] if it has no
    /// room. The caller counts the drop itself, because some callers retry.
    pub(crate) fn admit(&self) -> Result<Admission, DropReason> {
        self.admit_below(self.call_limit.load(Ordering::Relaxed))
    }

    /// Counts one more record if the buffer has fewer than `limit`.
    ///
    /// The bound is exact although two counters are read. The exchange succeeds only if no record
    /// was admitted since `accepted` was read. The number of settled records can only have grown
    /// meanwhile, so that the computed `held` is never too small. If the exchange fails, the caller
    /// computes `held` once more.
    fn admit_below(&self, limit: u64) -> Result<Admission, DropReason> {
        let mut accepted = self.accepted.load(Ordering::Acquire);
        loop {
            if accepted & SEALED != 0 {
                return Err(DropReason::Closed);
            }
            // Saturating, because records that were accepted after the load of `accepted` may be
            // settled by now. The exchange below then fails.
            let held = accepted.saturating_sub(self.settled.total());
            if held >= limit {
                return Err(DropReason::BufferFull);
            }
            // AcqRel, so that admissions and the seal form one chain: a thread that reads the count
            // sees what each thread before it in the chain did.
            match self.accepted.compare_exchange_weak(
                accepted,
                accepted + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    return Ok(Admission {
                        accepted: accepted + 1,
                        held: held + 1,
                    });
                }
                Err(now) => accepted = now,
            }
        }
    }

    /// Returns `true` if there is room now. Leaves out a 64th of the places, because several
    /// requests may get `true` at the same time, and all of them push afterwards.
    #[cfg(feature = "http")]
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.call_limit.load(Ordering::Relaxed);
        self.ticket().saturating_sub(self.settled()) < limit - limit / 64
    }

    /// Returns the records for which there is room now. A sealed buffer returns [`Room::ForAll`],
    /// because a push into it fails at once, so that no task need wait.
    pub(crate) fn room(&self) -> Room {
        let settled = self.settled();
        let held = self.ticket().saturating_sub(settled);
        if self.is_sealed() || held < self.call_limit.load(Ordering::Relaxed) {
            Room::ForAll
        } else if held < self.capacity {
            Room::ForMailbox
        } else {
            Room::None
        }
    }

    /// Waits until there is room for all records, or at least for those in the mailbox.
    pub(crate) async fn wait_for(&self, wanted: Room) {
        loop {
            let notified = self.room.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            // Enabled before the flag is set: `notify_waiters` reaches only futures that are
            // registered. If the flag came first, the writer could clear it and notify before this
            // future is registered, and would not notify once more.
            self.room_wanted.store(true, Ordering::Relaxed);
            // Pairs with the fence of `signal_room`: either the writer sees that room is wanted, or
            // `room` below sees what the writer settled. Without the two fences both may miss the
            // other, and this task would wait until the next transaction, which may never come.
            fence(Ordering::SeqCst);
            match (wanted, self.room()) {
                (_, Room::ForAll) | (Room::ForMailbox | Room::None, Room::ForMailbox) => return,
                _ => notified.await,
            }
        }
    }

    /// Moves `records` from buffered to a final state. AcqRel: its release publishes that the
    /// records are out of the queue, and that they were accepted before.
    fn settle(&self, counter: &AtomicU64, records: u64) {
        counter.fetch_add(records, Ordering::AcqRel);
        self.signal_room();
    }

    /// Notifies the tasks that wait for room, after the room was made.
    fn signal_room(&self) {
        fence(Ordering::SeqCst);
        if self.room_wanted.load(Ordering::Relaxed) {
            // Cleared before the notification. A task that sets the flag after this store stays
            // registered with it. In the other order, this store would clear the flag of a task
            // that registers after the notification, and that task would miss the next room.
            self.room_wanted.store(false, Ordering::Relaxed);
            self.room.notify_waiters();
        }
    }

    /// Counts a record that was dropped before it was accepted, by its reason. The counter is one
    /// of those in `received`, so that a record must be counted either here or by [`Self::admit`],
    /// never by both.
    pub(crate) fn count_drop(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::BufferFull => &self.dropped.buffer_full,
            DropReason::Unavailable => &self.dropped.unavailable,
            DropReason::TooOld => &self.dropped.too_old,
            DropReason::Closed => &self.dropped.closed,
            // Not counted here: a disabled logger counts nothing, `rejected` counts unstorable
            // rows, and `abandon` counts unsaved records.
            DropReason::Disabled | DropReason::Rejected | DropReason::Unsaved => return,
        };
        counter.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes the oldest record out of the queue. The caller moves it to the batch, which outlives a
    /// panic of the writer. The record counts as `buffered` until the caller settles it.
    pub(crate) fn pop(&self) -> Option<Entry> {
        self.queue.pop()
    }

    /// Returns the number of records that wait, without the batch that is being written.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Settles `records` that were committed. The caller must hold the permit of their commit, so
    /// that a shutdown cannot settle them as unsaved at the same time.
    pub(crate) fn persisted(&self, records: u64) {
        self.settle(&self.settled.persisted, records);
    }

    /// Settles `records` that the store cannot persist.
    pub(crate) fn rejected(&self, records: u64) {
        self.settle(&self.settled.rejected, records);
    }

    /// Ends the admission of records. The number of accepted records is fixed when this returns.
    /// Also notifies the tasks that wait for room. [`Self::room`] of a sealed buffer is
    /// [`Room::ForAll`], so that these tasks try to push, and get [`DropReason::Closed`].
    pub(crate) fn seal(&self) {
        self.accepted.fetch_or(SEALED, Ordering::AcqRel);
        self.signal_room();
    }

    /// Returns `true` if the buffer is sealed. A caller may use it to skip expensive work.
    /// [`Self::admit`] decides, and may still return [`DropReason::Closed`].
    pub(crate) fn is_sealed(&self) -> bool {
        self.accepted.load(Ordering::Acquire) & SEALED != 0
    }

    /// Settles all held records as unsaved. Returns their number.
    ///
    /// The caller must have sealed the buffer and closed the commit gate. Before the seal, another
    /// record could be admitted after the count. Before the gate is closed, the writer could commit
    /// a record of this count, and settle it a second time.
    pub(crate) fn abandon(&self) -> u64 {
        let held = self.balance().buffered;
        self.settled.unsaved.fetch_add(held, Ordering::AcqRel);
        held
    }

    /// Returns the number of records admitted so far. All of these records are settled once
    /// [`settled`](Self::settled) reaches this number, because the queue keeps their order.
    pub(crate) fn ticket(&self) -> u64 {
        self.accepted.load(Ordering::Acquire) & !SEALED
    }

    /// Returns the number of settled records, to be compared with a [`ticket`](Self::ticket).
    pub(crate) fn settled(&self) -> u64 {
        self.settled.total()
    }

    /// Returns a snapshot that balances.
    ///
    /// The settled counts are read first, with `Acquire`. Each settled record was accepted before,
    /// and both counts only grow, so that the later load of `accepted` includes it. In the other
    /// order the writer could settle a record that was accepted between the two loads, and
    /// `buffered` would be negative. The dropped counts may be read at any time, because they stand
    /// on both sides of the equation.
    pub(crate) fn balance(&self) -> Balance {
        let persisted = self.settled.persisted.load(Ordering::Acquire);
        let rejected = self.settled.rejected.load(Ordering::Acquire);
        let unsaved = self.settled.unsaved.load(Ordering::Acquire);
        let accepted = self.ticket();
        let dropped = DropCounts {
            buffer_full: self.dropped.buffer_full.load(Ordering::Acquire),
            unavailable: self.dropped.unavailable.load(Ordering::Acquire),
            closed: self.dropped.closed.load(Ordering::Acquire),
            too_old: self.dropped.too_old.load(Ordering::Acquire),
            ..DropCounts::default()
        };
        Balance {
            received: accepted + dropped.total(),
            persisted,
            buffered: accepted.saturating_sub(persisted + rejected + unsaved),
            dropped: DropCounts {
                rejected,
                unsaved,
                ..dropped
            },
        }
    }

    /// Marks the writer as awake, so that callers do not wake it. The control actor calls this
    /// before a job begins.
    pub(crate) fn stay_awake(&self) {
        self.writer_is_awake.store(true, Ordering::SeqCst);
    }

    /// Marks the writer as asleep, until its timer or a wake-up. Returns `false`, and marks it as
    /// awake, if a batch waits whose last caller found the writer awake. The writer must flush this
    /// batch, because no caller wakes it for the batch.
    pub(crate) fn try_sleep(&self) -> bool {
        self.writer_is_awake.store(false, Ordering::SeqCst);
        // The length is read after the store, and both are SeqCst. The length therefore includes
        // the record of each caller that found the writer awake. If the swap returns `true`, a
        // caller has woken the writer since the store. Its notification waits in `wake`, so that
        // the writer may sleep, and wakes at once.
        self.waiting() < self.batch_size || self.writer_is_awake.swap(true, Ordering::SeqCst)
    }

    /// Waits until a caller completes a batch. `wake` holds at most one notification. One is
    /// enough, because a woken writer drains all records that wait.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::model::entry::Origin;
    use crate::model::outcome::RetrievalFailureType;
    use crate::model::record::RetrievalFailureRecord;
    use crate::model::time::Timestamp;

    fn entry() -> Entry {
        Entry {
            record: RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "q"),
            logged_at: Timestamp::EPOCH,
            origin: Origin::LOGGED,
        }
    }

    #[test]
    fn the_batch_being_written_counts_against_the_bound() {
        let buffer = Buffer::new(3, 2);
        for _ in 0..3 {
            buffer.push(entry()).unwrap();
        }
        assert!(buffer.pop().is_some() && buffer.pop().is_some());
        assert_eq!(buffer.push(entry()), Err(DropReason::BufferFull));
        buffer.persisted(1);
        assert_eq!(buffer.push(entry()), Ok(()));
        assert_eq!(buffer.push(entry()), Err(DropReason::BufferFull));
        assert_eq!((buffer.balance().buffered, buffer.waiting()), (3, 2));
    }

    #[test]
    fn call_that_completes_a_batch_wakes_a_sleeping_writer() {
        let buffer = Buffer::new(8, 2);
        buffer.push(entry()).unwrap();
        assert!(!buffer.writer_is_awake.load(Ordering::SeqCst));
        buffer.push(entry()).unwrap();
        assert!(buffer.writer_is_awake.load(Ordering::SeqCst));
        assert!(!buffer.try_sleep(), "a full batch is waiting");
        assert!(
            buffer.writer_is_awake.load(Ordering::SeqCst),
            "so the writer stays"
        );
        buffer.pop().unwrap();
        assert!(
            buffer.writer_is_awake.load(Ordering::SeqCst),
            "so the writer stays"
        );
        assert!(buffer.try_sleep());
        assert!(!buffer.writer_is_awake.load(Ordering::SeqCst));
    }

    #[test]
    fn a_batch_pushed_out_of_order_wakes_the_writer() {
        let buffer = Buffer::new(8, 3);
        buffer.stay_awake();
        let admissions: Vec<_> = (0..3).map(|_| buffer.admit().unwrap()).collect();
        let mut late = admissions.into_iter().rev();
        buffer.enqueue(entry(), late.next().unwrap()).unwrap();
        assert!(buffer.try_sleep(), "one record is no batch");
        buffer.enqueue(entry(), late.next().unwrap()).unwrap();
        assert!(
            !buffer.writer_is_awake.load(Ordering::SeqCst),
            "neither are two"
        );
        buffer.enqueue(entry(), late.next().unwrap()).unwrap();
        assert!(
            buffer.writer_is_awake.load(Ordering::SeqCst),
            "the first to be admitted completed the batch"
        );
    }

    #[test]
    fn last_admission_wakes_no_writer_before_the_others_push() {
        let buffer = Buffer::new(8, 2);
        let (first, last) = (buffer.admit().unwrap(), buffer.admit().unwrap());
        buffer.enqueue(entry(), last).unwrap();
        assert!(
            !buffer.writer_is_awake.load(Ordering::SeqCst),
            "half a batch"
        );
        buffer.enqueue(entry(), first).unwrap();
        assert!(buffer.writer_is_awake.load(Ordering::SeqCst));
    }

    /// Runs every order of admissions and pushes of three callers. The writer goes to sleep at any
    /// point in between.
    #[test]
    fn no_order_of_admissions_and_pushes_loses_the_wake_up() {
        // Callers 0 to 2 have two steps each: the first admits, the second pushes. 3 is the writer.
        fn orders(left: [u8; 4], order: &mut Vec<usize>, run: &mut impl FnMut(&[usize])) {
            if left == [0; 4] {
                run(order);
            }
            for who in 0..4 {
                if left[who] > 0 {
                    let mut left = left;
                    left[who] -= 1;
                    order.push(who);
                    orders(left, order, run);
                    order.pop();
                }
            }
        }
        let mut runs = 0;
        orders([2, 2, 2, 1], &mut Vec::new(), &mut |order| {
            runs += 1;
            let buffer = Buffer::new(8, 3);
            buffer.stay_awake();
            let mut admitted = [None, None, None];
            let mut stays = true;
            for who in order {
                match admitted.get_mut(*who) {
                    None => stays = !buffer.try_sleep(),
                    Some(admission) => match admission.take() {
                        None => *admission = Some(buffer.admit().unwrap()),
                        Some(admission) => buffer.enqueue(entry(), admission).unwrap(),
                    },
                }
            }
            let woken = buffer.writer_is_awake.load(Ordering::SeqCst);
            assert!(
                stays || woken,
                "a full batch waits, and the writer sleeps: {order:?}"
            );
        });
        assert_eq!(runs, 630, "7! / (2! 2! 2! 1!)");
    }

    #[test]
    fn a_sealed_buffer_lets_nothing_in_and_keeps_what_it_has() {
        let buffer = Buffer::new(3, 2);
        buffer.push(entry()).unwrap();
        buffer.seal();
        assert_eq!(buffer.push(entry()), Err(DropReason::Closed));
        assert_eq!(buffer.balance().buffered, 1);
        assert_eq!(buffer.abandon(), 1);
        assert_eq!(
            (buffer.balance().buffered, buffer.balance().dropped.unsaved),
            (0, 1)
        );
    }

    #[test]
    fn every_snapshot_balances_while_callers_and_writer_race() {
        const CALLERS: usize = 4;
        const CALLS: u64 = 20_000;
        let buffer = Buffer::new(64, 16);
        let start = Barrier::new(CALLERS + 1);
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..CALLS {
                        if let Err(reason) = buffer.push(entry()) {
                            buffer.count_drop(reason);
                        }
                    }
                });
            }
            start.wait();
            let mut received = 0;
            while received < CALLERS as u64 * CALLS {
                if buffer.pop().is_some() {
                    buffer.persisted(1);
                }
                let now = buffer.balance();
                assert!(now.buffered <= 64, "held {} of 64", now.buffered);
                assert!(now.received >= received, "a count went back");
                assert_eq!(
                    now.received,
                    now.persisted + now.dropped.total() + now.buffered
                );
                received = now.received;
            }
        });
        while buffer.pop().is_some() {
            buffer.persisted(1);
        }
        let end = buffer.balance();
        assert_eq!(end.buffered, 0, "a record is counted and not in the queue");
        assert_eq!(
            end.persisted + end.dropped.buffer_full,
            CALLERS as u64 * CALLS
        );
    }
}
