//! Reads of a [`FailureReader`]: pages, filters, summaries, rankings, calibrations, exports.

mod common;

use std::time::{Duration, SystemTime};

use common::{TestDb, block_on, no_hit};
use failure_logger::error::{ChangeError, ReadError};
use failure_logger::report::{
    ExportFormat, Failure, FailurePage, QueryFilter, QueryOrder, TimeseriesRequest,
};
use failure_logger::{
    FailureFilter, FailureReader, LoggerHandle, Outcome, PageRequest, QueryStatus,
    RetrievalFailureRecord, RetrievalFailureType, ScoreDirection, TimeRange,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn ago(span: Duration) -> SystemTime {
    SystemTime::now() - span
}

fn flushed(logger: &LoggerHandle) -> FailureReader {
    block_on(logger.flush()).unwrap();
    logger.reader()
}

fn queries(failures: &[Failure]) -> Vec<&str> {
    failures
        .iter()
        .map(|failure| failure.query_text.as_str())
        .collect()
}

fn no_hit_for(query: &str) -> RetrievalFailureRecord {
    RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", query)
}

#[test]
fn pages_in_both_directions_have_each_failure_once() {
    let db = TestDb::new();
    let logger = db.spawn();
    // Some failures have the same millisecond.
    let moment = ago(HOUR);
    for nth in 0..95_u64 {
        logger.log_at(no_hit(nth as i64), moment + Duration::from_millis(nth / 4));
    }
    let reader = flushed(&logger);
    let list = |page| block_on(reader.list(FailureFilter::default(), page)).unwrap();
    let turns = |failures: &[Failure]| {
        failures
            .iter()
            .map(|failure| failure.turn_index.unwrap())
            .collect::<Vec<_>>()
    };
    let (mut seen, mut pages) = (Vec::new(), Vec::new());
    let mut page = list(PageRequest::newest(10));
    loop {
        assert!(page.complete);
        seen.extend(turns(&page.failures));
        pages.push(page.clone());
        let Some(older) = page.older else { break };
        page = list(PageRequest::older_than(older, 10));
    }
    assert_eq!(seen, (0..95).rev().collect::<Vec<_>>());
    // The pages lead back, too.
    for before in pages.iter().rev().skip(1) {
        let newer = list(PageRequest::newer_than(page.newer.unwrap(), 10));
        assert_eq!(turns(&newer.failures), turns(&before.failures));
        page = newer;
    }
    let end = list(PageRequest::newer_than(page.newer.unwrap(), 10));
    assert!(end.failures.is_empty());
    // A later failure is found from there.
    logger.log(no_hit(95));
    flushed(&logger);
    assert_eq!(
        turns(&list(PageRequest::newer_than(end.newer.unwrap(), 10)).failures),
        [95]
    );
    let text = end.newer.unwrap().to_string();
    assert_eq!(
        text.parse(),
        Ok(end.newer.unwrap()),
        "a cursor survives as text"
    );
    assert!("12".parse::<failure_logger::report::Cursor>().is_err());
}

#[test]
fn page_without_failures_continues_only_from_a_cursor() {
    let db = TestDb::new();
    let logger = db.spawn();
    let reader = flushed(&logger);
    let list = |page| block_on(reader.list(FailureFilter::default(), page)).unwrap();
    let empty = list(PageRequest::newest(5));
    assert_eq!(
        (empty.failures.len(), empty.older, empty.newer),
        (0, None, None)
    );
    logger.log(no_hit(1));
    flushed(&logger);
    let oldest = list(PageRequest::newest(5)).newer.unwrap();
    let before = list(PageRequest::older_than(oldest, 5));
    assert_eq!((before.failures.len(), before.older), (0, None));
    let back = list(PageRequest::newer_than(before.newer.unwrap(), 5));
    assert_eq!(back.failures.len(), 1, "the failure at the cursor");
}

#[test]
fn failures_match_all_filters() {
    let db = TestDb::new();
    let logger = db.spawn();
    let record = |failure, strategy: &str, conversation: &str, query: &str, error: Option<&str>| {
        RetrievalFailureRecord {
            conversation_id: Some(conversation.into()),
            error_context: error.map(Into::into),
            ..RetrievalFailureRecord::new(failure, strategy, query)
        }
    };
    logger.log_at(
        record(
            RetrievalFailureType::NoHit,
            "bm25",
            "a",
            "Where is 100% of it?",
            None,
        ),
        ago(3 * HOUR),
    );
    logger.log_at(
        record(
            RetrievalFailureType::Error,
            "bm25",
            "b",
            "where",
            Some("on FIRE"),
        ),
        ago(2 * HOUR),
    );
    logger.log_at(
        record(RetrievalFailureType::Error, "graph", "a", "who", None),
        ago(HOUR),
    );
    let reader = flushed(&logger);
    let list = |filter| {
        let page = block_on(reader.list(filter, PageRequest::newest(10))).unwrap();
        queries(&page.failures).join("|")
    };
    let all = FailureFilter::default;
    assert_eq!(list(all()), "who|where|Where is 100% of it?");
    assert_eq!(
        list(FailureFilter {
            failure_type: vec![RetrievalFailureType::Error],
            ..all()
        }),
        "who|where"
    );
    assert_eq!(
        list(FailureFilter {
            retrieval_strategy: vec!["bm25".into()],
            ..all()
        }),
        "where|Where is 100% of it?"
    );
    assert_eq!(
        list(FailureFilter {
            conversation_id: vec!["a".into()],
            ..all()
        }),
        "who|Where is 100% of it?"
    );
    assert_eq!(
        list(FailureFilter {
            text: Some("WHERE".into()),
            ..all()
        }),
        "where|Where is 100% of it?"
    );
    assert_eq!(
        list(FailureFilter {
            text: Some("0% of".into()),
            ..all()
        }),
        "Where is 100% of it?"
    );
    assert_eq!(
        list(FailureFilter {
            text: Some("%".into()),
            ..all()
        }),
        "Where is 100% of it?",
        "no wildcard"
    );
    assert_eq!(
        list(FailureFilter {
            text: Some("_".into()),
            ..all()
        }),
        ""
    );
    assert_eq!(
        list(FailureFilter {
            text: Some("fire".into()),
            ..all()
        }),
        "where",
        "the search includes errors"
    );
    let range = TimeRange::between(ago(150 * MINUTE), ago(90 * MINUTE)).unwrap();
    assert_eq!(
        list(FailureFilter {
            range: Some(range),
            ..all()
        }),
        "where"
    );
    let both = FailureFilter {
        retrieval_strategy: vec!["bm25".into()],
        conversation_id: vec!["a".into()],
        ..all()
    };
    assert_eq!(list(both), "Where is 100% of it?");
}

#[test]
fn rare_failure_is_found_among_many_others() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(20_000));
    for nth in 0..12_000 {
        let mut record = no_hit(nth);
        record.retrieval_strategy = if nth % 5000 == 7 { "rare" } else { "common" }.into();
        logger.log(record);
    }
    let reader = flushed(&logger);
    let filter = || FailureFilter {
        retrieval_strategy: vec!["rare".into()],
        ..FailureFilter::default()
    };
    let turns = |page: FailurePage| {
        (
            page.failures
                .iter()
                .map(|failure| failure.turn_index.unwrap())
                .collect::<Vec<_>>(),
            page.older.is_some(),
        )
    };
    assert_eq!(
        turns(block_on(reader.list(filter(), PageRequest::newest(10))).unwrap()),
        (vec![10_007, 5007, 7], false)
    );
    let page = block_on(reader.list(filter(), PageRequest::newest(2))).unwrap();
    assert_eq!(turns(page.clone()), (vec![10_007, 5007], true));
    let page =
        block_on(reader.list(filter(), PageRequest::older_than(page.older.unwrap(), 2))).unwrap();
    assert_eq!(turns(page.clone()), (vec![7], false));
    let page =
        block_on(reader.list(filter(), PageRequest::newer_than(page.newer.unwrap(), 2))).unwrap();
    assert_eq!(turns(page), (vec![10_007, 5007], true));
}

