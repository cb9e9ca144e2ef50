//! The binary, run as a user would.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::TestDb;

const BINARY: &str = env!("CARGO_BIN_EXE_failure-logger");

pub fn command(db: &TestDb, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // Nothing of the tester's environment.
    command.env_clear().current_dir(db.folder.path()).args(arguments).args(["--db", &db.url()]);
    command
}

/// A service on a port of its own, ended with the test.
pub struct Service {
    pub child: Child,
    pub url: String,
    log: std::path::PathBuf,
}

impl Service {
    pub fn new(db: &TestDb, arguments: &[&str]) -> Self {
        Self::with(db, &[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    /// One that listens where its settings say.
    pub fn with(db: &TestDb, arguments: &[&str]) -> Self {
        let log = db.folder.path().join("log");
        let mut child = command(db, &["serve"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();
        Self { child, url, log }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Where it listens, to be connected to.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("an HTTP address")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The most memory that it ever had, in MB (Linux).
    pub fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1000
    }

    /// The files and connections that it has open (Linux).
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As many failures, as JSON lines.
pub fn lines(count: usize) -> String {
    let line =
        |nth| json!({"failure_type": "no_hit", "retrieval_strategy": "semantic", "query_text": format!("q {nth}")});
    (0..count).map(|nth| format!("{}\n", line(nth))).collect()
}

/// Sends a request by hand, and reads the whole answer; `None`: nobody answers.
pub fn exchange(url: &str, request: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(url.strip_prefix("http://")?).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// A request that brings lines.
pub fn post(body: &str) -> String {
    format!(
        "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
