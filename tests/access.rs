//! Who may ask what, from where, and how often.

mod common;

use awc::Client;
use awc::http::{Method, StatusCode};
use common::service::{JSON, Service, answer, failure};
use failure_logger::http::{self, HttpOptions, Origin};
use serde_json::Value;

#[actix_web::test]
async fn a_host_that_is_not_allowed_is_refused_everywhere() {
    let service = Service::new(HttpOptions::default().allow_host("Logger.Example".parse().unwrap()));
    // A health check knows an address, and HTTP/1.0 needs no Host.
    for path in ["/healthz", "/readyz"] {
        let sent = service.get(path).insert_header(("host", "10.1.2.3:4318")).send().await.unwrap();
        assert_eq!(sent.status().as_u16(), 200, "{path}");
        let mut stream = std::net::TcpStream::connect(service.address).unwrap();
        std::io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let said = std::io::read_to_string(stream).unwrap();
        assert!(said.starts_with("HTTP/1.0 200") || said.starts_with("HTTP/1.1 200"), "{path}: {said}");
    }
    for path in ["/v1/failures", "/v1/summary", "/metrics", "/openapi.json"] {
        for (host, status) in [
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("localhost:4318", 200),
            ("[::1]:80", 200),
            ("LOGGER.example.", 200),
        ] {
            let sent = service.get(path).insert_header(("host", host)).send().await.unwrap();
            assert_eq!(sent.status().as_u16(), status, "{host} {path}");
            assert_eq!(sent.headers().get("x-content-type-options").unwrap(), "nosniff");
            assert!(sent.headers().get("access-control-allow-origin").is_none());
        }
    }
}

#[actix_web::test]
async fn tokens_open_what_they_are_for_and_nothing_else() {
    let options = HttpOptions::default()
        .read_token("a token for those who read".replace(' ', "-").parse().unwrap())
        .ingest_token("a token for those who write".replace(' ', "-").parse().unwrap());
    assert!("short".parse::<http::Token>().is_err());
    assert!(!format!("{options:?}").contains("token-for"), "a secret is never shown");
    let service = Service::new(options);
    let (read, write) = ("Bearer a-token-for-those-who-read", "bearer  a-token-for-those-who-write");
    for (method, path, token, status) in [
        (Method::GET, "/v1/failures", None, 401),
        (Method::GET, "/v1/failures", Some(write), 401),
        (Method::GET, "/v1/failures", Some("Bearer a-token-for-those-who-rea"), 401),
        (Method::GET, "/v1/failures", Some("Basic a-token-for-those-who-read"), 401),
        (Method::GET, "/v1/failures", Some(read), 200),
        (Method::GET, "/metrics", None, 401),
        (Method::GET, "/metrics", Some(read), 200),
        (Method::POST, "/v1/failures", None, 401),
        (Method::POST, "/v1/failures", Some(read), 401),
        (Method::POST, "/v1/failures", Some(write), 202),
        (Method::GET, "/healthz", None, 200),
        (Method::GET, "/readyz", None, 200),
    ] {
        let mut request = service.request(method.clone(), path).content_type(JSON);
        if let Some(token) = token {
            request = request.insert_header(("authorization", token));
        }
        let sent = request.send_body(failure("q").to_string()).await.unwrap();
        assert_eq!(sent.status().as_u16(), status, "{method} {path} {token:?}");
        assert_eq!(sent.headers().contains_key("www-authenticate"), status == 401);
    }
}

/// Asks until it is refused.
async fn refused(mut ask: impl AsyncFnMut() -> (StatusCode, Value)) -> Value {
    for _ in 0..1000 {
        match ask().await {
            (StatusCode::TOO_MANY_REQUESTS, said) => return said,
            (status, said) => assert!(status.is_success() || status == StatusCode::UNAUTHORIZED, "{status} {said}"),
        }
    }
    panic!("a thousand requests, and none was refused")
}

#[actix_web::test]
async fn whoever_comes_too_often_is_told_by_which_limit_and_may_still_ask_for_health() {
    let service = Service::new(HttpOptions::default().max_questions_per_second(2).max_posts_per_second(3));
    let detail = |said: Value| said["detail"].as_str().map(str::to_owned).unwrap();
    for path in ["/v1/summary", "/v1/failures", "/v1/export", "/metrics"] {
        let said = detail(refused(async || service.ask(path).await).await);
        assert_eq!(said, "max_questions_per_second: 2 from one address; come again in a second", "{path}");
    }
    for path in ["/v1/failures", "/v1/attempts"] {
        let said = detail(refused(async || service.post(path, JSON, "[]").await).await);
        assert_eq!(said, "max_posts_per_second: 3 from one address; come again in a second", "{path}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        for _ in 0..20 {
            assert_eq!(service.ask(path).await.0, StatusCode::OK, "{path}");
        }
    }
    for _ in 0..1000 {
        let sent = service.get("/v1/summary").send().await.unwrap();
        if sent.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(sent.headers().get("retry-after").unwrap(), "1");
            assert_eq!(sent.headers().get("content-type").unwrap(), "application/problem+json");
            return;
        }
    }
    panic!("a thousand questions, and none was refused");
}

#[actix_web::test]
async fn one_address_does_not_use_up_what_another_may_ask() {
    let service = Service::new(HttpOptions::default().max_questions_per_second(1));
    refused(async || service.ask("/v1/summary").await).await;
    // One of them may meet the first in the table of addresses, but hardly all of them.
    let mut others = Vec::new();
    for last in 2..6 {
        let client = Client::builder().local_address(std::net::Ipv4Addr::new(127, 0, 0, last).into()).finish();
        others.push(client.get(format!("http://{}/v1/summary", service.address)).send().await.unwrap().status());
    }
    assert!(others.contains(&StatusCode::OK), "{others:?}");
}