#[test]
fn search_out_of_time_is_incomplete_and_resumes_at_its_cursor() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(20_000));
    logger.log(RetrievalFailureRecord {
        query_text: "the needle".into(),
        ..no_hit(0)
    });
    for nth in 1..10_000 {
        logger.log(no_hit(nth));
    }
    let reader = flushed(&logger).timeout(Duration::from_secs(60));
    let filter = FailureFilter {
        text: Some("needle".into()),
        ..FailureFilter::default()
    };
    let in_no_time = |request: PageRequest| {
        block_on(reader.list(filter.clone(), request.time_budget(Duration::ZERO))).unwrap()
    };
    // A page scans some rows, however short its time.
    let mut page = in_no_time(PageRequest::newest(5));
    assert_eq!(
        (page.complete, page.failures.len()),
        (false, 0),
        "the only match is the oldest row"
    );
    let mut found = Vec::new();
    while !page.complete {
        page = in_no_time(PageRequest::older_than(page.older.unwrap(), 5));
        found.append(&mut page.failures);
    }
    assert_eq!(
        (found.len(), found[0].turn_index, page.older),
        (1, Some(0), None)
    );
    // With enough time, it is one page.
    let whole = block_on(reader.list(filter.clone(), PageRequest::newest(5))).unwrap();
    assert_eq!(
        (whole.complete, whole.failures, whole.older),
        (true, found, None)
    );
    let hasty = reader.timeout(Duration::ZERO);
    assert_eq!(
        block_on(hasty.list(filter, PageRequest::newest(5))),
        Err(ReadError::TimedOut)
    );
}

