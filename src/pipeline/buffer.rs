//! The bounded buffer and the accounting.
//!
//! A record is counted before it is enqueued, and every count only grows, so that any snapshot of
//! the counters balances: what was accepted is settled (persisted, rejected, unsaved) or still
//! held. A record that got lost on the way would not vanish from the books: it would stay
//! `buffered` for ever, and `shutdown` would report it as unsaved.

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
    /// Records held at most if they come from a call. The places above are for those in the
    /// mailbox.
    call_limit: AtomicU64,
    batch_size: usize,
    /// Records that were let in, and whether the buffer is [`SEALED`]. The only counter that
    /// callers contend for.
    accepted: CachePadded<AtomicU64>,
    /// Persisted and dropped ones among the accepted records. The writer changes it once a
    /// transaction.
    settled: CachePadded<Settled>,
    /// Records that were turned away; changed by callers, but only when they lose a record.
    dropped: CachePadded<Dropped>,
    /// `true` while the writer drains the buffer; callers then skip the wake-up. A caller sets it
    /// with a swap after its push, and the writer clears it before its last look at the queue, so
    /// that no completed batch is missed.
    writer_is_awake: CachePadded<AtomicBool>,
    wake: Notify,
    /// `true` if a task waits for room.
    room_wanted: AtomicBool,
    room: Notify,
}

/// For which records there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    ForAll,
    /// Only for those that were sent to the mailbox.
    ForMailbox,
    None,
}

/// Set in `accepted` when nothing is let in any more, in one step with the count: what was
/// accepted is a fixed number from then on.
const SEALED: u64 = 1 << 63;

/// A record that is counted, and not in the queue yet.
pub(crate) struct Admission {
    /// Records that had been let in then.
    accepted: u64,
    /// Records that were held then, at most.
    held: u64,
}

#[derive(Default)]
struct Settled {
    persisted: AtomicU64,
    rejected: AtomicU64,
    unsaved: AtomicU64,
}

#[derive(Default)]
struct Dropped {
    buffer_full: AtomicU64,
    unavailable: AtomicU64,
    closed: AtomicU64,
    too_old: AtomicU64,
}

impl Settled {
    fn total(&self) -> u64 {
        self.persisted.load(Ordering::Acquire)
            + self.rejected.load(Ordering::Acquire)
            + self.unsaved.load(Ordering::Acquire)
    }
}

/// The fate of every record so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Balance {
    pub(crate) received: u64,
    pub(crate) persisted: u64,
    pub(crate) buffered: u64,
    pub(crate) dropped: DropCounts,
}

impl Buffer {
    /// A buffer for `capacity` records that wakes its writer when `batch_size` of them wait.
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

    /// Keeps `places` for records in the mailbox. Returns `true` if they were not kept before.
    pub(crate) fn reserve(&self, places: usize) -> bool {
        let limit = self.capacity.saturating_sub(places as u64);
        // A load, because an address is asked for often.
        self.call_limit.load(Ordering::Relaxed) != limit
            && self.call_limit.swap(limit, Ordering::AcqRel) != limit
    }

    /// Takes `entry`. Wakes the writer if it completes a batch while the writer sleeps.
    ///
    /// The bound includes the batch that is being written.
    pub(crate) fn push(&self, entry: Entry) -> Result<(), DropReason> {
        let admission = self.admit()?;
        self.enqueue(entry, admission)
    }

    /// The same for a record from the mailbox.
    pub(crate) fn push_sent(&self, entry: Entry) -> Result<(), DropReason> {
        let admission = self.admit_below(self.capacity)?;
        self.enqueue(entry, admission)
    }

    /// Puts an admitted record into the queue.
    pub(crate) fn enqueue(&self, entry: Entry, admission: Admission) -> Result<(), DropReason> {
        if self.queue.push(entry).is_err() {
            // Cannot be: the queue has a slot for each admitted record.
            self.accepted.fetch_sub(1, Ordering::AcqRel);
            return Err(DropReason::BufferFull);
        }
        // Records are pushed in another order than they are admitted in, so that the call that
        // completes a batch need not be the one that was admitted last. It is the one whose push is
        // the last of the batch in the order of the queue's tail. No wake-up is lost, because
        // - the tail is changed, and read by `len`, by SeqCst operations, as is `writer_is_awake`: either
        //   `try_sleep` sees this push after it has cleared `writer_is_awake`, or this load sees it cleared;
        // - the call whose push is the last one sees those before it in `len`;
        // - a call that was the last one admitted, and is so still, with fewer than a batch held,
        //   has not completed one: no more wait than were held. The change of the tail makes the
        //   admission of every earlier push visible to the load of `accepted`.
        if !self.writer_is_awake.load(Ordering::SeqCst)
            && (admission.held >= self.batch_size as u64
                || self.accepted.load(Ordering::Acquire) != admission.accepted)
            && self.waiting() >= self.batch_size
        {
            self.wake();
        }
        Ok(())
    }

    /// Wakes the writer, unless it drains the buffer already.
    pub(crate) fn wake(&self) {
        if !self.writer_is_awake.load(Ordering::SeqCst)
            && !self.writer_is_awake.swap(true, Ordering::SeqCst)
        {
            self.wake.notify_one();
        }
    }

