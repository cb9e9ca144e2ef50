//! The work on the blocking thread: from the buffer into the store, and old rows out of it.
//!
//! # Rules of a job
//!
//! - It holds the lock of the writer from its beginning to its end, so that jobs of two
//!   incarnations never interleave.
//! - It opens the store first if there is none: [`ensure_open`].
//! - It ends with [`close_after`], which drops a store that must be reopened.
//! - It may panic anywhere. Rows and attempts therefore stay in `in_flight` and `attempts` until
//!   their commit is accounted for. A repetition finds their ids in the database, and changes
//!   nothing.
//! - A purge, a deletion and a roll-up must not touch rows that a repetition would insert once
//!   more: each of them writes the batch in flight first, or leaves it out.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::{StartError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::StatusChange;
use crate::model::time::Timestamp;
use crate::pipeline::buffer::Buffer;
use crate::pipeline::retention::{self, InForce};
use crate::pipeline::state::{Shared, Writer};
use crate::retention::{RetentionDays, StoredRetention, cutoff};
use crate::rollup::AttemptBatch;
use crate::store::backend::Quarantine;
use crate::store::row::{FEW_ROWS, Row};
use crate::store::write::{Erased, Inserted, Progress, Size, Store};

/// Rows of a transaction at most, however many wait. More rows gain little, and a crash would cost
/// more of them.
const ROWS_PER_TRANSACTION: u32 = 2048;
/// The last 11 bits of an event id count the rows of a batch, so that ids grow with the rows and
/// the index grows at its edge. The random bits before them make the id unique.
const IDS_PER_BATCH: u32 = ROWS_PER_TRANSACTION.next_power_of_two();
/// Rows that one purge job deletes: so few that a flush never waits long for it.
const ROWS_PER_PURGE: u32 = 1000;
/// The same of a database that is too large: a small one must not lose much more than it has to.
const ROWS_PER_SIZE_PURGE: u32 = 200;

/// Time after which a job begins no further chunk of a roll-up, because flushes wait for it.
const LONGEST_ROLL_UP: Duration = Duration::from_millis(20);

/// Writes everything that waits now, batch by batch, opening the store first where necessary.
///
/// A batch that fails stays in flight: the next call begins with it.
pub(crate) fn flush(shared: &Shared) -> Result<(), StoreError> {
    let mut writer = shared.writer();
    ensure_open(&mut writer)?;
    shared.attempts.collect();
    // The numbers at the beginning bound the loop: callers that log faster than the store commits
    // would otherwise keep this job, and with it every other one, from ending.
    let mut waiting = shared.buffer.waiting();
    // A retry writes the failed attempts unchanged, under their ids. Attempts that were counted
    // since then follow in a transaction of their own, for which the loop runs once more.
    let mut retries_attempts = !writer.attempts.is_empty();
    let mut buckets = shared.attempts.waiting();
    loop {
        if shared.attempts_refusal().is_some() {
            (retries_attempts, buckets) = (false, 0);
        }
        if writer.in_flight.is_empty() {
            let taken = take_batch(&shared.buffer, &mut writer.in_flight);
            // A record may be counted but not yet in the queue. The control actor retries for it.
            waiting = if taken == 0 {
                0
            } else {
                waiting.saturating_sub(taken)
            };
        }
        buckets = buckets.saturating_sub(count_in_flight(shared, &mut writer));
        let result = write_in_flight(shared, &mut writer);
        close_after(&mut writer, result)?;
        if waiting == 0 && buckets == 0 && !std::mem::take(&mut retries_attempts) {
            return Ok(());
        }
    }
}

/// Deletes one chunk of the rows that are past their retention.
pub(crate) fn purge(shared: &Shared) -> Result<Progress, StoreError> {
    failpoint!("purge");
    let mut writer = shared.writer();
    ensure_open(&mut writer)?;
    let result = purge_some(shared, &mut writer);
    close_after(&mut writer, result)
}

