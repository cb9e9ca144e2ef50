//! Input of many kinds of senders: each case of the table in docs/api.md, on both routes and from
//! `ingest`.

mod common;

use awc::http::StatusCode;
use common::TestDb;
use common::binary::command;
use common::service::{JSON, LINES, Service, failure};
use failure_logger::http::HttpOptions;
use failure_logger::{FailureLogger, LoggerHandle};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Output, Stdio};
use uuid::Uuid;

/// Returns a service whose logger keeps records of any age.
fn service_without_retention(options: HttpOptions) -> Service {
    let db = TestDb::new();
    let logger = common::spawn(db.config().retention_days(0).attempts_retention_days(0));
    Service::of(db, logger, options)
}

/// One field in the input, and the value of its column. `None` is NULL.
const ACCEPTED: &[(&str, &str, &str, Option<&str>)] = &[
    // Numbers.
    ("latency_ms", "12", "latency_ms", Some("12")),
    ("latency_ms", "3.7", "latency_ms", Some("4")),
    ("latency_ms", "\"12\"", "latency_ms", Some("12")),
    (
        "latency_ms",
        "9223372036854775807",
        "latency_ms",
        Some("9223372036854775807"),
    ),
    ("latency_ms", "0", "latency_ms", Some("0")),
    ("latency_ms", "null", "latency_ms", None),
    ("latency_ms", "NaN", "latency_ms", None),
    ("latency_ms", "Infinity", "latency_ms", None),
    ("result_count", "7", "result_count", Some("7")),
    ("result_count", "7.0", "result_count", Some("7")),
    ("result_count", "1e3", "result_count", Some("1000")),
    ("result_count", "\"7\"", "result_count", Some("7")),
    ("result_count", "null", "result_count", None),
    ("turn_index", "-3", "turn_index", Some("-3")),
    (
        "turn_index",
        "-9223372036854775808",
        "turn_index",
        Some("-9223372036854775808"),
    ),
    ("turn_index", "null", "turn_index", None),
    ("query_len", "null", "query_len", Some("1")),
    ("query_len", "4000", "query_len", Some("4000")),
    // Scores.
    ("top_score", "0.5", "top_score", Some("0.5")),
    ("top_score", "\"0.5\"", "top_score", Some("0.5")),
    ("top_score", "-1", "top_score", Some("-1.0")),
    ("top_score", "null", "top_score", None),
    ("top_score", "NaN", "top_score", None),
    ("top_score", "nan", "top_score", None),
    ("top_score", "\"NaN\"", "top_score", None),
    ("top_score", "-Infinity", "top_score", None),
    ("top_score", "3.4028235e38", "top_score", None),
    ("top_score", "-3.4028235e38", "top_score", None),
    ("top_score", "1e999", "top_score", None),
    (
        "confidence_threshold",
        "Infinity",
        "confidence_threshold",
        None,
    ),
    // Text.
    (
        "query_text",
        r#""cut \ud83d""#,
        "query_text",
        Some("cut \u{fffd}"),
    ),
    (
        "query_text",
        r#""\udd11 key""#,
        "query_text",
        Some("\u{fffd} key"),
    ),
    ("query_text", r#""\ud83d\udd11""#, "query_text", Some("🔑")),
    (
        "query_text",
        r#""NaN and Infinity""#,
        "query_text",
        Some("NaN and Infinity"),
    ),
    ("query_text", "42", "query_text", Some("42")),
    ("query_text", "\"\"", "query_text", Some("")),
    ("query_text", "\"a\ttab\"", "query_text", Some("a\ttab")),
    (
        "error_context",
        r#"{"code": 7, "text": "on fire"}"#,
        "error_context",
        Some(r#"{"code":7,"text":"on fire"}"#),
    ),
    ("error_context", "null", "error_context", None),
    (
        "edge_types",
        r#"["knows", "likes"]"#,
        "edge_types",
        Some(r#"["knows","likes"]"#),
    ),
    (
        "edge_types",
        r#""[\"knows\"]""#,
        "edge_types",
        Some(r#"["knows"]"#),
    ),
    ("edge_types", "null", "edge_types", None),
    // Conversations.
    ("conversation_id", "\"c\"", "conversation_id", Some("c")),
    ("conversation_id", "42", "conversation_id", Some("42")),
    (
        "conversation_id",
        "18446744073709551617",
        "conversation_id",
        Some("18446744073709551617"),
    ),
    ("conversation_id", "1e3", "conversation_id", Some("1000")),
    ("conversation_id", "null", "conversation_id", None),
    // Times.
    (
        "created_at",
        "\"2025-01-02T03:04:05Z\"",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "\"2025-01-02 03:04:05+00:00\"",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "\"2025-01-02T03:04:05\"",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "\"2025-01-02 04:04:05 +0100\"",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "\"Thu, 02 Jan 2025 03:04:05 GMT\"",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "1735787045",
        "created_at",
        Some("1735787045000"),
    ),
    (
        "created_at",
        "1735787045.25",
        "created_at",
        Some("1735787045250"),
    ),
    (
        "created_at",
        "1735787045123",
        "created_at",
        Some("1735787045123"),
    ),
    (
        "created_at",
        "\"1735787045123\"",
        "created_at",
        Some("1735787045123"),
    ),
    // Names.
    ("failure_type", "\"NO_HIT\"", "failure_type", Some("no_hit")),
    (
        "strategy",
        "\"old name\"",
        "retrieval_strategy",
        Some("old name"),
    ),
    ("id", "\"17\"", "query_text", Some("q")),
    ("host", "{\"name\": [1, NaN]}", "query_text", Some("q")),
];

/// One field that is rejected, and the reason.
const REJECTED: &[(&str, &str, &str)] = &[
    (
        "failure_type",
        "\"tired\"",
        "failure_type = \"tired\": expected no_hit, low_confidence, timeout or error",
    ),
    (
        "failure_type",
        "null",
        "failure_type is missing: expected no_hit",
    ),
    (
        "retrieval_strategy",
        "\"\"",
        "retrieval_strategy is missing: expected the name of the strategy",
    ),
    (
        "retrieval_strategy",
        "[1]",
        "retrieval_strategy = [1]: expected a string",
    ),
    (
        "query_text",
        "null",
        "query_text is missing: expected the text that was searched for",
    ),
    (
        "latency_ms",
        "-1",
        "latency_ms = -1: expected a number of milliseconds, 0 or more, or null",
    ),
    (
        "latency_ms",
        "\"fast\"",
        "latency_ms = \"fast\": expected a number of milliseconds",
    ),
    (
        "latency_ms",
        "true",
        "latency_ms = true: expected a number of milliseconds",
    ),
    (
        "result_count",
        "3.7",
        "result_count = 3.7: expected a whole number, 0 or more, or null",
    ),
    (
        "result_count",
        "-1",
        "result_count = -1: expected a whole number, 0 or more, or null",
    ),
    (
        "turn_index",
        "9223372036854775808",
        "turn_index = 9223372036854775808: expected a whole number or null",
    ),
    (
        "top_score",
        "{}",
        "top_score = {}: expected a number or null",
    ),
    (
        "created_at",
        "\"2025-01-02T03:04:05 05:30\"",
        "created_at = \"2025-01-02T03:04:05 05:30\": expected a moment",
    ),
    ("created_at", "true", "created_at = true: expected a moment"),
    (
        "event_id",
        "\"17\"",
        "event_id = \"17\": expected a UUID or null",
    ),
    (
        "conversation_id",
        "{}",
        "conversation_id = {}: expected a string, a number or null",
    ),
    (
        "edge_types",
        "7",
        "edge_types = 7: expected a list of strings or null",
    ),
    (
        "score_direction",
        "\"up\"",
        "score_direction = \"up\": expected higher_is_better or lower_is_better",
    ),
];

/// Returns a failure with one given field. The last field of a name counts.
fn line(field: &str, value: &str) -> String {
    let rest = if field == "strategy" {
        ""
    } else {
        r#""retrieval_strategy": "s", "#
    };
    format!(r#"{{{rest}"failure_type": "no_hit", "query_text": "q", "{field}": {value}}}"#)
}

/// Returns the same as an attempt.
fn attempt(field: &str, value: &str) -> String {
    match field {
        "failure_type" => line(field, value)
            .replace(r#""failure_type": "no_hit", "#, "")
            .replace("failure_type", "outcome"),
        _ => line(field, value).replace("failure_type", "outcome"),
    }
}

fn column(db: &TestDb, name: &str) -> Option<String> {
    let text = db.text(name);
    db.execute("DELETE FROM memory_retrieval_failures");
    text
}

#[actix_web::test]
async fn each_case_is_accepted_and_stored_as_documented() {
    let service = service_without_retention(HttpOptions::default());
    for (field, value, name, stored) in ACCEPTED {
        for (path, body) in [
            ("/v1/failures", line(field, value)),
            ("/v1/attempts", attempt(field, value)),
        ] {
            for (content_type, body) in [
                (JSON, body.clone()),
                (JSON, format!("[{body}]")),
                (LINES, body),
            ] {
                let (status, said) = service.post(path, content_type, body.clone()).await;
                assert_eq!(
                    (status, &said["accepted"]),
                    (StatusCode::ACCEPTED, &json!(1)),
                    "{body}: {said}"
                );
                service.flush().await;
                assert_eq!(
                    column(&service.db, name).as_deref(),
                    *stored,
                    "{path} {body}"
                );
            }
        }
    }
}

#[actix_web::test]
async fn each_case_is_rejected_alone_with_field_value_and_remedy() {
    let service = service_without_retention(HttpOptions::default());
    for (field, value, reason) in REJECTED {
        for (path, body) in [
            ("/v1/failures", line(field, value)),
            ("/v1/attempts", attempt(field, value)),
        ] {
            // A failed attempt need not have a query, and its kind has another name.
            if path == "/v1/attempts" && matches!(*field, "query_text" | "failure_type") {
                continue;
            }
            let (status, said) = service.post(path, JSON, body.clone()).await;
            let text = said["errors"][0]["detail"].as_str().unwrap_or_default();
            assert!(
                status == 422 && text.starts_with(reason),
                "{body}: {status} {said}"
            );
            let (status, said) = service
                .post(path, LINES, format!("{body}\n{}", failure("beside it")))
                .await;
            assert_eq!(
                (status, &said["accepted"], &said["rejected"]),
                (StatusCode::ACCEPTED, &json!(1), &json!(1))
            );
            service.flush().await;
            assert_eq!(
                column(&service.db, "query_text").as_deref(),
                Some("beside it")
            );
        }
    }
    let (_, stats) = service.read("/v1/stats").await;
    assert!(
        stats["rejected"]["invalid_value"].as_u64().unwrap() > 50,
        "{stats}"
    );
    assert!(
        stats["rejected"]["missing_field"].as_u64().unwrap() >= 4,
        "{stats}"
    );
    assert_eq!(
        stats["received"], stats["persisted"],
        "a rejected line is not received"
    );
}

#[actix_web::test]
async fn unknown_fields_are_ignored_named_and_counted_or_rejected() {
    let body = r#"{"date": 1, "host": "web-1", "failure_type": "no_hit", "strategy": "s", "query_text": "q"}"#;
    let service = Service::new(HttpOptions::default());
    let (status, said) = service
        .post("/v1/failures", LINES, format!("{body}\n{body}"))
        .await;
    assert_eq!(
        (status, &said["accepted"]),
        (StatusCode::ACCEPTED, &json!(2)),
        "{said}"
    );
    assert_eq!(said["ignored_fields"], json!(["date", "host"]));
    let (_, stats) = service.read("/v1/stats").await;
    assert_eq!(stats["ignored_fields"], 4);
    let (_, metrics) = service.read("/metrics").await;
    assert!(
        metrics
            .as_str()
            .unwrap()
            .contains("failure_logger_ignored_fields_total 4")
    );

    let strict = Service::new(HttpOptions::default().reject_unknown_fields(true));
    let (status, said) = strict.post("/v1/failures", LINES, body).await;
    assert!(
        status == 422
            && said["errors"][0]["detail"]
                .as_str()
                .unwrap()
                .starts_with("date is an unknown field"),
        "{said}"
    );
    let (_, metrics) = strict.read("/metrics").await;
    assert!(
        metrics
            .as_str()
            .unwrap()
            .contains(r#"failure_logger_records_rejected_total{reason="unknown_field"} 1"#)
    );
}

#[actix_web::test]
async fn bodies_are_read_whatever_their_first_bytes() {
    let service = service_without_retention(HttpOptions::default());
    let (one, two) = (
        failure("schlüssel 🔑").to_string(),
        failure("two").to_string(),
    );
    let wide = |text: &str| -> Vec<u8> {
        let units: Vec<u16> = std::iter::once(0xFEFF).chain(text.encode_utf16()).collect();
        units.into_iter().flat_map(u16::to_le_bytes).collect()
    };
    let with_bom = |text: &str| [b"\xEF\xBB\xBF", text.as_bytes()].concat();
    let (lines, list) = (
        format!("{one}\n{two}\n"),
        format!("[\n  {one},\n  {two}\n]"),
    );
    for (content_type, body) in [
        (LINES, lines.clone().into_bytes()),
        (LINES, with_bom(&lines)),
        (LINES, wide(&lines)),
        (LINES, list.clone().into_bytes()),
        (JSON, list.clone().into_bytes()),
        (JSON, with_bom(&list)),
        (JSON, wide(&list)),
        (JSON, lines.clone().into_bytes()),
        (JSON, with_bom(&lines)),
    ] {
        for path in ["/v1/failures", "/v1/attempts"] {
            let request = service
                .request(awc::http::Method::POST, path)
                .content_type(content_type);
            let (status, said) =
                common::service::response(request.send_body(body.clone()).await).await;
            assert_eq!(
                (status, &said["accepted"]),
                (StatusCode::ACCEPTED, &json!(2)),
                "{content_type} {said}"
            );
            service.flush().await;
            assert_eq!(
                service.db.texts("query_text"),
                [Some("schlüssel 🔑".into()), Some("two".into())]
            );
            service.db.execute("DELETE FROM memory_retrieval_failures");
        }
    }
    // The body is Latin 1, not UTF-8.
    let body = [
        br#"{"failure_type":"no_hit","strategy":"s","query_text":"cl"#.as_slice(),
        b"\xE9\"}",
    ]
    .concat();
    let request = service
        .request(awc::http::Method::POST, "/v1/failures")
        .content_type(LINES);
    assert_eq!(
        common::service::response(request.send_body(body).await)
            .await
            .0,
        StatusCode::ACCEPTED
    );
    service.flush().await;
    assert_eq!(service.db.text("query_text").as_deref(), Some("cl\u{fffd}"));
}

#[actix_web::test]
async fn repeated_reused_and_nil_ids_are_reported() {
    let service = Service::new(HttpOptions::default());
    let id = "01890000-0000-7000-8000-000000000001";
    let with_id = |id: &str, query: &str| {
        let mut failure = failure(query);
        failure["event_id"] = json!(id);
        failure.to_string()
    };
    let nil = with_id("00000000-0000-0000-0000-000000000000", "nil");
    let lines = [
        with_id(id, "one"),
        with_id(id, "one"),
        with_id(id, "another"),
        nil.clone(),
        nil,
    ];
    let (status, said) = service.post("/v1/failures", LINES, lines.join("\n")).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let counts = ["accepted", "rejected", "duplicates", "nil_event_ids"]
        .map(|name| said[name].as_u64().unwrap());
    assert_eq!(counts, [4, 1, 1, 2], "{said}");
    assert_eq!(said["errors"][0]["line"], 3);
    assert!(
        said["errors"][0]["detail"]
            .as_str()
            .unwrap()
            .starts_with(&format!("event_id = {id}: another record"))
    );
    service.flush().await;
    assert_eq!(
        service.db.texts("query_text"),
        ["one", "nil", "nil"].map(|query| Some(query.into()))
    );
    // The id occurs in a later request, and in an attempt that is only counted.
    let attempt =
        json!({"outcome": "success", "retrieval_strategy": "s", "event_id": id.replace('1', "2")})
            .to_string();
    let (_, first) = service.post("/v1/attempts", JSON, attempt.clone()).await;
    let (_, second) = service.post("/v1/attempts", JSON, attempt).await;
    assert_eq!(
        (&first["duplicates"], &second["duplicates"]),
        (&json!(0), &json!(1))
    );
    let failed = json!({"outcome": "no_hit", "retrieval_strategy": "s", "query_text": "q", "event_id": id.replace('1', "3")});
    for _ in 0..2 {
        service.post("/v1/attempts", JSON, failed.to_string()).await;
    }
    service.flush().await;
    let (_, summary) = service.read("/v1/summary").await;
    let strategy = summary["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|strategy| strategy["retrieval_strategy"] == "s")
        .unwrap();
    assert_eq!(
        (
            &strategy["rates"]["attempts"],
            &strategy["rates"]["failures"]
        ),
        (&json!(2), &json!(1)),
        "{strategy}"
    );
    assert_eq!(
        service.db.integer(
            "SELECT count(*) FROM memory_retrieval_failures WHERE retrieval_strategy = 's'"
        ),
        1
    );
}

#[actix_web::test]
async fn outcome_and_failure_type_determine_the_record() {
    let service = Service::new(HttpOptions::default());
    let attempt =
        json!({"outcome": "no_hit", "retrieval_strategy": "s", "query_text": "q"}).to_string();
    let success = json!({"outcome": "success", "retrieval_strategy": "s"}).to_string();
    let failure =
        json!({"failure_type": "no_hit", "retrieval_strategy": "s", "query_text": "q"}).to_string();
    let lines = [attempt, failure, success.clone()].join("\n");
    let (_, said) = service.post("/v1/failures", LINES, lines.clone()).await;
    assert_eq!(
        (&said["accepted"], &said["rejected"]),
        (&json!(2), &json!(1)),
        "{said}"
    );
    assert!(
        said["errors"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("send it to /v1/attempts")
    );
    let (_, said) = service.post("/v1/attempts", LINES, lines).await;
    assert_eq!(
        (&said["accepted"], &said["rejected"]),
        (&json!(3), &json!(0)),
        "{said}"
    );
    service.flush().await;
    assert_eq!(service.db.rows(), 4);
    let (_, summary) = service.read("/v1/summary").await;
    let rates = &summary["total"];
    assert_eq!(
        [
            &rates["failures"],
            &rates["successes"],
            &rates["unobserved"]
        ],
        [&json!(4), &json!(1), &json!(3)]
    );
}

/// Runs `ingest` on `input`.
fn ingest(db: &TestDb, arguments: &[&str], input: &[u8]) -> Output {
    let arguments = [&["ingest"], arguments].concat();
    let mut command = command(db, &arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn parts_of(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn ingest_accepts_the_same_cases_and_attempts() {
    let db = database_without_retention();
    let lines: Vec<String> = ACCEPTED
        .iter()
        .map(|(field, value, ..)| line(field, value))
        .collect();
    let (code, out, err) = parts_of(&ingest(&db, &[], lines.join("\n").as_bytes()));
    assert_eq!(
        (code, out),
        (
            Some(0),
            format!("{} records stored, 0 lines rejected\n", lines.len())
        ),
        "{err}"
    );
    assert!(
        err.contains("ignored unknown fields of 1 records: host"),
        "{err}"
    );
    for ((field, value, name, stored), nth) in ACCEPTED.iter().zip(0..) {
        assert_eq!(db.texts(name)[nth].as_deref(), *stored, "{field}: {value}");
    }
    let mut attempts = lines
        .iter()
        .map(|line| line.replace("failure_type", "outcome"))
        .collect::<Vec<_>>();
    attempts.push(
        json!({"outcome": "success", "retrieval_strategy": "s", "latency_ms": 3}).to_string(),
    );
    let list = format!("[{}]", attempts.join(",\n"));
    let (code, out, err) = parts_of(&ingest(&db, &[], list.as_bytes()));
    assert_eq!(
        (code, out),
        (
            Some(0),
            format!("{} records stored, 0 lines rejected\n", attempts.len())
        ),
        "{err}"
    );
    assert_eq!(db.rows(), 2 * lines.len() as i64);
    assert_eq!(db.attempts(), 2 * lines.len() as i64 + 1);
}

/// Queries of User Behavior Insights: a success and a `no_hit` of one application, a query without
/// hits or application, and a line of a dump.
const UBI_QUERIES: &str = include_str!("../../tests/fixtures/ubi/queries.jsonl");

/// Returns the strategy, outcome and number of the counted attempts.
fn counts(db: &TestDb) -> Vec<(String, String, u64)> {
    let exported = command(db, &["export", "--attempts"]).output().unwrap();
    let mut counts: Vec<_> = String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let count: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| count[name].as_str().unwrap().to_owned();
            let attempts = count["attempts"].as_u64().unwrap();
            (text("retrieval_strategy"), text("outcome"), attempts)
        })
        .collect();
    counts.sort();
    counts
}

#[test]
fn ubi_queries_become_attempts() {
    let expected = [
        ("primary-search", "no_hit", 1),
        ("primary-search", "success", 1),
        ("type-ahead", "no_hit", 1),
        ("ubi", "unknown", 1),
    ]
    .map(|(strategy, outcome, attempts)| (strategy.to_owned(), outcome.to_owned(), attempts));
    let list = format!("[{}]", UBI_QUERIES.trim().replace('\n', ","));
    for input in [UBI_QUERIES, &list] {
        let db = database_without_retention();
        let (code, out, err) = parts_of(&ingest(&db, &["--format", "ubi"], input.as_bytes()));
        assert_eq!(
            (code, out.as_str(), err.as_str()),
            (Some(0), "4 records stored, 0 lines rejected\n", "")
        );
        assert_eq!(counts(&db), expected);
        let texts = |column| {
            db.texts(column)
                .into_iter()
                .map(Option::unwrap)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts("query_text"), ["loptap", "lopt"]);
        assert_eq!(texts("conversation_id"), ["s-42", "quepid-nightly-bot"]);
        assert_eq!(texts("result_count"), ["0", "0"]);
        assert_eq!(texts("created_at"), ["1795168801000", "1795168803250"]);
        // The rows have the ids of the queries. The file has no ids of attempts, which only a service
        // recognises.
        let again = ["--format", "ubi", "--without-counts"];
        let (code, ..) = parts_of(&ingest(&db, &again, input.as_bytes()));
        assert_eq!((code, db.rows()), (Some(0), 2));
        assert_eq!(counts(&db), expected);
    }
}

#[actix_web::test]
async fn ubi_queries_reach_a_service_once() {
    let service = service_without_retention(HttpOptions::default());
    for _ in 0..2 {
        let (url, db) = (service.url(""), TestDb::new());
        let ingest = move || {
            let arguments = ["--format", "ubi", "--url", &url];
            parts_of(&ingest(&db, &arguments, UBI_QUERIES.as_bytes()))
        };
        let (code, out, err) = actix_web::web::block(ingest).await.unwrap();
        assert_eq!(
            (code, out.as_str()),
            (Some(0), "4 records stored, 0 lines rejected\n"),
            "{err}"
        );
    }
    service.flush().await;
    assert_eq!((service.db.rows(), service.db.attempts()), (2, 4));
    assert_eq!(
        service.db.texts("lower(hex(event_id))")[0].as_deref(),
        Some(
            Uuid::new_v5(&Uuid::NAMESPACE_OID, b"1234-user-5678")
                .simple()
                .to_string()
                .as_str()
        )
    );
}

#[test]
fn ubi_documents_are_read_leniently_or_rejected_alone() {
    let outcomes = [
        ("\"B07XLFYN6S\"", "success"),
        ("7", "success"),
        ("[7, null]", "success"),
        ("[null]", "no_hit"),
        ("null", "unknown"),
    ];
    let accepted = outcomes.iter().zip(1..).map(|((hits, outcome), id)| {
        format!(
            r#"{{"query_id": {id}, "application": "{outcome}", "query_response_hit_ids": {hits}}}"#
        )
    });
    let rejected = [
        (
            r#"{"user_query": "q", "query_response_hit_ids": []}"#,
            "query_id is missing: expected the id of one query",
        ),
        (
            r#"{"query_id": "00000000-0000-0000-0000-000000000000"}"#,
            r#"query_id = "00000000-0000-0000-0000-000000000000": expected the id of one query"#,
        ),
        (
            r#"{"query_id": "a", "query_response_hit_ids": {"hits": 1}}"#,
            r#"query_response_hit_ids = {"hits": 1}: expected a list of ids"#,
        ),
        (
            r#"{"query_id": "a", "query_response_hit_ids": ""}"#,
            r#"query_response_hit_ids = "": expected a list of ids"#,
        ),
        (
            r#"{"query_id": "a", "user_query": ["q"]}"#,
            r#"user_query = ["q"]: expected a string"#,
        ),
        (
            r#"{"query_id": "a", "timestamp": "yesterday"}"#,
            r#"timestamp = "yesterday": expected a moment"#,
        ),
        (
            r#"{"query_id": "a", "action_name": "click"}"#,
            r#"action_name = "click": expected a document of ubi_queries"#,
        ),
        (
            "user_query;query_id",
            "user_query;query_id: expected a JSON object",
        ),
    ];
    let lines: Vec<String> = rejected
        .iter()
        .map(|(line, _)| (*line).to_owned())
        .chain(accepted)
        .collect();
    let db = database_without_retention();
    let (code, out, err) = parts_of(&ingest(
        &db,
        &["--format", "ubi"],
        lines.join("\n").as_bytes(),
    ));
    let summary = format!(
        "{} records stored, {} lines rejected\n",
        outcomes.len(),
        rejected.len()
    );
    assert_eq!((code, out), (Some(1), summary), "{err}");
    for ((_, reason), nth) in rejected.iter().zip(1..) {
        assert!(
            err.contains(&format!("line {nth}: {reason}")),
            "{nth}: {err}"
        );
    }
    for (strategy, outcome, _) in counts(&db) {
        assert_eq!(strategy, outcome);
    }

    // A long query is cut, so that a service does not reject its line.
    let long = json!({
        "query_id": "long", "user_query": "é".repeat(100_000), "query_response_hit_ids": [], "user": 1
    });
    let (code, _, err) = parts_of(&ingest(
        &db,
        &["--format", "ubi"],
        long.to_string().as_bytes(),
    ));
    assert_eq!(code, Some(0), "{err}");
    assert!(
        err.contains("ignored unknown fields of 1 records: user"),
        "{err}"
    );
    assert_eq!(
        [db.texts("length(query_text)"), db.texts("query_len")]
            .map(|mut texts| texts.pop().unwrap()),
        [Some("512".to_owned()), Some("200000".to_owned())]
    );
}

/// Returns a database that keeps rows of any age.
fn database_without_retention() -> TestDb {
    let db = TestDb::new();
    let logger =
        FailureLogger::spawn(db.config().retention_days(0).attempts_retention_days(0)).unwrap();
    common::block_on(logger.shutdown()).unwrap();
    db
}

/// Starts a logger with rows of all kinds: all that its readers and its table have.
fn logger_with_rows(db: &TestDb) -> LoggerHandle {
    let logger = FailureLogger::spawn(db.config().retention_days(0)).unwrap();
    common::block_on(logger.flush()).unwrap();
    db.execute(
        "INSERT INTO memory_retrieval_failures (event_id, conversation_id, turn_index, failure_type, retrieval_strategy, \
             query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, edge_types, error_context, \
             created_at)
         SELECT randomblob(16), c.value, t.value, f.value, 's' || q.key, q.value, 7 + q.key, s.value, -s.value, t.value & 7, \
             abs(t.value), e.value, q.value, 1700000000123 + q.key
         FROM json_each('[null, \"\", \"0\", \"=1+1\", \"''c\"]') c,
             json_each('[null, 0, -3, 9007199254740993]') t,
             json_each('[\"no_hit\", \"low_confidence\", \"timeout\", \"error\"]') f,
             json_each('[\"\", \"''\", \"''''\", \"=1\", \"''=1\", \"price;=1+1;x\", \"a\\nb\\r\\n=c\", \"tab\\t@d\", \"q\\\"uote\\\"\", \
                 \"Москва 🔑\", \"nul\\u0000behind\", \" \", \"1.0\", \"null\"]') q,
             json_each('[null, 0.10000000149011612, -12.5, 3.299999965482712e+38, 1.0000000031710769e-30]') s,
             json_each('[null, \"[]\", \"[\\\"knows\\\",\\\"a,b\\\"]\", \"no list\", \"\"]') e",
    );
    logger
}

fn rows(db: &TestDb) -> Vec<Option<String>> {
    db.texts(
        "json_array(hex(event_id), conversation_id, turn_index, failure_type, retrieval_strategy, hex(query_text), query_len, \
         hex(CAST(top_score AS BLOB)), top_score, confidence_threshold, result_count, latency_ms, edge_types, \
         hex(error_context), created_at)",
    )
}

#[test]
fn export_and_ingest_keep_every_field_of_every_row() {
    let db = TestDb::new();
    let logger = logger_with_rows(&db);
    let mut before = rows(&db);
    before.sort();
    assert_eq!(before.len(), 5 * 4 * 4 * 14 * 5 * 5);
    for format in [
        &["export"] as &[_],
        &["export", "--csv"],
        &["export", "--csv", "--bom"],
    ] {
        let exported = command(&db, format).output().unwrap();
        assert!(exported.status.success(), "{exported:?}");
        assert_eq!(
            exported.stdout.starts_with("\u{feff}".as_bytes()),
            format.contains(&"--bom")
        );
        let other = database_without_retention();
        let (code, out, err) = parts_of(&ingest(&other, &[], &exported.stdout));
        assert_eq!(
            (code, out),
            (
                Some(0),
                format!("{} records stored, 0 lines rejected\n", before.len())
            ),
            "{err}"
        );
        let mut after = rows(&other);
        after.sort();
        let differ = before
            .iter()
            .zip(&after)
            .find(|(before, after)| before != after);
        assert_eq!(differ, None, "{format:?}");
        assert_eq!(before.len(), after.len());
        // A second import finds each row in place.
        let (code, ..) = parts_of(&ingest(&other, &[], &exported.stdout));
        assert_eq!((code, other.rows()), (Some(0), db.rows()));
    }
    common::block_on(logger.shutdown()).unwrap();
}

#[actix_web::test]
async fn warning_has_a_sample_without_control_characters() {
    let service = Service::new(HttpOptions::default());
    let body = json!({"failure_type": "no\u{1b}[31m_hit\n", "strategy": "s", "query_text": "q"})
        .to_string();
    let (_, said) = service.post("/v1/failures", JSON, body).await;
    let reason = said["errors"][0]["detail"].as_str().unwrap();
    assert!(
        reason.starts_with(r#"failure_type = "no\u{1b}[31m_hit\n": expected"#),
        "{reason}"
    );
    let value: Value = said["detail"].clone();
    assert!(!value.as_str().unwrap().contains('\u{1b}'));
}