    /// Counts one more record if there is room.
    pub(crate) fn admit(&self) -> Result<Admission, DropReason> {
        self.admit_below(self.call_limit.load(Ordering::Relaxed))
    }

    fn admit_below(&self, limit: u64) -> Result<Admission, DropReason> {
        let mut accepted = self.accepted.load(Ordering::Acquire);
        loop {
            if accepted & SEALED != 0 {
                return Err(DropReason::Closed);
            }
            // Saturating: records accepted since the load above may be settled by now.
            let held = accepted.saturating_sub(self.settled.total());
            if held >= limit {
                return Err(DropReason::BufferFull);
            }
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

    /// Returns `true` if there is room now, for the concurrent callers as well.
    #[cfg(feature = "http")]
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.call_limit.load(Ordering::Relaxed);
        self.ticket().saturating_sub(self.settled()) < limit - limit / 64
    }

    /// Returns for which records there is room now. A sealed buffer keeps no record waiting: it
    /// refuses all.
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
            self.room_wanted.store(true, Ordering::Relaxed);
            // Pairs with the fence of `settle`: either it sees that room is wanted, or the look
            // below sees what it settled.
            fence(Ordering::SeqCst);
            match (wanted, self.room()) {
                (_, Room::ForAll) | (Room::ForMailbox | Room::None, Room::ForMailbox) => return,
                _ => notified.await,
            }
        }
    }

    fn settle(&self, counter: &AtomicU64, records: u64) {
        counter.fetch_add(records, Ordering::AcqRel);
        self.signal_room();
    }

    fn signal_room(&self) {
        fence(Ordering::SeqCst);
        if self.room_wanted.load(Ordering::Relaxed) {
            self.room_wanted.store(false, Ordering::Relaxed);
            self.room.notify_waiters();
        }
    }

    /// Counts a record that was turned away.
    pub(crate) fn count_drop(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::BufferFull => &self.dropped.buffer_full,
            DropReason::Unavailable => &self.dropped.unavailable,
            DropReason::TooOld => &self.dropped.too_old,
            DropReason::Closed => &self.dropped.closed,
            // Not here: a disabled logger counts nothing, the writer settles what the store
            // rejects, and what a shutdown gives up.
            DropReason::Disabled | DropReason::Rejected | DropReason::Unsaved => return,
        };
        counter.fetch_add(1, Ordering::AcqRel);
    }

    /// The oldest record. The caller must settle it, one way or another.
    pub(crate) fn pop(&self) -> Option<Entry> {
        self.queue.pop()
    }

    /// Records that wait, without the batch that is being written.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn persisted(&self, records: u64) {
        self.settle(&self.settled.persisted, records);
    }

    pub(crate) fn rejected(&self, records: u64) {
        self.settle(&self.settled.rejected, records);
    }

    /// Lets nothing in any more.
    pub(crate) fn seal(&self) {
        self.accepted.fetch_or(SEALED, Ordering::AcqRel);
        self.signal_room();
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.accepted.load(Ordering::Acquire) & SEALED != 0
    }

    /// Gives up everything that is held: how many records that were.
    ///
    /// Only once the buffer is sealed and the writer can settle nothing any more.
    pub(crate) fn abandon(&self) -> u64 {
        let held = self.balance().buffered;
        self.settled.unsaved.fetch_add(held, Ordering::AcqRel);
        held
    }

    /// Returns the number of records admitted so far. All records logged before are settled once
    /// [`settled`](Self::settled) reaches this number, because the queue keeps their order.
    pub(crate) fn ticket(&self) -> u64 {
        self.accepted.load(Ordering::Acquire) & !SEALED
    }

    pub(crate) fn settled(&self) -> u64 {
        self.settled.total()
    }

    /// A snapshot that balances: what is settled is read first, so it was accepted before.
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

    /// Says that the writer looks after the buffer: callers need not wake it.
    pub(crate) fn stay_awake(&self) {
        self.writer_is_awake.store(true, Ordering::SeqCst);
    }

    /// Says that the writer goes back to its timer: whether it may. If not, a batch was completed
    /// in the meantime, and the writer must look after it.
    pub(crate) fn try_sleep(&self) -> bool {
        self.writer_is_awake.store(false, Ordering::SeqCst);
        // After the store: a call that still found the writer here has not woken it.
        self.waiting() < self.batch_size || self.writer_is_awake.swap(true, Ordering::SeqCst)
    }

    /// Waits until a caller completes a batch.
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

    fn entry() -> Entry {
        Entry {
            record: RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "q"),
            logged_at: 0,
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
    fn call_that_completes_a_batch_wakes_an_unattended_writer() {
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
    fn the_last_admission_wakes_nobody_before_the_others_are_pushed() {
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

    /// Runs every order of admissions and pushes of three callers, with the writer leaving anywhere
    /// in between.
    #[test]
    fn no_order_of_admissions_and_pushes_loses_the_wake_up() {
        // Steps of caller 0 to 2, of which the first admits and the second pushes; 3 is the writer.
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
        assert_eq!(
            end.buffered, 0,
            "nothing got lost between the counter and the queue"
        );
        assert_eq!(
            end.persisted + end.dropped.buffer_full,
            CALLERS as u64 * CALLS
        );
    }
}
