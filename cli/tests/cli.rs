//! The binary: its output, its exit codes, and its signals.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Output, Stdio};

use common::TestDb;
use common::binary::{Service, command, exchange, lines, post};
use serde_json::{Value, json};

fn run(db: &TestDb, arguments: &[&str], input: &str) -> Output {
    let mut child = command(db, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that rejects its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn output_of(db: &TestDb, arguments: &[&str]) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn error_of(db: &TestDb, arguments: &[&str], code: i32) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn lines_are_stored_and_read_back_in_every_format() {
    let db = TestDb::new();
    let output = run(&db, &["ingest"], &lines(120));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "120 records stored, 0 lines rejected\n"
    );
    assert_eq!(
        output_of(&db, &["list", "-n", "1000"]).lines().count(),
        120,
        "JSON lines in a pipe"
    );
    let page: Value = serde_json::from_str(&output_of(
        &db,
        &["list", "--format", "json", "--text", "q 7"],
    ))
    .unwrap();
    assert_eq!(page["data"].as_array().unwrap().len(), 11);
    assert!(output_of(&db, &["list", "--format", "table"]).contains("created_at"));
    assert_eq!(
        output_of(&db, &["list", "--format", "csv", "-n", "5"])
            .lines()
            .count(),
        6
    );
    assert_eq!(output_of(&db, &["tail", "-n", "3"]).lines().count(), 3);
    assert!(output_of(&db, &["stats", "--format", "table"]).contains("semantic"));
    assert!(output_of(&db, &["top", "--since", "1h"]).lines().count() > 0);
    assert_eq!(output_of(&db, &["export"]).lines().count(), 120);
    assert_eq!(output_of(&db, &["export", "--csv"]).lines().count(), 121);
    assert_eq!(
        output_of(&db, &["purge", "--older-than", "1d"]),
        "0 failures deleted\n"
    );
    assert_eq!(
        output_of(&db, &["purge", "--older-than", "1d", "--dry-run"]),
        "0 failures are older than 1d\n"
    );
    assert_eq!(
        output_of(&db, &["check"]),
        "no failure rate: 120 failures were logged without attempts\n"
    );
}

#[test]
fn errors_end_with_their_documented_exit_code() {
    let db = TestDb::new();
    assert!(error_of(&db, &["list"], 3).contains("there is no database"));
    let output = run(&db, &["ingest"], "bad\n{}\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("line 1: bad: expected a JSON object")
    );
    assert!(
        error_of(&db, &["list", "--since", "yesterday"], 2)
            .contains("expected a number and s, m, h, d or w")
    );
    assert!(
        error_of(&db, &["list", "--type", "bad"], 2)
            .contains("possible values: no_hit, low_confidence, timeout, error")
    );
    assert!(error_of(&db, &["list", "--url", "ftp://x"], 2).contains("http://127.0.0.1:4318"));
    assert!(
        error_of(&db, &["list", "--url", "http://127.0.0.1:1"], 3)
            .contains("is the service running?")
    );
    assert!(
        error_of(&db, &["list", "--set", "retention_dais=1"], 2)
            .contains("did you mean retention_days?")
    );
    let misspelt = command(&db, &["list"])
        .env("FAILURE_LOGGER_DB", "x.db")
        .output()
        .unwrap();
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(
        String::from_utf8(misspelt.stderr)
            .unwrap()
            .contains("did you mean database_url?")
    );
    assert!(error_of(&db, &["serve", "--listen", "0.0.0.0:0"], 2).contains("--token-file"));
    assert!(error_of(&db, &["calibrate", "unknown"], 1).contains("no attempts of unknown"));
    assert!(error_of(&db, &["nonsense"], 2).contains("unrecognized subcommand"));
    assert!(output_of(&db, &["man"]).contains("failure\\-logger"));
    let pages = db.folder.path().join("man");
    std::fs::create_dir(&pages).unwrap();
    output_of(&db, &["man", pages.to_str().unwrap()]);
    assert!(
        std::fs::read_to_string(pages.join("failure-logger-calibrate.1"))
            .unwrap()
            .contains("threshold")
    );
    assert!(output_of(&db, &["completions", "bash"]).contains("failure-logger"));
    assert!(output_of(&db, &["--help"]).contains("Exit codes: 0 success; 1 the check failed"));
}

#[test]
fn bad_line_is_named_by_its_number_in_the_input() {
    let db = TestDb::new();
    let input = format!("\n{}\n  \nbad\n{}", lines(1), lines(1));
    let output = run(&db, &["ingest"], &input);
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("line 5: bad: expected a JSON object")
    );
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2 records stored, 1 lines rejected\n"
    );
    // Only the service rejects this line, because it is too long for it.
    let service = Service::new(&db, &[]);
    let long = lines(1).replace("q 0", &"q".repeat(70_000));
    let output = run(
        &db,
        &["ingest", "--url", &service.url],
        &format!("\n\n{}\n{long}{}", lines(2), lines(1)),
    );
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("line 6: a record has 65536 bytes at most")
    );
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "3 records stored, 1 lines rejected\n"
    );
}

