//! The commands on a log in PostgreSQL.

#![cfg(feature = "postgres")]

#[path = "../../src/store/postgres/server.rs"]
#[expect(dead_code, reason = "the tests of the store use more of it")]
mod server;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;
use server::TestDatabase;

const BINARY: &str = env!("CARGO_BIN_EXE_failure-logger");

const RECORDS: &str = r#"{"failure_type":"no_hit","retrieval_strategy":"semantic","query_text":"where is the key?","conversation_id":"c"}
{"failure_type":"timeout","retrieval_strategy":"graph","query_text":"who?","latency_ms":7}
"#;

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_clear()
        .args(arguments)
        .args(["--db", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Returns the exit code, the output and the errors.
fn run(url: &str, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = command(url, arguments).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn succeed(url: &str, arguments: &[&str], input: &str) -> String {
    let (code, output, errors) = run(url, arguments, input);
    assert_eq!(code, Some(0), "{arguments:?}: {errors}");
    output
}

fn lines(output: &str) -> Vec<Value> {
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn every_command_works_with_the_url_of_a_server() {
    let database = TestDatabase::new();
    let url = &*database.url;
    let (code, _, errors) = run(url, &["stats"], "");
    assert_eq!(code, Some(3));
    assert!(errors.contains("failure-logger migrate"), "{errors}");

    assert!(succeed(url, &["migrate"], "").contains("the schema is up to date"));
    assert!(succeed(url, &["ingest"], RECORDS).starts_with("2 records stored"));
    let listed = lines(&succeed(url, &["list"], ""));
    assert_eq!(listed.len(), 2);
    assert_eq!(lines(&succeed(url, &["tail"], "")).len(), 2);
    let found = lines(&succeed(url, &["list", "--text", "KEY"], ""));
    assert_eq!(found.len(), 1);
    assert_eq!(lines(&succeed(url, &["stats"], "")).len(), 2);
    assert_eq!(lines(&succeed(url, &["export"], "")).len(), 2);
    succeed(url, &["set-status", "who?", "ignored"], "");
    let top = lines(&succeed(url, &["top", "--status", "ignored"], ""));
    assert_eq!(top[0]["example"], "who?");
    succeed(url, &["purge"], "");

    // The rows are deleted, but the server may still have their text.
    let (code, output, _) = run(url, &["delete", "--conversation", "c"], "");
    assert_eq!(
        (code, &*output),
        (Some(1), "1 failures and 0 statuses deleted\n")
    );
    assert_eq!(lines(&succeed(url, &["list"], "")).len(), 1);

    let (code, _, errors) = run(url, &["backup", "x.db"], "");
    assert_eq!(code, Some(2));
    assert!(errors.contains("pg_dump"), "{errors}");
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn two_services_share_a_log() {
    let database = TestDatabase::new();
    let mut services: Vec<_> = (0..2)
        .map(|_| {
            let mut child = command(&database.url, &["serve", "--listen", "127.0.0.1:0"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            let address = line
                .trim()
                .strip_prefix("listening on ")
                .unwrap()
                .to_owned();
            (child, address)
        })
        .collect();
    for (_, address) in &services {
        succeed(&database.url, &["ingest", "--url", address], RECORDS);
    }
    for (_, address) in &services {
        // Until both have flushed.
        while lines(&succeed(&database.url, &["list", "--url", address], "")).len() < 4 {}
    }
    for (child, _) in &mut services {
        let pid = child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert!(child.wait().unwrap().success());
    }
}

/// Returns the sums of a copy by table, and the rows that it wrote.
fn copied(output: &str) -> (Vec<(String, String)>, u64) {
    let mut written = 0;
    let sums = lines(output)
        .iter()
        .map(|table| {
            assert_eq!(table["sum"], table["sum_of_copy"], "{output}");
            written += table["written"].as_u64().unwrap();
            let text = |name: &str| table[name].as_str().unwrap().to_owned();
            (text("table"), text("sum"))
        })
        .collect();
    (sums, written)
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn log_is_copied_to_a_server_and_back() {
    let (database, folder) = (TestDatabase::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, back) = (path("first.db"), path("back.db"));
    succeed(&first, &["ingest"], RECORDS);
    succeed(&first, &["set-status", "who?", "ignored"], "");
    let (sums, written) = copied(&succeed(&first, &["copy", "--to", &database.url], ""));
    assert!(written >= 3, "{written}");
    let again = copied(&succeed(&first, &["copy", "--to", &database.url], ""));
    assert_eq!(again, (sums.clone(), 0), "a second copy changes nothing");
    let returned = ["copy", "--from", &database.url, "--to", &back];
    assert_eq!(copied(&succeed(&back, &returned, "")).0, sums);
    for arguments in [&["list"][..], &["stats"], &["top"], &["export"]] {
        let from_server = succeed(&database.url, arguments, "");
        assert_eq!(from_server, succeed(&first, arguments, ""), "{arguments:?}");
        assert_eq!(from_server, succeed(&back, arguments, ""), "{arguments:?}");
    }
    // A log that a logger writes later is no copy any more.
    succeed(&database.url, &["ingest"], RECORDS);
    let (code, _, errors) = run(&first, &["copy", "--to", &database.url], "");
    assert_eq!(code, Some(2));
    assert!(errors.contains("newer than the source"), "{errors}");
}

#[test]
#[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
fn copy_that_was_killed_resumes() {
    let (database, folder) = (TestDatabase::new(), tempfile::tempdir().unwrap());
    let source = folder.path().join("source.db");
    let source = source.to_str().unwrap();
    let record = RECORDS.lines().next().unwrap().to_owned() + "\n";
    succeed(source, &["ingest"], &record.repeat(30_000));
    succeed(&database.url, &["migrate"], "");
    let arguments = ["copy", "--to", &*database.url];
    let mut child = command(source, &arguments).spawn().unwrap();
    // The first range is committed, and the others are not, unless the copy was very fast.
    while lines(&succeed(&database.url, &["list", "--limit", "1"], "")).is_empty() {}
    child.kill().unwrap();
    child.wait().unwrap();
    copied(&succeed(source, &arguments, ""));
    assert_eq!(copied(&succeed(source, &arguments, "")).1, 0);
}

#[test]
fn password_is_shown_by_no_command() {
    // No server listens on port 1.
    let url = "postgres://u:secret@127.0.0.1:1/d";
    for arguments in [
        &["config"][..],
        &["stats"],
        &["ingest"],
        &["migrate"],
        &["purge"],
        &["backup", "x.db"],
        &["copy", "--to", "x.db"],
        &["import", url],
        &["copy", "--from", url, "--to", url],
        &["serve", "--listen", "127.0.0.1:0"],
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "log_format=json",
        ],
    ] {
        let (_, output, errors) = run(url, arguments, RECORDS);
        let text = output + &errors;
        assert!(
            text.contains("u:***@127.0.0.1:1/d"),
            "{arguments:?}: {text}"
        );
        assert!(!text.contains("secret"), "{arguments:?}: {text}");
    }
}
