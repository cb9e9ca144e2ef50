//! The files under `contrib/` use only metrics that the service exports.

mod common;

use std::collections::BTreeSet;

use common::service::{JSON, Service, failure};
use failure_logger::http::HttpOptions;
use serde_json::Value;

const DASHBOARD: &str = include_str!("../contrib/grafana.json");
const ALERTS: &str = include_str!("../contrib/alerts.yml");
const ALERTS_TEST: &str = include_str!("../contrib/alerts_test.yml");

/// Suffixes of the samples of a histogram.
const OF_A_HISTOGRAM: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Returns the metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part_of_a_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let is_metric =
        |word: &&str| word.starts_with("failure_logger_") || word.starts_with("process_");
    text.split(|character| !is_part_of_a_name(character))
        .filter(is_metric)
        .collect()
}

/// Returns the alerts of a file of rules or of their tests, in the order of their lines.
fn alerts<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let name = |line: &'a str| {
        line.trim()
            .trim_start_matches("- ")
            .strip_prefix(key)?
            .strip_prefix(": ")
    };
    text.lines().filter_map(name).collect()
}

#[actix_web::test]
async fn dashboard_and_alerts_use_metrics_that_exist() {
    let service = Service::new(HttpOptions::default());
    service
        .post("/v1/failures", JSON, failure("q").to_string())
        .await;
    service.flush().await;
    let (_, metrics) = service.read("/metrics").await;
    // The names are those of samples: with _total, _bucket, _sum and _count.
    let samples = metrics
        .as_str()
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('#'));
    let exported: BTreeSet<&str> = samples
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (text, least) in [(DASHBOARD, 14), (ALERTS, 5)] {
        let used = named(text);
        assert!(used.len() >= least, "{used:?}");
        let missing: Vec<_> = used.difference(&exported).collect();
        assert!(
            missing.is_empty(),
            "{missing:?} are missing in {exported:?}"
        );
    }
    // The dashboard shows each metric, and one of the samples of each histogram.
    let shown = named(DASHBOARD);
    let is_shown = |name: &str| {
        let histogram = OF_A_HISTOGRAM
            .iter()
            .find_map(|ending| name.strip_suffix(ending));
        let is_sample = |base: &str| {
            OF_A_HISTOGRAM
                .iter()
                .any(|ending| shown.contains(format!("{base}{ending}").as_str()))
        };
        shown.contains(name) || histogram.is_some_and(is_sample)
    };
    let unseen: Vec<_> = exported.iter().filter(|name| !is_shown(name)).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn each_alert_is_tested_silent_and_firing() {
    let rules = alerts(ALERTS, "alert");
    assert!(rules.len() >= 9, "{rules:?}");
    let tested = alerts(ALERTS_TEST, "alertname");
    for rule in rules {
        assert_eq!(
            tested.iter().filter(|name| **name == rule).count(),
            2,
            "{rule}"
        );
    }
}

#[test]
fn sums_keep_the_instance_and_the_job() {
    for text in [DASHBOARD, ALERTS] {
        for sum in text
            .split("sum")
            .skip(1)
            .filter(|rest| rest.starts_with([' ', '(']))
        {
            assert!(
                sum.starts_with(" by (instance, job"),
                "sum{}",
                sum.lines().next().unwrap()
            );
        }
    }
}

#[test]
fn dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert_eq!(dashboard["__inputs"][0]["name"], "DS_PROMETHEUS");
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for of in targets.iter().chain([panel]) {
            assert_eq!(of["datasource"]["uid"], "${DS_PROMETHEUS}", "{panel}");
        }
    }
}
