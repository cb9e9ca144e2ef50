//! The binary: what it prints, how it exits, and what signals do.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Output, Stdio};

use common::TestDb;
use common::binary::{Service, command, exchange, lines, post};
use serde_json::{Value, json};

fn run(db: &TestDb, arguments: &[&str], input: &str) -> Output {
    let mut child =
        command(db, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn done(db: &TestDb, arguments: &[&str]) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(db: &TestDb, arguments: &[&str], code: i32) -> String {
    let output = run(db, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn lines_are_stored_and_found_again_in_every_format() {
    let db = TestDb::new();
    let output = run(&db, &["ingest"], &lines(120));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "120 records stored, 0 lines rejected\n");
    assert_eq!(done(&db, &["list", "-n", "1000"]).lines().count(), 120, "JSON lines in a pipe");
    let page: Value = serde_json::from_str(&done(&db, &["list", "--format", "json", "--text", "q 7"])).unwrap();
    assert_eq!(page["failures"].as_array().unwrap().len(), 11);
    assert!(done(&db, &["list", "--format", "table"]).contains("created_at"));
    assert_eq!(done(&db, &["list", "--format", "csv", "-n", "5"]).lines().count(), 6);
    assert_eq!(done(&db, &["tail", "-n", "3"]).lines().count(), 3);
    assert!(done(&db, &["stats", "--format", "table"]).contains("semantic"));
    assert!(done(&db, &["top", "--since", "1h"]).lines().count() > 0);
    assert_eq!(done(&db, &["export"]).lines().count(), 120);
    assert_eq!(done(&db, &["export", "--csv"]).lines().count(), 121);
    assert_eq!(done(&db, &["purge", "--older-than", "1d"]), "0 failures deleted\n");
    assert_eq!(done(&db, &["purge", "--older-than", "1d", "--dry-run"]), "0 failures are older than 1d\n");
    assert_eq!(done(&db, &["check"]), "120 failures were logged, and no attempts: there is no rate\n");
}

#[test]
fn what_is_wrong_is_said_with_the_exit_code_that_is_documented() {
    let db = TestDb::new();
    assert!(refused(&db, &["list"], 3).contains("there is no database"));
    let output = run(&db, &["ingest"], "bad\n{}\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 1: bad: expected a JSON object"));
    assert!(refused(&db, &["list", "--since", "yesterday"], 2).contains("expected a number and s, m, h, d or w"));
    assert!(refused(&db, &["list", "--type", "bad"], 2).contains("expected no_hit"));
    assert!(refused(&db, &["list", "--url", "ftp://x"], 2).contains("http://127.0.0.1:4318"));
    assert!(refused(&db, &["list", "--url", "http://127.0.0.1:1"], 3).contains("is the service running?"));
    assert!(refused(&db, &["list", "--set", "retention_dais=1"], 2).contains("did you mean retention_days?"));
    let misspelt = command(&db, &["list"]).env("FAILURE_LOGGER_DB", "x.db").output().unwrap();
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(String::from_utf8(misspelt.stderr).unwrap().contains("did you mean database_url?"));
    assert!(refused(&db, &["serve", "--listen", "0.0.0.0:0"], 2).contains("--token-file"));
    assert!(refused(&db, &["calibrate", "unknown"], 1).contains("no attempts of unknown"));
    assert!(refused(&db, &["nonsense"], 2).contains("unrecognized subcommand"));
    assert!(done(&db, &["man"]).contains("failure\\-logger"));
    let pages = db.folder.path().join("man");
    std::fs::create_dir(&pages).unwrap();
    done(&db, &["man", pages.to_str().unwrap()]);
    assert!(std::fs::read_to_string(pages.join("failure-logger-calibrate.1")).unwrap().contains("threshold"));
    assert!(done(&db, &["completions", "bash"]).contains("failure-logger"));
    assert!(done(&db, &["--help"]).contains("Exit codes: 0 done; 1 the answer is no"));
}

#[test]
fn a_bad_line_is_named_by_its_number_in_the_input() {
    let db = TestDb::new();
    let input = format!("\n{}\n  \nbad\n{}", lines(1), lines(1));
    let output = run(&db, &["ingest"], &input);
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 5: bad: expected a JSON object"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2 records stored, 1 lines rejected\n");
    // One that only the service refuses, for it is too long for it.
    let service = Service::new(&db, &[]);
    let long = lines(1).replace("q 0", &"q".repeat(70_000));
    let output = run(&db, &["ingest", "--url", &service.url], &format!("\n\n{}\n{long}{}", lines(2), lines(1)));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("line 6: a line has 65536 bytes at most (max_line_bytes)")
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "3 records stored, 1 lines rejected\n");
}

