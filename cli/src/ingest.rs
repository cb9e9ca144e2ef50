//! Command `ingest`: reads records from standard input into the database file or a service.
//!
//! The input may be a pipe that stays open for months. A line is sent at most a second after it was
//! read. While the service or the database is unavailable, `ingest` retries and reads no further
//! input. It gives up only after a signal or the time of `--give-up-after`.
//!
//! A record passes through these stages:
//!
//! - [`Input`]: a thread reads blocks of bytes from standard input. The channel holds 4 blocks of
//!   64 KiB, so that a fast producer waits in its pipe and not in the memory of this process.
//! - [`Lines`]: blocks become lines. The first line decides between JSON and CSV, unless `--format`
//!   does.
//! - [`Feed::process`]: a line becomes a record. A bad line is rejected and counted, and the next
//!   one follows.
//! - [`Sink`]: a logger in this process takes records one by one. A service takes requests of up to
//!   1000 lines.
//!
//! Three rules hold in each stage:
//!
//! - No line is lost silently. A line is stored or rejected, or the error names the first line that
//!   was not accepted, so that the operator can resume there.
//! - No line is stored twice. A line without an `event_id` gets one before its first request, and
//!   keeps it in each retry.
//! - The first SIGTERM or SIGINT stops the input, and leaves 5 seconds for the lines that were read
//!   before it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use actix_rt::time::{Instant, sleep, sleep_until};
use actix_web::web::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use failure_logger::http::DEFAULT_MAX_LINE_BYTES;
use failure_logger::program::{
    CountLine, Line, Lines, RejectReason, Rejected, Sent as Record, parse_span, separator,
    without_guards, without_retention,
};
use failure_logger::{DropReason, FailureLogger, LoggerHandle};

use super::output::escaped_lines;
use super::serve::stop_signal;
use super::service::{PostOutcome, Processed, Service};
use super::settings::Settings;
use super::{CommandError, Target};

/// Maximum number of lines in one request. A thousand lines make the cost of a request negligible,
/// and a retry after a lost response short.
const LINES_PER_POST: usize = 1000;
/// Number of bytes at which a request is sent. The last line may exceed it. The limit keeps the
/// request far below the 512 MiB that the service accepts, and the memory of this process small.
const BYTES_PER_POST: usize = 8 << 20;
/// Longest time that a line waits for further lines before it is sent. A person who watches the
/// dashboard sees a failure about as soon as it occurs.
const SEND_AFTER: Duration = Duration::from_secs(1);
/// Age at which delayed lines without `created_at` get a time from this process. Before that age,
/// the service sets the time, because its clock may be more accurate.
const TIMESTAMP_AFTER: Duration = Duration::from_secs(5);
/// Maximum length of a line, which bounds the memory for any input. A service accepts shorter lines
/// (64 KiB), and rejects a longer one by itself with a reason.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Maximum number of bytes that one read of standard input returns. This is the capacity of a pipe
/// on Linux: one read can empty it.
const BYTES_PER_BLOCK: usize = 64 << 10;
/// Maximum number of blocks between the reading thread and the command.
const MAX_BLOCKS: usize = 4;
/// Maximum number of unknown fields that the summary names. Input with random keys would otherwise
/// fill the memory and the terminal.
const MAX_NAMES: usize = 16;
/// Maximum number of rejected lines whose reason is printed. The first reasons show what is wrong
/// with the input. The total follows in the summary.
const MAX_REASONS: u64 = 10;
/// Pause before the first retry. It doubles with each retry. A restart of the service takes about
/// as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two retries. After an outage of hours, input still flows within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Interval between two messages about a delayed line. The log of a supervisor stays readable
/// during a long outage.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Deadline after a signal for lines that were read before it. Service managers wait 10 seconds or
/// more before they kill a process, and the logger needs a part of them for its shutdown.
const DEADLINE_AFTER_SIGNAL: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Ingest {
    #[command(flatten)]
    target: Target,
    /// Format of the input
    #[arg(long, value_name = "FORMAT", default_value = "records")]
    format: InputFormat,
    /// Exit with code 3 after this time without an accepted record: a number and s, m, h, d or w,
    /// such as 10m [default: never]
    #[arg(long, value_name = "SPAN")]
    give_up_after: Option<String>,
    /// Store failures without counting them as attempts, because a file of `export --attempts`
    /// supplies the counts
    #[arg(long, conflicts_with = "url")]
    without_counts: bool,
}

