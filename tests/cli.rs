//! The binary: what it prints, how it exits, and what signals do.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

use common::TestDb;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_failure-logger");

fn command(db: &TestDb, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // Nothing of the tester's environment.
    command.env_clear().current_dir(db.folder.path()).args(arguments).args(["--db", &db.url()]);
    command
}

fn run(db: &TestDb, arguments: &[&str], input: &str) -> Output {
    let mut child =
        command(db, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn done(db: &TestDb, arguments: &[&str]) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(db: &TestDb, arguments: &[&str], code: i32) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

fn lines(count: usize) -> String {
    let line =
        |nth| json!({"failure_type": "no_hit", "retrieval_strategy": "semantic", "query_text": format!("q {nth}")});
    (0..count).map(|nth| format!("{}\n", line(nth))).collect()
}

/// A service on a port of its own, ended with the test.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn new(db: &TestDb, arguments: &[&str]) -> Self {
        let mut child = command(db, &["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();
        Self { child, url }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn lines_are_stored_and_found_again_in_every_format() {
    let db = TestDb::new();
    let output = run(&db, &["ingest"], &lines(120));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "120 failures stored, 0 lines refused\n");
    assert_eq!(done(&db, &["list", "-n", "1000"]).lines().count(), 120, "JSON lines in a pipe");
    let page: Value = serde_json::from_str(&done(&db, &["list", "--format", "json", "--text", "q 7"])).unwrap();
    assert_eq!(page["failures"].as_array().unwrap().len(), 11);
    assert!(done(&db, &["list", "--format", "table"]).contains("created_at"));
    assert_eq!(done(&db, &["list", "--format", "csv", "-n", "5"]).lines().count(), 6);
    assert_eq!(done(&db, &["tail", "-n", "3"]).lines().count(), 3);
    assert!(done(&db, &["stats", "--format", "table"]).contains("semantic"));
    assert!(done(&db, &["top", "--since", "1h"]).lines().count() > 0);
    assert_eq!(done(&db, &["export"]).lines().count(), 120);
    assert_eq!(done(&db, &["export", "--csv"]).lines().count(), 121);
    assert_eq!(done(&db, &["prune", "--older-than", "1d"]), "0 failures deleted\n");
    assert_eq!(done(&db, &["prune", "--older-than", "1d", "--dry-run"]), "0 failures are older than 1d\n");
    assert_eq!(done(&db, &["check"]), "no attempts were observed\n");
}

#[test]
fn what_is_wrong_is_said_with_the_exit_code_that_is_documented() {
    let db = TestDb::new();
    assert!(refused(&db, &["list"], 3).contains("there is no database"));
    let output = run(&db, &["ingest"], "bad\n{}\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 1: expected value"));
    assert!(refused(&db, &["list", "--since", "yesterday"], 2).contains("expected a number and s, m, h, d or w"));
    assert!(refused(&db, &["list", "--type", "bad"], 2).contains("expected no_hit"));
    assert!(refused(&db, &["list", "--url", "ftp://x"], 2).contains("http://127.0.0.1:4318"));
    assert!(refused(&db, &["list", "--url", "http://127.0.0.1:1"], 3).contains("is the service running?"));
    assert!(refused(&db, &["list", "--set", "retention_dais=1"], 2).contains("did you mean retention_days?"));
    assert!(refused(&db, &["serve", "--listen", "0.0.0.0:0"], 2).contains("--token-file"));
    assert!(refused(&db, &["calibrate", "unknown"], 1).contains("no attempts of unknown"));
    assert!(refused(&db, &["nonsense"], 2).contains("unrecognized subcommand"));
    assert!(done(&db, &["config"]).contains("database_url"));
    assert!(done(&db, &["man"]).contains("failure\\-logger"));
    assert!(done(&db, &["completions", "bash"]).contains("failure-logger"));
    assert!(done(&db, &["--help"]).contains("Exit codes: 0 done; 1 the answer is no"));
}

#[test]
fn a_pipe_that_is_closed_is_no_error() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(5000));
    let mut child = command(&db, &["export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_service_is_fed_and_asked_like_a_file_and_drains_when_it_is_told_to_end() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let with = |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--url", &service.url]).collect();
        done(&db, &arguments)
    };
    assert_eq!(with(&["check"]), "ready\n");
    let output = run(&db, &["ingest", "--url", &service.url], &lines(2500));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2500 failures stored, 0 lines refused\n");
    common::eventually("the rows", || db.rows() == 2500);
    assert_eq!(with(&["list", "-n", "7"]).lines().count(), 7);
    assert_eq!(with(&["export"]).lines().count(), 2500);
    assert!(with(&["stats", "--format", "table"]).contains("2500"));
    assert_eq!(with(&["top", "-n", "3"]).lines().count(), 3);
    assert_eq!(with(&["tail", "-n", "2"]).lines().count(), 2);
    // Told to end while it is being fed: whatever it said it took is there.
    let mut feeding = command(&db, &["ingest", "--url", &service.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    feeding.stdin.as_mut().unwrap().write_all(lines(1000).as_bytes()).unwrap();
    common::eventually("the first thousand", || db.rows() >= 3500);
    service.signal("TERM");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), 3500);
    assert!(!db.folder.path().join("failures.db-wal").exists(), "the file is complete");
    drop(feeding.stdin.take());
    feeding.wait().unwrap();
}