#[test]
fn failure_is_found_by_its_id() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit_for("where is the key?"));
    let reader = flushed(&logger);
    let page = block_on(reader.list(FailureFilter::default(), PageRequest::newest(1))).unwrap();
    let failure = block_on(reader.get(page.failures[0].event_id))
        .unwrap()
        .unwrap();
    assert_eq!(failure, page.failures[0]);
    assert_eq!(
        (failure.query_text.as_str(), failure.query_len),
        ("where is the key?", 17)
    );
    assert_eq!(block_on(reader.get(uuid::Uuid::nil())).unwrap(), None);
    let json = serde_json::to_value(&failure).unwrap();
    assert_eq!(json["id"], "1");
    assert!(json["created_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn invalid_reads_are_rejected_with_the_expected_values() {
    let db = TestDb::new();
    let logger = db.spawn();
    let reader = logger.reader();
    let refused =
        block_on(reader.list(FailureFilter::default(), PageRequest::newest(0))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "limit = 0: expected 1 to 1000 failures"
    );
    assert!(TimeRange::between(ago(HOUR), ago(2 * HOUR)).is_err());
    let missing = FailureReader::open(db.folder.path().join("missing.db"));
    let refused = block_on(missing.summary(TimeRange::last(HOUR))).unwrap_err();
    assert!(
        matches!(refused, ReadError::Inaccessible { .. }),
        "{refused}"
    );
    assert!(
        !db.folder.path().join("missing.db").exists(),
        "nothing is created"
    );
    let disabled = LoggerHandle::disabled().reader();
    assert_eq!(
        block_on(disabled.summary(TimeRange::last(HOUR))),
        Err(ReadError::Disabled)
    );
}

#[test]
fn reader_cannot_write_and_needs_no_logger() {
    // The path has characters with a meaning in a URI.
    let db = TestDb::new();
    let path = db.folder.path().join("a b?c#d%20.db");
    let logger = common::spawn(failure_logger::LoggerConfig::new(path.to_str().unwrap()));
    logger.log(no_hit_for("q"));
    block_on(logger.shutdown()).unwrap();
    drop(logger);
    let reader = FailureReader::open(&path);
    let summary = block_on(reader.summary(TimeRange::all())).unwrap();
    assert_eq!(summary.total.failures, 1);
}

#[test]
fn database_in_memory_is_read_while_it_is_written() {
    let logger = common::spawn(failure_logger::LoggerConfig::new(":memory:"));
    let reader = logger.reader();
    for turn in 0..200 {
        logger.log(no_hit(turn));
        block_on(logger.flush()).unwrap();
        let page = block_on(reader.list(FailureFilter::default(), PageRequest::newest(1))).unwrap();
        assert_eq!(page.failures[0].turn_index, Some(turn));
    }
}

#[test]
fn summary_compares_strategies_and_the_previous_range() {
    let db = TestDb::new();
    let logger = db.spawn();
    let semantic = logger
        .strategy("semantic")
        .confidence_threshold(0.5)
        .timeout(Duration::from_secs(2));
    let bm25 = logger.strategy("bm25");
    let fail = |failure, at| Outcome::failure(failure, "q", Duration::from_millis(100)).at(at);
    for nth in 0..8 {
        semantic.record(
            Outcome::success(Duration::from_millis(10 + nth))
                .top_score(0.9)
                .at(ago(HOUR / 2)),
        );
    }
    semantic.record(fail(RetrievalFailureType::NoHit, ago(HOUR / 2)));
    semantic.record(fail(RetrievalFailureType::Timeout, ago(HOUR / 2)));
    bm25.record(fail(RetrievalFailureType::Error, ago(HOUR / 2)));
    // These attempts lie in the previous hour.
    semantic.record(Outcome::success(Duration::from_millis(10)).at(ago(HOUR * 3 / 2)));
    // This failure is older than both ranges.
    semantic.record(fail(RetrievalFailureType::Error, ago(5 * HOUR)));
    let summary = block_on(flushed(&logger).summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!((summary.total.attempts, summary.total.failures), (11, 3));
    assert_eq!(
        (summary.previous.attempts, summary.previous.failures),
        (1, 0)
    );
    let [one, two] = &summary.strategies[..] else {
        panic!("{summary:?}")
    };
    assert_eq!(
        (one.retrieval_strategy.as_str(), one.rates.failure_rate),
        ("semantic", Some(0.2))
    );
    assert_eq!(
        (one.confidence_threshold, one.timeout_ms),
        (Some(0.5), Some(2000))
    );
    assert_eq!(
        (two.retrieval_strategy.as_str(), two.rates.failure_rate),
        ("bm25", Some(1.0))
    );
    assert_eq!(one.rates.types[0].rate, Some(0.1));
    let latency = one.rates.latency_ms.unwrap();
    assert!(
        (latency.p50 - 14.0).abs() <= 1.0 && (latency.p99 - 100.0).abs() <= 1.0,
        "{latency:?}"
    );
}

#[test]
fn timeseries_has_wider_steps_and_latencies_on_request() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic");
    for minutes in [1, 2, 60 * 20] {
        for ms in [10, 20, 30] {
            monitor.record(Outcome::success(Duration::from_millis(ms)).at(ago(minutes * MINUTE)));
        }
    }
    let reader = flushed(&logger);
    for (max_steps, step) in [(200, 15 * MINUTE), (40, HOUR), (5, 6 * HOUR), (1, DAY)] {
        let request = TimeseriesRequest {
            max_steps,
            latency: true,
            ..TimeseriesRequest::default()
        };
        let series = block_on(reader.timeseries(TimeRange::last(DAY), request)).unwrap();
        assert_eq!(series.step_seconds, step.as_secs(), "{max_steps}");
        assert!(series.points.len() <= max_steps + 1);
        let [points] = &series.strategies[..] else {
            panic!("one strategy");
        };
        assert_eq!(points.latency_p95_ms.len(), series.points.len());
        for (attempts, latency) in points.attempts.iter().zip(&points.latency_p95_ms) {
            assert_eq!(*latency, (*attempts > 0).then_some(30.0));
        }
    }
    let plain = block_on(reader.timeseries(TimeRange::last(DAY), Vec::new())).unwrap();
    assert!(plain.strategies[0].latency_p95_ms.is_empty());
}

#[test]
fn timeseries_has_a_point_for_each_step_of_every_range() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic");
    for minutes in [1, 1, 50, 60 * 30, 60 * 24 * 20] {
        let outcome = Outcome::failure(RetrievalFailureType::NoHit, "q", Duration::ZERO)
            .at(ago(minutes * MINUTE));
        monitor.record(outcome);
    }
    monitor.record(Outcome::success(Duration::ZERO).at(ago(MINUTE)));
    logger
        .strategy("other one")
        .record(Outcome::success(Duration::ZERO).at(ago(MINUTE)));
    let reader = flushed(&logger);
    for (range, step, failures) in [
        (2 * HOUR, MINUTE, 3),
        (DAY, 15 * MINUTE, 3),
        (7 * DAY, HOUR, 4),
        (30 * DAY, 6 * HOUR, 5),
        (365 * DAY, 7 * DAY, 5),
    ] {
        let series =
            block_on(reader.timeseries(TimeRange::last(range), vec!["semantic".into()])).unwrap();
        assert_eq!(series.step_seconds, step.as_secs(), "{range:?}");
        assert!(series.points.len() <= 201);
        let steps: Vec<u64> = series
            .points
            .windows(2)
            .map(|pair| pair[1].at.duration_since(pair[0].at).unwrap().as_secs())
            .collect();
        assert!(
            steps.iter().all(|seconds| *seconds == step.as_secs()),
            "no gaps"
        );
        assert_eq!(
            series
                .points
                .iter()
                .map(|point| point.failures)
                .sum::<u64>(),
            failures,
            "{range:?}"
        );
        assert_eq!(
            series
                .points
                .iter()
                .map(|point| point.types.no_hit)
                .sum::<u64>(),
            failures
        );
        assert_eq!(
            series
                .points
                .iter()
                .map(|point| point.attempts)
                .sum::<u64>(),
            failures + 1
        );
    }
    let all = block_on(reader.timeseries(TimeRange::last(HOUR), Vec::new())).unwrap();
    assert_eq!(
        all.points.iter().map(|point| point.attempts).sum::<u64>(),
        5
    );
    let all = block_on(reader.timeseries(TimeRange::all(), Vec::new())).unwrap();
    assert_eq!(
        all.points.iter().map(|point| point.failures).sum::<u64>(),
        5
    );
}

