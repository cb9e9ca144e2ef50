//! `ingest`: lines from standard input, into the database file or to a service.
//!
//! Input may be a pipe that stays open for months. A line is sent a second after it came, and is given up
//! only after a signal: until then the input waits while the service or the database does.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use actix_rt::time::{Instant, sleep, sleep_until};
use actix_web::web::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::serve::asked_to_end;
use super::settings::Settings;
use super::source::{Posted, Sent, Service};
use super::{Failure, Target};
use crate::actor::FailureLogger;
use crate::handle::LoggerHandle;
use crate::http::wire::counts::CountLine;
use crate::http::wire::lines::{Line, Lines, separator};
use crate::http::wire::{RejectReason, Rejected, Sent as Record};
use crate::http::{DEFAULT_MAX_LINE_BYTES, parse_span};
use crate::report::without_guards;
use crate::stats::DropReason;

/// Lines that are sent to a service at a time.
const LINES_PER_POST: usize = 1000;
/// Bytes that are sent to a service at a time, and a line more.
const BYTES_PER_POST: usize = 8 << 20;
/// Longest time that a line waits for further lines before it is sent.
const SEND_AFTER: Duration = Duration::from_secs(1);
/// Time after which lines that wait are sent with the moment at which they came. Before, the service dates them, whose
/// clock may be the better one.
const DATE_AFTER: Duration = Duration::from_secs(5);
/// Bytes of a line at most, so that memory is bounded whatever comes in.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Bytes that are read from standard input at a time, and how many such blocks wait.
const BYTES_PER_BLOCK: usize = 64 << 10;
const BLOCKS: usize = 4;
/// Names of unknown fields that are told.
const MAX_NAMES: usize = 16;
/// Lines of which it is said what is wrong with them.
const MAX_REASONS: u64 = 10;
/// The first pause before the same is sent again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Interval between two messages that lines wait.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Time after a signal in which lines that were read are still sent.
const SEND_AFTER_SIGNAL: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Ingest {
    #[command(flatten)]
    target: Target,
    /// End with exit code 3 when nothing could be sent or stored for so long, as 10m [default: never]
    #[arg(long, value_name = "SPAN")]
    give_up_after: Option<String>,
    /// Store failures without counting them as attempts: their counts come from `export --attempts`
    #[arg(long, conflicts_with = "url")]
    without_counts: bool,
}

pub(super) async fn ingest(settings: &Settings, ingest: &Ingest) -> Result<(), Failure> {
    let span = |text: &String| {
        parse_span(text).map_err(|expected| Failure::Usage(format!("--give-up-after {text}: expected {expected}")))
    };
    let give_up_after = ingest.give_up_after.as_ref().map(span).transpose()?;
    let sink = match &ingest.target.url {
        Some(url) => Sink::Service(Service::new(url, &ingest.target)?),
        None => Sink::Logger(FailureLogger::spawn(settings.logger.clone().without_retention())?),
    };
    let stop = Stop::listen()?;
    let mut input = Input::open()?;
    let mut feed = Feed::new(sink, give_up_after)?;
    feed.without_counts = ingest.without_counts;
    let fed = feed.run(&mut input, &stop).await;
    let stored = match &feed.sink {
        Sink::Logger(logger) => feed.stored.saturating_sub(logger.shutdown().await?.stats.dropped.rejected),
        Sink::Service(_) => feed.stored,
    };
    feed.bar.finish_and_clear();
    if let Err(Stopped { line, reason }) = fed {
        return Err(Failure::Unreachable(format!("{stored} records stored, stopped at line {line}: {reason}")));
    }
    let bad = feed.bad;
    feed.say_what_was_ignored();
    writeln!(io::stdout(), "{stored} records stored, {bad} lines rejected")?;
    if bad > 0 { Err(Failure::No(format!("{bad} lines were rejected"))) } else { Ok(()) }
}

/// Tells that a signal has asked for the end, and until when lines are sent.
struct Stop(watch::Receiver<Option<Instant>>);

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let (told, stop) = watch::channel(None);
        // Made here, so that no signal is missed from now on.
        let asked = asked_to_end()?;
        actix_rt::spawn(async move {
            asked.await;
            told.send_replace(Some(Instant::now() + SEND_AFTER_SIGNAL));
            if let Ok(asked) = asked_to_end() {
                asked.await;
                // At once means at once.
                std::process::exit(130);
            }
        });
        Ok(Self(stop))
    }

    /// Returns after the signal: until when lines are sent.
    async fn asked(&self) -> Instant {
        match self.0.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(deadline)) => *deadline,
            _ => std::future::pending().await,
        }
    }

    /// Returns when the deadline after the signal has passed.
    async fn passed(&self) {
        sleep_until(self.asked().await).await;
    }
}

