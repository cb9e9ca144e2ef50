//! Traces of OpenTelemetry over HTTP: what real instrumentations send, and what nobody should.

mod common;

use async_compression::tokio::write::{GzipEncoder, ZlibEncoder};
use awc::http::{Method, StatusCode};
use common::service::{JSON, Service, response};
use common::{Lock, TestDb};
use failure_logger::http::{HttpOptions, Scope, TraceRule};
use failure_logger::{FailureReader, TimeRange};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const PROTOBUF: &str = "application/x-protobuf";
const PATH: &str = "/v1/traces";

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/otlp/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).expect("a fixture")
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

/// A response: its status, its media type, and its body.
async fn send(
    service: &Service,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (StatusCode, String, Vec<u8>) {
    let mut request = service.request(Method::POST, PATH);
    for (name, value) in headers {
        request = request.insert_header((*name, *value));
    }
    let mut response = request.send_body(body).await.expect("a response");
    let media_type = response.headers().get("content-type");
    let media_type = media_type.map_or(String::new(), |it| it.to_str().unwrap().to_owned());
    let body = response.body().limit(1 << 20).await.expect("a body");
    (response.status(), media_type, body.to_vec())
}

/// Sends protobuf that is accepted. Returns the response.
async fn accepted(service: &Service, body: Vec<u8>) -> ExportTraceServiceResponse {
    let (status, media_type, body) = send(service, &[("content-type", PROTOBUF)], body).await;
    assert_eq!((status, &*media_type), (StatusCode::OK, PROTOBUF));
    ExportTraceServiceResponse::decode(&*body).expect("a response of the protocol")
}

/// A retriever span that ended now, without a parent, with these documents' scores.
fn retriever(id: u64, query: &str, scores: &[f64]) -> Span {
    let attribute = |key: String, value| KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    };
    let text = |text: &str| any_value::Value::StringValue(text.into());
    let mut attributes = vec![
        attribute("input.value".into(), text(query)),
        attribute("openinference.span.kind".into(), text("RETRIEVER")),
    ];
    attributes.extend(scores.iter().enumerate().map(|(index, score)| {
        let key = format!("retrieval.documents.{index}.document.score");
        attribute(key, any_value::Value::DoubleValue(*score))
    }));
    if scores.is_empty() {
        attributes.push(attribute("output.value".into(), text("[]")));
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ended_at = u64::try_from(now.as_nanos()).unwrap();
    Span {
        trace_id: vec![9; 16],
        span_id: id.to_be_bytes().into(),
        name: "VectorIndexRetriever.retrieve".into(),
        start_time_unix_nano: ended_at - 12_000_000,
        end_time_unix_nano: ended_at,
        attributes,
        ..Span::default()
    }
}

fn body(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans {
        spans,
        ..ScopeSpans::default()
    }];
    let request = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans,
            ..ResourceSpans::default()
        }],
    };
    request.encode_to_vec()
}

/// A service that accepts the fixtures, whatever the date.
fn service_of_any_age(options: HttpOptions) -> Service {
    let db = TestDb::new();
    let logger = common::spawn(db.config().retention_days(0).attempts_retention_days(0));
    Service::of(db, logger, options)
}

async fn total(service: &Service) -> Value {
    service.flush().await;
    let (_, summary) = service.read("/v1/summary?from=1970-01-01T00:00:00Z").await;
    summary["total"].clone()
}

async fn traces_of_stats(service: &Service) -> Value {
    service.read("/v1/stats").await.1["traces"].clone()
}