#[test]
fn failing_queries_are_grouped_by_their_words() {
    let db = TestDb::new();
    let logger = db.spawn();
    let scored = |query: &str, score| RetrievalFailureRecord {
        top_score: Some(score),
        failure_type: RetrievalFailureType::LowConfidence,
        ..no_hit_for(query)
    };
    logger.log(scored("How do I reset my password?", 0.2));
    logger.log(scored("how do i reset my password", 0.3));
    logger.log(no_hit_for("how do I reset my pasword, please"));
    logger.log(no_hit_for("capital of France"));
    logger.log(no_hit_for("capital of Spain"));
    let reader = flushed(&logger);
    let top =
        block_on(reader.top_queries(TimeRange::last(HOUR), QueryFilter::default(), 10)).unwrap();
    assert!(top.scanned.complete);
    assert_eq!(
        (top.scanned.failures, top.groups.len(), top.ungrouped),
        (5, 3, 0)
    );
    let first = &top.groups[0];
    assert_eq!(
        (first.count, first.texts, first.best_score),
        (3, 2, Some(0.3))
    );
    assert_eq!(
        first.example, "how do i reset my password",
        "the newest record of the most frequent text"
    );
    assert_eq!(
        (first.trend.iter().sum::<u32>(), first.trend[15]),
        (3, 3),
        "all failures are recent"
    );
    let low = QueryFilter {
        failure_type: vec![RetrievalFailureType::LowConfidence],
        ..QueryFilter::default()
    };
    assert_eq!(
        block_on(reader.top_queries(TimeRange::last(HOUR), low, 1))
            .unwrap()
            .groups[0]
            .count,
        2
    );
    let graph = QueryFilter {
        retrieval_strategy: vec!["graph".into()],
        ..QueryFilter::default()
    };
    assert!(
        block_on(reader.top_queries(TimeRange::last(HOUR), graph, 1))
            .unwrap()
            .groups
            .is_empty()
    );
}

#[test]
fn groups_have_types_strategies_and_an_order_and_are_searched() {
    let db = TestDb::new();
    let logger = db.spawn();
    let mut at = 100;
    let mut fail = |query: &str, failure_type, strategy: &str| {
        at -= 1;
        let record = RetrievalFailureRecord::new(failure_type, strategy, query);
        logger.log_at(record, ago(at * MINUTE));
    };
    use RetrievalFailureType::{Error, NoHit};
    fail("Die MÜHLE am Bach", NoHit, "graph");
    fail("Die MÜHLE am Bach", Error, "graph");
    fail("Die MÜHLE am Bach", NoHit, "bm25");
    fail("capital of France", NoHit, "graph");
    fail("capital of France", NoHit, "graph");
    fail("an index of wines", Error, "graph");
    let reader = flushed(&logger);
    let ranked = |filter: QueryFilter| {
        block_on(reader.top_queries(TimeRange::last(DAY), filter, 2)).unwrap()
    };
    let all = ranked(QueryFilter::default());
    assert_eq!((all.total, all.groups.len(), all.statuses.open), (3, 2, 3));
    let [mill, ..] = &all.groups[..] else {
        panic!("two groups");
    };
    assert_eq!((mill.types.no_hit, mill.types.error), (2, 1));
    let strategies: Vec<(&str, u64)> = mill
        .strategies
        .iter()
        .map(|count| (count.retrieval_strategy.as_str(), count.failures))
        .collect();
    assert_eq!(strategies, [("graph", 2), ("bm25", 1)]);
    let found = ranked(QueryFilter {
        text: Some("mühle".into()),
        ..QueryFilter::default()
    });
    assert_eq!((found.total, found.groups[0].count), (1, 3));

    block_on(logger.set_query_status("an index of wines", QueryStatus::Resolved)).unwrap();
    block_on(logger.set_query_status("capital of France", QueryStatus::Ignored)).unwrap();
    logger.log_at(
        RetrievalFailureRecord::new(Error, "graph", "an index of wines"),
        SystemTime::now() + Duration::from_millis(1),
    );
    block_on(logger.flush()).unwrap();
    let first = |order| {
        let filter = QueryFilter {
            order,
            ..QueryFilter::default()
        };
        ranked(filter).groups[0].example.clone()
    };
    assert_eq!(first(QueryOrder::Failures), "Die MÜHLE am Bach");
    assert_eq!(first(QueryOrder::Attention), "an index of wines");
    assert_eq!(first(QueryOrder::LastSeen), "an index of wines");
    let open = ranked(QueryFilter {
        status: Some(QueryStatus::Open),
        ..QueryFilter::default()
    });
    let counts = open.statuses;
    assert_eq!(
        (
            counts.open,
            counts.reopened,
            counts.resolved,
            counts.ignored
        ),
        (2, 1, 0, 1)
    );
    assert_eq!(open.total, 2);
}

#[test]
fn trend_tells_when_in_the_range_a_query_failed() {
    let db = TestDb::new();
    let logger = db.spawn();
    for hours in [1, 1, 15] {
        logger.log_at(no_hit_for("where is it"), ago(hours * HOUR + 30 * MINUTE));
    }
    let reader = flushed(&logger);
    let top = block_on(reader.top_queries(TimeRange::last(16 * HOUR), QueryFilter::default(), 1))
        .unwrap();
    let mut expected = [0; 16];
    (expected[0], expected[14]) = (1, 2);
    assert_eq!(top.groups[0].trend, expected);
}

