//! Every answer that `/openapi.json` describes can be had, over real HTTP.

mod common;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use awc::http::Method;
use common::TestDb;
use common::service::{JSON, LINES, Service, answer, failure};
use failure_logger::FailureLogger;
use failure_logger::http::{self, HttpOptions};
use serde_json::{Value, json};

/// Services, each with something about it that another has not.
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
        let options = || HttpOptions::default().max_questions_per_second(0);
        let token: http::Token = TOKEN.parse().unwrap();
        let db = TestDb::new();
        let disabled = FailureLogger::spawn(db.config().enabled(false)).unwrap();
        let damaged = Service::new(options());
        damaged.logger.shutdown().await.unwrap();
        std::fs::write(damaged.db.path(), "this is no database".repeat(1000)).unwrap();
        let deleting = Service::new(options().delete_token(token.clone()));
        let ended = Service::new(options().delete_token(token.clone()));
        ended.logger.shutdown().await.unwrap();
        Self {
            plain: Service::new(options()),
            with_tokens: Service::new(
                options().read_token(token.clone()).ingest_token(token.clone()).delete_token(token),
            ),
            limited: Service::new(options().max_questions_per_second(1).max_posts_per_second(1)),
            small: Service::new(options().max_body_bytes(10, 10)),
            hasty: Service::new(options().body_timeout(Duration::ZERO)),
            disabled: Service::of(db, disabled, options()),
            damaged,
            deleting,
            ended,
        }
    }
}

/// An answer: its status, its media type, and its body if that is JSON.
type Answer = (u16, String, Value);

async fn get(service: &Service, path: &str) -> Answer {
    taken(service.get(path).send().await).await
}

async fn bring(service: &Service, method: &str, path: &str, content_type: &str, body: &str) -> Answer {
    let request = service.request(method.to_ascii_uppercase().parse().unwrap(), path).content_type(content_type);
    taken(request.send_body(body.to_owned()).await).await
}

async fn taken<S>(sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>) -> Answer
where
    S: futures_util::Stream<Item = Result<actix_web::web::Bytes, awc::error::PayloadError>>,
{
    let sent = sent.unwrap();
    let header = sent.headers().get("content-type").and_then(|value| value.to_str().ok());
    let media_type = header.and_then(|value| value.split(';').next()).unwrap_or_default().to_owned();
    // It has no end.
    if media_type == "text/event-stream" {
        return (sent.status().as_u16(), media_type, Value::Null);
    }
    let (status, said) = answer(Ok(sent)).await;
    (status.as_u16(), media_type, said)
}