/// Deletes a chunk by age, or, if none is left, a chunk by size.
fn purge_some(shared: &Shared, writer: &mut Writer) -> Result<Progress, StoreError> {
    // A batch that failed may be committed all the same. If its rows were deleted before it is
    // repeated, the repetition would not find their ids, and would insert and count them once more.
    if !writer.in_flight.is_empty() {
        count_in_flight(shared, writer);
        write_in_flight(shared, writer)?;
    }
    let (days, time) = retention(shared, writer)?;
    let Some(store) = writer.store.as_deref_mut() else {
        return Ok(Progress::Done);
    };
    if days.failures > 0 {
        let deleted = store.purge(Timestamp::MIN..cutoff(time, days.failures), ROWS_PER_PURGE)?;
        shared.counters.purged.fetch_add(deleted, Ordering::AcqRel);
        if deleted >= u64::from(ROWS_PER_PURGE) {
            return Ok(Progress::More);
        }
    }
    purge_by_size(shared, store)
}

/// Deletes one chunk of the oldest rows if the database is larger than it may be.
fn purge_by_size(shared: &Shared, store: &mut dyn Store) -> Result<Progress, StoreError> {
    let max = shared.config.max_database_bytes;
    if max == 0 || !shared.config.applies_retention {
        return Ok(Progress::Done);
    }
    let Some(Size { used, all }) = store.size()? else {
        return Ok(Progress::Done);
    };
    if all <= max {
        return Ok(Progress::Done);
    }
    // An eighth more than necessary, so that not every flush begins a purge.
    if used <= max - max / 8 {
        store.shrink()?;
        // A file that cannot be shrunk fills its free pages first.
        let is_left = store
            .size()?
            .is_some_and(|now| now.all > max && now.all < all);
        return Ok(Progress::unless(is_left));
    }
    let deleted = store.purge(Timestamp::MIN..Timestamp::MAX, ROWS_PER_SIZE_PURGE)?;
    shared.counters.purged.fetch_add(deleted, Ordering::AcqRel);
    shared
        .counters
        .purged_by_size
        .fetch_add(deleted, Ordering::AcqRel);
    // Without a row, it is something else that is too large.
    Ok(Progress::unless(deleted > 0))
}

/// Deletes some failures for good.
pub(crate) fn delete(
    shared: &Shared,
    deletion: &Deletion,
    so_far: Deleted,
) -> Result<(Deleted, Erased), StoreError> {
    let mut writer = shared.writer();
    // Behind the lock: a store that the shutdown has closed must not be opened again.
    if shared.refusal().is_some() {
        return Err(StoreError::GiveUp("the logger has ended".into()));
    }
    ensure_open(&mut writer)?;
    // As before a purge: a repetition must not bring erased rows back.
    if !writer.in_flight.is_empty() {
        count_in_flight(shared, &mut writer);
        write_in_flight(shared, &mut writer)?;
    }
    // One chunk, or the rewrite of the file after the last one, which takes the time of a copy.
    let result = match writer.store.as_deref_mut() {
        Some(store) => store.delete(deletion, so_far),
        None => Err(StoreError::Reopen("no store".into())),
    };
    close_after(&mut writer, result)
}

/// Shows that the store takes rows, after something failed and nothing is left to write. The row of
/// the probe is rolled back.
pub(crate) fn probe(shared: &Shared) -> Result<(), StoreError> {
    failpoint!("probe");
    let mut writer = shared.writer();
    ensure_open(&mut writer)?;
    let result = writer
        .store
        .as_deref_mut()
        .map_or(Ok(()), |store| store.takes_a_plain_row());
    close_after(&mut writer, result)?;
    shared.counters.store_works();
    Ok(())
}

/// Adds one chunk of attempts to their minutes, hours and days, and deletes one of those that are
/// past their retention.
pub(crate) fn roll_up(shared: &Shared) -> Result<Progress, StoreError> {
    let mut writer = shared.writer();
    ensure_open(&mut writer)?;
    let result = roll_up_some(shared, &mut writer);
    close_after(&mut writer, result)
}

/// Stores drops, and rolls up a chunk of attempts.
fn roll_up_some(shared: &Shared, writer: &mut Writer) -> Result<Progress, StoreError> {
    let (days, time) = retention(shared, writer)?;
    // Each by itself: what the store refuses of one is no reason to leave the other.
    let drops = count_drops(shared, writer);
    let progress = roll_up_attempts(shared, writer, days, time)?;
    drops.map(|()| progress)
}