#[test]
fn status_covers_the_group_and_resolved_reopens_on_a_failure() {
    let db = TestDb::new();
    let logger = db.spawn();
    let texts = [
        "how do i reset my password",
        "how do i reset my pasword",
        "how do i reset my passwort",
    ];
    logger.log(no_hit_for(texts[0]));
    logger.log(no_hit_for(texts[0]));
    logger.log(no_hit_for(texts[1]));
    logger.log(no_hit_for("capital of France"));
    let reader = flushed(&logger);
    let groups = |status| {
        let filter = QueryFilter {
            status,
            ..QueryFilter::default()
        };
        let top = block_on(reader.top_queries(TimeRange::last(HOUR), filter, 10)).unwrap();
        top.groups
            .into_iter()
            .map(|group| (group.count, group.status, group.reopened))
            .collect::<Vec<_>>()
    };
    assert_eq!(groups(Some(QueryStatus::Open)).len(), 2);
    // The text is not the most frequent one.
    block_on(logger.set_query_status("How do I reset my pasword, please?", QueryStatus::Resolved))
        .unwrap();
    assert_eq!(groups(None)[0], (3, QueryStatus::Resolved, false));
    assert_eq!(
        groups(Some(QueryStatus::Open)),
        [(1, QueryStatus::Open, false)]
    );
    assert_eq!(groups(Some(QueryStatus::Resolved)).len(), 1);
    // A late report of an earlier failure reopens nothing.
    logger.log_at(no_hit_for(texts[1]), ago(MINUTE));
    block_on(logger.flush()).unwrap();
    assert_eq!(groups(None)[0], (4, QueryStatus::Resolved, false));
    logger.log_at(
        no_hit_for(texts[2]),
        SystemTime::now() + Duration::from_millis(1),
    );
    block_on(logger.flush()).unwrap();
    common::eventually("the reopened group", || {
        groups(None)[0] == (5, QueryStatus::Open, true)
    });
    // An ignored group stays ignored.
    block_on(logger.set_query_status(texts[0], QueryStatus::Ignored)).unwrap();
    logger.log(no_hit_for(texts[0]));
    block_on(logger.flush()).unwrap();
    assert_eq!(groups(None)[0], (6, QueryStatus::Ignored, false));
    block_on(logger.set_query_status(texts[0], QueryStatus::Open)).unwrap();
    assert_eq!(groups(None)[0], (6, QueryStatus::Open, false));
    block_on(logger.set_query_status("capital of france", QueryStatus::Ignored)).unwrap();
    block_on(logger.shutdown()).unwrap();
    assert!(block_on(logger.set_query_status("too late", QueryStatus::Ignored)).is_err());
    // Statuses outlive the process.
    let top = block_on(db.spawn().reader().top_queries(
        TimeRange::last(HOUR),
        QueryFilter::default(),
        10,
    ))
    .unwrap();
    assert_eq!(top.groups[1].status, QueryStatus::Ignored);
}

#[test]
fn group_set_to_open_is_open_whichever_text_has_a_status() {
    let db = TestDb::new();
    let logger = db.spawn();
    // Each text is similar to the most frequent one.
    let texts = [
        "how do i reset my password",
        "how do i reset my pasword",
        "how do i reset my passwort",
    ];
    for (times, text) in [(3, texts[0]), (2, texts[1]), (1, texts[2])] {
        for _ in 0..times {
            logger.log(no_hit_for(text));
        }
    }
    let reader = flushed(&logger);
    let status = || {
        let top = block_on(reader.top_queries(TimeRange::last(HOUR), QueryFilter::default(), 10))
            .unwrap();
        assert_eq!((top.groups.len(), top.groups[0].texts), (1, 3));
        top.groups[0].status
    };
    let mark = |text, status| block_on(logger.set_query_status(text, status)).unwrap();
    for ignored in texts {
        for opened in texts {
            for before in texts {
                mark(before, QueryStatus::Resolved);
            }
            mark(ignored, QueryStatus::Ignored);
            assert_eq!(status(), QueryStatus::Ignored);
            mark(opened, QueryStatus::Open);
            assert_eq!(
                status(),
                QueryStatus::Open,
                "{ignored:?} was ignored, {opened:?} opened"
            );
        }
    }
}

#[test]
fn status_holds_in_every_range_and_never_covers_a_later_text() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log_at(no_hit_for("how do i reset my password"), ago(3 * HOUR));
    logger.log(no_hit_for("how do i reset my passwort"));
    logger.log(no_hit_for("capital of france"));
    let reader = flushed(&logger);
    block_on(logger.set_query_status("how do i reset my password", QueryStatus::Ignored)).unwrap();
    let absent = block_on(logger.set_query_status("this was never logged", QueryStatus::Ignored));
    assert_eq!(absent, Err(ChangeError::NotFound));
    block_on(logger.set_query_status("this was never logged", QueryStatus::Open)).unwrap();
    let group = |hours: u32, texts: u64| {
        let range = TimeRange::last(hours * HOUR);
        let top = block_on(reader.top_queries(range, QueryFilter::default(), 10)).unwrap();
        let mut groups = top.groups.into_iter();
        let group = groups
            .find(|group| group.example.to_lowercase().contains("how do i"))
            .unwrap();
        assert_eq!(group.texts, texts);
        (group.id, group.status, group.new_texts)
    };
    let (id, status, new_texts) = group(1, 1);
    assert_eq!((status, new_texts), (QueryStatus::Ignored, 0));
    assert_eq!(group(5, 2), (id.clone(), QueryStatus::Ignored, 0));
    // Another text, in the same group: it was not shown when the status was set.
    logger.log(no_hit_for("How do I rest my password?"));
    logger.log(no_hit_for("something else"));
    block_on(logger.flush()).unwrap();
    let (_, status, new_texts) = group(1, 2);
    assert_eq!((status, new_texts), (QueryStatus::Open, 1));
    assert_eq!(group(5, 3), group(4, 3));
    // The same text in another form is no new one.
    block_on(logger.set_query_status("how do i rest my password", QueryStatus::Ignored)).unwrap();
    logger.log(no_hit_for("Please, how do I reset my  PASSWORD?!"));
    block_on(logger.flush()).unwrap();
    let (_, status, new_texts) = group(5, 3);
    assert_eq!((status, new_texts), (QueryStatus::Ignored, 0));
}

#[test]
fn status_of_an_unknown_text_is_rejected_and_not_stored() {
    let db = TestDb::new();
    let logger = db.spawn();
    let longest = "é".repeat(512);
    logger.log(no_hit_for(&longest));
    let reader = flushed(&logger);
    block_on(logger.set_query_status(&longest, QueryStatus::Ignored)).unwrap();
    for characters in [513, 20 << 20] {
        let refused =
            block_on(logger.set_query_status(&"x".repeat(characters), QueryStatus::Ignored))
                .unwrap_err();
        assert_eq!(refused, ChangeError::TooLong { characters });
        assert!(
            refused
                .to_string()
                .contains(&format!("{characters} characters: expected 512 at most")),
            "{refused}"
        );
    }
    let top =
        block_on(reader.top_queries(TimeRange::last(HOUR), QueryFilter::default(), 10)).unwrap();
    assert_eq!(top.groups[0].status, QueryStatus::Ignored);
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_query_statuses"),
        1
    );
}

