//! The program as a process: its sockets, its signals, and its logs.

mod common;

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::binary::{Service, command, exchange, lines, post};
use common::{TestDb, eventually};

const GET: &str = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn over_unix(path: &std::path::Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn service_listens_on_several_addresses_and_a_unix_socket() {
    let db = TestDb::new();
    let socket = db.folder.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    let service = Service::new(&db, &["--listen", "127.0.0.2:0", "--listen", &unix]);
    assert!(
        exchange(&service.url, GET)
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    eventually("the socket", || socket.exists());
    assert!(over_unix(&socket, GET).starts_with("HTTP/1.1 200"));
    let log = service.log();
    let second = log
        .lines()
        .find(|line| line.contains("127.0.0.2:"))
        .expect("the second address");
    let address = second
        .split_whitespace()
        .find_map(|word| word.strip_prefix("address="))
        .unwrap();
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    assert!(
        exchange(&format!("http://{address}"), &request)
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    service.signal("TERM");
    eventually("the end", || !socket.exists());
}

#[test]
fn sockets_of_systemd_replace_the_listen_addresses() {
    let db = TestDb::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // systemd passes the first descriptor as 3, and the variables name the process itself.
    let script = "exec 3<&0; exec 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut child = Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_failure-logger"),
            "serve",
            "--db",
            &db.url(),
        ])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim(), format!("listening on {url}"));
    let response = exchange(&url, GET);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(response.unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn service_that_ends_is_not_ready_before_it_stops_listening() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &["--set", "drain_ms=60000"]);
    service.signal("TERM");
    eventually("readiness to fail", || {
        exchange(&service.url, GET)
            .unwrap()
            .starts_with("HTTP/1.1 503")
    });
    // The service accepts requests meanwhile, and a second signal ends the wait.
    assert!(
        exchange(&service.url, &post(&lines(1)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    service.signal("TERM");
    assert_eq!(service.child.wait().unwrap().code(), Some(130));
}

#[test]
fn hangup_during_the_start_ends_no_service() {
    let db = TestDb::new();
    for _ in 0..5 {
        let mut child = command(&db, &["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The signal is caught early, before the service listens.
        let caught = || {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigCgt:"))
                .unwrap_or("0")
                .trim()
                .to_owned();
            u64::from_str_radix(&mask, 16).unwrap_or(0) & 1 == 1
        };
        eventually("the handler", caught);
        assert!(
            Command::new("kill")
                .args(["-HUP", &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
            &mut line,
        )
        .unwrap();
        assert!(line.starts_with("listening on"), "{line}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn few_descriptors_limit_connections_and_spare_the_database() {
    let db = TestDb::new();
    let script = "ulimit -n 400; exec \"$@\"";
    let mut child = Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_failure-logger"),
            "serve",
            "--db",
            &db.url(),
        ])
        .args(["--listen", "127.0.0.1:0", "--set", "workers=1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    let address = url.strip_prefix("http://").unwrap();
    let mut first = std::net::TcpStream::connect(address).unwrap();
    // The connections exceed the descriptors. The accepted ones leave enough for the database.
    let _idle: Vec<_> = (0..500)
        .map_while(|_| std::net::TcpStream::connect(address).ok())
        .collect();
    let body = lines(10);
    first.write_all(post(&body).as_bytes()).unwrap();
    let mut response = String::new();
    first.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 202"), "{response}");
    eventually("the rows", || db.rows() == 10);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("needs 20000 file descriptors"), "{log}");
}

#[test]
fn log_explains_a_request_of_grpc() {
    let db = TestDb::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_failure-logger"))
        .args(["serve", "--db", &db.url(), "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap();
    for _ in 0..2 {
        let mut exporter = std::net::TcpStream::connect(address).unwrap();
        exporter
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let mut response = String::new();
        exporter.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    }
    child.kill().unwrap();
    let log = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let hints = log
        .matches("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
        .count();
    assert_eq!(hints, 1, "{log}");
}

#[test]
fn access_log_names_the_token_of_a_deletion_and_no_query() {
    let db = TestDb::new();
    let tokens = db.folder.path().join("tokens");
    std::fs::write(
        &tokens,
        "dpo erase = 0123456789abcdef\napp ingest,read = fedcba9876543210\n",
    )
    .unwrap();
    let service = Service::new(&db, &["--token-file", tokens.to_str().unwrap()]);
    let request = |head: &str, token: &str| {
        let request = format!(
            "{head} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r-7\r\nAuthorization: Bearer \
             {token}\r\nConnection: close\r\n\r\n"
        );
        exchange(&service.url, &request).unwrap()
    };
    assert!(
        request("DELETE /v1/failures?query_text=secret", "0123456789abcdef")
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        request("DELETE /v1/failures?query_text=secret", "fedcba9876543210")
            .starts_with("HTTP/1.1 403")
    );
    assert!(
        request("GET /v1/failures?text=secret", "fedcba9876543210").starts_with("HTTP/1.1 200")
    );
    let log = service.log();
    let access: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("failure_logger::access"))
        .collect();
    assert_eq!(access.len(), 2, "one deletion and one rejection: {log}");
    assert!(
        access[0].contains("token=\"dpo\"")
            && access[0].contains("status=200")
            && access[0].contains("r-7"),
        "{log}"
    );
    assert!(access[1].contains("status=403"), "{log}");
    assert!(
        !log.contains("secret")
            && !log.contains("0123456789abcdef")
            && !log.contains("fedcba9876543210"),
        "{log}"
    );
}

#[test]
fn dangling_link_is_no_database() {
    let db = TestDb::new();
    let (link, target) = (
        db.folder.path().join("link.db"),
        db.folder.path().join("elsewhere.db"),
    );
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_failure-logger"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--db",
            link.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("a symbolic link to a file that does not exist"),
        "{said}"
    );
    assert!(!target.exists());
}

#[test]
fn command_sends_no_token_unencrypted_and_follows_no_redirect() {
    let db = TestDb::new();
    let tokens = db.folder.path().join("tokens");
    std::fs::write(&tokens, "0123456789abcdef").unwrap();
    let to = [
        "list",
        "--url",
        "http://192.0.2.1:4318",
        "--url-token-file",
        tokens.to_str().unwrap(),
    ];
    let output = command(&db, &to).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && said.contains("--insecure"),
        "{said}"
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let head = "HTTP/1.1 307 Temporary Redirect\r\nLocation: \
            http://evil.example/\u{9b}31m\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
    });
    let output = command(&db, &["list", "--url", &url]).output().unwrap();
    served.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(3) && said.contains("redirects to"),
        "{said}"
    );
    assert!(!said.contains('\u{9b}'), "no control character: {said:?}");
}

#[test]
fn rejected_lines_set_the_exit_code_though_output_is_closed() {
    let db = TestDb::new();
    let mut child = command(&db, &["ingest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"no record\n")
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
