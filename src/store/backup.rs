//! Backup and restore of a database file, both by SQLite alone.
//!
//! A backup is a copy that SQLite writes within one read transaction (`VACUUM INTO`), whoever writes meanwhile.
//! A restore replaces the content of the tables within one write transaction, so that a leftover journal, a running
//! service and other loggers all end up with the restored content, or the restore fails and changes nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use uuid::Uuid;

use super::file::{DatabaseFile, with_suffix};
use super::sqlite::{BUSY_TIMEOUT, Database, Quarantine, classify, classify_text};
use crate::config::Location;
use crate::error::{StartError, StoreError};

/// Why there is no backup, or nothing was restored. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
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
    /// Restore into another file: this one is damaged and belongs to an application, too.
    #[error("{}: is damaged and holds tables of another application; repair it, or restore into another file", .0.display())]
    Shared(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Target(#[from] StartError),
    #[error("{}: {source}", path.display())]
    Store { path: PathBuf, source: StoreError },
}

/// What a restore did.
pub(crate) struct Restored {
    pub(crate) failures: u64,
    /// Where the damaged file is that had the name before.
    pub(crate) quarantined: Option<PathBuf>,
}

/// Copies the database at `source` to the new file `target`, for its owner only, and checks the copy. Returns its
/// failures. `target` appears when it is complete.
pub(crate) fn back_up(source: &Path, target: &Path) -> Result<u64, BackupError> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(BackupError::Exists(target.into()));
    }
    let partial = Temporary(partial_path(target));
    let failures = copy(source, Source::Live, &partial.0)?;
    publish(&partial.0, target)?;
    Ok(failures)
}

/// Where a backup is while it is written.
fn partial_path(target: &Path) -> PathBuf {
    with_suffix(target, &format!(".partial-{}", Uuid::now_v7().simple()))
}

/// Replaces the content of the log at `location` by that of `backup`, which may be one of an older version. A
/// missing log is created, a damaged one is renamed.
pub(crate) fn restore(backup: &Path, location: &Path) -> Result<Restored, BackupError> {
    let target = DatabaseFile::new(location);
    if target.identity().ok().flatten().is_some_and(|identity| Some(identity) == identity_of(backup)) {
        return Err(BackupError::Same(backup.into()));
    }
    // A copy: the backup stays as it is, and its tables are brought up to date.
    let folder = TemporaryFolder::beside(target.path())?;
    let upgraded = folder.0.join("copy.db");
    let failures = copy(backup, Source::Backup, &upgraded)?;
    drop(Database::new(&Location::File(upgraded.clone()), 1).open()?);

    let database = Database::new(&Location::File(target.path().into()), 1);
    let mut quarantined = None;
    // Creates what is missing, and recovers a leftover journal.
    match database.open() {
        Ok(store) => drop(store),
        Err(StartError::Damaged { .. }) => {
            match database.quarantine().map_err(|source| BackupError::Io { path: location.into(), source })? {
                Quarantine::Renamed(path) => quarantined = Some(path),
                Quarantine::Shared => return Err(BackupError::Shared(location.into())),
                Quarantine::NotNeeded => {}
            }
            drop(database.open()?);
        }
        Err(error) => return Err(error.into()),
    }
    let _lock = target.lock().map_err(|source| BackupError::Io { path: location.into(), source })?;
    let store = |source| BackupError::Store { path: location.into(), source };
    replace_content(&target, &DatabaseFile::new(&upgraded)).map_err(store)?;
    Ok(Restored { failures, quarantined })
}

/// How a file is read, so that nothing stays beside it.
#[derive(Clone, Copy)]
enum Source {
    /// Others may write it. The last connection to close it removes its journal, which only one that may write can.
    Live,
    /// No process writes it, and it stays as it is.
    Backup,
}

impl Source {
    fn connect(self, path: &Path) -> Result<SqliteConnection, BackupError> {
        let file = DatabaseFile::new(path);
        match self {
            Self::Live => connect(&file.read_write_url(), path).or_else(|_| connect(&file.read_only_url(), path)),
            Self::Backup if file.journal_identity().ok().flatten().is_none() => connect(&file.immutable_url(), path),
            // What was committed last is in the journal.
            Self::Backup => connect(&file.read_only_url(), path),
        }
    }
}