#[test]
fn drops_are_known_by_their_time_after_the_process_ends() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(10).batch_size(10));
    let lock = common::Lock::new(&db);
    for nth in 0..25 {
        logger.log(no_hit(nth));
    }
    drop(lock);
    block_on(logger.shutdown()).unwrap();
    assert_eq!(db.rows(), 10);
    let logger = db.spawn();
    let now = block_on(logger.reader().summary(TimeRange::last(HOUR))).unwrap();
    assert_eq!(
        (
            now.dropped.buffer_full,
            now.dropped.total(),
            now.previous_dropped.total()
        ),
        (15, 15, 0)
    );
    // A later range contains the same moment.
    let later =
        TimeRange::between(ago(Duration::ZERO) + HOUR, ago(Duration::ZERO) + 3 * HOUR).unwrap();
    assert_eq!(
        block_on(logger.reader().summary(later))
            .unwrap()
            .dropped
            .total(),
        0
    );
}

#[test]
fn query_is_found_by_its_exact_text_and_by_its_group() {
    let db = TestDb::new();
    let logger = db.spawn();
    for query in ["where is it", "Where is it", "where is it?", "where is it"] {
        logger.log(no_hit_for(query));
    }
    let reader = flushed(&logger);
    let filter = FailureFilter {
        query_text: vec!["where is it".into()],
        ..FailureFilter::default()
    };
    let page = block_on(reader.list(filter, PageRequest::newest(10))).unwrap();
    assert_eq!(queries(&page.failures), ["where is it"; 2]);
    let filter = FailureFilter {
        similar_to: vec!["where is IT".into()],
        ..FailureFilter::default()
    };
    let page = block_on(reader.list(filter, PageRequest::newest(10))).unwrap();
    assert_eq!(page.failures.len(), 4, "similar queries");
    // The page tells if there may be more, however short its time.
    let page = block_on(reader.list(
        FailureFilter::default(),
        PageRequest::newest(1).time_budget(Duration::ZERO),
    ))
    .unwrap();
    assert!(page.failures.len() == 1 && page.older.is_some());
}

#[test]
fn conversations_are_listed_by_their_failures() {
    let db = TestDb::new();
    let logger = db.spawn();
    for (conversation, failures) in [("quiet", 1), ("loud", 3)] {
        for turn in 0..failures {
            logger.log(RetrievalFailureRecord {
                conversation_id: Some(conversation.into()),
                ..no_hit(turn)
            });
        }
    }
    logger.log(no_hit(0));
    let found = block_on(flushed(&logger).conversations(TimeRange::last(HOUR), 10)).unwrap();
    let names: Vec<_> = found
        .conversations
        .iter()
        .map(|conversation| (conversation.conversation_id.as_str(), conversation.failures))
        .collect();
    assert_eq!(names, [("loud", 3), ("quiet", 1)]);
    assert_eq!(found.scanned.failures, 5);
}

#[test]
fn calibration_maps_thresholds_to_rates_and_rates_to_thresholds() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("semantic").confidence_threshold(0.3);
    for nth in 1..=80 {
        let result: Result<_, std::io::Error> = Ok([nth as f32 / 100.0]);
        monitor.record(monitor.judge("q", &result, Duration::from_millis(1)));
    }
    for _ in 0..20 {
        monitor.record(Outcome::failure(
            RetrievalFailureType::NoHit,
            "q",
            Duration::from_millis(1),
        ));
    }
    // Failures without a monitor change nothing.
    logger.log(no_hit(1));
    let calibration =
        block_on(flushed(&logger).calibration("semantic", TimeRange::last(HOUR))).unwrap();
    assert_eq!(
        (calibration.attempts, calibration.certain_failures),
        (100, 20)
    );
    assert_eq!(calibration.confidence_threshold, Some(0.3));
    assert_eq!(
        calibration.failure_rate,
        Some(0.49),
        "29 scores are below 0.3"
    );
    for (threshold, rate) in [
        (0.0, 0.2),
        (0.105, 0.3),
        (0.305, 0.5),
        (0.505, 0.7),
        (1.0, 1.0),
    ] {
        let estimate = calibration.failure_rate_at(threshold).unwrap();
        assert!((estimate - rate).abs() <= 0.011, "{threshold}: {estimate}");
    }
    assert_eq!(
        calibration.threshold_for(0.1),
        None,
        "20 % fail at any threshold"
    );
    let threshold = calibration.threshold_for(0.5).unwrap();
    assert!((threshold - 0.31).abs() <= 0.004, "{threshold}");
    let counted: u64 = calibration
        .distribution
        .iter()
        .map(|bucket| bucket.successes + bucket.failures)
        .sum();
    assert_eq!(counted, 80);
    assert!((50..=52).contains(&calibration.distribution.len()));
    // The configured threshold separates what it has judged.
    let threshold = f64::from(0.3_f32);
    assert!(
        calibration
            .distribution
            .iter()
            .any(|bucket| bucket.from == threshold)
    );
    for bucket in &calibration.distribution {
        let wrong = if bucket.from < threshold {
            bucket.successes
        } else {
            bucket.failures
        };
        assert_eq!(wrong, 0, "{bucket:?}");
    }
    for (at, failing, passing) in [(threshold, 0, 0), (0.405, 11, 0), (0.205, 0, 9)] {
        let changes = calibration.changes_at(at);
        assert!(
            changes.newly_failing.abs_diff(failing) <= 1
                && changes.newly_passing.abs_diff(passing) <= 1,
            "{at}: {changes:?}"
        );
    }
    assert!(
        calibration
            .curve
            .windows(2)
            .all(|pair| pair[0].failure_rate <= pair[1].failure_rate)
    );
    let none = block_on(
        logger
            .reader()
            .calibration("unknown", TimeRange::last(HOUR)),
    )
    .unwrap();
    assert_eq!(
        (
            none.attempts,
            none.failure_rate_at(0.5),
            none.threshold_for(0.5)
        ),
        (0, None, None)
    );
}

