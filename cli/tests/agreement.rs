//! The library, the API, the command line, the metrics and the rules of contrib/ have the same
//! rate.

mod common;

use std::process::Command;
use std::time::Duration;

use common::binary::{Service, command, exchange};
use common::{TestDb, block_on};
use failure_logger::{FailureReader, TimeRange};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Attempts by strategy: failures logged alone, successes, observed failures, cancelled attempts,
/// attempts with an unknown outcome.
const STRATEGIES: [(&str, [u64; 5]); 7] = [
    ("both", [1, 1, 0, 0, 0]),
    ("alone", [5, 0, 0, 0, 0]),
    ("observed", [0, 30, 10, 7, 0]),
    ("outage", [0, 0, 4, 0, 0]),
    ("mixed", [3, 8, 1, 1, 2]),
    ("without_documents", [0, 0, 2, 0, 9]),
    ("unknown", [0, 0, 0, 0, 3]),
];

/// Returns the rate by its definition: failures over all known attempts. Returns `None` if only
/// failures were reported, or if unknown outcomes hide the successes.
fn expected([alone, successes, failed, cancelled, unknown]: [u64; 5]) -> Option<f64> {
    let attempts = alone + successes + failed;
    let is_biased = successes == 0 && unknown > 0;
    (successes + failed + cancelled > 0 && !is_biased)
        .then(|| (alone + failed) as f64 / attempts as f64)
}