#[test]
fn tokens_are_asked_for_and_can_be_changed_while_it_runs() {
    let db = TestDb::new();
    let (file, mine) = (db.folder.path().join("tokens"), db.folder.path().join("mine"));
    std::fs::write(&file, "the-first-token-of-all").unwrap();
    std::fs::write(&mine, "the-first-token-of-all").unwrap();
    let service = Service::new(&db, &["--token-file", file.to_str().unwrap()]);
    let ask =
        || run(&db, &["list", "--url", &service.url, "--url-token-file", mine.to_str().unwrap()], "").status.code();
    assert!(refused(&db, &["list", "--url", &service.url], 3).contains("401"));
    assert_eq!(ask(), Some(0));
    std::fs::write(&file, "the-second-token-of-all").unwrap();
    service.signal("HUP");
    common::eventually("the old token to be refused", || ask() == Some(3));
    std::fs::write(&mine, "the-second-token-of-all").unwrap();
    assert_eq!(ask(), Some(0));
}

/// Sends a request by hand, and reads the whole answer; `None`: nobody answers.
fn exchange(url: &str, request: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(url.strip_prefix("http://")?).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn everything_that_was_answered_with_202_is_in_the_file_when_it_ends_under_load() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let (accepted, requests) = (std::sync::atomic::AtomicI64::new(0), std::sync::atomic::AtomicI64::new(0));
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = post(&lines(10));
                while let Some(answer) = exchange(&service.url, &request) {
                    requests.fetch_add(1, order);
                    if answer.starts_with("HTTP/1.1 202") {
                        accepted.fetch_add(10, order);
                    }
                }
            });
        }
        common::eventually("some load", || requests.load(order) > 200);
        service.signal("TERM");
    });
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    let (accepted, stored) = (accepted.load(order), db.rows());
    assert!(accepted >= 2000);
    // What was stored, but whose answer did not arrive any more: a request of each sender at most.
    assert!((accepted..=accepted + 40).contains(&stored), "{accepted} were accepted, {stored} are stored");
}

#[test]
fn a_client_that_never_finishes_its_request_is_sent_away() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let answer = exchange(&service.url, "GET /healthz HTTP/1.1\r\nHost: local");
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 408"));
}

#[test]
fn a_hundred_thousand_lines_go_through_a_small_buffer() {
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "buffer_capacity=1024"]);
    let answer = exchange(&service.url, &post(&lines(100_000))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202") && answer.contains("\"accepted\":100000,\"rejected\":0"), "{answer}");
    common::eventually("the rows", || db.rows() == 100_000);
}
