//! Processes that die, that share a file, or that may not write as much as they need.
//!
//! A test starts itself as a child process, with its task in the environment.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{TestDb, block_on, eventually, no_hit, spawn};
use failure_logger::{FailureLogger, LoggerConfig, StartError};

const DATABASE: &str = "FAILURE_LOGGER_TEST_DATABASE";
const FROM: &str = "FAILURE_LOGGER_TEST_FROM";
const KILLS: i64 = 100;
/// Records between two acknowledgements: less than a batch, so that the timer has to flush them.
const STEP: i64 = 11;

/// Returns the task of this process if it is a child.
fn child_task() -> Option<(LoggerConfig, i64)> {
    let database = std::env::var(DATABASE).ok()?;
    let config = LoggerConfig::new(database)
        .batch_size(16)
        .flush_interval(Duration::from_millis(5));
    Some((config, std::env::var(FROM).ok()?.parse().ok()?))
}

/// Returns a command that runs the test `name` of this program as a child.
fn child(name: &str, db: &TestDb, from: i64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(DATABASE, db.url()).env(FROM, from.to_string());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Returns the numbers that `child` acknowledges.
fn acknowledgements(child: &mut Child) -> impl Iterator<Item = i64> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok())
}

fn print_line(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // The test harness has begun a line, so this one begins with a line feed. A parent that has
    // read enough closes the pipe.
    let _ = writeln!(out, "\n{text}").and_then(|()| out.flush());
}

fn assert_intact(db: &TestDb) {
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
    assert_eq!(
        db.integer("SELECT count(*) - count(DISTINCT event_id) FROM memory_retrieval_failures"),
        0
    );
}

#[test]
fn acknowledged_records_survive_a_hundred_kills() {
    if let Some((config, from)) = child_task() {
        let logger = spawn(config);
        for turn in from.. {
            logger.log(no_hit(turn));
            if turn % STEP == STEP - 1 {
                // Every other round waits for the timer alone.
                if turn / STEP % 2 == 0 {
                    block_on(logger.flush()).unwrap();
                } else {
                    eventually("the timer's flush", || logger.stats().buffered == 0);
                }
                print_line(format_args!("acknowledged {turn}"));
            }
        }
    }
    let db = TestDb::new();
    let mut next = 0;
    for kill in 0..KILLS {
        let mut victim = child("acknowledged_records_survive_a_hundred_kills", &db, next)
            .spawn()
            .unwrap();
        let mut acknowledged = acknowledgements(&mut victim);
        let wanted = usize::try_from(kill % 7 + 1).unwrap();
        let mut last = acknowledged
            .by_ref()
            .take(wanted)
            .last()
            .expect("an acknowledgement");
        victim.kill().unwrap();
        // Acknowledgements before the kill count, too.
        last = acknowledged.last().unwrap_or(last);
        victim.wait().unwrap();

        // The stored rows are a prefix of the sent ones: none is missing below the last
        // acknowledgement.
        let stored = db.turns();
        assert_eq!(
            stored,
            (0..stored.len() as i64).collect::<Vec<_>>(),
            "after kill {kill}"
        );
        next = stored.len() as i64;
        assert!(
            next > last,
            "kill {kill}: {last} was acknowledged, and {next} is missing"
        );
        assert!(
            next <= last + 1 + STEP,
            "kill {kill}: {next} was never logged"
        );
    }
    assert_intact(&db);
}

