//! A PostgreSQL server for tests: that of `TEST_DATABASE_URL`, or one in a temporary folder, which
//! listens on a socket in this folder and on no port. Each test has its own schema. The tests of the
//! program include this file, too.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError, Weak};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

/// A schema in a server, which lives as long as a test uses it.
pub(crate) struct TestDatabase {
    pub(crate) url: String,
    server: Option<Arc<TestServer>>,
    schema: String,
    url_of_server: String,
}

/// Port of a pooler. It is a part of the name of its socket, in a folder of its own.
const POOLER_PORT: u16 = 6432;

/// A pooler that runs. It ends with the test.
pub(crate) struct Pooler {
    pub(crate) url: String,
    child: Child,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of the tests of this process.
struct TestServer {
    folder: TempDir,
    programs: PathBuf,
}

/// The server that runs, as long as any test uses it.
static SERVER: Mutex<Weak<TestServer>> = Mutex::new(Weak::new());

impl TestDatabase {
    /// Returns an empty schema.
    pub(crate) fn new() -> Self {
        let (server, url_of_server) = match std::env::var("TEST_DATABASE_URL") {
            Ok(url) => (None, url),
            Err(_) => {
                let server = TestServer::running();
                let url = server.url();
                (Some(server), url)
            }
        };
        Self::with(server, url_of_server)
    }

    fn with(server: Option<Arc<TestServer>>, url_of_server: String) -> Self {
        let schema = format!("t{}", Uuid::new_v4().simple());
        connect(&url_of_server)
            .batch_execute(&format!("CREATE SCHEMA {schema}"))
            .unwrap();
        let separator = if url_of_server.contains('?') {
            '&'
        } else {
            '?'
        };
        let url = format!("{url_of_server}{separator}options=-csearch_path%3D{schema}");
        Self {
            url,
            server,
            schema,
            url_of_server,
        }
    }

    /// Returns an empty schema in a server that no other test uses, so that this one may stop it.
    pub(crate) fn of_its_own() -> Self {
        let server = Arc::new(TestServer::start());
        let url = server.url();
        Self::with(Some(server), url)
    }

    /// Stops the server as a crash would, and starts it.
    pub(crate) fn crash_and_restart(&self) {
        let server = self.server.as_ref().expect("a server of its own");
        server.stop();
        server.start_program();
    }

    /// Starts a pooler in transaction mode in front of the server, or returns `None` if Debian's
    /// package pgbouncer is missing. It has few connections, so that nodes take turns with them.
    pub(crate) fn pooler(&self) -> Option<Pooler> {
        let server = self.server.as_ref().expect("a server of its own");
        let program = Path::new("/usr/sbin/pgbouncer");
        if !program.is_file() {
            return None;
        }
        let folder = server.folder.path().to_str().unwrap();
        let schema = &self.schema;
        let settings = format!(
            "[databases]\n* = host={folder} user=test connect_query='SET search_path = {schema}'\n\
             [pgbouncer]\nlisten_addr =\nlisten_port = {POOLER_PORT}\nunix_socket_dir = {folder}\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n\
             max_client_conn = 100\n"
        );
        let path = server.folder.path().join("pgbouncer.ini");
        std::fs::write(&path, settings).unwrap();
        let child = server
            .command(program)
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!(
            "postgres://test@{}:{POOLER_PORT}/postgres?prepared_statements=false",
            folder.replace('/', "%2F")
        );
        let socket = server.folder.path().join(format!(".s.PGSQL.{POOLER_PORT}"));
        while !socket.exists() {
            std::thread::yield_now();
        }
        Some(Pooler { url, child })
    }

    /// Connects as another program.
    pub(crate) fn connect(&self) -> PgConnection {
        connect(&self.url)
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A server of the tests ends with its folder.
        if self.server.is_none() {
            let drop = format!("DROP SCHEMA {} CASCADE", self.schema);
            let _ = connect(&self.url_of_server).batch_execute(&drop);
        }
    }
}

impl TestServer {
    /// Returns the server, and starts it for the first test.
    fn running() -> Arc<Self> {
        let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        server.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *server = Arc::downgrade(&started);
            started
        })
    }

    fn start() -> Self {
        let programs = programs()
            .expect("no PostgreSQL; install Debian's package postgresql, or set TEST_DATABASE_URL");
        let folder = tempfile::tempdir().unwrap();
        // Another user runs the server if this one is root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let server = Self { folder, programs };
        let data = server.data();
        let data = data.to_str().unwrap();
        server.run(
            "initdb",
            &["-D", data, "-A", "trust", "-U", "test", "-E", "UTF8", "-N"],
        );
        server.start_program();
        server
    }

    fn start_program(&self) {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c max_connections=200",
            self.folder.path().display()
        );
        let (data, log) = (self.data(), self.folder.path().join("log"));
        let [data, log] = [&data, &log].map(|path| path.to_str().unwrap());
        let arguments = ["-D", data, "-w", "-l", log, "-o", &options, "start"];
        self.run("pg_ctl", &arguments);
    }

    fn stop(&self) {
        let data = self.data();
        let data = data.to_str().unwrap();
        self.run("pg_ctl", &["-D", data, "-w", "-m", "immediate", "stop"]);
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn url(&self) -> String {
        let folder = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://test@{folder}/postgres")
    }

    /// Runs a program of PostgreSQL.
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.command(&self.programs.join(program));
        let output = command
            .args(arguments)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {error}");
    }

    /// Returns a command that runs as the user `postgres` if this process is root's.
    fn command(&self, program: &Path) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.folder.path())
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn connect(url: &str) -> PgConnection {
    PgConnection::establish(url).unwrap()
}

/// Returns the folder of the newest PostgreSQL of Debian, or the one of `PATH`.
fn programs() -> Option<PathBuf> {
    let of_debian = std::fs::read_dir("/usr/lib/postgresql").ok();
    let mut versions: Vec<PathBuf> = of_debian
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    let of_path = std::env::var_os("PATH").unwrap_or_default();
    versions
        .into_iter()
        .rev()
        .chain(std::env::split_paths(&of_path))
        .find(|folder| has_server(folder))
}

fn has_server(folder: &Path) -> bool {
    ["initdb", "pg_ctl"]
        .iter()
        .all(|program| folder.join(program).is_file())
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}
