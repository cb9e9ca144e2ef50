//! Stored rows equal the logged records.

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{TestDb, block_on, no_hit, spawn};
use failure_logger::{
    BoundedText, Labels, LogOutcome, LoggerConfig, RetrievalFailureRecord, RetrievalFailureType,
};

#[test]
fn low_confidence_record_is_stored_with_all_its_fields() {
    let db = TestDb::new();
    let logger = db.spawn();
    let outcome = logger.log(RetrievalFailureRecord {
        conversation_id: Some(42.into()),
        turn_index: 7,
        failure_type: RetrievalFailureType::LowConfidence,
        retrieval_strategy: "semantic".into(),
        query_text: "low confidence query".into(),
        query_len: 20,
        top_score: Some(0.3),
        confidence_threshold: Some(0.7),
        result_count: 3,
        latency_ms: 10,
        edge_types: Some(r#"["causes","part_of"]"#.into()),
        error_context: Some("none".into()),
        source: Some("shop".into()),
        labels: Labels::new([("version", "1.4"), ("index", "b")]).unwrap(),
    });
    assert_eq!(outcome, LogOutcome::Queued);
    let report = block_on(logger.flush()).unwrap();
    assert_eq!(report.persisted, 1);

    let columns = [
        ("conversation_id", Some("42")),
        ("turn_index", Some("7")),
        ("failure_type", Some("low_confidence")),
        ("retrieval_strategy", Some("semantic")),
        ("query_text", Some("low confidence query")),
        ("query_len", Some("20")),
        ("abs(top_score - 0.3) < 1e-5", Some("1")),
        ("abs(confidence_threshold - 0.7) < 1e-5", Some("1")),
        ("result_count", Some("3")),
        ("latency_ms", Some("10")),
        ("edge_types", Some(r#"["causes","part_of"]"#)),
        ("error_context", Some("none")),
        (
            "(SELECT s.source FROM memory_retrieval_sources AS s \
             WHERE s.source_id = memory_retrieval_failures.source_id)",
            Some("shop"),
        ),
        (
            "(SELECT s.labels FROM memory_retrieval_sources AS s \
             WHERE s.source_id = memory_retrieval_failures.source_id)",
            Some(r#"{"index":"b","version":"1.4"}"#),
        ),
        ("length(event_id)", Some("16")),
    ];
    for (column, expected) in columns {
        assert_eq!(db.text(column).as_deref(), expected, "{column}");
    }
}

#[test]
fn no_hit_record_is_stored_with_its_unknowns_as_null() {
    let db = TestDb::new();
    let logger = db.spawn();
    assert_eq!(logger.log(no_hit(0)), LogOutcome::Queued);
    block_on(logger.flush()).unwrap();
    assert_eq!(db.text("failure_type").as_deref(), Some("no_hit"));
    assert_eq!(db.text("query_len").as_deref(), Some("17"));
    for column in [
        "conversation_id",
        "top_score",
        "confidence_threshold",
        "edge_types",
        "error_context",
        "source_id",
    ] {
        assert_eq!(db.text(column), None, "{column}");
    }
}

#[test]
fn long_text_is_stored_up_to_its_bound_with_its_full_length() {
    for unit in ["x", "🦀", "é", "م", "e\u{301}"] {
        let db = TestDb::new();
        let logger = db.spawn();
        let mut record = RetrievalFailureRecord::new(
            RetrievalFailureType::Error,
            unit.repeat(100),
            &unit.repeat(1000),
        );
        record.error_context = Some(unit.repeat(400).into());
        record.conversation_id = Some(unit.repeat(200).into());
        logger.log(record);
        block_on(logger.flush()).unwrap();
        for (column, length) in [
            ("query_text", 512),
            ("error_context", 256),
            ("retrieval_strategy", 64),
            ("conversation_id", 128),
        ] {
            assert_eq!(
                db.text(&format!("length({column})")),
                Some(length.to_string()),
                "{column} of {unit}"
            );
        }
        assert_eq!(db.text("query_len"), Some((1000 * unit.len()).to_string()));
    }
}

#[test]
fn six_mixed_records_are_committed_in_one_batch() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    let types = [
        &RetrievalFailureType::ALL[..],
        &RetrievalFailureType::ALL[..2],
    ]
    .concat();
    for failure_type in &types {
        logger.log(RetrievalFailureRecord::new(*failure_type, "semantic", "q"));
    }
    assert_eq!(block_on(logger.flush()).unwrap().persisted, 6);
    assert_eq!(logger.stats().flushes, 1);
    let stored: Vec<_> = db.texts("failure_type").into_iter().flatten().collect();
    assert_eq!(stored, types.iter().map(|t| t.as_str()).collect::<Vec<_>>());
}

#[test]
fn stored_time_is_that_of_the_call() {
    let db = TestDb::new();
    let logger = spawn(db.config().flush_interval(Duration::from_secs(3600)));
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis()
    };
    let before = now();
    logger.log(no_hit(0));
    let after = now();
    // The flush comes in a later millisecond than the call.
    common::eventually("the clock to move", || now() > after);
    block_on(logger.flush()).unwrap();
    let stored: u128 = db.text("created_at").unwrap().parse().unwrap();
    assert!(
        (before..=after).contains(&stored),
        "{before} <= {stored} <= {after}"
    );
}

#[test]
fn order_of_each_sender_is_kept() {
    const SENDERS: i64 = 4;
    const RECORDS: i64 = 1000;
    let db = TestDb::new();
    let logger = db.spawn();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let logger = &logger;
            scope.spawn(move || {
                for nth in 0..RECORDS {
                    assert_eq!(
                        logger.log(no_hit(sender * RECORDS + nth)),
                        LogOutcome::Queued
                    );
                }
            });
        }
    });
    block_on(logger.flush()).unwrap();
    let turns = db.turns();
    assert_eq!(turns.len() as i64, SENDERS * RECORDS);
    for sender in 0..SENDERS {
        let of_sender: Vec<_> = turns
            .iter()
            .copied()
            .filter(|turn| turn / RECORDS == sender)
            .collect();
        assert!(of_sender.is_sorted(), "sender {sender}");
    }
    assert!(
        db.texts("hex(event_id)").is_sorted(),
        "event ids grow in the order of the rows"
    );
}

