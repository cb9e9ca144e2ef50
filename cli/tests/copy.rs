//! The command `copy` from file to file. `postgres.rs` has the copies from and to a server.

mod common;

use std::fs;
use std::process::Stdio;

use common::TestDb;
use common::binary::{command, lines};

fn run(db: &TestDb, arguments: &[&str]) -> (i32, String, String) {
    let output = command(db, arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Returns a database with 3 failures.
fn filled() -> TestDb {
    let db = TestDb::new();
    let input = db.folder.path().join("input");
    fs::write(&input, lines(3)).unwrap();
    let mut ingest = command(&db, &["ingest"]);
    ingest.stdin(fs::File::open(input).unwrap());
    assert!(ingest.output().unwrap().status.success());
    db
}

#[test]
fn copy_has_the_rows_and_sums_of_its_source() {
    let db = filled();
    let target = db.folder.path().join("copy.db");
    let arguments = ["copy", "--to", target.to_str().unwrap()];
    for written in [3, 0] {
        let (code, output, errors) = run(&db, &arguments);
        assert_eq!(code, 0, "{errors}");
        let rows: Vec<serde_json::Value> = output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let failures = rows.iter().find(|row| row["table"] == "failures").unwrap();
        assert_eq!(
            (&failures["rows"], &failures["rows_of_copy"]),
            (&3.into(), &3.into())
        );
        assert_eq!(failures["written"], written);
        assert!(rows.iter().all(|row| row["sum"] == row["sum_of_copy"]));
        assert!(errors.contains("copy.db: equal to its source"), "{errors}");
    }
    let from_copy = ["--db", target.to_str().unwrap(), "list"];
    assert_eq!(run(&db, &from_copy).1, run(&db, &["list"]).1);
}

#[test]
fn copy_that_cannot_be_made_is_refused_by_its_cause() {
    let (db, other) = (filled(), filled());
    let paths = [&db, &other].map(|db| db.path().to_str().unwrap().to_owned());
    let [path, other] = paths.each_ref().map(|path| &**path);
    for (arguments, code, cause) in [
        (&["copy", "--to", path][..], 2, "the same database"),
        (&["copy", "--to", other], 2, "a log of its own"),
        (&["copy", "--to", ":memory:"], 2, ":memory:"),
        (
            &["copy", "--from", "missing.db", "--to", "x.db"],
            3,
            "no database missing.db",
        ),
        (&["copy", "--to", "missing/x.db"], 3, "missing/x.db"),
    ] {
        let (found, _, errors) = run(&db, arguments);
        assert_eq!(found, code, "{arguments:?}: {errors}");
        assert!(errors.contains(cause), "{arguments:?}: {errors}");
    }
}