#[test]
fn sender_beyond_the_rate_limit_retries() {
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "max_posts_per_second=1"]);
    // Each request has a thousand lines.
    let output = run(&db, &["ingest", "--url", &service.url], &lines(3000));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "3000 records stored, 0 lines rejected\n"
    );
    common::eventually("the rows", || db.rows() == 3000);
}

/// Starts a service that sends one response after the other, each on a connection of its own, and
/// then closes. Returns its URL, and the bodies of the requests.
fn scripted(responses: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let serve = |response: String| {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut head, mut length) = (String::new(), 0);
            while stream.read_line(&mut head).unwrap() > 2 {
                let last = head.lines().next_back().unwrap().to_ascii_lowercase();
                length = last
                    .strip_prefix("content-length: ")
                    .map_or(length, |length| length.parse().unwrap());
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(response.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        };
        responses.into_iter().map(serve).collect()
    });
    (url, served)
}

fn response(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nFailure-Logger-Version: 0.1.0\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn sender_resumes_after_the_lines_that_a_full_service_read() {
    let db = TestDb::new();
    let (url, served) = scripted(vec![
        response(
            "503 Service Unavailable",
            &json!({"detail": "the buffer is full"}),
        ),
        response(
            "503 Service Unavailable",
            &json!({"detail": "the buffer is full", "accepted": 1, "rejected": 1, "processed": 2,
                "errors": [{"line": 2, "detail": "bad for it"}]}),
        ),
        response(
            "202 Accepted",
            &json!({"accepted": 1, "rejected": 1, "errors": [{"line": 2, "detail": "too bad for it"}]}),
        ),
    ]);
    // The first line is empty. Numbers are those of the input.
    let output = run(&db, &["ingest", "--url", &url], &format!("\n{}", lines(4)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2 records stored, 2 lines rejected\n"
    );
    assert!(
        said.contains("line 3: bad for it\n") && said.contains("line 5: too bad for it\n"),
        "{said}"
    );
    let sent: Vec<usize> = served
        .join()
        .unwrap()
        .iter()
        .map(|request| request.matches("q ").count())
        .collect();
    assert_eq!(sent, [4, 4, 2]);
}

#[test]
fn sender_that_gives_up_reports_stored_records_and_its_line() {
    let db = TestDb::new();
    let (url, served) = scripted(vec![
        response(
            "202 Accepted",
            &json!({"accepted": 1000, "rejected": 0, "errors": []}),
        ),
        response(
            "413 Payload Too Large",
            &json!({"accepted": 5, "rejected": 0, "errors": [], "processed": 5}),
        ),
        response("403 Forbidden", &json!({"detail": "not you"})),
    ]);
    let output = run(
        &db,
        &["ingest", "--url", &url],
        &format!("\n{}", lines(1500)),
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.starts_with("error: 1005 records stored, stopped at line 1007: "),
        "{said}"
    );
    assert!(said.ends_with("403 Forbidden: not you\n"), "{said}");
    served.join().unwrap();
}

#[test]
fn check_fails_above_its_limits_and_rejects_an_invalid_share() {
    let db = TestDb::new();
    for bad in ["nan", "20", "inf", "-1"] {
        assert!(
            error_of(&db, &["check", "--fail-if-rate-above", bad], 2)
                .contains("a share from 0 to 1"),
            "{bad}"
        );
        assert!(
            error_of(&db, &["calibrate", "s", "--rate", bad], 2).contains("a share from 0 to 1"),
            "{bad}"
        );
    }
    // Failures without counted successes are in no rate.
    run(&db, &["ingest"], &lines(3));
    let service = Service::new(&db, &[]);
    for source in [&[][..], &["--url", &service.url]] {
        let with = |arguments: &[&'static str]| [arguments, source].concat();
        assert!(
            error_of(&db, &with(&["check", "--strategy", "nope"]), 1)
                .contains("no attempts of nope")
        );
        let without_rate = "no failure rate: 3 failures were logged without attempts";
        assert_eq!(
            output_of(&db, &with(&["check", "--strategy", "semantic"])),
            format!("{without_rate}\n")
        );
        assert!(
            error_of(&db, &with(&["check", "--fail-if-rate-above", "0"]), 4).contains(without_rate)
        );
        assert!(
            output_of(&db, &with(&["stats", "--format", "csv"]))
                .contains("attempts,failures,unobserved,")
        );
    }
    error_of(&db, &["check", "--url", "http://127.0.0.1:1"], 3);
    let (url, served) = scripted(vec![
        response(
            "503 Service Unavailable",
            &json!({"detail": "nothing is written"}),
        ),
        response("401 Unauthorized", &json!({"detail": "show the token"})),
        response("200 OK", &json!({"status": "ok"})),
        response(
            "200 OK",
            &json!({"total": {"attempts": 8, "failures": 4, "unobserved": 3, "failure_rate": 0.5}, "strategies": []}),
        ),
        response("200 OK", &json!({"status": "ok"})),
        response(
            "200 OK",
            &json!({"total": {"attempts": 8, "failure_rate": 0.5}, "strategies": []}),
        ),
    ]);
    assert!(error_of(&db, &["check", "--url", &url], 1).contains("nothing is written"));
    assert!(error_of(&db, &["check", "--url", &url], 2).contains("show the token"));
    let limit = [
        "check",
        "--url",
        &url,
        "--fail-if-rate-above",
        "0.2",
        "--min-attempts",
    ];
    let said = error_of(&db, &[&limit[..], &["8"]].concat(), 1);
    assert!(
        said.contains("50.00 % of 8 attempts failed, more than 20.00 %"),
        "{said}"
    );
    let said = error_of(&db, &[&limit[..], &["9"]].concat(), 4);
    assert!(
        said.contains("50.00 % of 8 attempts failed, fewer than --min-attempts 9"),
        "{said}"
    );
    served.join().unwrap();
}

#[test]
fn tail_stream_reconnects_with_its_position() {
    let db = TestDb::new();
    let events = |id: i64| {
        let data = json!({"id": id.to_string(), "query_text": format!("q {id}")});
        let event = format!(
            "id: log.{}\n\nevent: failure\nid: log.{id}\ndata: {data}\n\n",
            id - 1
        );
        format!(
            "HTTP/1.1 200 OK\r\nFailure-Logger-Version: 0.1.0\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n{:x}\r\n{event}\r\n0\r\n\r\n",
            event.len()
        )
    };
    let (url, served) = scripted(vec![
        events(8),
        response(
            "200 OK",
            &json!({"data": [{"id": "7", "query_text": "q 7"}]}),
        ),
        response("503 Service Unavailable", &json!({"detail": "it begins"})),
        events(9),
        response("401 Unauthorized", &json!({"detail": "show the token"})),
    ]);
    let output = run(&db, &["tail", "-f", "--url", &url, "--format", "jsonl"], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.matches("; reopening it").count(), 2, "{said}");
    assert!(said.ends_with("show the token\n"), "{said}");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(
        ["q 7", "q 8", "q 9"]
            .iter()
            .zip(shown.lines())
            .all(|(query, line)| line.contains(query)),
        "{shown}"
    );
    let requests = served.join().unwrap();
    let last = |nth: usize| {
        requests[nth]
            .lines()
            .find_map(|line| line.strip_prefix("last-event-id: "))
    };
    assert_eq!(
        [last(0), last(2), last(3), last(4)],
        [None, Some("log.8"), Some("log.8"), Some("log.9")]
    );
}

#[test]
fn tail_stream_has_each_failure_once_across_a_service_restart() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(1));
    let mut service = Service::new(&db, &[]);
    let (address, seen) = (service.address().to_owned(), db.folder.path().join("seen"));
    let mut tail = command(
        &db,
        &[
            "tail",
            "-f",
            "-n",
            "0",
            "--url",
            &service.url,
            "--format",
            "jsonl",
        ],
    )
    .stdout(std::fs::File::create(&seen).unwrap())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut said = BufReader::new(tail.stderr.take().unwrap()).lines();
    let seen = || -> Vec<i64> {
        let text = std::fs::read_to_string(&seen).unwrap();
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let id = |line| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        };
        whole.map(id).collect()
    };
    // The stream misses failures until it is connected.
    common::eventually("the first", || {
        run(&db, &["ingest", "--url", &service.url], &lines(1));
        !seen().is_empty()
    });
    service.signal("TERM");
    service.child.wait().unwrap();
    assert!(said.next().unwrap().unwrap().ends_with("; reopening it"));
    run(&db, &["ingest"], &lines(3));
    let _again = Service::new(&db, &["--set", &format!("listen={address}")]);
    common::eventually("the failures in between", || {
        seen().last() == Some(&db.rows())
    });
    let ids = seen();
    assert_eq!(ids, (ids[0]..=db.rows()).collect::<Vec<_>>());
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[test]
fn service_error_for_a_stream_is_printed() {
    let db = TestDb::new();
    let busy = || {
        response(
            "503 Service Unavailable",
            &json!({"detail": "too many follow the log already"}),
        )
    };
    let (url, served) = scripted(vec![busy(), busy()]);
    assert!(
        error_of(&db, &["tail", "-f", "--url", &url], 3)
            .contains("too many follow the log already")
    );
    assert!(
        error_of(&db, &["export", "--url", &url], 3).contains("too many follow the log already")
    );
    served.join().unwrap();
    assert!(
        error_of(&db, &["list", "--url", "ftp://fl.example"], 2)
            .contains("expected an address such as http://")
    );
}

#[test]
fn formulas_are_escaped_for_spreadsheets_alone() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(1).replace("q 0", "=1+1"));
    assert!(!output_of(&db, &["list", "--format", "table"]).contains('\''));
    assert!(output_of(&db, &["list", "--format", "csv"]).contains("'=1+1"));
}