#[test]
fn threshold_for_a_rate_never_gives_more_than_that_rate() {
    let scores: [&[f32]; 8] = [
        &[1.0; 100],
        &[0.7; 100],
        &[-0.3; 100],
        &[0.0; 100],
        &[0.5],
        &[-4.0, -4.0, -1.0, 0.0, 0.1, 0.1, 0.1, 7.0],
        &[12.5, 13.0, 13.0, 13.0, 40.0],
        &[0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99],
    ];
    for direction in [
        ScoreDirection::HigherIsBetter,
        ScoreDirection::LowerIsBetter,
    ] {
        for (nth, scores) in scores.iter().enumerate() {
            let db = TestDb::new();
            let logger = db.spawn();
            let monitor = logger.strategy("s").score_direction(direction);
            for score in *scores {
                monitor.record(Outcome::success(Duration::ZERO).top_score(*score));
            }
            let calibration =
                block_on(flushed(&logger).calibration("s", TimeRange::last(HOUR))).unwrap();
            for wanted in [0.0, 0.05, 0.2, 0.5, 0.99, 1.0] {
                let threshold = calibration.threshold_for(wanted).unwrap() as f32;
                let missed = scores.iter().filter(|score| match direction {
                    ScoreDirection::HigherIsBetter => **score < threshold,
                    ScoreDirection::LowerIsBetter => **score > threshold,
                });
                let really = missed.count() as f64 / scores.len() as f64;
                assert!(
                    really <= wanted + 1e-9,
                    "{direction:?} {nth}: {wanted} gave {threshold}, {really}"
                );
                let estimate = calibration.failure_rate_at(f64::from(threshold)).unwrap();
                assert!(
                    estimate <= wanted + 1e-9,
                    "{direction:?} {nth}: {wanted} gave {threshold}, whose rate is {estimate}"
                );
            }
        }
    }
}

#[test]
fn extreme_value_blurs_no_other_value() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("s");
    for nth in 0..1000 {
        monitor.record(
            Outcome::success(Duration::from_millis(10)).top_score(0.3 + nth as f32 / 2000.0),
        );
    }
    monitor.record(Outcome::success(Duration::MAX).top_score(f32::MAX));
    let reader = flushed(&logger);
    let latency = block_on(reader.summary(TimeRange::last(HOUR)))
        .unwrap()
        .total
        .latency_ms
        .unwrap();
    assert!((latency.p50 - 10.0).abs() < 0.1, "{latency:?}");
    let calibration = block_on(reader.calibration("s", TimeRange::last(HOUR))).unwrap();
    assert!((calibration.failure_rate_at(0.55).unwrap() - 0.5).abs() < 0.01);
}

#[test]
fn low_confidence_without_a_score_fails_at_any_threshold() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("s");
    monitor.record(Outcome::success(Duration::ZERO).top_score(0.9));
    monitor.record(Outcome::failure(
        RetrievalFailureType::LowConfidence,
        "q",
        Duration::ZERO,
    ));
    let calibration = block_on(flushed(&logger).calibration("s", TimeRange::last(HOUR))).unwrap();
    assert_eq!(
        (calibration.failure_rate, calibration.failure_rate_at(0.5)),
        (Some(0.5), Some(0.5))
    );
}

#[test]
fn range_of_any_length_and_date_has_at_most_the_promised_points() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("s");
    monitor.record(Outcome::success(Duration::ZERO));
    logger.log_at(no_hit(1), SystemTime::UNIX_EPOCH + 4_000_000 * DAY);
    let reader = flushed(&logger).timeout(Duration::MAX);
    for range in [
        TimeRange::all(),
        TimeRange::last(Duration::MAX),
        TimeRange::last(365_000 * DAY),
        TimeRange::last(100 * 365 * DAY),
        TimeRange::between(
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + 3_000_000 * DAY,
        )
        .unwrap(),
    ] {
        let series = block_on(reader.timeseries(range, Vec::new())).unwrap();
        assert!(
            series.points.len() <= 201,
            "{range:?}: {}",
            series.points.len()
        );
        assert_eq!(
            block_on(reader.summary(range)).unwrap().total.successes,
            1,
            "{range:?}"
        );
        block_on(reader.calibration("s", range)).unwrap();
    }
    let ahead =
        TimeRange::between(SystemTime::now() + 2 * DAY, SystemTime::now() + 3 * DAY).unwrap();
    assert_eq!(block_on(reader.summary(ahead)).unwrap().total.attempts, 0);
    let page = block_on(reader.list(FailureFilter::default(), PageRequest::newest(5))).unwrap();
    assert_eq!(
        page.failures.len(),
        1,
        "a list without a range has every failure"
    );
}

#[test]
fn previous_range_neither_overlaps_nor_differs_in_length() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger.strategy("s");
    let now = SystemTime::now();
    // The log has one failure an hour, for 20 days.
    for hours in 0..480 {
        monitor.record(Outcome::success(Duration::ZERO).at(now - hours * HOUR));
    }
    let reader = flushed(&logger);
    for (from, to) in [
        (60 * DAY, Duration::ZERO),
        (8 * DAY, 4 * DAY),
        (7 * DAY - 90 * MINUTE, 6 * DAY),
        (6 * HOUR, HOUR),
    ] {
        let range = TimeRange::between(now - from, now - to).unwrap();
        let summary = block_on(reader.summary(range)).unwrap();
        // The summary has one attempt for each hour of its range.
        let hours = summary
            .range
            .to()
            .duration_since(summary.range.from())
            .unwrap()
            .as_secs()
            .div_ceil(3600)
            .min(480);
        assert!(
            summary.total.attempts.abs_diff(hours) <= 1,
            "{from:?} {to:?}: {summary:?}"
        );
        assert!(
            summary.total.attempts + summary.previous.attempts <= 480,
            "none is counted twice"
        );
        if from < 10 * DAY {
            assert!(
                summary.total.attempts.abs_diff(summary.previous.attempts) <= 1,
                "{from:?}: {summary:?}"
            );
        }
    }
}

#[test]
fn cursors_of_every_page_are_accepted_as_text() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(1));
    let reader = flushed(&logger);
    let filter = FailureFilter {
        range: Some(TimeRange::last(HOUR)),
        text: Some("absent".into()),
        ..Default::default()
    };
    let beginning = block_on(reader.list(FailureFilter::default(), PageRequest::newest(1)))
        .unwrap()
        .newer
        .unwrap();
    for request in [
        PageRequest::newest(5),
        PageRequest::older_than(beginning, 5),
        PageRequest::newer_than(beginning, 5),
    ] {
        let page = block_on(reader.list(filter.clone(), request)).unwrap();
        for cursor in [page.older, page.newer].into_iter().flatten() {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }
}

