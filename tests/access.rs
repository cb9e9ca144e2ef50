//! Hosts, tokens, origins and rate limits: which request gets which response.

mod common;

use awc::Client;
use awc::http::{Method, StatusCode};
use common::service::{JSON, Service, failure, response};
use failure_logger::http::{self, HttpOptions, Origin, Scope};
use serde_json::Value;

#[actix_web::test]
async fn host_that_is_not_allowed_is_rejected_everywhere() {
    let service =
        Service::new(HttpOptions::default().allow_host("Logger.Example".parse().unwrap()));
    // A health check knows only an address, and HTTP/1.0 needs no Host.
    for path in ["/healthz", "/readyz"] {
        let sent = service
            .get(path)
            .insert_header(("host", "10.1.2.3:4318"))
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status().as_u16(), 200, "{path}");
        let mut stream = std::net::TcpStream::connect(service.address).unwrap();
        std::io::Write::write_all(
            &mut stream,
            format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(),
        )
        .unwrap();
        let said = std::io::read_to_string(stream).unwrap();
        assert!(
            said.starts_with("HTTP/1.0 200") || said.starts_with("HTTP/1.1 200"),
            "{path}: {said}"
        );
    }
    for path in ["/v1/failures", "/v1/summary", "/metrics", "/openapi.json"] {
        for (host, status) in [
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("localhost:4318", 200),
            ("[::1]:80", 200),
            ("LOGGER.example.", 200),
        ] {
            let sent = service
                .get(path)
                .insert_header(("host", host))
                .send()
                .await
                .unwrap();
            assert_eq!(sent.status().as_u16(), status, "{host} {path}");
            assert_eq!(
                sent.headers().get("x-content-type-options").unwrap(),
                "nosniff"
            );
            assert!(sent.headers().get("access-control-allow-origin").is_none());
        }
    }
}

#[actix_web::test]
async fn tokens_permit_their_scope_and_nothing_else() {
    let options = HttpOptions::default()
        .token(
            "reader",
            "a token for the readers".replace(' ', "-").parse().unwrap(),
            [Scope::Read, Scope::Triage, Scope::Metrics],
        )
        .token(
            "sender",
            "a token for the senders".replace(' ', "-").parse().unwrap(),
            [Scope::Ingest],
        );
    assert!("short".parse::<http::Token>().is_err());
    assert!(
        !format!("{options:?}").contains("token-for"),
        "a secret is never shown"
    );
    let service = Service::new(options);
    let (read, write) = (
        "Bearer a-token-for-the-readers",
        "bearer  a-token-for-the-senders",
    );
    for (method, path, token, status) in [
        (Method::GET, "/v1/failures", None, 401),
        (Method::GET, "/v1/failures", Some(write), 403),
        (
            Method::GET,
            "/v1/failures",
            Some("Bearer a-token-for-the-reader"),
            401,
        ),
        (
            Method::GET,
            "/v1/failures",
            Some("Basic a-token-for-the-readers"),
            401,
        ),
        (Method::GET, "/v1/failures", Some(read), 200),
        (Method::GET, "/metrics", None, 401),
        (Method::GET, "/metrics", Some(read), 200),
        (Method::POST, "/v1/failures", None, 401),
        (Method::POST, "/v1/failures", Some(read), 403),
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
        assert_eq!(
            sent.headers().contains_key("www-authenticate"),
            matches!(status, 401 | 403)
        );
    }
}

/// Sends requests until one is rejected. Returns its body.
async fn rejected(mut send: impl AsyncFnMut() -> (StatusCode, Value)) -> Value {
    for _ in 0..1000 {
        match send().await {
            (StatusCode::TOO_MANY_REQUESTS, said) => return said,
            (status, said) => assert!(
                status.is_success() || status == StatusCode::UNAUTHORIZED,
                "{status} {said}"
            ),
        }
    }
    panic!("a thousand requests, and none was rejected")
}