/// Standard input, read on a thread of its own: a read cannot be cancelled.
struct Input {
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    reader: Arc<AtomicU8>,
}

/// The reader waits for input, and has taken none.
const WAITS: u8 = 0;
/// The reader has taken input, and hands it over.
const READS: u8 = 1;
/// The reader takes no further input.
const STOPPED: u8 = 2;

impl Input {
    fn open() -> io::Result<Self> {
        // Not the standard library's standard input, whose buffer hides what was read.
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (sender, blocks) = mpsc::channel(BLOCKS);
        let reader = Arc::new(AtomicU8::new(WAITS));
        let state = Arc::clone(&reader);
        let change = move |from, to| state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        std::thread::Builder::new().name("standard-input".into()).spawn(move || {
            loop {
                // Waited for before anything is taken, so that nothing is taken after the signal.
                let _ = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
                if !change(WAITS, READS) {
                    return;
                }
                let mut block = vec![0; BYTES_PER_BLOCK];
                let read = match stdin.read(&mut block) {
                    Ok(0) => return,
                    Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                        None
                    }
                    read => Some(read.map(|bytes| {
                        block.truncate(bytes);
                        block
                    })),
                };
                let ends = matches!(read, Some(Err(_)));
                let closed = read.is_some_and(|read| sender.blocking_send(read).is_err());
                if closed || ends || !change(READS, WAITS) {
                    return;
                }
            }
        })?;
        Ok(Self { blocks, reader })
    }

    /// Has no further input taken: what was taken before is still to come.
    fn stop(&mut self) {
        if self.reader.swap(STOPPED, Ordering::AcqRel) == WAITS {
            // The reader may wait for ever, and hands nothing over.
            self.blocks.close();
        }
    }

    /// The next block; `None`: that was all.
    async fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        self.blocks.recv().await
    }
}

/// Destination of lines.
enum Sink {
    Logger(LoggerHandle),
    Service(Service),
}

/// State of one `ingest`: lines that were read, and the counts of those that were taken.
struct Feed {
    sink: Sink,
    lines: Lines,
    /// The names of CSV, and its separator.
    names: Option<(csv::StringRecord, u8)>,
    /// Lines that are to be sent, each with a line feed.
    post: Vec<u8>,
    /// Their numbers.
    numbers: VecDeque<u64>,
    /// Failures are stored only.
    without_counts: bool,
    /// Unknown fields, and in how many records one was ignored.
    ignored: (BTreeSet<String>, u64),
    /// When the first of them came.
    since: Instant,
    stored: u64,
    bad: u64,
    waiting: Waiting,
    bar: ProgressBar,
}

/// Reason why the input was not taken to its end.
struct Stopped {
    /// The first line that was not taken.
    line: u64,
    reason: String,
}

impl Feed {
    fn new(sink: Sink, give_up_after: Option<Duration>) -> Result<Self, Failure> {
        Ok(Self {
            sink,
            lines: Lines::new(MAX_LINE_BYTES).or_csv(),
            names: None,
            without_counts: false,
            ignored: (BTreeSet::new(), 0),
            post: Vec::new(),
            numbers: VecDeque::new(),
            since: Instant::now(),
            stored: 0,
            bad: 0,
            waiting: Waiting { pause: FIRST_PAUSE, since: None, said: None, give_up_after },
            bar: progress()?,
        })
    }

    /// Reads to the end of the input, or to a signal, and has everything that was read taken.
    async fn run(&mut self, input: &mut Input, stop: &Stop) -> Result<(), Stopped> {
        let mut stopped = false;
        loop {
            let block = tokio::select! {
                biased;
                _ = stop.asked(), if !stopped => {
                    stopped = true;
                    input.stop();
                    continue;
                }
                () = stop.passed() => None,
                () = sleep_until(self.since + SEND_AFTER), if !self.numbers.is_empty() => {
                    self.send(stop).await?;
                    continue;
                }
                block = input.next() => block,
            };
            let end = match &block {
                Some(Ok(block)) => {
                    self.lines.push(block);
                    false
                }
                // The last line need not have a line feed.
                Some(Err(_)) | None => {
                    self.lines.finish();
                    true
                }
            };
            while let Some(line) = self.lines.next() {
                self.take(line, stop).await?;
            }
            if end {
                self.send(stop).await?;
                return match block {
                    Some(Err(error)) => Err(Stopped {
                        line: self.lines.ended() + 1,
                        reason: format!("cannot read standard input: {error}"),
                    }),
                    _ => Ok(()),
                };
            }
        }
    }

