//! Backup and restore of a database file, both by SQLite alone.
//!
//! A backup is a copy that SQLite writes within one read transaction (`VACUUM INTO`), while other
//! processes may write. A restore replaces the content of the tables within one write transaction,
//! so that a leftover journal, a running service and other loggers all end up with the restored
//! content, or the restore fails and changes nothing.
//!
//! # Steps of a restore
//!
//! 1. The backup is copied, so that it stays as it is, and the copy gets the present schema.
//! 2. The target is opened once: a missing one is created, a leftover journal is recovered, and a
//!    damaged file is quarantined.
//! 3. One transaction replaces the rows of our tables by those of the copy. The file, its journal
//!    and the tables of others stay, so that a running service continues with its connections.
//! 4. The log gets a new `log_id`, so that cursors and tail positions of clients are not applied to
//!    other rows. Its ids continue above the larger ones of both logs.
//! 5. Foreign keys are checked at the end. If a row of an application refers to a failure that is
//!    not there any more, the transaction is rolled back.
//!
//! The retention of the target stays: that of the backup could delete what was just restored.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use uuid::Uuid;

use crate::error::{StartError, StoreError};
use crate::store::backend::{Backend as _, Quarantine};
use crate::store::sqlite::database::Database;
use crate::store::sqlite::errors::{classify, classify_text};
use crate::store::sqlite::file::{DatabaseFile, with_suffix};
use crate::store::sqlite::pool::BUSY_TIMEOUT;

/// Reason why a backup or a restore failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Name another file.
    #[error("{}: exists already; name another file", .0.display())]
    Exists(PathBuf),
    /// Name another file: a log cannot be restored from itself.
    #[error("{}: is the same file as the database; name another one", .0.display())]
    Same(PathBuf),
    /// Name another file: this one has no failure log.
    #[error("{}: holds no failure log ({cause}); name another file", path.display())]
    NoLog { path: PathBuf, cause: String },
    /// Use another backup.
    #[error("{}: is damaged ({cause}); use another backup", path.display())]
    Damaged { path: PathBuf, cause: String },
    /// Restore into another file: this one is damaged, and it belongs to an application, too, as
    /// far as is known.
    #[error(
        "{}: is damaged and holds, or may hold, tables of another application; repair it, move it away, or restore into \
         another file",
        .0.display()
    )]
    Shared(PathBuf),
    /// Delete those rows first, or restore into another file.
    #[error(
        "{}: {rows} rows of another application refer to failures that the backup does not have; \
         delete them, or restore into another file",
        path.display()
    )]
    Referenced { path: PathBuf, rows: i64 },
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Target(#[from] StartError),
    #[error("{}: {cause}", path.display())]
    Store { path: PathBuf, cause: StoreError },
}

/// Result of a restore.
pub struct Restored {
    /// Failures in the log after the restore.
    pub failures: u64,
    /// Path of the damaged file that had the name before.
    pub quarantined: Option<PathBuf>,
}

/// Copies the database at `source` to the new file `target`, for its owner only, and checks the
/// copy. Returns its failures. `target` appears when it is complete.
pub fn back_up(source: &Path, target: &Path, partial: &Temporary) -> Result<u64, BackupError> {
    check_free(target)?;
    let partial = partial.path();
    let failures = copy(source, Source::Live, partial)?;
    check_free(target)?;
    publish(partial, target)?;
    Ok(failures)
}

/// Fails if there is a file with the name, or one that SQLite would take for its journal: it would
/// be brought into the backup.
fn check_free(target: &Path) -> Result<(), BackupError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = with_suffix(target, suffix);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(BackupError::Exists(path));
        }
    }
    Ok(())
}

