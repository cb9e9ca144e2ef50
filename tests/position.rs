//! Positions of readers that follow the log: they survive deletions, and notice another log.

mod common;

use std::time::Duration;

use common::{TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::report::{Position, TailPage};
use failure_logger::{FailureReader, LoggerHandle};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn log(logger: &LoggerHandle, turns: std::ops::Range<i64>) {
    for turn in turns {
        logger.log(no_hit(turn));
    }
    eventually("a flush", || block_on(logger.flush()).is_ok());
}

fn follow(reader: &FailureReader, position: Option<Position>) -> TailPage {
    block_on(reader.tail(Default::default(), position, 1000)).unwrap()
}

fn turns(followed: &TailPage) -> Vec<i64> {
    followed
        .failures
        .iter()
        .map(|failure| failure.turn_index.unwrap())
        .collect()
}

#[test]
fn position_across_deleted_rows_misses_nothing() {
    for deleted in ["id > 5", "id = 10", "id < 5", "true"] {
        let db = TestDb::new();
        let logger = spawn(db.config().flush_interval(NEVER));
        log(&logger, 0..10);
        let reader = logger.reader();
        let end = follow(&reader, None);
        assert_eq!(turns(&end), [] as [i64; 0]);
        db.execute(&format!(
            "DELETE FROM memory_retrieval_failures WHERE {deleted}"
        ));
        assert_eq!(
            turns(&follow(&reader, Some(end.position))),
            [] as [i64; 0],
            "{deleted}"
        );
        log(&logger, 10..13);
        let followed = follow(&reader, Some(end.position));
        assert_eq!(
            (turns(&followed), followed.replaced),
            (vec![10, 11, 12], false),
            "{deleted}"
        );
        assert_eq!(
            turns(&follow(&reader, Some(followed.position))),
            [] as [i64; 0]
        );
        // Each failure has a position, too.
        let second = followed.position.after(&followed.failures[1]);
        assert_eq!(turns(&follow(&reader, Some(second))), [12]);
    }
}

#[test]
fn position_of_a_removed_file_resumes_in_the_new_log() {
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .flush_interval(NEVER)
            .backoff(Duration::from_millis(1), Duration::from_millis(20)),
    );
    log(&logger, 0..10);
    let reader = logger.reader();
    let position = follow(&reader, None).position;
    std::fs::remove_file(db.path()).unwrap();
    log(&logger, 10..12);
    let followed = follow(&reader, Some(position));
    assert_eq!((turns(&followed), followed.replaced), (vec![10, 11], true));
    log(&logger, 12..13);
    let followed = follow(&reader, Some(followed.position));
    assert_eq!((turns(&followed), followed.replaced), (vec![12], false));
}

#[test]
fn position_as_text_is_the_same_and_junk_is_rejected() {
    let db = TestDb::new();
    let logger = spawn(db.config());
    log(&logger, 0..3);
    let position = follow(&logger.reader(), None).position;
    assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
    let log_id = position.to_string().split_once('.').unwrap().0.to_owned();
    for text in [
        "",
        "3",
        ".3",
        "-1",
        &log_id,
        &format!("{log_id}.-1"),
        &format!("{log_id}.x"),
        "log.3",
    ] {
        assert!(text.parse::<Position>().is_err(), "{text}");
    }
    // The position lies beyond the end and was never issued.
    let beyond: Position = format!("{log_id}.{}", i64::MAX).parse().unwrap();
    let followed = follow(&logger.reader(), Some(beyond));
    assert_eq!((turns(&followed), followed.position), (vec![], position));
}