/// Format of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InputFormat {
    /// Failures, attempts and counts as JSON lines, as a JSON array or as CSV
    Records,
    /// Queries of User Behavior Insights 1.3 (documents of ubi_queries) as JSON lines or as a JSON
    /// array; each is counted as an attempt
    Ubi,
}

/// Runs the command. The exit code is 0 if every line was stored, 1 if some were rejected, and 3 if
/// the input was not read to its end.
///
/// The signal handlers are installed before the input is opened, because a signal between the two
/// would end the process with lines in memory. The logger is shut down before the summary is
/// printed: only the shutdown shows which rows the store could not persist.
pub(super) async fn ingest(settings: &Settings, ingest: &Ingest) -> Result<(), CommandError> {
    let span = |text: &String| {
        parse_span(text).map_err(|expected| {
            CommandError::Usage(format!("--give-up-after {text}: expected {expected}"))
        })
    };
    let give_up_after = ingest.give_up_after.as_ref().map(span).transpose()?;
    let sink = match &ingest.target.url {
        Some(url) => Sink::Service(Service::new(url, &ingest.target)?),
        None => Sink::Logger(FailureLogger::spawn(without_retention(
            settings.logger.clone(),
        ))?),
    };
    let stop = Deadline::listen()?;
    let mut input = Input::open()?;
    let mut feed = Feed::new(sink, ingest.format, give_up_after)?;
    feed.without_counts = ingest.without_counts;
    let result = feed.run(&mut input, &stop).await;
    // Rows that the store rejected were accepted by the buffer, and are subtracted here. A service
    // has its own count of them, in `/metrics`.
    let stored = match &feed.sink {
        Sink::Logger(logger) => feed
            .stored
            .saturating_sub(logger.shutdown().await?.stats.dropped.rejected),
        Sink::Service(_) => feed.stored,
    };
    feed.bar.finish_and_clear();
    if let Err(Stopped { line, reason }) = result {
        return Err(CommandError::Unreachable(format!(
            "{stored} records stored, stopped at line {line}: {reason}"
        )));
    }
    let rejected = feed.rejected;
    feed.report_unknown_fields();
    let written = writeln!(
        io::stdout(),
        "{stored} records stored, {rejected} lines rejected"
    );
    // Rejected lines decide the exit code, even if the output is closed. A closed output alone ends
    // with exit code 0.
    if rejected > 0 {
        Err(CommandError::Failed(format!(
            "{rejected} lines were rejected"
        )))
    } else {
        Ok(written?)
    }
}

/// Deadline for unsent lines, which the first SIGTERM or SIGINT sets.
///
/// A watch channel holds it, because several parts of the command wait for it at different times,
/// and each must see a signal that came earlier.
struct Deadline(watch::Receiver<Option<Instant>>);

impl Deadline {
    /// Installs the handlers and starts the task that waits for the signals.
    fn listen() -> Result<Self, CommandError> {
        let (sender, deadline) = watch::channel(None);
        // The handlers are installed before the task starts, so that no signal is missed.
        let signal = stop_signal()?;
        actix_rt::spawn(async move {
            signal.await;
            sender.send_replace(Some(Instant::now() + DEADLINE_AFTER_SIGNAL));
            if let Ok(second_signal) = stop_signal() {
                second_signal.await;
                // A second signal drops unsent lines. 128 + SIGINT is the exit code.
                std::process::exit(130);
            }
        });
        Ok(Self(deadline))
    }

    /// Waits for the signal and returns the deadline.
    async fn signalled(&self) -> Instant {
        match self.0.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(deadline)) => *deadline,
            // The channel closes only if the task is gone, at the end of the process.
            _ => std::future::pending().await,
        }
    }

    /// Waits until the deadline has passed.
    async fn passed(&self) {
        sleep_until(self.signalled().await).await;
    }
}

/// Standard input. A thread reads it, because a blocking read cannot be cancelled.
///
/// The state of the thread decides a race: when a signal arrives, the thread may have taken bytes
/// out of the pipe that the command has not seen. The command has to store these, and must leave
/// the rest in the pipe for the next reader, such as the restarted command.
struct Input {
    /// Blocks in the order of the input. The channel closes at the end of the input.
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// State of the reading thread: `WAITING`, `READING` or `STOPPED`.
    reader: Arc<AtomicU8>,
}

