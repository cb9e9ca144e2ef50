//! Backup and restore from the command line: beside a running service, over the files of a killed
//! one, and refused ones.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use common::binary::{Service, command, exchange, lines, post};
use common::{TestDb, block_on, eventually, no_hit, spawn};

/// Runs a command and returns its exit code, its output and its errors.
fn run(db: &TestDb, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = command(db, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that rejects its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn output_of(db: &TestDb, arguments: &[&str]) -> String {
    let (code, output, said) = run(db, arguments, "");
    assert_eq!(code, 0, "{arguments:?}: {said}");
    output
}

fn ingest(db: &TestDb, count: usize) {
    assert_eq!(run(db, &["ingest"], &lines(count)).0, 0);
}

/// Makes a backup with some failures, outside the folder of the database.
fn backup_of(failures: usize) -> (TestDb, PathBuf) {
    let db = TestDb::new();
    ingest(&db, failures);
    let backup = db.folder.path().join("backup.db");
    output_of(&db, &["backup", backup.to_str().unwrap()]);
    (db, backup)
}

fn names(db: &TestDb) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "log")
        .collect();
    names.sort();
    names
}

fn assert_intact(db: &TestDb) {
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
}

#[test]
fn backup_of_a_running_service_has_all_committed_rows() {
    let (db, copy) = (TestDb::new(), TestDb::new());
    let service = Service::new(&db, &[]);
    let mut sent = 0;
    for round in 0..5 {
        assert!(
            exchange(&service.url, &post(&lines(100)))
                .unwrap()
                .starts_with("HTTP/1.1 202")
        );
        sent += 100;
        eventually("the flush", || db.rows() == sent);
        let target = copy.folder.path().join(format!("backup-{round}.db"));
        let said = output_of(&db, &["backup", target.to_str().unwrap()]);
        assert!(
            said.starts_with(&format!("{sent} failures copied")),
            "{said}"
        );
        assert_eq!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    assert_eq!(
        names(&copy).len(),
        5,
        "nothing but the backups: {:?}",
        names(&copy)
    );
    assert_eq!(
        service.log().matches("WARN").count(),
        0,
        "{}",
        service.log()
    );
}

#[test]
fn backup_to_an_existing_file_is_refused_and_leaves_it() {
    let (db, backup) = backup_of(3);
    for content in ["", "precious"] {
        let target = db.folder.path().join("target");
        fs::write(&target, content).unwrap();
        let (code, _, said) = run(&db, &["backup", target.to_str().unwrap()], "");
        assert!(
            code == 2 && said.contains("exists already"),
            "{code}: {said}"
        );
        assert_eq!(fs::read_to_string(&target).unwrap(), content);
    }
    let (code, _, said) = run(&db, &["backup", backup.to_str().unwrap()], "");
    assert!(
        code == 2 && said.contains("exists already"),
        "{code}: {said}"
    );
    assert_eq!(
        names(&db),
        ["backup.db", "failures.db", "failures.db-lock", "target"]
    );
}

#[test]
fn backup_without_a_log_creates_no_file() {
    let db = TestDb::new();
    let target = db.folder.path().join("target");
    let (code, _, said) = run(&db, &["backup", target.to_str().unwrap()], "");
    assert!(
        code == 3 && said.contains("there is no database"),
        "{code}: {said}"
    );
    db.execute("CREATE TABLE orders (id)");
    let (code, _, said) = run(&db, &["backup", target.to_str().unwrap()], "");
    assert!(
        code == 2 && said.contains("holds no failure log"),
        "{code}: {said}"
    );
    let nowhere = db.folder.path().join("missing").join("target");
    ingest(&db, 1);
    let (code, _, said) = run(&db, &["backup", nowhere.to_str().unwrap()], "");
    assert!(code == 3 && said.contains("No such file"), "{code}: {said}");
    assert_eq!(names(&db), ["failures.db", "failures.db-lock"]);
}

#[test]
fn restore_over_a_leftover_journal_has_the_backup_alone() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    assert!(
        exchange(&service.url, &post(&lines(100)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    eventually("the flush", || db.rows() == 100);
    service.signal("KILL");
    drop(service);
    // A read would bring the journal into the file. This test needs the journal.
    assert!(fs::metadata(format!("{}-wal", db.url())).is_ok_and(|journal| journal.len() > 0));
    assert!(
        output_of(&db, &["restore", backup.to_str().unwrap()]).starts_with("7 failures restored")
    );
    assert_eq!(db.rows(), 7);
    let service = Service::new(&db, &[]);
    assert!(
        exchange(&service.url, &post(&lines(2)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    service.signal("TERM");
    eventually("the end", || db.rows() == 9);
    assert_intact(&db);
}

#[test]
fn restore_beside_a_service_and_a_logger_is_seen_by_both() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    assert!(
        exchange(&service.url, &post(&lines(20)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    eventually("the flush", || db.rows() == 20);
    let logger = spawn(db.config());
    let mut tail = command(
        &db,
        &[
            "tail",
            "-f",
            "-n",
            "1",
            "--format",
            "jsonl",
            "--url",
            &service.url,
        ],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut followed = BufReader::new(tail.stdout.take().unwrap()).lines();
    followed.next().unwrap().unwrap();
    let largest = db.integer("SELECT max(id) FROM memory_retrieval_failures");

    assert!(
        output_of(&db, &["restore", backup.to_str().unwrap()]).starts_with("7 failures restored")
    );
    assert_eq!(db.rows(), 7);
    assert_eq!(db.attempts(), 7, "counts are restored with the rows");

    logger.log(no_hit(-5));
    block_on(logger.flush()).unwrap();
    assert!(
        followed
            .next()
            .unwrap()
            .unwrap()
            .contains(r#""turn_index":-5"#),
        "the stream has no restored failure"
    );
    assert!(
        exchange(&service.url, &post(&lines(3)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    eventually("the flush", || db.rows() == 11);
    assert!(followed.next().unwrap().unwrap().contains("q 0"));
    let mut said = BufReader::new(tail.stderr.take().unwrap()).lines();
    assert!(
        said.next()
            .unwrap()
            .unwrap()
            .contains("the log was replaced")
    );
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert_eq!(
        db.integer(&format!(
            "SELECT count(*) FROM memory_retrieval_failures WHERE id > {largest}"
        )),
        4,
        "no id is reused for another failure"
    );
    block_on(logger.shutdown()).unwrap();
    service.signal("TERM");
    assert_intact(&db);
}

#[test]
fn restore_of_a_bad_backup_changes_nothing() {
    let (good, _) = backup_of(50);
    let db = TestDb::new();
    ingest(&db, 3);
    let bad = db.folder.path().join("bad.db");
    let mut damaged = fs::read(good.path()).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 6000].fill(0xA5);
    for (content, code, cause) in [
        (
            &b"no database at all, but long enough"[..],
            2,
            "not a database",
        ),
        (&damaged, 3, "damaged"),
    ] {
        fs::write(&bad, content).unwrap();
        let (got, _, said) = run(&db, &["restore", bad.to_str().unwrap()], "");
        assert!(
            got == code && said.contains(cause) && said.contains("bad.db"),
            "{got}: {said}"
        );
    }
    let (code, _, said) = run(&db, &["restore", &db.url()], "");
    assert!(
        code == 2 && said.contains("the same file"),
        "{code}: {said}"
    );
    let (code, _, said) = run(&db, &["restore", "missing.db"], "");
    assert!(code == 3 && said.contains("missing.db"), "{code}: {said}");
    assert_eq!(db.rows(), 3);
    assert_eq!(names(&db), ["bad.db", "failures.db", "failures.db-lock"]);
}

#[test]
fn restore_replaces_a_damaged_log_and_creates_a_missing_one() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    assert!(
        output_of(&db, &["restore", backup.to_str().unwrap()]).starts_with("7 failures restored")
    );
    assert_eq!(
        fs::metadata(db.path()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    db.execute(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE TABLE nonsense (' WHERE name = 'memory_retrieval_failures';
         PRAGMA schema_version = 1000",
    );
    let (code, output, said) = run(&db, &["restore", backup.to_str().unwrap()], "");
    assert!(
        code == 0 && output.starts_with("7 failures restored") && said.contains(".corrupt-"),
        "{said}"
    );
    assert_eq!(db.rows(), 7);
}

#[test]
fn restore_leaves_the_tables_of_an_application_alone() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    ingest(&db, 3);
    db.execute(
        "CREATE TABLE orders (id); INSERT INTO orders VALUES (1), (2);
         ALTER TABLE memory_retrieval_failures ADD COLUMN note TEXT",
    );
    output_of(&db, &["restore", backup.to_str().unwrap()]);
    assert_eq!(
        (db.rows(), db.integer("SELECT count(*) FROM orders")),
        (7, 2)
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE note IS NULL"),
        7
    );
}

#[test]
fn backup_beside_a_stale_journal_of_its_name_is_refused() {
    let (db, _) = backup_of(3);
    for suffix in ["-wal", "-shm", "-journal"] {
        let target = db.folder.path().join("new.db");
        let stale = db.folder.path().join(format!("new.db{suffix}"));
        fs::write(&stale, "of another file").unwrap();
        let (code, _, said) = run(&db, &["backup", target.to_str().unwrap()], "");
        assert!(
            code == 2 && said.contains(&format!("new.db{suffix}: exists already")),
            "{code}: {said}"
        );
        fs::remove_file(stale).unwrap();
        assert!(!target.exists());
    }
}

#[test]
fn restore_by_a_symbolic_link_has_the_rows_of_the_journal() {
    let source = TestDb::new();
    let service = Service::new(&source, &[]);
    assert!(
        exchange(&service.url, &post(&lines(100)))
            .unwrap()
            .starts_with("HTTP/1.1 202")
    );
    eventually("the flush", || source.rows() == 100);
    service.signal("KILL");
    drop(service);
    let db = TestDb::new();
    let link = db.folder.path().join("latest.db");
    std::os::unix::fs::symlink(source.path(), &link).unwrap();
    assert!(
        output_of(&db, &["restore", link.to_str().unwrap()]).starts_with("100 failures restored")
    );
}

#[test]
fn restore_leaves_rows_and_triggers_of_an_application_alone() {
    let (source, backup) = backup_of(5);
    for (rule, restorable) in [
        ("ON DELETE CASCADE", true),
        ("", true),
        ("ON DELETE CASCADE", false),
    ] {
        let db = TestDb::new();
        ingest(&db, if restorable { 5 } else { 9 });
        db.execute(&format!(
            "CREATE TABLE notes (failure_id REFERENCES memory_retrieval_failures (id) {rule});
             INSERT INTO notes SELECT id FROM memory_retrieval_failures;
             CREATE TABLE audit (what);
             CREATE TRIGGER audited AFTER DELETE ON memory_retrieval_failures BEGIN INSERT INTO audit VALUES (1); END"
        ));
        let notes = db.integer("SELECT count(*) FROM notes");
        let (code, _, said) = run(&db, &["restore", backup.to_str().unwrap()], "");
        assert_eq!(code == 0, restorable, "{said}");
        assert!(
            restorable || said.contains("4 rows of another application refer to failures"),
            "{said}"
        );
        assert_eq!(db.integer("SELECT count(*) FROM notes"), notes, "{rule}");
        assert_eq!(
            db.integer("SELECT count(*) FROM audit"),
            0,
            "a restore is no deletion of failures"
        );
        db.execute("PRAGMA foreign_keys = OFF; DELETE FROM memory_retrieval_failures WHERE id = 1");
        assert_eq!(
            db.integer("SELECT count(*) FROM audit"),
            1,
            "the trigger is still there"
        );
    }
    drop(source);
}

#[test]
fn restore_over_any_damaged_page_is_sound_or_refused() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    ingest(&db, 200);
    let sound_file = fs::read(db.path()).unwrap();
    let mut refused = 0;
    // The first page identifies the file. Without it the file may belong to any other program.
    for page in 1..sound_file.len() / 4096 {
        let mut damaged = sound_file.clone();
        damaged[page * 4096..(page + 1) * 4096].fill(0xA5);
        fs::write(db.path(), &damaged).unwrap();
        let (code, output, said) = run(&db, &["restore", backup.to_str().unwrap()], "");
        if code == 3 {
            // The schema itself cannot be read, so it may have tables of an application.
            assert!(
                said.contains("may hold, tables of another application"),
                "page {page}: {said}"
            );
            assert_eq!(fs::read(db.path()).unwrap(), damaged, "page {page}");
            refused += 1;
        } else {
            assert!(
                output.starts_with("7 failures restored"),
                "page {page}: {code}: {said}"
            );
            assert_eq!(db.rows(), 7, "page {page}");
            assert_intact(&db);
        }
    }
    assert!(refused <= 4, "{refused} pages of the schema");
}

#[test]
fn restore_leaves_a_damaged_file_of_unknown_content() {
    let (_keep, backup) = backup_of(7);
    let db = TestDb::new();
    ingest(&db, 3);
    db.execute("CREATE TABLE customers (id); INSERT INTO customers VALUES (1)");
    let mut damaged = fs::read(db.path()).unwrap();
    damaged[100..1000].fill(0xA5);
    fs::write(db.path(), &damaged).unwrap();
    let (code, _, said) = run(&db, &["restore", backup.to_str().unwrap()], "");
    assert!(
        code == 3 && said.contains("may hold, tables of another application"),
        "{code}: {said}"
    );
    assert_eq!(fs::read(db.path()).unwrap(), damaged);
}

#[test]
fn interrupted_command_leaves_no_copy() {
    let (db, backup) = backup_of(3);
    let pipe = db.folder.path().join("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let (code, _, said) = run(&db, &["restore", pipe.to_str().unwrap()], "");
    assert!(
        code == 2 && said.contains("not a regular file"),
        "{code}: {said}"
    );
    // The command waits for the write lock, and a signal ends it there.
    let other = TestDb::new();
    ingest(&other, 1);
    let lock = common::Lock::new(&other);
    let mut child = command(&other, &["restore", backup.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let has_copy = || names(&other).iter().any(|name| name.contains(".restore-"));
    eventually("the copy", || {
        has_copy() || child.try_wait().unwrap().is_some()
    });
    assert!(has_copy());
    let id = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!has_copy(), "{:?}", names(&other));
    drop(lock);
    assert_eq!(other.rows(), 1);
}

/// Creates a database of the first versions, which recorded their migrations in diesel's table.
fn first_version() -> TestDb {
    let db = TestDb::new();
    for suffix in ["", "-wal"] {
        let fixture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/2026-11-25/failures.db"
        );
        fs::copy(
            format!("{fixture}{suffix}"),
            format!("{}{suffix}", db.url()),
        )
        .unwrap();
    }
    db
}

/// Returns the numbers of versions in diesel's table and in ours.
fn versions(db: &TestDb) -> (i64, i64) {
    let count = |table: &str| match db.integer(&format!(
        "SELECT count(*) FROM sqlite_schema WHERE name = '{table}'"
    )) {
        0 => 0,
        _ => db.integer(&format!("SELECT count(*) FROM {table}")),
    };
    (
        count("__diesel_schema_migrations"),
        count("memory_retrieval_migrations"),
    )
}

#[test]
fn restore_leaves_the_versions_of_the_target() {
    let old = first_version();
    let backup = old.folder.path().join("backup.db");
    output_of(&old, &["backup", backup.to_str().unwrap()]);
    assert_eq!(versions(&old), (3, 0), "a backup changes nothing");
    // The logs are: a new one, an old one, and one of an application that chains our migrations
    // with its own.
    for (db, expected) in [
        (TestDb::new(), (0, 7)),
        (first_version(), (0, 7)),
        (TestDb::new(), (8, 7)),
    ] {
        if expected.0 > 0 {
            ingest(&db, 1);
            db.execute(
                "CREATE TABLE orders (id); CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT \
                 NULL, run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP); INSERT INTO __diesel_schema_migrations \
                 SELECT * FROM memory_retrieval_migrations UNION SELECT '20990101000000', CURRENT_TIMESTAMP",
            );
        }
        assert!(
            output_of(&db, &["restore", backup.to_str().unwrap()])
                .starts_with("89 failures restored")
        );
        assert_eq!((versions(&db), db.rows()), (expected, 89));
        assert_intact(&db);
    }
}

#[test]
fn commands_without_migrations_change_no_schema() {
    let (_keep, backup) = backup_of(3);
    let (old, missing) = (first_version(), TestDb::new());
    for arguments in [
        &["restore", backup.to_str().unwrap()][..],
        &["purge", "--dry-run"],
        &["ingest"],
    ] {
        for db in [&old, &missing] {
            let (code, _, said) = run(db, &[arguments, &["--set", "migrate=false"]].concat(), "");
            assert_eq!(code, 3, "{arguments:?}: {said}");
        }
        let (_, _, said) = run(&old, &[arguments, &["--set", "migrate=false"]].concat(), "");
        assert!(
            said.contains(
                "found: 202611230000010000, 202611240000010000, 202611250000010000; needed"
            ),
            "{said}"
        );
        assert_eq!((versions(&old), old.rows()), ((3, 0), 89));
        assert!(names(&missing).is_empty(), "{:?}", names(&missing));
    }
    assert!(
        output_of(&old, &["restore", backup.to_str().unwrap()]).starts_with("3 failures restored")
    );
    assert!(
        output_of(
            &old,
            &[
                "restore",
                backup.to_str().unwrap(),
                "--set",
                "migrate=false"
            ]
        )
        .starts_with("3 failures")
    );
}
