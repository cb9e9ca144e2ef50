//! Every response that `/openapi.json` describes occurs, over real HTTP.

mod common;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use awc::http::Method;
use common::TestDb;
use common::service::{JSON, LINES, Service, failure, response};
use failure_logger::FailureLogger;
use failure_logger::http::{self, HttpOptions, Scope};
use serde_json::{Value, json};

/// Services, each with a property that the others lack.
struct Services {
    plain: Service,
    with_tokens: Service,
    limited: Service,
    small: Service,
    hasty: Service,
    disabled: Service,
    damaged: Service,
    deleting: Service,
    ended: Service,
}

const TOKEN: &str = "the-only-token-of-all";

impl Services {
    async fn new() -> Self {
        let options = || HttpOptions::default().max_reads_per_second(0);
        let token: http::Token = TOKEN.parse().unwrap();
        let db = TestDb::new();
        let disabled = FailureLogger::spawn(db.config().enabled(false)).unwrap();
        let damaged = Service::new(options());
        damaged.logger.shutdown().await.unwrap();
        std::fs::write(damaged.db.path(), "this is no database".repeat(1000)).unwrap();
        let deleting = Service::new(options().token("eraser", token.clone(), [Scope::Erase]));
        let ended = Service::new(options().token("eraser", token.clone(), [Scope::Erase]));
        ended.logger.shutdown().await.unwrap();
        Self {
            plain: Service::new(options()),
            with_tokens: Service::new(
                options()
                    .token(
                        "reader",
                        token.clone(),
                        [Scope::Read, Scope::Triage, Scope::Metrics],
                    )
                    .token("sender", token.clone(), [Scope::Ingest])
                    .token("eraser", token, [Scope::Erase]),
            ),
            limited: Service::new(options().max_reads_per_second(1).max_posts_per_second(1)),
            small: Service::new(options().max_body_bytes(10, 10)),
            hasty: Service::new(options().body_timeout(Duration::ZERO)),
            disabled: Service::of(db, disabled, options()),
            damaged,
            deleting,
            ended,
        }
    }
}

/// A response: its status, its media type, and its body if that is JSON.
type Response = (u16, String, Value);

async fn get(service: &Service, path: &str) -> Response {
    received(service.get(path).send().await).await
}

async fn send_body(
    service: &Service,
    method: &str,
    path: &str,
    content_type: &str,
    body: &str,
) -> Response {
    let request = service
        .request(method.to_ascii_uppercase().parse().unwrap(), path)
        .content_type(content_type);
    received(request.send_body(body.to_owned()).await).await
}

async fn received<S>(sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>) -> Response
where
    S: futures_util::Stream<Item = Result<actix_web::web::Bytes, awc::error::PayloadError>>,
{
    let sent = sent.unwrap();
    let header = sent
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    let media_type = header
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .to_owned();
    // The stream has no end.
    if media_type == "text/event-stream" {
        return (sent.status().as_u16(), media_type, Value::Null);
    }
    let (status, said) = response(Ok(sent)).await;
    (status.as_u16(), media_type, said)
}

