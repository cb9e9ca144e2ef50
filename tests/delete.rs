//! Privacy: failures that are deleted for good, a database of bounded size, redacted text.

mod common;

use std::fs;
use std::time::Duration;

use awc::http::{Method, StatusCode};
use common::service::{JSON, Service, failure, response};
use common::{TestDb, block_on, eventually};
use failure_logger::http::{HttpOptions, Scope};
use failure_logger::{
    Deletion, LoggerHandle, PageRequest, QueryStatus, RetrievalFailureRecord, RetrievalFailureType,
    TimeRange,
};

const HOUR: Duration = Duration::from_secs(60 * 60);

fn record(query: &str, conversation: &str) -> RetrievalFailureRecord {
    RetrievalFailureRecord {
        conversation_id: Some(conversation.into()),
        error_context: Some(format!("no document for {query}").as_str().into()),
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", query)
    }
}

fn failures(logger: &LoggerHandle) -> u64 {
    block_on(logger.reader().summary(TimeRange::last(HOUR)))
        .unwrap()
        .total
        .failures
}

#[test]
fn deleted_failures_leave_the_disk_and_their_counts_stay() {
    let db = TestDb::new();
    let logger = db.spawn();
    // This many rows split pages and move between them.
    for nth in 0..3000 {
        let (query, conversation) = match nth % 10 {
            0 => (format!("Secret-Question {nth}"), "conversation-of-alice"),
            1 => ("the same Secret-Query".to_owned(), "conversation-of-bob"),
            _ => (format!("plain question {nth}"), "conversation-of-carol"),
        };
        logger.log(record(&query, conversation));
    }
    block_on(logger.flush()).unwrap();
    block_on(logger.set_query_status("Secret-Question 10", QueryStatus::Ignored)).unwrap();
    block_on(logger.set_query_status("plain question 2", QueryStatus::Ignored)).unwrap();
    // This record is still in the buffer.
    logger.log(record("Secret-Question late", "conversation-of-alice"));
    assert!(db.is_on_the_disk("Secret-Question") && db.is_on_the_disk("secret question 10"));

    let deleted =
        block_on(logger.delete(Deletion::Conversation("conversation-of-alice".into()))).unwrap();
    assert_eq!(
        (deleted.rows, deleted.statuses, deleted.is_erased),
        (301, 1, true)
    );
    for text in [
        "Secret-Question",
        "secret question",
        "conversation-of-alice",
    ] {
        assert!(!db.is_on_the_disk(text), "{text}");
    }
    let deleted = block_on(logger.delete(Deletion::Query("the same Secret-Query".into()))).unwrap();
    assert_eq!(
        (deleted.rows, deleted.statuses, deleted.is_erased),
        (300, 0, true)
    );
    assert!(!db.is_on_the_disk("Secret-Query") && db.is_on_the_disk("plain question 2"));
    assert_eq!(
        (db.rows(), failures(&logger)),
        (2400, 3001),
        "the counts stay"
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_query_statuses"),
        1
    );
    // A backup has nothing of them either, and the logger continues.
    let none = block_on(logger.delete(Deletion::Query("the same Secret-Query".into()))).unwrap();
    assert_eq!((none.rows, none.is_erased), (0, true));
    logger.log(record("after it", "c"));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.rows(), 2401);
}

