//! What may be kept: failures that are deleted for good, a database of bounded size, text that is redacted.

mod common;

use std::fs;
use std::time::Duration;

use awc::http::{Method, StatusCode};
use common::service::{JSON, Service, answer, failure};
use common::{TestDb, block_on, eventually};
use failure_logger::http::HttpOptions;
use failure_logger::{
    Deletion, LoggerHandle, PageRequest, QuestionStatus, RetrievalFailureRecord, RetrievalFailureType, TimeRange,
};

const HOUR: Duration = Duration::from_secs(60 * 60);

fn record(query: &str, conversation: &str) -> RetrievalFailureRecord {
    RetrievalFailureRecord {
        conversation_id: Some(conversation.into()),
        error_context: Some(format!("no document for {query}").as_str().into()),
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", query)
    }
}

/// Returns `true` if a file in the folder of the database has the text.
fn is_on_the_disk(db: &TestDb, text: &str) -> bool {
    let files = fs::read_dir(db.folder.path()).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    files.into_iter().any(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

fn failures(logger: &LoggerHandle) -> u64 {
    block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap().total.failures
}

#[test]
fn deleted_failures_are_nowhere_on_the_disk_and_their_counts_stay() {
    let db = TestDb::new();
    let logger = db.spawn();
    // So many that pages were split, and rows moved.
    for nth in 0..3000 {
        let (query, conversation) = match nth % 10 {
            0 => (format!("Secret-Question {nth}"), "conversation-of-alice"),
            1 => ("the same Secret-Query".to_owned(), "conversation-of-bob"),
            _ => (format!("plain question {nth}"), "conversation-of-carol"),
        };
        logger.log(record(&query, conversation));
    }
    block_on(logger.flush()).unwrap();
    block_on(logger.mark_question("Secret-Question 10", QuestionStatus::Ignored)).unwrap();
    block_on(logger.mark_question("plain question 2", QuestionStatus::Ignored)).unwrap();
    // Still in the buffer.
    logger.log(record("Secret-Question late", "conversation-of-alice"));
    assert!(is_on_the_disk(&db, "Secret-Question") && is_on_the_disk(&db, "secret question 10"));

    let deleted = block_on(logger.delete(Deletion::Conversation("conversation-of-alice".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.statuses, deleted.is_erased), (301, 1, true));
    for text in ["Secret-Question", "secret question", "conversation-of-alice"] {
        assert!(!is_on_the_disk(&db, text), "{text}");
    }
    let deleted = block_on(logger.delete(Deletion::Query("the same Secret-Query".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.statuses, deleted.is_erased), (300, 0, true));
    assert!(!is_on_the_disk(&db, "Secret-Query") && is_on_the_disk(&db, "plain question 2"));
    assert_eq!((db.rows(), failures(&logger)), (2400, 3001), "the counts stay");
    assert_eq!(db.integer("SELECT count(*) FROM memory_retrieval_question_marks"), 1);
    // Nothing is left of them for a backup either, and the logger goes on.
    let none = block_on(logger.delete(Deletion::Query("the same Secret-Query".into()))).unwrap();
    assert_eq!((none.rows, none.is_erased), (0, true));
    logger.log(record("after it", "c"));
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.rows(), 2401);
}

#[test]
fn reader_that_keeps_the_journal_is_told_and_no_hindrance() {
    use diesel::connection::SimpleConnection as _;

    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(record("Secret-Question", "alice"));
    block_on(logger.flush()).unwrap();
    let mut reader = db.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM memory_retrieval_failures").unwrap();
    let deleted = block_on(logger.delete(Deletion::Conversation("alice".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.is_erased), (1, false));
    reader.batch_execute("COMMIT").unwrap();
    let deleted = block_on(logger.delete(Deletion::Conversation("alice".into()))).unwrap();
    assert_eq!((deleted.rows, deleted.is_erased), (0, true));
    assert!(!is_on_the_disk(&db, "Secret-Question"));
}

#[actix_web::test]
async fn deletion_over_http_needs_a_token_of_its_own() {
    let db = TestDb::new();
    let delete = async |service: &Service, query: &str, token: Option<&str>| {
        let request = service.request(Method::DELETE, &format!("/v1/failures{query}"));
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        answer(request.send().await).await
    };
    let without = Service::new(HttpOptions::default());
    let (status, said) = delete(&without, "?query=q", None).await;
    assert!(status == StatusCode::FORBIDDEN && said["detail"].as_str().unwrap().contains("HttpOptions::delete_token"));

    let token = |name: &str| format!("{name}-{name}-{name}-{name}");
    let options = HttpOptions::default().delete_token(token("delete").parse().unwrap());
    let options = options.read_token(token("readread").parse().unwrap());
    let service = Service::of(TestDb::new(), db.spawn(), options);
    for query in ["one", "two"] {
        service.post("/v1/failures", JSON, failure(query).to_string()).await;
    }
    for (query, shown, status) in [
        ("?query=one", None, 401),
        ("?query=one", Some("readread"), 401),
        ("", Some("delete"), 400),
        ("?query=one&conversation=c", Some("delete"), 409),
        ("?query=one", Some("delete"), 200),
    ] {
        let shown = shown.map(token);
        let (got, said) = delete(&service, query, shown.as_deref()).await;
        assert_eq!(got.as_u16(), status, "{query}: {said}");
        if status == 200 {
            assert_eq!((&said["rows"], &said["is_erased"]), (&1.into(), &true.into()));
        }
    }
    let page = service.logger.reader().list(Default::default(), PageRequest::newest(10)).await.unwrap();
    assert_eq!(page.failures.iter().map(|of| of.query_text.as_str()).collect::<Vec<_>>(), ["two"]);
}

#[test]
fn database_stays_within_its_bytes_and_loses_its_oldest_failures() {
    const MAX: u64 = 1 << 20;
    let db = TestDb::new();
    let logger = common::spawn(db.config().max_database_bytes(MAX));
    let long = "x".repeat(400);
    let mut logged: i64 = 0;
    // Three times as much as may be kept.
    while logged < 6000 {
        for _ in 0..500 {
            let record = RetrievalFailureRecord { turn_index: logged, ..record(&format!("{long} {logged}"), "c") };
            logger.log(record);
            logged += 1;
        }
        block_on(logger.flush()).unwrap();
    }
    let file = || fs::metadata(db.path()).unwrap().len();
    eventually("a file of that size", || {
        // A purge follows a flush.
        logger.log(RetrievalFailureRecord { turn_index: logged, ..record("q", "c") });
        logged += 1;
        block_on(logger.flush()).unwrap();
        let mut conn = db.connect();
        diesel::connection::SimpleConnection::batch_execute(&mut conn, "PRAGMA wal_checkpoint(TRUNCATE)").is_ok()
            && file() <= MAX
    });
    let stats = logger.stats();
    assert!(stats.purged_by_size > 3000 && stats.purged == stats.purged_by_size, "{stats:?}");
    assert_eq!(db.rows(), logged - i64::try_from(stats.purged).unwrap());
    // The newest are left, and all are counted.
    let turns = db.turns();
    assert_eq!(turns, (logged - turns.len() as i64..logged).collect::<Vec<_>>());
    assert!(turns.len() > 500, "no more than necessary: {}", turns.len());
    assert_eq!(failures(&logger), logged.unsigned_abs());
}

#[test]
fn size_of_a_database_with_tables_of_others_is_no_reason_to_delete() {
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

#[cfg(feature = "cli")]
#[test]
fn delete_command_works_on_a_file_and_on_a_service() {
    use common::binary::{Service, command, lines};
    use std::io::Write as _;
    use std::process::Stdio;

    let db = TestDb::new();
    let run = |arguments: &[&str], input: &str| {
        let mut command = command(&db, arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    run(&["ingest"], &lines(3));
    assert_eq!(
        run(&["delete", "--query", "q 1"], ""),
        (Some(0), "1 failures and 0 statuses deleted\n".into(), String::new())
    );
    assert_eq!(run(&["delete"], "").0, Some(2));
    let tokens = db.folder.path().join("tokens");
    fs::write(&tokens, "delete = 0123456789abcdef\n").unwrap();
    let service = Service::new(&db, &["--token-file", tokens.to_str().unwrap()]);
    let to_service = ["delete", "--query", "q 2", "--url", &service.url];
    let (code, _, err) = run(&to_service, "");
    assert!(code == Some(3) && err.contains("401"), "{err}");
    let (code, out, err) = run(&[&to_service[..], &["--url-token-file", tokens.to_str().unwrap()]].concat(), "");
    assert_eq!((code, out.as_str()), (Some(0), "1 failures and 0 statuses deleted\n"), "{err}");
    assert_eq!(db.rows(), 1);
}

#[cfg(feature = "cli")]
#[test]
fn redaction_of_a_service_reaches_every_way_in() {
    use common::binary::{Service, command, exchange};
    use std::os::unix::fs::PermissionsExt as _;

    let db = TestDb::new();
    let file = db.folder.path().join("settings.toml");
    fs::write(&file, "redact = [{ pattern = '[a-z]+@[a-z.]+', replacement = '[mail]' }]\n").unwrap();
    let with_rules = ["--config", file.to_str().unwrap()];
    let service = Service::new(&db, &with_rules);
    for (path, kind) in [("/v1/failures", "failure_type"), ("/v1/attempts", "outcome")] {
        let body = format!(
            r#"{{"{kind}":"no_hit","strategy":"s","query_text":"of ada@example.org","error_context":"eve@example.org"}}"#
        );
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert!(exchange(&service.url, &request).unwrap().contains("202"));
    }
    eventually("both", || db.rows() == 2);
    assert_eq!(db.texts("query_text"), vec![Some("of [mail]".to_owned()); 2]);
    assert_eq!(db.texts("error_context"), vec![Some("[mail]".to_owned()); 2]);
    service.signal("TERM");
    eventually("the end", || !db.folder.path().join("failures.db-wal").exists());
    assert!(!is_on_the_disk(&db, "example.org"));

    let key = db.folder.path().join("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let setting = format!("query_hash_key_file={}", key.display());
    let mut ingest = command(&db, &["ingest", "--set", "query_text=hash", "--set", &setting]);
    let mut child = ingest.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), common::binary::lines(1).as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let last = db.texts("query_text").pop().unwrap().unwrap();
    assert!(last.starts_with("hash:") && last.len() == 37, "{last}");
    let bad = command(&db, &["serve", "--set", "redact=[{\"pattern\": \"(\"}]"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8(bad.stderr).unwrap().contains("redact: rule 1: "));
}
