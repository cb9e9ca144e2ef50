//! Invalid input is refused by name, before the logger creates or changes anything.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use common::{TestDb, block_on, no_hit};
use failure_logger::{FailureLogger, LoggerConfig, RetrievalFailureRecord, StartError};

fn start_error(config: LoggerConfig) -> StartError {
    FailureLogger::spawn(config).expect_err("refused")
}

#[test]
fn setting_out_of_bounds_is_named_and_nothing_is_created() {
    let db = TestDb::new();
    for (config, said) in [
        (
            db.config().buffer_capacity(0),
            "buffer_capacity = 0: expected 1 to 1048576 records",
        ),
        (
            db.config().batch_size(0),
            "batch_size = 0: expected 1 record to the buffer_capacity",
        ),
        (
            db.config().buffer_capacity(10).batch_size(11),
            "batch_size = 11: expected 1 record to the buffer_capacity",
        ),
        (
            db.config().flush_interval(Duration::ZERO),
            "flush_interval = 0ns: expected 1 ms to 1 day",
        ),
        (
            db.config().cleanup_every(0),
            "cleanup_every = 0: expected at least 1 flush (retention_days = 0 turns purging off)",
        ),
    ] {
        let error = start_error(config);
        assert!(matches!(error, StartError::Config(_)), "{error:?}");
        assert_eq!(error.to_string(), said);
    }
    assert_eq!(fs::read_dir(db.folder.path()).unwrap().count(), 0);
}

#[test]
fn url_of_another_scheme_is_refused_without_its_password() {
    let said = start_error(LoggerConfig::new("mysql://me:secret@host/db")).to_string();
    assert_eq!(
        said,
        "database_url = mysql:..: expected a path, sqlite:PATH, sqlite://PATH, :memory: or \
         postgres://.."
    );
}

#[test]
fn file_that_is_no_database_is_refused_and_left() {
    for content in [
        &b"x"[..],
        b"Not a database, but a letter to a friend.",
        &[0; 4096],
    ] {
        let db = TestDb::new();
        fs::write(db.path(), content).unwrap();
        assert!(
            matches!(start_error(db.config()), StartError::NotADatabase { path } if path == db.path())
        );
        assert_eq!(fs::read(db.path()).unwrap(), content);
        // The folder has the file and at most the logger's own lock file.
        let names = fs::read_dir(db.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert!(
            names
                .into_iter()
                .all(|name| name == "failures.db" || name == "failures.db-lock")
        );
    }
}

#[test]
fn file_that_only_begins_like_a_database_is_refused_and_left() {
    let db = TestDb::new();
    let content = [&b"SQLite format 3\0"[..], &[0xA5; 4080]].concat();
    fs::write(db.path(), &content).unwrap();
    assert!(matches!(
        start_error(db.config()),
        StartError::NotADatabase { .. }
    ));
    assert_eq!(fs::read(db.path()).unwrap(), content);
}

#[test]
fn folder_that_is_missing_or_in_place_of_the_file_is_named() {
    let db = TestDb::new();
    for path in [
        db.folder.path().join("missing/failures.db"),
        db.folder.path().to_owned(),
    ] {
        let error = start_error(LoggerConfig::new(path.to_str().unwrap()));
        assert!(
            matches!(&error, StartError::Inaccessible { path: named, .. } if *named == path),
            "{error:?}"
        );
        assert!(
            error
                .to_string()
                .contains("the folder must exist and be writable")
        );
    }
    assert_eq!(fs::read_dir(db.folder.path()).unwrap().count(), 0);
}

#[test]
fn foreign_table_of_the_same_name_is_refused_and_left() {
    let db = TestDb::new();
    db.execute(
        "CREATE TABLE memory_retrieval_failures (id INTEGER PRIMARY KEY, failure_type \
        TEXT, created_at TEXT)",
    );
    let before = fs::read(db.path()).unwrap();
    let error = start_error(db.config());
    assert!(
        matches!(&error, StartError::Incompatible { cause, .. } if cause.contains("event_id")),
        "{error:?}"
    );
    assert_eq!(
        fs::read(db.path()).unwrap(),
        before,
        "not a byte was changed"
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_table_info('memory_retrieval_failures')"),
        3
    );
}

#[test]
fn database_of_the_application_is_shared_with_it() {
    let db = TestDb::new();
    db.execute("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('ada')");
    let logger = db.spawn();
    logger.log(no_hit(0));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(
        (db.integer("SELECT count(*) FROM users"), db.rows()),
        (1, 1)
    );
}

#[test]
fn file_and_journal_are_for_their_owner_only() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    let mut files = 0;
    for file in fs::read_dir(db.folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            file.file_name()
        );
        files += 1;
    }
    assert_eq!(files, 4, "the database, -wal, -shm and -lock");
}

#[test]
fn records_from_json_are_bounded_or_rejected_with_a_reason() {
    let parse = |text: &str| serde_json::from_str::<RetrievalFailureRecord>(text);
    let record = |text: &str| {
        format!(r#"{{"failure_type":"no_hit","retrieval_strategy":"s","query_text":"{text}"}}"#)
    };

    assert_eq!(parse(&record("plain")).unwrap().query_text, "plain");
    assert_eq!(parse(&record(r"a\u0000b")).unwrap().query_text, "a\0b");
    assert_eq!(parse(&record(r"\ud83e\udd80")).unwrap().query_text, "🦀");
    assert_eq!(parse(&record("")).unwrap().query_text, "");
    assert_eq!(
        parse(&record(&"é".repeat(5 << 20))).unwrap().query_text,
        *"é".repeat(512)
    );

    let refusal = |text: &str| parse(text).unwrap_err().to_string();
    assert!(
        refusal(&record(r"\ud83e")).contains("unexpected end of hex escape"),
        "{}",
        refusal(&record(r"\ud83e"))
    );
    assert!(
        refusal(&record(r"\udd80 x")).contains("lone"),
        "{}",
        refusal(&record(r"\udd80 x"))
    );
    let with = |field: &str| {
        format!(r#"{{"failure_type":"no_hit","retrieval_strategy":"s","query_text":"q",{field}}}"#)
    };
    assert!(refusal(&with(r#""turn_index":9223372036854775808"#)).contains("9223372036854775808"));
    assert!(refusal(&with(r#""latency_ms":-1"#)).contains("-1"));
    assert!(refusal(r#"{"failure_type":"tired"}"#).contains("tired"));
    assert!(refusal(r#"{"failure_type":"no_hit"}"#).contains("missing field"));
}
