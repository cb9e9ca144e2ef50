//! Four senders that never pause, for as long as the environment says, while the database is locked
//! for half of the time.
//!
//! ```console
//! FAILURE_LOGGER_FLOOD_SECONDS=600 cargo test --release --test flood -- --ignored --nocapture
//! ```
//!
//! Ten minutes write about 4 GB to the folder for temporary files.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::SendError;
use common::{Lock, TestDb, block_on, no_hit};
use failure_logger::{FailureLogger, LoggerError};

const SENDERS: i64 = 4;
/// Most records in the mailbox after a shutdown has read the earlier ones. The shutdown reads the
/// mailbox to its end three times: at the begin, before the report, and at the end. Each record that
/// is read lets one more in if senders are that fast. At the end it gives up after 65,536.
const MOST_CLOSED: u64 = 3 * (8192 / 8 + 2 * SENDERS.unsigned_abs()) + 65_536;
/// Memory above that of an idle logger: a full buffer, a batch, and the caches of SQLite.
const MEMORY_MB: u64 = 64;

/// Returns the resident memory of this process, in MB.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[cfg(not(target_os = "linux"))]
fn memory() -> u64 {
    0
}

#[test]
#[ignore = "takes as long as FAILURE_LOGGER_FLOOD_SECONDS says, 20 by default"]
fn flooded_mailbox_keeps_its_bound_and_every_record_it_took() {
    let seconds = std::env::var("FAILURE_LOGGER_FLOOD_SECONDS")
        .map_or(20, |seconds| seconds.parse().unwrap());
    let db = TestDb::new();
    let logger = FailureLogger::spawn(db.config()).unwrap();
    block_on(logger.flush()).unwrap();
    let idle = memory();
    let stop = AtomicBool::new(false);
    let (mut most, mut locked_most, mut flushes, mut refusals) = (0, 0, 0_u64, 0_u64);
    let (taken, handed_back) = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (addr, stop) = (logger.addr().clone(), &stop);
                scope.spawn(move || {
                    let (mut taken, mut handed_back) = (0, 0);
                    while !stop.load(Ordering::Acquire) {
                        let turn = sender << 40 | taken;
                        match addr.try_send(no_hit(turn)) {
                            Ok(()) => taken += 1,
                            Err(SendError::Full(record)) => {
                                assert_eq!(record.turn_index, turn, "the record itself");
                                handed_back += 1;
                            }
                            // The shutdown is done.
                            Err(SendError::Closed(_)) => break,
                        }
                    }
                    (taken, handed_back)
                })
            })
            .collect();
        let begun = Instant::now();
        let mut lock = None;
        while begun.elapsed() < Duration::from_secs(seconds) {
            // The database is locked from the first quarter to the third.
            let is_locked = (seconds / 4..3 * seconds / 4).contains(&begun.elapsed().as_secs());
            match (is_locked, &lock) {
                (true, None) => lock = Some(Lock::new(&db)),
                (false, Some(_)) => lock = None,
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(200));
            let stats = logger.stats();
            assert_eq!(stats.dropped.closed, 0, "{stats:?}");
            assert!(stats.is_balanced() && stats.buffered <= 8192, "{stats:?}");
            let memory = memory();
            most = most.max(memory);
            if lock.is_some() {
                locked_most = locked_most.max(memory);
                continue;
            }
            match block_on(logger.flush()) {
                Ok(_) => flushes += 1,
                // The flush fell into the pause that began with the lock.
                Err(LoggerError::Waiting { .. }) => refusals += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let report = block_on(logger.shutdown()).unwrap();
        stop.store(true, Ordering::Release);
        println!("shutdown: drained {}, {}", report.drained, report.stats);
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .fold((0, 0), |(t, h), (taken, back)| (t + taken, h + back))
    });
    // The actor counts what is left in its mailbox after the report, and ends then.
    let given_up = Instant::now() + Duration::from_secs(10);
    while logger.addr().connected() && Instant::now() < given_up {
        std::thread::yield_now();
    }
    let stats = logger.stats();
    println!("taken {taken}, handed back {handed_back}; {stats}");
    println!("dropped: {:?}", stats.dropped);
    println!("memory: {idle} MB idle, {most} MB at most, {locked_most} MB at most while locked");
    println!(
        "flushes {flushes}, failed in a pause {refusals}, restarts {}",
        stats.restarts
    );
    assert!(flushes > 0 && handed_back > 0);
    assert!(stats.dropped.closed <= MOST_CLOSED, "{stats:?}");
    assert!(
        stats.is_balanced() && stats.buffered == 0 && stats.dropped.unsaved == 0,
        "{stats:?}"
    );
    // A record that is sent while the actor ends is neither received nor handed back.
    assert!(
        (0..=2 * SENDERS).contains(&(taken - i64::try_from(stats.received).unwrap())),
        "{taken} taken, {stats}"
    );
    assert_eq!(stats.persisted, db.rows().unsigned_abs());
    assert!(most <= idle + MEMORY_MB, "{most} MB, {idle} MB idle");
}