#[test]
fn a_sender_that_is_too_quick_for_the_service_comes_again() {
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "max_posts_per_second=1"]);
    // Each post has a thousand.
    let output = run(&db, &["ingest", "--url", &service.url], &lines(3000));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "3000 records stored, 0 lines rejected\n");
    common::eventually("the rows", || db.rows() == 3000);
}

/// A service that gives one answer after the other, each on a connection of its own, and then closes;
/// the bodies of the requests.
fn scripted(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let serve = |answer: String| {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut head, mut length) = (String::new(), 0);
            while stream.read_line(&mut head).unwrap() > 2 {
                let last = head.lines().next_back().unwrap().to_ascii_lowercase();
                length = last.strip_prefix("content-length: ").map_or(length, |length| length.parse().unwrap());
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        };
        answers.into_iter().map(serve).collect()
    });
    (url, served)
}

fn answer(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_sender_goes_on_after_the_lines_that_a_full_service_has_looked_at() {
    let db = TestDb::new();
    let (url, served) = scripted(vec![
        answer("503 Service Unavailable", &json!({"detail": "the buffer is full"})),
        answer(
            "503 Service Unavailable",
            &json!({"detail": "the buffer is full", "accepted": 1, "rejected": 1, "line": 2,
                "errors": [{"line": 2, "reason": "bad for it"}]}),
        ),
        answer(
            "202 Accepted",
            &json!({"accepted": 1, "rejected": 1, "errors": [{"line": 2, "reason": "too bad for it"}]}),
        ),
    ]);
    // The first line is empty: numbers are those of the input.
    let output = run(&db, &["ingest", "--url", &url], &format!("\n{}", lines(4)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2 records stored, 2 lines rejected\n");
    assert!(said.contains("line 3: bad for it\n") && said.contains("line 5: too bad for it\n"), "{said}");
    let sent: Vec<usize> = served.join().unwrap().iter().map(|request| request.matches("q ").count()).collect();
    assert_eq!(sent, [4, 4, 2]);
}

#[test]
fn a_sender_that_gives_up_says_how_much_was_stored_and_where_it_stopped() {
    let db = TestDb::new();
    let (url, served) = scripted(vec![
        answer("202 Accepted", &json!({"accepted": 1000, "rejected": 0, "errors": []})),
        answer("413 Payload Too Large", &json!({"accepted": 5, "rejected": 0, "errors": [], "line": 5})),
        answer("403 Forbidden", &json!({"detail": "not you"})),
    ]);
    let output = run(&db, &["ingest", "--url", &url], &format!("\n{}", lines(1500)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("error: 1005 records stored, stopped at line 1007: "), "{said}");
    assert!(said.ends_with("403 Forbidden: not you\n"), "{said}");
    served.join().unwrap();
}

#[test]
fn a_check_says_no_where_it_must_and_takes_no_share_that_is_none() {
    let db = TestDb::new();
    for bad in ["nan", "20", "inf", "-1"] {
        assert!(refused(&db, &["check", "--fail-if-rate-above", bad], 2).contains("a share from 0 to 1"), "{bad}");
        assert!(refused(&db, &["calibrate", "s", "--rate", bad], 2).contains("a share from 0 to 1"), "{bad}");
    }
    // Failures that nobody counted the successes beside: they are in no rate.
    run(&db, &["ingest"], &lines(3));
    let service = Service::new(&db, &[]);
    for source in [&[][..], &["--url", &service.url]] {
        let with = |arguments: &[&'static str]| [arguments, source].concat();
        assert!(refused(&db, &with(&["check", "--strategy", "nope"]), 1).contains("no attempts of nope"));
        let without_rate = "3 failures were logged, and no attempts: there is no rate";
        assert_eq!(done(&db, &with(&["check", "--strategy", "semantic"])), format!("{without_rate}\n"));
        assert!(refused(&db, &with(&["check", "--fail-if-rate-above", "0"]), 4).contains(without_rate));
        assert!(done(&db, &with(&["stats", "--format", "csv"])).contains("attempts,failures,unobserved,"));
    }
    refused(&db, &["check", "--url", "http://127.0.0.1:1"], 3);
    let (url, served) = scripted(vec![
        answer("503 Service Unavailable", &json!({"detail": "nothing is written"})),
        answer("401 Unauthorized", &json!({"detail": "show the token"})),
        answer("200 OK", &json!({"status": "ok"})),
        answer(
            "200 OK",
            &json!({"total": {"attempts": 8, "failures": 4, "unobserved": 3, "failure_rate": 0.5}, "strategies": []}),
        ),
        answer("200 OK", &json!({"status": "ok"})),
        answer("200 OK", &json!({"total": {"attempts": 8, "failure_rate": 0.5}, "strategies": []})),
    ]);
    assert!(refused(&db, &["check", "--url", &url], 1).contains("nothing is written"));
    assert!(refused(&db, &["check", "--url", &url], 3).contains("show the token"));
    let limit = ["check", "--url", &url, "--fail-if-rate-above", "0.2", "--min-attempts"];
    let said = refused(&db, &[&limit[..], &["8"]].concat(), 1);
    assert!(said.contains("50.00 % of 8 attempts failed, more than 20.00 %"), "{said}");
    let said = refused(&db, &[&limit[..], &["9"]].concat(), 4);
    assert!(said.contains("50.00 % of 8 attempts failed, fewer than 9 (--min-attempts)"), "{said}");
    served.join().unwrap();
}

#[test]
fn a_follower_comes_again_and_says_where_it_was() {
    let db = TestDb::new();
    let events = |id: i64| {
        let data = json!({"id": id.to_string(), "query_text": format!("q {id}")});
        let event = format!("id: log.{}\n\nevent: failure\nid: log.{id}\ndata: {data}\n\n", id - 1);
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n{:x}\r\n{event}\r\n0\r\n\r\n",
            event.len()
        )
    };
    let (url, served) = scripted(vec![
        events(8),
        answer("200 OK", &json!({"failures": [{"id": "7", "query_text": "q 7"}]})),
        answer("503 Service Unavailable", &json!({"detail": "it begins"})),
        events(9),
        answer("401 Unauthorized", &json!({"detail": "show the token"})),
    ]);
    let output = run(&db, &["tail", "-f", "--url", &url, "--format", "jsonl"], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(said.matches("waiting for it to come back").count(), 2, "{said}");
    assert!(said.ends_with("show the token\n"), "{said}");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(["q 7", "q 8", "q 9"].iter().zip(shown.lines()).all(|(query, line)| line.contains(query)), "{shown}");
    let asked = served.join().unwrap();
    let last = |nth: usize| asked[nth].lines().find_map(|line| line.strip_prefix("last-event-id: "));
    assert_eq!([last(0), last(2), last(3), last(4)], [None, Some("log.8"), Some("log.8"), Some("log.9")]);
}

#[test]
fn a_follower_misses_nothing_and_sees_nothing_twice_when_the_service_is_restarted() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(1));
    let mut service = Service::new(&db, &[]);
    let (address, seen) = (service.address().to_owned(), db.folder.path().join("seen"));
    let mut follower = command(&db, &["tail", "-f", "-n", "0", "--url", &service.url, "--format", "jsonl"])
        .stdout(std::fs::File::create(&seen).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(follower.stderr.take().unwrap()).lines();
    let seen = || -> Vec<i64> {
        let text = std::fs::read_to_string(&seen).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let id = |line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().parse().unwrap();
        whole.map(id).collect()
    };
    // Until it is connected, it misses them.
    common::eventually("the first", || {
        run(&db, &["ingest", "--url", &service.url], &lines(1));
        !seen().is_empty()
    });
    service.signal("TERM");
    service.child.wait().unwrap();
    assert!(said.next().unwrap().unwrap().ends_with("waiting for it to come back"));
    run(&db, &["ingest"], &lines(3));
    let _again = Service::new(&db, &["--set", &format!("listen={address}")]);
    common::eventually("what came in between", || seen().last() == Some(&db.rows()));
    let ids = seen();
    assert_eq!(ids, (ids[0]..=db.rows()).collect::<Vec<_>>());
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn what_a_service_says_of_a_stream_is_repeated() {
    let db = TestDb::new();
    let busy = || answer("503 Service Unavailable", &json!({"detail": "too many follow the log already"}));
    let (url, served) = scripted(vec![busy(), busy()]);
    assert!(refused(&db, &["tail", "-f", "--url", &url], 3).contains("too many follow the log already"));
    assert!(refused(&db, &["export", "--url", &url], 3).contains("too many follow the log already"));
    served.join().unwrap();
    assert!(refused(&db, &["list", "--url", "ftp://fl.example"], 2).contains("expected an address such as http://"));
}

#[test]
fn only_a_spreadsheet_gets_formulas_defused() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(1).replace("q 0", "=1+1"));
    assert!(!done(&db, &["list", "--format", "table"]).contains('\''));
    assert!(done(&db, &["list", "--format", "csv"]).contains("'=1+1"));
}

#[test]
fn a_line_without_an_end_is_refused_by_its_number_and_not_held() {
    let db = TestDb::new();
    let input = format!("{}{}\n{}{}", lines(1), "x".repeat(3 << 20), lines(1), "y".repeat(2 << 20));
    let output = run(&db, &["ingest"], &input);
    let said = String::from_utf8(output.stderr).unwrap();
    for line in ["line 2", "line 4"] {
        assert!(said.contains(&format!("{line}: a line has 1048576 bytes at most")), "{said}");
    }
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2 records stored, 2 lines rejected\n");
}

#[test]
fn an_import_of_nothing_leaves_no_database_behind() {
    let db = TestDb::new();
    let other = db.folder.path().join("other");
    for (text, code) in [(None, 3), (Some("no database"), 3), (Some(""), 2)] {
        if let Some(text) = text {
            std::fs::write(&other, text).unwrap();
        }
        let said = refused(&db, &["import", other.to_str().unwrap()], code);
        assert!(said.contains(other.to_str().unwrap()), "{said}");
        assert!(!db.folder.path().join("failures.db").exists());
    }
}

#[test]
fn a_token_file_that_others_may_read_is_warned_of() {
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
    let flags = ["--set", "max_posts_per_second=7", "--set", "allow_origins=https://a.example, http://b.example"];
    let config = |format: &str| done(&db, &[&["config", "--format", format], flags.as_slice()].concat());
    let all: Value = serde_json::from_str(&config("json")).unwrap();
    let of = |name: &str| all.as_array().unwrap().iter().find(|row| row["setting"] == name).unwrap().clone();
    assert_eq!(
        of("max_posts_per_second"),
        json!({"setting": "max_posts_per_second", "value": 7, "origin": "command line"})
    );
    assert_eq!(of("max_questions_per_second")["value"], 500);
    assert_eq!(of("allow_origins")["value"], json!(["https://a.example", "http://b.example"]));
    assert_eq!(of("token_file"), json!({"setting": "token_file", "value": null, "origin": "default"}));
    assert_eq!(config("jsonl").lines().count(), all.as_array().unwrap().len());
    assert!(config("csv").contains("max_posts_per_second,7,command line\n"));
    assert!(config("table").lines().any(|line| line.trim_start().starts_with("database_url")));
    assert!(
        refused(&db, &["serve", "--set", "allow_origins=a.example"], 2).contains("allow_origins = a.example: expected")
    );
}

#[test]
fn a_pipe_that_is_closed_is_no_error() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(5000));
    let mut child = command(&db, &["export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_service_is_fed_and_asked_like_a_file_and_drains_when_it_is_told_to_end() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let with = |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--url", &service.url]).collect();
        done(&db, &arguments)
    };
    assert_eq!(with(&["check"]), "ready\n");
    let output = run(&db, &["ingest", "--url", &service.url], &lines(2500));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2500 records stored, 0 lines rejected\n");
    common::eventually("the rows", || db.rows() == 2500);
    assert_eq!(with(&["list", "-n", "7"]).lines().count(), 7);
    assert_eq!(with(&["export"]).lines().count(), 2500);
    assert!(with(&["stats", "--format", "table"]).contains("2500"));
    assert_eq!(with(&["top", "-n", "3"]).lines().count(), 3);
    assert_eq!(with(&["tail", "-n", "2"]).lines().count(), 2);
    // Told to end while it is being fed: whatever it said it took is there.
    let mut feeding = command(&db, &["ingest", "--url", &service.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    feeding.stdin.as_mut().unwrap().write_all(lines(1000).as_bytes()).unwrap();
    common::eventually("the first thousand", || db.rows() >= 3500);
    service.signal("TERM");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert_eq!(db.rows(), 3500);
    assert!(!db.folder.path().join("failures.db-wal").exists(), "the file is complete");
    drop(feeding.stdin.take());
    feeding.wait().unwrap();
}

#[test]
fn a_question_is_marked_in_a_file_and_in_a_service() {
    let db = TestDb::new();
    run(&db, &["ingest"], &lines(3));
    assert_eq!(done(&db, &["mark", "Q 1?", "resolved"]), "resolved\n");
    let service = Service::new(&db, &[]);
    assert_eq!(done(&db, &["mark", "q 2", "ignored", "--url", &service.url]), "ignored\n");
    for arguments in [&["top"][..], &["top", "--url", &service.url]] {
        for (status, question) in [("resolved", "q 1"), ("ignored", "q 2"), ("open", "q 0")] {
            let found = done(&db, &[arguments, &["--status", status]].concat());
            let group: Value = serde_json::from_str(&found).expect("one group");
            assert_eq!((&group["key"], &group["status"]), (&json!(question), &json!(status)));
        }
    }
    let long = "q".repeat(513);
    for arguments in [&["mark", &long, "ignored"][..], &["mark", &long, "ignored", "--url", &service.url]] {
        let said = refused(&db, arguments, 2);
        assert!(said.contains("the question has 513 characters: expected 512 at most"), "{said}");
    }
    let other = TestDb::new();
    for source in [&[][..], &["--url", &service.url]] {
        let said = refused(&db, &[&["mark", "never asked", "resolved"], source].concat(), 1);
        assert!(said.contains("no failure of the log has this query"), "{said}");
    }
    assert!(refused(&other, &["mark", "q", "resolved"], 3).contains("there is no database"));
    assert!(refused(&other, &["mark", "q", "fine"], 2).contains("possible values: open, resolved, ignored"));
}

#[test]
fn tokens_are_asked_for_and_can_be_changed_while_it_runs() {
    let db = TestDb::new();
    let (file, mine) = (db.folder.path().join("tokens"), db.folder.path().join("mine"));
    std::fs::write(&file, "the-first-token-of-all").unwrap();
    std::fs::write(&mine, "the-first-token-of-all").unwrap();
    let service = Service::new(&db, &["--token-file", file.to_str().unwrap()]);
    let ask =
        || run(&db, &["list", "--url", &service.url, "--url-token-file", mine.to_str().unwrap()], "").status.code();
    assert!(refused(&db, &["list", "--url", &service.url], 3).contains("401"));
    assert_eq!(ask(), Some(0));
    std::fs::write(&file, "the-second-token-of-all").unwrap();
    service.signal("HUP");
    common::eventually("the old token to be refused", || ask() == Some(3));
    std::fs::write(&mine, "the-second-token-of-all").unwrap();
    assert_eq!(ask(), Some(0));
    // One for each: the command shows the one that is asked for.
    let both = "read = the-token-for-those-who-read\ningest = the-token-for-those-who-report";
    std::fs::write(&file, both).unwrap();
    std::fs::write(&mine, both).unwrap();
    service.signal("HUP");
    common::eventually("the new tokens", || ask() == Some(0));
    let token_file = ["--url", &service.url, "--url-token-file", mine.to_str().unwrap()];
    let output = run(&db, &[&["ingest"], &token_file[..]].concat(), &lines(2));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2 records stored, 0 lines rejected\n");
    assert_eq!(done(&db, &[&["mark", "q 1", "resolved"], &token_file[..]].concat()), "resolved\n");
}

#[test]
fn tokens_cannot_be_taken_away_while_others_can_reach_the_service() {
    let db = TestDb::new();
    let (file, tokens) = (db.folder.path().join("settings.toml"), db.folder.path().join("tokens"));
    std::fs::write(&tokens, "the-only-token-of-all").unwrap();
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let token_file = format!("token_file = {:?}", tokens.to_str().unwrap());
    write(&format!("listen = \"0.0.0.0:0\"\n{token_file}\nallow_hosts = [\"fl.example\"]"));
    let service = Service::with(&db, &["--config", file.to_str().unwrap()]);
    let (_, port) = service.url.rsplit_once(':').unwrap();
    let status = |host: &str| {
        let request = format!("GET /v1/summary HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(&format!("http://127.0.0.1:{port}"), &request).unwrap()[9..12].to_owned()
    };
    assert_eq!((status("fl.example").as_str(), status("other.example").as_str()), ("401", "421"));
    // By what these say it would listen to itself alone, and need no token; but it does not.
    write("listen = \"127.0.0.1:0\"\nallow_hosts = [\"other.example\"]");
    service.signal("HUP");
    common::eventually("the refusal", || service.log().contains("the settings stay as they were"));
    assert_eq!((status("fl.example").as_str(), status("other.example").as_str()), ("401", "421"));
    write(&format!("listen = \"127.0.0.1:0\"\n{token_file}\nallow_hosts = [\"other.example\"]"));
    service.signal("HUP");
    common::eventually("the settings", || status("other.example") != "421");
    assert_eq!(status("other.example"), "401");
}

#[test]
fn what_can_change_while_it_runs_is_read_anew_all_or_nothing() {
    let db = TestDb::new();
    let file = db.folder.path().join("settings.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("log_level = \"error\"\nmax_questions_per_second = 1");
    let service = Service::new(&db, &["--config", file.to_str().unwrap()]);
    let status = |host: &str| {
        let request = format!("GET /v1/summary HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(&service.url, &request).unwrap()[9..12].to_owned()
    };
    assert!((0..1000).any(|_| status("localhost") == "429"));
    assert_eq!((status("logger.example").as_str(), service.log().as_str()), ("421", ""));
    // One of them is wrong, so that all stay as they were.
    write("log_level = \"info\"\nmax_questions_per_second = 0\nallow_origins = [\"nonsense\"]");
    service.signal("HUP");
    common::eventually("the mistake", || service.log().contains("the settings stay as they were"));
    assert!((0..1000).any(|_| status("localhost") == "429"));
    write("log_level = \"info\"\nmax_questions_per_second = 0\nallow_hosts = [\"logger.example\"]");
    service.signal("HUP");
    common::eventually("the new level", || service.log().contains("were read anew"));
    for host in ["localhost", "logger.example"] {
        assert!((0..20).all(|_| status(host) == "200"), "{host}");
    }
}

#[test]
fn everything_that_was_answered_with_202_is_in_the_file_when_it_ends_under_load() {
    let db = TestDb::new();
    let mut service = Service::new(&db, &[]);
    let (accepted, requests) = (std::sync::atomic::AtomicI64::new(0), std::sync::atomic::AtomicI64::new(0));
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = post(&lines(10));
                while let Some(answer) = exchange(&service.url, &request) {
                    requests.fetch_add(1, order);
                    if answer.starts_with("HTTP/1.1 202") {
                        accepted.fetch_add(10, order);
                    }
                }
            });
        }
        common::eventually("some load", || requests.load(order) > 200);
        service.signal("TERM");
    });
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    let (accepted, stored) = (accepted.load(order), db.rows());
    assert!(accepted >= 2000);
    // What was stored, but whose answer did not arrive any more: a request of each sender at most.
    assert!((accepted..=accepted + 40).contains(&stored), "{accepted} were accepted, {stored} are stored");
}

#[test]
fn a_client_that_never_finishes_its_request_is_sent_away() {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let answer = exchange(&service.url, "GET /healthz HTTP/1.1\r\nHost: local");
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 408"));
}

#[test]
fn a_hundred_thousand_lines_go_through_a_small_buffer() {
    let db = TestDb::new();
    let service = Service::new(&db, &["--set", "buffer_capacity=1024"]);
    let answer = exchange(&service.url, &post(&lines(100_000))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202") && answer.contains("\"accepted\":100000,\"rejected\":0"), "{answer}");
    common::eventually("the rows", || db.rows() == 100_000);
}