/// The thread waits for input and holds none.
const WAITING: u8 = 0;
/// The thread reads a block or passes it to the channel.
const READING: u8 = 1;
/// The thread must not read further input.
const STOPPED: u8 = 2;

impl Input {
    /// Starts the thread. It reads a duplicate of the file descriptor, unbuffered.
    fn open() -> io::Result<Self> {
        // `io::Stdin` would read more than it returns into a buffer of its own.
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (sender, blocks) = mpsc::channel(MAX_BLOCKS);
        let reader = Arc::new(AtomicU8::new(WAITING));
        let state = Arc::clone(&reader);
        // Only the swap in `stop` competes. AcqRel orders it with the blocks sent before a change.
        let change = move |current, new| {
            state
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        };
        std::thread::Builder::new()
            .name("standard-input".into())
            .spawn(move || {
                loop {
                    // `poll` waits without reading, so that no input is read after `stop`.
                    let mut input = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut input, PollTimeout::NONE);
                    if !change(WAITING, READING) {
                        return;
                    }
                    let mut block = vec![0; BYTES_PER_BLOCK];
                    let read = match stdin.read(&mut block) {
                        // The end of the input closes the channel, when the thread drops its
                        // sender.
                        Ok(0) => return,
                        Err(error)
                            if matches!(
                                error.kind(),
                                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                            ) =>
                        {
                            None
                        }
                        read => Some(read.map(|bytes| {
                            block.truncate(bytes);
                            block
                        })),
                    };
                    // An error other than the two above is permanent. It ends the thread after the
                    // command has received it.
                    let ends = matches!(read, Some(Err(_)));
                    let closed = read.is_some_and(|read| sender.blocking_send(read).is_err());
                    if closed || ends || !change(READING, WAITING) {
                        return;
                    }
                }
            })?;
        Ok(Self { blocks, reader })
    }

    /// Stops the reading thread. `next` still returns the blocks that were read before.
    ///
    /// The swap decides the race. If the thread was waiting, it sees `STOPPED` before it reads and
    /// returns. If it was reading, its block still arrives, and the failing change back to
    /// `WAITING` ends it.
    fn stop(&mut self) {
        if self.reader.swap(STOPPED, Ordering::AcqRel) == WAITING {
            // A waiting thread holds no input, and may stay in `poll` until the process exits.
            self.blocks.close();
        }
    }

    /// Returns the next block, or `None` at the end of the input.
    async fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        self.blocks.recv().await
    }
}

/// Destination of lines.
///
/// Both take the same records. They differ in what they report: a logger reports on each record at
/// once, a service on a whole request.
enum Sink {
    /// A logger in this process, on the file of `--db`.
    Logger(LoggerHandle),
    /// A running service, at `--url`.
    Service(Service),
}

/// State of one `ingest`: the lines that were read, and the counts of processed ones.
///
/// `pending` and `numbers` describe the same lines and change together. They are empty if the sink
/// is a logger.
struct Feed {
    sink: Sink,
    format: InputFormat,
    lines: Lines,
    /// Header of CSV input with the separator, once it was read.
    names: Option<(csv::StringRecord, u8)>,
    /// Lines of the next request, each with a line feed.
    pending: Vec<u8>,
    /// Numbers of the pending lines in the input. The service reports the numbers of lines in its
    /// request. The two differ, because the request lacks the rejected and empty lines.
    numbers: VecDeque<u64>,
    /// `true` if failures are stored without counting attempts.
    without_counts: bool,
    /// Names of ignored fields, and the number of records that had any.
    ignored: (BTreeSet<String>, u64),
    /// Time at which the first pending line was read. It has no meaning while `numbers` is empty.
    since: Instant,
    /// Accepted records and lines of counts.
    stored: u64,
    /// Lines that were rejected here or by the service.
    rejected: u64,
    retries: Retries,
    bar: ProgressBar,
}

/// Error that ends the command before the end of the input.
struct Stopped {
    /// Number of the first line that was not accepted.
    line: u64,
    reason: String,
}

impl Feed {
    fn new(
        sink: Sink,
        format: InputFormat,
        give_up_after: Option<Duration>,
    ) -> Result<Self, CommandError> {
        let lines = Lines::new(MAX_LINE_BYTES);
        Ok(Self {
            sink,
            format,
            lines: match format {
                InputFormat::Records => lines.or_csv(),
                InputFormat::Ubi => lines,
            },
            names: None,
            without_counts: false,
            ignored: (BTreeSet::new(), 0),
            pending: Vec::new(),
            numbers: VecDeque::new(),
            since: Instant::now(),
            stored: 0,
            rejected: 0,
            retries: Retries {
                pause: FIRST_PAUSE,
                since: None,
                reported: None,
                give_up_after,
            },
            bar: progress()?,
        })
    }

