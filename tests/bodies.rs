//! Bodies of requests and responses: compressed, too large, all or none, sent twice, without
//! chunks.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use awc::http::{Method, StatusCode};
use common::service::{JSON, LINES, Service, failure, response};
use failure_logger::http::HttpOptions;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn send(
    service: &Service,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (StatusCode, Value) {
    let request = service.request(Method::POST, path);
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.insert_header((*name, *value))
    });
    response(request.send_body(body).await).await
}

#[actix_web::test]
async fn compressed_bodies_are_read_and_bounded_by_what_they_contain() {
    let service = Service::new(HttpOptions::default().max_body_bytes(100_000, 200_000));
    let lines: String = (0..1000)
        .map(|nth| format!("{}\n", failure(&format!("q {nth}"))))
        .collect();
    let list = json!([failure("a"), failure("b")]).to_string();
    for (encoding, lines, list) in [
        (
            "gzip",
            gzip(lines.as_bytes()).await,
            gzip(list.as_bytes()).await,
        ),
        (
            "ZSTD",
            zstd(lines.as_bytes()).await,
            zstd(list.as_bytes()).await,
        ),
    ] {
        let headers = [("content-encoding", encoding), ("content-type", LINES)];
        let (status, said) = send(&service, "/v1/failures", &headers, lines.clone()).await;
        assert_eq!(
            (status, &said["accepted"]),
            (StatusCode::ACCEPTED, &json!(1000)),
            "{encoding}: {said}"
        );
        let headers = [("content-encoding", encoding), ("content-type", JSON)];
        let (status, said) = send(&service, "/v1/failures", &headers, list).await;
        assert_eq!(
            (status, &said["accepted"]),
            (StatusCode::ACCEPTED, &json!(2)),
            "{encoding}: {said}"
        );
        // The body is cut in its middle.
        let headers = [("content-encoding", encoding), ("content-type", LINES)];
        let (status, said) = send(
            &service,
            "/v1/failures",
            &headers,
            lines[..lines.len() / 2].to_vec(),
        )
        .await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_body")),
            "{encoding}: {said}"
        );
        let (status, said) = send(
            &service,
            "/v1/failures",
            &headers,
            b"no such thing".to_vec(),
        )
        .await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_body")),
            "{encoding}: {said}"
        );
    }
    // The bodies are small on the wire, and large when decoded.
    let bomb = vec![b' '; 50_000_000];
    for (encoding, bomb) in [("gzip", gzip(&bomb).await), ("zstd", zstd(&bomb).await)] {
        assert!(bomb.len() < 100_000);
        for content_type in [JSON, LINES] {
            let headers = [
                ("content-encoding", encoding),
                ("content-type", content_type),
            ];
            let (status, said) = send(&service, "/v1/failures", &headers, bomb.clone()).await;
            assert_eq!(
                (status, &said["code"]),
                (StatusCode::PAYLOAD_TOO_LARGE, &json!("body_too_large")),
                "{encoding}"
            );
        }
    }
    let headers = [("content-encoding", "br"), ("content-type", LINES)];
    let (status, said) = send(&service, "/v1/failures", &headers, b"x".to_vec()).await;
    assert_eq!(
        (status, &said["code"]),
        (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            &json!("unsupported_encoding")
        )
    );
}

