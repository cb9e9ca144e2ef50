//! Two loggers on one file, under load for as long as the environment says, with restarts, and
//! beside a process that opens and closes the file.
//!
//! ```console
//! FAILURE_LOGGER_SOAK_SECONDS=1800 FAILURE_LOGGER_SOAK_FOLDER=/var/tmp \
//!     cargo test --release --features failpoints --test soak -- --ignored --nocapture
//! ```
//!
//! Half an hour writes 36,000,000 rows, about 8 GB.

mod common;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{TestDb, block_on, eventually, no_hit};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use fail::FailScenario;
use failure_logger::{FailureLogger, LogOutcome, LoggerHandle, RetrievalFailureRecord};

const RECORDS_PER_SECOND: u64 = 20_000;
/// Steps of the pace: each hands over its share of the records.
const STEPS_PER_SECOND: u64 = 200;
const DATABASE: &str = "FAILURE_LOGGER_TEST_SOAK_DATABASE";

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("FAILURE_LOGGER_SOAK_{name}")).ok()
}

/// One of the two loggers, with the numbers of the records that it accepted.
struct Sender {
    name: &'static str,
    logger: LoggerHandle,
    /// The next record's number. A dropped record gives its number to the next one.
    next: i64,
    /// Counters of its earlier loggers.
    received: u64,
    persisted: u64,
    dropped: u64,
    restarts: u64,
}

impl Sender {
    fn new(name: &'static str, db: &TestDb) -> Self {
        let logger = FailureLogger::spawn(db.config()).unwrap();
        Self {
            name,
            logger,
            next: 0,
            received: 0,
            persisted: 0,
            dropped: 0,
            restarts: 0,
        }
    }

    fn send(&mut self, records: u64) {
        for _ in 0..records {
            let record = RetrievalFailureRecord {
                conversation_id: Some(self.name.into()),
                ..no_hit(self.next)
            };
            if self.logger.log(record) == LogOutcome::Queued {
                self.next += 1;
            }
        }
        let stats = self.logger.stats();
        assert!(stats.is_balanced(), "{stats:?}");
    }

    /// Shuts the logger down, and adds its counters to those of its predecessors.
    fn end(&mut self) {
        let stats = block_on(self.logger.shutdown()).unwrap().stats;
        assert!(stats.is_balanced() && stats.buffered == 0, "{stats:?}");
        self.received += stats.received;
        self.persisted += stats.persisted;
        self.dropped += stats.dropped.total();
        self.restarts += stats.restarts;
    }

    fn begin(&mut self, db: &TestDb) {
        self.logger = FailureLogger::spawn(db.config()).unwrap();
    }
}

/// Opens the database, reads it and closes it, once a second until its parent ends it.
fn other_process() -> bool {
    let Ok(database) = std::env::var(DATABASE) else {
        return false;
    };
    loop {
        let mut conn = SqliteConnection::establish(&database).unwrap();
        let read = "PRAGMA busy_timeout = 10000; SELECT max(id) FROM memory_retrieval_failures";
        conn.batch_execute(read).unwrap();
        drop(conn);
        // The sleep is the pace of the other process, not a wait.
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
#[ignore = "takes as long as FAILURE_LOGGER_SOAK_SECONDS says, 60 by default; .ci/run runs it"]
fn two_loggers_restarted_each_minute_store_each_row_once() {
    if other_process() {
        return;
    }
    let _scenario = FailScenario::setup();
    let seconds: u64 = setting("SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let db = match setting("FOLDER") {
        Some(folder) => TestDb {
            folder: tempfile::tempdir_in(folder).unwrap(),
        },
        None => TestDb::new(),
    };
    let mut senders = [Sender::new("one", &db), Sender::new("other", &db)];
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args([
            "two_loggers_restarted_each_minute_store_each_row_once",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(DATABASE, db.url())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();

    let begin = Instant::now();
    let panicked = AtomicBool::new(false);
    for step in 0..seconds * STEPS_PER_SECOND {
        for sender in &mut senders {
            sender.send(RECORDS_PER_SECOND / STEPS_PER_SECOND / 2);
        }
        // The middle of each minute has a panic or an orderly restart, in turn.
        if step % (60 * STEPS_PER_SECOND) == 30 * STEPS_PER_SECOND {
            let minute = step / (60 * STEPS_PER_SECOND);
            if minute.is_multiple_of(2) {
                fail::cfg("flush-committed", "1*panic->off").unwrap();
                panicked.store(true, Ordering::Relaxed);
            } else {
                let sender = &mut senders[usize::from(minute % 4 == 1)];
                sender.end();
                sender.begin(&db);
            }
            let [one, other] = &senders;
            eprintln!(
                "minute {minute}: {} and {} accepted, {:?}",
                one.next,
                other.next,
                begin.elapsed()
            );
        }
        let due = begin
            + Duration::from_secs(1) * u32::try_from(step + 1).unwrap() / STEPS_PER_SECOND as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    for sender in &mut senders {
        eventually("the last flush", || block_on(sender.logger.flush()).is_ok());
        sender.end();
    }
    assert!(
        reader.try_wait().unwrap().is_none(),
        "the other process failed"
    );
    reader.kill().unwrap();
    reader.wait().unwrap();

    let stored = numbers(&db);
    for (sender, stored) in senders.iter().zip(&stored) {
        let Sender {
            name,
            next,
            received,
            persisted,
            dropped,
            restarts,
            ..
        } = sender;
        println!(
            "{name}: received {received} = persisted {persisted} + dropped {dropped}, restarts \
             {restarts}"
        );
        assert_eq!(*received, persisted + dropped);
        assert_eq!(
            u64::try_from(*next).unwrap(),
            *persisted,
            "each accepted record is persisted"
        );
        assert_eq!(
            stored.len(),
            usize::try_from(*next).unwrap(),
            "{name}: numbers end at the last one"
        );
        assert!(
            stored.iter().all(|times| *times == 1),
            "{name}: each row once"
        );
    }
    assert_eq!(
        panicked.into_inner(),
        senders.iter().any(|sender| sender.restarts > 0)
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_quick_check WHERE quick_check = 'ok'"),
        1
    );
}

/// Counts the rows of each number, by sender.
fn numbers(db: &TestDb) -> [Vec<u8>; 2] {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        sender: String,
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let mut stored = [Vec::new(), Vec::new()];
    let sql =
        "SELECT conversation_id AS sender, turn_index AS number FROM memory_retrieval_failures";
    let mut conn = db.connect();
    for row in diesel::sql_query(sql)
        .load_iter::<Row, diesel::connection::DefaultLoadingMode>(&mut conn)
        .unwrap()
    {
        let Row { sender, number } = row.unwrap();
        let stored = &mut stored[usize::from(sender == "other")];
        let number = usize::try_from(number).unwrap();
        if stored.len() <= number {
            stored.resize(number + 1, 0);
        }
        stored[number] += 1;
    }
    stored
}