#[actix_web::test]
async fn without_a_limit_nobody_is_refused() {
    let service = Service::new(HttpOptions::default().max_questions_per_second(0));
    for _ in 0..600 {
        assert_eq!(service.ask("/v1/conversations").await.0, StatusCode::OK);
    }
}

#[actix_web::test]
async fn tokens_cannot_be_guessed_quickly() {
    let options =
        HttpOptions::default().read_token("the-only-token-of-all".parse().unwrap()).max_questions_per_second(0);
    let service = Service::new(options);
    let show = async |token: &str| answer(service.get("/v1/summary").bearer_auth(token).send().await).await;
    let mut guesses = 0;
    let said = refused(async || {
        guesses += 1;
        show(&format!("a-guess-of-the-token-{guesses}")).await
    });
    assert!(said.await["detail"].as_str().unwrap().contains("wrong tokens"));
    assert!(guesses > 10, "{guesses}");
    // The right one must not stand out, so it is refused as well.
    refused(async || {
        show("another-guess-of-the-token").await;
        show("the-only-token-of-all").await
    })
    .await;
    // Who shows none guesses nothing.
    assert_eq!(service.ask("/v1/summary").await.0, StatusCode::UNAUTHORIZED);
    for _ in 0..100_000 {
        if show("the-only-token-of-all").await.0 == StatusCode::OK {
            return;
        }
    }
    panic!("the right token is refused for ever");
}

#[actix_web::test]
async fn pages_of_other_origins_are_told_nothing_unless_theirs_is_allowed() {
    let token = "the-only-token-of-all";
    let with_tokens = || HttpOptions::default().read_token(token.parse().unwrap()).ingest_token(token.parse().unwrap());
    let (open, closed) = (
        Service::new(with_tokens().allow_origin("https://Dashboard.example:8443".parse().unwrap())),
        Service::new(with_tokens()),
    );
    let preflight = async |service: &Service, origin: &str, method: &str, header: &str| {
        let request = service.request(Method::OPTIONS, "/v1/failures").insert_header(("origin", origin));
        let request = request.insert_header(("access-control-request-method", method));
        request.insert_header(("access-control-request-headers", header)).send().await.unwrap()
    };
    let cors = |sent: &awc::ClientResponse<_>| {
        sent.headers().iter().any(|(name, _)| name.as_str().starts_with("access-control"))
    };
    let mine = "https://dashboard.example:8443";
    // What a browser asks before: without a token.
    for method in ["GET", "POST"] {
        let sent = preflight(&open, mine, method, "authorization, content-type").await;
        assert_eq!(sent.status(), StatusCode::OK);
        let header = |name: &str| sent.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header("access-control-allow-origin"), mine);
        assert!(header("access-control-allow-methods").contains(method));
        assert!(header("access-control-allow-headers").contains("authorization"));
        assert_eq!(header("x-content-type-options"), "nosniff");
    }
    for (origin, method, header) in [
        ("https://evil.example", "GET", "authorization"),
        ("https://dashboard.example", "GET", "authorization"),
        ("null", "GET", "authorization"),
        (mine, "DELETE", "authorization"),
        (mine, "GET", "x-anything"),
    ] {
        let sent = preflight(&open, origin, method, header).await;
        assert!(!cors(&sent));
        let (status, said) = answer(Ok(sent)).await;
        assert_eq!((status, &said["status"]), (StatusCode::BAD_REQUEST, &serde_json::json!(400)), "{said}");
    }
    let evil_host = open.request(Method::OPTIONS, "/v1/failures").insert_header(("origin", mine));
    let evil_host = evil_host.insert_header(("access-control-request-method", "GET"));
    let sent = evil_host.insert_header(("host", "evil.example")).send().await.unwrap();
    assert_eq!((sent.status(), cors(&sent)), (StatusCode::MISDIRECTED_REQUEST, false));
    // Then the request itself; a page must be able to read that it was refused, too.
    for (shown, status) in [(Some(token), 200), (None, 401), (Some("a-guess-of-the-token"), 401)] {
        let mut request = open.get("/v1/summary").insert_header(("origin", mine));
        if let Some(shown) = shown {
            request = request.bearer_auth(shown);
        }
        let sent = request.send().await.unwrap();
        assert_eq!(sent.status().as_u16(), status);
        assert_eq!(sent.headers().get("access-control-allow-origin").unwrap(), mine);
    }
    let sent =
        open.get("/v1/summary").insert_header(("origin", "https://evil.example")).bearer_auth(token).send().await;
    assert!(!sent.unwrap().headers().contains_key("access-control-allow-origin"));
    // Where none is allowed, there is nothing of it at all.
    let sent = preflight(&closed, mine, "GET", "authorization").await;
    assert_eq!((sent.status(), cors(&sent)), (StatusCode::UNAUTHORIZED, false));
    let sent = closed.get("/v1/summary").insert_header(("origin", mine)).bearer_auth(token).send().await.unwrap();
    assert_eq!((sent.status(), cors(&sent)), (StatusCode::OK, false));
}

#[test]
fn an_origin_is_a_scheme_and_a_host() {
    for fine in ["https://a.example", "http://localhost:3000", "http://[::1]:1", "HTTPS://A.example"] {
        assert!(fine.parse::<Origin>().is_ok(), "{fine}");
    }
    for wrong in ["", "*", "null", "a.example", "https://", "https://a.example/", "https://a b", "ftp://a.example"] {
        assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
    }
}
