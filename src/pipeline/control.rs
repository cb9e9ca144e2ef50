//! The control actor: decides when to flush and when to purge, and runs one job at a time.
//!
//! It has a mailbox of its own. Records fill the mailbox of [`FailureLogger`], and actix stops the
//! timers of an actor that leaves its mailbox unread.
//!
//! # Invariants
//!
//! - One job runs at a time: `busy` is `true` from the spawn of a job to the end of its future.
//!   After a restart a job of the last incarnation may still run; the lock of the writer then makes
//!   the new one wait.
//! - No job begins in a pause. A failure of the store leads to one pause, or to the end of this
//!   incarnation.
//! - Each job ends in a call of [`Control::advance`], in a pause or in the end of this incarnation.
//!   Otherwise the actor would sleep while records wait.
//! - Requests of callers are answered once: when their job ends, when the store fails, or, because
//!   the sender is dropped, when the actor ends.
//! - State that is a field survives a restart. Timers and futures belong to the context, and do
//!   not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt as _, wrap_future};
use actix::{
    Actor, ActorContext as _, AsyncContext as _, Context, Handler, SpawnHandle, Supervised,
    WeakAddr, WeakRecipient,
};
use tokio::sync::oneshot;
use tokio::task::JoinError;

use crate::error::{LoggerError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::stats::{FlushReport, Stats};
use crate::pipeline::backoff::{Backoff, panic_message};
use crate::pipeline::messages::{
    DeleteFailures, Flush, MailboxMarker, RoomWanted, SetQueryStatus, Shutdown, unanswered,
};
use crate::pipeline::schedule::{self, Next, Records, Situation, Turn};
use crate::pipeline::state::Shared;
use crate::pipeline::writer;
use crate::store::write::{Erased, Progress};

/// Old rows are purged at least this often, however quiet the system.
const PURGE_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Interval of the roll-up of attempts into minutes, hours and days.
const ROLL_UP_INTERVAL: Duration = Duration::from_secs(60);
/// Drops are kept by the minute, so that shorter outages are noted in time.
const NOTE_LOSSES_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between two warnings that there are too many strategies.
const WARNING_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Interval of retries if a record is counted but not yet in the queue. Its caller is between two
/// instructions, unless the system took the processor away from its thread.
const ENQUEUE_RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Writes what is in the buffer. Owns timers, jobs and retries.
pub(crate) struct Control {
    shared: Arc<Shared>,
    /// `true` while a job runs on the blocking thread: one at a time.
    busy: bool,
    /// The mailbox of records.
    records: WeakRecipient<MailboxMarker>,
    /// Number of the marker that was sent last to the mailbox of records. Never used twice, also
    /// across restarts.
    markers: u64,
    /// `true` from the send of a marker until it is reached. The future that notices is part of the
    /// context.
    marker_is_under_way: bool,
    /// `true` if the timer found records to flush.
    due: bool,
    /// The pause after a failure, before the next retry. No job begins in it.
    pause: Option<Pause>,
    backoff: Backoff,
    waiters: Vec<Waiter>,
    status_changes: VecDeque<SetQueryStatus>,
    deletions: VecDeque<DeleteFailures>,
    /// Bytes of the file when the last purge had done what it could.
    bytes_after_purge: u64,
    /// When it was last said that failures were deleted because of the size, and how many by then.
    size_purge_reported: Option<(Instant, u64)>,
    /// Flushes that have been begun.
    jobs: u64,
    /// Attempts that the store refused are tried once more then.
    attempts_timer: Option<SpawnHandle>,
    /// `true` if a roll-up is wanted: after each minute, or sooner if many rows are not rolled up.
    roll_up_due: bool,
    /// `true` if a chunk of a purge is wanted. Stays `true` until no chunk is left, or one fails.
    purge_due: bool,
    /// If both are wanted, flushes and chunks of maintenance take turns.
    turn: Turn,
    /// Number of flushes at the last purge.
    flushes_at_purge: u64,
    /// Number of drops that a warning has reported.
    drops_reported: u64,
    /// When it was last said that there are too many strategies.
    strategies_reported: Option<Instant>,
    /// When the last warning of left out sources came, and their number then.
    sources_reported: Option<(Instant, u64)>,
    closing: Option<Closing>,
}

/// Progress of a shutdown.
enum Closing {
    /// Records that were sent to the mailbox before the shutdown are taken out, up to this marker.
    Mailbox { marker: u64 },
    /// The mailbox is taken out.
    Buffer,
    /// No record comes in any more. `jobs` is the number of flushes begun by then. Only a flush
    /// that begins after the seal finds everything that is in: the one before it may have collected
    /// the attempts before the last one was counted.
    Sealed { jobs: u64 },
}

/// The pause after a failed job, at whose end the only pending retry begins.
#[derive(Clone, Copy)]
struct Pause {
    failed_at: Instant,
    until: Instant,
    timer: SpawnHandle,
}

/// A flush that was requested.
struct Waiter {
    covers: Covers,
    before: Stats,
    reply: oneshot::Sender<Result<FlushReport, LoggerError>>,
}

/// Records that a requested flush covers. A request begins as a marker, and becomes a ticket when
/// the actor has taken the marker out of the mailbox.
enum Covers {
    /// Those in the mailbox up to this marker.
    Marker(u64),
    /// Those up to this ticket of the buffer, and the attempts that jobs after this one find. The
    /// ticket alone does not cover attempts, which are in no queue: they are covered by any job
    /// that begins later.
    Ticket { ticket: u64, jobs: u64 },
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>, records: WeakRecipient<MailboxMarker>) -> Self {
        Self {
            backoff: Backoff::new(&shared.config),
            shared,
            busy: false,
            records,
            markers: 0,
            marker_is_under_way: false,
            due: false,
            pause: None,
            waiters: Vec::new(),
            status_changes: VecDeque::new(),
            deletions: VecDeque::new(),
            bytes_after_purge: 0,
            size_purge_reported: None,
            jobs: 0,
            attempts_timer: None,
            roll_up_due: false,
            purge_due: false,
            turn: Turn::Flush,
            flushes_at_purge: 0,
            drops_reported: 0,
            strategies_reported: None,
            sources_reported: None,
            closing: None,
        }
    }

    /// Runs at each `flush_interval`: reports, collects attempts, and makes a flush due if anything
    /// waits.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        failpoint!("actor-tick");
        self.report_drops();
        self.report_strategies();
        self.report_sources();
        self.shared.note_losses(None);
        self.shared.attempts.collect();
        self.due = self.shared.buffer.balance().buffered > 0 || self.attempts_due();
        self.roll_up_due |= self.shared.attempts.many_rows_are_behind();
        // Only if no job runs: a job that hangs must make the logger stale in time.
        if !self.due && !self.busy && self.pause.is_none() {
            self.shared.counters.idle();
        }
        self.advance(ctx);
    }

    /// Returns `true` if attempts must be written now, even without failures.
    fn attempts_due(&self) -> bool {
        self.shared.attempts.due() && self.shared.attempts_refusal().is_none()
    }

    /// Warns of drops: one line an interval, never one a record.
    fn report_drops(&mut self) {
        let dropped = self.shared.buffer.balance().dropped;
        let new_drops = dropped.total() - self.drops_reported;
        if new_drops > 0 {
            self.drops_reported = dropped.total();
            tracing::warn!(
                dropped = new_drops,
                buffer_full = dropped.buffer_full,
                unavailable = dropped.unavailable,
                closed = dropped.closed,
                rejected = dropped.rejected,
                too_old = dropped.too_old,
                "records were dropped (totals by reason)"
            );
        }
    }

    /// Warns of failures that were deleted for the size of the database: one line an hour at most.
    fn report_size_purge(&mut self) {
        let purged = self.shared.counters.purged_by_size.load(Ordering::Acquire);
        let is_due = self
            .size_purge_reported
            .is_none_or(|(at, _)| at.elapsed() >= WARNING_INTERVAL);
        let before = self.size_purge_reported.map_or(0, |(_, purged)| purged);
        if is_due && purged > before {
            self.size_purge_reported = Some((Instant::now(), purged));
            let max_database_bytes = self.shared.config.max_database_bytes;
            tracing::warn!(
                deleted = purged - before,
                max_database_bytes,
                "the database was larger than max_database_bytes: its oldest failures were deleted"
            );
        }
    }

    /// Warns of too many strategies: one line an hour at most.
    fn report_strategies(&mut self) {
        let is_due = self
            .strategies_reported
            .is_none_or(|at| at.elapsed() >= WARNING_INTERVAL);
        if is_due && let Some(first) = self.shared.attempts.take_beyond() {
            self.strategies_reported = Some(Instant::now());
            tracing::warn!(
                max_strategies = self.shared.config.max_strategies,
                first = first.as_str(),
                "there are more strategies than max_strategies: the rest are counted together, as \
                 [other strategies]"
            );
        }
    }

    /// Warns of sources and labels that are left out: one line an hour at most.
    fn report_sources(&mut self) {
        let left_out = self
            .shared
            .counters
            .sources_left_out
            .load(Ordering::Acquire);
        let is_due = self
            .sources_reported
            .is_none_or(|(at, _)| at.elapsed() >= WARNING_INTERVAL);
        let before = self.sources_reported.map_or(0, |(_, left_out)| left_out);
        if is_due && left_out > before {
            self.sources_reported = Some((Instant::now(), left_out));
            tracing::warn!(
                left_out = left_out - before,
                "the log has 1,000 combinations of a source and its labels: records and attempts with \
                 another one are stored without labels, or without a source; do not use labels for \
                 values that are different in each process or request"
            );
        }
    }

    /// Starts the next job, if there is one and none is running.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        match schedule::next(self.situation()) {
            Next::Wait => {}
            Next::Flush => self.flush(ctx),
            Next::Request => self.serve(ctx),
            Next::RollUp => self.maintain(ctx, writer::roll_up, Self::rolled_up),
            Next::Purge => self.maintain(ctx, writer::purge, Self::purged),
            // A batch that was completed meanwhile sent no wake-up.
            // The guard changes the state: it marks the writer as asleep, and tells if that came
            // too late.
            Next::Sleep if !self.shared.buffer.try_sleep() => self.flush(ctx),
            // After a failure with nothing left to write, no flush would ever prove that the store
            // works, and the logger would stay unhealthy until the next record.
            Next::Sleep if self.shared.counters.is_unproven() && self.closing.is_none() => {
                self.run(ctx, writer::probe, Self::probed);
            }
            Next::Sleep => {}
        }
    }

    /// Returns the state by which the next job is chosen.
    fn situation(&self) -> Situation {
        let waiting = self.shared.buffer.waiting();
        Situation {
            writer: match () {
                () if self.busy => schedule::Writer::Busy,
                () if self.pause.is_some() => schedule::Writer::Paused,
                () if self.shared.gate.is_closed() => schedule::Writer::Ended,
                () => schedule::Writer::Free,
            },
            records: match waiting {
                0 => Records::None,
                waiting if waiting >= self.shared.config.batch_size => Records::Batch,
                _ => Records::Some,
            },
            is_due: self.due,
            is_awaited: self
                .waiters
                .iter()
                .any(|waiter| matches!(waiter.covers, Covers::Ticket { .. })),
            shutdown: match self.closing {
                None => schedule::Shutdown::None,
                Some(Closing::Mailbox { .. }) => schedule::Shutdown::TakesMailbox,
                Some(Closing::Buffer | Closing::Sealed { .. }) => schedule::Shutdown::Drains,
            },
            has_requests: !self.status_changes.is_empty() || !self.deletions.is_empty(),
            roll_up_is_due: self.roll_up_due,
            purge_is_due: self.purge_due,
            turn: self.turn,
        }
    }

    /// Begins a flush. Maintenance has the next turn.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        self.due = false;
        // Counted before the job begins: whatever came before this line is found by the job.
        self.jobs += 1;
        self.turn = Turn::Maintenance;
        self.run(ctx, writer::flush, Self::flushed);
    }

    /// Does what a caller waits for.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        if let Some(SetQueryStatus {
            queries,
            change,
            reply,
        }) = self.status_changes.pop_front()
        {
            let job = move |shared: &Shared| writer::set_query_status(shared, &queries, change);
            self.maintain(ctx, job, |actor, outcome, ctx| {
                actor.status_set(reply, outcome, ctx)
            });
        } else if let Some(DeleteFailures {
            deletion,
            so_far,
            reply,
        }) = self.deletions.pop_front()
        {
            let (wanted, job) = (deletion.clone(), move |shared: &Shared| {
                writer::delete(shared, &deletion, so_far)
            });
            self.maintain(ctx, job, |actor, outcome, ctx| {
                actor.deleted(wanted, reply, outcome, ctx)
            });
        }
    }

    /// Runs a job between flushes.
    fn maintain<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        job: impl FnOnce(&Shared) -> T + Send + 'static,
        done: impl FnOnce(&mut Self, Result<T, JoinError>, &mut Context<Self>) + 'static,
    ) {
        self.turn = Turn::Flush;
        self.run(ctx, job, done);
    }

    /// Runs `job` on a thread that may block. The writer counts as awake until `try_sleep` succeeds
    /// after it, so that no caller wakes the actor in between. `done` gets its result on the
    /// actor's thread, or the error of a job that panicked.
    fn run<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        job: impl FnOnce(&Shared) -> T + Send + 'static,
        done: impl FnOnce(&mut Self, Result<T, JoinError>, &mut Context<Self>) + 'static,
    ) {
        self.busy = true;
        self.shared.buffer.stay_awake();
        let shared = Arc::clone(&self.shared);
        let job = actix_rt::task::spawn_blocking(move || job(&shared));
        ctx.spawn(wrap_future(job).map(move |outcome, actor: &mut Self, ctx| {
            actor.busy = false;
            done(actor, outcome, ctx);
        }));
    }

    fn flushed(
        &mut self,
        outcome: Result<Result<(), StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(Ok(())) => self.succeeded(ctx),
            Ok(Err(error)) => {
                self.shared
                    .counters
                    .failed_flushes
                    .fetch_add(1, Ordering::AcqRel);
                self.failed(&error, ctx);
            }
            Err(panic) => self.panicked(panic, ctx),
        }
    }

    /// Ends a flush that committed everything it found. Decides in this order: requested flushes,
    /// purges, the steps of a shutdown, and the next job.
    fn succeeded(&mut self, ctx: &mut Context<Self>) {
        self.healthy();
        self.retry_attempts(ctx);
        self.reply_to_waiters();
        if self.is_too_large() {
            self.schedule_purge();
        }
        let flushes = self.shared.counters.flushes.load(Ordering::Acquire);
        if flushes - self.flushes_at_purge >= u64::from(self.shared.config.cleanup_every) {
            self.schedule_purge();
        }
        let closing = self.closing.is_some();
        if let Some(Closing::Buffer) = self.closing {
            self.shared.seal();
            self.closing = Some(Closing::Sealed { jobs: self.jobs });
        }
        let buffered = self.shared.buffer.balance().buffered;
        // Strictly smaller: the flush that has just ended may have begun before the seal.
        let flushed = matches!(self.closing, Some(Closing::Sealed { jobs }) if jobs < self.jobs)
            && self.shared.attempts.are_written();
        if flushed && buffered == 0 {
            self.run(ctx, writer::close, |actor, _, ctx| {
                actor.shared.drained();
                ctx.terminate();
            });
        } else if (closing || self.waiters.iter().any(|waiter| waiter.is_due(self.jobs)))
            && buffered > 0
            && self.shared.buffer.waiting() == 0
        {
            // A caller has been counted, but its record is not in the queue yet. Another flush at
            // once would find nothing, and keep the thread busy until the record is there.
            ctx.run_later(ENQUEUE_RETRY_INTERVAL, Self::advance_later);
        } else if closing && buffered == 0 && self.attempts_timer.is_some() {
            // Only attempts are left that the store refuses. Their timer leads to the next flush.
        } else {
            self.advance(ctx);
        }
    }

    /// Returns `true` if the file is larger than it may be, and was not when this was looked at
    /// last.
    fn is_too_large(&mut self) -> bool {
        let max = self.shared.config.max_database_bytes;
        let bytes = if max == 0 {
            0
        } else {
            self.shared.database_bytes()
        };
        // Free pages are a part of the file. A file that a purge could not shrink must not begin
        // the next purge, which would delete more rows and still not shrink it.
        let grew = bytes > max.max(self.bytes_after_purge);
        grew && max > 0
    }

    /// Has attempts that the store refused tried once more, after their pause. One timer at a time.
    fn retry_attempts(&mut self, ctx: &mut Context<Self>) {
        let Some(refusal) = self.shared.attempts_refusal() else {
            return;
        };
        let longest = if self.closing.is_some() {
            self.shared.longest_pause_while_closing()
        } else {
            Duration::MAX
        };
        if let Some(timer) = self.attempts_timer.take() {
            ctx.cancel_future(timer);
        }
        self.attempts_timer = Some(ctx.run_later(refusal.retry_in(longest), |actor, ctx| {
            actor.attempts_timer = None;
            actor.due = true;
            actor.advance(ctx);
        }));
    }

    /// Ends a probe.
    fn probed(
        &mut self,
        outcome: Result<Result<(), StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(Ok(())) => {
                self.healthy();
                self.advance(ctx);
            }
            // The table takes no row: nothing that waiting changes, and no reason to try without a
            // pause.
            Ok(Err(StoreError::Split(cause))) => self.failed(&StoreError::Retry(cause), ctx),
            Ok(Err(error)) => self.failed(&error, ctx),
            Err(panic) => self.panicked(panic, ctx),
        }
    }

    fn advance_later(&mut self, ctx: &mut Context<Self>) {
        self.advance(ctx);
    }

    /// Ends a chunk of a purge. Another chunk waits for its turn, so that flushes come in between.
    fn purged(
        &mut self,
        outcome: Result<Result<Progress, StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(Ok(progress)) => {
                self.healthy();
                self.purge_due = progress == Progress::More;
                if progress == Progress::Done {
                    self.bytes_after_purge = self.shared.database_bytes();
                    self.report_size_purge();
                }
                self.advance(ctx);
            }
            Ok(Err(error)) => {
                // Rows that are a little too old do no harm: the next purge deletes them.
                self.purge_due = false;
                self.failed(&error, ctx);
            }
            Err(panic) => {
                self.purge_due = false;
                self.panicked(panic, ctx);
            }
        }
    }

    /// Ends a chunk of a roll-up. An error of the counts alone must not stop records: it leads to
    /// no pause.
    fn rolled_up(
        &mut self,
        outcome: Result<Result<Progress, StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        // The next one takes what this one could not.
        self.roll_up_due = matches!(outcome, Ok(Ok(Progress::More)));
        match outcome {
            Ok(Ok(_)) => {
                self.healthy();
                self.advance(ctx);
            }
            Ok(Err(StoreError::Split(cause))) => {
                // No reason to keep records waiting.
                tracing::warn!(
                    cause,
                    "the store refuses to add attempts up; they are kept, and records are stored"
                );
                self.advance(ctx);
            }
            Ok(Err(error)) => self.failed(&error, ctx),
            Err(panic) => self.panicked(panic, ctx),
        }
    }

    /// Ends a chunk of a deletion. The request goes back to the front of its queue until all rows
    /// are deleted.
    fn deleted(
        &mut self,
        deletion: Deletion,
        reply: oneshot::Sender<Result<(Deleted, Erased), StoreError>>,
        outcome: Result<Result<(Deleted, Erased), StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(Ok((so_far, Erased::NotYet))) => {
                self.healthy();
                // In turns with flushes.
                self.deletions.push_front(DeleteFailures {
                    deletion,
                    so_far,
                    reply,
                });
                self.advance(ctx);
            }
            Ok(Ok(done)) => {
                let _ = reply.send(Ok(done));
                self.healthy();
                self.advance(ctx);
            }
            // No fault of the store.
            Ok(Err(error @ (StoreError::Split(_) | StoreError::GiveUp(_)))) => {
                let _ = reply.send(Err(error));
                self.advance(ctx);
            }
            Ok(Err(error)) => {
                self.failed(&error, ctx);
                let _ = reply.send(Err(error));
            }
            Err(panic) => {
                let _ = reply.send(Err(StoreError::GiveUp("the deletion panicked".into())));
                self.panicked(panic, ctx);
            }
        }
    }

    /// Ends the change of a status.
    fn status_set(
        &mut self,
        reply: oneshot::Sender<Result<(), StoreError>>,
        outcome: Result<Result<(), StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        // A caller that stopped waiting has dropped its receiver.
        match outcome {
            Ok(Ok(())) => {
                let _ = reply.send(Ok(()));
                self.healthy();
                self.advance(ctx);
            }
            // No fault of the store.
            Ok(Err(error @ (StoreError::Split(_) | StoreError::GiveUp(_)))) => {
                let _ = reply.send(Err(error));
                self.advance(ctx);
            }
            Ok(Err(error)) => {
                self.failed(&error, ctx);
                let _ = reply.send(Err(error));
            }
            Err(panic) => {
                self.panicked(panic, ctx);
                let _ = reply.send(Err(StoreError::Retry(self.shared.last_failure())));
            }
        }
    }

    /// Makes a purge due, if this logger applies the retention.
    fn schedule_purge(&mut self) {
        self.flushes_at_purge = self.shared.counters.flushes.load(Ordering::Acquire);
        self.purge_due = self.shared.config.applies_retention;
    }

    /// Notes that a job succeeded.
    fn healthy(&mut self) {
        self.backoff.reset();
        if self.shared.available() {
            tracing::info!("the logger is available again");
        }
    }

    /// Ends a job that failed, by the remedy of its error:
    ///
    /// - `Retry`, `Split`: a pause, then a flush if anything waits.
    /// - `Reopen`, `Corrupt`: the end of this incarnation. The supervisor restarts it after a pause
    ///   of its own, and the first job reopens the file.
    /// - `GiveUp`: nothing. The shutdown has closed the commit gate.
    ///
    /// All requests that wait get the error, because the next try may be seconds away.
    fn failed(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        let buffered = self.shared.buffer.balance().buffered;
        self.shared.failed(error.to_string());
        if !matches!(error, StoreError::GiveUp(_)) {
            self.shared.counters.store_failed();
        }
        match error {
            StoreError::GiveUp(_) => {}
            StoreError::Reopen(_) | StoreError::Corrupt(_) => ctx.terminate(),
            StoreError::Retry(_) | StoreError::Split(_) => {
                let longest = if self.closing.is_some() {
                    self.shared.longest_pause_while_closing()
                } else {
                    Duration::MAX
                };
                let pause = self.backoff.next().min(longest);
                tracing::warn!(cause = %error, buffered, pause_ms = pause.as_millis(), "the store failed; records are kept, and written later");
                self.due = buffered > 0 || self.attempts_due();
                let now = Instant::now();
                self.pause(now, now + pause, ctx);
            }
        }
        // Last, so that the caller finds the warning in the log when its call returns.
        self.fail_waiters(&LoggerError::Waiting {
            buffered,
            cause: error.to_string(),
        });
        for SetQueryStatus { reply, .. } in self.status_changes.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
        for DeleteFailures { reply, .. } in self.deletions.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Begins no job before `until`, and tries again then. There is one timer: an earlier pause
    /// ends with this one.
    fn pause(&mut self, failed_at: Instant, until: Instant, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.pause.take() {
            ctx.cancel_future(earlier.timer);
        }
        let timer = ctx.run_later(
            until.saturating_duration_since(Instant::now()),
            |actor, ctx| {
                actor.pause = None;
                actor.advance(ctx);
            },
        );
        self.pause = Some(Pause {
            failed_at,
            until,
            timer,
        });
    }

    /// Ends a job that panicked. The incarnation ends as well, because the state of the store is
    /// unknown.
    fn panicked(&mut self, error: JoinError, ctx: &mut Context<Self>) {
        let cause = match error.try_into_panic() {
            Ok(panic) => format!("panic: {}", panic_message(&*panic)),
            Err(error) => error.to_string(),
        };
        let buffered = self.shared.buffer.balance().buffered;
        self.fail_waiters(&LoggerError::Waiting {
            buffered,
            cause: cause.clone(),
        });
        self.shared.failed(cause);
        self.shared.counters.store_failed();
        ctx.terminate();
    }

    /// Has a marker sent behind the records in their mailbox. Returns its number, which
    /// [`Self::reached`] gets when all of them are in the buffer. One is under way at a time,
    /// however many callers flush.
    fn mark_mailbox(&mut self, ctx: &mut Context<Self>) -> u64 {
        if self.marker_is_under_way {
            // The marker under way may have been sent before the records of this caller. The next
            // one, which `reached` sends because this waiter wants it, stands behind them.
            return self.markers + 1;
        }
        self.send_marker(ctx);
        self.markers
    }

    /// Sends the next marker. If the actor of the records has ended, the marker is reached at once.
    fn send_marker(&mut self, ctx: &mut Context<Self>) {
        self.markers += 1;
        self.marker_is_under_way = true;
        let number = self.markers;
        let (marker, reached) = oneshot::channel();
        if let Some(records) = self.records.upgrade() {
            records.do_send(MailboxMarker(marker));
        } else {
            drop(marker);
        }
        // An actor that has ended has nothing in its mailbox.
        ctx.spawn(
            wrap_future(reached).map(move |_, actor: &mut Self, ctx| actor.reached(number, ctx)),
        );
    }

    /// Returns `true` if a flush or the shutdown waits for a marker.
    fn wants_marker(&self) -> bool {
        self.waiters
            .iter()
            .any(|waiter| matches!(waiter.covers, Covers::Marker(_)))
            || matches!(self.closing, Some(Closing::Mailbox { .. }))
    }

    /// Notes that everything that was sent before marker `number` is in the buffer.
    fn reached(&mut self, number: u64, ctx: &mut Context<Self>) {
        self.marker_is_under_way = false;
        // Read after the marker came back: the mailbox keeps its order, so that each record in
        // front of the marker was admitted by now, and the ticket includes it.
        let (ticket, jobs) = (self.shared.buffer.ticket(), self.jobs);
        for waiter in &mut self.waiters {
            if matches!(waiter.covers, Covers::Marker(marker) if marker <= number) {
                waiter.covers = Covers::Ticket { ticket, jobs };
            }
        }
        if matches!(self.closing, Some(Closing::Mailbox { marker }) if marker <= number) {
            self.closing = Some(Closing::Buffer);
            self.shared.mailbox_has_ended.store(true, Ordering::Release);
        }
        if self.wants_marker() {
            self.send_marker(ctx);
        }
        self.advance(ctx);
    }

    /// Answers the requested flushes whose records are all settled, also those that were rejected.
    fn reply_to_waiters(&mut self) {
        let (jobs, settled) = (self.jobs, self.shared.buffer.settled());
        let after = self.shared.stats();
        let refusal = self.shared.attempts.refusal();
        let refused =
            refusal.map(|refusal| format!("attempts cannot be counted: {}", refusal.cause));
        let is_settled = |waiter: &mut Waiter| {
            waiter.is_due(jobs) && waiter.ticket().is_some_and(|ticket| ticket <= settled)
        };
        for waiter in self.waiters.extract_if(.., is_settled) {
            let report = FlushReport {
                persisted: after.persisted - waiter.before.persisted,
                rejected: after.dropped.rejected - waiter.before.dropped.rejected,
            };
            let result = match &refused {
                Some(cause) => Err(LoggerError::Waiting {
                    buffered: after.buffered,
                    cause: cause.clone(),
                }),
                None => Ok(report),
            };
            // A caller that stopped waiting has dropped its receiver.
            let _ = waiter.reply.send(result);
        }
    }

    /// Answers all requested flushes with an error. Their records stay buffered.
    fn fail_waiters(&mut self, error: &LoggerError) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(error.clone()));
        }
    }
}