    async fn take(&mut self, Line { number, text }: Line, stop: &Stop) -> Result<(), Stopped> {
        self.bar.set_position(number);
        let Some(text) = text else {
            self.refuse(number, &format_args!("a line has {MAX_LINE_BYTES} bytes at most"));
            return Ok(());
        };
        if let Some(counts) = self.read_counts(&text) {
            match (counts, &self.sink) {
                (Ok(counts), Sink::Logger(logger)) => {
                    counts.add(logger);
                    self.stored += 1;
                }
                (Ok(_), Sink::Service(_)) => self.refuse(number, &"counts are read into a file only: --db"),
                (Err(rejected), _) => self.refuse(number, &rejected.text),
            }
            return Ok(());
        }
        let read = if self.lines.are_csv() { self.read_csv(&text) } else { read_json(&text).map(Some) };
        let (record, json) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(()),
            Err(rejected) => {
                self.refuse(number, &rejected.text);
                return Ok(());
            }
        };
        if !record.unknown.is_empty() {
            let (names, records) = &mut self.ignored;
            let room = MAX_NAMES.saturating_sub(names.len());
            names.extend(record.unknown.iter().take(room).cloned());
            *records += 1;
        }
        if matches!(self.sink, Sink::Logger(_)) {
            return self.log(number, &record, stop).await;
        }
        if self.numbers.is_empty() {
            self.since = Instant::now();
        }
        self.post.append(&mut if record.event_id.is_some() { json } else { identified(&json) });
        self.post.push(b'\n');
        self.numbers.push_back(number);
        if self.numbers.len() >= LINES_PER_POST || self.post.len() >= BYTES_PER_POST {
            self.send(stop).await?;
        }
        Ok(())
    }

    /// Reads a line of `export --attempts`. `None`: it is another one.
    fn read_counts(&self, text: &[u8]) -> Option<Result<CountLine, Rejected>> {
        if !self.lines.are_csv() {
            return CountLine::from_json(text);
        }
        let (names, separator) = self.names.as_ref().filter(|(names, _)| names.iter().any(|name| name == "day"))?;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(*separator).from_reader(text);
        let mut cells = csv::StringRecord::new();
        reader.read_record(&mut cells).ok()?;
        CountLine::from_csv(names, &cells)
    }

    /// Reads a record of CSV. `None`: it is the line of names.
    fn read_csv(&mut self, text: &[u8]) -> Result<Option<(Record, Vec<u8>)>, Rejected> {
        let not_csv = |error: csv::Error| Rejected::new(RejectReason::NotJson, format!("this is no CSV: {error}"));
        let separator =
            self.names.as_ref().map(|(_, separator)| *separator).or_else(|| separator(text)).unwrap_or(b',');
        let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(separator).from_reader(text);
        let mut cells = csv::StringRecord::new();
        reader.read_record(&mut cells).map_err(not_csv)?;
        let Some((names, _)) = &self.names else {
            self.names = Some((cells, separator));
            return Ok(None);
        };
        let record = Record::from_csv(names, &cells, false)?;
        let mut fields = Map::new();
        for (name, cell) in names.iter().zip(&cells).filter(|(_, cell)| !cell.is_empty()) {
            fields.insert(name.into(), without_guards(cell).into());
        }
        Ok(Some((record, Value::Object(fields).to_string().into_bytes())))
    }

    fn say_what_was_ignored(&self) {
        let (names, records) = &self.ignored;
        if *records > 0 {
            let names = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            say(&self.bar, &format_args!("ignored unknown fields of {records} records: {names}"));
        }
    }

    fn refuse(&mut self, line: u64, reason: &dyn std::fmt::Display) {
        self.bad += 1;
        if self.bad <= MAX_REASONS {
            say(&self.bar, &format_args!("line {line}: {reason}"));
        }
    }

    /// Logs or counts a record; waits while the buffer is full.
    async fn log(&mut self, line: u64, record: &Record, stop: &Stop) -> Result<(), Stopped> {
        loop {
            let Sink::Logger(logger) = &self.sink else { return Ok(()) };
            let offered = if self.without_counts { record.offer_uncounted(logger) } else { record.offer(logger) };
            let reason = match offered {
                Ok(()) => {
                    self.stored += 1;
                    self.waiting.over(&self.bar);
                    return Ok(());
                }
                Err(DropReason::TooOld) => {
                    let rejected = record.too_old(logger);
                    self.refuse(line, &rejected.text);
                    return Ok(());
                }
                Err(DropReason::BufferFull | DropReason::Unavailable) => {
                    let flushed = tokio::select! {
                        flushed = logger.flush() => flushed,
                        () = stop.passed() => return Err(self.too_late(line)),
                    };
                    match flushed {
                        Ok(_) => continue,
                        Err(error) => error.to_string(),
                    }
                }
                Err(reason) => {
                    return Err(Stopped { line, reason: format!("the logger takes nothing: {reason}") });
                }
            };
            self.pause(line, reason, Duration::ZERO, stop).await?;
        }
    }

    /// Sends the lines that wait to the service, and waits for it as long as it takes none.
    async fn send(&mut self, stop: &Stop) -> Result<(), Stopped> {
        let mut rest = Bytes::from(std::mem::take(&mut self.post));
        let came = jiff::Timestamp::now();
        let mut may_date = true;
        while let Some(first) = self.numbers.front().copied() {
            let Sink::Service(service) = &self.sink else { return Ok(()) };
            let is_dated = may_date && self.since.elapsed() >= DATE_AFTER;
            let lines = if is_dated { dated(&rest, came) } else { rest.clone() };
            let sent = tokio::select! {
                sent = service.post("/v1/attempts", lines) => sent,
                () = stop.passed() => return Err(self.too_late(first)),
            };
            match sent {
                // The date may be the reason, if this clock is wrong. Lines that were taken are stored once.
                Sent::All(posted) | Sent::Some { posted, .. } if is_dated && posted.rejected > 0 => may_date = false,
                Sent::All(posted) => {
                    self.count(&posted);
                    self.numbers.clear();
                    self.waiting.over(&self.bar);
                }
                Sent::Some { lines, posted, retry_after } => {
                    self.count(&posted);
                    self.waiting.over(&self.bar);
                    self.numbers.drain(..lines.min(self.numbers.len()));
                    rest = after_lines(&rest, lines);
                    if let Some(next) = self.numbers.front().copied() {
                        tokio::select! {
                            () = sleep(retry_after) => {}
                            () = stop.passed() => return Err(self.too_late(next)),
                        }
                    }
                }
                Sent::None { reason, retry_after } => self.pause(first, reason, retry_after, stop).await?,
                Sent::Refused { reason } => return Err(Stopped { line: first, reason }),
            }
        }
        Ok(())
    }

    /// Counts what a response says of the lines that were sent.
    fn count(&mut self, posted: &Posted) {
        self.stored += posted.accepted;
        let told = u64::try_from(posted.errors.len()).unwrap_or(u64::MAX);
        for (nth, reason) in &posted.errors {
            let line = self.numbers.get(*nth).copied().unwrap_or(self.lines.ended());
            self.refuse(line, reason);
        }
        self.bad += posted.rejected.saturating_sub(told);
    }

    /// Waits before the next try.
    async fn pause(&mut self, line: u64, reason: String, least: Duration, stop: &Stop) -> Result<(), Stopped> {
        let Some(pause) = self.waiting.next(&self.bar, line, &reason) else {
            let most = self.waiting.give_up_after.unwrap_or_default().as_secs();
            return Err(Stopped {
                line,
                reason: format!("nothing was taken for {most} s (--give-up-after): {reason}"),
            });
        };
        tokio::select! {
            () = sleep(pause.max(least)) => Ok(()),
            () = stop.passed() => {
                let late = self.too_late(line);
                Err(Stopped { reason: format!("{}: {reason}", late.reason), ..late })
            }
        }
    }

    fn too_late(&self, line: u64) -> Stopped {
        let lines = (self.lines.ended() + 1).saturating_sub(line);
        let seconds = SEND_AFTER_SIGNAL.as_secs();
        Stopped {
            line,
            reason: format!("{lines} lines that were read were not taken within {seconds} s of the signal"),
        }
    }
}