/// Writes a copy of the database to the new file `target`, and checks it.
fn copy(source: &Path, kind: Source, target: &Path) -> Result<u64, BackupError> {
    let io_error = |source| BackupError::Io { path: target.into(), source };
    if let Err(source_error) = fs::metadata(source) {
        return Err(BackupError::Io { path: source.into(), source: source_error });
    }
    let mut conn = kind.connect(source)?;
    conn.batch_execute("SELECT event_id FROM memory_retrieval_failures LIMIT 0").map_err(|error| {
        match classify(&error) {
            StoreError::Corrupt(cause) | StoreError::Reopen(cause) => BackupError::NoLog { path: source.into(), cause },
            other => BackupError::Store { path: source.into(), source: other },
        }
    })?;
    // Before SQLite knows it: its mode is that of the copy, and no other process can have taken the name.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(target).map_err(io_error)?);
    let copy = DatabaseFile::new(target);
    let url = copy.url().map_err(io_error)?;
    diesel::sql_query("VACUUM INTO ?").bind::<Text, _>(url).execute(&mut conn).map_err(|error| {
        match classify(&error) {
            StoreError::Corrupt(cause) => BackupError::Damaged { path: source.into(), cause },
            other => BackupError::Store { path: target.into(), source: other },
        }
    })?;
    drop(conn);
    let failures = check(&copy, source)?;
    // SQLite has closed it. `VACUUM INTO` leaves it to the system when the copy reaches the disk.
    File::open(target).and_then(|file| file.sync_all()).map_err(io_error)?;
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
    let Checked { verdict, failures } = checked
        .get_result(&mut conn)
        .map_err(|error| BackupError::Store { path: copy.path().into(), source: classify(&error) })?;
    if verdict == "ok" {
        Ok(u64::try_from(failures).unwrap_or(0))
    } else {
        Err(BackupError::Damaged { path: source.into(), cause: verdict })
    }
}

/// Gives the complete file its name, unless another file has it by now.
fn publish(partial: &Path, target: &Path) -> Result<(), BackupError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(target.into()),
        _ => BackupError::Io { path: target.into(), source },
    };
    match fs::hard_link(partial, target) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(io_error(error)),
        // A file system without links: the name is taken first, and then the file replaces it.
        Err(_) => {
            drop(OpenOptions::new().write(true).create_new(true).open(target).map_err(io_error)?);
            fs::rename(partial, target).map_err(io_error)?;
        }
    }
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // Not every file system can: then the name is as safe as it gets.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// Replaces all rows of our tables in `target` by those in `content`, which has the same schema.
fn replace_content(target: &DatabaseFile, content: &DatabaseFile) -> Result<(), StoreError> {
    let url = target.url().map_err(StoreError::reopen)?;
    let mut conn = SqliteConnection::establish(&url).map_err(|error| classify_text(&error.to_string()))?;
    let run = |conn: &mut SqliteConnection, sql: &str| conn.batch_execute(sql).map_err(|error| classify(&error));
    run(&mut conn, &format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis()))?;
    diesel::sql_query("ATTACH ? AS restored")
        .bind::<Text, _>(content.read_only_url())
        .execute(&mut conn)
        .map_err(|error| classify(&error))?;
    conn.immediate_transaction::<_, DieselError, _>(|conn| {
        let deleted = trigger(conn)?;
        // Its work is done below, once for all rows.
        conn.batch_execute("DROP TRIGGER main.memory_retrieval_failures_deleted")?;
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
                 INSERT INTO main.\"{table}\" (\"{columns}\") SELECT \"{columns}\" FROM restored.\"{table}\""
            ))?;
        }
        conn.batch_execute(&deleted)
    })
    .map_err(|error| classify(&error))?;
    // A reader may keep it from that; the next checkpoint does it then.
    let _ = conn.batch_execute("DETACH restored; PRAGMA wal_checkpoint(TRUNCATE)");
    Ok(())
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

fn trigger(conn: &mut SqliteConnection) -> QueryResult<String> {
    let sql = "SELECT sql AS name FROM main.sqlite_schema WHERE name = 'memory_retrieval_failures_deleted'";
    diesel::sql_query(sql).get_result(conn).map(|Name { name }| name)
}

/// Our tables whose rows are restored. The log's own row is changed by itself, and the retention in force is not a
/// matter of the backup: it would delete what was just restored.
fn tables(conn: &mut SqliteConnection) -> QueryResult<Vec<String>> {
    let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'table' \
         AND name LIKE 'memory\\_retrieval\\_%' ESCAPE '\\' \
         AND name NOT IN ('memory_retrieval_log', 'memory_retrieval_retention', 'memory_retrieval_migrations') \
         AND name IN (SELECT name FROM restored.sqlite_schema WHERE type = 'table')";
    Ok(diesel::sql_query(sql).load::<Name>(conn)?.into_iter().map(|Name { name }| name).collect())
}

/// Columns that both have: an application may have added some.
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

fn connect(url: &str, path: &Path) -> Result<SqliteConnection, BackupError> {
    let mut conn = SqliteConnection::establish(url)
        .map_err(|error| BackupError::Store { path: path.into(), source: classify_text(&error.to_string()) })?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis()))
        .map_err(|error| BackupError::Store { path: path.into(), source: classify(&error) })?;
    Ok(conn)
}

fn identity_of(path: &Path) -> Option<super::file::Identity> {
    DatabaseFile::new(path).identity().ok().flatten()
}

/// A file that is removed when this is dropped, if it is still there.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        for suffix in ["", "-journal"] {
            let _ = fs::remove_file(with_suffix(&self.0, suffix));
        }
    }
}

/// A folder for its owner only that is removed when this is dropped, with all that is in it.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn beside(path: &Path) -> Result<Self, BackupError> {
        let folder = with_suffix(path, &format!(".restore-{}", Uuid::now_v7().simple()));
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(|source| BackupError::Io { path: folder.clone(), source })?;
        Ok(Self(folder))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