#[test]
fn calibration_of_distances_runs_in_reverse() {
    let db = TestDb::new();
    let logger = db.spawn();
    let monitor = logger
        .strategy("vector")
        .score_direction(ScoreDirection::LowerIsBetter)
        .confidence_threshold(0.5);
    for nth in 1..=100 {
        let result: Result<_, std::io::Error> = Ok([nth as f32 / 100.0]);
        monitor.record(monitor.judge("q", &result, Duration::from_millis(1)));
    }
    let calibration =
        block_on(flushed(&logger).calibration("vector", TimeRange::last(HOUR))).unwrap();
    assert_eq!(calibration.score_direction, ScoreDirection::LowerIsBetter);
    assert_eq!(calibration.failure_rate, Some(0.5));
    assert!((calibration.failure_rate_at(0.805).unwrap() - 0.2).abs() <= 0.011);
    assert!((calibration.threshold_for(0.2).unwrap() - 0.8).abs() <= 0.01);
}

fn exported(reader: &FailureReader, filter: FailureFilter, format: ExportFormat) -> String {
    let mut export = reader.export(filter, format);
    let mut text = Vec::new();
    while let Some(chunk) = block_on(export.next_chunk()).unwrap() {
        text.extend(chunk);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn export_has_every_failure_once_oldest_first() {
    let db = TestDb::new();
    let logger = db.spawn();
    for turn in 0..2500 {
        logger.log(no_hit(turn));
    }
    let reader = flushed(&logger);
    let lines = exported(&reader, FailureFilter::default(), ExportFormat::JsonLines);
    let turns: Vec<i64> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["turn_index"]
                .as_i64()
                .unwrap()
        })
        .collect();
    assert_eq!(turns, (0..2500).collect::<Vec<_>>());
    let some = FailureFilter {
        text: Some("absent".into()),
        ..FailureFilter::default()
    };
    assert_eq!(exported(&reader, some, ExportFormat::JsonLines), "");
}

#[cfg(feature = "csv")]
#[test]
fn csv_export_has_one_header_however_many_chunks() {
    let db = TestDb::new();
    let logger = db.spawn();
    (0..600).for_each(|turn| _ = logger.log(no_hit(turn)));
    let reader = flushed(&logger);
    let csv = exported(&reader, FailureFilter::default(), ExportFormat::Csv);
    assert_eq!(csv.lines().count(), 601);
    assert_eq!(csv.matches("event_id").count(), 1, "one header");
    let none = FailureFilter {
        text: Some("absent".into()),
        ..FailureFilter::default()
    };
    assert!(
        exported(&reader, none, ExportFormat::Csv)
            .starts_with("\"id\",\"event_id\",\"conversation_id\"")
    );
}

#[test]
fn exported_text_is_neither_a_formula_nor_split() {
    let db = TestDb::new();
    let logger = db.spawn();
    let hostile = [
        "=cmd|' /C calc'!A0",
        "two\nlines, \"quoted\"",
        "日本🦀\u{202e}",
    ];
    for query in hostile {
        logger.log(no_hit_for(query));
    }
    let reader = flushed(&logger);
    #[cfg(feature = "csv")]
    {
        let csv = exported(&reader, FailureFilter::default(), ExportFormat::Csv);
        assert!(csv.contains(",\"'=cmd|' /C calc'!A0\","), "{csv}");
        assert!(csv.contains("\"two\nlines, \"\"quoted\"\"\""), "{csv}");
    }
    let lines = exported(&reader, FailureFilter::default(), ExportFormat::JsonLines);
    let texts: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["query_text"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(texts, hostile);
}

#[test]
fn newer_pages_have_late_failures_once_each() {
    let db = TestDb::new();
    let logger = db.spawn();
    let now = SystemTime::now();
    let log = |turn: i64, ago: u64| logger.log_at(no_hit(turn), now - Duration::from_secs(ago));
    let reader = || flushed(&logger);
    (0..10).for_each(|turn| _ = log(turn, 100 - turn.unsigned_abs()));
    let list = |page| block_on(reader().list(FailureFilter::default(), page)).unwrap();
    let turns = |page: &FailurePage| {
        page.failures
            .iter()
            .map(|failure| failure.turn_index.unwrap())
            .collect::<Vec<_>>()
    };
    let first = list(PageRequest::newest(3));
    let older = list(PageRequest::older_than(first.older.unwrap(), 3));
    assert_eq!(
        (turns(&first), turns(&older)),
        (vec![9, 8, 7], vec![6, 5, 4])
    );

    // The late failures lie between and before the seen ones; one is new.
    let late = [(20, 200), (21, 95), (22, 1), (23, 300), (24, 92)];
    late.iter().for_each(|(turn, ago)| _ = log(*turn, *ago));
    let newer = list(PageRequest::newer_than(first.newer.unwrap(), 100));
    assert_eq!(
        turns(&newer),
        [22, 24, 21, 20, 23],
        "newest first, by their times"
    );
    assert!(turns(&list(PageRequest::newer_than(newer.newer.unwrap(), 100))).is_empty());

    // The cursor is that of an older page; pages of two give the same.
    let mut found = Vec::new();
    let mut page = list(PageRequest::newer_than(older.newer.unwrap(), 2));
    while !page.failures.is_empty() {
        assert!(page.failures.len() <= 2);
        found.extend(turns(&page));
        page = list(PageRequest::newer_than(page.newer.unwrap(), 2));
    }
    found.sort_unstable();
    assert_eq!(found, [7, 8, 9, 20, 21, 22, 23, 24]);

    // A filter applies to them, too.
    let filter = FailureFilter {
        range: Some(TimeRange::between(now - Duration::from_secs(250), now).unwrap()),
        ..Default::default()
    };
    let newer = block_on(reader().list(filter, PageRequest::newer_than(first.newer.unwrap(), 100)))
        .unwrap();
    assert_eq!(turns(&newer), [22, 24, 21, 20]);
}
