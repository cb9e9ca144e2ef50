//! All reports agree about the same failures, also about those dated ahead of the clock.

mod common;

use std::time::{Duration, SystemTime};

use common::{TestDb, block_on};
use failure_logger::{
    ExportFormat, FailureFilter, FailureReader, LoggerHandle, Outcome, PageRequest, QueryFilter,
    RetrievalFailureRecord, RetrievalFailureType, TimeRange,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One failure through each way in, in a conversation.
fn fail_at(logger: &LoggerHandle, at: SystemTime) {
    let record = RetrievalFailureRecord {
        conversation_id: Some("c".into()),
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "logged", "where is the key?")
    };
    logger.log_at(record, at);
    let failed = Outcome::failure(RetrievalFailureType::LowConfidence, "where is the key?", MINUTE).top_score(0.5);
    logger.strategy("observed").conversation("c").record(failed.at(at));
}

/// Counts the failures that each report finds in `range`.
fn found(reader: &FailureReader, range: TimeRange) -> [(&'static str, u64); 8] {
    let filter = || FailureFilter { range: Some(range), ..FailureFilter::default() };
    let page = block_on(reader.list(filter(), PageRequest::newest(100))).unwrap();
    let position = block_on(reader.follow(filter(), None, 1)).unwrap().position.to_string();
    let beginning = format!("{}.0", position.split('.').next().unwrap()).parse().unwrap();
    let followed = block_on(reader.follow(filter(), Some(beginning), 100)).unwrap().failures;
    let series = block_on(reader.timeseries(range, None)).unwrap();
    let groups = block_on(reader.top_queries(range, QueryFilter::default(), 10)).unwrap().groups;
    let conversations = block_on(reader.conversations(range, 10)).unwrap().conversations;
    let mut export = reader.export(filter(), ExportFormat::JsonLines);
    let mut exported = 0;
    while let Some(chunk) = block_on(export.next_chunk()).unwrap() {
        exported += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    [
        ("summary", block_on(reader.summary(range)).unwrap().total.failures),
        ("timeseries", series.points.iter().map(|point| point.failures).sum()),
        ("list", page.failures.len() as u64),
        ("follow", followed.len() as u64),
        ("groups", groups.iter().map(|group| group.count).sum()),
        ("conversations", conversations.iter().map(|conversation| conversation.failures).sum()),
        ("export", exported),
        // Knows only what a monitor observed: half of them.
        ("calibration", 2 * block_on(reader.calibration("observed", range)).unwrap().attempts),
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
    // As rows and counts look that were written before the clock was set back by two days.
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

/// Attempts by strategy: failures that were logged alone, successes, failures that were observed, cancelled ones.
const STRATEGIES: [(&str, [u64; 4]); 5] = [
    ("both", [1, 1, 0, 0]),
    ("alone", [5, 0, 0, 0]),
    ("observed", [0, 30, 10, 7]),
    ("outage", [0, 0, 4, 0]),
    ("mixed", [3, 8, 1, 1]),
];

/// The rate by the definition: failures over all attempts that are known; none if only failures were ever reported.
fn expected([alone, successes, failed, cancelled]: [u64; 4]) -> Option<f64> {
    let attempts = alone + successes + failed;
    (successes + failed + cancelled > 0).then(|| (alone + failed) as f64 / attempts as f64)
}

/// The value of each sample of a metric, by its labels.
fn samples(metrics: &str, name: &str) -> Vec<(String, f64)> {
    let sample = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
        Some((labels.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(sample).collect()
}

/// The rate of `strategy` as the expressions of contrib/ have it.
fn by_prometheus(metrics: &str, strategy: &str) -> Option<f64> {
    let of_strategy = format!("strategy=\"{strategy}\"");
    let attempts = samples(metrics, "failure_logger_attempts_total");
    let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        let found = attempts.iter().filter(|(labels, _)| labels.contains(&of_strategy) && wanted(labels));
        found.map(|(_, value)| value).sum()
    };
    let failed = |labels: &str| {
        ["no_hit", "low_confidence", "timeout", "error"]
            .iter()
            .any(|kind| labels.contains(&format!("outcome=\"{kind}\"")))
    };
    let has_rate = samples(metrics, "failure_logger_strategy_has_rate");
    let has_rate = has_rate.iter().any(|(labels, value)| *labels == of_strategy && *value == 1.0);
    has_rate.then(|| sum(&failed) / sum(&|labels| !labels.contains("outcome=\"cancelled\"")))
}

#[cfg(feature = "cli")]
#[test]
fn one_failure_rate_is_said_everywhere() {
    use std::process::Command;

    use common::binary::{Service, command, exchange};
    use serde_json::{Value, json};

    // What the expressions below stand for.
    for (page, expressions) in
        [(include_str!("../contrib/alerts.yml"), 1), (include_str!("../contrib/grafana.json"), 2)]
    {
        let page = page.replace("\\\"", "\"");
        assert_eq!(page.matches("outcome=~\"no_hit|low_confidence|timeout|error\"}").count(), expressions);
        assert_eq!(page.matches("outcome!=\"cancelled\"}").count(), expressions + usize::from(expressions == 1));
        assert_eq!(page.matches("failure_logger_strategy_has_rate").count(), expressions);
    }
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "retention_days=0"]);
    let mut lines = Vec::new();
    for (strategy, [alone, successes, failed, cancelled]) in STRATEGIES {
        let line = |name: &str, value: &str| {
            json!({name: value, "retrieval_strategy": strategy, "query_text": "q"}).to_string()
        };
        for (name, value, count) in [
            ("failure_type", "no_hit", alone),
            ("outcome", "success", successes),
            ("outcome", "timeout", failed),
            ("outcome", "cancelled", cancelled),
        ] {
            (0..count).for_each(|_| lines.push(line(name, value)));
        }
    }
    let body = lines.join("\n");
    let post = format!(
        "POST /v1/attempts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    assert!(exchange(&service.url, &post).unwrap().contains("\"rejected\":0"));
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        exchange(&service.url, &request).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let summary = || -> Value { serde_json::from_str(&get("/v1/summary?since=1h")).unwrap() };
    common::eventually("all attempts", || summary()["total"]["attempts"] == 63);

    let stats = |command: &mut Command| -> Vec<Value> {
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let from_file = stats(&mut command(&db, &["stats", "--format", "jsonl"]));
    let from_service = stats(&mut command(&db, &["stats", "--format", "jsonl", "--url", &service.url]));
    let (summary, metrics) = (summary(), get("/metrics"));
    let reader = FailureReader::open(db.path());
    let read = block_on(reader.summary(TimeRange::last(HOUR))).unwrap();
    for (strategy, counts) in STRATEGIES {
        let expected = expected(counts);
        let rate = |list: &[Value]| {
            list.iter().find(|of| of["strategy"] == strategy).expect(strategy)["rates"]["failure_rate"].as_f64()
        };
        let series: Value =
            serde_json::from_str(&get(&format!("/v1/timeseries?since=1h&strategy={strategy}"))).unwrap();
        let points = series["points"].as_array().unwrap();
        let sum = |name: &str| points.iter().map(|point| point[name].as_u64().unwrap()).sum::<u64>() as f64;
        let has_rate = points.iter().any(|point| point["failure_rate"].is_f64());
        let by_library = read.strategies.iter().find(|of| of.strategy == strategy).unwrap().rates.failure_rate;
        for (place, said) in [
            ("summary", rate(summary["strategies"].as_array().unwrap())),
            ("library", by_library),
            ("timeseries", has_rate.then(|| sum("failures") / sum("attempts"))),
            ("stats --db", rate(&from_file)),
            ("stats --url", rate(&from_service)),
            ("Prometheus", by_prometheus(&metrics, strategy)),
        ] {
            assert_eq!(said, expected, "{place}: {strategy}");
        }
        let check = command(&db, &["check", "--strategy", strategy]).output().unwrap();
        let check = String::from_utf8(check.stdout).unwrap();
        match expected {
            Some(rate) => assert!(check.starts_with(&format!("{:.2} % of ", 100.0 * rate)), "{strategy}: {check}"),
            None => assert_eq!(check, "5 failures were logged, and no attempts: there is no rate\n"),
        }
    }
    // The counts themselves.
    let counts = stats(&mut command(&db, &["export", "--attempts"]));
    for (strategy, [alone, successes, failed, cancelled]) in STRATEGIES {
        let of = |outcome: &str, name: &str| {
            let counts =
                counts.iter().filter(|count| count["retrieval_strategy"] == strategy && count["outcome"] == outcome);
            counts.map(|count| count[name].as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(
            [of("success", "attempts"), of("timeout", "attempts"), of("cancelled", "attempts")],
            [successes, failed, cancelled]
        );
        assert_eq!((of("no_hit", "attempts"), of("no_hit", "unobserved")), (alone, alone));
    }
    let csv = command(&db, &["export", "--attempts", "--csv"]).output().unwrap();
    assert!(csv.stdout.starts_with(b"day,retrieval_strategy,outcome,attempts,unobserved,latency_p50_ms"));
    // And back: failures and counts make the same log, in both formats.
    for csv in [&[][..], &["--csv"]] {
        let copy = TestDb::new();
        for (wanted, flags) in [(&[][..], &["--without-counts"][..]), (&["--attempts"], &[])] {
            let exported = command(&db, &[&["export"][..], wanted, csv].concat()).output().unwrap().stdout;
            let mut ingest = command(&copy, &[&["ingest"][..], flags].concat());
            let mut child = ingest.stdin(std::process::Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), &exported).unwrap();
            assert!(child.wait().unwrap().success());
        }
        let count = |count: &Value| {
            ["day", "retrieval_strategy", "outcome", "attempts", "unobserved"].map(|name| count[name].clone())
        };
        let copied = stats(&mut command(&copy, &["export", "--attempts"]));
        assert_eq!(copied.iter().map(count).collect::<Vec<_>>(), counts.iter().map(count).collect::<Vec<_>>());
        assert_eq!(copy.rows(), db.rows());
    }
    // After a restart, with nothing but failures in the metrics of the new process.
    service.signal("TERM");
    drop(service);
    let again = Service::new(&db, &["--set", "retention_days=0"]);
    let failure = json!({"failure_type": "no_hit", "retrieval_strategy": "both", "query_text": "q"}).to_string();
    assert!(exchange(&again.url, &common::binary::post(&failure)).unwrap().contains("202"));
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let metrics = || exchange(&again.url, request).unwrap();
    common::eventually("the failure", || by_prometheus(&metrics(), "both") == Some(1.0));
}