impl Waiter {
    /// Returns `true` if a job that covers it was begun.
    fn is_due(&self, begun: u64) -> bool {
        matches!(self.covers, Covers::Ticket { jobs, .. } if jobs < begun)
    }

    /// Returns the ticket of the buffer up to which records must be settled. `None`: the marker is
    /// still in the mailbox.
    fn ticket(&self) -> Option<u64> {
        match self.covers {
            Covers::Marker(_) => None,
            Covers::Ticket { ticket, .. } => Some(ticket),
        }
    }
}

impl Actor for Control {
    type Context = Context<Self>;

    /// Begins an incarnation. A restart drops all timers, so that they are set each time.
    fn started(&mut self, ctx: &mut Self::Context) {
        failpoint!("actor-started");
        ctx.run_interval(self.shared.config.flush_interval, Self::tick);
        // The interval of flushes may be long.
        ctx.run_interval(NOTE_LOSSES_INTERVAL, |actor, _| {
            actor.shared.note_losses(None)
        });
        ctx.run_interval(PURGE_INTERVAL, |actor, ctx| {
            actor.schedule_purge();
            actor.advance(ctx);
        });
        ctx.run_interval(ROLL_UP_INTERVAL, |actor, ctx| {
            actor.roll_up_due = true;
            actor.advance(ctx);
        });
        let shared = Arc::clone(&self.shared);
        ctx.spawn(wrap_future(listen(shared, ctx.address().downgrade())));
        let shared = Arc::clone(&self.shared);
        ctx.spawn(wrap_future(listen_for_attempts(
            shared,
            ctx.address().downgrade(),
        )));
        self.schedule_purge();
        // The marker of the last incarnation went with its context.
        self.marker_is_under_way = false;
        if self.wants_marker() {
            // `mark_mailbox` may have promised the next number to waiters while a marker was under
            // way. The one that is sent now has to be above it.
            self.markers += 1;
            self.send_marker(ctx);
        }
        // A pause continues after a restart, which is no reason to retry a failing store earlier.
        if let Some(Pause {
            failed_at, until, ..
        }) = self.pause.take()
        {
            self.pause(failed_at, until, ctx);
        }
        self.advance(ctx);
    }
}

