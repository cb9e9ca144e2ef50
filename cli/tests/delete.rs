//! The program deletes failures for good, and redacts text.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use common::binary::{Service, command, exchange, lines};
use common::{TestDb, eventually};

#[test]
fn delete_command_works_on_a_file_and_on_a_service() {
    let db = TestDb::new();
    let run = |arguments: &[&str], input: &str| {
        let mut command = command(&db, arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    run(&["ingest"], &lines(3));
    assert_eq!(
        run(&["delete", "--query", "q 1"], ""),
        (
            Some(0),
            "1 failures and 0 statuses deleted\n".into(),
            String::new()
        )
    );
    assert_eq!(run(&["delete"], "").0, Some(2));
    let tokens = db.folder.path().join("tokens");
    fs::write(&tokens, "erase = 0123456789abcdef\n").unwrap();
    let service = Service::new(&db, &["--token-file", tokens.to_str().unwrap()]);
    let to_service = ["delete", "--query", "q 2", "--url", &service.url];
    let (code, _, err) = run(&to_service, "");
    assert!(code == Some(2) && err.contains("401"), "{err}");
    let (code, out, err) = run(
        &[
            &to_service[..],
            &["--url-token-file", tokens.to_str().unwrap()],
        ]
        .concat(),
        "",
    );
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "1 failures and 0 statuses deleted\n"),
        "{err}"
    );
    assert_eq!(db.rows(), 1);
}

#[test]
fn redaction_of_a_service_applies_to_every_input() {
    let db = TestDb::new();
    let file = db.folder.path().join("settings.toml");
    fs::write(
        &file,
        "redact = [{ pattern = '[a-z]+@[a-z.]+', replacement = '[mail]' }]\n",
    )
    .unwrap();
    let with_rules = ["--config", file.to_str().unwrap()];
    let service = Service::new(&db, &with_rules);
    for (path, kind) in [
        ("/v1/failures", "failure_type"),
        ("/v1/attempts", "outcome"),
    ] {
        let body = format!(
            r#"{{"{kind}":"no_hit","strategy":"s","query_text":"of ada@example.org","error_context":"eve@example.org"}}"#
        );
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert!(exchange(&service.url, &request).unwrap().contains("202"));
    }
    eventually("both", || db.rows() == 2);
    assert_eq!(
        db.texts("query_text"),
        vec![Some("of [mail]".to_owned()); 2]
    );
    assert_eq!(
        db.texts("error_context"),
        vec![Some("[mail]".to_owned()); 2]
    );
    service.signal("TERM");
    eventually("the end", || {
        !db.folder.path().join("failures.db-wal").exists()
    });
    assert!(!db.is_on_the_disk("example.org"));

    let key = db.folder.path().join("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let setting = format!("query_hash_key_file={}", key.display());
    let mut ingest = command(
        &db,
        &["ingest", "--set", "query_text=hash", "--set", &setting],
    );
    let mut child = ingest.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), lines(1).as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let last = db.texts("query_text").pop().unwrap().unwrap();
    assert!(last.starts_with("hash:") && last.len() == 37, "{last}");
    let bad = command(&db, &["serve", "--set", "redact=[{\"pattern\": \"(\"}]"])
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(
        String::from_utf8(bad.stderr)
            .unwrap()
            .contains("redact: rule 1: ")
    );
}