#[test]
fn endless_line_is_rejected_by_its_number_and_not_held() {
    let db = TestDb::new();
    let input = format!(
        "{}{}\n{}{}",
        lines(1),
        "x".repeat(3 << 20),
        lines(1),
        "y".repeat(2 << 20)
    );
    let output = run(&db, &["ingest"], &input);
    let said = String::from_utf8(output.stderr).unwrap();
    for line in ["line 2", "line 4"] {
        assert!(
            said.contains(&format!("{line}: the line is longer than 1048576 bytes")),
            "{said}"
        );
    }
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2 records stored, 2 lines rejected\n"
    );
}

#[test]
fn import_of_nothing_creates_no_database() {
    let db = TestDb::new();
    let other = db.folder.path().join("other");
    for (text, code) in [(None, 3), (Some("no database"), 3), (Some(""), 2)] {
        if let Some(text) = text {
            std::fs::write(&other, text).unwrap();
        }
        let said = error_of(&db, &["import", other.to_str().unwrap()], code);
        assert!(said.contains(other.to_str().unwrap()), "{said}");
        assert!(!db.folder.path().join("failures.db").exists());
    }
}

#[test]
fn token_file_readable_by_other_users_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let db = TestDb::new();
    let file = db.folder.path().join("tokens");
    std::fs::write(&file, "the-first-token-of-all").unwrap();
    for (mode, warned) in [(0o640, true), (0o600, false)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let service = Service::new(&db, &["--token-file", file.to_str().unwrap()]);
        assert_eq!(service.log().contains("chmod 600"), warned, "{mode:o}");
    }
}