#[actix_web::test]
async fn strict_request_is_accepted_whole_or_not_at_all() {
    let service = Service::new(HttpOptions::default());
    let bad = json!({"failure_type": "no_hit", "retrieval_strategy": "s", "query_text": "q", "latency_ms": -1});
    let (one, two) = (failure("one").to_string(), failure("two").to_string());
    let lists = [
        format!("[{one},{bad},{two}]"),
        format!("{one}\n{bad}\n{two}\n"),
    ];
    for (body, content_type) in lists.iter().zip([JSON, LINES]) {
        let (status, said) = service
            .post("/v1/failures?strict=true", content_type, body.clone())
            .await;
        assert_eq!(
            (status, &said["code"]),
            (
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!("no_record_accepted")
            ),
            "{said}"
        );
        assert_eq!(
            (&said["accepted"], &said["rejected"], &said["processed"]),
            (&json!(0), &json!(1), &json!(3))
        );
        let fault = &said["errors"][0];
        assert_eq!(
            (&fault["line"], &fault["pointer"], &fault["code"]),
            (&json!(2), &json!("/latency_ms"), &json!("invalid_value"))
        );
    }
    service.flush().await;
    assert_eq!(service.db.rows(), 0);
    let (status, said) = service
        .post("/v1/failures?strict=true", LINES, format!("{one}\n{two}"))
        .await;
    assert_eq!(
        (status, &said["accepted"]),
        (StatusCode::ACCEPTED, &json!(2))
    );
    // Without strict mode, the other records are accepted.
    let (status, said) = service.post("/v1/failures", LINES, lists[1].clone()).await;
    assert_eq!(
        (status, &said["accepted"], &said["processed"]),
        (StatusCode::ACCEPTED, &json!(2), &json!(3))
    );
    service.flush().await;
    assert_eq!(service.db.rows(), 4);
    // A record that is too old also rejects the whole request.
    let mut old = failure("old");
    old["created_at"] = json!("2001-01-01T00:00:00Z");
    let (status, said) = service
        .post("/v1/failures?strict=true", LINES, format!("{one}\n{old}"))
        .await;
    assert_eq!(
        (status, &said["errors"][0]["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("too_old")),
        "{said}"
    );
    service.flush().await;
    assert_eq!(service.db.rows(), 4);
}

#[actix_web::test]
async fn strict_request_with_one_id_for_two_records_stores_neither() {
    let service = Service::new(HttpOptions::default());
    let id = "01890000-0000-7000-8000-000000000001";
    let with_id = |query: &str| {
        let mut failure = failure(query);
        failure["event_id"] = id.into();
        failure
    };
    for body in [
        json!([with_id("x"), with_id("y")]),
        json!([with_id("x"), failure("z"), with_id("y")]),
    ] {
        let (status, said) = service
            .post("/v1/failures?strict=true", JSON, body.to_string())
            .await;
        assert_eq!(
            (status, &said["accepted"], &said["rejected"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(0), &json!(1))
        );
        assert_eq!(said["errors"][0]["code"], "event_id_reused", "{said}");
    }
    service.flush().await;
    assert_eq!(service.db.rows(), 0);
    // Two equal records are one, and a rejected request has taken no id.
    let (status, said) = service
        .post(
            "/v1/failures?strict=true",
            JSON,
            json!([with_id("y"), with_id("y")]).to_string(),
        )
        .await;
    assert_eq!(
        (status, &said["accepted"], &said["duplicates"]),
        (StatusCode::ACCEPTED, &json!(2), &json!(1)),
        "{said}"
    );
}

#[actix_web::test]
async fn same_id_with_any_other_content_is_rejected() {
    let service = Service::new(HttpOptions::default());
    let first = json!({"outcome": "low_confidence", "retrieval_strategy": "s", "query_text": "q", "top_score": 0.5,
        "latency_ms": 5, "query_len": 10, "event_id": "01890000-0000-7000-8000-000000000001"});
    let send = async |record: &Value| service.post("/v1/attempts", JSON, record.to_string()).await;
    assert_eq!(send(&first).await.1["duplicates"], 0);
    assert_eq!(send(&first).await.1["duplicates"], 1);
    for (field, value) in [
        ("outcome", json!("no_hit")),
        ("retrieval_strategy", json!("t")),
        ("query_text", json!("r")),
        ("query_len", json!(11)),
        ("top_score", json!(0.25)),
        ("confidence_threshold", json!(0.75)),
        ("score_direction", json!("lower_is_better")),
        ("result_count", json!(3)),
        ("latency_ms", json!(900)),
        ("conversation_id", json!("c")),
        ("turn_index", json!(1)),
        ("error_context", json!("e")),
        ("source", json!("shop")),
        ("labels", json!({"version": "1"})),
    ] {
        let mut other = first.clone();
        other[field] = value;
        let (status, said) = send(&other).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{field}: {said}");
        assert_eq!(said["errors"][0]["code"], "event_id_reused", "{field}");
    }
}

#[actix_web::test]
async fn each_fault_of_a_request_is_named_by_parameter_or_pointer() {
    let service = Service::new(HttpOptions::default());
    for (path, code, parameter) in [
        ("/v1/calibration", "invalid_parameter", "retrieval_strategy"),
        (
            "/v1/calibration?retrieval_strategy=a&retrieval_strategy=b",
            "invalid_parameter",
            "retrieval_strategy",
        ),
        ("/v1/failures?limit=1&limit=2", "invalid_parameter", "limit"),
        (
            "/v1/failures?since=24h&from=2026-01-01T00:00:00Z",
            "conflicting_parameters",
            "since",
        ),
        (
            "/v1/failures?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            "conflicting_parameters",
            "from",
        ),
        ("/v1/failures/abc", "invalid_parameter", "event_id"),
        ("/v1/export?bom=true", "conflicting_parameters", "bom"),
        ("/v1/export?format=csv&bom=1", "invalid_parameter", "bom"),
    ] {
        let (status, said) = service.read(path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(
            (&said["code"], &said["errors"][0]["parameter"]),
            (&json!(code), &json!(parameter)),
            "{path}: {said}"
        );
        assert!(
            !said["errors"][0]["detail"]
                .as_str()
                .unwrap()
                .contains("unsupported value"),
            "{said}"
        );
    }
    let body = json!({"query_text": "q", "status": "x"}).to_string();
    let request = service
        .request(Method::PUT, "/v1/queries/status")
        .insert_header(("content-type", JSON));
    let (status, said) = response(request.send_body(body).await).await;
    assert_eq!(
        (status, &said["errors"][0]["pointer"]),
        (StatusCode::BAD_REQUEST, &json!("/status")),
        "{said}"
    );
    // A probe may add any parameter.
    assert_eq!(service.read("/readyz?probe=7").await.0, StatusCode::OK);
}

#[actix_web::test]
async fn request_with_a_key_is_idempotent() {
    let service = Service::new(HttpOptions::default());
    let body = format!("{}\n{}\n", failure("one"), failure("one"));
    let headers = [
        ("idempotency-key", "0b2c6f3e-9b61-4c08"),
        ("content-type", LINES),
    ];
    let (_, first) = send(&service, "/v1/failures", &headers, body.clone().into()).await;
    let (_, second) = send(&service, "/v1/failures", &headers, body.clone().into()).await;
    assert_eq!(
        (&first["accepted"], &first["duplicates"]),
        (&json!(2), &json!(0)),
        "equal records are two"
    );
    assert_eq!(
        (&second["accepted"], &second["duplicates"]),
        (&json!(2), &json!(2))
    );
    service.flush().await;
    assert_eq!(service.db.rows(), 2);
    // Attempts are idempotent as well. The same key names another request, because it belongs to
    // one route.
    let attempts = format!(
        "{0}\n{0}\n",
        json!({"outcome": "success", "retrieval_strategy": "counted"})
    );
    for duplicates in [0, 2] {
        let (_, said) = send(&service, "/v1/attempts", &headers, attempts.clone().into()).await;
        assert_eq!(said["duplicates"], duplicates, "{said}");
    }
    service.flush().await;
    let (_, summary) = service.read("/v1/summary").await;
    let strategy = summary["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|strategy| strategy["retrieval_strategy"] == "counted")
        .unwrap();
    assert_eq!(strategy["rates"]["attempts"], 2);
    // The request has the same key and another body.
    let other = format!("{}\n", failure("other"));
    let (status, said) = send(&service, "/v1/failures", &headers, other.into()).await;
    assert_eq!(
        (status, &said["errors"][0]["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("event_id_reused"))
    );
    for key in ["", "a b", &"x".repeat(256)] {
        let (status, said) = send(
            &service,
            "/v1/failures",
            &[("idempotency-key", key), ("content-type", LINES)],
            body.clone().into(),
        )
        .await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_header")),
            "{key}"
        );
    }
    let headers = [
        ("content-type", JSON),
        ("idempotency-key", "a"),
        ("idempotency-key", "b"),
    ];
    let mut twice = service.request(Method::POST, "/v1/failures");
    for (name, value) in headers {
        twice = twice.append_header((name, value));
    }
    let (status, said) = response(twice.send_body(failure("q").to_string()).await).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_header")),
        "{said}"
    );
}

#[actix_web::test]
async fn truncated_list_is_rejected_and_a_long_one_blocks_no_worker() {
    let service = Service::new(HttpOptions::default());
    let list: Vec<Value> = (0..1000).map(|nth| failure(&format!("q {nth}"))).collect();
    let text = json!(list).to_string();
    let (status, said) = service
        .post("/v1/failures", JSON, &text[..text.len() - 20])
        .await;
    assert_eq!(
        (status, &said["code"], &said["accepted"]),
        (
            StatusCode::BAD_REQUEST,
            &json!("invalid_body"),
            &Value::Null
        )
    );
    // The one worker of this service serves other requests meanwhile.
    let numbers = format!("[{}1]", "1,".repeat(1_000_000));
    let long = service.post("/v1/failures", JSON, numbers);
    let mut long = std::pin::pin!(long);
    let mut served = 0;
    let (status, said) = loop {
        tokio::select! {
            biased;
            said = &mut long => break said,
            (status, _) = service.read("/livez") => {
                assert_eq!(status, StatusCode::OK);
                served += 1;
            }
        }
    };
    assert_eq!(
        (status, &said["rejected"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!(1_000_001)),
        "{said}"
    );
    assert_eq!(said["errors"].as_array().unwrap().len(), 100);
    assert!(served > 3, "{served}");
}

fn exchange(service: &Service, request: &str) -> String {
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

#[actix_web::test]
async fn old_clients_get_no_chunks_and_head_gets_no_body() {
    let service = Service::new(HttpOptions::default());
    let lines: String = (0..50)
        .map(|nth| format!("{}\n", failure(&format!("q {nth}"))))
        .collect();
    service.post("/v1/failures", LINES, lines).await;
    service.flush().await;
    let response = exchange(
        &service,
        "GET /v1/export HTTP/1.0\r\nHost: localhost\r\n\r\n",
    );
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    assert!(
        body.lines().count() == 50 && body.lines().all(|line| line.starts_with('{')),
        "{body}"
    );
    for path in [
        "/v1/failures",
        "/v1/summary",
        "/v1/queries",
        "/v1/stats",
        "/metrics",
        "/livez",
        "/openapi.json",
        "/",
    ] {
        let response = exchange(
            &service,
            &format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        );
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && body.is_empty(),
            "{path}: {response}"
        );
    }
}

#[actix_web::test]
async fn responses_are_compressed_on_request_and_tail_streams_never() {
    let service = Service::new(HttpOptions::default());
    for (path, encoding) in [
        ("/openapi.json", Some("gzip")),
        ("/v1/summary", Some("gzip")),
        ("/", Some("gzip")),
        ("/assets/main.js", Some("gzip")),
        ("/v1/tail", Some("identity")),
    ] {
        let request = service
            .get(path)
            .no_decompress()
            .insert_header(("accept-encoding", "gzip"));
        let sent = request.send().await.unwrap();
        let got = sent
            .headers()
            .get("content-encoding")
            .map(|value| value.to_str().unwrap());
        assert_eq!(got, encoding, "{path}");
    }
    let sent = service
        .get("/openapi.json")
        .no_decompress()
        .insert_header(("accept-encoding", "identity"))
        .send()
        .await
        .unwrap();
    assert!(sent.headers().get("content-encoding").is_none());
    let tag = sent
        .headers()
        .get("etag")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let again = service
        .get("/openapi.json")
        .insert_header(("if-none-match", tag))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
}

#[actix_web::test]
async fn filters_take_several_values_and_every_list_is_paged() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(0));
    let record = |strategy: &str, nth: usize| {
        json!({"failure_type": "no_hit", "retrieval_strategy": strategy, "query_text": format!("{strategy} word{nth} other{nth}"),
            "conversation_id": format!("c{nth}")})
        .to_string()
    };
    let lines: Vec<String> = ["a", "b", "c"]
        .iter()
        .flat_map(|strategy| (0..5).map(move |nth| record(strategy, nth)))
        .collect();
    service.post("/v1/failures", LINES, lines.join("\n")).await;
    service.flush().await;
    let (_, page) = service
        .read("/v1/failures?retrieval_strategy=a&retrieval_strategy=c&conversation_id=c1&conversation_id=c2")
        .await;
    assert_eq!(page["data"].as_array().unwrap().len(), 4, "{page}");
    let (_, page) = service
        .read("/v1/failures?query_text=a%20word1%20other1&query_text=b%20word2%20other2")
        .await;
    assert_eq!(
        (
            page["data"].as_array().unwrap().len(),
            &page["has_more"],
            &page["next"]
        ),
        (2, &json!(false), &Value::Null)
    );
    for (path, key, all) in [
        ("/v1/failures", "event_id", 15),
        ("/v1/queries", "id", 15),
        ("/v1/conversations", "conversation_id", 5),
        ("/v1/strategies", "retrieval_strategy", 3),
    ] {
        let (mut seen, mut cursor) = (std::collections::BTreeSet::new(), String::new());
        loop {
            let (status, page) = service.read(&format!("{path}?limit=2{cursor}")).await;
            assert_eq!(status, StatusCode::OK, "{path}: {page}");
            for item in page["data"].as_array().unwrap() {
                assert!(
                    seen.insert(item[key].to_string()),
                    "{path}: {item} occurs twice"
                );
            }
            assert_eq!(
                page["has_more"],
                json!(page["next"].is_string()),
                "{path}: {page}"
            );
            let Some(next) = page["next"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen.len(), all, "{path}");
    }
    // The group is read by its id.
    let (_, groups) = service.read("/v1/queries?limit=1").await;
    let id = groups["data"][0]["id"].as_str().unwrap();
    assert!(id.len() == 16 && groups["data"][0].get("key").is_none());
    let (_, page) = service
        .read(&format!("/v1/failures?query_group={id}"))
        .await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    // The id is valid in a service that has listed no groups.
    let other = Service::of(
        common::TestDb::new(),
        service.logger.clone(),
        HttpOptions::default(),
    );
    let (_, page) = other.read(&format!("/v1/failures?query_group={id}")).await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    let sent = other
        .request(Method::PUT, "/v1/queries/status")
        .content_type(JSON);
    let sent = sent
        .send_body(json!({"id": id, "status": "resolved"}).to_string())
        .await
        .unwrap();
    assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    let (_, resolved) = service.read("/v1/queries?status=resolved").await;
    assert_eq!(resolved["data"][0]["id"], id);
}

#[actix_web::test]
async fn cursor_of_a_replaced_log_is_rejected() {
    let (one, other) = (
        Service::new(HttpOptions::default()),
        Service::new(HttpOptions::default()),
    );
    for service in [&one, &other] {
        let lines: String = (0..4)
            .map(|nth| format!("{}\n", failure(&format!("q{nth} w{nth}"))))
            .collect();
        service.post("/v1/failures", LINES, lines).await;
        service.flush().await;
    }
    for path in ["/v1/failures", "/v1/queries"] {
        let (_, page) = one.read(&format!("{path}?limit=1")).await;
        let next = page["next"].as_str().unwrap();
        assert_eq!(
            one.read(&format!("{path}?limit=1&cursor={next}")).await.0,
            StatusCode::OK
        );
        let (status, said) = other.read(&format!("{path}?limit=1&cursor={next}")).await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_cursor")),
            "{path}: {said}"
        );
    }
}

#[actix_web::test]
async fn exports_beyond_their_limit_are_rejected_at_once() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(0));
    // The exports exceed the buffers of a connection.
    service.db.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 30000) \
         INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, query_len, created_at) \
         SELECT randomblob(16), 'no_hit', 's', printf('%0500d', n), 500, unixepoch() * 1000 - n FROM n",
    );
    // These clients read none of it.
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream
            .write_all(b"GET /v1/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        // The first byte shows that the export has its place.
        stream.read_exact(&mut [0]).unwrap();
        stalled.push(stream);
    }
    let (status, said) = service.read("/v1/export").await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("busy")),
        "{said}"
    );
    assert_eq!(service.read("/v1/summary").await.0, StatusCode::OK);
    drop(stalled);
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    for _ in 0..1000 {
        status = service.read("/v1/export").await.0;
        if status == StatusCode::OK {
            break;
        }
    }
    assert_eq!(status, StatusCode::OK, "an export ends with its client");
}

