//! The server as a backend, and its store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::result::Error as DieselError;

use crate::error::{StartError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::StatusChange;
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
use crate::retention::StoredRetention;
use crate::rollup::resolution::Resolution;
use crate::rollup::{AttemptBatch, Owner};
use crate::server::ServerConfig;
use crate::store::backend::{Backend, Quarantine};
use crate::store::gate::CommitGate;
use crate::store::postgres::attempts::IfLocked;
use crate::store::postgres::connection::{Connection, Purpose};
use crate::store::postgres::errors::classify;
use crate::store::postgres::migrate::{self, Versions};
use crate::store::postgres::reader::PostgresReads;
use crate::store::postgres::{attempts, failures, small, uncounted};
use crate::store::reads::Reads;
use crate::store::row::{FEW_ROWS, Row};
use crate::store::write::{Erased, Inserted, Progress, Size, Store};

/// A database of a PostgreSQL server.
pub(crate) struct Server {
    server: ServerConfig,
    pool_size: u32,
    /// `false`: the schema is used as it is.
    migrates: bool,
}

impl Server {
    /// Returns the database of a `server`. Nothing connects before [`Backend::open`].
    pub(crate) fn new(server: ServerConfig, pool_size: u32, migrates: bool) -> Self {
        Self {
            server,
            pool_size,
            migrates,
        }
    }

    fn error(&self, cause: impl std::fmt::Display) -> StartError {
        StartError::Server {
            database: self.server.to_string(),
            cause: cause.to_string(),
        }
    }

    /// Brings the schema up to date, or fails if it may not.
    fn migrate(&self, conn: &mut Connection) -> Result<(), StartError> {
        let versions = Versions::read(conn)?;
        let listed = |versions: &[String]| match versions {
            [] => "none".to_owned(),
            versions => versions.join(", "),
        };
        let (found, needed) = (listed(&versions.found), listed(&versions.needed));
        if versions.are_too_new() {
            return Err(self.error(format_args!(
                "the schema is too new (versions found: {found}; needed: {needed}); use a newer \
                 version of failure-logger, or name another database"
            )));
        }
        if versions.are_current() {
            return Ok(());
        }
        if !self.migrates {
            return Err(self.error(format_args!(
                "the schema is missing or too old (versions found: {found}; needed: {needed}); \
                 start once with migrate = true and a role that may create tables"
            )));
        }
        let mut lock = Connection::new(self.server.clone());
        Ok(migrate::run(&mut lock, conn)?)
    }
}

impl Backend for Server {
    fn open(&self) -> Result<Box<dyn Store>, StartError> {
        let mut conn = Connection::new(self.server.clone());
        self.migrate(&mut conn)?;
        Ok(Box::new(PostgresStore { conn }))
    }

    fn reads(&self) -> Reads {
        let reads = PostgresReads::new(self.server.clone(), self.pool_size);
        Reads::new(Some(Arc::new(reads)))
    }

    fn quarantine(&self) -> Result<Quarantine, StartError> {
        Ok(Quarantine::NotNeeded)
    }
}

/// An open database.
struct PostgresStore {
    conn: Connection,
}

/// Reason why nothing was inserted.
enum InsertError {
    /// The store rejects the counts of attempts, with this cause.
    Attempts(String),
    Store(StoreError),
}

impl From<StoreError> for InsertError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl InsertError {
    fn into_store_error(self) -> StoreError {
        match self {
            Self::Attempts(cause) => {
                StoreError::Retry(format!("attempts cannot be counted: {cause}"))
            }
            Self::Store(error) => error,
        }
    }
}

impl PostgresStore {
    /// Runs `work` in a transaction.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.conn.transact(Purpose::Write, |conn| {
            let done = work(conn)?;
            failpoint!("store-before-commit");
            Ok(done)
        })
    }

    /// Runs one statement of the tables of attempts or drops.
    fn upkeep<T>(
        &mut self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.write(|conn| work(conn).map_err(|error| classify_upkeep(&error)))
    }

    /// Inserts all rows and attempts, or nothing.
    fn insert_all<'g>(
        &mut self,
        rows: &[Row],
        batch: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, InsertError> {
        let mut refused = None;
        let inserted = self.write(|conn| {
            let mut inserted = failures::insert(conn, rows).map_err(|error| classify(&error))?;
            let left_out = attempts::insert(conn, batch, Timestamp::now()).map_err(|error| {
                let error = classify(&error);
                // This error is not the fault of the rows.
                if let StoreError::Split(cause) | StoreError::Reopen(cause) = &error {
                    refused = Some(cause.clone());
                }
                error
            })?;
            inserted.sources_left_out += left_out;
            failpoint!("store-commit", |_| Err(StoreError::Retry(
                "injected".into()
            )));
            // The permit is the last step before the commit, as in the store of SQLite.
            let permit = gate.enter(rows.len()).ok_or_else(closed)?;
            Ok((permit, inserted))
        });
        let (permit, inserted) = inserted
            .map_err(|error| refused.map_or(InsertError::Store(error), InsertError::Attempts))?;
        Ok(Inserted {
            permit,
            duplicates: inserted.duplicates,
            sources_left_out: inserted.sources_left_out,
            are_behind: !rows.is_empty()
                && (rows.len() <= FEW_ROWS
                    || rows.iter().any(|row| row.counted_from_row().is_some())),
            refused: None,
        })
    }

    /// Rolls up the rows from before `before` that are not counted yet, because a purge deletes
    /// only counted rows.
    fn count_before_purge(&mut self, before: Timestamp) -> Result<(), StoreError> {
        while self.upkeep(|conn| uncounted::has_rows_before(conn, before))? {
            let rolled_up =
                self.upkeep(|conn| attempts::roll_up(conn, Timestamp::now(), None, IfLocked::Wait));
            match rolled_up {
                Ok(false) => {}
                Ok(true) => break,
                Err(StoreError::Split(cause)) => {
                    tracing::warn!(
                        cause,
                        "the store rejects the counts of attempts; their failures are not purged"
                    );
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Store for PostgresStore {
    fn insert<'g>(
        &mut self,
        rows: &[Row],
        attempts: &AttemptBatch,
        gate: &'g CommitGate,
    ) -> Result<Inserted<'g>, StoreError> {
        failpoint!("store-insert", |_| Err(StoreError::Retry(
            "injected".into()
        )));
        match self.insert_all(rows, attempts, gate) {
            // The transaction was rolled back as a whole, so that the rows go into a second one
            // without the attempts.
            Err(InsertError::Attempts(cause)) => {
                let inserted = self.insert_all(rows, &AttemptBatch::default(), gate);
                Ok(Inserted {
                    refused: Some(cause),
                    ..inserted.map_err(InsertError::into_store_error)?
                })
            }
            inserted => inserted.map_err(InsertError::into_store_error),
        }
    }

    fn takes_a_plain_row(&mut self) -> Result<(), StoreError> {
        // The result of the insert is kept apart, because the transaction itself always fails.
        let mut taken = None;
        let rolled_back = self.write(|conn| {
            taken = Some(
                failures::insert(conn, &[Row::plain()])
                    .map(drop)
                    .map_err(|error| classify(&error)),
            );
            Err::<(), _>(StoreError::GiveUp("only a probe".into()))
        });
        taken.unwrap_or(rolled_back)
    }

    #[cfg(feature = "program")]
    fn count_within(&mut self, range: Range<Timestamp>) -> Result<u64, StoreError> {
        self.write(|conn| {
            small::count_within(conn, range.start, range.end).map_err(|error| classify(&error))
        })
    }

    fn purge(&mut self, range: Range<Timestamp>, limit: u32) -> Result<u64, StoreError> {
        failpoint!("store-purge", |_| Err(StoreError::Retry("injected".into())));
        self.count_before_purge(range.end)?;
        self.write(|conn| {
            small::purge(conn, range.start, range.end, limit).map_err(|error| classify(&error))
        })
    }

    #[cfg(feature = "program")]
    fn purge_attempts_from(&mut self, from: Timestamp) -> Result<(), StoreError> {
        self.write(|conn| attempts::delete_from(conn, from).map_err(|error| classify(&error)))
    }

    fn retention(&mut self) -> Result<StoredRetention, StoreError> {
        self.write(|conn| {
            small::retention(conn, small::Lock::None).map_err(|error| classify(&error))
        })
    }

    fn change_retention(
        &mut self,
        change: &mut dyn FnMut(StoredRetention) -> StoredRetention,
    ) -> Result<(), StoreError> {
        self.write(|conn| {
            small::retention(conn, small::Lock::Change)
                .and_then(|stored| small::put_retention(conn, &change(stored)))
                .map_err(|error| classify(&error))
        })
    }

    fn roll_up(&mut self, own: Option<Owner>) -> Result<Progress, StoreError> {
        let is_done =
            self.upkeep(|conn| attempts::roll_up(conn, Timestamp::now(), own, IfLocked::Leave))?;
        Ok(Progress::unless(!is_done))
    }

    fn release(&mut self, owner: Owner) -> Result<(), StoreError> {
        self.upkeep(|conn| attempts::release(conn, owner))
    }

    fn expire(
        &mut self,
        resolution: Resolution,
        before: Timestamp,
    ) -> Result<Progress, StoreError> {
        let is_done = self.upkeep(|conn| attempts::expire(conn, resolution, before))?;
        Ok(Progress::unless(!is_done))
    }

    fn count_drops(&mut self, drops: &BTreeMap<Timestamp, DropCounts>) -> Result<(), StoreError> {
        self.upkeep(|conn| {
            drops
                .iter()
                .try_for_each(|(at, drops)| small::add_drops(conn, *at, drops))
        })
    }

    fn expire_drops(&mut self, before: Timestamp) -> Result<(), StoreError> {
        self.upkeep(|conn| small::expire_drops(conn, before))
    }

    fn set_query_status(&mut self, query: &str, change: StatusChange) -> Result<(), StoreError> {
        failpoint!("store-status", |_| Err(StoreError::Retry(
            "injected".into()
        )));
        self.write(|conn| small::set_status(conn, query, change).map_err(|error| classify(&error)))
    }

    fn delete(
        &mut self,
        deletion: &Deletion,
        so_far: Deleted,
    ) -> Result<(Deleted, Erased), StoreError> {
        self.count_before_purge(Timestamp::MAX)?;
        let deleted = self.write(|conn| {
            small::delete_chunk(conn, deletion, so_far).map_err(|error| classify(&error))
        })?;
        // The server frees the places of the rows by its vacuum, and keeps them in its log and
        // backups.
        let erased = if deleted.is_done {
            Erased::NotInFreePages
        } else {
            Erased::NotYet
        };
        Ok((deleted, erased))
    }

    /// Returns `None`: the server has other tables, and its administrator has its size in view.
    fn size(&mut self) -> Result<Option<Size>, StoreError> {
        Ok(None)
    }

    /// Does nothing, because the server vacuums by itself.
    fn shrink(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(&mut self) {}
}

/// Classifies an error of the tables of attempts or drops. If such a table is missing, the store is
/// not reopened: it stores records without the table.
fn classify_upkeep(error: &DieselError) -> StoreError {
    match classify(error) {
        StoreError::Reopen(cause) => StoreError::Split(cause),
        error => error,
    }
}

/// Returns the error of a transaction that came after the end of a shutdown.
fn closed() -> StoreError {
    StoreError::GiveUp("the deadline of the shutdown has passed".into())
}
