//! The binary, run as by a user.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::TestDb;

const BINARY: &str = env!("CARGO_BIN_EXE_failure-logger");

pub fn command(db: &TestDb, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // The environment of the tester has no effect.
    command
        .env_clear()
        .current_dir(db.folder.path())
        .args(arguments)
        .args(["--db", &db.url()]);
    command
}

/// A service on a port of its own. It ends with the test.
pub struct Service {
    pub child: Child,
    pub url: String,
    log: std::path::PathBuf,
}

impl Service {
    pub fn new(db: &TestDb, arguments: &[&str]) -> Self {
        Self::with(db, &[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    /// Starts a service that listens where its settings say.
    pub fn with(db: &TestDb, arguments: &[&str]) -> Self {
        let log = db.folder.path().join("log");
        let mut child = command(db, &["serve"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .expect("where it listens")
            .to_owned();
        Self { child, url, log }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Returns the address to connect to.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("an HTTP address")
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Returns the most memory that the process ever had, in MB (Linux).
    pub fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1000
    }

    /// Returns the number of open files and connections (Linux).
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns `count` failures, as JSON lines.
pub fn lines(count: usize) -> String {
    let line = |nth| json!({"failure_type": "no_hit", "retrieval_strategy": "semantic", "query_text": format!("q {nth}")});
    (0..count).map(|nth| format!("{}\n", line(nth))).collect()
}

/// Sends a request, and returns the whole response, or `None` if there is none.
pub fn exchange(url: &str, request: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(url.strip_prefix("http://")?).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    (!response.is_empty()).then_some(response)
}

/// Returns a request with lines.
pub fn post(body: &str) -> String {
    format!(
        "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