#[test]
fn settings_are_shown_with_their_origin_in_every_format() {
    let db = TestDb::new();
    let flags = [
        "--set",
        "max_posts_per_second=7",
        "--set",
        "allow_origins=https://a.example, http://b.example",
    ];
    let config = |format: &str| {
        output_of(
            &db,
            &[&["config", "--format", format], flags.as_slice()].concat(),
        )
    };
    let all: Value = serde_json::from_str(&config("json")).unwrap();
    let setting = |name: &str| {
        all.as_array()
            .unwrap()
            .iter()
            .find(|row| row["setting"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        setting("max_posts_per_second"),
        json!({"setting": "max_posts_per_second", "value": 7, "origin": "command line"})
    );
    assert_eq!(setting("max_reads_per_second")["value"], 500);
    assert_eq!(
        setting("allow_origins")["value"],
        json!(["https://a.example", "http://b.example"])
    );
    assert_eq!(
        setting("token_file"),
        json!({"setting": "token_file", "value": null, "origin": "default"})
    );
    assert_eq!(
        config("jsonl").lines().count(),
        all.as_array().unwrap().len()
    );
    assert!(config("csv").contains("max_posts_per_second,7,command line\n"));
    assert!(
        config("table")
            .lines()
            .any(|line| line.trim_start().starts_with("database_url"))
    );
    assert!(
        error_of(&db, &["serve", "--set", "allow_origins=a.example"], 2)
            .contains("allow_origins = a.example: expected")
    );
}

#[test]
fn closed_pipe_is_no_error() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(5000));
    let mut child = command(&db, &["export"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn commands_work_on_a_service_which_drains_before_it_ends() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let with = |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain(["--url", &service.url])
            .collect();
        output_of(&db, &arguments)
    };
    assert_eq!(with(&["check"]), "ready\n");
    let output = run(&db, &["ingest", "--url", &service.url], &lines(2500));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2500 records stored, 0 lines rejected\n"
    );
    common::eventually("the rows", || db.rows() == 2500);
    assert_eq!(with(&["list", "-n", "7"]).lines().count(), 7);
    assert_eq!(with(&["export"]).lines().count(), 2500);
    assert!(with(&["stats", "--format", "table"]).contains("2500"));
    assert_eq!(with(&["top", "-n", "3"]).lines().count(), 3);
    assert_eq!(with(&["tail", "-n", "2"]).lines().count(), 2);
    // The service gets the signal during an upload. It has each record that it accepted.
    let mut feeding = command(&db, &["ingest", "--url", &service.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    feeding
        .stdin
        .as_mut()
        .unwrap()
        .write_all(lines(1000).as_bytes())
        .unwrap();
    common::eventually("the first thousand", || db.rows() >= 3500);
    service.signal("TERM");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), 3500);
    assert!(
        !db.folder.path().join("failures.db-wal").exists(),
        "the file is complete"
    );
    drop(feeding.stdin.take());
    feeding.wait().unwrap();
}

