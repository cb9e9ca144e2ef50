//! The journal: how long it grows, which pages a flush adds to it, and which writes an idle logger
//! avoids.

mod common;

use std::process::Command;
use std::{fs, io};

use common::{TestDb, block_on, eventually, no_hit};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use failure_logger::LoggerHandle;

fn journal(db: &TestDb) -> String {
    format!("{}-wal", db.url())
}

fn length(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn flush_one(logger: &LoggerHandle, turn: i64) {
    logger.log(no_hit(turn));
    block_on(logger.flush()).unwrap();
}

/// Returns a copy of the database file alone, as made by an operator who does not know of the
/// journal.
fn copy(db: &TestDb) -> TestDb {
    let copy = TestDb::new();
    // Another process makes the copy, because this one must not close a descriptor of the file.
    assert!(
        Command::new("cp")
            .args([db.url(), copy.url()])
            .status()
            .unwrap()
            .success()
    );
    copy
}

#[test]
fn database_file_alone_has_all_tables_after_start() {
    let db = TestDb::new();
    let _logger = common::spawn(db.config());
    let copy = copy(&db);
    assert_eq!(copy.rows(), 0);
    assert_eq!(
        copy.integer("SELECT count(*) FROM sqlite_schema"),
        db.integer("SELECT count(*) FROM sqlite_schema")
    );
}

#[test]
fn database_file_alone_has_all_rows_after_a_pause() {
    let db = TestDb::new();
    let logger = common::spawn(db.config());
    for round in 1..=2 {
        for turn in 0..10 {
            flush_one(&logger, turn);
        }
        assert!(length(&journal(&db)) > 0);
        eventually("the checkpoint", || length(&journal(&db)) == 0);
        assert_eq!(copy(&db).rows(), 10 * round);
    }
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
}

#[test]
fn database_file_alone_has_its_rows_once_a_reader_ends() {
    let db = TestDb::new();
    let logger = common::spawn(db.config());
    flush_one(&logger, 0);
    let mut reader = db.connect();
    diesel::connection::SimpleConnection::batch_execute(
        &mut reader,
        "BEGIN; SELECT count(*) FROM memory_retrieval_failures",
    )
    .unwrap();
    flush_one(&logger, 1);
    // No other flush follows.
    diesel::connection::SimpleConnection::batch_execute(&mut reader, "ROLLBACK").unwrap();
    eventually("the checkpoint", || length(&journal(&db)) == 0);
    assert_eq!(copy(&db).rows(), 2);
}

#[test]
fn journal_of_single_flushes_stays_bounded() {
    let db = TestDb::new();
    let logger = common::spawn(db.config());
    let mut longest = 0;
    for turn in 0..3500 {
        flush_one(&logger, turn);
        longest = longest.max(length(&journal(&db)));
    }
    // At 32 MiB the writer waits, however slow the disk is. Without checkpoints the journal would
    // have 70 MB.
    assert!(longest < 40 << 20, "{longest} bytes");
    assert_eq!(db.rows(), 3500);
}

/// Returns the table or index of each page that was appended to the journal from `offset` on.
fn pages(db: &TestDb, offset: u64) -> io::Result<Vec<String>> {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    #[derive(QueryableByName)]
    struct Page {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let bytes = fs::read(journal(db))?;
    let from = usize::try_from(offset).unwrap().max(HEADER);
    let mut conn = db.connect();
    let mut names: Vec<String> = bytes[from..]
        .chunks_exact(FRAME)
        .map(|frame| {
            let number = u32::from_be_bytes(frame[..4].try_into().unwrap());
            diesel::sql_query("SELECT name FROM dbstat WHERE pageno = ?")
                .bind::<BigInt, _>(i64::from(number))
                .get_result::<Page>(&mut conn)
                .map_or_else(|_| format!("page {number}"), |page| page.name)
        })
        .collect();
    names.sort();
    Ok(names)
}

#[test]
fn flush_of_one_record_writes_one_page_a_table_and_index() {
    let db = TestDb::new();
    let logger = common::spawn(db.config());
    for turn in 0..5 {
        flush_one(&logger, turn);
    }
    let mut flushes = Vec::new();
    for turn in 5..15 {
        let before = length(&journal(&db));
        flush_one(&logger, turn);
        // A long pause may have emptied the journal.
        if length(&journal(&db)) > before {
            flushes.push(pages(&db, before).unwrap());
        }
    }
    // A full page takes two or three more pages, which the next flushes do not.
    let fewest = flushes.into_iter().min_by_key(Vec::len).expect("flushes");
    assert_eq!(
        fewest,
        [
            "memory_retrieval_failures",
            "memory_retrieval_failures_created_at",
            "memory_retrieval_failures_event_id",
        ]
    );
}