#[actix_web::test]
async fn client_beyond_a_limit_gets_its_name_and_may_read_health() {
    let service = Service::new(
        HttpOptions::default()
            .max_reads_per_second(2)
            .max_posts_per_second(3),
    );
    let detail = |said: Value| said["detail"].as_str().map(str::to_owned).unwrap();
    for path in ["/v1/summary", "/v1/failures", "/v1/export", "/metrics"] {
        let said = detail(rejected(async || service.read(path).await).await);
        assert_eq!(
            said, "rate limit exceeded (max_reads_per_second = 2 for each client); retry in 1 s",
            "{path}"
        );
    }
    for path in ["/v1/failures", "/v1/attempts"] {
        let said = detail(rejected(async || service.post(path, JSON, "[]").await).await);
        assert_eq!(
            said, "rate limit exceeded (max_posts_per_second = 3 for each client); retry in 1 s",
            "{path}"
        );
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        for _ in 0..20 {
            assert_eq!(service.read(path).await.0, StatusCode::OK, "{path}");
        }
    }
    for _ in 0..1000 {
        let sent = service.get("/v1/summary").send().await.unwrap();
        if sent.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(sent.headers().get("retry-after").unwrap(), "1");
            assert_eq!(
                sent.headers().get("content-type").unwrap(),
                "application/problem+json"
            );
            return;
        }
    }
    panic!("a thousand requests, and none was rejected");
}

#[actix_web::test]
async fn rate_limit_of_one_address_leaves_others_unaffected() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(1));
    rejected(async || service.read("/v1/summary").await).await;
    // A few addresses may share the table entry of the first one, but hardly all of them.
    let mut others = Vec::new();
    for last in 2..6 {
        let client = Client::builder()
            .local_address(std::net::Ipv4Addr::new(127, 0, 0, last).into())
            .finish();
        others.push(
            client
                .get(format!("http://{}/v1/summary", service.address))
                .send()
                .await
                .unwrap()
                .status(),
        );
    }
    assert!(others.contains(&StatusCode::OK), "{others:?}");
}

#[actix_web::test]
async fn client_without_a_rate_limit_is_never_rejected() {
    let service = Service::new(HttpOptions::default().max_reads_per_second(0));
    for _ in 0..600 {
        assert_eq!(service.read("/v1/conversations").await.0, StatusCode::OK);
    }
}

#[actix_web::test]
async fn wrong_tokens_are_slowed_down_and_right_ones_are_not() {
    let options = HttpOptions::default()
        .token(
            "reader",
            "the-only-token-of-all".parse().unwrap(),
            [Scope::Read, Scope::Triage, Scope::Metrics],
        )
        .max_reads_per_second(0);
    let service = Service::new(options);
    let show = async |token: &str| {
        response(service.get("/v1/summary").bearer_auth(token).send().await).await
    };
    // The guesses are concurrent, because each guess beyond the limit is delayed.
    let guesses =
        futures_util::future::join_all((0..40).map(|_| show("a-guess-of-the-token"))).await;
    let with = |status| guesses.iter().filter(|(got, _)| *got == status).count();
    assert!(
        with(StatusCode::UNAUTHORIZED) >= 10 && with(StatusCode::TOO_MANY_REQUESTS) > 0,
        "{guesses:?}"
    );
    let refused = guesses
        .iter()
        .find(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS)
        .unwrap();
    assert_eq!(refused.1["code"], "wrong_tokens");
    let guessing = futures_util::future::join_all((0..40).map(|_| show("a-guess-of-the-token")));
    let using = async {
        for _ in 0..50 {
            assert_eq!(show("the-only-token-of-all").await.0, StatusCode::OK);
        }
    };
    futures_util::future::join(guessing, using).await;
    // A request without a token is no guess.
    assert_eq!(
        service.read("/v1/summary").await.0,
        StatusCode::UNAUTHORIZED
    );
    let metrics = service
        .get("/metrics")
        .bearer_auth("the-only-token-of-all")
        .send()
        .await
        .unwrap()
        .body()
        .await
        .unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(
        metrics
            .contains("failure_logger_http_authentication_failures_total{reason=\"wrong\"} 80\n"),
        "{metrics}"
    );
    assert!(
        metrics
            .contains("failure_logger_http_authentication_failures_total{reason=\"missing\"} 1\n"),
        "{metrics}"
    );
}

