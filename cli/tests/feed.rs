//! `ingest` on a pipe that stays open, while services and databases restart.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, ChildStdin, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::binary::{Service, command, lines};
use common::{Lock, TestDb, eventually};

/// An `ingest` with an open pipe.
struct Feeder {
    child: Child,
    input: Option<ChildStdin>,
    said: BufReader<ChildStderr>,
}

/// Exit code, standard output and standard error of a feeder.
type End = (Option<i32>, String, String);

impl Feeder {
    fn new(db: &TestDb, arguments: &[&str]) -> Self {
        let mut child = command(db, &["ingest"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, said) = (
            child.stdin.take(),
            BufReader::new(child.stderr.take().unwrap()),
        );
        Self { child, input, said }
    }

    fn send(&mut self, text: &str) {
        self.input
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Returns when the feeder has read all input, because it names the fault of the last line.
    fn wait_for_line(&mut self, line: usize) {
        self.send("nonsense\n");
        assert!(
            self.says()
                .starts_with(&format!("line {line}: nonsense: expected"))
        );
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args([&format!("-{name}"), &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end, with the pipe still open.
    fn end(mut self) -> End {
        let code = self.child.wait().unwrap().code();
        let (mut out, mut said) = (String::new(), String::new());
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        self.said.read_to_string(&mut said).unwrap();
        (code, out, said)
    }

    fn close(mut self) -> End {
        drop(self.input.take());
        self.end()
    }
}

/// Reads one whole request from a connection.
fn request(stream: &TcpStream) -> Vec<u8> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    [head.into_bytes(), body].concat()
}

#[test]
fn line_in_an_open_pipe_is_sent() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let mut feeder = Feeder::new(&db, &["--url", &service.url]);
    for sent in 1..=3 {
        feeder.send(&lines(1));
        eventually("the line", || db.rows() == sent);
    }
    assert_eq!(
        feeder.close(),
        (
            Some(0),
            "3 records stored, 0 lines rejected\n".into(),
            String::new()
        )
    );
}

#[test]
fn restarted_service_gets_every_line_once() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let address = service.address().to_owned();
    let mut feeder = Feeder::new(&db, &["--url", &service.url]);
    feeder.send(&lines(10));
    eventually("the first lines", || db.rows() == 10);
    service.signal("TERM");
    service.child.wait().unwrap();
    feeder.send(&lines(10));
    let says = feeder.says();
    assert!(
        says.starts_with("cannot send line 11, retrying: cannot reach http://"),
        "{says}"
    );
    feeder.send(&lines(2000));
    let _service = Service::with(&db, &["--listen", &address]);
    eventually("all lines", || db.rows() == 2020);
    let (code, out, said) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "2020 records stored, 0 lines rejected\n")
    );
    assert!(said.starts_with("retry succeeded after "), "{said}");
}

#[test]
fn lines_whose_response_was_lost_are_stored_once() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let mut feeder = Feeder::new(&db, &["--url", &proxy]);
    feeder.send(&lines(5));
    // The proxy passes the request on and cuts the response off: before its first byte, then in its
    // middle.
    for passed in [0, 20, usize::MAX] {
        let (mut stream, _) = listener.accept().unwrap();
        let mut onward = TcpStream::connect(service.address()).unwrap();
        onward.write_all(&request(&stream)).unwrap();
        let mut response = vec![0; 4096];
        let length = onward.read(&mut response).unwrap();
        assert!(response.starts_with(b"HTTP/1.1 202"));
        stream.write_all(&response[..length.min(passed)]).unwrap();
    }
    let (code, out, _) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "5 records stored, 0 lines rejected\n")
    );
    drop(service);
    assert_eq!((db.rows(), db.attempts()), (5, 5));
}

#[test]
fn proxy_error_for_an_absent_service_ends_no_feed() {
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    feeder.send(&lines(1));
    let bodies: Vec<_> = [
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
        "202 Accepted",
    ]
    .map(|status| {
        let body = r#"{"accepted": 1, "rejected": 0, "errors": []}"#;
        respond(&listener, status, body)
    })
    .into();
    let id = |body: &str| {
        body.split("\"event_id\": \"")
            .nth(1)
            .map(|rest| rest[..36].to_owned())
            .expect("an id")
    };
    assert!(
        bodies.iter().all(|body| id(body) == id(&bodies[0])),
        "all requests have the same id: {bodies:?}"
    );
    assert!(
        !bodies[0].contains("created_at"),
        "the service dates a line that is sent at once: {bodies:?}"
    );
    let (code, out, _) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "1 records stored, 0 lines rejected\n")
    );
}

/// Reads a request, and sends a response to it. Returns the body of the request.
fn respond(listener: &TcpListener, head: &str, body: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let sent = request(&stream);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {head}\r\nFailure-Logger-Version: 0.1.0\r\nContent-Length: \
        {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    String::from_utf8(sent)
        .unwrap()
        .rsplit("\r\n\r\n")
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn wrong_clock_of_the_sender_costs_no_line() {
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    feeder.send(&lines(2));
    let first = respond(&listener, "503 Service Unavailable\r\nRetry-After: 6", "{}");
    // The second line is too old by the service's clock.
    let errors = r#"[{"line": 2, "detail": "too old"}]"#;
    let late = respond(
        &listener,
        "202 Accepted",
        &format!(r#"{{"accepted": 1, "rejected": 1, "errors": {errors}}}"#),
    );
    let last = respond(
        &listener,
        "202 Accepted",
        r#"{"accepted": 2, "rejected": 0, "errors": []}"#,
    );
    assert_eq!(
        late.matches("\"created_at\": \"").count(),
        2,
        "both lines waited: {late}"
    );
    assert_eq!(first, last, "the service dates both lines");
    let (code, out, _) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "2 records stored, 0 lines rejected\n")
    );
}

#[test]
fn response_of_another_server_is_an_outage() {
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    feeder.send(&lines(3));
    for body in [
        "<html>welcome</html>",
        "{}",
        r#"{"accepted": 2, "rejected": 0, "errors": []}"#,
        "null",
    ] {
        respond(&listener, "200 OK", body);
    }
    respond(
        &listener,
        "503 Service Unavailable",
        r#"{"processed": 4, "accepted": 4, "rejected": 0}"#,
    );
    let says = feeder.says();
    assert!(
        says.starts_with("cannot send line 1, retrying: ")
            && says.contains("is not a failure-logger service"),
        "{says}"
    );
    respond(
        &listener,
        "202 Accepted",
        r#"{"accepted": 3, "rejected": 0, "errors": []}"#,
    );
    let (code, out, _) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "3 records stored, 0 lines rejected\n")
    );
}