#[test]
fn query_status_is_set_in_a_file_and_in_a_service() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(3));
    assert_eq!(output_of(&db, &["mark", "Q 1?", "resolved"]), "resolved\n");
    let service = Service::new(&db, &[]);
    assert_eq!(
        output_of(&db, &["mark", "q 2", "ignored", "--url", &service.url]),
        "ignored\n"
    );
    for arguments in [&["top"][..], &["top", "--url", &service.url]] {
        for (status, query) in [("resolved", "q 1"), ("ignored", "q 2"), ("open", "q 0")] {
            let found = output_of(&db, &[arguments, &["--status", status]].concat());
            let group: Value = serde_json::from_str(&found).expect("one group");
            assert_eq!(
                (&group["example"], &group["status"]),
                (&json!(query), &json!(status))
            );
        }
    }
    // Both take the id of the group.
    for source in [&[][..], &["--url", &service.url]] {
        let found = output_of(&db, &[&["top", "--status", "resolved"], source].concat());
        let id = serde_json::from_str::<Value>(&found).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            output_of(&db, &[&["mark", &id, "resolved"], source].concat()),
            "resolved\n"
        );
        let said = error_of(
            &db,
            &[&["mark", "0123456789abcdef", "resolved"], source].concat(),
            1,
        );
        assert!(
            said.contains("no failure of the log") || said.contains("no group of queries"),
            "{said}"
        );
    }
    let long = "q".repeat(513);
    for arguments in [
        &["mark", &long, "ignored"][..],
        &["mark", &long, "ignored", "--url", &service.url],
    ] {
        let said = error_of(&db, arguments, 2);
        assert!(
            said.contains("the query has 513 characters: expected 512 at most"),
            "{said}"
        );
    }
    let other = TestDb::new();
    for source in [&[][..], &["--url", &service.url]] {
        let said = error_of(
            &db,
            &[&["mark", "never logged", "resolved"], source].concat(),
            1,
        );
        assert!(
            said.contains("no failure of the log has this query"),
            "{said}"
        );
    }
    assert!(error_of(&other, &["mark", "q", "resolved"], 3).contains("there is no database"));
    assert!(
        error_of(&other, &["mark", "q", "fine"], 2)
            .contains("possible values: open, resolved, ignored")
    );
}