/// Half a request, whose other half never comes.
fn half(service: &Service, method: &str, path: &str) -> Answer {
    let mut stream = std::net::TcpStream::connect(service.address).unwrap();
    let head = format!(
        "{} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n",
        method.to_ascii_uppercase()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    let header = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (head[9..12].parse().unwrap(), header.to_owned(), serde_json::from_str(body).unwrap())
}

/// Another second may have begun between two requests, but not between any two.
async fn until_refused(mut ask: impl AsyncFnMut() -> Answer) -> Answer {
    let mut answer = ask().await;
    for _ in 0..1000 {
        if answer.0 == 429 {
            break;
        }
        answer = ask().await;
    }
    answer
}

/// Asks for an answer with this status.
async fn provoke(of: &Services, method: &str, path: &str, status: u16) -> Answer {
    let one = match path {
        "/v1/queries/status" => json!({"question": "why", "status": "open"}).to_string(),
        "/v1/attempts" => json!({"strategy": "s", "outcome": "success"}).to_string(),
        _ => failure("q").to_string(),
    };
    let filled = path.replace("{event_id}", "01890000-0000-7000-8000-000000000001");
    let question = if path == "/v1/calibration" { format!("{filled}?strategy=s&") } else { format!("{filled}?") };
    match (method, status) {
        ("get", 202) => {
            // Whoever waits for a millisecond, while somebody else's many questions are grouped.
            let line = |nth| failure(&format!("{nth} is question {}", nth * 7 % 997)).to_string();
            let lines: Vec<String> = (0..5000).map(line).collect();
            bring(&of.plain, "post", "/v1/failures", LINES, &lines.join("\n")).await;
            of.plain.flush().await;
            let later = get(&of.plain, &format!("{question}wait_ms=1&limit=7")).await;
            of.plain.db.execute("DELETE FROM memory_retrieval_failures");
            later
        }
        ("get", 200) if path.contains('{') => {
            let mut one = failure("q");
            one["event_id"] = json!("01890000-0000-7000-8000-000000000001");
            bring(&of.plain, "post", "/v1/failures", JSON, &one.to_string()).await;
            of.plain.flush().await;
            let found = get(&of.plain, &question).await;
            of.plain.db.execute("DELETE FROM memory_retrieval_failures");
            found
        }
        ("get", 200 | 404) => get(&of.plain, &question).await,
        ("get", 400) if path.contains('{') => get(&of.plain, &path.replace("{event_id}", "no-id")).await,
        ("get", 400) => get(&of.plain, &format!("{question}colour=red")).await,
        ("get", 401) => get(&of.with_tokens, &question).await,
        ("get", 409) => get(&of.plain, &format!("{question}since=1d&from=2026-01-01T00:00:00Z")).await,
        ("get", 421) => taken(of.plain.get(&question).insert_header(("host", "evil.example")).send().await).await,
        ("get", 429) => until_refused(async || get(&of.limited, &question).await).await,
        ("get", 500) => get(&of.damaged, &question).await,
        ("get", 503) => get(&of.disabled, &question).await,
        ("post", 202) => bring(&of.plain, method, path, JSON, &one).await,
        ("put", 204) => bring(&of.plain, method, path, JSON, &one).await,
        ("post" | "put", 400) => bring(&of.plain, method, path, JSON, "{").await,
        ("post" | "put", 401) => bring(&of.with_tokens, method, path, JSON, &one).await,
        ("post" | "put", 408) => half(&of.hasty, method, path),
        ("post" | "put", 413) => bring(&of.small, method, path, JSON, &one.repeat(2000)).await,
        ("post" | "put", 415) => bring(&of.plain, method, path, "text/plain", &one).await,
        ("post" | "put", 421) => {
            let request = of
                .plain
                .request(method.to_ascii_uppercase().parse().unwrap(), path)
                .insert_header(("host", "evil.example"));
            taken(request.content_type(JSON).send_body(one).await).await
        }
        ("delete", 403) => taken(of.plain.request(Method::DELETE, "/v1/failures?query=q").send().await).await,
        ("delete", 401) => taken(of.with_tokens.request(Method::DELETE, "/v1/failures?query=q").send().await).await,
        ("delete", 421) => {
            let request = of.plain.request(Method::DELETE, "/v1/failures").insert_header(("host", "evil.example"));
            taken(request.send().await).await
        }
        ("delete", 429) => {
            let wrong =
                || of.with_tokens.request(Method::DELETE, "/v1/failures?query=q").bearer_auth("no-such-token-here");
            until_refused(async || taken(wrong().send().await).await).await
        }
        ("delete", 200 | 400 | 409 | 503) => {
            let of = if status == 503 { &of.ended } else { &of.deleting };
            let query = match status {
                400 => "",
                409 => "?query=q&conversation=c",
                _ => "?query=q",
            };
            let request = of.request(Method::DELETE, &format!("/v1/failures{query}")).bearer_auth(TOKEN);
            taken(request.send().await).await
        }
        ("put", 404) => {
            let body = json!({"question": "nobody asked", "status": "resolved"}).to_string();
            bring(&of.plain, method, path, JSON, &body).await
        }
        ("post", 422) => bring(&of.plain, method, path, JSON, r#"{"outcome": "maybe"}"#).await,
        ("post" | "put", 429) => until_refused(async || bring(&of.limited, method, path, JSON, "[]").await).await,
        ("post" | "put", 503) => bring(&of.disabled, method, path, JSON, &one).await,
        (_, 405) => taken(of.plain.request(Method::PATCH, &filled).send().await).await,
        _ => panic!("{method} {path} {status}: described, and shown by nobody"),
    }
}

#[actix_web::test]
async fn every_answer_that_is_described_can_be_had() {
    let services = Services::new().await;
    let (_, description) = services.plain.ask("/openapi.json").await;
    let mut shown = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let status: u16 = status.parse().unwrap();
                let (got, media_type, said) = provoke(&services, method, path, status).await;
                assert_eq!(got, status, "{method} {path}: {said}");
                let described = match response["content"].as_object() {
                    Some(content) => content.contains_key(&media_type),
                    None => media_type.is_empty(),
                };
                assert!(described, "{method} {path} {status}: {media_type}");
                if status >= 400 {
                    let fine = said["status"] == status && said["detail"].as_str().is_some_and(|text| !text.is_empty());
                    assert!(fine, "{method} {path} {status}: {said}");
                }
                shown += 1;
            }
        }
    }
    assert!(shown > 100, "{shown}");
}
