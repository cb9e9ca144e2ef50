//! Attempts on their way to their buckets: they wait in a few lists, each behind a lock of its own.
//!
//! A caller appends a sample of a few bytes to the first list that is free, and waits for another
//! thread only if all of them are taken. The reader swaps a list for an empty one, and reads it
//! without a lock. Seal, count and sample change under one lock: an attempt that is counted is in a
//! list, and none comes after the seal.
//!
//! Sample, count and seal change under the lock of one list because each pair of them must not
//! part:
//!
//! - A sample without its count would be persisted before it was counted.
//! - A count without its sample would be reported as unsaved by a shutdown.
//! - A seal in between would fix a number that still changes.
//!
//! A lock of a list is the last in the order of locks, and no code of a caller runs under it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::model::outcome::OutcomeKind;
use crate::model::time::Timestamp;
use crate::rollup::bucket::BucketKey;
use crate::rollup::{Attempt, Series, SeriesId, lock};

/// Lists: more than threads that are likely to count in the same microsecond. A power of two.
const LISTS: usize = 8;
/// Samples of a list at most.
const SAMPLES: usize = 16_384;
/// Samples of a list at which the reader is woken. The other half is for the time until it comes.
const MANY_SAMPLES: usize = SAMPLES / 2;

/// One attempt, on its way to its bucket.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) series: SeriesId,
    pub(crate) kind: OutcomeKind,
    /// The end of the attempt.
    pub(crate) at: Timestamp,
    /// `None`: not measured.
    pub(crate) latency: Option<Duration>,
    /// NaN: none.
    pub(crate) top_score: f32,
}

impl Sample {
    pub(crate) fn new(
        series: &Series,
        &Attempt {
            kind,
            latency,
            top_score,
        }: &Attempt,
        at: Timestamp,
    ) -> Self {
        Self {
            series: series.id,
            kind,
            at,
            latency,
            top_score: top_score.unwrap_or(f32::NAN),
        }
    }

    fn key(&self) -> BucketKey {
        BucketKey::new(self.at, self.series, self.kind)
    }
}

/// Result of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Counted,
    /// Counted, and the reader should empty the lists.
    CountedAndMany,
    /// Not counted: the list is full.
    Full,
    /// Not counted: the counter is sealed.
    TooLate,
}

/// An entry of the counter.
pub(crate) enum Drained {
    Sample(Sample),
    Spilled(u64),
}

/// The lists of all threads. Any thread may use any list; which one it takes decides nothing but
/// the contention.
pub(crate) struct Counter {
    lists: [CachePadded<List>; LISTS],
}

struct List {
    /// Attempts that were let in. Changed under the lock of `waiting`, and read without it, so that
    /// `stats` takes no lock.
    counted: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// The part of a list behind its lock.
struct Waiting {
    samples: Vec<Sample>,
    /// Attempts that found the list full, by bucket: counted without latency and score. Bounded by
    /// the number of series and minutes, however many attempts come.
    spilled: HashMap<BucketKey, u64>,
    sealed: bool,
}

impl Counter {
    pub(crate) fn new(sealed: bool) -> Self {
        let list = |_| {
            let waiting = Waiting {
                samples: Self::empty(),
                spilled: HashMap::new(),
                sealed,
            };
            CachePadded::new(List {
                counted: AtomicU64::new(0),
                waiting: Mutex::new(waiting),
            })
        };
        Self {
            lists: std::array::from_fn(list),
        }
    }

    /// Returns an empty list, to be swapped for one of the counter. Its pages take no memory before
    /// they are used.
    pub(crate) fn empty() -> Vec<Sample> {
        Vec::with_capacity(SAMPLES)
    }

    /// Counts an attempt. Allocates nothing.
    #[inline]
    pub(crate) fn push(&self, sample: Sample) -> Pushed {
        self.with_free_list(|list, waiting| {
            if waiting.sealed {
                return Pushed::TooLate;
            }
            if waiting.samples.len() >= SAMPLES {
                return Pushed::Full;
            }
            waiting.samples.push(sample);
            list.count();
            // Equal, not more: one caller wakes the reader, and those after it do not.
            if waiting.samples.len() == MANY_SAMPLES {
                Pushed::CountedAndMany
            } else {
                Pushed::Counted
            }
        })
    }

    /// Counts an attempt for which there is no room, without its latency and score.
    pub(crate) fn spill(&self, sample: Sample) {
        self.with_free_list(|list, waiting| {
            if !waiting.sealed {
                *waiting.spilled.entry(sample.key()).or_default() += 1;
                list.count();
            }
        });
    }

    /// Counts attempts that were counted elsewhere before, without their latencies and scores.
    #[cfg(feature = "program")]
    pub(crate) fn add_many(&self, key: BucketKey, attempts: u64) {
        self.with_free_list(|list, waiting| {
            if !waiting.sealed {
                *waiting.spilled.entry(key).or_default() += attempts;
                list.count_many(attempts);
            }
        });
    }

    /// Gives `each` everything that waits: samples, and numbers of attempts without one. `spare` is
    /// empty, before and afterwards.
    pub(crate) fn drain(&self, spare: &mut Vec<Sample>, mut each: impl FnMut(BucketKey, Drained)) {
        for list in &self.lists {
            let spilled = {
                let mut waiting = lock(&list.waiting);
                // The list keeps its capacity, because `spare` has the same: a push never
                // allocates.
                std::mem::swap(&mut waiting.samples, spare);
                std::mem::take(&mut waiting.spilled)
            };
            spare
                .drain(..)
                .for_each(|sample| each(sample.key(), Drained::Sample(sample)));
            spilled
                .into_iter()
                .for_each(|(key, attempts)| each(key, Drained::Spilled(attempts)));
        }
    }