#[test]
fn hostile_text_is_stored_as_it_is_and_harms_no_neighbour() {
    let db = TestDb::new();
    let logger = db.spawn();
    let texts = [
        "",
        "\0",
        "a\0b",
        "'; DROP TABLE memory_retrieval_failures; --",
        "\u{202e}fdp",
        "e\u{301}\u{301}",
        "\u{feff}",
    ];
    for text in texts {
        logger.log(RetrievalFailureRecord::new(
            RetrievalFailureType::NoHit,
            text,
            text,
        ));
    }
    block_on(logger.flush()).unwrap();
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("{byte:02X}"))
            .collect::<String>()
    };
    let stored: Vec<_> = db
        .texts("hex(CAST(query_text AS BLOB))")
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(stored, texts.map(hex));
}

#[test]
fn numbers_that_sqlite_cannot_hold_are_bounded_or_null() {
    let db = TestDb::new();
    let logger = db.spawn();
    for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut record = no_hit(i64::MIN);
        (record.top_score, record.confidence_threshold) = (Some(score), Some(score));
        (record.query_len, record.result_count, record.latency_ms) =
            (usize::MAX, usize::MAX, u64::MAX);
        logger.log(record);
    }
    assert_eq!(block_on(logger.flush()).unwrap().persisted, 3);
    assert_eq!(db.texts("top_score"), [None, None, None]);
    assert_eq!(db.texts("confidence_threshold"), [None, None, None]);
    for column in ["query_len", "result_count", "latency_ms"] {
        assert_eq!(
            db.texts(column),
            vec![Some(i64::MAX.to_string()); 3],
            "{column}"
        );
    }
    assert_eq!(db.turns(), [i64::MIN; 3]);
}

#[test]
fn list_of_edge_types_that_is_too_long_stays_json() {
    let db = TestDb::new();
    let logger = db.spawn();
    let list = serde_json::to_string(&vec!["caused_by"; 500]).unwrap();
    let mut record = no_hit(0);
    record.edge_types = Some(BoundedText::from(list));
    logger.log(record);
    block_on(logger.flush()).unwrap();
    let stored: Vec<String> = serde_json::from_str(&db.text("edge_types").unwrap()).unwrap();
    assert_eq!(stored, vec!["caused_by"; 85]);
}

#[test]
fn view_shows_time_and_id_as_text() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    db.execute("UPDATE memory_retrieval_failures SET created_at = 1790000000123");
    let shown = "SELECT count(*) FROM memory_retrieval_failures_readable
        WHERE created_at = '2026-09-21T14:13:20.123Z' AND event_id GLOB '????????-????-7???-????-????????????'";
    assert_eq!(db.integer(shown), 1);
}

#[test]
fn disabled_logger_writes_nothing() {
    let db = TestDb::new();
    let logger = spawn(db.config().enabled(false));
    assert!(matches!(
        logger.log(no_hit(0)),
        LogOutcome::Dropped(failure_logger::DropReason::Disabled)
    ));
    assert!(logger.addr().try_send(no_hit(0)).is_err());
    assert_eq!(block_on(logger.flush()).unwrap().persisted, 0);
    assert_eq!(block_on(logger.shutdown()).unwrap().unsaved, 0);
    assert_eq!(logger.stats().received, 0);
    assert!(!db.path().exists());
}

#[test]
fn database_in_memory_stores_records() {
    let logger = spawn(LoggerConfig::new(":memory:"));
    for turn in 0..1000 {
        logger.log(no_hit(turn));
    }
    assert_eq!(block_on(logger.shutdown()).unwrap().stats.persisted, 1000);
}
