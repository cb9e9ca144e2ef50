//! The threads on which reads run: two lanes, each with a queue. A read ends at its deadline, or
//! when its last client has gone.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;
use tokio::sync::oneshot;

use crate::error::{ReadError, StoreError};
use crate::store::snapshot::Snapshot;

/// Reads of one lane that run or wait at most.
const MAX_READS: usize = 64;

/// A database to be read.
pub(crate) trait ReadSource: Send + Sync {
    /// Runs `read` within a transaction, until `deadline`; again if another process held a lock.
    /// `read` is given the deadline by which it must be done.
    fn snapshot(&self, deadline: Deadline, read: &mut Read<'_>) -> Result<(), ReadError>;

    /// Returns the number of threads of a lane.
    fn threads(&self, lane: Lane) -> usize;

    /// Closes connections that are not in use.
    fn close_idle(&self);

    /// Returns the file, if the database is one.
    fn path(&self) -> Option<&Path>;
}

/// The function that reads from a snapshot. A retry calls it again.
pub(crate) type Read<'a> = dyn FnMut(&mut dyn Snapshot, Deadline) -> Result<(), ReadError> + 'a;

/// Runs reads of one database. Cheap to clone: clones share their threads.
#[derive(Clone)]
pub(crate) struct Reads {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None`: there is no database.
    source: Option<Arc<dyn ReadSource>>,
    quick: LaneState,
    heavy: LaneState,
}

/// The lane of a read: its threads and its queue. Heavy reads must not keep quick ones waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Reads counts, or a page of rows.
    Quick,
    /// May look at very many rows.
    Heavy,
}

#[derive(Default)]
struct LaneState {
    /// Started with the first read.
    threads: OnceLock<ScheduledThreadPool>,
    reads: AtomicUsize,
}

thread_local! {
    /// `true` if no client waits for the read that runs on this thread.
    static IS_ABANDONED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

impl Reads {
    pub(crate) fn new(source: Option<Arc<dyn ReadSource>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                source,
                quick: LaneState::default(),
                heavy: LaneState::default(),
            }),
        }
    }

    /// Closes connections that are not in use: SQLite tidies up after the last one, if it may
    /// write.
    pub(crate) fn close_idle(&self) {
        if let Some(source) = &self.inner.source {
            source.close_idle();
        }
    }

    /// Returns the file, if the database is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.inner.source.as_ref()?.path()
    }

    /// Runs `read` on one snapshot, on a thread that may block. It must look at its deadline
    /// whenever it has read some rows: the deadline counts as passed when the returned future is
    /// dropped.
    pub(crate) async fn run<T, R>(
        &self,
        lane: Lane,
        timeout: Duration,
        mut read: R,
    ) -> Result<T, ReadError>
    where
        T: Send + 'static,
        R: FnMut(&mut dyn Snapshot, Deadline) -> Result<T, ReadError> + Send + 'static,
    {
        let source = self.inner.source.clone();
        let job = move |deadline| {
            let source = source.ok_or(ReadError::Disabled)?;
            let mut done = None;
            source.snapshot(deadline, &mut |snapshot, turn| {
                done = Some(read(snapshot, turn)?);
                Ok(())
            })?;
            done.ok_or_else(panicked)
        };
        self.spawn(lane, timeout, job).await
    }

    /// Runs `job` on a thread of a lane.
    pub(crate) async fn spawn<T, J>(
        &self,
        lane: Lane,
        timeout: Duration,
        job: J,
    ) -> Result<T, ReadError>
    where
        T: Send + 'static,
        J: FnOnce(Deadline) -> Result<T, ReadError> + Send + 'static,
    {
        let deadline = Deadline::after(timeout);
        let ticket = Ticket::take(&self.inner, lane)?;
        let (reply, answer) = oneshot::channel();
        let abandoned = Abandoned(Arc::default());
        let is_abandoned = Arc::clone(&abandoned.0);
        self.inner.threads(lane).execute(move || {
            // Nobody waits any more for a read whose future was dropped.
            if reply.is_closed() {
                return;
            }
            IS_ABANDONED.set(Some(is_abandoned));
            let result = catch_unwind(AssertUnwindSafe(|| job(deadline)));
            IS_ABANDONED.set(None);
            drop(ticket);
            let _ = reply.send(result.unwrap_or_else(|_| Err(panicked())));
        });
        let result = answer.await.unwrap_or_else(|_| Err(panicked()));
        drop(abandoned);
        result
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("path", &self.path()).finish()
    }
}

impl Inner {
    fn lane(&self, lane: Lane) -> &LaneState {
        match lane {
            Lane::Quick => &self.quick,
            Lane::Heavy => &self.heavy,
        }
    }

    fn threads(&self, lane: Lane) -> &ScheduledThreadPool {
        self.lane(lane).threads.get_or_init(|| {
            let name = match lane {
                Lane::Quick => "failure-logger-read-{}",
                Lane::Heavy => "failure-logger-scan-{}",
            };
            let threads = self
                .source
                .as_ref()
                .map_or(1, |source| source.threads(lane));
            ScheduledThreadPool::builder()
                .num_threads(threads)
                .thread_name_pattern(name)
                .build()
        })
    }
}

/// When a query must be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time_budget: Duration) -> Self {
        let now = Instant::now();
        // `Instant` cannot represent more; a year serves as "no deadline".
        Self(
            now.checked_add(time_budget)
                .unwrap_or(now + Duration::from_secs(365 * 24 * 60 * 60)),
        )
    }

    /// The same, or `time` from now if that is earlier.
    pub(crate) fn at_most(self, time: Duration) -> Self {
        Self(self.0.min(Self::after(time).0))
    }

    /// Returns `true` if it has passed, or if no client waits any more for the read of this thread.
    pub(crate) fn passed(self) -> bool {
        Instant::now() >= self.0 || is_abandoned()
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn check(self) -> Result<(), ReadError> {
        if self.passed() {
            Err(ReadError::TimedOut)
        } else {
            Ok(())
        }
    }
}

/// Marks a read as abandoned when its client drops this.
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn is_abandoned() -> bool {
    IS_ABANDONED.with_borrow(|flag| {
        flag.as_ref()
            .is_some_and(|flag| flag.load(Ordering::Acquire))
    })
}

/// One of the reads that may run or wait.
struct Ticket(Arc<Inner>, Lane);

impl Ticket {
    fn take(inner: &Arc<Inner>, lane: Lane) -> Result<Self, ReadError> {
        let reads = inner.lane(lane).reads.fetch_add(1, Ordering::AcqRel);
        let ticket = Self(Arc::clone(inner), lane);
        if reads < MAX_READS {
            Ok(ticket)
        } else {
            Err(ReadError::Busy)
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.lane(self.1).reads.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(crate) fn panicked() -> ReadError {
    ReadError::Store(StoreError::GiveUp("the query panicked".into()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::sync::{Mutex, PoisonError};

    use futures_executor::block_on;

    use super::*;
    use crate::store::memory::MemoryLog;

    const LONG: Duration = Duration::from_secs(60);

    /// A log without failures.
    struct Empty;

    impl ReadSource for Empty {
        fn snapshot(&self, deadline: Deadline, read: &mut Read<'_>) -> Result<(), ReadError> {
            read(&mut MemoryLog::default(), deadline)
        }

        fn threads(&self, _: Lane) -> usize {
            2
        }

        fn close_idle(&self) {}

        fn path(&self) -> Option<&Path> {
            None
        }
    }

    fn reads() -> Reads {
        Reads::new(Some(Arc::new(Empty)))
    }

    fn count(reads: &Reads) -> Result<i64, ReadError> {
        block_on(reads.run(Lane::Quick, LONG, |snapshot, _| {
            Ok(snapshot.log()?.newest_id)
        }))
    }

    #[test]
    fn a_query_that_panics_costs_its_answer_and_nothing_else() {
        let pool = reads();
        for _ in 0..4 {
            let lost: Result<(), _> =
                block_on(pool.run(Lane::Quick, LONG, |_, _| panic!("injected")));
            assert!(lost.is_err());
        }
        assert_eq!(count(&pool), Ok(0));
        assert_eq!(pool.inner.quick.reads.load(Ordering::Acquire), 0);
    }

    #[test]
    fn more_queries_than_may_wait_are_refused_at_once() {
        let pool = reads();
        let (gate, closed) = channel::<()>();
        let closed = Arc::new(Mutex::new(closed));
        let waiting: Vec<_> = (0..MAX_READS)
            .map(|_| {
                let closed = Arc::clone(&closed);
                let mut query = Box::pin(pool.run(Lane::Quick, LONG, move |_, _| {
                    let _ = closed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                }));
                // Begun, and not waited for.
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                assert!(query.as_mut().poll(&mut cx).is_pending());
                query
            })
            .collect();
        assert_eq!(count(&pool), Err(ReadError::Busy));
        drop(gate);
        for query in waiting {
            block_on(query).unwrap();
        }
        assert_eq!(count(&pool), Ok(0));
    }

    #[test]
    fn heavy_reads_leave_quick_ones_their_threads_and_queue() {
        let pool = reads();
        let (gate, closed) = channel::<()>();
        let closed = Arc::new(Mutex::new(closed));
        let heavy: Vec<_> = (0..MAX_READS)
            .map(|_| {
                let closed = Arc::clone(&closed);
                let mut query = Box::pin(pool.run(Lane::Heavy, LONG, move |_, _| {
                    let _ = closed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                }));
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                assert!(query.as_mut().poll(&mut cx).is_pending());
                query
            })
            .collect();
        assert_eq!(
            block_on(pool.run(Lane::Heavy, LONG, |_, _| Ok(()))),
            Err(ReadError::Busy)
        );
        assert_eq!(count(&pool), Ok(0));
        drop(gate);
        for query in heavy {
            block_on(query).unwrap();
        }
    }

    #[test]
    fn read_whose_future_is_dropped_finds_its_deadline_passed() {
        let pool = reads();
        let ((begin, begun), (end, ended)) = (channel(), channel());
        let mut query = Box::pin(pool.run(Lane::Quick, LONG, move |_, deadline| {
            let before = deadline.passed();
            begin.send(before).unwrap();
            while !deadline.passed() {
                std::thread::yield_now();
            }
            end.send(deadline.check()).unwrap();
            Ok(())
        }));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(query.as_mut().poll(&mut cx).is_pending());
        assert!(!begun.recv().unwrap());
        drop(query);
        assert_eq!(ended.recv().unwrap(), Err(ReadError::TimedOut));
        // The next query on this thread is wanted.
        assert_eq!(count(&pool), Ok(0));
    }
}