#[actix_web::test]
async fn pages_of_other_sites_start_no_read_and_the_dashboard_does() {
    let service = Service::new(
        HttpOptions::default().allow_origin("https://dashboard.example".parse().unwrap()),
    );
    for (site, origin, status) in [
        ("cross-site", None, 403),
        ("same-site", None, 403),
        ("cross-site", Some("https://evil.example"), 403),
        ("cross-site", Some("https://dashboard.example"), 200),
        ("same-origin", None, 200),
        // The user typed the address.
        ("none", None, 200),
    ] {
        for path in ["/v1/queries", "/v1/export", "/metrics"] {
            let mut request = service.get(path).insert_header(("sec-fetch-site", site));
            if let Some(origin) = origin {
                request = request.insert_header(("origin", origin));
            }
            assert_eq!(
                request.send().await.unwrap().status().as_u16(),
                status,
                "{site} {origin:?} {path}"
            );
        }
        // A link on another page leads to the dashboard.
        let page = service
            .get("/")
            .insert_header(("sec-fetch-site", site))
            .send()
            .await
            .unwrap();
        assert_eq!(page.status(), StatusCode::OK);
    }
}

#[actix_web::test]
async fn clients_behind_a_trusted_proxy_have_limits_of_their_own() {
    let options = HttpOptions::default()
        .max_reads_per_second(1)
        .trust_proxy("127.0.0.1".parse().unwrap());
    let service = Service::new(options);
    let send = async |client: &str| {
        service
            .get("/v1/summary")
            .insert_header(("x-forwarded-for", client))
            .send()
            .await
            .unwrap()
    };
    let sent = send("192.0.2.1").await;
    assert_eq!(
        sent.headers().get("ratelimit-policy").unwrap(),
        "\"max_reads_per_second\";q=1;w=1"
    );
    assert_eq!(
        sent.headers().get("ratelimit").unwrap(),
        "\"max_reads_per_second\";r=0;t=1"
    );
    let mut limited = sent;
    while limited.status() == StatusCode::OK {
        limited = send("192.0.2.1").await;
    }
    assert_eq!(
        limited.headers().get("ratelimit").unwrap(),
        "\"max_reads_per_second\";r=0;t=1"
    );
    let mut others = Vec::new();
    for last in 2..6 {
        others.push(send(&format!("192.0.2.{last}")).await.status());
    }
    assert!(others.contains(&StatusCode::OK), "{others:?}");
}

#[actix_web::test]
async fn withdrawn_token_ends_its_streams() {
    use futures_util::StreamExt as _;

    let token = "the-only-token-of-all";
    let options = HttpOptions::default().token("reader", token.parse().unwrap(), [Scope::Read]);
    let service = Service::new(options.clone());
    let mut stream = service
        .get("/v1/tail")
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    assert!(
        stream.next().await.unwrap().unwrap().starts_with(b"id:"),
        "the stream is open"
    );
    let both = HttpOptions::default()
        .token("reader", token.parse().unwrap(), [Scope::Read])
        .token(
            "new",
            "the-next-token-of-all".parse().unwrap(),
            [Scope::Read],
        );
    options.replace_rules(&both);
    service
        .post("/v1/failures", JSON, failure("q").to_string())
        .await;
    let event = stream.next().await.unwrap().unwrap();
    assert!(
        event.starts_with(b"event: failure"),
        "a second token ends no stream of the first"
    );
    options.replace_rules(&HttpOptions::default().token(
        "new",
        "the-next-token-of-all".parse().unwrap(),
        [Scope::Read],
    ));
    while let Some(piece) = stream.next().await {
        piece.unwrap();
    }
}