/// Time in which the sink has taken nothing, and the pauses between tries.
struct Waiting {
    pause: Duration,
    since: Option<Instant>,
    said: Option<Instant>,
    give_up_after: Option<Duration>,
}

impl Waiting {
    /// Says now and then that lines wait, and returns how long to wait; `None`: it is time to give up.
    fn next(&mut self, bar: &ProgressBar, line: u64, reason: &str) -> Option<Duration> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        if self.give_up_after.is_some_and(|most| now - since >= most) {
            return None;
        }
        if self.said.is_none_or(|said| now - said >= SAY_EVERY) {
            self.said = Some(now);
            say(bar, &format_args!("line {line} waits, and is sent again until it is taken: {reason}"));
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }

    fn over(&mut self, bar: &ProgressBar) {
        if let Some(since) = self.since.take() {
            say(bar, &format_args!("lines are taken again, after {} s", since.elapsed().as_secs()));
        }
        (self.pause, self.said) = (FIRST_PAUSE, None);
    }
}

/// Reads an object. Returns it as it is sent, too.
fn read_json(text: &[u8]) -> Result<(Record, Vec<u8>), Rejected> {
    let record = Record::from_json(text, false)?;
    Ok((record, text.trim_ascii().iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect()))
}

/// Returns an object with an `event_id`, which makes sending it again harmless.
fn identified(object: &[u8]) -> Vec<u8> {
    with_field(object, "event_id", &Uuid::now_v7().to_string())
}