/// Tells the actor when a caller has completed a batch.
async fn listen(shared: Arc<Shared>, actor: WeakAddr<Control>) {
    loop {
        shared.buffer.woken().await;
        let Some(actor) = actor.upgrade() else { return };
        actor.do_send(BatchComplete);
    }
}

/// A caller has completed a batch while the writer slept.
struct BatchComplete;

unanswered!(BatchComplete);

impl Handler<BatchComplete> for Control {
    type Result = ();

    fn handle(&mut self, _: BatchComplete, ctx: &mut Context<Self>) {
        self.due = true;
        self.advance(ctx);
    }
}

/// Tells the actor when many attempts wait to be collected.
async fn listen_for_attempts(shared: Arc<Shared>, actor: WeakAddr<Control>) {
    loop {
        shared.attempts.many_samples().await;
        let Some(actor) = actor.upgrade() else { return };
        actor.do_send(ManyAttempts);
    }
}

/// A list of attempts is half full.
struct ManyAttempts;

unanswered!(ManyAttempts);

impl Handler<ManyAttempts> for Control {
    type Result = ();

    /// Makes room for more. They are written when that is due.
    fn handle(&mut self, _: ManyAttempts, ctx: &mut Context<Self>) {
        self.shared.attempts.collect();
        self.due |= self.attempts_due();
        self.advance(ctx);
    }
}