#[test]
fn signal_after_a_partial_response_names_the_next_line() {
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    feeder.send(&lines(5));
    let body = r#"{"processed": 3, "accepted": 3}"#;
    respond(
        &listener,
        "503 Service Unavailable\r\nRetry-After: 60",
        body,
    );
    feeder.signal("TERM");
    let (code, _, said) = feeder.end();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("3 records stored, stopped at line 4: 2 lines were read"),
        "{said}"
    );
}

#[test]
fn signal_sends_every_line_that_was_read() {
    for signal in ["TERM", "INT"] {
        let db = TestDb::new();
        let service = Service::new(&db, &[]);
        for arguments in [&["--url", service.url.as_str()][..], &[]] {
            let before = db.rows();
            let mut feeder = Feeder::new(&db, arguments);
            feeder.send(&lines(1500));
            feeder.wait_for_line(1501);
            // The last line has no line feed.
            feeder.send(lines(1).trim());
            feeder.signal(signal);
            let (code, out, said) = feeder.end();
            assert_eq!(
                (code, said.as_str()),
                (Some(1), "error: 1 lines were rejected\n"),
                "{arguments:?}"
            );
            // The line may have come after the signal.
            let stored = if out.starts_with("1501 ") { 1501 } else { 1500 };
            assert_eq!(out, format!("{stored} records stored, 1 lines rejected\n"));
            eventually("the rows", || db.rows() == before + stored);
        }
    }
}

#[test]
fn signal_while_the_service_is_away_names_the_next_line() {
    let db = TestDb::new();
    let away = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut feeder = Feeder::new(&db, &["--url", &format!("http://{away}")]);
    feeder.send(&format!("\n{}", lines(3)));
    feeder.wait_for_line(5);
    assert!(feeder.says().starts_with("cannot send line 2, retrying: "));
    feeder.signal("TERM");
    let (code, out, said) = feeder.end();
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert!(
        said.starts_with(
            "error: 0 records stored, stopped at line 2: 4 lines were read but not accepted \
             within 5 s of the signal"
        ),
        "{said}"
    );
}

#[test]
fn signal_ends_the_wait_for_a_silent_service() {
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    feeder.send(&lines(1));
    let silent = listener.accept().unwrap();
    feeder.signal("TERM");
    let (code, _, said) = feeder.end();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("0 records stored, stopped at line 1: 1 lines"),
        "{said}"
    );
    drop(silent);
}

#[test]
fn absent_service_is_given_up_after_the_set_time() {
    let db = TestDb::new();
    let away = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut feeder = Feeder::new(
        &db,
        &["--url", &format!("http://{away}"), "--give-up-after", "1s"],
    );
    feeder.send(&lines(2));
    let (code, _, said) = feeder.close();
    assert_eq!(code, Some(3));
    assert!(
        said.contains(
            "stopped at line 1: gave up after 1 s without an accepted record (--give-up-after): "
        ),
        "{said}"
    );
}

#[test]
fn database_locked_for_long_ends_no_feed() {
    let db = TestDb::new();
    drop(db.spawn());
    let mut feeder = Feeder::new(
        &db,
        &["--set", "buffer_capacity=10", "--set", "batch_size=10"],
    );
    feeder.send(&lines(1));
    eventually("the first line", || db.rows() == 1);
    let lock = Lock::new(&db);
    feeder.send(&lines(100));
    let says = feeder.says();
    assert!(
        says.contains("cannot send line ") && says.contains("locked"),
        "{says}"
    );
    drop(lock);
    let (code, out, _) = feeder.close();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "101 records stored, 0 lines rejected\n")
    );
    assert_eq!(db.rows(), 101);
}

#[test]
fn pipe_waits_while_the_service_waits() {
    const MEGABYTES: usize = 256;
    let db = TestDb::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let feeder = Feeder::new(
        &db,
        &[
            "--url",
            &format!("http://{}", listener.local_addr().unwrap()),
        ],
    );
    let Feeder {
        mut child,
        input,
        said,
    } = feeder;
    let mut input = input.unwrap();
    // Each line is a failure of 32 KB.
    let line = lines(1).replace("q 0", &"q".repeat(32 << 10));
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..MEGABYTES << 20 >> 15 {
                if input.write_all(line.as_bytes()).is_err() {
                    return;
                }
                written.fetch_add(line.len(), Ordering::SeqCst);
            }
        });
        // The service accepts the connection, and is silent.
        let silent = listener.accept().unwrap();
        // The writer sends until it is stuck. If this wait ends too early, the test is only weaker.
        let (mut last, mut same) = (0, 0);
        while same < 100_000 {
            let now = written.load(Ordering::SeqCst);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            std::thread::yield_now();
        }
        assert!(last < 64 << 20, "{last} bytes were read");
        child.kill().unwrap();
        drop(silent);
    });
    child.wait().unwrap();
    drop(said);
}
