//! The retention of a database in the commands.

mod common;

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use common::binary::command;
use common::{TestDb, age, block_on, no_hit, old_rows, purge, spawn};
use failure_logger::Outcome;
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn run(db: &TestDb, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = command(db, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn line(created_at: &str) -> String {
    json!({"failure_type": "no_hit", "retrieval_strategy": "s", "query_text": "q", "created_at": created_at})
        .to_string()
}

#[test]
fn commands_delete_nothing_and_leave_the_retention_alone() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(0));
    purge(&logger);
    age(&db, 300, 200);
    // The command runs beside a logger, and alone.
    for running in [true, false] {
        if !running {
            block_on(logger.shutdown()).unwrap();
        }
        for arguments in [
            &["mark", "where is the key?", "resolved"][..],
            &[
                "mark",
                "where is the key?",
                "resolved",
                "--set",
                "retention_days=30",
            ],
            &["ingest"],
            &[
                "ingest",
                "--set",
                "retention_days=30",
                "--set",
                "cleanup_every=1",
            ],
            &["list"],
            &["stats"],
        ] {
            let (code, _, said) = run(
                &db,
                arguments,
                &format!("{}\n", line("2020-01-01T00:00:00Z")),
            );
            assert_eq!(code, Some(0), "{arguments:?}: {said}");
        }
        assert_eq!(old_rows(&db), 300);
        assert_eq!(
            db.integer("SELECT failures_days FROM memory_retrieval_retention"),
            0
        );
    }
}

#[test]
fn ingest_reports_lines_that_are_too_old() {
    let db = TestDb::new();
    spawn(db.config().retention_days(30));
    let input = [line("2020-01-01T00:00:00Z"), line("9999-12-01T00:00:00Z")].join("\n");
    let (code, out, said) = run(&db, &["ingest"], &input);
    assert_eq!(
        (code, out.as_str()),
        (Some(1), "1 records stored, 1 lines rejected\n")
    );
    assert!(
        said.contains(
            "line 1: created_at = 2020-01-01T00:00:00.000Z: older than retention_days = 30"
        ),
        "{said}"
    );
    let latest =
        db.integer("SELECT max(created_at) - unixepoch() * 1000 FROM memory_retrieval_failures");
    assert!(latest <= 1000, "{latest}");
}

#[test]
fn config_shows_the_retention_in_force_and_its_origin() {
    let db = TestDb::new();
    let shown = |arguments: &[&str]| {
        let (_, out, _) = run(
            &db,
            &[&["config", "--format", "json"], arguments].concat(),
            "",
        );
        let all: Value = serde_json::from_str(&out).unwrap();
        let setting = |name: &str| {
            let all = all.as_array().unwrap();
            let setting = all
                .iter()
                .find(|setting| setting["setting"] == name)
                .unwrap();
            format!(
                "{} {}",
                setting["value"],
                setting["origin"].as_str().unwrap()
            )
        };
        (
            setting("retention_days"),
            setting("attempts_retention_days"),
        )
    };
    let and = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    assert_eq!(shown(&[]), and("90 default", "400 default"));
    assert!(!db.path().exists(), "the command creates no file");
    spawn(db.config().retention_days(0));
    assert_eq!(shown(&[]), and("0 database", "400 default"));
    assert_eq!(
        shown(&["--set", "retention_days=7"]),
        and("7 command line", "400 default")
    );
}

#[test]
fn purge_without_an_age_applies_the_retention_of_the_database() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(30).attempts_retention_days(50));
    logger
        .strategy("s")
        .record(Outcome::success(DAY).at(SystemTime::now() - 49 * DAY));
    block_on(logger.shutdown()).unwrap();
    age(&db, 3, 31);
    age(&db, 2, 29);
    db.execute(
        "INSERT INTO memory_retrieval_attempts VALUES (86400, 0, 's', 'success', 0, 1, 0, NULL, NULL)",
    );
    assert_eq!(
        run(&db, &["purge", "--dry-run"], "").1,
        "3 failures are older than the retention of 30 days\n"
    );
    assert_eq!(db.attempts(), 2);
    assert_eq!(
        run(&db, &["purge", "--set", "retention_days=1"], "").1,
        "3 failures deleted\n"
    );
    assert_eq!((old_rows(&db), db.attempts()), (2, 1));
    assert_eq!(
        run(&db, &["purge", "--older-than", "1d"], "").1,
        "2 failures deleted\n"
    );
}

#[test]
fn purge_ahead_deletes_what_no_retention_reaches() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(1));
    logger.strategy("s").record(Outcome::success(DAY));
    block_on(logger.shutdown()).unwrap();
    age(&db, 3, 10);
    // An earlier version accepted these rows, whose senders chose date and event_id.
    db.execute(
        "UPDATE memory_retrieval_failures SET created_at = 253402200000000 WHERE turn_index = -1;
         INSERT INTO memory_retrieval_attempts VALUES (86400, 253402128000000, 's', 'success', 0, 5, 0, NULL, NULL)",
    );
    assert_eq!(run(&db, &["purge"], "").1, "0 failures deleted\n");
    assert_eq!(
        run(&db, &["purge", "--ahead", "--dry-run"], "").1,
        "3 failures are dated in the future\n"
    );
    assert_eq!(
        run(&db, &["purge", "--ahead"], "").1,
        "3 failures deleted\n"
    );
    assert_eq!((db.turns(), db.attempts()), (vec![1], 2));
}

#[test]
fn purge_by_a_doubted_clock_warns_and_spares_young_rows() {
    let db = TestDb::new();
    let logger = spawn(db.config().retention_days(30));
    purge(&logger);
    block_on(logger.shutdown()).unwrap();
    age(&db, 2, 10);
    // The trusted time is 100 days old and of an unknown boot, so the clock may be wrong now.
    db.execute(
        "UPDATE memory_retrieval_retention SET trusted_at = trusted_at - 8640000000, trusted_boot = NULL;
         UPDATE memory_retrieval_failures SET created_at = created_at - 86400000 * 50",
    );
    let (_, out, said) = run(&db, &["purge", "--older-than", "30d"], "");
    assert_eq!(out, "0 failures deleted\n");
    assert!(said.contains("but the retention clock is at "), "{said}");
    assert_eq!(old_rows(&db), 2);
}
