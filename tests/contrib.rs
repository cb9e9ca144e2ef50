//! What is under `contrib/` asks for nothing that the service does not tell.

mod common;

use std::collections::BTreeSet;

use common::service::{JSON, Service, failure};
use failure_logger::http::HttpOptions;
use serde_json::Value;

const DASHBOARD: &str = include_str!("../contrib/grafana.json");
const ALERTS: &str = include_str!("../contrib/alerts.yml");

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let of_a_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !of_a_name(character)).filter(|word| word.starts_with("failure_logger_")).collect()
}

#[actix_web::test]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let service = Service::new(HttpOptions::default());
    service.post("/v1/failures", JSON, failure("q").to_string()).await;
    service.flush().await;
    let (_, metrics) = service.ask("/metrics").await;
    // Names of samples: with _total, _bucket, _sum and _count.
    let samples = metrics.as_str().unwrap().lines().filter(|line| !line.starts_with('#'));
    let told: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    for (text, least) in [(DASHBOARD, 14), (ALERTS, 5)] {
        let asked = named(text);
        assert!(asked.len() >= least, "{asked:?}");
        let missing: Vec<_> = asked.difference(&told).collect();
        assert!(missing.is_empty(), "{missing:?} are not among {told:?}");
    }
    // The other way round: what is told is shown, but for what a histogram implies.
    let shown: BTreeSet<&str> = named(DASHBOARD);
    let unseen: Vec<_> = told.difference(&shown).filter(|name| !name.starts_with("failure_logger_flush_")).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert_eq!(dashboard["__inputs"][0]["name"], "DS_PROMETHEUS");
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each has an id of its own");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for of in targets.iter().chain([panel]) {
            assert_eq!(of["datasource"]["uid"], "${DS_PROMETHEUS}", "{panel}");
        }
    }
}
