//! The database file as the file system sees it: its URL, its identity, and the lock between
//! processes.
//!
//! Invariant: this crate never opens a database file, its `-wal` or its `-shm` by itself. POSIX
//! releases all `fcntl` locks that a process holds on a file when the process closes *any*
//! descriptor of it (sqlite.org/howtocorrupt.html, 2.2): a single `File::open` would take the locks
//! of every SQLite connection in the process, the application's included, and another process could
//! then delete the journal under them. `stat`, `rename` and SQLite itself do all that is needed:
//!
//! - SQLite creates the file. `modeof` gives it, and with it `-wal` and `-shm`, the mode of the
//!   lock file.
//! - SQLite tells whether a file is a database, by reading its header.
//! - `stat` identifies the file before and after a connection is opened.
//! - `flock` on a file of its own keeps processes apart while one creates, migrates or quarantines.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::{StartError, StoreError};

/// Longest wait for another process that creates, migrates, restores or quarantines the database.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// A database file by its name, which may be a symbolic link. Absolute, so that a change of the
/// current folder does not matter.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseFile {
    /// The name, as it was given.
    path: PathBuf,
    /// The file that the name leads to. SQLite keeps the journal beside it, and so is the lock.
    real: PathBuf,
}

/// Device and inode: tells a file from another one that takes its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

/// Held while the database is created, migrated, restored or quarantined. Released when dropped,
/// and by the system when the process dies, so that a lock file that is left behind locks nothing.
pub(crate) struct FileLock {
    _file: File,
}

impl DatabaseFile {
    pub(crate) fn new(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // A file that is missing is created in the folder that its name leads to.
        let in_folder = || {
            Some(
                fs::canonicalize(path.parent()?)
                    .ok()?
                    .join(path.file_name()?),
            )
        };
        let real = fs::canonicalize(&path)
            .ok()
            .or_else(in_folder)
            .unwrap_or_else(|| path.clone());
        Self { path, real }
    }

    /// Returns the same name, with the file that it leads to now. One that leads nowhere leads to
    /// where it led before.
    pub(crate) fn resolved(&self) -> Self {
        let real = fs::canonicalize(&self.path).unwrap_or_else(|_| self.real.clone());
        Self {
            path: self.path.clone(),
            real,
        }
    }

    /// Returns the name as it was given, made absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the URL for a connection that reads and writes. SQLite creates a missing file, with
    /// the mode of the lock file; an existing one keeps its mode.
    pub(crate) fn url(&self) -> io::Result<String> {
        let url = file_url(&self.real);
        // SQLite would also apply the mode to a file that exists and is empty.
        Ok(match self.identity()? {
            Some(_) => url,
            None => format!("{url}?modeof={}", escaped(&self.lock_path())),
        })
    }

    /// Returns the URL for a connection that only reads, and does not create the file.
    pub(crate) fn read_only_url(&self) -> String {
        format!("{}?mode=ro", file_url(&self.real))
    }

    /// Returns the URL for a connection that reads and writes, and does not create the file.
    #[cfg(feature = "program")]
    pub(crate) fn read_write_url(&self) -> String {
        format!("{}?mode=rw", file_url(&self.real))
    }

    /// Returns the URL for a connection that reads the file alone: without locks, and without the
    /// journal.
    pub(crate) fn immutable_url(&self) -> String {
        format!("{}?mode=ro&immutable=1", file_url(&self.real))
    }

    /// Returns the identity of the file with this name. `None`: there is none.
    pub(crate) fn identity(&self) -> io::Result<Option<Identity>> {
        identity(&self.path)
    }

    /// Returns the identity of the journal. `None`: there is none.
    pub(crate) fn journal_identity(&self) -> io::Result<Option<Identity>> {
        identity(&with_suffix(&self.real, "-wal"))
    }