/// Rolls up chunks for [`LONGEST_ROLL_UP`], and deletes a chunk of expired counts if this logger
/// applies the retention.
fn roll_up_attempts(
    shared: &Shared,
    writer: &mut Writer,
    days: RetentionDays,
    time: Timestamp,
) -> Result<Progress, StoreError> {
    // The failed attempts may be committed already, and a retry writes them under the same ids. If
    // the roll-up deleted their deltas now, the retry would not find the ids, and would count them
    // twice.
    let may_be_committed = !writer.attempts.is_empty();
    let Some(store) = writer.store.as_deref_mut() else {
        return Ok(Progress::Done);
    };
    // Before the roll-up: rows that are committed while it runs are counted towards the next one.
    shared.attempts.begin_rollup();
    let own = (!may_be_committed).then_some(shared.attempts.owner);
    let started = Instant::now();
    let mut progress = store.roll_up(own)?;
    // As many as are written meanwhile, so that readers need not count them from their rows.
    while progress == Progress::More && started.elapsed() < LONGEST_ROLL_UP {
        progress = store.roll_up(own)?;
    }
    if shared.config.applies_retention {
        progress = progress.and(retention::purge_attempts(store, days, time)?);
    }
    Ok(progress)
}

/// Stores the drops since this was done last, because the counters end with the process. They stay
/// in `drops` if the store fails. No id tells a repetition: an error whose transaction was
/// committed all the same stores them twice.
fn count_drops(shared: &Shared, writer: &mut Writer) -> Result<(), StoreError> {
    shared.note_losses(Some(&mut writer.drops));
    if let Some(store) = writer
        .store
        .as_deref_mut()
        .filter(|_| !writer.drops.is_empty())
    {
        store.count_drops(&writer.drops)?;
        writer.drops.clear();
    }
    Ok(())
}

/// Sets the status of queries, one after the other. If that fails in between, the caller retries,
/// and the first ones get the same status once more.
pub(crate) fn set_query_status(
    shared: &Shared,
    queries: &[String],
    change: StatusChange,
) -> Result<(), StoreError> {
    let mut writer = shared.writer();
    // Behind the lock: a store that the shutdown has closed must not be opened again.
    if shared.refusal().is_some() {
        return Err(StoreError::GiveUp("the logger has ended".into()));
    }
    ensure_open(&mut writer)?;
    let result = writer.store.as_deref_mut().map_or(Ok(()), |store| {
        let mut queries = queries.iter();
        queries.try_for_each(|query| store.set_query_status(query, change))
    });
    close_after(&mut writer, result)
}

/// Reads the retention once, before the first record comes in, so that its date can be judged. If
/// the store fails, the first maintenance reads it. Until then no record is too old.
pub(crate) fn begin_retention(shared: &Shared) {
    if let Err(error) = retention(shared, &mut shared.writer()) {
        tracing::warn!(%error, "cannot read the retention in force yet: no record is too old \
            until it is read");
    }
}

/// Returns the retention in force, and the time that decides how old rows are. Publishes both for
/// callers, and updates the database if this logger applies the retention.
fn retention(
    shared: &Shared,
    writer: &mut Writer,
) -> Result<(RetentionDays, Timestamp), StoreError> {
    let Writer {
        store: Some(store),
        retention_clock,
        retention_is_stored,
        ..
    } = writer
    else {
        return Ok((shared.retention.days(), Timestamp::MIN));
    };
    let config = &shared.config;
    let InForce { days, time, .. } = if config.applies_retention {
        // At the start the settings of this logger win over what is stored. Afterwards the stored
        // days win, because another logger may have changed them since; only a new database, such
        // as one that replaced a damaged file, lacks them.
        let days = |own: Option<u32>, stored: Option<u32>| {
            if *retention_is_stored {
                stored.or(own)
            } else {
                own.or(stored)
            }
        };
        let change = |stored: StoredRetention| StoredRetention {
            failures_days: days(config.retention_days, stored.failures_days),
            attempts_days: days(config.attempts_retention_days, stored.attempts_days),
            ..stored
        };
        let in_force = retention::update(&mut **store, retention_clock, change)?;
        *retention_is_stored = true;
        in_force
    } else {
        retention::read(&mut **store, retention_clock)?
    };
    shared.retention.publish(days, time);
    Ok((days, time))
}