/// Sends half a request, and never the other half.
fn send_half(service: &Service, method: &str, path: &str) -> Response {
    let mut stream = std::net::TcpStream::connect(service.address).unwrap();
    let head = format!(
        "{} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n",
        method.to_ascii_uppercase()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    let header = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "))
        .unwrap();
    (
        head[9..12].parse().unwrap(),
        header.to_owned(),
        serde_json::from_str(body).unwrap(),
    )
}

/// Sends requests until one is rejected. A new second may begin between two requests, but not
/// between any two.
async fn until_rejected(mut send: impl AsyncFnMut() -> Response) -> Response {
    let mut response = send().await;
    for _ in 0..1000 {
        if response.0 == 429 {
            break;
        }
        response = send().await;
    }
    response
}

/// Returns an export with one retrieval, which has no parent and so does not wait.
fn export() -> Value {
    let kind = json!({"key": "openinference.span.kind", "value": {"stringValue": "RETRIEVER"}});
    let span = json!({
        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174",
        "endTimeUnixNano": "1790000000000000000", "attributes": [kind],
    });
    json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
}

/// Sends a request that gets a response with this status.
async fn response_with(services: &Services, method: &str, path: &str, status: u16) -> Response {
    let one = match path {
        "/v1/queries/status" => json!({"query_text": "why", "status": "open"}).to_string(),
        "/v1/attempts" => json!({"strategy": "s", "outcome": "success"}).to_string(),
        "/v1/traces" => export().to_string(),
        _ => failure("q").to_string(),
    };
    let filled = path.replace("{event_id}", "01890000-0000-7000-8000-000000000001");
    let uri = if path == "/v1/calibration" {
        format!("{filled}?retrieval_strategy=s&")
    } else {
        format!("{filled}?")
    };
    match (method, status) {
        ("get", 202) => {
            // One client waits for a millisecond, while the service groups many queries of another
            // client.
            let line = |nth| failure(&format!("{nth} is query {}", nth * 7 % 997)).to_string();
            let lines: Vec<String> = (0..5000).map(line).collect();
            send_body(
                &services.plain,
                "post",
                "/v1/failures",
                LINES,
                &lines.join("\n"),
            )
            .await;
            services.plain.flush().await;
            let later = get(&services.plain, &format!("{uri}wait_ms=1&limit=7")).await;
            services
                .plain
                .db
                .execute("DELETE FROM memory_retrieval_failures");
            later
        }
        ("get", 200) if path.contains('{') => {
            let mut one = failure("q");
            one["event_id"] = json!("01890000-0000-7000-8000-000000000001");
            send_body(
                &services.plain,
                "post",
                "/v1/failures",
                JSON,
                &one.to_string(),
            )
            .await;
            services.plain.flush().await;
            let found = get(&services.plain, &uri).await;
            services
                .plain
                .db
                .execute("DELETE FROM memory_retrieval_failures");
            found
        }
        ("get", 200 | 404) => get(&services.plain, &uri).await,
        ("get", 400) if path.contains('{') => {
            get(&services.plain, &path.replace("{event_id}", "no-id")).await
        }
        ("get", 400) if path.ends_with('z') => {
            get(&services.plain, &format!("{path}?verbose=red")).await
        }
        ("get", 400) => get(&services.plain, &format!("{uri}colour=red")).await,
        ("get", 401) => get(&services.with_tokens, &uri).await,
        ("get", 421) => {
            received(
                services
                    .plain
                    .get(&uri)
                    .insert_header(("host", "evil.example"))
                    .send()
                    .await,
            )
            .await
        }
        ("get", 429) => until_rejected(async || get(&services.limited, &uri).await).await,
        ("get", 500) => get(&services.damaged, &uri).await,
        ("get", 503) => get(&services.disabled, &uri).await,
        ("get" | "post" | "put", 403) => {
            let request = services
                .plain
                .request(method.to_ascii_uppercase().parse().unwrap(), &uri);
            received(
                request
                    .insert_header(("sec-fetch-site", "cross-site"))
                    .send()
                    .await,
            )
            .await
        }
        ("post", 202) => send_body(&services.plain, method, path, JSON, &one).await,
        ("post", 200) => send_body(&services.plain, method, path, JSON, &one).await,
        ("put", 204) => send_body(&services.plain, method, path, JSON, &one).await,
        ("post" | "put", 400) => send_body(&services.plain, method, path, JSON, "{").await,
        ("post" | "put", 401) => send_body(&services.with_tokens, method, path, JSON, &one).await,
        ("post" | "put", 408) => send_half(&services.hasty, method, path),
        ("post" | "put", 413) => {
            send_body(&services.small, method, path, JSON, &one.repeat(2000)).await
        }
        ("post" | "put", 415) => send_body(&services.plain, method, path, "text/plain", &one).await,
        ("post" | "put", 421) => {
            let request = services
                .plain
                .request(method.to_ascii_uppercase().parse().unwrap(), path)
                .insert_header(("host", "evil.example"));
            received(request.content_type(JSON).send_body(one).await).await
        }
        ("delete", 403) => {
            received(
                services
                    .plain
                    .request(Method::DELETE, "/v1/failures?query_text=q")
                    .send()
                    .await,
            )
            .await
        }
        ("delete", 401) => {
            received(
                services
                    .with_tokens
                    .request(Method::DELETE, "/v1/failures?query_text=q")
                    .send()
                    .await,
            )
            .await
        }
        ("delete", 421) => {
            let request = services
                .plain
                .request(Method::DELETE, "/v1/failures")
                .insert_header(("host", "evil.example"));
            received(request.send().await).await
        }
        ("delete", 429) => {
            let wrong = || {
                services
                    .with_tokens
                    .request(Method::DELETE, "/v1/failures?query_text=q")
                    .bearer_auth("no-such-token-here")
            };
            until_rejected(async || received(wrong().send().await).await).await
        }
        ("delete", 200 | 400 | 503) => {
            let service = if status == 503 {
                &services.ended
            } else {
                &services.deleting
            };
            let query = match status {
                400 => "",
                _ => "?query_text=q",
            };
            let request = service
                .request(Method::DELETE, &format!("/v1/failures{query}"))
                .bearer_auth(TOKEN);
            received(request.send().await).await
        }
        ("put", 404) => {
            let body = json!({"query_text": "never logged", "status": "resolved"}).to_string();
            send_body(&services.plain, method, path, JSON, &body).await
        }
        ("post", 422) => {
            send_body(
                &services.plain,
                method,
                path,
                JSON,
                r#"{"outcome": "maybe"}"#,
            )
            .await
        }
        ("post" | "put", 429) => {
            until_rejected(async || send_body(&services.limited, method, path, JSON, "[]").await)
                .await
        }
        ("post" | "put", 503) => send_body(&services.disabled, method, path, JSON, &one).await,
        (_, 405) => received(services.plain.request(Method::PATCH, &filled).send().await).await,
        _ => panic!("{method} {path} {status}: this response is described, and no test gets it"),
    }
}

/// Returns the parts of a body that violate its schema. A schema refers to others of the
/// description.
fn faults_of(description: &Value, schema: &Value, body: &Value) -> Vec<String> {
    let mut root = schema.clone();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["components"] = description["components"].clone();
    let validator = jsonschema::validator_for(&root).expect("a schema");
    validator
        .iter_errors(body)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[actix_web::test]
async fn operations_have_ids_of_their_own_and_responses_a_description() {
    let services = Services::new().await;
    let (_, description) = services.plain.read("/openapi.json").await;
    let mut ids = std::collections::BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} occurs twice");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let text = response["description"].as_str().unwrap_or_default();
                assert!(
                    !text.is_empty(),
                    "{method} {path} {status} has no description"
                );
            }
        }
    }
    assert!(ids.len() > 15);
}