impl Supervised for Control {
    fn restarting(&mut self, _: &mut Context<Self>) {
        // The future of the job was dropped with the old context, so that nothing else clears this.
        // The job itself may still run. The next one waits for it at the lock of the writer.
        self.busy = false;
        self.attempts_timer = None;
        // Opens the store where necessary, and writes what the last incarnation left.
        self.due = true;
    }
}

impl Handler<RoomWanted> for Control {
    type Result = ();

    /// Flushes at once: a full buffer must not wait for the timer.
    fn handle(&mut self, _: RoomWanted, ctx: &mut Context<Self>) {
        self.due = true;
        self.advance(ctx);
    }
}

impl Handler<Flush> for Control {
    type Result = ();

    fn handle(&mut self, Flush(reply): Flush, ctx: &mut Context<Self>) {
        let before = self.shared.stats();
        if self.pause.is_some() {
            // The caller gets the last failure now. A try for each call would defeat the backoff.
            let cause = self.shared.last_failure();
            let _ = reply.send(Err(LoggerError::Waiting {
                buffered: before.buffered,
                cause,
            }));
            return;
        }
        let covers = Covers::Marker(self.mark_mailbox(ctx));
        self.waiters.push(Waiter {
            covers,
            before,
            reply,
        });
    }
}

impl Handler<SetQueryStatus> for Control {
    type Result = ();