/// Closes the store, so that the file is complete and its journal is removed. The connections of
/// readers are closed first, because SQLite removes the journal with the last connection.
pub(crate) fn close(shared: &Shared) {
    let mut writer = shared.writer();
    if let Err(error) = count_drops(shared, &mut writer) {
        tracing::warn!(%error, "what was lost is counted, but not stored");
    }
    // The failed attempts are not retried any more, but may be in the file: other loggers roll them
    // up after a while.
    let may_be_committed = !writer.attempts.is_empty();
    if let Some(mut store) = writer.store.take() {
        if !may_be_committed && let Err(error) = store.release(shared.attempts.owner) {
            tracing::debug!(%error, "attempts of this logger are added up later");
        }
        shared.reads.close_idle();
        store.close();
    }
}

/// Opens the store where necessary. Every job begins with it.
fn ensure_open(writer: &mut Writer) -> Result<(), StoreError> {
    failpoint!("job");
    if writer.store.is_none() {
        failpoint!("store-open", |_| Err(StoreError::Reopen("injected".into())));
        let store = writer.database.open().map_err(|error| match error {
            StartError::Store(error) => error,
            StartError::NotADatabase { .. } => quarantine(writer, "not an SQLite database".into()),
            StartError::Damaged { cause, .. } => quarantine(writer, cause),
            error => StoreError::Reopen(error.to_string()),
        })?;
        writer.store = Some(store);
    }
    Ok(())
}

/// Closes the store after an error that asks for it, so that the next job reopens it, and
/// quarantines a damaged file.
fn close_after<T>(writer: &mut Writer, result: Result<T, StoreError>) -> Result<T, StoreError> {
    // Dropped before the file is renamed: its connections have the file open, and would still write
    // to it under its new name.
    if let Err(StoreError::Reopen(_) | StoreError::Corrupt(_)) = result {
        writer.store = None;
    }
    match result {
        Err(StoreError::Corrupt(cause)) => Err(quarantine(writer, cause)),
        result => result,
    }
}

/// Returns the error that the job ends with: the next one opens what has the name then.
fn quarantine(writer: &Writer, cause: String) -> StoreError {
    match writer.database.quarantine() {
        Ok(Quarantine::Renamed(path)) => {
            tracing::error!(cause, quarantined = %path.display(), "the database file is damaged; \
                renamed it, opening a new one");
            StoreError::Corrupt(cause)
        }
        Ok(Quarantine::NotNeeded) => StoreError::Reopen(cause),
        Ok(Quarantine::Shared) => StoreError::Reopen(format!(
            "{cause}; the database file holds tables of another application and stays where it \
             is: repair or restore it"
        )),
        Err(error) => StoreError::Reopen(format!(
            "{cause}; cannot rename the damaged database file: {error}"
        )),
    }
}

/// Moves a batch from the buffer to the slot of the writer, and gives an id to each row without
/// one. Returns the number of rows in flight.
fn take_batch(buffer: &Buffer, in_flight: &mut VecDeque<Row>) -> usize {
    // One random number a batch: asking the system for one takes as long as binding a row.
    let first = Uuid::now_v7().as_u128() & !u128::from(IDS_PER_BATCH - 1);
    for nth in 0..ROWS_PER_TRANSACTION {
        let Some(entry) = buffer.pop() else { break };
        in_flight.push_back(Row::new(Uuid::from_u128(first | u128::from(nth)), entry));
    }
    in_flight.len()
}

/// Counts the failures of the batch as attempts, and takes some attempts to write with the batch.
/// Returns the number of their buckets.
fn count_in_flight(shared: &Shared, writer: &mut Writer) -> usize {
    let few = writer.in_flight.len() <= FEW_ROWS;
    let mut unobserved = shared.attempts.unobserved();
    for row in writer.in_flight.iter_mut().filter(|row| row.is_undecided()) {
        // Only the row itself tells if it was stored before. A delta beside a repeated row would
        // count the failure once more.
        if few || row.is_repeatable() {
            row.count_from_row(unobserved.is_one_of_too_many(row.strategy()));
        } else {
            unobserved.count(row.count_elsewhere());
        }
    }
    // Gives up the locks of `pending` and `registry`, which `take` locks itself.
    drop(unobserved);
    if !writer.attempts.is_empty() {
        return 0;
    }
    // Only if none are left from a failed transaction: those go out under their ids first.
    writer.attempts = shared.attempts.take();
    writer.attempts.deltas.len()
}