#[actix_web::test]
async fn every_response_that_is_described_occurs() {
    let services = Services::new().await;
    let (_, description) = services.plain.read("/openapi.json").await;
    let mut shown = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let status: u16 = status.parse().unwrap();
                // Liveness fails only if an event loop is blocked, which the tests of `health.rs`
                // show.
                if status == 503 && matches!(path.as_str(), "/livez" | "/healthz") {
                    continue;
                }
                let (got, media_type, said) = response_with(&services, method, path, status).await;
                assert_eq!(got, status, "{method} {path}: {said}");
                let described = match response["content"].as_object() {
                    Some(content) => content.contains_key(&media_type),
                    None => media_type.is_empty(),
                };
                assert!(described, "{method} {path} {status}: {media_type}");
                if media_type.contains("json") && !media_type.contains("ndjson") {
                    let faults = faults_of(
                        &description,
                        &response["content"][&media_type]["schema"],
                        &said,
                    );
                    assert!(
                        faults.is_empty(),
                        "{method} {path} {status}: {faults:?} in {said}"
                    );
                }
                if status >= 400 {
                    // The protocol of traces has another form of errors.
                    let (is_named, detail) = match path.as_str() {
                        "/v1/traces" => (said["code"].is_number(), &said["message"]),
                        _ => (said["status"] == status, &said["detail"]),
                    };
                    let fine = is_named && detail.as_str().is_some_and(|text| !text.is_empty());
                    assert!(fine, "{method} {path} {status}: {said}");
                }
                shown += 1;
            }
        }
    }
    assert!(shown > 100, "{shown}");
}