#[actix_web::test]
async fn requests_keep_their_ids_and_every_response_names_the_service() {
    let service = Service::new(HttpOptions::default());
    for path in ["/v1/summary", "/livez", "/", "/v1/failures/none"] {
        let sent = service
            .get(path)
            .insert_header(("x-request-id", "abc-1"))
            .send()
            .await
            .unwrap();
        assert_eq!(
            sent.headers().get("x-request-id").unwrap(),
            "abc-1",
            "{path}"
        );
        assert_eq!(
            sent.headers().get("failure-logger-version").unwrap(),
            env!("CARGO_PKG_VERSION"),
            "{path}"
        );
    }
    let sent = service.get("/livez").send().await.unwrap();
    assert!(
        sent.headers()
            .get("x-request-id")
            .is_some_and(|id| id.len() > 8)
    );
}

#[actix_web::test]
async fn pages_of_other_origins_read_nothing_unless_allowed() {
    let token = "the-only-token-of-all";
    let with_tokens = || {
        HttpOptions::default()
            .token(
                "reader",
                token.parse().unwrap(),
                [Scope::Read, Scope::Triage, Scope::Metrics],
            )
            .token("sender", token.parse().unwrap(), [Scope::Ingest])
    };
    let (open, closed) = (
        Service::new(with_tokens().allow_origin("https://Dashboard.example:8443".parse().unwrap())),
        Service::new(with_tokens()),
    );
    let preflight = async |service: &Service, origin: &str, method: &str, header: &str| {
        let request = service
            .request(Method::OPTIONS, "/v1/failures")
            .insert_header(("origin", origin));
        let request = request.insert_header(("access-control-request-method", method));
        request
            .insert_header(("access-control-request-headers", header))
            .send()
            .await
            .unwrap()
    };
    let cors = |sent: &awc::ClientResponse<_>| {
        sent.headers()
            .iter()
            .any(|(name, _)| name.as_str().starts_with("access-control"))
    };
    let mine = "https://dashboard.example:8443";
    // The browser's preflight request has no token.
    for method in ["GET", "POST"] {
        let sent = preflight(&open, mine, method, "authorization, content-type").await;
        assert_eq!(sent.status(), StatusCode::OK);
        let header = |name: &str| {
            sent.headers()
                .get(name)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
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
        let (status, said) = response(Ok(sent)).await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::FORBIDDEN, &serde_json::json!("cross_site")),
            "{said}"
        );
    }
    let evil_host = open
        .request(Method::OPTIONS, "/v1/failures")
        .insert_header(("origin", mine));
    let evil_host = evil_host.insert_header(("access-control-request-method", "GET"));
    let sent = evil_host
        .insert_header(("host", "evil.example"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (sent.status(), cors(&sent)),
        (StatusCode::MISDIRECTED_REQUEST, false)
    );
    // The request itself follows. A page must be able to read the rejection, too.
    for (shown, status) in [
        (Some(token), 200),
        (None, 401),
        (Some("a-guess-of-the-token"), 401),
    ] {
        let mut request = open.get("/v1/summary").insert_header(("origin", mine));
        if let Some(shown) = shown {
            request = request.bearer_auth(shown);
        }
        let sent = request.send().await.unwrap();
        assert_eq!(sent.status().as_u16(), status);
        assert_eq!(
            sent.headers().get("access-control-allow-origin").unwrap(),
            mine
        );
    }
    let sent = open
        .get("/v1/summary")
        .insert_header(("origin", "https://evil.example"))
        .bearer_auth(token)
        .send()
        .await;
    assert!(
        !sent
            .unwrap()
            .headers()
            .contains_key("access-control-allow-origin")
    );
    // Without an allowed origin, no header mentions origins.
    let sent = preflight(&closed, mine, "GET", "authorization").await;
    assert_eq!(
        (sent.status(), cors(&sent)),
        (StatusCode::UNAUTHORIZED, false)
    );
    let sent = closed
        .get("/v1/summary")
        .insert_header(("origin", mine))
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    assert_eq!((sent.status(), cors(&sent)), (StatusCode::OK, false));
}

#[test]
fn origin_is_a_scheme_and_a_host() {
    for fine in [
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:1",
        "HTTPS://A.example",
    ] {
        assert!(fine.parse::<Origin>().is_ok(), "{fine}");
    }
    for wrong in [
        "",
        "*",
        "null",
        "a.example",
        "https://",
        "https://a.example/",
        "https://a b",
        "ftp://a.example",
    ] {
        assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
    }
}
