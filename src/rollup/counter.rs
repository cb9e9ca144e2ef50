//! Lists in which attempts wait for their buckets. Each of the few lists has its own lock.
//!
//! A caller appends a sample of a few bytes to the first list that is free, and waits for another
//! thread only if all of them are taken. The reader,
//! [`Attempts::collect`](super::Attempts::collect), swaps a list for an empty one, and reads it
//! without a lock.
//!
//! The samples, the count and the seal of a list change under its lock, so that other threads never
//! see one of them change without the others:
//!
//! - A sample without its count could be persisted before it is counted.
//! - A shutdown would report a count without its sample as unsaved.
//! - A shutdown that sealed a list in between would report a number that still changes.
//!
//! The lock of a list comes last in the order of locks, and no code of an application runs under
//! it.

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

/// Number of lists: more than the threads that are likely to count in the same microsecond. A power
/// of two.
const LISTS: usize = 8;
/// Maximum number of samples in a list.
const SAMPLES: usize = 16_384;
/// Number of samples in a list at which a caller wakes the reader. The other half of the list has
/// room for attempts that end before the reader takes the samples.
const MANY_SAMPLES: usize = SAMPLES / 2;

/// One attempt that no bucket has counted yet.
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

/// One part of a drained list: a sample, or a number of attempts without one.
pub(crate) enum Drained {
    Sample(Sample),
    Spilled(u64),
}

/// The lists of all threads. Any thread may use any list: the choice affects nothing but the
/// contention.
pub(crate) struct Counter {
    lists: [CachePadded<List>; LISTS],
}

struct List {
    /// Number of counted attempts. It changes under the lock of `waiting`. `stats` reads it without
    /// a lock.
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

    /// Returns an empty list for [`drain`](Self::drain). Its pages take no memory before they are
    /// used.
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
            // `==` and not `>=`, so that only one caller wakes the reader.
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

    /// Adds attempts that another log has counted, without their latencies and scores.
    #[cfg(feature = "program")]
    pub(crate) fn add_many(&self, key: BucketKey, attempts: u64) {
        self.with_free_list(|list, waiting| {
            if !waiting.sealed {
                *waiting.spilled.entry(key).or_default() += attempts;
                list.count_many(attempts);
            }
        });
    }

    /// Empties the lists. Calls `each` with every sample, and with every number of attempts that
    /// have no sample. `spare` must be empty, and is empty afterwards.
    pub(crate) fn drain(&self, spare: &mut Vec<Sample>, mut each: impl FnMut(BucketKey, Drained)) {
        for list in &self.lists {
            let spilled = {
                let mut waiting = lock(&list.waiting);
                // `spare` has the capacity of a full list, so that a later push allocates nothing.
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

    /// Seals every list: later attempts are not counted.
    pub(crate) fn seal(&self) {
        for list in &self.lists {
            lock(&list.waiting).sealed = true;
        }
    }

    /// Returns the number of counted attempts. Takes no lock.
    pub(crate) fn counted(&self) -> u64 {
        self.lists
            .iter()
            .map(|list| list.counted.load(Ordering::Acquire))
            .sum()
    }

    /// Runs `work` with the first unlocked list, beginning with that of this thread. Waits for a
    /// list only if all of them are locked.
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
                // A poisoned list is still valid, because no code under the lock can leave a list
                // half changed.
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
    /// Counts one attempt. The caller must hold the lock of the list.
    fn count(&self) {
        self.count_many(1);
    }

    #[inline]
    fn count_many(&self, attempts: u64) {
        // A load and a store are enough, because only the thread that holds the lock changes the
        // count. They take a fraction of the time of an atomic addition.
        let counted = self.counted.load(Ordering::Relaxed);
        // Pairs with the Acquire in `counted`: a thread that sees an attempt as persisted also sees
        // it as counted.
        self.counted.store(counted + attempts, Ordering::Release);
    }
}

/// Returns the list that the present thread tries first. Threads get different ones in turn, so
/// that few of them meet on one list.
fn first_list() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    const UNSET: usize = usize::MAX;
    thread_local! {
        // `const`, so that a read needs no check of the initialization.
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
            "a push into a full list is not counted"
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
            "a drained list has room"
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