/// Returns lines with the moment at which they came.
fn dated(lines: &[u8], came: jiff::Timestamp) -> Bytes {
    let mut dated = Vec::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        let has_moment = Record::from_json(line, false).is_ok_and(|record| record.created_at().is_some());
        match has_moment {
            true => dated.extend_from_slice(line),
            false => dated.append(&mut with_field(line, "created_at", &came.to_string())),
        }
        dated.push(b'\n');
    }
    dated.into()
}

/// Returns an object with one more field, unless there is no room for it: a line that a service takes must not become
/// one that it does not take. The text is not written anew, so that nothing of it changes. Of two fields with one name
/// the last counts.
fn with_field(object: &[u8], name: &str, value: &str) -> Vec<u8> {
    let field = format!(r#", "{name}": "{value}"}}"#);
    match object.strip_suffix(b"}") {
        Some(open) if open.len() + field.len() <= DEFAULT_MAX_LINE_BYTES => [open, field.as_bytes()].concat(),
        _ => object.to_vec(),
    }
}

/// Returns the lines after the first `count`.
fn after_lines(lines: &Bytes, count: usize) -> Bytes {
    let ends = lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let begin = std::iter::once(0).chain(ends).nth(count).unwrap_or(lines.len());
    lines.slice(begin..)
}

/// Writes a line to standard error, above the progress.
fn say(bar: &ProgressBar, what: &dyn std::fmt::Display) {
    // Nobody to tell is no reason to end.
    let _ = bar.suspend(|| writeln!(io::stderr(), "{what}"));
}

/// Shows how many lines there were, on a terminal.
fn progress() -> Result<ProgressBar, Failure> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines, {per_sec}")
        .map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(ProgressBar::new_spinner().with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_gets_an_id_and_a_moment_unless_it_has_them() {
        let fields = |text: &str| -> Map<String, Value> {
            let came = "2026-02-03T04:05:06Z".parse().unwrap();
            serde_json::from_slice(&dated(&identified(text.as_bytes()), came)).unwrap()
        };
        let object = r#"{"failure_type": "no_hit", "strategy": "s", "query_text": "with event_id", "event_id": null}"#;
        let line = fields(object);
        assert!(line["event_id"].as_str().unwrap().parse::<Uuid>().unwrap().get_version_num() == 7);
        assert_eq!(line["created_at"], "2026-02-03T04:05:06Z");
        assert_eq!(line["query_text"], "with event_id");
        let dated_before = object.replace("null", "null, \"created_at\": \"2026-01-01T00:00:00Z\"");
        assert_eq!(fields(&dated_before)["created_at"], "2026-01-01T00:00:00Z");
        let long = format!(r#"{{"query_text": "{}"}}"#, "q".repeat(DEFAULT_MAX_LINE_BYTES - 20));
        assert_eq!(identified(long.as_bytes()), long.as_bytes(), "there is no room for more");
        assert_eq!(dated(format!("{long}\n{long}\n").as_bytes(), jiff::Timestamp::now()).len(), 2 * long.len() + 2);
    }
}