#[actix_web::test]
async fn retrievals_of_a_trace_are_counted_and_failures_are_logged() {
    let rule = TraceRule {
        confidence_threshold: Some(0.5),
        name: Some("semantic".into()),
        ..TraceRule::default()
    };
    let service = Service::new(HttpOptions::default().trace_rule(rule).unwrap());
    let spans = vec![
        retriever(1, "found", &[0.1, 0.9]),
        retriever(2, "too far", &[0.2, 0.3]),
        retriever(3, "nothing", &[]),
    ];
    let response = accepted(&service, body(spans)).await;
    assert_eq!(response.partial_success, None);
    let total = total(&service).await;
    assert_eq!(
        (&total["attempts"], &total["failures"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(
        total["latency_ms"]["p50"].as_f64().map(f64::round),
        Some(12.0)
    );
    let (_, page) = service.read("/v1/failures").await;
    let mut failures: Vec<_> = page["data"].as_array().unwrap().iter().collect();
    failures.sort_by_key(|failure| failure["query_text"].as_str());
    let of = |failure: &Value| {
        json!([
            failure["failure_type"],
            failure["retrieval_strategy"],
            failure["query_text"],
            failure["result_count"],
            failure["confidence_threshold"],
            failure["latency_ms"]
        ])
    };
    assert_eq!(
        of(failures[0]),
        json!(["no_hit", "semantic", "nothing", 0, 0.5, 12])
    );
    assert_eq!(
        of(failures[1]),
        json!(["low_confidence", "semantic", "too far", 2, 0.5, 12])
    );
    assert_eq!(
        failures[1]["top_score"].as_f64().map(|score| score as f32),
        Some(0.3)
    );
}

#[actix_web::test]
async fn repeated_export_is_harmless() {
    let service = Service::new(HttpOptions::default());
    let spans = || body(vec![retriever(1, "q", &[]), retriever(2, "q", &[0.4])]);
    let export = spans();
    for _ in 0..3 {
        accepted(&service, export.clone()).await;
    }
    let total = total(&service).await;
    assert_eq!(
        (&total["attempts"], &total["failures"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(service.db.rows(), 1);
    let traces = traces_of_stats(&service).await;
    let counts = json!([traces["spans"], traces["retrievals"], traces["duplicates"]]);
    assert_eq!(counts, json!([6, 2, 4]));
}

#[actix_web::test]
async fn what_waits_for_its_parent_is_counted_by_a_shutdown() {
    let service = service_of_any_age(HttpOptions::default());
    let mut orphan = retriever(1, "waits", &[]);
    orphan.parent_span_id = vec![5; 8];
    accepted(&service, body(vec![orphan])).await;
    let traces = traces_of_stats(&service).await;
    assert_eq!(
        json!([traces["waiting"], traces["retrievals"]]),
        json!([1, 0])
    );
    assert_eq!(service.db.rows(), 0);
    let report = service.logger.shutdown().await.expect("a shutdown");
    assert_eq!((report.stats.received, report.stats.persisted), (1, 1));
    assert_eq!(service.db.rows(), 1);
}

#[actix_web::test]
async fn span_within_a_retriever_is_a_part_in_either_order() {
    let service = Service::new(HttpOptions::default());
    let within = |id: u64, parent: u64| {
        let mut inner = retriever(id, "q", &[0.4]);
        inner.parent_span_id = parent.to_be_bytes().into();
        inner
    };
    accepted(&service, body(vec![within(2, 1)])).await;
    accepted(&service, body(vec![retriever(1, "q", &[0.4])])).await;
    accepted(&service, body(vec![within(3, 1)])).await;
    let traces = traces_of_stats(&service).await;
    let counts = json!([traces["retrievals"], traces["parts"], traces["waiting"]]);
    assert_eq!(counts, json!([1, 2, 0]));
}

#[actix_web::test]
async fn traces_of_real_applications_are_classified() {
    // Without a threshold, a low score is a success. Qdrant's spans have no documents.
    let expected = [
        ("llamaindex-openinference.pb", 3, 1, 0),
        ("langchain-genai.pb", 3, 1, 0),
        ("langchain-openinference.json", 3, 1, 0),
        ("qdrant-openllmetry.pb", 0, 0, 4),
    ];
    for (name, successes, no_hits, unknown) in expected {
        let service = service_of_any_age(HttpOptions::default());
        if name.ends_with("json") {
            let json = String::from_utf8(fixture(name)).unwrap();
            let (status, said) = service.post(PATH, JSON, json).await;
            assert_eq!((status, said), (StatusCode::OK, json!({})));
        } else {
            accepted(&service, fixture(name)).await;
        }
        let report = service.logger.shutdown().await.expect("a shutdown");
        assert!(report.stats.is_balanced());
        let reader = FailureReader::open(service.db.path());
        let total = reader
            .summary(TimeRange::all())
            .await
            .expect("a summary")
            .total;
        let types = total
            .types
            .map(|of| (of.failure_type.as_str(), of.failures));
        let of_six = [
            ("no_hit", no_hits),
            ("low_confidence", 0),
            ("timeout", 1),
            ("error", 1),
        ];
        assert_eq!(types, of_six, "{name}");
        assert_eq!(
            (total.successes, total.unknown),
            (successes, unknown),
            "{name}"
        );
    }
}

#[actix_web::test]
async fn unknown_outcome_is_in_no_rate_and_the_sender_learns_the_cure() {
    let service = Service::new(HttpOptions::default());
    let mut silent = retriever(1, "q", &[0.5]);
    silent.attributes.truncate(2);
    let response = accepted(&service, body(vec![silent])).await;
    let partial = response.partial_success.expect("a warning");
    assert_eq!(partial.rejected_spans, 0);
    assert!(
        partial.error_message.contains("content capture"),
        "{partial:?}"
    );
    let total = total(&service).await;
    let counts = json!([total["attempts"], total["unknown"], total["failure_rate"]]);
    assert_eq!(counts, json!([0, 1, null]));
}

#[actix_web::test]
async fn rule_ignores_and_changes_without_a_restart() {
    let options = HttpOptions::default();
    let service = Service::new(options.clone());
    let ignore = TraceRule {
        source: Some("unknown_service".into()),
        ignore: true,
        ..TraceRule::default()
    };
    let changed = HttpOptions::default().trace_rule(ignore).unwrap();
    options.replace_rules(&changed);
    accepted(&service, body(vec![retriever(1, "q", &[])])).await;
    options.replace_rules(&HttpOptions::default());
    accepted(&service, body(vec![retriever(2, "q", &[])])).await;
    assert_eq!(total(&service).await["attempts"], 1);
    assert_eq!(traces_of_stats(&service).await["ignored"], 1);
}

#[actix_web::test]
async fn bodies_may_be_compressed_and_have_several_members() {
    let service = Service::new(HttpOptions::default());
    // Messages of protobuf merge if they are concatenated.
    let two = [
        gzip(&body(vec![retriever(1, "q", &[])])).await,
        gzip(&body(vec![retriever(2, "q", &[])])).await,
    ];
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    assert_eq!(
        send(&service, &headers, two.concat()).await.0,
        StatusCode::OK
    );
    let mut encoder = ZlibEncoder::new(Vec::new());
    let third = body(vec![retriever(3, "q", &[])]);
    encoder.write_all(&third).await.unwrap();
    encoder.shutdown().await.unwrap();
    let headers = [("content-type", PROTOBUF), ("content-encoding", "deflate")];
    let sent = send(&service, &headers, encoder.into_inner()).await;
    assert_eq!(sent.0, StatusCode::OK);
    assert_eq!(total(&service).await["attempts"], 3);

    let headers = [("content-type", PROTOBUF), ("content-encoding", "br")];
    let (status, media_type, said) = send(&service, &headers, vec![1]).await;
    assert_eq!(
        (status, &*media_type),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, PROTOBUF)
    );
    assert!(String::from_utf8_lossy(&said).contains("gzip"));
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    let plain = send(&service, &headers, body(vec![retriever(4, "q", &[])])).await;
    assert_eq!(plain.0, StatusCode::BAD_REQUEST);
}

#[actix_web::test]
async fn bomb_is_rejected_without_its_memory() {
    let service = Service::new(HttpOptions::default());
    // An unknown field that claims 128 MiB, which the reader skips as it arrives.
    let mut bomb = vec![0x7a, 0x80, 0x80, 0x80, 0x40];
    bomb.resize(128 << 20, 0);
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    let (status, _, said) = send(&service, &headers, gzip(&bomb).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(String::from_utf8_lossy(&said).contains("67108864 bytes"));
}

#[actix_web::test]
async fn error_has_the_encoding_of_its_request() {
    let service = Service::new(HttpOptions::default());
    let valid = body(vec![retriever(1, "before", &[])]);
    let mut truncated = valid.clone();
    truncated.extend(&valid[..valid.len() - 7]);
    let (status, media_type, said) = send(&service, &[("content-type", PROTOBUF)], truncated).await;
    assert_eq!((status, &*media_type), (StatusCode::BAD_REQUEST, PROTOBUF));
    // Field 1 of `google.rpc.Status`: INVALID_ARGUMENT.
    assert_eq!(said[..2], [0x08, 3]);
    assert!(String::from_utf8_lossy(&said).contains("it ends within a field"));
    assert_eq!(
        total(&service).await["attempts"],
        1,
        "the span before the fault is counted"
    );

    let (status, said) = service.post(PATH, JSON, "{\"resourceSpans\": 7}").await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::BAD_REQUEST, &json!(3))
    );
    let (status, said) = service.post(PATH, "text/plain", "x").await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(
        said["message"]
            .as_str()
            .unwrap()
            .contains("application/x-protobuf")
    );
    let (status, said) = response(service.get(PATH).send().await).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!(12))
    );
    for (path, variable) in [
        ("/v1/metrics", "OTEL_METRICS_EXPORTER=none"),
        ("/v1/logs", "OTEL_LOGS_EXPORTER=none"),
    ] {
        let (status, said) = service.post(path, JSON, "{}").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(said["message"].as_str().unwrap().contains(variable));
    }
}

#[actix_web::test]
async fn token_is_needed_and_its_absence_is_said_in_the_encoding() {
    let token = "0123456789abcdef".parse().unwrap();
    let service = Service::new(HttpOptions::default().token("app", token, [Scope::Ingest]));
    let headers = [("content-type", PROTOBUF)];
    let (status, media_type, said) = send(&service, &headers, Vec::new()).await;
    assert_eq!((status, &*media_type), (StatusCode::UNAUTHORIZED, PROTOBUF));
    assert_eq!(said[..2], [0x08, 16]);
    let headers = [
        ("content-type", PROTOBUF),
        ("authorization", "Bearer 0123456789abcdef"),
    ];
    assert_eq!(send(&service, &headers, Vec::new()).await.0, StatusCode::OK);
}

#[actix_web::test]
async fn full_buffer_is_503_and_a_retry_loses_nothing() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(4).batch_size(1));
    let service = Service::of(db, logger, HttpOptions::default());
    let lock = Lock::new(&service.db);
    let export = body((1..=20).map(|id| retriever(id, "q", &[])).collect());
    let (status, _, said) = send(&service, &[("content-type", PROTOBUF)], export.clone()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(said[..2], [0x08, 14]);
    drop(lock);
    accepted(&service, export).await;
    let report = service.logger.shutdown().await.expect("a shutdown");
    assert!(report.stats.is_balanced());
    assert_eq!(service.db.rows(), 20);
}

#[actix_web::test]
async fn retrieval_that_found_no_room_is_counted_without_a_retry() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(4).batch_size(1));
    let service = Service::of(db, logger, HttpOptions::default());
    let lock = Lock::new(&service.db);
    let export = body((1..=20).map(|id| retriever(id, "q", &[])).collect());
    let (status, _, _) = send(&service, &[("content-type", PROTOBUF)], export).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(traces_of_stats(&service).await["waiting"], 1);
    drop(lock);
    let counted = async {
        while traces_of_stats(&service).await["waiting"] != 0 {
            tokio::task::yield_now().await;
        }
    };
    let timeout = std::time::Duration::from_secs(20);
    let result = actix_web::rt::time::timeout(timeout, counted).await;
    assert!(result.is_ok(), "it still waits");
}