/// Replaces the content of the log at `location` by that of `backup`, which may be one of an older
/// version. A missing log is created, a damaged one is renamed. `migrate`: the schema of the log
/// may be changed.
pub fn restore(
    backup: &Path,
    location: &Path,
    migrate: bool,
    work: &Temporary,
) -> Result<Restored, BackupError> {
    let target = DatabaseFile::new(location);
    if target
        .identity()
        .ok()
        .flatten()
        .is_some_and(|identity| Some(identity) == identity_of(backup))
    {
        return Err(BackupError::Same(backup.into()));
    }
    // A copy: the backup stays as it is, and its tables are brought up to date.
    let folder = work.path();
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|cause| BackupError::Io {
        path: folder.into(),
        cause,
    })?;
    let upgraded = folder.join("copy.db");
    let failures = copy(backup, Source::Backup, &upgraded)?;
    drop(Database::file(&upgraded, 1).open()?);

    let database = Database::file(location, 1).migrate(migrate);
    let mut quarantined = None;
    if !is_sound(&database, &target)? {
        match database.quarantine()? {
            Quarantine::Renamed(path) => quarantined = Some(path),
            Quarantine::Shared => return Err(BackupError::Shared(location.into())),
            Quarantine::NotNeeded => {}
        }
        drop(database.open()?);
    }
    let target = target.resolved();
    let _lock = target.lock()?;
    replace_content(&target, &DatabaseFile::new(&upgraded))?;
    Ok(Restored {
        failures,
        quarantined,
    })
}