#[test]
fn tokens_are_required_and_reloaded_while_the_service_runs() {
    let db = TestDb::new();
    let (file, mine) = (
        db.folder.path().join("tokens"),
        db.folder.path().join("mine"),
    );
    std::fs::write(&file, "the-first-token-of-all").unwrap();
    std::fs::write(&mine, "the-first-token-of-all").unwrap();
    let service = Service::new(&db, &["--token-file", file.to_str().unwrap()]);
    let exit_code = || {
        run(
            &db,
            &[
                "list",
                "--url",
                &service.url,
                "--url-token-file",
                mine.to_str().unwrap(),
            ],
            "",
        )
        .status
        .code()
    };
    assert!(error_of(&db, &["list", "--url", &service.url], 2).contains("401"));
    assert_eq!(exit_code(), Some(0));
    std::fs::write(&file, "the-second-token-of-all").unwrap();
    service.signal("HUP");
    common::eventually("the rejection of the old token", || exit_code() == Some(2));
    std::fs::write(&mine, "the-second-token-of-all").unwrap();
    assert_eq!(exit_code(), Some(0));
    // The file has a token for each command, which uses its own.
    let both = "read = the-token-for-those-who-read\ningest = the-token-for-those-who-report";
    std::fs::write(&file, both).unwrap();
    std::fs::write(&mine, both).unwrap();
    service.signal("HUP");
    common::eventually("the new tokens", || exit_code() == Some(0));
    let token_file = [
        "--url",
        &service.url,
        "--url-token-file",
        mine.to_str().unwrap(),
    ];
    // Without its last token, a scope would be open.
    std::fs::write(&file, "read = the-token-for-those-who-read").unwrap();
    service.signal("HUP");
    common::eventually("the rejection", || {
        service
            .log()
            .contains("no token has the scope `ingest` any more")
    });
    let refused_post = "POST /v1/failures HTTP/1.1\r\nHost: localhost\r\nContent-Length: \
        0\r\nConnection: close\r\n\r\n";
    assert!(
        exchange(&service.url, refused_post)
            .unwrap()
            .starts_with("HTTP/1.1 401")
    );
    let output = run(&db, &[&["ingest"], &token_file[..]].concat(), &lines(2));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2 records stored, 0 lines rejected\n"
    );
    assert_eq!(
        output_of(
            &db,
            &[&["mark", "q 1", "resolved"], &token_file[..]].concat()
        ),
        "resolved\n"
    );
}