    /// Reads until the end of the input or a signal, then sends all lines that were read.
    ///
    /// The branches of `select!` are biased, because their order matters:
    ///
    /// - the signal comes first, so that a producer without pauses cannot delay it;
    /// - the deadline comes second, and ends the wait for a thread that is in the middle of a read;
    /// - the timer comes before the input, so that a slow stream of lines cannot delay a request
    ///   beyond [`SEND_AFTER`].
    async fn run(&mut self, input: &mut Input, stop: &Deadline) -> Result<(), Stopped> {
        let mut stopped = false;
        loop {
            let block = tokio::select! {
                biased;
                _ = stop.signalled(), if !stopped => {
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
                // The last line may lack a line feed.
                Some(Err(_)) | None => {
                    self.lines.finish();
                    true
                }
            };
            while let Some(line) = self.lines.pop() {
                self.process(line, stop).await?;
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

    /// Parses a line and logs it or adds it to the pending lines.
    ///
    /// A line that is too long is rejected. A line with the fields of a count of attempts is a
    /// count. All other lines are records, or documents of `--format`.
    async fn process(
        &mut self,
        Line { number, text }: Line,
        stop: &Deadline,
    ) -> Result<(), Stopped> {
        self.bar.set_position(number);
        let Some(text) = text else {
            self.reject(
                number,
                &format_args!("the line is longer than {MAX_LINE_BYTES} bytes"),
            );
            return Ok(());
        };
        if let Some(counts) = self.read_counts(&text) {
            match (counts, &self.sink) {
                (Ok(counts), Sink::Logger(logger)) => {
                    counts.add(logger);
                    self.stored += 1;
                }
                (Ok(_), Sink::Service(_)) => self.reject(
                    number,
                    &"cannot send counts to a service; ingest them into a file with --db",
                ),
                (Err(rejected), _) => self.reject(number, &rejected.text),
            }
            return Ok(());
        }
        let read = match self.format {
            InputFormat::Ubi => Record::from_ubi(&text).map(Some),
            InputFormat::Records if self.lines.are_csv() => self.read_csv(&text),
            InputFormat::Records => read_json(&text).map(Some),
        };
        let (record, json) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(()),
            Err(rejected) => {
                self.reject(number, &rejected.text);
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
        // The timer starts with the first line of a request, and not with the end of the previous
        // request.
        if self.numbers.is_empty() {
            self.since = Instant::now();
        }
        self.pending.append(&mut if record.event_id.is_some() {
            json
        } else {
            with_event_id(&json)
        });
        self.pending.push(b'\n');
        self.numbers.push_back(number);
        if self.numbers.len() >= LINES_PER_POST || self.pending.len() >= BYTES_PER_POST {
            self.send(stop).await?;
        }
        Ok(())
    }

    /// Parses a line of `export --attempts`. Returns `None` for any other line.
    ///
    /// In CSV the header decides: a column `day` occurs in the counts only. In JSON each line
    /// decides for itself, since an operator may concatenate the two exports.
    fn read_counts(&self, text: &[u8]) -> Option<Result<CountLine, Rejected>> {
        if self.format != InputFormat::Records {
            return None;
        }
        if !self.lines.are_csv() {
            return CountLine::from_json(text);
        }
        let (names, separator) = self
            .names
            .as_ref()
            .filter(|(names, _)| names.iter().any(|name| name == "day"))?;
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .delimiter(*separator)
            .from_reader(text);
        let mut cells = csv::StringRecord::new();
        reader.read_record(&mut cells).ok()?;
        CountLine::from_csv(names, &cells)
    }

    /// Parses a line of CSV. Returns `None` for the header.
    ///
    /// The separator is that of the header, because spreadsheets write a semicolon in many
    /// languages.
    ///
    /// A service receives the cells as JSON, without the guards that `export --csv` adds against
    /// formulas in spreadsheets. Empty cells are absent fields, because CSV has no null.
    fn read_csv(&mut self, text: &[u8]) -> Result<Option<(Record, Vec<u8>)>, Rejected> {
        let invalid = |error: csv::Error| {
            Rejected::new(RejectReason::NotJson, format!("invalid CSV: {error}"))
        };
        let separator = self
            .names
            .as_ref()
            .map(|(_, separator)| *separator)
            .or_else(|| separator(text))
            .unwrap_or(b',');
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .delimiter(separator)
            .from_reader(text);
        let mut cells = csv::StringRecord::new();
        reader.read_record(&mut cells).map_err(invalid)?;
        let Some((names, _)) = &self.names else {
            self.names = Some((cells, separator));
            return Ok(None);
        };
        let record = Record::from_csv(names, &cells, false)?;
        let mut fields = Map::new();
        for (name, cell) in names
            .iter()
            .zip(&cells)
            .filter(|(_, cell)| !cell.is_empty())
        {
            fields.insert(name.into(), without_guards(cell).into());
        }
        Ok(Some((
            record,
            Value::Object(fields).to_string().into_bytes(),
        )))
    }

    /// Prints the ignored fields once, at the end. A misspelt field would otherwise be ignored
    /// unnoticed.
    fn report_unknown_fields(&self) {
        let (names, records) = &self.ignored;
        if *records > 0 {
            let names = names
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            report(
                &self.bar,
                &format_args!("ignored unknown fields of {records} records: {names}"),
            );
        }
    }

    /// Counts a rejected line and prints its reason.
    fn reject(&mut self, line: u64, reason: &dyn std::fmt::Display) {
        self.rejected += 1;
        if self.rejected <= MAX_REASONS {
            report(&self.bar, &format_args!("line {line}: {reason}"));
        }
    }

    /// Passes a record to the logger. Waits while the buffer is full.
    ///
    /// The loop offers the record until the logger accepts or rejects it:
    ///
    /// - a full buffer is flushed, which takes as long as the store needs;
    /// - a failed flush starts the pauses of [`Retries`];
    /// - a record that is too old is rejected, because a retry cannot make it younger;
    /// - any other reason ends the command, because the logger accepts no further records.
    async fn log(&mut self, line: u64, record: &Record, stop: &Deadline) -> Result<(), Stopped> {
        loop {
            let Sink::Logger(logger) = &self.sink else {
                return Ok(());
            };
            let offered = if self.without_counts {
                record.offer_uncounted(logger)
            } else {
                record.offer(logger)
            };
            let reason = match offered {
                Ok(()) => {
                    self.stored += 1;
                    self.retries.end(&self.bar);
                    return Ok(());
                }
                Err(DropReason::TooOld) => {
                    let rejected = record.too_old(logger);
                    self.reject(line, &rejected.text);
                    return Ok(());
                }
                Err(DropReason::BufferFull | DropReason::Unavailable) => {
                    let flushed = tokio::select! {
                        flushed = logger.flush() => flushed,
                        () = stop.passed() => return Err(self.deadline_error(line)),
                    };
                    match flushed {
                        Ok(_) => continue,
                        Err(error) => error.to_string(),
                    }
                }
                Err(reason) => {
                    return Err(Stopped {
                        line,
                        reason: format!("the logger accepts no records: {reason}"),
                    });
                }
            };
            self.pause(line, reason, Duration::ZERO, stop).await?;
        }
    }

    /// Sends the pending lines to the service. Retries while the service is unavailable.
    ///
    /// `read_at` is the time of the lines without `created_at`, if they were delayed. It is set
    /// before the first try, because the lines were read shortly before that.
    async fn send(&mut self, stop: &Deadline) -> Result<(), Stopped> {
        let mut rest = Bytes::from(std::mem::take(&mut self.pending));
        let read_at = jiff::Timestamp::now();
        let mut may_add_time = true;
        while let Some(first) = self.numbers.front().copied() {
            let Sink::Service(service) = &self.sink else {
                return Ok(());
            };
            let has_time = may_add_time && self.since.elapsed() >= TIMESTAMP_AFTER;
            let lines = if has_time {
                with_time(&rest, read_at)
            } else {
                rest.clone()
            };
            let outcome = tokio::select! {
                outcome = service.post("/v1/attempts", lines) => outcome,
                () = stop.passed() => return Err(self.deadline_error(first)),
            };
            match outcome {
                // If the clock of this machine is wrong, the added time may be the reason for the
                // rejection. The next request has the same lines without the time. The service
                // stores lines that it accepted before only once.
                PostOutcome::Complete(processed) | PostOutcome::Partial { processed, .. }
                    if has_time && processed.rejected > 0 =>
                {
                    may_add_time = false
                }
                PostOutcome::Complete(processed) => {
                    self.count(&processed);
                    self.numbers.clear();
                    self.retries.end(&self.bar);
                }
                PostOutcome::Partial {
                    lines,
                    processed,
                    retry_after,
                } => {
                    self.count(&processed);
                    self.retries.end(&self.bar);
                    // The service has processed these lines. The next request begins after them.
                    self.numbers.drain(..lines.min(self.numbers.len()));
                    rest = after_lines(&rest, lines);
                    if let Some(next) = self.numbers.front().copied() {
                        tokio::select! {
                            () = sleep(retry_after) => {}
                            () = stop.passed() => return Err(self.deadline_error(next)),
                        }
                    }
                }
                PostOutcome::Retry {
                    reason,
                    retry_after,
                } => self.pause(first, reason, retry_after, stop).await?,
                PostOutcome::Rejected { reason } => {
                    return Err(Stopped {
                        line: first,
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds the counts of a response and prints the reasons of rejected lines.
    fn count(&mut self, processed: &Processed) {
        self.stored += processed.accepted;
        let listed = u64::try_from(processed.errors.len()).unwrap_or(u64::MAX);
        for (nth, reason) in &processed.errors {
            let line = self
                .numbers
                .get(*nth)
                .copied()
                .unwrap_or(self.lines.ended());
            self.reject(line, reason);
        }
        // `reject` has counted the lines with a reason; a response lists only the first few.
        self.rejected += processed.rejected.saturating_sub(listed);
    }

    /// Waits before a retry, for at least `least`. Fails at the deadline or after
    /// `--give-up-after`.
    ///
    /// `least` is the `Retry-After` of a service, or zero. The reason of the last failure is part
    /// of the error, because it is what the operator has to repair.
    async fn pause(
        &mut self,
        line: u64,
        reason: String,
        least: Duration,
        stop: &Deadline,
    ) -> Result<(), Stopped> {
        let Some(pause) = self.retries.next(&self.bar, line, &reason) else {
            let most = self.retries.give_up_after.unwrap_or_default().as_secs();
            return Err(Stopped {
                line,
                reason: format!(
                    "gave up after {most} s without an accepted record (--give-up-after): {reason}"
                ),
            });
        };
        tokio::select! {
            () = sleep(pause.max(least)) => Ok(()),
            () = stop.passed() => {
                let late = self.deadline_error(line);
                Err(Stopped { reason: format!("{}: {reason}", late.reason), ..late })
            }
        }
    }

    /// Returns the error for lines that the deadline cut off. `line` is the first of them.
    fn deadline_error(&self, line: u64) -> Stopped {
        let lines = (self.lines.ended() + 1).saturating_sub(line);
        let seconds = DEADLINE_AFTER_SIGNAL.as_secs();
        Stopped {
            line,
            reason: format!(
                "{lines} lines were read but not accepted within {seconds} s of the signal"
            ),
        }
    }
}

/// Retries of the first line that the sink does not accept.
///
/// One state serves both sinks. A success resets it, so that a service that fails now and then
/// never reaches `--give-up-after`.
struct Retries {
    /// Pause before the next retry.
    pause: Duration,
    /// Time of the first failed attempt.
    since: Option<Instant>,
    /// Time of the last message. `None` before the first message of a series of failures.
    reported: Option<Instant>,
    /// `None` retries without end, which suits a supervised pipe.
    give_up_after: Option<Duration>,
}

impl Retries {
    /// Returns the pause before the next retry, or `None` after `--give-up-after`. Prints a message
    /// at the first call and each `REPORT_INTERVAL`.
    fn next(&mut self, bar: &ProgressBar, line: u64, reason: &str) -> Option<Duration> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        if self.give_up_after.is_some_and(|most| now - since >= most) {
            return None;
        }
        if self
            .reported
            .is_none_or(|reported| now - reported >= REPORT_INTERVAL)
        {
            self.reported = Some(now);
            report(
                bar,
                &format_args!("cannot send line {line}, retrying: {reason}"),
            );
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }

    /// Ends the retries after success and prints the delay.
    fn end(&mut self, bar: &ProgressBar) {
        if let Some(since) = self.since.take() {
            report(
                bar,
                &format_args!("retry succeeded after {} s", since.elapsed().as_secs()),
            );
        }
        (self.pause, self.reported) = (FIRST_PAUSE, None);
    }
}

/// Parses an object. Returns the record, and the object on one line as it is sent.
///
/// A line feed can only occur as white space between the tokens of JSON, so that a space may
/// replace it. The rest of the text is sent unchanged, and keeps fields that this version does not
/// know.
fn read_json(text: &[u8]) -> Result<(Record, Vec<u8>), Rejected> {
    let record = Record::from_json(text, false)?;
    Ok((
        record,
        text.trim_ascii()
            .iter()
            .map(|byte| if *byte == b'\n' { b' ' } else { *byte })
            .collect(),
    ))
}

/// Returns an object with an `event_id`, which makes a retry idempotent.
///
/// The id has version 7, which begins with the time: ids that follow each other are close together
/// in the index of the database.
fn with_event_id(object: &[u8]) -> Vec<u8> {
    with_field(object, "event_id", &Uuid::now_v7().to_string())
}

/// Adds `created_at` to the lines that lack it.
///
/// Only delayed lines get this time, because the service would date them at the end of its outage.
fn with_time(lines: &[u8], read_at: jiff::Timestamp) -> Bytes {
    let mut timed = Vec::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        let has_time =
            Record::from_json(line, false).is_ok_and(|record| record.created_at().is_some());
        match has_time {
            true => timed.extend_from_slice(line),
            false => timed.append(&mut with_field(line, "created_at", &read_at.to_string())),
        }
        timed.push(b'\n');
    }
    timed.into()
}

/// Appends a field to an object. The rest of the text stays unchanged. If two fields have one name,
/// the last one counts. Returns the object unchanged if the field would exceed the line limit of
/// the service, because the service would then reject the line.
fn with_field(object: &[u8], name: &str, value: &str) -> Vec<u8> {
    let field = format!(r#", "{name}": "{value}"}}"#);
    match object.strip_suffix(b"}") {
        Some(open) if open.len() + field.len() <= DEFAULT_MAX_LINE_BYTES => {
            [open, field.as_bytes()].concat()
        }
        _ => object.to_vec(),
    }
}

/// Returns the lines after the first `count`.
fn after_lines(lines: &Bytes, count: usize) -> Bytes {
    let ends = lines
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1);
    let begin = std::iter::once(0)
        .chain(ends)
        .nth(count)
        .unwrap_or(lines.len());
    lines.slice(begin..)
}

/// Prints a line to standard error, above the progress bar.
fn report(bar: &ProgressBar, message: &dyn std::fmt::Display) {
    // A closed standard error does not end the command.
    let _ = bar.suspend(|| writeln!(io::stderr(), "{}", escaped_lines(&message.to_string())));
}

/// Returns a counter of lines, which is hidden unless standard error is a terminal.
fn progress() -> Result<ProgressBar, CommandError> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines, {per_sec}")
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    Ok(ProgressBar::new_spinner().with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_without_id_and_time_gets_both() {
        let fields = |text: &str| -> Map<String, Value> {
            let read_at = "2026-02-03T04:05:06Z".parse().unwrap();
            serde_json::from_slice(&with_time(&with_event_id(text.as_bytes()), read_at)).unwrap()
        };
        let object = r#"{"failure_type": "no_hit", "strategy": "s", "query_text": "with event_id", "event_id": null}"#;
        let line = fields(object);
        assert!(
            line["event_id"]
                .as_str()
                .unwrap()
                .parse::<Uuid>()
                .unwrap()
                .get_version_num()
                == 7
        );
        assert_eq!(line["created_at"], "2026-02-03T04:05:06Z");
        assert_eq!(line["query_text"], "with event_id");
        let object_with_time =
            object.replace("null", "null, \"created_at\": \"2026-01-01T00:00:00Z\"");
        assert_eq!(
            fields(&object_with_time)["created_at"],
            "2026-01-01T00:00:00Z"
        );
        let long = format!(
            r#"{{"query_text": "{}"}}"#,
            "q".repeat(DEFAULT_MAX_LINE_BYTES - 20)
        );
        assert_eq!(
            with_event_id(long.as_bytes()),
            long.as_bytes(),
            "the line limit leaves no room for the field"
        );
        assert_eq!(
            with_time(
                format!("{long}\n{long}\n").as_bytes(),
                jiff::Timestamp::now()
            )
            .len(),
            2 * long.len() + 2
        );
    }
}
