//! The routes, over real HTTP: input is stored, reads get a response, and errors are named.

mod common;

use actix_web::{App, web};
use awc::http::{Method, StatusCode};
use common::TestDb;
use common::service::{JSON, LINES, Service, failure, response};
use failure_logger::http::{self, HttpOptions};
use failure_logger::{FailureLogger, LoggerHandle};
use serde_json::{Value, json};

/// Returns a service that accepts records of any age.
fn service_without_retention() -> Service {
    let db = TestDb::new();
    let logger = common::spawn(db.config().retention_days(0).attempts_retention_days(0));
    Service::of(db, logger, HttpOptions::default())
}

#[actix_web::test]
async fn failure_list_and_lines_are_stored_with_all_fields() {
    let service = service_without_retention();
    let full = json!({
        "event_id": "01890000-0000-7000-8000-000000000001", "conversation_id": 42, "turn_index": 7,
        "failure_type": "low_confidence", "retrieval_strategy": "graph", "query_text": "où est la clé?",
        "top_score": 0.25, "confidence_threshold": 0.5, "result_count": 3, "latency_ms": 12,
        "edge_types": ["knows", "likes"], "error_context": "none", "created_at": "2024-11-24T12:30:00.5+02:00",
        "source": "shop", "labels": {"version": "1.4", "index": "b"}
    });
    for _ in 0..2 {
        let (status, said) = service.post("/v1/failures", JSON, full.to_string()).await;
        assert_eq!(
            (status, &said["accepted"]),
            (StatusCode::ACCEPTED, &json!(1)),
            "{said}"
        );
    }
    let list = json!([failure("one"), failure("two")]).to_string();
    assert_eq!(
        service.post("/v1/failures", JSON, list).await.1["accepted"],
        2
    );
    let lines = format!(
        "{}\n\n{}\r\n{}",
        failure("three"),
        failure("four"),
        failure("five")
    );
    assert_eq!(
        service.post("/v1/failures", LINES, lines).await.1["accepted"],
        3
    );
    service.flush().await;
    assert_eq!(service.db.rows(), 6, "a record with an id is stored once");

    let (status, found) = service
        .read("/v1/failures/01890000-0000-7000-8000-000000000001")
        .await;
    assert_eq!(status, StatusCode::OK);
    for (name, value) in full.as_object().unwrap() {
        let expected = match name.as_str() {
            "conversation_id" => json!("42"),
            "edge_types" => json!(r#"["knows","likes"]"#),
            "created_at" => json!("2024-11-24T10:30:00.500Z"),
            _ => value.clone(),
        };
        assert_eq!(found[name], expected, "{name}");
    }
    assert_eq!(found["query_len"], "où est la clé?".len());
}

#[actix_web::test]
async fn bad_line_is_rejected_alone_by_its_number() {
    let service = Service::new(HttpOptions::default().max_line_bytes(200));
    let long = failure(&"x".repeat(300)).to_string();
    let lines = [
        failure("a").to_string(),
        "not json".into(),
        long,
        json!({"failure_type": "no_hit"}).to_string(),
        failure("b").to_string(),
    ];
    let (status, said) = service.post("/v1/failures", LINES, lines.join("\n")).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(
        (&said["accepted"], &said["rejected"]),
        (&json!(2), &json!(3)),
        "{said}"
    );
    let errors: Vec<u64> = said["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["line"].as_u64().unwrap())
        .collect();
    assert_eq!(errors, [2, 3, 4]);
    assert_eq!(
        said["errors"][1]["detail"],
        "a record has 200 bytes at most"
    );
    let (_, said) = service
        .post(
            "/v1/failures",
            JSON,
            json!([1, failure("c"), {"failure_type": "x"}]).to_string(),
        )
        .await;
    assert_eq!(
        (&said["accepted"], &said["rejected"]),
        (&json!(1), &json!(2)),
        "{said}"
    );
    service.flush().await;
    assert_eq!(
        service.db.texts("query_text"),
        ["a", "b", "c"].map(|text| Some(text.into()))
    );
}

#[actix_web::test]
async fn errors_are_problem_details() {
    let service = Service::new(HttpOptions::default().max_body_bytes(1000, 2000));
    let one = failure("q").to_string();
    let with = |name: &str, value: Value| {
        let mut failure = failure("q");
        failure[name] = value;
        failure.to_string()
    };
    for (path, content_type, body, status, detail) in [
        ("/v1/failures", JSON, "{".into(), 400, "EOF"),
        (
            "/v1/failures",
            JSON,
            String::new(),
            400,
            "nothing: expected a JSON object",
        ),
        (
            "/v1/failures",
            JSON,
            with("failure_type", json!("bad")),
            422,
            "failure_type = \"bad\": expected no_hit",
        ),
        (
            "/v1/failures",
            JSON,
            with("retrieval_strategy", json!("")),
            422,
            "retrieval_strategy is missing",
        ),
        (
            "/v1/failures",
            JSON,
            with("latency_ms", json!(-1)),
            422,
            "latency_ms = -1: expected a number",
        ),
        (
            "/v1/failures",
            JSON,
            with("created_at", json!("yesterday")),
            422,
            "created_at = \"yesterday\": expected a moment",
        ),
        ("/v1/failures", JSON, "[".repeat(500), 400, "EOF"),
        (
            "/v1/failures",
            JSON,
            with("query_text", json!("x".repeat(2000))),
            413,
            "1000 bytes at most",
        ),
        (
            "/v1/failures",
            LINES,
            format!("{one}\n").repeat(50),
            413,
            "2000 bytes at most",
        ),
        (
            "/v1/failures",
            "text/plain",
            one.clone(),
            415,
            "expected application/json",
        ),
        (
            "/v1/attempts",
            JSON,
            json!({"strategy": "s", "outcome": "maybe"}).to_string(),
            422,
            "expected success",
        ),
        (
            "/v1/attempts",
            JSON,
            json!({"strategy": "s", "outcome": "success", "latency_ms": -1}).to_string(),
            422,
            "latency_ms = -1: expected a number of milliseconds",
        ),
    ] {
        let (got, said) = service.post(path, content_type, body).await;
        assert_eq!(got.as_u16(), status, "{said}");
        assert!(
            said["detail"]
                .as_str()
                .is_some_and(|said| said.contains(detail)),
            "{detail}: {said}"
        );
        assert_eq!(
            (&said["status"], said["title"].is_string()),
            (&json!(status), true)
        );
    }
    for (path, status, detail) in [
        (
            "/v1/summary?since=yesterday",
            400,
            "since: expected a number and s, m, h, d or w",
        ),
        (
            "/v1/summary?since=1d&from=2026-01-01T00:00:00Z",
            400,
            "either",
        ),
        (
            "/v1/summary?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            400,
            "a moment after `from`",
        ),
        ("/v1/summary?colour=red", 400, "unknown parameter"),
        ("/v1/failures?limit=0", 400, "1 to 1000"),
        ("/v1/failures?limit=x", 400, "1 to 1000"),
        (
            "/v1/failures?cursor=x",
            400,
            "a cursor from a previous page",
        ),
        ("/v1/queries?cursor=x", 400, "a cursor from a previous page"),
        (
            "/v1/failures?query_group=0123456789abcdef",
            400,
            "no group of queries",
        ),
        ("/v1/failures?failure_type=x", 400, "unknown variant"),
        ("/v1/failures/not-an-id", 400, "UUID"),
        (
            "/v1/failures/01890000-0000-7000-8000-000000000001",
            404,
            "no failure has this event_id",
        ),
        (
            "/v1/calibration",
            400,
            "retrieval_strategy: expected this parameter",
        ),
        (
            "/v1/calibration?retrieval_strategy=s&failure_rate=2",
            400,
            "expected 0 to 1",
        ),
        (
            "/v1/calibration?retrieval_strategy=s&threshold=NaN",
            400,
            "expected a number",
        ),
        ("/v1/export?format=xml", 400, "unknown variant"),
        ("/v1/queries?limit=1001", 400, "1 to 1000"),
    ] {
        let (got, said) = service.read(path).await;
        assert_eq!(got.as_u16(), status, "{path}: {said}");
        assert!(
            said["detail"]
                .as_str()
                .is_some_and(|said| said.contains(detail)),
            "{detail}: {said}"
        );
    }
    let sent = service
        .request(Method::PATCH, "/v1/failures")
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        sent.headers().get("allow").unwrap(),
        "GET, HEAD, POST, DELETE"
    );
    assert_eq!(
        sent.headers().get("content-type").unwrap(),
        "application/problem+json"
    );
}

#[actix_web::test]
async fn attempts_are_counted_and_their_failures_logged() {
    let service = service_without_retention();
    let attempts = json!([
        {"strategy": "semantic", "outcome": "success", "latency_ms": 1.5, "top_score": 0.9, "confidence_threshold": 0.5},
        {"strategy": "semantic", "outcome": "success", "latency_ms": 1.5, "top_score": 0.8},
        {"strategy": "semantic", "outcome": "low_confidence", "top_score": 0.25, "query_text": "why?", "conversation_id": "c", "turn_index": 3, "result_count": 2},
        {"strategy": "semantic", "outcome": "cancelled"},
        {"strategy": "semantic", "outcome": "error", "error_context": "on fire", "created_at": "2024-11-01T00:00:00Z"}
    ]);
    let (status, said) = service
        .post("/v1/attempts", JSON, attempts.to_string())
        .await;
    assert_eq!(
        (status, &said["accepted"]),
        (StatusCode::ACCEPTED, &json!(5)),
        "{said}"
    );
    service.flush().await;
    let (_, summary) = service.read("/v1/summary?since=1h").await;
    assert_eq!(summary["total"]["attempts"], 3);
    assert_eq!(summary["total"]["cancelled"], 1);
    assert_eq!(summary["strategies"][0]["confidence_threshold"], 0.5);
    assert_eq!(
        service.db.texts("query_text"),
        [Some("why?".into()), Some(String::new())]
    );
    let (_, calibration) = service
        .read(
            "/v1/calibration?retrieval_strategy=semantic&since=1h&threshold=0.85&failure_rate=0.5",
        )
        .await;
    assert_eq!(calibration["attempts"], 3);
    let rate = calibration["failure_rate_at_threshold"].as_f64().unwrap();
    assert!((rate - 2.0 / 3.0).abs() < 1e-9, "{calibration}");
}

#[actix_web::test]
async fn reads_select_by_source_and_label() {
    let service = service_without_retention();
    let attempt = |outcome: &str, source: Option<&str>, index: &str| json!({"strategy": "s", "outcome": outcome, "query_text": index, "source": source, "labels": {"index": index}});
    let attempts = json!([
        attempt("success", Some("a"), "7"),
        attempt("no_hit", Some("a"), "8"),
        attempt("no_hit", None, "8"),
        {"strategy": "s", "outcome": "success"}
    ]);
    let (status, said) = service
        .post("/v1/attempts", JSON, attempts.to_string())
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{said}");
    service.flush().await;
    for (filter, attempts, queries) in [
        ("", 4, &["8", "8"][..]),
        ("&source=a", 2, &["8"]),
        ("&source=a&source=b&label=index:8", 1, &["8"]),
        ("&source=", 2, &["8"]),
        ("&label=index:8", 2, &["8", "8"]),
        ("&label=index:", 0, &[]),
    ] {
        let (_, summary) = service.read(&format!("/v1/summary?since=1h{filter}")).await;
        assert_eq!(summary["total"]["attempts"], attempts, "{filter}");
        let (_, series) = service
            .read(&format!("/v1/timeseries?since=1h{filter}"))
            .await;
        let points = series["points"].as_array().unwrap().iter();
        let counted: u64 = points
            .map(|point| point["attempts"].as_u64().unwrap())
            .sum();
        assert_eq!(counted, attempts, "{filter}");
        let path = format!("/v1/calibration?retrieval_strategy=s{filter}");
        assert_eq!(
            service.read(&path).await.1["attempts"],
            attempts,
            "{filter}"
        );
        let (_, page) = service
            .read(&format!("/v1/failures?since=1h{filter}"))
            .await;
        let found: Vec<&str> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|failure| failure["query_text"].as_str().unwrap())
            .collect();
        assert_eq!(found, queries, "{filter}");
    }
    for filter in ["label=index", "label=Index:7", "label=a:1&label=a:2"] {
        for route in ["summary", "failures"] {
            let (status, problem) = service.read(&format!("/v1/{route}?{filter}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{filter}");
            assert_eq!(problem["errors"][0]["parameter"], "label", "{problem}");
        }
    }
}

#[actix_web::test]
async fn every_read_responds_with_json() {
    let service = Service::new(HttpOptions::default());
    let lines: String = (0..120)
        .map(|nth| format!("{}\n", failure(&format!("query {}", nth % 3))))
        .collect();
    service.post("/v1/failures", LINES, lines).await;
    service.flush().await;
    let (_, page) = service.read("/v1/failures?limit=100").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 100);
    let older = page["older"].as_str().unwrap();
    let (_, page) = service
        .read(&format!("/v1/failures?limit=100&cursor={older}"))
        .await;
    assert_eq!(
        (page["data"].as_array().unwrap().len(), &page["older"]),
        (20, &Value::Null)
    );
    assert!(page["data"][0]["id"].is_string());
    let (_, page) = service
        .read(
            "/v1/failures?text=query%202&retrieval_strategy=semantic&failure_type=no_hit&since=1h",
        )
        .await;
    assert_eq!(page["data"].as_array().unwrap().len(), 40);
    assert_eq!(
        service.read("/v1/summary").await.1["total"]["failures"],
        120
    );
    assert_eq!(
        service.read("/v1/strategies").await.1["data"][0]["retrieval_strategy"],
        "semantic"
    );
    let (_, series) = service
        .read("/v1/timeseries?since=1h&retrieval_strategy=semantic")
        .await;
    let failures: u64 = series["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["failures"].as_u64().unwrap())
        .sum();
    assert_eq!((failures, &series["step_seconds"]), (120, &json!(60)));
    let (_, wide) = service
        .read("/v1/timeseries?since=1h&max_steps=4&latency=true")
        .await;
    assert_eq!(wide["step_seconds"], 900);
    for steps in ["0", "201", "x"] {
        let (status, problem) = service
            .read(&format!("/v1/timeseries?max_steps={steps}"))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("1 to 200"));
    }
    assert_eq!(
        service.read("/v1/queries?limit=2").await.1["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(service.read("/v1/conversations").await.1["data"], json!([]));
    let mut export = service.get("/v1/export?format=csv").send().await.unwrap();
    assert_eq!(
        export.headers().get("content-type").unwrap(),
        "text/csv; charset=utf-8"
    );
    assert_eq!(
        String::from_utf8(export.body().await.unwrap().to_vec())
            .unwrap()
            .lines()
            .count(),
        121
    );
    let (_, lines) = service.read("/v1/export").await;
    assert_eq!(lines.as_str().unwrap().lines().count(), 120);
    let (_, api) = service.read("/openapi.json").await;
    assert!(api["paths"]["/v1/failures"]["post"]["responses"]["503"].is_object());
    assert_eq!(
        service.read("/healthz").await,
        (StatusCode::OK, json!({"status": "ok"}))
    );
    assert_eq!(
        service.read("/readyz").await,
        (StatusCode::OK, json!({"status": "ok"}))
    );
}

#[actix_web::test]
async fn metrics_exist_from_the_start_and_count_what_happens() {
    let service = Service::new(HttpOptions::default());
    let (_, before) = service.read("/metrics").await;
    let before = before.as_str().unwrap();
    for line in [
        "failure_logger_http_records_received_total 0",
        "failure_logger_records_written_total 0",
        "failure_logger_records_duplicate_total 0",
        "failure_logger_source_left_out_total 0",
        "failure_logger_records_dropped_total{reason=\"buffer_full\"} 0",
        "failure_logger_buffer_records 0",
        "failure_logger_buffer_capacity 8192",
        "failure_logger_mailbox_full 0",
        "failure_logger_flush_duration_seconds_count 0",
        "failure_logger_flush_batch_records_bucket{le=\"+Inf\"} 0",
        "failure_logger_flushes_total{result=\"ok\"} 0",
        "failure_logger_last_successful_flush_timestamp_seconds 0",
        "failure_logger_retention_deleted_total 0",
        "failure_logger_actor_restarts_total 0",
        "failure_logger_database_size_bytes",
        "failure_logger_attempts_total{strategy=\"[other strategies]\",outcome=\"success\"} 0",
        "failure_logger_build_info{version=\"0.1.0\"} 1",
    ] {
        assert!(before.contains(line), "{line} is missing in\n{before}");
    }
    service
        .post("/v1/failures", JSON, failure("q").to_string())
        .await;
    service
        .post(
            "/v1/attempts",
            JSON,
            json!({"strategy": "graph", "outcome": "success"}).to_string(),
        )
        .await;
    service.flush().await;
    let (_, after) = service.read("/metrics").await;
    let after = after.as_str().unwrap();
    for line in [
        "failure_logger_http_records_received_total 1",
        "failure_logger_records_written_total 1",
        "failure_logger_flush_batch_records_bucket{le=\"1.0\"} 1",
        "failure_logger_attempts_total{strategy=\"graph\",outcome=\"success\"} 1",
        "failure_logger_attempts_total{strategy=\"semantic\",outcome=\"no_hit\"} 1",
    ] {
        assert!(after.contains(line), "{line} is missing in\n{after}");
    }
}

#[actix_web::test]
async fn full_buffer_responds_with_the_accepted_count() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(10).batch_size(10));
    let service = Service::of(db, logger, HttpOptions::default());
    let lock = common::Lock::new(&service.db);
    let lines: String = (0..50).map(|_| format!("{}\n", failure("q"))).collect();
    let sent = service
        .request(Method::POST, "/v1/failures")
        .content_type(LINES)
        .send_body(lines)
        .await;
    assert_eq!(
        sent.as_ref().unwrap().headers().get("retry-after").unwrap(),
        "1"
    );
    let (status, said) = response(sent).await;
    assert_eq!(
        (status, &said["accepted"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!(10)),
        "{said}"
    );
    drop(lock);
    service.flush().await;
    assert_eq!(service.db.rows(), 10);
}

#[actix_web::test]
async fn upload_that_fills_the_buffer_gets_the_line_to_resume_from() {
    let db = TestDb::new();
    let logger = common::spawn(db.config().buffer_capacity(3).batch_size(3));
    let service = Service::of(db, logger, HttpOptions::default());
    let lock = common::Lock::new(&service.db);
    let lines: String = [
        "bad".into(),
        failure("1").to_string(),
        String::new(),
        "[1]".into(),
    ]
    .into_iter()
    .chain((2..9).map(|nth| failure(&nth.to_string()).to_string()))
    .map(|line| line + "\n")
    .collect();
    let (status, said) = service.post("/v1/failures", LINES, lines.clone()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        (&said["accepted"], &said["rejected"], &said["processed"]),
        (&json!(3), &json!(2), &json!(6)),
        "{said}"
    );
    assert_eq!(
        (&said["errors"][0]["line"], &said["errors"][1]["line"]),
        (&json!(1), &json!(4))
    );
    // A resent record is not lost.
    assert_eq!(service.logger.stats().dropped.total(), 0);
    drop(lock);
    service.flush().await;
    for _ in 0..2 {
        let skip = said["processed"].as_u64().unwrap() as usize;
        let rest: String = lines
            .lines()
            .skip(skip)
            .take(3)
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            service.post("/v1/failures", LINES, rest).await.0,
            StatusCode::ACCEPTED
        );
        service.flush().await;
    }
    let attempt = json!({"strategy": "s", "outcome": "no_hit"}).to_string();
    let lock = common::Lock::new(&service.db);
    let (status, said) = service
        .post("/v1/attempts", LINES, format!("{attempt}\n").repeat(5))
        .await;
    assert_eq!((status.as_u16(), &said["accepted"]), (503, &json!(3)));
    drop(lock);
    service.flush().await;
    let (_, summary) = service.read("/v1/summary").await;
    let strategy = summary["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|strategy| strategy["retrieval_strategy"] == "s")
        .unwrap();
    assert_eq!(
        strategy["rates"]["attempts"], 3,
        "rejected attempts are not counted"
    );
}

#[actix_web::test]
async fn json_without_a_record_is_rejected_with_a_short_message() {
    let service = Service::new(HttpOptions::default());
    let positional = r#"["no_hit","positional","q",null,null,null,0,null,null,0,0,null,null,null]"#;
    let (_, said) = service.post("/v1/failures", LINES, positional).await;
    assert_eq!(
        (&said["accepted"], &said["rejected"]),
        (&json!(0), &json!(14)),
        "{said}"
    );
    let (status, said) = service
        .post(
            "/v1/failures",
            JSON,
            json!({"k".repeat(1 << 20): 1}).to_string(),
        )
        .await;
    assert!(
        status == 422 && said["detail"].as_str().unwrap().chars().count() <= 301,
        "{status} {said}"
    );
    let compressed = service
        .request(Method::POST, "/v1/failures")
        .content_type(LINES);
    let sent = compressed
        .insert_header(("content-encoding", "br"))
        .send_body("x")
        .await
        .unwrap();
    assert_eq!(sent.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    service
        .post("/v1/failures", JSON, failure("Ключ a\0Behind").to_string())
        .await;
    service.flush().await;
    for text in ["%D0%BA%D0%BB%D1%8E%D1%87", "a%00b", "behind"] {
        let (_, said) = service.read(&format!("/v1/failures?text={text}")).await;
        assert_eq!(
            said["data"].as_array().map(Vec::len),
            Some(1),
            "{text}: {said}"
        );
    }
    for path in ["/", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(
            service
                .request(Method::HEAD, path)
                .send()
                .await
                .unwrap()
                .status(),
            StatusCode::OK,
            "{path}"
        );
    }
}

#[actix_web::test]
async fn repeated_failures_are_counted_once_for_prometheus() {
    let service = Service::new(HttpOptions::default());
    let mut once = failure("q");
    once["event_id"] = json!("01890000-0000-7000-8000-000000000001");
    for _ in 0..3 {
        service.post("/v1/failures", JSON, once.to_string()).await;
        service.flush().await;
    }
    let (_, metrics) = service.read("/metrics").await;
    let line = "failure_logger_attempts_total{strategy=\"semantic\",outcome=\"no_hit\"} 1\n";
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
}

#[actix_web::test]
async fn logger_errors_are_reported_without_paths() {
    let service = Service::new(HttpOptions::default());
    // A folder has taken the file's place.
    std::fs::remove_file(service.db.path()).unwrap();
    std::fs::create_dir(service.db.path()).unwrap();
    service
        .post("/v1/failures", JSON, failure("q").to_string())
        .await;
    let mut said = service.read("/readyz").await;
    while said.0 == StatusCode::OK {
        said = service.read("/readyz").await;
    }
    let detail = said.1["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("see the service's log") && !detail.contains("failures.db"),
        "{detail}"
    );
    let (_, stats) = service.read("/v1/stats").await;
    assert!(
        !stats["unhealthy"].as_str().unwrap().contains("failures.db"),
        "{stats}"
    );
}

#[actix_web::test]
async fn readiness_fails_while_the_logger_is_down() {
    let service = Service::new(HttpOptions::default());
    service.logger.shutdown().await.unwrap();
    let (status, said) = service.read("/readyz").await;
    assert_eq!(
        (status, &said["detail"]),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            &json!("the logger was shut down")
        )
    );
    let (status, _) = service
        .post("/v1/failures", JSON, failure("late").to_string())
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(service.read("/healthz").await.0, StatusCode::OK);
}

#[actix_web::test]
async fn tail_streams_have_stored_failures_and_resume_by_position() {
    use futures_util::StreamExt;
    let service = Service::new(HttpOptions::default());
    service
        .post("/v1/failures", JSON, failure("before").to_string())
        .await;
    service.flush().await;
    let read = |mut tail: awc::ClientResponse<_>, wanted: usize| async move {
        let mut text = String::new();
        while text.matches("event: failure").count() < wanted {
            let piece: web::Bytes = StreamExt::next(&mut tail)
                .await
                .expect("the stream continues")
                .expect("a piece");
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        text
    };
    let tail = service
        .get("/v1/tail?failure_type=no_hit")
        .send()
        .await
        .unwrap();
    assert_eq!(
        tail.headers().get("content-type").unwrap(),
        "text/event-stream"
    );
    let line =
        json!({"failure_type": "error", "retrieval_strategy": "s", "query_text": "another type"});
    service
        .post(
            "/v1/failures",
            LINES,
            format!("{line}\n{}\n", failure("after\nwards")),
        )
        .await;
    let text = read(tail, 1).await;
    assert!(
        text.contains(r#""query_text":"after\nwards""#)
            && !text.contains("before")
            && !text.contains("another"),
        "{text}"
    );
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect();
    assert!(
        ids[0].ends_with(".1") && ids.last().unwrap().ends_with(".3"),
        "{text}"
    );
    let again = service
        .get("/v1/tail")
        .insert_header(("last-event-id", ids[0]))
        .send()
        .await
        .unwrap();
    let text = read(again, 2).await;
    assert!(
        text.contains("another type") && text.contains("after") && !text.contains("replaced"),
        "{text}"
    );
    // The position is that of the version before, which names no log: the stream has later
    // failures.
    let again = service
        .get("/v1/tail")
        .insert_header(("last-event-id", "7"))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    service
        .post("/v1/failures", LINES, failure("later").to_string())
        .await;
    let text = read(again, 1).await;
    assert!(
        text.contains("later") && !text.contains("after") && !text.contains("replaced"),
        "{text}"
    );
    // One position belongs to another log, the other text is no position.
    let other = format!("{}.7", uuid::Uuid::nil().simple());
    let again = service
        .get("/v1/tail")
        .insert_header(("last-event-id", other))
        .send()
        .await
        .unwrap();
    let text = read(again, 3).await;
    assert!(
        text.contains("event: replaced") && text.contains("before"),
        "{text}"
    );
    for id in ["-1", "x.1", "", "7.", "99999999999999999999", "+7", "7 8"] {
        let refused = service
            .get("/v1/tail")
            .insert_header(("last-event-id", id))
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{id}");
    }
}

#[actix_web::test]
async fn statuses_are_set_over_http_and_slow_reads_are_polled() {
    let service = Service::new(HttpOptions::default());
    service
        .post(
            "/v1/failures",
            LINES,
            format!("{}\n{}", failure("why?"), failure("where?")),
        )
        .await;
    service.flush().await;
    // The response comes at once or later. The client need not wait for it.
    let ranking = async || loop {
        let (status, said) = service.read("/v1/queries?since=1h&wait_ms=1").await;
        match status {
            StatusCode::OK => return said,
            status => assert_eq!(
                (status, &said["status"]),
                (StatusCode::ACCEPTED, &json!("working"))
            ),
        }
    };
    assert_eq!(ranking().await["data"][0]["status"], "open");
    let mark = async |body: Value, content_type| {
        let sent = service
            .request(Method::PUT, "/v1/queries/status")
            .content_type(content_type);
        response(sent.send_body(body.to_string()).await).await
    };
    assert_eq!(
        mark(json!({"query_text": "WHERE", "status": "ignored"}), JSON)
            .await
            .0,
        StatusCode::NO_CONTENT
    );
    let said = ranking().await;
    let statuses: Vec<_> = said["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| &group["status"])
        .collect();
    assert_eq!(
        statuses,
        ["ignored", "open"],
        "a response from before the status is not served any more"
    );
    let (_, ignored) = service.read("/v1/queries?since=1h&status=ignored").await;
    assert_eq!(
        (
            ignored["data"].as_array().unwrap().len(),
            &ignored["data"][0]["example"]
        ),
        (1, &json!("where?"))
    );
    for (body, content_type, status) in [
        (json!({"query_text": "why", "status": "fine"}), JSON, 400),
        (json!({"query_text": "why"}), JSON, 400),
        (
            json!({"query_text": "why", "status": "open", "colour": "red"}),
            JSON,
            400,
        ),
        (
            json!({"query_text": "w".repeat(513), "status": "open"}),
            JSON,
            400,
        ),
        (
            json!({"query_text": "why".repeat(30_000), "status": "open"}),
            JSON,
            413,
        ),
        // A page of another site could send this without a preflight request.
        (
            json!({"query_text": "why", "status": "open"}),
            "text/plain",
            415,
        ),
    ] {
        let (got, said) = mark(body, content_type).await;
        assert_eq!(
            (got.as_u16(), &said["status"]),
            (status, &json!(status)),
            "{said}"
        );
    }
    for (path, detail) in [
        ("status=x", "unknown variant"),
        ("wait_ms=0", "1 to 2500"),
        ("wait_ms=9999", "1 to 2500"),
    ] {
        let (status, said) = service.read(&format!("/v1/queries?{path}")).await;
        assert!(
            status == 400 && said["detail"].as_str().unwrap().contains(detail),
            "{said}"
        );
    }
}

#[actix_web::test]
async fn counters_and_reads_by_an_exact_query_are_served() {
    let service = Service::new(HttpOptions::default());
    service
        .post(
            "/v1/failures",
            LINES,
            format!("{}\n{}", failure("why?"), failure("why? because")),
        )
        .await;
    service.flush().await;
    let (_, stats) = service.read("/v1/stats").await;
    assert_eq!(
        (
            &stats["received"],
            &stats["persisted"],
            &stats["dropped"]["buffer_full"]
        ),
        (&json!(2), &json!(2), &json!(0))
    );
    assert!(
        stats["last_flush"].is_string() && stats["unhealthy"].is_null(),
        "{stats}"
    );
    let (_, page) = service
        .read("/v1/failures?query_text=why%3F&within_ms=35")
        .await;
    assert_eq!(
        (page["data"].as_array().unwrap().len(), &page["complete"]),
        (1, &json!(true))
    );
    assert_eq!(
        service.read("/v1/failures?within_ms=0").await.0,
        StatusCode::BAD_REQUEST
    );
    let (_, series) = service.read("/v1/timeseries?since=1h").await;
    assert_eq!(series["strategies"][0]["retrieval_strategy"], "semantic");
    let failures = series["strategies"][0]["failures"].as_array().unwrap();
    assert_eq!(failures.iter().filter_map(Value::as_u64).sum::<u64>(), 2);
    service.logger.shutdown().await.unwrap();
    let (_, stats) = service.read("/v1/stats").await;
    assert_eq!(stats["unhealthy"], "the logger was shut down");
}

#[actix_web::test]
async fn dashboard_is_served_with_a_strict_content_policy() {
    let service = Service::new(HttpOptions::default());
    let page = service.get("/").send().await.unwrap();
    assert_eq!(
        page.headers().get("content-type").unwrap(),
        "text/html; charset=utf-8"
    );
    let policy = page
        .headers()
        .get("content-security-policy")
        .unwrap()
        .to_str()
        .unwrap();
    assert!(
        policy.starts_with("default-src 'none';")
            && !policy.contains("unsafe")
            && !policy.contains("http")
    );
    let tag = page.headers().get("etag").unwrap().clone();
    let again = service
        .get("/")
        .insert_header(("if-none-match", tag))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let (_, page) = service.read("/").await;
    // The server has all files that the page names.
    let page = page.as_str().unwrap();
    let named: Vec<_> = page
        .split(['"', '\''])
        .filter(|text| text.starts_with("assets/"))
        .collect();
    assert!(named.len() >= 4, "{page}");
    for name in named {
        assert_eq!(
            service.read(&format!("/{name}")).await.0,
            StatusCode::OK,
            "{name}"
        );
    }
    for path in [
        "/assets/nothing.js",
        "/assets/../Cargo.toml",
        "/assets/%2e%2e/mod.rs",
    ] {
        assert_eq!(service.read(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(
        service
            .request(Method::HEAD, "/")
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    let none = Service::new(HttpOptions::default().without_dashboard());
    assert_eq!(none.read("/").await.0, StatusCode::NOT_FOUND);
}

#[actix_web::test]
async fn handlers_beside_the_routes_get_the_logger_and_scopes_work() {
    async fn mine(logger: LoggerHandle) -> String {
        logger.log(common::no_hit(1));
        logger.stats().received.to_string()
    }
    let db = TestDb::new();
    let logger = FailureLogger::spawn(db.config()).unwrap();
    let api = http::configure(logger.clone(), HttpOptions::default());
    let server = actix_web::test::init_service(
        App::new().service(
            web::scope("/log")
                .configure(api)
                .route("/mine", web::get().to(mine)),
        ),
    )
    .await;
    let call = |path: &str| {
        actix_web::test::TestRequest::get()
            .uri(path)
            .insert_header(("host", "localhost"))
            .to_request()
    };
    let response = actix_web::test::call_and_read_body(&server, call("/log/mine")).await;
    assert_eq!(response, "1");
    let health = actix_web::test::call_service(&server, call("/log/healthz")).await;
    assert_eq!(health.status(), StatusCode::OK);
    let page = actix_web::test::call_service(&server, call("/log/")).await;
    assert_eq!(page.status(), StatusCode::OK);
    // The page's files are beside it, so its address must end with a slash.
    let page = actix_web::test::call_service(&server, call("/log?page=queries")).await;
    assert_eq!(
        page.headers().get("location").unwrap(),
        "./log/?page=queries"
    );
    logger.shutdown().await.unwrap();
}

#[actix_web::test]
async fn concurrent_reads_of_a_ranking_get_the_same_whole_one() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(0));
    service.db.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 50000) \
         INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, query_len, created_at) \
         SELECT randomblob(16), 'no_hit', 's', 'query number ' || (n % 31), 1, unixepoch() * 1000 - n FROM n",
    );
    let whole = async || loop {
        let (status, said) = service.read("/v1/queries?since=1h&wait_ms=1").await;
        if status == StatusCode::OK {
            // The first field tells if the ranking is whole.
            assert!(said["partial"].is_boolean());
            if said["in_progress"] == json!(false) {
                return said;
            }
            assert_eq!(said["partial"], json!(true));
        }
    };
    let all = futures_util::future::join_all((0..8).map(|_| whole())).await;
    assert!(
        all.iter().all(|one| *one == all[0]),
        "{:?}",
        all[0]["scanned"]
    );
    let counted: u64 = all[0]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["count"].as_u64().unwrap())
        .sum();
    assert_eq!((&all[0]["partial"], counted), (&json!(false), 50_000));
    let body = service
        .get("/v1/queries?since=1h")
        .send()
        .await
        .unwrap()
        .body()
        .await
        .unwrap();
    assert!(body.starts_with(b"{\"partial\":false,"));
}

#[actix_web::test]
async fn application_ends_its_tail_streams_before_it_stops_its_server() {
    use futures_util::StreamExt as _;

    let options = HttpOptions::default();
    let service = Service::new(options.clone());
    let mut stream = service.get("/v1/tail").send().await.unwrap();
    assert!(
        stream.next().await.unwrap().unwrap().starts_with(b"id:"),
        "the stream is open"
    );
    options.end_streams();
    while let Some(piece) = stream.next().await {
        piece.unwrap();
    }
}
