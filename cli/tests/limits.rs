//! Requests at and beyond the limits of the service, whose memory stays small.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::TestDb;
use common::binary::{Service, exchange, lines, post};

/// Memory above that of an idle service, and below the size of any body here.
const MEMORY_MB: u64 = 100;
const GIGABYTE: usize = 1 << 30;

/// Sends a body of `length` bytes, `piece` after `piece`, until a response arrives. Returns the
/// response and the number of sent bytes.
fn pour(service: &Service, content_type: &str, length: usize, piece: &[u8]) -> (String, usize) {
    let mut stream = TcpStream::connect(service.address()).unwrap();
    let mut reading = BufReader::new(stream.try_clone().unwrap());
    let answered = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&answered);
    let response = std::thread::spawn(move || {
        let mut response = String::new();
        reading.read_line(&mut response).unwrap();
        heard.store(true, Ordering::SeqCst);
        while !response.ends_with("\r\n\r\n") {
            reading.read_line(&mut response).unwrap();
        }
        let length = response
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reading.read_exact(&mut body).unwrap();
        response + std::str::from_utf8(&body).unwrap()
    });
    let head = format!(
        "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    while sent < length && !answered.load(Ordering::SeqCst) {
        let part = &piece[..piece.len().min(length - sent)];
        if stream.write_all(part).is_err() {
            break;
        }
        sent += part.len();
    }
    (response.join().unwrap(), sent)
}

#[test]
fn gigabyte_of_json_is_rejected_at_its_beginning() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let mut piece = vec![b' '; 1 << 20];
    piece[0] = b'[';
    let (response, sent) = pour(&service, "application/json", GIGABYTE, &piece);
    assert!(
        response.starts_with("HTTP/1.1 413") && response.contains("8388608 bytes at most"),
        "{response}"
    );
    assert!(sent < GIGABYTE / 2, "{sent} bytes were read");
    assert!(
        service.most_memory() < MEMORY_MB,
        "{} MB",
        service.most_memory()
    );
}

#[test]
#[ignore = "takes many seconds where nothing is optimised; .ci/run runs it"]
fn gigabyte_of_lines_is_accepted_by_half_in_little_memory() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    // The line has the maximal length.
    let line = lines(1).replace("q 0", &"q".repeat(65_000));
    let (response, sent) = pour(
        &service,
        "application/x-ndjson",
        GIGABYTE,
        line.repeat(16).as_bytes(),
    );
    assert!(
        response.starts_with("HTTP/1.1 413") && response.contains("536870912 bytes at most"),
        "{response}"
    );
    assert!(sent < GIGABYTE, "{sent} bytes were read");
    let taken = (512 << 20) / line.len();
    let said = response.split_once("\"accepted\":").unwrap().1;
    let accepted: usize = said
        .split(|after: char| !after.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // The last piece is rejected whole.
    assert!(
        (taken - 10..=taken).contains(&accepted),
        "{accepted} of {taken}"
    );
    common::eventually("the rows", || db.rows() == i64::try_from(accepted).unwrap());
    assert!(
        service.most_memory() < MEMORY_MB,
        "{} MB",
        service.most_memory()
    );
}

#[test]
#[ignore = "takes many seconds where nothing is optimised; .ci/run runs it"]
fn million_lines_are_stored_in_little_memory() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let lines = lines(1000);
    let (response, _) = pour(
        &service,
        "application/x-ndjson",
        lines.len() * 1000,
        lines.as_bytes(),
    );
    assert!(
        response.contains("\"accepted\":1000000,\"duplicates\":0,\"rejected\":0"),
        "{response}"
    );
    common::eventually("the rows", || db.rows() == 1_000_000);
    assert!(
        service.most_memory() < MEMORY_MB,
        "{} MB",
        service.most_memory()
    );
}

#[test]
#[ignore = "needs ten thousand file descriptors; .ci/run raises their limit and runs it"]
fn ten_thousand_idle_connections_block_no_other_client() {
    const CONNECTIONS: usize = 10_000;
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut connections = Vec::new();
    // Each connection sends one request, and is kept for half a minute.
    while service.descriptors() <= CONNECTIONS {
        for _ in 0..100 {
            let mut stream =
                TcpStream::connect(service.address()).expect("a connection; see `ulimit -n`");
            stream.write_all(request).unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).unwrap();
            assert_eq!(line, "HTTP/1.1 200 OK\r\n");
            connections.push(stream);
        }
    }
    let ready = exchange(
        &service.url,
        "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert!(ready.unwrap().starts_with("HTTP/1.1 200"));
    assert!(
        exchange(&service.url, &post(&lines(100)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    common::eventually("the rows", || db.rows() == 100);
}
