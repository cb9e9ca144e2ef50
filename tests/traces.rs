//! Spans, events and warnings of the logger.

mod common;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use common::{Lock, TestDb, block_on, eventually, no_hit, spawn};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A span or an event: its level, its name, and its fields.
#[derive(Clone, Debug)]
struct Entry {
    level: Level,
    name: String,
    fields: String,
}

/// A subscriber that keeps all spans and events of all threads.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Entry>>>);

impl Recorder {
    /// Clears the recorder of the process. Each test holds the lock, because there is only one.
    fn start() -> (std::sync::MutexGuard<'static, ()>, Self) {
        static ALONE: Mutex<()> = Mutex::new(());
        static RECORDER: OnceLock<Recorder> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = RECORDER.get_or_init(|| {
            let recorder = Recorder::default();
            tracing::subscriber::set_global_default(recorder.clone()).unwrap();
            recorder
        });
        recorder.0.lock().unwrap().clear();
        (alone, recorder.clone())
    }

    fn entries(&self, name: &str) -> Vec<Entry> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|said| said.name == name)
            .cloned()
            .collect()
    }

    fn keep(&self, metadata: &Metadata<'_>, name: String, fields: String) {
        if metadata.target().starts_with("failure_logger") {
            self.0.lock().unwrap().push(Entry {
                level: *metadata.level(),
                name,
                fields,
            });
        }
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        self.keep(span.metadata(), span.metadata().name().into(), fields.rest);
        Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.keep(event.metadata(), fields.message, fields.rest);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.rest += &format!("{name}={value:?} "),
        }
    }
}

#[test]
fn calls_and_flushes_are_spans_and_flushes_count_their_records() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    for turn in 0..6 {
        logger.log(no_hit(turn));
    }
    block_on(logger.flush()).unwrap();
    let calls = recorder.entries("memory.retrieval_failure.log");
    assert_eq!(
        calls.iter().map(|said| said.level).collect::<Vec<_>>(),
        [Level::DEBUG; 6]
    );
    let flushes = recorder.entries("memory.retrieval_failure.flush");
    assert_eq!(flushes.len(), 1);
    assert_eq!(
        (flushes[0].level, flushes[0].fields.as_str()),
        (Level::INFO, "count=6 ")
    );
}

#[test]
fn failed_flush_is_a_warning_with_its_cause() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(NEVER));
    db.execute(
        "CREATE TRIGGER closed BEFORE INSERT ON memory_retrieval_failures
         BEGIN SELECT RAISE(ABORT, 'closed for today'); END",
    );
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap_err();
    let warnings = recorder.entries("the store failed; records are kept, and written later");
    assert_eq!(warnings[0].level, Level::WARN);
    assert!(
        warnings[0]
            .fields
            .contains("cause=closed for today buffered=1"),
        "{}",
        warnings[0].fields
    );
}

#[test]
fn end_that_loses_records_is_an_error_with_their_number() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    let logger = spawn(db.config().shutdown_timeout(Duration::from_millis(200)));
    let lock = Lock::new(&db);
    for turn in 0..3 {
        logger.log(no_hit(turn));
    }
    block_on(logger.shutdown()).unwrap_err();
    drop(lock);
    let said = recorder.entries("the deadline passed before all records were stored");
    assert_eq!(
        said.iter().map(|said| said.level).collect::<Vec<_>>(),
        [Level::ERROR]
    );
    assert!(
        said[0].fields.starts_with("unsaved=3 "),
        "{}",
        said[0].fields
    );
    assert_eq!(
        recorder.entries("records were dropped (all in all)").len(),
        1
    );
}

#[test]
fn shorter_retention_is_a_warning_and_a_longer_one_is_not() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    // A retention of 0 keeps everything. A new database has no retention that could become shorter.
    for (days, warnings, infos) in [
        (60, 0, 1),
        (30, 1, 0),
        (40, 0, 1),
        (0, 0, 1),
        (50, 1, 0),
        (50, 0, 0),
    ] {
        recorder.0.lock().unwrap().clear();
        block_on(spawn(db.config().retention_days(days)).shutdown()).unwrap();
        let shorter = recorder.entries("the retention is shorter now: older rows are deleted");
        assert_eq!(
            (
                shorter.len(),
                recorder.entries("the retention has changed").len()
            ),
            (warnings, infos),
            "{days} days"
        );
        assert!(
            shorter.iter().all(|said| said.level == Level::WARN),
            "{shorter:?}"
        );
    }
}

#[test]
fn drops_are_logged_in_sum_and_not_one_by_one() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    let config = db
        .config()
        .buffer_capacity(8)
        .batch_size(8)
        .flush_interval(Duration::from_millis(200));
    let logger = spawn(config);
    let lock = Lock::new(&db);
    for turn in 0..10_008 {
        logger.log(no_hit(turn));
    }
    let said = || recorder.entries("records were dropped (totals by reason)");
    eventually("the interval", || {
        said()
            .iter()
            .any(|said| said.fields.contains("buffer_full=10000 "))
    });
    assert!(
        said().len() <= 3,
        "one line per interval, not per record: {:?}",
        said()
    );
    assert!(said().iter().all(|said| said.level == Level::WARN));
    drop(lock);
}

#[test]
fn drops_are_warned_of_once_with_the_new_and_the_total_number() {
    let (_alone, recorder) = Recorder::start();
    let db = TestDb::new();
    let logger = spawn(
        db.config()
            .buffer_capacity(4)
            .batch_size(4)
            .flush_interval(Duration::from_millis(5)),
    );
    let warned = || recorder.entries("records were dropped (totals by reason)");
    for round in 1..=2 {
        let lock = Lock::new(&db);
        for turn in 0..10 {
            let _ = logger.log(no_hit(turn));
        }
        // One tick reports them, or several do.
        let all = format!("buffer_full={} ", 6 * round);
        eventually("the warning", || {
            warned().iter().any(|said| said.fields.contains(&all))
        });
        drop(lock);
        eventually("the flush", || block_on(logger.flush()).is_ok());
    }
    let new = |said: &Entry| {
        said.fields
            .split_once("dropped=")
            .unwrap()
            .1
            .split(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert_eq!(
        warned().iter().map(new).sum::<u64>(),
        12,
        "each drop is logged once as new: {:?}",
        warned()
    );
    let before = warned().len();
    // Ticks without a drop log nothing.
    for turn in 0..20 {
        let flushes = logger.stats().flushes;
        let _ = logger.log(no_hit(turn));
        eventually("the timer's flush", || logger.stats().flushes > flushes);
    }
    assert_eq!(warned().len(), before);
}