/// Commits the batch in flight. Where the store refuses a part, that part is split until the row
/// at fault stands alone and is dropped.
fn write_in_flight(shared: &Shared, writer: &mut Writer) -> Result<(), StoreError> {
    let mut size = writer.in_flight.len();
    let none = AttemptBatch::default();
    loop {
        let attempts = if shared.attempts_refusal().is_some() {
            &none
        } else {
            &writer.attempts
        };
        if writer.in_flight.is_empty() && attempts.is_empty() {
            return Ok(());
        }
        size = size.min(writer.in_flight.len());
        let rows = &*writer.in_flight.make_contiguous();
        let rows = rows.get(..size).unwrap_or(rows);
        let Some(store) = writer.store.as_deref_mut() else {
            return Err(StoreError::Reopen("no store".into()));
        };
        let span = tracing::info_span!("memory.retrieval_failure.flush", count = size).entered();
        failpoint!("flush");
        let started = Instant::now();
        match store.insert(rows, attempts, &shared.gate) {
            Ok(Inserted {
                permit,
                duplicates,
                are_behind,
                sources_left_out,
                refused,
            }) => {
                // A panic between the commit and `counts` leaves the batch in flight. The
                // repetition finds all ids in the database, and is accounted for as the first try
                // would have been.
                failpoint!("flush-committed");
                if permit.counts() {
                    // The permit of a gate that was closed during the commit does not count: the
                    // shutdown has reported these rows as unsaved and in doubt, and given them up
                    // in the buffer. To settle them here as well would settle them twice.
                    shared.buffer.persisted(size as u64);
                    shared
                        .counters
                        .duplicates
                        .fetch_add(duplicates.len() as u64, Ordering::AcqRel);
                    shared
                        .counters
                        .sources_left_out
                        .fetch_add(sources_left_out, Ordering::AcqRel);
                    let new = rows
                        .iter()
                        .enumerate()
                        .filter(|(nth, _)| duplicates.binary_search(nth).is_err());
                    shared
                        .attempts
                        .counted_from_rows(new.filter_map(|(_, row)| row.counted_from_row()));
                    shared
                        .attempts
                        .add_rows_behind(if are_behind { size as u64 } else { 0 });
                    // Nothing between the accounting and this line may return or panic: rows that
                    // are settled and still in flight would be repeated, and settled twice.
                    drop(writer.in_flight.drain(..size));
                    match refused {
                        Some(cause) => refuse_attempts(shared, cause),
                        None if attempts.is_empty() => {}
                        None => shared
                            .attempts
                            .persisted(&std::mem::take(&mut writer.attempts)),
                    }
                    // One that brings attempts alone is no batch of records.
                    if size > 0 {
                        shared.counters.flushes.fetch_add(1, Ordering::AcqRel);
                        shared
                            .counters
                            .flush_seconds
                            .observe(started.elapsed().as_secs_f64());
                        shared.counters.flush_records.observe(size as f64);
                    }
                    shared.counters.store_works();
                    shared
                        .counters
                        .last_flush
                        .store(Timestamp::now().as_millis(), Ordering::Release);
                }
                size = writer.in_flight.len();
            }
            // A part that succeeds is committed and leaves the batch, so that the row at fault
            // comes to the front and stands alone in the end.
            Err(StoreError::Split(_)) if size > 1 => size /= 2,
            // There is no row that could be at fault.
            Err(StoreError::Split(cause)) if size == 0 => return Err(StoreError::Retry(cause)),
            Err(StoreError::Split(cause)) => {
                // One row fails alone. It is at fault only if the store takes another one.
                // A full disk or a trigger that refuses everything fails this row, too. Without the
                // probe, such a fault would reject one record after the other until the buffer is
                // empty.
                if store.takes_a_plain_row().is_err() {
                    return Err(StoreError::Retry(cause));
                }
                // Like a commit: not after a shutdown has drawn its line, and reported the record.
                let permit = shared
                    .gate
                    .enter(1)
                    .ok_or_else(|| StoreError::GiveUp("the logger has ended".into()))?;
                if permit.counts() {
                    tracing::warn!(cause, "the store refuses a record, which is dropped");
                    shared.buffer.rejected(1);
                    let rejected = writer.in_flight.pop_front();
                    // It failed, though there is no row to count it from. Its sender may repeat the
                    // other kind.
                    if let Some(failure) = rejected
                        .as_ref()
                        .filter(|row| !row.is_repeatable())
                        .and_then(Row::counted_from_row)
                    {
                        shared.attempts.unobserved().count(failure);
                    }
                }
                size = writer.in_flight.len();
            }
            Err(error) => return Err(error),
        }
        drop(span);
    }
}