#[test]
fn tokens_of_a_reachable_service_cannot_be_removed() {
    let db = TestDb::new();
    let (file, tokens) = (
        db.folder.path().join("settings.toml"),
        db.folder.path().join("tokens"),
    );
    std::fs::write(&tokens, "the-only-token-of-all").unwrap();
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let token_file = format!("token_file = {:?}", tokens.to_str().unwrap());
    write(&format!(
        "listen = \"0.0.0.0:0\"\n{token_file}\nallow_hosts = [\"fl.example\"]"
    ));
    let service = Service::with(&db, &["--config", file.to_str().unwrap()]);
    let (_, port) = service.url.rsplit_once(':').unwrap();
    let status = |host: &str| {
        let request =
            format!("GET /v1/summary HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(&format!("http://127.0.0.1:{port}"), &request).unwrap()[9..12].to_owned()
    };
    assert_eq!(
        (
            status("fl.example").as_str(),
            status("other.example").as_str()
        ),
        ("401", "421")
    );
    // These settings would need no token if the service listened on the loopback alone. It does
    // not.
    write("listen = \"127.0.0.1:0\"\nallow_hosts = [\"other.example\"]");
    service.signal("HUP");
    common::eventually("the rejection", || {
        service.log().contains("the previous ones stay in force")
    });
    assert_eq!(
        (
            status("fl.example").as_str(),
            status("other.example").as_str()
        ),
        ("401", "421")
    );
    write(&format!(
        "listen = \"127.0.0.1:0\"\n{token_file}\nallow_hosts = [\"other.example\"]"
    ));
    service.signal("HUP");
    common::eventually("the settings", || status("other.example") != "421");
    assert_eq!(status("other.example"), "401");
}

#[test]
fn reload_applies_all_changed_settings_or_none() {
    let db = TestDb::new();
    let file = db.folder.path().join("settings.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("log_level = \"error\"\nmax_reads_per_second = 1");
    let service = Service::new(&db, &["--config", file.to_str().unwrap()]);
    let status = |host: &str| {
        let request =
            format!("GET /v1/summary HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(&service.url, &request).unwrap()[9..12].to_owned()
    };
    assert!((0..1000).any(|_| status("localhost") == "429"));
    assert_eq!(
        (status("logger.example").as_str(), service.log().as_str()),
        ("421", "")
    );
    // One setting is invalid, so all settings stay as they were.
    write("log_level = \"info\"\nmax_reads_per_second = 0\nallow_origins = [\"nonsense\"]");
    service.signal("HUP");
    common::eventually("the error", || {
        service.log().contains("the previous ones stay in force")
    });
    assert!((0..1000).any(|_| status("localhost") == "429"));
    write("log_level = \"info\"\nmax_reads_per_second = 0\nallow_hosts = [\"logger.example\"]");
    service.signal("HUP");
    common::eventually("the new level", || service.log().contains("reloaded hosts"));
    for host in ["localhost", "logger.example"] {
        assert!((0..20).all(|_| status(host) == "200"), "{host}");
    }
}

#[test]
fn records_accepted_with_202_are_committed_by_an_end_under_load() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let (accepted, requests) = (
        std::sync::atomic::AtomicI64::new(0),
        std::sync::atomic::AtomicI64::new(0),
    );
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = post(&lines(10));
                while let Some(response) = exchange(&service.url, &request) {
                    requests.fetch_add(1, order);
                    if response.starts_with("HTTP/1.1 202") {
                        accepted.fetch_add(10, order);
                    }
                }
            });
        }
        common::eventually("some requests", || requests.load(order) > 200);
        service.signal("TERM");
    });
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    let (accepted, stored) = (accepted.load(order), db.rows());
    assert!(accepted >= 2000);
    // Records may be stored without a response that arrived: one request of each sender at most.
    assert!(
        (accepted..=accepted + 40).contains(&stored),
        "{accepted} accepted, {stored} stored"
    );
}

#[test]
fn client_that_never_finishes_its_request_is_disconnected() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let response = exchange(&service.url, "GET /healthz HTTP/1.1\r\nHost: local");
    assert!(response.expect("a response").starts_with("HTTP/1.1 408"));
}

#[test]
fn hundred_thousand_lines_pass_through_a_small_buffer() {
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "buffer_capacity=1024"]);
    let response = exchange(&service.url, &post(&lines(100_000))).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 202")
            && response.contains("\"accepted\":100000,\"duplicates\":0,\"rejected\":0"),
        "{response}"
    );
    common::eventually("the rows", || db.rows() == 100_000);
}
