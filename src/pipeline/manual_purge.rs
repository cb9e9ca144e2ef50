//! A purge by hand: failures past the retention, past an age, or dated ahead of the clock.

use std::ops::Range;
use std::time::Duration;

use crate::config::LoggerConfig;
use crate::error::{StartError, StoreError};
use crate::model::time::{DAY_MS, HOUR_MS, Timestamp, milliseconds};
use crate::pipeline::retention::{InForce, purge_attempts, read, update};
use crate::retention::{RetentionClock, RetentionDays, cutoff};
use crate::store;
use crate::store::write::{Progress, Store};

/// Rows that are deleted at a time.
const ROWS_PER_PURGE: u32 = 1000;

/// The failures that a purge deletes.
#[derive(Debug, Clone, Copy)]
pub enum Expired {
    /// Those past the retention of the database; counts of attempts past theirs go too.
    ByRetention,
    /// Those that are older.
    OlderThan(Duration),
    /// Those dated more than a day ahead of the clock, which retention does not reach; counts of
    /// attempts too.
    Ahead,
}

/// A purge of a database file, which other processes may use meanwhile.
pub struct ManualPurge {
    store: Box<dyn Store>,
    expired: Expired,
    days: RetentionDays,
    /// The retention clock.
    time: Timestamp,
    /// The wall clock.
    wall: Timestamp,
    range: Range<Timestamp>,
}

impl ManualPurge {
    /// Opens the database that `config` names. A dry run leaves the state of the retention clock
    /// alone.
    ///
    /// # Errors
    ///
    /// [`StartError`] as that of [`spawn`](crate::FailureLogger::spawn).
    pub fn open(
        config: &LoggerConfig,
        expired: Expired,
        dry_run: bool,
    ) -> Result<Self, StartError> {
        let mut store = store::backend(&config.validate()?, 1, config.migrate).open()?;
        let mut clock = RetentionClock::default();
        let in_force = match dry_run {
            true => read(&mut *store, &mut clock),
            false => update(&mut *store, &mut clock, |stored| stored),
        };
        let InForce { days, time, wall } = in_force.map_err(StartError::Store)?;
        let range = match expired {
            // By the later clock, so that one that is behind makes nothing a row of the future.
            Expired::Ahead => wall.max(time) + DAY_MS..Timestamp::MAX,
            Expired::ByRetention => Timestamp::MIN..cutoff(time, days.failures),
            Expired::OlderThan(age) => Timestamp::MIN..time - milliseconds(age),
        };
        Ok(Self {
            store,
            expired,
            days,
            time,
            wall,
            range,
        })
    }

    /// Returns the days for which the database keeps failures; 0: always.
    pub fn retention_days(&self) -> u32 {
        self.days.failures
    }

    /// Returns the wall clock and the retention clock as text, if ages are counted by the latter
    /// because it does not trust the former.
    pub fn distrusted_clock(&self) -> Option<(String, String)> {
        let is_behind = self.wall - self.time > HOUR_MS;
        (is_behind && !matches!(self.expired, Expired::Ahead))
            .then(|| (self.wall.to_string(), self.time.to_string()))
    }

    /// Returns the number of failures that the purge will delete.
    ///
    /// # Errors
    ///
    /// [`StoreError`], if the database cannot be read.
    pub fn count(&mut self) -> Result<u64, StoreError> {
        self.store.count_within(self.range.clone())
    }

    /// Deletes them in chunks, between which other writers get a turn, and returns how many they
    /// were. Calls `progress` with the number so far.
    ///
    /// # Errors
    ///
    /// [`StoreError`], if a chunk cannot be deleted. Those before it stay deleted.
    pub fn run(mut self, mut progress: impl FnMut(u64)) -> Result<u64, StoreError> {
        let mut rows = 0;
        loop {
            let deleted = self.store.purge(self.range.clone(), ROWS_PER_PURGE)?;
            rows += deleted;
            progress(rows);
            if deleted < u64::from(ROWS_PER_PURGE) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        match self.expired {
            Expired::Ahead => self.store.purge_attempts_from(self.range.start)?,
            Expired::ByRetention => {
                while purge_attempts(&mut *self.store, self.days, self.time)? == Progress::More {}
            }
            Expired::OlderThan(_) => {}
        }
        self.store.close();
        Ok(rows)
    }
}