/// Notes that the store rejects the attempts. They wait until it takes them; records are written
/// without them.
fn refuse_attempts(shared: &Shared, cause: String) {
    let refusal = shared.attempts.refused(
        cause,
        shared.config.first_backoff,
        shared.config.longest_backoff,
    );
    let (cause, pause_ms) = (refusal.cause, refusal.pause.as_millis());
    tracing::warn!(
        cause,
        pause_ms,
        "the store rejects the counts of attempts; keeping the counts, and storing records"
    );
    shared.failed(format!("attempts cannot be counted: {cause}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoggerConfig;
    use crate::model::entry::Origin;
    use crate::model::outcome::RetrievalFailureType;
    use crate::model::record::RetrievalFailureRecord;
    use crate::store;
    use crate::store::reads::Lane;
    use crate::store::snapshot::Snapshot;
    use crate::store::sqlite::peer::Peer;

    struct Logger {
        folder: tempfile::TempDir,
        shared: Shared,
    }

    impl Logger {
        fn new() -> Self {
            Self::with_capacity(100)
        }

        fn with_capacity(records: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = LoggerConfig::new(folder.path().join("x.db").to_str().unwrap())
                .buffer_capacity(records)
                .batch_size(10);
            let location = config.validate().unwrap();
            let writer = Writer::new(store::backend(&location, 4, true), None);
            Self {
                folder,
                shared: Shared::new(config, writer),
            }
        }

        fn log(&self, records: usize) {
            for nth in 0..records {
                let strategy = format!("s{}", nth % 2);
                let record =
                    RetrievalFailureRecord::new(RetrievalFailureType::NoHit, strategy, "q");
                let _ = self.shared.log(record, None, Origin::LOGGED);
            }
        }

        fn connect(&self) -> Peer {
            Peer::open(&self.folder.path().join("x.db"))
        }

        fn count(&self, sql: &str) -> i64 {
            self.connect().integer(sql)
        }
    }

    #[test]
    fn few_failures_are_counted_from_rows_and_many_beside_them() {
        let logger = Logger::new();
        for (records, deltas) in [(1, 0), (FEW_ROWS, 0), (FEW_ROWS + 1, 2)] {
            logger.log(records);
            flush(&logger.shared).unwrap();
            assert_eq!(
                logger.count("SELECT count(*) FROM memory_retrieval_attempts_recent"),
                deltas,
                "{records}"
            );
        }
        let total = 2 * FEW_ROWS as i64 + 2;
        assert_eq!(roll_up(&logger.shared).unwrap(), Progress::Done);
        let counted = "SELECT sum(attempts) FROM memory_retrieval_attempts WHERE resolution = 60";
        assert_eq!(
            (
                logger.count(counted),
                logger.count("SELECT count(*) FROM memory_retrieval_failures")
            ),
            (total, total)
        );
        assert_eq!(roll_up(&logger.shared).unwrap(), Progress::Done);
        assert_eq!(logger.count(counted), total, "each once");
        // With nothing left behind, many rows are none that a reader must look at.
        logger.log(50);
        flush(&logger.shared).unwrap();
        let behind = "SELECT (SELECT max(id) FROM memory_retrieval_failures) - rolled_up_to FROM \
            memory_retrieval_log";
        assert_eq!(logger.count(behind), 0);
    }

    #[test]
    fn a_store_that_refuses_the_roll_up_takes_records_and_drops() {
        let logger = Logger::new();
        logger.log(20);
        flush(&logger.shared).unwrap();
        logger
            .connect()
            .execute("ALTER TABLE memory_retrieval_attempts RENAME TO elsewhere");
        logger.log(120);
        // Not as an error for which the file is reopened, or records wait.
        let refusal = roll_up(&logger.shared).unwrap_err();
        assert!(
            matches!(&refusal, StoreError::Split(cause) if cause.starts_with("no such table")),
            "{refusal:?}"
        );
        assert_eq!(
            logger.count("SELECT sum(records) FROM memory_retrieval_drops"),
            20
        );
        flush(&logger.shared).unwrap();
        assert_eq!(
            logger.count("SELECT count(*) FROM memory_retrieval_failures"),
            120
        );
        logger
            .connect()
            .execute("ALTER TABLE elsewhere RENAME TO memory_retrieval_attempts");
        assert_eq!(roll_up(&logger.shared).unwrap(), Progress::Done);
        assert_eq!(
            logger
                .count("SELECT sum(attempts) FROM memory_retrieval_attempts WHERE resolution = 60"),
            120
        );
    }

    #[test]
    fn flush_writes_all_that_waits_in_several_transactions() {
        let records = 2 * ROWS_PER_TRANSACTION as usize + 1;
        let logger = Logger::with_capacity(records);
        logger.log(records);
        flush(&logger.shared).unwrap();
        let stats = logger.shared.stats();
        assert_eq!((stats.persisted, stats.flushes), (records as u64, 3));
    }

    #[test]
    fn maintenance_goes_on_until_all_expired_counts_are_deleted() {
        let logger = Logger::new();
        flush(&logger.shared).unwrap();
        logger.connect().execute(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500) \
                 INSERT INTO memory_retrieval_attempts SELECT 60, n * 60000, 's', 'success', 0, 1, 0, NULL, NULL FROM n",
        );
        let left = || logger.count("SELECT count(*) FROM memory_retrieval_attempts");
        assert_eq!(roll_up(&logger.shared).unwrap(), Progress::More);
        assert!(left() > 0);
        while roll_up(&logger.shared).unwrap() == Progress::More {}
        assert_eq!(left(), 0);
    }

    #[test]
    fn close_ends_idle_connections_of_readers_and_leaves_no_journal() {
        let logger = Logger::new();
        flush(&logger.shared).unwrap();
        // While the store is closed, a reader opens a connection of its own.
        logger.shared.writer().store = None;
        let read = |snapshot: &mut dyn Snapshot, _| snapshot.oldest_failure();
        let read = logger
            .shared
            .reads
            .run(Lane::Quick, Duration::from_secs(60), read);
        futures_executor::block_on(read).unwrap();
        logger.log(1);
        flush(&logger.shared).unwrap();
        let journal = logger.folder.path().join("x.db-wal");
        assert!(journal.exists());
        close(&logger.shared);
        assert!(!journal.exists());
    }

    #[test]
    fn roll_up_is_wanted_once_for_the_same_rows() {
        let logger = Logger::new();
        logger.shared.attempts.add_rows_behind(1 << 40);
        assert!(logger.shared.attempts.many_rows_are_behind());
        assert_eq!(roll_up(&logger.shared).unwrap(), Progress::Done);
        assert!(!logger.shared.attempts.many_rows_are_behind());
    }

    #[test]
    fn a_purge_counts_what_it_deletes() {
        let logger = Logger::new();
        logger.log(21);
        flush(&logger.shared).unwrap();
        let ages = "UPDATE memory_retrieval_failures SET created_at = created_at - 100 * 86400000 \
            WHERE id > 1";
        logger.connect().execute(ages);
        assert_eq!(purge(&logger.shared).unwrap(), Progress::Done);
        assert_eq!(
            logger.count("SELECT count(*) FROM memory_retrieval_failures"),
            1
        );
        assert_eq!(
            logger.count(
                "SELECT sum(attempts) FROM memory_retrieval_attempts WHERE resolution = 86400"
            ),
            21
        );
    }
}