#[actix_web::test]
async fn health_lists_its_checks_and_a_drain_is_not_ready() {
    let options = HttpOptions::default();
    let service = Service::new(options.clone());
    assert_eq!(
        service.read("/livez").await,
        (StatusCode::OK, json!({"status": "ok"}))
    );
    for (path, names) in [
        ("/livez", ["actor", "workers"]),
        ("/readyz", ["database", "shutdown"]),
    ] {
        let (status, said) = service.read(&format!("{path}?verbose=true")).await;
        assert_eq!(status, StatusCode::OK);
        let checks = said["checks"].as_array().unwrap();
        assert!(
            checks
                .iter()
                .zip(names)
                .all(|(check, name)| check["name"] == name && check["ok"] == json!(true)),
            "{said}"
        );
    }
    options.begin_drain();
    let (status, said) = service.read("/readyz").await;
    assert_eq!(
        (status, &said["code"], &said["detail"]),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            &json!("not_ready"),
            &json!("the service is shutting down")
        )
    );
    assert_eq!(service.read("/livez").await.0, StatusCode::OK);
    assert_eq!(
        service
            .post("/v1/failures", JSON, failure("q").to_string())
            .await
            .0,
        StatusCode::ACCEPTED,
        "the request is served"
    );
}

#[actix_web::test]
async fn same_read_runs_once_for_all_its_clients() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(0));
    service.db.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000) \
         INSERT INTO memory_retrieval_failures (event_id, conversation_id, failure_type, retrieval_strategy, query_text, \
         query_len, created_at) SELECT randomblob(16), 'c' || n % 100, 'no_hit', 's', 'q', 1, unixepoch() * 1000 - n FROM n",
    );
    // These reads exceed the queue.
    let same = futures_util::future::join_all(
        (0..200).map(|_| service.read("/v1/conversations?since=1h")),
    )
    .await;
    assert!(
        same.iter().all(|(status, _)| *status == StatusCode::OK),
        "{:?}",
        same.iter().find(|one| one.0 != 200)
    );
    let others = (0..200).map(async |nth| {
        service
            .read(&format!("/v1/conversations?since={}m", 60 + nth))
            .await
            .0
    });
    let others = futures_util::future::join_all(others).await;
    assert!(
        others.contains(&StatusCode::SERVICE_UNAVAILABLE) && others.contains(&StatusCode::OK),
        "the queue is bounded"
    );
}