/// Creates a missing database, recovers a leftover journal, and returns `false` if the database is
/// damaged.
fn is_sound(database: &Database, target: &DatabaseFile) -> Result<bool, BackupError> {
    match database.open() {
        Ok(store) => drop(store),
        Err(StartError::Damaged { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match check(&target.resolved(), target.path()) {
        Ok(_) => Ok(true),
        Err(
            BackupError::Damaged { .. }
            | BackupError::Store {
                cause: StoreError::Corrupt(_),
                ..
            },
        ) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Purpose for which a file is read, so that no journal stays beside it.
#[derive(Clone, Copy)]
enum Source {
    /// Others may write it. The last connection to close it removes its journal, which only one
    /// that may write can.
    Live,
    /// No process writes it, and it stays as it is.
    Backup,
}

impl Source {
    /// Connects in a way that leaves no journal beside the file.
    fn connect(self, path: &Path) -> Result<SqliteConnection, BackupError> {
        let file = DatabaseFile::new(path);
        match self {
            Self::Live => connect(&file.read_write_url(), path)
                .or_else(|_| connect(&file.read_only_url(), path)),
            Self::Backup if !file.has_journal() => connect(&file.immutable_url(), path),
            // The journal has the last commits, or a transaction that must be rolled back.
            Self::Backup => connect(&file.read_only_url(), path),
        }
    }
}

/// Writes a copy of the database to the new file `target`, and checks it.
fn copy(source: &Path, kind: Source, target: &Path) -> Result<u64, BackupError> {
    let io_error = |cause| BackupError::Io {
        path: target.into(),
        cause,
    };
    let is_file = fs::metadata(source).map(|file| file.is_file());
    if !is_file.map_err(|error| BackupError::Io {
        path: source.into(),
        cause: error,
    })? {
        // Opening a pipe would block.
        return Err(BackupError::NoLog {
            path: source.into(),
            cause: "not a regular file".into(),
        });
    }
    let mut conn = kind.connect(source)?;
    conn.batch_execute("SELECT event_id FROM memory_retrieval_failures LIMIT 0")
        .map_err(|error| match classify(&error) {
            StoreError::Corrupt(cause) | StoreError::Reopen(cause) => BackupError::NoLog {
                path: source.into(),
                cause,
            },
            other => BackupError::Store {
                path: source.into(),
                cause: other,
            },
        })?;
    // Before SQLite knows it: its mode is that of the copy, and no other process can have taken the
    // name.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(target).map_err(io_error)?);
    let copy = DatabaseFile::new(target);
    let url = copy.url().map_err(io_error)?;
    diesel::sql_query("VACUUM INTO ?")
        .bind::<Text, _>(url)
        .execute(&mut conn)
        .map_err(|error| match classify(&error) {
            StoreError::Corrupt(cause) => BackupError::Damaged {
                path: source.into(),
                cause,
            },
            other => BackupError::Store {
                path: target.into(),
                cause: other,
            },
        })?;
    drop(conn);
    let failures = check(&copy, source)?;
    // SQLite has closed it. `VACUUM INTO` leaves it to the system when the copy reaches the disk.
    File::open(target)
        .and_then(|file| file.sync_all())
        .map_err(io_error)?;
    Ok(failures)
}

/// Fails if the copy is not sound; returns its failures otherwise.
fn check(copy: &DatabaseFile, source: &Path) -> Result<u64, BackupError> {
    #[derive(QueryableByName)]
    struct Checked {
        #[diesel(sql_type = Text)]
        verdict: String,
        #[diesel(sql_type = BigInt)]
        failures: i64,
    }
    let mut conn = connect(&copy.read_only_url(), copy.path())?;
    let checked = diesel::sql_query(
        "SELECT integrity_check AS verdict, (SELECT count(*) FROM memory_retrieval_failures) AS failures \
         FROM pragma_integrity_check LIMIT 1",
    );
    let Checked { verdict, failures } =
        checked
            .get_result(&mut conn)
            .map_err(|error| BackupError::Store {
                path: copy.path().into(),
                cause: classify(&error),
            })?;
    if verdict == "ok" {
        Ok(u64::try_from(failures).unwrap_or(0))
    } else {
        Err(BackupError::Damaged {
            path: source.into(),
            cause: verdict,
        })
    }
}

/// Gives the complete file its name, unless another file has it by now.
fn publish(partial: &Path, target: &Path) -> Result<(), BackupError> {
    let io_error = |cause: io::Error| match cause.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(target.into()),
        _ => BackupError::Io {
            path: target.into(),
            cause,
        },
    };
    // A link and not a rename: a rename would replace a file that has taken the name meanwhile.
    match fs::hard_link(partial, target) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(io_error(error)),
        // A file system without links: the name is taken first, and then the file replaces it.
        Err(_) => {
            drop(
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(target)
                    .map_err(io_error)?,
            );
            fs::rename(partial, target).map_err(io_error)?;
        }
    }
    if let Some(folder) = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        // Not every file system can: then the name is as safe as it gets.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// Replaces all rows of our tables in `target` by those in `content`, which has the same schema.
fn replace_content(target: &DatabaseFile, content: &DatabaseFile) -> Result<(), BackupError> {
    let store = |cause| BackupError::Store {
        path: target.path().into(),
        cause,
    };
    let url = target
        .url()
        .map_err(|error| store(StoreError::reopen(error)))?;
    let mut conn = connect(&url, target.path())?;
    // The rows of others that refer to failures would go with them. They are checked at the end.
    conn.batch_execute("PRAGMA foreign_keys = OFF")
        .map_err(|error| store(classify(&error)))?;
    diesel::sql_query("ATTACH ? AS restored")
        .bind::<Text, _>(content.read_only_url())
        .execute(&mut conn)
        .map_err(|error| store(classify(&error)))?;
    let mut dangling = 0;
    let replaced = conn.immediate_transaction::<_, DieselError, _>(|conn| {
        dangling = dangling_references(conn)?;
        // Ours does its work below, once for all rows; those of others are about what happens, not
        // about a restore.
        let triggers = triggers(conn)?;
        for Trigger { name, .. } in &triggers {
            conn.batch_execute(&format!("DROP TRIGGER main.\"{}\"", name.replace('"', "\"\"")))?;
        }
        conn.batch_execute(
            "UPDATE main.memory_retrieval_log SET log_id = randomblob(16), largest_deleted_id = max(largest_deleted_id, \
             coalesce((SELECT max(id) FROM main.memory_retrieval_failures), 0), \
             (SELECT max(r.largest_deleted_id, coalesce((SELECT max(id) FROM restored.memory_retrieval_failures), 0)) \
             FROM restored.memory_retrieval_log AS r)), \
             rolled_up_to = (SELECT rolled_up_to FROM restored.memory_retrieval_log); \
             UPDATE main.memory_retrieval_log SET starts_after = largest_deleted_id",
        )?;
        for table in tables(conn)? {
            let columns = columns(conn, &table)?.join("\", \"");
            conn.batch_execute(&format!(
                "DELETE FROM main.\"{table}\"; \
                 INSERT INTO main.\"{table}\" (\"{columns}\") SELECT \"{columns}\" FROM \
                     restored.\"{table}\""
            ))?;
        }
        triggers.iter().try_for_each(|Trigger { sql, .. }| conn.batch_execute(sql))?;
        dangling = dangling_references(conn)? - dangling;
        if dangling > 0 { Err(DieselError::RollbackTransaction) } else { Ok(()) }
    });
    match replaced {
        Err(_) if dangling > 0 => {
            return Err(BackupError::Referenced {
                path: target.path().into(),
                rows: dangling,
            });
        }
        replaced => replaced.map_err(|error| store(classify(&error)))?,
    }
    // A reader may keep it from that; the next checkpoint does it then.
    let _ = conn.batch_execute("DETACH restored; PRAGMA wal_checkpoint(TRUNCATE)");
    Ok(())
}

/// Returns the number of rows that refer to rows that are not there.
fn dangling_references(conn: &mut SqliteConnection) -> QueryResult<i64> {
    diesel::select(diesel::dsl::sql::<BigInt>(
        "(SELECT count(*) FROM pragma_foreign_key_check)",
    ))
    .get_result(conn)
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Trigger {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    sql: String,
}

/// Returns the triggers of our tables, our own and those of users.
fn triggers(conn: &mut SqliteConnection) -> QueryResult<Vec<Trigger>> {
    let sql = "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' \
         AND tbl_name LIKE 'memory\\_retrieval\\_%' ESCAPE '\\'";
    diesel::sql_query(sql).load(conn)
}

/// Returns our tables whose rows are restored. The log's own row is changed by itself, and the
/// retention in force is not a matter of the backup: it would delete what was just restored.
fn tables(conn: &mut SqliteConnection) -> QueryResult<Vec<String>> {
    let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'table' \
         AND name LIKE 'memory\\_retrieval\\_%' ESCAPE '\\' \
         AND name NOT IN ('memory_retrieval_log', 'memory_retrieval_retention', 'memory_retrieval_migrations') \
         AND name IN (SELECT name FROM restored.sqlite_schema WHERE type = 'table')";
    Ok(diesel::sql_query(sql)
        .load::<Name>(conn)?
        .into_iter()
        .map(|Name { name }| name)
        .collect())
}

/// Returns the columns that both have: an application may have added some.
fn columns(conn: &mut SqliteConnection, table: &str) -> QueryResult<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_info(?1, 'main') \
         WHERE name IN (SELECT name FROM pragma_table_info(?1, 'restored'))";
    Ok(diesel::sql_query(sql)
        .bind::<Text, _>(table)
        .load::<Name>(conn)?
        .into_iter()
        .map(|Name { name }| name.replace('"', "\"\""))
        .collect())
}

/// Connects, and waits for locks as long as the logger does.
fn connect(url: &str, path: &Path) -> Result<SqliteConnection, BackupError> {
    let mut conn = SqliteConnection::establish(url).map_err(|error| BackupError::Store {
        path: path.into(),
        cause: classify_text(&error.to_string()),
    })?;
    conn.batch_execute(&format!(
        "PRAGMA busy_timeout = {}",
        BUSY_TIMEOUT.as_millis()
    ))
    .map_err(|error| BackupError::Store {
        path: path.into(),
        cause: classify(&error),
    })?;
    Ok(conn)
}

/// Returns the identity of the file; `None` if there is none or it cannot be reached.
fn identity_of(path: &Path) -> Option<crate::store::sqlite::file::Identity> {
    DatabaseFile::new(path).identity().ok().flatten()
}

/// A file or folder that exists while a command works. It is removed when this is dropped.
pub struct Temporary(PathBuf);

impl Temporary {
    /// Returns the path of a backup while it is written.
    pub fn for_backup(target: &Path) -> Self {
        Self(with_suffix(
            target,
            &format!(".partial-{}", Uuid::now_v7().simple()),
        ))
    }

    /// Returns the folder of the copy that is restored, on the disk of the database.
    pub fn for_restore(location: &Path) -> Self {
        Self(with_suffix(
            location,
            &format!(".restore-{}", Uuid::now_v7().simple()),
        ))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the file or folder. To be called at the end of the process, too, which drops
    /// nothing.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
        for suffix in ["", "-journal"] {
            let _ = fs::remove_file(with_suffix(&self.0, suffix));
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.remove();
    }
}
