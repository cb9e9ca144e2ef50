//! A service that shuts down responds to the uploads that are under way, with the line after which
//! to resume.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use common::binary::{Service, exchange, lines};
use common::{Lock, TestDb, eventually};
use serde_json::Value;

/// An upload with an incomplete body.
struct Upload(TcpStream);

impl Upload {
    fn new(service: &Service, path: &str, content_type: &str) -> Self {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
             {content_type}\r\nContent-Length: 400000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Self(stream)
    }

    fn send(&mut self, part: &str) {
        self.0.write_all(part.as_bytes()).unwrap();
    }

    /// Reads the response: the head and the body.
    fn response(mut self) -> (String, Value) {
        let mut response = Vec::new();
        let mut byte = [0];
        // The body may end before the connection does.
        loop {
            assert_eq!(
                self.0.read(&mut byte).expect("a response"),
                1,
                "cut off without a response"
            );
            response.push(byte[0]);
            if let Some(body) = response
                .windows(4)
                .position(|end| end == b"\r\n\r\n")
                .map(|end| end + 4)
                && let Ok(json) = serde_json::from_slice(&response[body..])
            {
                return (String::from_utf8(response[..body].to_vec()).unwrap(), json);
            }
        }
    }
}

fn get(service: &Service, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    exchange(&service.url, &request).expect("a response")
}

fn received(service: &Service) -> u64 {
    let stats = get(service, "/v1/stats");
    let json: Value = serde_json::from_str(stats.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    json["received"].as_u64().unwrap()
}

fn assert_is_to_retry(head: &str) {
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"),
        "{head}"
    );
}

#[test]
fn slow_upload_gets_a_response_with_the_lines_that_were_read() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let mut upload = Upload::new(&service, "/v1/failures", "application/x-ndjson");
    upload.send(&format!("{}nonsense\n\n{}", lines(40), lines(60)));
    // This line never ends.
    upload.send("{\"failure_type\": ");
    eventually("the lines", || received(&service) == 100);
    service.signal("TERM");
    let (head, body) = upload.response();
    assert_is_to_retry(&head);
    assert_eq!(
        (&body["accepted"], &body["rejected"], &body["processed"]),
        (&100.into(), &1.into(), &102.into()),
        "{body}"
    );
    assert_eq!(body["errors"][0]["line"], 41);
    assert!(
        body["detail"]
            .as_str()
            .unwrap()
            .contains("is shutting down"),
        "{body}"
    );
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), 100);
}

#[test]
fn fast_upload_gets_a_response_with_the_lines_that_were_read() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let upload = Upload::new(&service, "/v1/failures", "application/x-ndjson");
    let mut sending = upload.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let piece = lines(1000);
        while sending.write_all(piece.as_bytes()).is_ok() {}
    });
    eventually("some lines", || received(&service) > 5000);
    service.signal("TERM");
    let (head, body) = upload.response();
    sender.join().unwrap();
    assert_is_to_retry(&head);
    assert_eq!(body["accepted"], body["processed"]);
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), body["accepted"].as_i64().unwrap());
}

#[test]
fn incomplete_array_is_rejected_with_a_response() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &["--set", "workers=1"]);
    let mut upload = Upload::new(&service, "/v1/failures", "application/json");
    upload.send(&format!("[{}", lines(1).trim()));
    // One thread serves both requests, the upload first.
    get(&service, "/healthz");
    service.signal("TERM");
    let (head, body) = upload.response();
    assert_is_to_retry(&head);
    assert_eq!(
        (&body["accepted"], &body["processed"]),
        (&0.into(), &0.into()),
        "{body}"
    );
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), 0);
}

#[test]
fn concurrent_uploads_each_get_a_response_of_their_own() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let attempt = "{\"strategy\": \"semantic\", \"outcome\": \"no_hit\", \"query_text\": \"q\"}\n";
    let uploads: Vec<_> = (1..=20)
        .map(|size| {
            let mut upload = Upload::new(&service, "/v1/attempts", "application/x-ndjson");
            upload.send(&attempt.repeat(size));
            upload
        })
        .collect();
    eventually("all lines", || received(&service) == 210);
    service.signal("TERM");
    for (size, upload) in (1..=20).zip(uploads) {
        let (head, body) = upload.response();
        assert_is_to_retry(&head);
        assert_eq!(
            (&body["accepted"], &body["processed"]),
            (&size.into(), &size.into()),
            "{body}"
        );
    }
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!((db.rows(), db.attempts()), (210, 210));
}

#[test]
fn upload_that_waits_for_room_gets_a_response_at_the_end() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &["--set", "buffer_capacity=256"]);
    let lock = Lock::new(&db);
    let mut upload = Upload::new(&service, "/v1/failures", "application/x-ndjson");
    upload.send(&lines(300));
    eventually("a full buffer", || received(&service) >= 252);
    service.signal("TERM");
    let (head, body) = upload.response();
    drop(lock);
    assert_is_to_retry(&head);
    assert_eq!(body["accepted"], body["processed"]);
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), body["accepted"].as_i64().unwrap());
}
