//! All reports agree about the same failures, also about failures dated ahead of the clock.

mod common;

use std::time::{Duration, SystemTime};

use common::{TestDb, block_on};
use failure_logger::report::{ExportFormat, QueryFilter};
use failure_logger::{
    FailureFilter, FailureReader, LoggerHandle, Outcome, PageRequest, RetrievalFailureRecord,
    RetrievalFailureType, TimeRange,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Logs one failure through each input, in a conversation.
fn fail_at(logger: &LoggerHandle, at: SystemTime) {
    let record = RetrievalFailureRecord {
        conversation_id: Some("c".into()),
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "logged", "where is the key?")
    };
    logger.log_at(record, at);
    let failed = Outcome::failure(
        RetrievalFailureType::LowConfidence,
        "where is the key?",
        MINUTE,
    )
    .top_score(0.5);
    logger
        .strategy("observed")
        .conversation("c")
        .record(failed.at(at));
}

/// Counts the failures that each report finds in `range`.
fn found(reader: &FailureReader, range: TimeRange) -> [(&'static str, u64); 8] {
    let filter = || FailureFilter {
        range: Some(range),
        ..FailureFilter::default()
    };
    let page = block_on(reader.list(filter(), PageRequest::newest(100))).unwrap();
    let position = block_on(reader.tail(filter(), None, 1))
        .unwrap()
        .position
        .to_string();
    let beginning = format!("{}.0", position.split('.').next().unwrap())
        .parse()
        .unwrap();
    let followed = block_on(reader.tail(filter(), Some(beginning), 100))
        .unwrap()
        .failures;
    let series = block_on(reader.timeseries(range, Vec::new())).unwrap();
    let groups = block_on(reader.top_queries(range, QueryFilter::default(), 10))
        .unwrap()
        .groups;
    let conversations = block_on(reader.conversations(range, 10))
        .unwrap()
        .conversations;
    let mut export = reader.export(filter(), ExportFormat::JsonLines);
    let mut exported = 0;
    while let Some(chunk) = block_on(export.next_chunk()).unwrap() {
        exported += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    [
        (
            "summary",
            block_on(reader.summary(range)).unwrap().total.failures,
        ),
        (
            "timeseries",
            series.points.iter().map(|point| point.failures).sum(),
        ),
        ("list", page.failures.len() as u64),
        ("follow", followed.len() as u64),
        ("groups", groups.iter().map(|group| group.count).sum()),
        (
            "conversations",
            conversations
                .iter()
                .map(|conversation| conversation.failures)
                .sum(),
        ),
        ("export", exported),
        // This report knows only what a monitor observed: half of them.
        (
            "calibration",
            2 * block_on(reader.calibration("observed", range))
                .unwrap()
                .attempts,
        ),
    ]
}

#[test]
fn failures_around_now_are_in_all_reports_or_in_none() {
    let db = TestDb::new();
    let logger = db.spawn();
    let now = SystemTime::now();
    for at in [now - MINUTE, now, now + MINUTE, now + 4 * MINUTE] {
        fail_at(&logger, at);
    }
    block_on(logger.flush()).unwrap();
    let reader = logger.reader();
    for range in [
        TimeRange::last(HOUR),
        TimeRange::last(40 * DAY),
        TimeRange::last(500 * DAY),
        TimeRange::all(),
        TimeRange::between(now - HOUR, now + DAY).unwrap(),
    ] {
        for (report, failures) in found(&reader, range) {
            assert_eq!(failures, 8, "{report} of {range:?}");
        }
    }
    let past = TimeRange::between(now - HOUR, now - 10 * MINUTE).unwrap();
    for (report, failures) in found(&reader, past) {
        assert_eq!(failures, 0, "{report} of the past");
    }
    assert_eq!(logger.stats().redated, 0);
}

#[test]
fn reports_agree_after_the_clock_was_set_back_for_hours() {
    let db = TestDb::new();
    let logger = db.spawn();
    let now = SystemTime::now();
    fail_at(&logger, now);
    block_on(logger.flush()).unwrap();
    block_on(logger.shutdown()).unwrap();
    // The rows and counts are those of a log whose clock was set back by two days.
    let ahead = 2 * 86_400_000;
    db.execute(&format!(
        "UPDATE memory_retrieval_failures SET created_at = created_at + {ahead};
         UPDATE memory_retrieval_attempts_recent SET started_at = started_at + {ahead};
         UPDATE memory_retrieval_attempts SET started_at = started_at + {ahead}"
    ));
    let reader = FailureReader::open(db.path());
    for range in [TimeRange::last(HOUR), TimeRange::all()] {
        for (report, failures) in found(&reader, range) {
            assert_eq!(failures, 2, "{report} of {range:?}");
        }
    }
}