    /// Returns `true` if SQLite left a journal of either kind beside the file.
    #[cfg(feature = "program")]
    pub(crate) fn has_journal(&self) -> bool {
        ["-wal", "-journal"]
            .iter()
            .any(|suffix| fs::symlink_metadata(with_suffix(&self.real, suffix)).is_ok())
    }

    /// Fails if the path names something that SQLite must not be pointed at.
    pub(crate) fn check_type(&self) -> Result<(), StartError> {
        let path = || self.path.clone();
        // SQLite would follow it, and create the file that it names.
        if fs::symlink_metadata(&self.real).is_ok_and(|file| file.file_type().is_symlink()) {
            let cause = "a symbolic link to a file that does not exist".into();
            return Err(StartError::Inaccessible {
                path: path(),
                cause,
            });
        }
        match fs::metadata(&self.path) {
            // Opening a pipe would block.
            Ok(file) if !file.is_file() => Err(StartError::Inaccessible {
                path: path(),
                cause: "not a regular file".into(),
            }),
            // SQLite takes a file of one byte for an empty one, and would overwrite it.
            Ok(file) if file.len() == 1 => Err(StartError::NotADatabase { path: path() }),
            _ => Ok(()),
        }
    }

    /// Waits for other processes and loggers that create, migrate, restore or quarantine this
    /// database.
    pub(crate) fn lock(&self) -> Result<FileLock, StartError> {
        let path = self.lock_path();
        let inaccessible = |error: io::Error| StartError::Inaccessible {
            path: self.path.clone(),
            cause: format!("{}: {error}", path.display()),
        };
        let file = self.lock_file(&path).map_err(inaccessible)?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(FileLock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(StartError::Store(StoreError::Retry(format!(
                        "database_url = {}: another process creates, upgrades or restores it and holds {}; try again later",
                        self.path.display(),
                        path.display()
                    ))));
                }
                // A file system without `flock`: SQLite's own locks are all there is.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(FileLock { _file: file });
                }
                Err(TryLockError::Error(error)) => return Err(inaccessible(error)),
            }
        }
    }

    /// Opens the lock file. Its mode is that of the database, so that users who share one share the
    /// other. While there is no database it is 0600, because SQLite gives the new one the mode of
    /// the lock file.
    fn lock_file(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
            options.mode(0o600);
            let is_new = fs::symlink_metadata(path).is_err();
            let file = options.open(path)?;
            let database = fs::metadata(&self.real)
                .ok()
                .map(|database| database.mode() & 0o777);
            let mode = database.unwrap_or(0o600);
            if (is_new || database.is_none()) && file.metadata()?.mode() & 0o777 != mode {
                file.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            Ok(file)
        }
        #[cfg(not(unix))]
        options.open(path)
    }

    /// Renames the file `damaged`, with its journal, and returns its new path. `None` if another
    /// file has the name by now: another process was faster. Deletes nothing.
    ///
    /// The journal goes first: an empty database beside an old journal makes SQLite delete the
    /// journal.
    pub(crate) fn quarantine(
        &self,
        damaged: Identity,
        _lock: &FileLock,
    ) -> io::Result<Option<PathBuf>> {
        if self.identity()? != Some(damaged) {
            return Ok(None);
        }
        let target = with_suffix(&self.real, &format!(".corrupt-{}", Uuid::now_v7().simple()));
        for suffix in ["-wal", "-shm", ""] {
            match fs::rename(
                with_suffix(&self.real, suffix),
                with_suffix(&target, suffix),
            ) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(Some(target))
    }

    /// Renames the journal, if it is still `journal`, and returns its new path.
    pub(crate) fn move_journal(
        &self,
        journal: Identity,
        _lock: &FileLock,
    ) -> io::Result<Option<PathBuf>> {
        if self.journal_identity()? != Some(journal) {
            return Ok(None);
        }
        let target = with_suffix(
            &self.real,
            &format!(".orphaned-{}-wal", Uuid::now_v7().simple()),
        );
        fs::rename(with_suffix(&self.real, "-wal"), &target)?;
        Ok(Some(target))
    }

    /// Returns the path of the lock file, beside the file that the name leads to: two links to one
    /// database share one lock.
    fn lock_path(&self) -> PathBuf {
        with_suffix(&self.real, "-lock")
    }
}