    /// Queues a job like the others: in a pause the store is not tried for a status either.
    fn handle(&mut self, request: SetQueryStatus, ctx: &mut Context<Self>) {
        if self.pause.is_some() {
            let _ = request
                .reply
                .send(Err(StoreError::Retry(self.shared.last_failure())));
            return;
        }
        self.status_changes.push_back(request);
        self.advance(ctx);
    }
}

impl Handler<DeleteFailures> for Control {
    type Result = ();

    fn handle(&mut self, deletion: DeleteFailures, ctx: &mut Context<Self>) {
        if self.pause.is_some() {
            let _ = deletion
                .reply
                .send(Err(StoreError::Retry(self.shared.last_failure())));
            return;
        }
        self.deletions.push_back(deletion);
        self.advance(ctx);
    }
}

impl Handler<Shutdown> for Control {
    type Result = ();

    /// Covers all records that were sent to the mailbox before.
    fn handle(&mut self, _: Shutdown, ctx: &mut Context<Self>) {
        if self.closing.is_none() {
            self.closing = Some(Closing::Mailbox {
                marker: self.mark_mailbox(ctx),
            });
        }
        // Counted from the failure, so that a shutdown that is asked for often ends no further
        // pause.
        if let Some(Pause {
            failed_at, until, ..
        }) = self.pause
        {
            self.pause(
                failed_at,
                until.min(failed_at + self.shared.longest_pause_while_closing()),
                ctx,
            );
        }
        self.advance(ctx);
    }
}