/// Returns the value of each sample of a metric, by its labels.
fn samples(metrics: &str, name: &str) -> Vec<(String, f64)> {
    let sample = |line: &str| {
        let (labels, value) = line
            .strip_prefix(name)?
            .strip_prefix('{')?
            .split_once("} ")?;
        Some((labels.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(sample).collect()
}

/// Returns the rate of `strategy` by the expressions of contrib/.
fn rate_by_prometheus(metrics: &str, strategy: &str) -> Option<f64> {
    let of_strategy = format!("strategy=\"{strategy}\"");
    let attempts = samples(metrics, "failure_logger_attempts_total");
    let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        let found = attempts
            .iter()
            .filter(|(labels, _)| labels.contains(&of_strategy) && wanted(labels));
        found.map(|(_, value)| value).sum()
    };
    let failed = |labels: &str| {
        ["no_hit", "low_confidence", "timeout", "error"]
            .iter()
            .any(|kind| labels.contains(&format!("outcome=\"{kind}\"")))
    };
    let has_rate = samples(metrics, "failure_logger_strategy_has_rate");
    let has_rate = has_rate
        .iter()
        .any(|(labels, value)| *labels == of_strategy && *value == 1.0);
    has_rate.then(|| {
        sum(&failed)
            / sum(&|labels| {
                !["cancelled", "unknown"]
                    .iter()
                    .any(|kind| labels.contains(&format!("outcome=\"{kind}\"")))
            })
    })
}

#[test]
fn failure_rate_is_the_same_in_every_output() {
    // The expressions below have these values.
    for (page, expressions) in [
        (include_str!("../../contrib/alerts.yml"), 1),
        (include_str!("../../contrib/grafana.json"), 2),
    ] {
        let page = page.replace("\\\"", "\"");
        assert_eq!(
            page.matches("outcome=~\"no_hit|low_confidence|timeout|error\"}")
                .count(),
            expressions
        );
        assert_eq!(
            page.matches("outcome!~\"cancelled|unknown\"}").count(),
            expressions + usize::from(expressions == 1)
        );
        assert_eq!(
            page.matches("failure_logger_strategy_has_rate").count(),
            expressions
        );
    }
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "retention_days=0"]);
    let mut lines = Vec::new();
    for (strategy, [alone, successes, failed, cancelled, unknown]) in STRATEGIES {
        let line = |name: &str, value: &str| {
            json!({name: value, "retrieval_strategy": strategy, "query_text": "q"}).to_string()
        };
        for (name, value, count) in [
            ("failure_type", "no_hit", alone),
            ("outcome", "success", successes),
            ("outcome", "timeout", failed),
            ("outcome", "cancelled", cancelled),
            ("outcome", "unknown", unknown),
        ] {
            (0..count).for_each(|_| lines.push(line(name, value)));
        }
    }
    let body = lines.join("\n");
    let post = format!(
        "POST /v1/attempts HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/x-ndjson\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    assert!(
        exchange(&service.url, &post)
            .unwrap()
            .contains("\"rejected\":0")
    );
    let get = |path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        exchange(&service.url, &request)
            .unwrap()
            .split_once("\r\n\r\n")
            .unwrap()
            .1
            .to_owned()
    };
    let summary = || -> Value { serde_json::from_str(&get("/v1/summary?since=1h")).unwrap() };
    common::eventually("all attempts", || summary()["total"]["attempts"] == 65);

    let stats = |command: &mut Command| -> Vec<Value> {
        let output = command.output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let from_file = stats(&mut command(&db, &["stats", "--format", "jsonl"]));
    let from_service = stats(&mut command(
        &db,
        &["stats", "--format", "jsonl", "--url", &service.url],
    ));
    let (summary, metrics) = (summary(), get("/metrics"));
    let reader = FailureReader::open(db.path());
    let read = block_on(reader.summary(TimeRange::last(HOUR))).unwrap();
    for (strategy, counts) in STRATEGIES {
        let expected = expected(counts);
        let rate = |list: &[Value]| {
            list.iter()
                .find(|row| row["retrieval_strategy"] == strategy)
                .expect(strategy)["rates"]["failure_rate"]
                .as_f64()
        };
        let series: Value = serde_json::from_str(&get(&format!(
            "/v1/timeseries?since=1h&retrieval_strategy={strategy}"
        )))
        .unwrap();
        let points = series["points"].as_array().unwrap();
        let sum = |name: &str| {
            points
                .iter()
                .map(|point| point[name].as_u64().unwrap())
                .sum::<u64>() as f64
        };
        let has_rate = points.iter().any(|point| point["failure_rate"].is_f64());
        let by_library = read
            .strategies
            .iter()
            .find(|row| row.retrieval_strategy == strategy)
            .unwrap()
            .rates
            .failure_rate;
        for (place, said) in [
            ("summary", rate(summary["strategies"].as_array().unwrap())),
            ("library", by_library),
            (
                "timeseries",
                has_rate.then(|| sum("failures") / sum("attempts")),
            ),
            ("stats --db", rate(&from_file)),
            ("stats --url", rate(&from_service)),
            ("Prometheus", rate_by_prometheus(&metrics, strategy)),
        ] {
            assert_eq!(said, expected, "{place}: {strategy}");
        }
        let check = command(&db, &["check", "--strategy", strategy])
            .output()
            .unwrap();
        let check = String::from_utf8(check.stdout).unwrap();
        match expected {
            Some(rate) => assert!(
                check.starts_with(&format!("{:.2} % of ", 100.0 * rate)),
                "{strategy}: {check}"
            ),
            None => {
                let [alone, .., unknown] = counts;
                let reason = if unknown > 0 {
                    format!("{unknown} attempts have an unknown outcome, and no success is known")
                } else {
                    format!("{alone} failures were logged without attempts")
                };
                assert_eq!(check, format!("no failure rate: {reason}\n"));
            }
        }
    }
    // The export has the counts themselves.
    let counts = stats(&mut command(&db, &["export", "--attempts"]));
    for (strategy, [alone, successes, failed, cancelled, _]) in STRATEGIES {
        let count = |outcome: &str, name: &str| {
            let counts = counts.iter().filter(|count| {
                count["retrieval_strategy"] == strategy && count["outcome"] == outcome
            });
            counts
                .map(|count| count[name].as_u64().unwrap())
                .sum::<u64>()
        };
        assert_eq!(
            [
                count("success", "attempts"),
                count("timeout", "attempts"),
                count("cancelled", "attempts")
            ],
            [successes, failed, cancelled]
        );
        assert_eq!(
            (count("no_hit", "attempts"), count("no_hit", "unobserved")),
            (alone, alone)
        );
    }
    let csv = command(&db, &["export", "--attempts", "--csv"])
        .output()
        .unwrap();
    assert!(
        csv.stdout
            .starts_with(b"day,retrieval_strategy,outcome,attempts,unobserved,latency_p50_ms")
    );
    // The import of failures and counts makes the same log, in both formats.
    for csv in [&[][..], &["--csv"]] {
        let copy = TestDb::new();
        for (wanted, flags) in [(&[][..], &["--without-counts"][..]), (&["--attempts"], &[])] {
            let exported = command(&db, &[&["export"][..], wanted, csv].concat())
                .output()
                .unwrap()
                .stdout;
            let mut ingest = command(&copy, &[&["ingest"][..], flags].concat());
            let mut child = ingest.stdin(std::process::Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), &exported).unwrap();
            assert!(child.wait().unwrap().success());
        }
        let count = |count: &Value| {
            [
                "day",
                "retrieval_strategy",
                "outcome",
                "attempts",
                "unobserved",
            ]
            .map(|name| count[name].clone())
        };
        let copied = stats(&mut command(&copy, &["export", "--attempts"]));
        assert_eq!(
            copied.iter().map(count).collect::<Vec<_>>(),
            counts.iter().map(count).collect::<Vec<_>>()
        );
        assert_eq!(copy.rows(), db.rows());
    }
    // After a restart, the metrics of the new process have only failures.
    service.signal("TERM");
    drop(service);
    let again = Service::new(&db, &["--set", "retention_days=0"]);
    let failure =
        json!({"failure_type": "no_hit", "retrieval_strategy": "both", "query_text": "q"})
            .to_string();
    assert!(
        exchange(&again.url, &common::binary::post(&failure))
            .unwrap()
            .contains("202")
    );
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let metrics = || exchange(&again.url, request).unwrap();
    common::eventually("the failure", || {
        rate_by_prometheus(&metrics(), "both") == Some(1.0)
    });
}