/// Returns the identity of what the path leads to, by `stat`, which opens nothing. `None`: there is
/// nothing.
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    let file = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(Some(Identity(file.dev(), file.ino())))
    }
    #[cfg(not(unix))]
    {
        // An open file can be neither deleted nor replaced there.
        drop(file);
        Ok(Some(Identity(0, 0)))
    }
}

/// Returns `false` if this process has no descriptor of the file: a connection that was opened
/// under its name leads to another one then. Looks at descriptors, and opens nothing. `true` on
/// systems that do not tell.
pub(crate) fn is_open_here(file: Identity) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return true;
    };
    descriptors
        .flatten()
        .any(|descriptor| identity(&descriptor.path()).ok().flatten() == Some(file))
}

/// Returns the path as a URI of SQLite. A plain path could be taken for a URI or for `:memory:`.
fn file_url(path: &Path) -> String {
    format!("file:{}", escaped(path))
}

/// Returns the path for a URL: everything that could be read as something else, byte by byte.
fn escaped(path: &Path) -> String {
    let mut url = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                url.push(char::from(*byte))
            }
            byte => url.push_str(&format!("%{byte:02x}")),
        }
    }
    url
}

/// Returns the path with `suffix` behind its name. SQLite names the files beside a database so; it
/// does not replace an extension.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir) -> DatabaseFile {
        DatabaseFile::new(&folder.path().join("x.db"))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn file_that_is_open_is_told_from_one_that_took_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let database = file(&folder);
        fs::write(folder.path().join("elsewhere"), "").unwrap();
        let open = File::create(database.path()).unwrap();
        assert!(is_open_here(database.identity().unwrap().unwrap()));
        fs::rename(folder.path().join("elsewhere"), database.path()).unwrap();
        assert!(!is_open_here(database.identity().unwrap().unwrap()));
        drop(open);
    }

    #[test]
    fn quarantine_of_a_file_that_was_replaced_moves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let database = file(&folder);
        fs::write(database.path(), "damaged").unwrap();
        let damaged = database.identity().unwrap().unwrap();
        fs::rename(database.path(), folder.path().join("elsewhere")).unwrap();
        fs::write(database.path(), "sound").unwrap();
        let lock = database.lock().unwrap();
        assert_eq!(database.quarantine(damaged, &lock).unwrap(), None);
        assert_eq!(fs::read_to_string(database.path()).unwrap(), "sound");
    }

    #[test]
    fn quarantine_moves_the_journal_too() {
        let folder = tempfile::tempdir().unwrap();
        let database = file(&folder);
        for suffix in ["", "-wal"] {
            fs::write(with_suffix(database.path(), suffix), format!("x{suffix}")).unwrap();
        }
        let damaged = database.identity().unwrap().unwrap();
        let target = database
            .quarantine(damaged, &database.lock().unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "x");
        assert_eq!(
            fs::read_to_string(with_suffix(&target, "-wal")).unwrap(),
            "x-wal"
        );
        assert_eq!(database.identity().unwrap(), None);
    }

    #[test]
    fn lock_is_exclusive_and_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let database = file(&folder);
        let lock = database.lock().unwrap();
        let other = File::open(folder.path().join("x.db-lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        other.try_lock().unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            assert_eq!(other.metadata().unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn url_escapes_what_a_uri_would_read_otherwise() {
        let url = DatabaseFile::new(Path::new("/tmp/a b?c#d%e&é.db")).read_only_url();
        assert_eq!(url, "file:/tmp/a%20b%3fc%23d%25e%26%c3%a9.db?mode=ro");
    }
}