#[test]
fn two_processes_that_share_a_file_lose_no_record() {
    const RECORDS: i64 = 5000;
    if let Some((config, from)) = child_task() {
        print_line(format_args!("acknowledged 0"));
        // Both processes open the new file at the same moment.
        std::io::stdin()
            .lock()
            .read_line(&mut String::new())
            .unwrap();
        let logger = spawn(config);
        for turn in from..from + RECORDS {
            logger.log(no_hit(turn));
        }
        let stats = block_on(logger.shutdown()).unwrap().stats;
        print_line(format_args!("acknowledged {}", stats.persisted));
        std::process::exit(0);
    }
    let db = TestDb::new();
    let mut children = [0, RECORDS].map(|from| {
        child("two_processes_that_share_a_file_lose_no_record", &db, from)
            .spawn()
            .unwrap()
    });
    let mut said: Vec<_> = children.iter_mut().map(acknowledgements).collect();
    said.iter_mut()
        .for_each(|said| assert_eq!(said.next(), Some(0), "ready"));
    for child in &mut children {
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
    said.into_iter()
        .for_each(|said| assert_eq!(said.last(), Some(RECORDS)));
    for child in &mut children {
        child.wait().unwrap();
    }
    let turns = db.turns();
    for from in [0, RECORDS] {
        let of_one: Vec<_> = turns
            .iter()
            .copied()
            .filter(|turn| (from..from + RECORDS).contains(turn))
            .collect();
        assert_eq!(of_one, (from..from + RECORDS).collect::<Vec<_>>());
    }
    assert_intact(&db);
}

#[test]
fn process_at_its_file_size_limit_keeps_its_records() {
    const RECORDS: i64 = 4000;
    if let Some((config, _)) = child_task() {
        let logger = spawn(config);
        for turn in 0..RECORDS {
            logger.log(no_hit(turn));
        }
        block_on(logger.flush()).unwrap_err();
        let stats = logger.stats();
        assert!(stats.is_balanced() && stats.dropped.total() == 0 && stats.buffered > 0);
        print_line(format_args!("acknowledged {}", stats.persisted));
        // The parent lifts the limit, and then writes a line.
        std::io::stdin()
            .lock()
            .read_line(&mut String::new())
            .unwrap();
        eventually("a flush that succeeds", || block_on(logger.flush()).is_ok());
        let stats = block_on(logger.shutdown()).unwrap().stats;
        print_line(format_args!("acknowledged {}", stats.persisted));
        std::process::exit(0);
    }
    if Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("skipped: this machine has no prlimit to lift the limit with");
        return;
    }
    let db = TestDb::new();
    let direct = child("process_at_its_file_size_limit_keeps_its_records", &db, 0);
    let mut limited = Command::new("prlimit");
    // The signal would end the process. If it is ignored, the write returns an error.
    limited.args([
        "--fsize=200000:unlimited",
        "sh",
        "-c",
        "trap '' XFSZ; exec \"$0\" \"$@\"",
    ]);
    limited.arg(direct.get_program()).args(direct.get_args());
    limited
        .env(DATABASE, db.url())
        .env(FROM, "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut limited = limited.spawn().unwrap();
    let mut acknowledged = acknowledgements(&mut limited);
    assert!(acknowledged.next().expect("a flush that failed") < RECORDS);
    let lifted = Command::new("prlimit")
        .args(["--pid", &limited.id().to_string(), "--fsize=unlimited"])
        .status();
    assert!(lifted.unwrap().success());
    limited
        .stdin
        .take()
        .unwrap()
        .write_all(b"lifted\n")
        .unwrap();
    assert_eq!(acknowledged.next(), Some(RECORDS));
    limited.wait().unwrap();
    assert_eq!(db.turns(), (0..RECORDS).collect::<Vec<_>>());
    assert_intact(&db);
}

/// Runs its child as a user without privileges, whom the folder's permissions bind.
#[cfg(unix)]
#[test]
fn read_only_folder_made_writable_loses_no_record() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    use std::os::unix::process::CommandExt as _;

    const NOBODY: u32 = 65534;
    let wait_for_parent = || {
        std::io::stdin()
            .lock()
            .read_line(&mut String::new())
            .unwrap()
    };
    if let Some((config, _)) = child_task() {
        let logger = spawn(config.backoff(Duration::from_millis(1), Duration::from_millis(20)));
        let round = |turns: std::ops::Range<i64>| {
            for turn in turns {
                logger.log(no_hit(turn));
            }
            block_on(logger.flush())
        };
        round(0..100).unwrap();
        print_line(format_args!("acknowledged {}", logger.stats().persisted));
        // The folder is read-only now. Open files stay writable.
        wait_for_parent();
        round(100..200).unwrap();
        print_line(format_args!("acknowledged {}", logger.stats().persisted));
        // The file is gone, and the folder permits no new one.
        wait_for_parent();
        round(200..300).unwrap_err();
        let stats = logger.stats();
        assert!(stats.is_balanced() && stats.dropped.total() == 0);
        assert!(
            FailureLogger::spawn(LoggerConfig::new(std::env::var(DATABASE).unwrap()))
                .is_err_and(|error| matches!(&error, StartError::Inaccessible { .. })
                    && error.to_string().contains("writable"))
        );
        print_line(format_args!("acknowledged {}", stats.persisted));
        // The folder is writable once more.
        wait_for_parent();
        eventually("a flush that succeeds", || round(0..0).is_ok());
        let stats = block_on(logger.shutdown()).unwrap().stats;
        assert!(stats.is_balanced() && stats.dropped.total() == 0);
        print_line(format_args!("acknowledged {}", stats.persisted));
        std::process::exit(0);
    }
    let db = TestDb::new();
    let folder = db.folder.path();
    let allow =
        |mode| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    let mut command = child("read_only_folder_made_writable_loses_no_record", &db, 0);
    // Permissions do not bind root.
    if std::fs::metadata(folder).unwrap().uid() == 0 {
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY).current_dir(folder);
    }
    let Ok(mut child) = command.spawn() else {
        eprintln!(
            "skipped: a user without privileges cannot run this program, because of its folder"
        );
        return;
    };
    let mut say = child.stdin.take().unwrap();
    let mut acknowledged = acknowledgements(&mut child);
    assert_eq!(acknowledged.next(), Some(100));
    allow(0o500);
    say.write_all(b"read-only\n").unwrap();
    assert_eq!(acknowledged.next(), Some(200));
    allow(0o700);
    let aside = folder.join("aside.db");
    std::fs::rename(db.path(), &aside).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::rename(
            format!("{}{suffix}", db.url()),
            format!("{}{suffix}", aside.display()),
        );
    }
    allow(0o500);
    say.write_all(b"gone\n").unwrap();
    assert_eq!(acknowledged.next(), Some(200));
    allow(0o700);
    say.write_all(b"writable\n").unwrap();
    assert_eq!(acknowledged.next(), Some(300));
    child.wait().unwrap();
    assert_eq!(db.turns(), (200..300).collect::<Vec<_>>());
    assert_intact(&db);
    std::fs::rename(db.path(), folder.join("new.db")).unwrap();
    std::fs::rename(&aside, db.path()).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::rename(
            format!("{}{suffix}", aside.display()),
            format!("{}{suffix}", db.url()),
        );
    }
    assert_eq!(db.turns(), (0..200).collect::<Vec<_>>());
    assert_intact(&db);
}