#[test]
fn reader_that_holds_the_journal_delays_the_erasure_alone() {
    use diesel::connection::SimpleConnection as _;

    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(record("Secret-Question", "alice"));
    block_on(logger.flush()).unwrap();
    let mut reader = db.connect();
    reader
        .batch_execute("BEGIN; SELECT count(*) FROM memory_retrieval_failures")
        .unwrap();
    let deleted = block_on(logger.delete(Deletion::Conversation("alice".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.is_erased), (1, false));
    reader.batch_execute("COMMIT").unwrap();
    let deleted = block_on(logger.delete(Deletion::Conversation("alice".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.is_erased), (0, true));
    assert!(!db.is_on_the_disk("Secret-Question"));
}

#[actix_web::test]
async fn deletion_over_http_needs_a_token_of_its_own() {
    let db = TestDb::new();
    let delete = async |service: &Service, query: &str, token: Option<&str>| {
        let request = service.request(Method::DELETE, &format!("/v1/failures{query}"));
        let request = token
            .iter()
            .fold(request, |request, token| request.bearer_auth(token));
        response(request.send().await).await
    };
    let without = Service::new(HttpOptions::default());
    let (status, said) = delete(&without, "?query_text=q", None).await;
    assert!(
        status == StatusCode::FORBIDDEN
            && said["detail"]
                .as_str()
                .unwrap()
                .contains("HttpOptions::token")
    );

    let token = |name: &str| format!("{name}-{name}-{name}-{name}");
    let options =
        HttpOptions::default().token("eraser", token("delete").parse().unwrap(), [Scope::Erase]);
    let options = options.token(
        "reader",
        token("readread").parse().unwrap(),
        [Scope::Read, Scope::Triage, Scope::Metrics],
    );
    let service = Service::of(TestDb::new(), db.spawn(), options);
    for query in ["one", "two"] {
        service
            .post("/v1/failures", JSON, failure(query).to_string())
            .await;
    }
    for (query, shown, status) in [
        ("?query_text=one", None, 401),
        ("?query_text=one", Some("readread"), 403),
        ("", Some("delete"), 400),
        ("?query_text=one&conversation_id=c", Some("delete"), 400),
        ("?query_text=one", Some("delete"), 200),
    ] {
        let shown = shown.map(token);
        let (got, said) = delete(&service, query, shown.as_deref()).await;
        assert_eq!(got.as_u16(), status, "{query}: {said}");
        if status == 200 {
            assert_eq!(
                (&said["rows"], &said["is_erased"]),
                (&1.into(), &true.into())
            );
        }
    }
    let page = service
        .logger
        .reader()
        .list(Default::default(), PageRequest::newest(10))
        .await
        .unwrap();
    assert_eq!(
        page.failures
            .iter()
            .map(|failure| failure.query_text.as_str())
            .collect::<Vec<_>>(),
        ["two"]
    );
}

#[test]
fn database_stays_within_its_bytes_and_purges_old_failures() {
    const MAX: u64 = 1 << 20;
    let db = TestDb::new();
    let logger = common::spawn(db.config().max_database_bytes(MAX));
    let long = "x".repeat(400);
    let mut logged: i64 = 0;
    // The records exceed the limit three times.
    while logged < 6000 {
        for _ in 0..500 {
            let record = RetrievalFailureRecord {
                turn_index: logged,
                ..record(&format!("{long} {logged}"), "c")
            };
            logger.log(record);
            logged += 1;
        }
        block_on(logger.flush()).unwrap();
    }
    let file = || fs::metadata(db.path()).unwrap().len();
    let journal = || {
        fs::metadata(db.path().with_extension("db-wal"))
            .unwrap()
            .len()
    };
    eventually("a file of that size", || {
        // A purge follows a flush.
        logger.log(RetrievalFailureRecord {
            turn_index: logged,
            ..record("q", "c")
        });
        logged += 1;
        block_on(logger.flush()).unwrap();
        let mut conn = db.connect();
        diesel::connection::SimpleConnection::batch_execute(
            &mut conn,
            "PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .is_ok()
            // A checkpoint that a reader or the writer prevents is no error.
            && journal() == 0
            && logger.stats().purged_by_size > 0
            && file() <= MAX
    });
    let stats = logger.stats();
    assert!(
        stats.purged_by_size > 3000 && stats.purged == stats.purged_by_size,
        "{stats:?}"
    );
    assert_eq!(db.rows(), logged - i64::try_from(stats.purged).unwrap());
    // The newest rows are left, and the counters have all records.
    let turns = db.turns();
    assert_eq!(
        turns,
        (logged - turns.len() as i64..logged).collect::<Vec<_>>()
    );
    assert!(
        turns.len() > 500,
        "the purge deletes no more than necessary: {}",
        turns.len()
    );
    assert_eq!(failures(&logger), logged.unsigned_abs());
}

#[test]
fn size_of_a_database_with_other_tables_purges_nothing() {
    let db = TestDb::new();
    db.execute("CREATE TABLE documents (text TEXT)");
    let logger = common::spawn(db.config().max_database_bytes(1 << 20).cleanup_every(1));
    db.execute("INSERT INTO documents SELECT hex(randomblob(1000000))");
    for turn in 0..10 {
        logger.log(common::no_hit(turn));
        block_on(logger.flush()).unwrap();
    }
    block_on(logger.shutdown()).unwrap();
    assert_eq!((db.rows(), logger.stats().purged), (10, 0));
}