#[actix_web::test]
async fn odd_times_do_not_cost_a_retrieval() {
    let service = service_of_any_age(HttpOptions::default());
    let mut backwards = retriever(1, "ends before it begins", &[]);
    backwards.start_time_unix_nano = backwards.end_time_unix_nano + 1;
    let mut old = retriever(2, "1970", &[]);
    (old.start_time_unix_nano, old.end_time_unix_nano) = (1, 1_000_001);
    let mut far = retriever(3, "2100", &[]);
    far.end_time_unix_nano = 4_102_444_800_000_000_000;
    far.start_time_unix_nano = far.end_time_unix_nano;
    accepted(&service, body(vec![backwards, old, far])).await;
    service.flush().await;
    // A report goes back a number of years only.
    assert_eq!(service.db.attempts(), 3);
    let (_, page) = service.read("/v1/failures?from=1970-01-01T00:00:00Z").await;
    let latency = |query: &str| {
        let failures = page["data"].as_array().unwrap();
        let failure = failures
            .iter()
            .find(|it| it["query_text"] == query)
            .unwrap();
        failure["latency_ms"].clone()
    };
    assert_eq!(latency("ends before it begins"), json!(null));
    assert_eq!(latency("1970"), 1);
    assert_eq!(service.logger.stats().redated, 1);
}