    /// Lets nothing in any more.
    pub(crate) fn seal(&self) {
        for list in &self.lists {
            lock(&list.waiting).sealed = true;
        }
    }

    /// Returns the number of attempts that were let in. Takes no lock.
    pub(crate) fn counted(&self) -> u64 {
        self.lists
            .iter()
            .map(|list| list.counted.load(Ordering::Acquire))
            .sum()
    }

    /// Runs `work` with the first list that is free, beginning with that of this thread. Waits for
    /// a list only if all of them are taken.
    fn with_free_list<T>(&self, work: impl FnOnce(&List, &mut Waiting) -> T) -> T {
        let first = first_list();
        let list = |nth: usize| {
            self.lists
                .get((first + nth) % LISTS)
                .unwrap_or(&self.lists[0])
        };
        for nth in 0..LISTS {
            let list = list(nth);
            match list.waiting.try_lock() {
                Ok(mut waiting) => return work(list, &mut waiting),
                // No code under the lock can leave a list half changed, so that a poisoned one is
                // used on.
                Err(TryLockError::Poisoned(poisoned)) => {
                    return work(list, &mut poisoned.into_inner());
                }
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let list = list(0);
        work(list, &mut lock(&list.waiting))
    }
}

impl List {
    /// Counts one attempt. To be called under the lock of the list.
    fn count(&self) {
        self.count_many(1);
    }

    #[inline]
    fn count_many(&self, attempts: u64) {
        // A load and a store in place of an addition: the lock lets one thread change the count at
        // a time, and the pair takes a fraction of the time of a locked instruction.
        let counted = self.counted.load(Ordering::Relaxed);
        // Released, and acquired by `counted`: a thread that sees an attempt persisted sees it
        // counted.
        self.counted.store(counted + attempts, Ordering::Release);
    }
}

/// Returns the list that the present thread tries first. Threads get different ones in turn, so
/// that few of them meet on one list.
fn first_list() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    const UNSET: usize = usize::MAX;
    thread_local! {
        // Constant, so that reading it needs no look at its initialization.
        static FIRST: Cell<usize> = const { Cell::new(UNSET) };
    }
    FIRST.with(|first| {
        if first.get() == UNSET {
            first.set(THREADS.fetch_add(1, Ordering::Relaxed) % LISTS);
        }
        first.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(milliseconds: i64) -> Sample {
        Sample {
            series: 0,
            kind: OutcomeKind::Success,
            at: Timestamp::from_millis(milliseconds),
            latency: None,
            top_score: f32::NAN,
        }
    }

    fn drained(counter: &Counter) -> u64 {
        let mut all = 0;
        counter.drain(&mut Counter::empty(), |_, drained| {
            all += if let Drained::Spilled(n) = drained {
                n
            } else {
                1
            }
        });
        all
    }

    #[test]
    fn a_full_list_spills_into_the_right_minute() {
        let counter = Counter::new(false);
        let pushed: Vec<_> = (0..=SAMPLES).map(|_| counter.push(sample(0))).collect();
        assert_eq!(
            pushed
                .iter()
                .filter(|pushed| **pushed == Pushed::CountedAndMany)
                .count(),
            1
        );
        assert_eq!(
            (pushed[MANY_SAMPLES - 1], pushed[SAMPLES]),
            (Pushed::CountedAndMany, Pushed::Full)
        );
        assert_eq!(
            counter.counted(),
            SAMPLES as u64,
            "what is refused is not counted"
        );
        counter.spill(sample(60_001));
        let mut keys = Vec::new();
        let mut samples = 0;
        counter.drain(&mut Counter::empty(), |key, drained| match drained {
            Drained::Sample(_) => samples += 1,
            Drained::Spilled(attempts) => keys.push((key.started_at.as_millis(), attempts)),
        });
        assert_eq!((samples, keys), (SAMPLES, vec![(60_000, 1)]));
        assert_eq!(
            (counter.counted(), drained(&counter)),
            (SAMPLES as u64 + 1, 0)
        );
        assert_eq!(
            counter.push(sample(0)),
            Pushed::Counted,
            "there is room again"
        );
    }

    #[test]
    fn a_busy_list_sends_the_caller_to_another() {
        let counter = Counter::new(false);
        let first = lock(&counter.lists[first_list()].waiting);
        assert_eq!(counter.push(sample(0)), Pushed::Counted);
        drop(first);
        assert_eq!(drained(&counter), 1);
    }

    #[test]
    fn counts_before_the_seal_are_all_that_is_drained_after_it() {
        const CALLERS: usize = 4;
        for _ in 0..200 {
            let counter = Counter::new(false);
            let start = std::sync::Barrier::new(CALLERS + 1);
            std::thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| {
                        start.wait();
                        while counter.push(sample(0)) != Pushed::TooLate {}
                        counter.spill(sample(0));
                    });
                }
                start.wait();
                let mut before = counter.counted();
                let mut drained_before = 0;
                while before < 100 {
                    drained_before += drained(&counter);
                    let now = counter.counted();
                    assert!(now >= before, "a count went back");
                    before = now;
                }
                counter.seal();
                let sealed = counter.counted();
                assert_eq!(drained_before + drained(&counter), sealed);
            });
            assert_eq!(
                (counter.counted(), drained(&counter)),
                (counter.counted(), 0)
            );
        }
    }
}
