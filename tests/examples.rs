//! The examples that end by themselves, run as the documents say.

use std::process::Command;
use std::time::Duration;

use failure_logger::{FailureLogger, LoggerConfig, Outcome, RetrievalFailureType};

/// Returns the output of an example.
fn output(example: &str, arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["run", "--locked", "--quiet", "--example", example, "--"])
        .args(arguments);
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the number in front of a word.
fn number(output: &str, word: &str) -> u64 {
    let (before, _) = output.split_once(word).expect(word);
    before
        .split_whitespace()
        .last()
        .and_then(|number| number.parse().ok())
        .expect(word)
}

#[test]
fn log_shows_the_failure_that_it_logs() {
    assert_eq!(
        output("log", &[]),
        "log: Queued\n\
         bm25: 1 failures\n\
         received 1 = persisted 1 + dropped 0 + buffered 0\n"
    );
}

#[test]
fn monitor_counts_each_failed_attempt() {
    let said = output("monitor", &[]);
    assert!(
        said.starts_with("key: 1 results\nlock: 1 results\nslow: "),
        "{said}"
    );
    assert!(
        said.ends_with("moon: 0 results\n75 % of 4 attempts failed\n"),
        "{said}"
    );
}

#[test]
fn routes_respond_below_their_scope() {
    let said = output("routes", &["--try"]);
    assert!(said.contains("/failures/\nreadyz: 200 OK\n"), "{said}");
    assert!(
        said.ends_with("received 0 = persisted 0 + dropped 0 + buffered 0\n"),
        "{said}"
    );
}

#[test]
fn report_ranks_queries_and_suggests_a_threshold() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("failures.db").display().to_string();
    let logger = FailureLogger::spawn(LoggerConfig::new(&path)).expect("a logger");
    let monitor = logger.strategy("semantic").confidence_threshold(0.3);
    // Twenty attempts, so that 5 % of them are exactly one.
    for nth in 1..=19_u8 {
        let success = Outcome::success(Duration::from_millis(2));
        monitor.record(success.top_score(0.3 + f32::from(nth) / 100.0));
    }
    let failure = RetrievalFailureType::LowConfidence;
    monitor.record(Outcome::failure(failure, "moon", Duration::from_millis(2)).top_score(0.1));
    futures_executor::block_on(logger.shutdown()).expect("a shutdown");

    let said = output("report", &[&path, "semantic"]);
    assert!(
        said.starts_with("failures  query\n       1  moon\n20 attempts\nat threshold 0.3"),
        "{said}"
    );
}

#[test]
fn actors_account_for_each_record() {
    let said = output("actors", &[]);
    let (_, end) = said.split_once("logger restarts").expect(&said);
    let (stored, given_up) = (number(end, "stored"), number(end, "given up"));
    assert_eq!(stored + given_up, 124, "{said}");
    assert!(given_up > 0 && stored >= 64, "{said}");
    assert!(
        end.contains(&format!(
            "received {stored} = persisted {stored} + dropped 0 + buffered 0"
        )),
        "{said}"
    );
}

#[test]
fn own_pool_finds_in_both_tables() {
    let said = output("own_pool", &["--try"]);
    assert!(
        said.contains("search?text=moon: []\nfailing: [\"1 x moon\"]\n"),
        "{said}"
    );
    assert!(
        said.ends_with("received 1 = persisted 1 + dropped 0 + buffered 0\n"),
        "{said}"
    );
}

#[test]
fn load_drivers_fill_a_database_and_time_each_read() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("f.db");
    let db = db.to_str().unwrap();
    output("fill", &["--db", db, "--failures", "2000"]);
    let said = output("workload", &["--db", db, "read"]);
    for (read, times) in [
        ("summary", 1),
        ("timeseries", 1),
        ("calibration", 1),
        ("list_deep", 2),
        ("top_queries", 1),
        ("conversations", 1),
    ] {
        let line = format!("workload=read question={read} ");
        assert_eq!(said.matches(&line).count(), times, "{read}: {said}");
    }
}
