//! The actor: decides when to flush and when to purge, and has it done, one thing at a time.

mod flush;
mod messages;
mod supervisor;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt as _, wrap_future};
use actix::{
    Actor, ActorContext as _, AsyncContext as _, Context, Handler, MessageResult, ResponseFuture, SpawnHandle,
    Supervised,
};
use tokio::sync::oneshot;
use tokio::task::JoinError;

pub use messages::{Flush, GetStats, Shutdown};
pub(crate) use messages::{FlushFor, MarkQuestion};
pub(crate) use supervisor::Thread;
use supervisor::{Backoff, panic_message};

use crate::config::LoggerConfig;
use crate::error::{LoggerError, StartError, StoreError};
use crate::handle::LoggerHandle;
use crate::record::RetrievalFailureRecord;
use crate::shared::{Shared, Writer};
use crate::stats::{FlushReport, ShutdownReport, Stats};
use crate::store::Database;

/// Old rows are purged at least this often, however quiet the system.
const PURGE_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How often attempts are added to their minutes, hours and days.
const COMPACT_INTERVAL: Duration = Duration::from_secs(60);
/// Losses are told apart by the minute.
const NOTE_LOSSES_EVERY: Duration = Duration::from_secs(10);
/// Records that are taken out of the mailbox at once, at most, and for how long.
const RECORDS_PER_TURN: u32 = 256;
const LONGEST_TURN: Duration = Duration::from_millis(2);
/// How soon to look again for a record that is counted but not yet in the queue.
const SOON: Duration = Duration::from_millis(1);

/// The actor that keeps records of failed retrievals. Send it a [`RetrievalFailureRecord`] with
/// `try_send`, or give its address away as a `Recipient<RetrievalFailureRecord>`.
///
/// It runs on a thread of its own, under a supervisor that restarts it when it fails.
pub struct FailureLogger {
    shared: Arc<Shared>,
    /// Whether a job is on the blocking thread: one at a time.
    busy: bool,
    /// Records taken out of the mailbox in this turn, and when it began.
    turn: (u32, Instant),
    /// Whether the timer found something to flush.
    due: bool,
    /// After a failure: the pause before the next try. No job begins in it, whoever asks.
    pause: Option<Pause>,
    backoff: Backoff,
    waiters: Vec<Waiter>,
    marks: VecDeque<MarkQuestion>,
    /// Flushes that have been begun.
    jobs: u64,
    /// Attempts that the store refused are tried once more then.
    attempts_timer: Option<SpawnHandle>,
    compact_due: bool,
    purge_due: bool,
    /// Where both are wanted, flushes and chunks of a chore take turns.
    chore_turn: bool,
    /// Number of flushes at the last purge.
    flushes_at_purge: u64,
    drops_reported: u64,
    /// A shutdown was asked for. The number of flushes that had been begun when the line was drawn, or until then
    /// when it was asked for.
    closing: Option<u64>,
}

/// The pause after a failed job, at whose end the only pending retry begins.
#[derive(Clone, Copy)]
struct Pause {
    failed_at: Instant,
    until: Instant,
    timer: SpawnHandle,
}

/// Somebody waits until everything up to `ticket` is settled.
struct Waiter {
    /// Jobs begun before it came: only a later one covers all attempts up to then.
    jobs: u64,
    ticket: u64,
    before: Stats,
    reply: oneshot::Sender<Result<FlushReport, LoggerError>>,
}

impl FailureLogger {
    /// Opens the store, brings its schema up to date, and starts the supervised actor on a thread
    /// of its own. Works from any thread, with or without a runtime; blocks while the database is
    /// opened, usually for a few milliseconds.
    ///
    /// # Errors
    ///
    /// Settings that are not accepted, and a database that cannot be opened, by what to do about
    /// it. Nothing is overwritten.
    pub fn spawn(config: LoggerConfig) -> Result<LoggerHandle, StartError> {
        let location = config.validate()?;
        if !config.enabled {
            return Ok(LoggerHandle::disabled());
        }
        let database = Database::new(&location, config.pool_size);
        let store = database.open()?;
        let shared = Arc::new(Shared::new(config, Writer::new(database, Some(store))));
        flush::begin_retention(&shared);
        let (addr, thread) = supervisor::start(&shared)?;
        Ok(LoggerHandle::new(shared, addr, thread))
    }

    fn new(shared: Arc<Shared>) -> Self {
        Self {
            backoff: Backoff::new(&shared.config),
            shared,
            busy: false,
            turn: (0, Instant::now()),
            due: false,
            pause: None,
            waiters: Vec::new(),
            marks: VecDeque::new(),
            jobs: 0,
            attempts_timer: None,
            compact_due: false,
            purge_due: false,
            chore_turn: false,
            flushes_at_purge: 0,
            drops_reported: 0,
            closing: None,
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        failpoint!("actor-tick");
        self.report_drops();
        self.shared.note_losses(None);
        self.shared.attempts.collect();
        self.due = self.shared.buffer.balance().buffered > 0 || self.attempts_due();
        self.compact_due |= self.shared.attempts.are_many();
        if !self.due && !self.busy && self.pause.is_none() {
            self.shared.counters.well();
        }
        self.advance(ctx);
    }

    /// Returns `true` if attempts are to be written now, though there are no failures to write.
    fn attempts_due(&self) -> bool {
        self.shared.attempts.due() && self.shared.attempts_refusal().is_none()
    }

    /// One line an interval, never one a record.
    fn report_drops(&mut self) {
        let dropped = self.shared.buffer.balance().dropped;
        let news = dropped.total() - self.drops_reported;
        if news > 0 {
            self.drops_reported = dropped.total();
            tracing::warn!(
                dropped = news,
                buffer_full = dropped.buffer_full,
                unavailable = dropped.unavailable,
                closed = dropped.closed,
                rejected = dropped.rejected,
                too_old = dropped.too_old,
                "records were dropped (totals by reason)"
            );
        }
    }

    /// Starts the next job, if there is one and none is running.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.busy || self.pause.is_some() || self.shared.gate.is_closed() {
            return;
        }
        let full = self.shared.buffer.waiting() >= self.shared.config.batch_size;
        let flush = full || self.due || self.closing.is_some() || !self.waiters.is_empty();
        let chore = !self.marks.is_empty() || (self.compact_due || self.purge_due) && self.closing.is_none();
        if flush && !(chore && self.chore_turn) {
            self.flush(ctx);
        } else if chore {
            self.chore(ctx);
        } else if !self.shared.buffer.leave() {
            self.flush(ctx);
        }
    }

    /// After some records, or some time, timers, flushes and the shutdown's deadline get a turn. actix
    /// empties the mailbox first, however fast others fill it.
    fn let_others_in(&mut self, ctx: &mut Context<Self>) {
        let (taken, began) = &mut self.turn;
        if *taken == 0 {
            *began = Instant::now();
        }
        *taken += 1;
        if *taken >= RECORDS_PER_TURN || began.elapsed() >= LONGEST_TURN {
            *taken = 0;
            ctx.wait(wrap_future(tokio::task::yield_now()));
        }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        self.due = false;
        self.jobs += 1;
        self.chore_turn = true;
        self.run(ctx, flush::flush, Self::flushed);
    }

    fn chore(&mut self, ctx: &mut Context<Self>) {
        self.chore_turn = false;
        if let Some(MarkQuestion { question, mark, reply }) = self.marks.pop_front() {
            let job = move |shared: &Shared| flush::mark(shared, &question, mark);
            self.run(ctx, job, |actor, outcome, ctx| actor.marked(reply, outcome, ctx));
        } else if self.compact_due {
            self.run(ctx, flush::compact, Self::compacted);
        } else {
            self.run(ctx, flush::purge, Self::purged);
        }
    }

    /// Has `job` done on a thread that may block. The buffer is attended to until its end: nobody
    /// needs to wake the actor.
    fn run<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        job: impl FnOnce(&Shared) -> T + Send + 'static,
        done: impl FnOnce(&mut Self, Result<T, JoinError>, &mut Context<Self>) + 'static,
    ) {
        self.busy = true;
        self.shared.buffer.attend();
        let shared = Arc::clone(&self.shared);
        let job = actix_rt::task::spawn_blocking(move || job(&shared));
        ctx.spawn(wrap_future(job).map(move |outcome, actor: &mut Self, ctx| {
            actor.busy = false;
            done(actor, outcome, ctx);
        }));
    }

    fn flushed(&mut self, outcome: Result<Result<(), StoreError>, JoinError>, ctx: &mut Context<Self>) {
        match outcome {
            Ok(Ok(())) => self.succeeded(ctx),
            Ok(Err(error)) => {
                self.shared.counters.failed_flushes.fetch_add(1, Ordering::AcqRel);
                self.failed(&error, ctx);
            }
            Err(panic) => self.panicked(panic, ctx),
        }
    }

    fn succeeded(&mut self, ctx: &mut Context<Self>) {
        self.healthy();
        self.retry_attempts(ctx);
        self.answer_waiters();
        let flushes = self.shared.counters.flushes.load(Ordering::Acquire);
        if flushes - self.flushes_at_purge >= u64::from(self.shared.config.cleanup_every) {
            self.want_purge();
        }
        let closing = self.closing.is_some();
        if closing && !self.shared.buffer.is_sealed() {
            self.shared.seal();
            // Only a flush that begins after the line finds everything that is in.
            self.closing = Some(self.jobs);
        }
        let buffered = self.shared.buffer.balance().buffered;
        let flushed = self.closing.is_some_and(|jobs| jobs < self.jobs) && self.shared.attempts.are_written();
        if flushed && buffered == 0 {
            self.run(ctx, flush::close, |actor, _, ctx| {
                actor.shared.drained();
                ctx.terminate();
            });
        } else if (closing || self.waiters.iter().any(|waiter| waiter.jobs < self.jobs))
            && buffered > 0
            && self.shared.buffer.waiting() == 0
        {
            // A caller has been counted, but its record is not in the queue yet.
            ctx.run_later(SOON, Self::advance_later);
        } else if closing && buffered == 0 && self.attempts_timer.is_some() {
            // Only attempts are left that the store refuses.
        } else {
            self.advance(ctx);
        }
    }

    /// Has attempts that the store refused tried once more, after their pause. One timer at a time.
    fn retry_attempts(&mut self, ctx: &mut Context<Self>) {
        let Some(refusal) = self.shared.attempts_refusal() else { return };
        let longest = if self.closing.is_some() { self.shared.longest_pause_while_closing() } else { Duration::MAX };
        if let Some(timer) = self.attempts_timer.take() {
            ctx.cancel_future(timer);
        }
        self.attempts_timer = Some(ctx.run_later(refusal.retry_in(longest), |actor, ctx| {
            actor.attempts_timer = None;
            actor.due = true;
            actor.advance(ctx);
        }));
    }

    fn advance_later(&mut self, ctx: &mut Context<Self>) {
        self.advance(ctx);
    }

    fn purged(&mut self, outcome: Result<Result<bool, StoreError>, JoinError>, ctx: &mut Context<Self>) {
        match outcome {
            Ok(Ok(finished)) => {
                self.healthy();
                self.purge_due = !finished;
                self.advance(ctx);
            }
            Ok(Err(error)) => {
                // Rows that are a little too old harm nobody: the next purge takes them.
                self.purge_due = false;
                self.failed(&error, ctx);
            }
            Err(panic) => {
                self.purge_due = false;
                self.panicked(panic, ctx);
            }
        }
    }

    fn compacted(&mut self, outcome: Result<Result<bool, StoreError>, JoinError>, ctx: &mut Context<Self>) {
        // The next one takes what this one could not.
        self.compact_due = matches!(outcome, Ok(Ok(false)));
        match outcome {
            Ok(Ok(_)) => {
                self.healthy();
                self.advance(ctx);
            }
            Ok(Err(StoreError::Split(cause))) => {
                // No reason to keep records waiting.
                tracing::warn!(cause, "the store refuses to add attempts up; they are kept, and records are stored");
                self.advance(ctx);
            }
            Ok(Err(error)) => self.failed(&error, ctx),
            Err(panic) => self.panicked(panic, ctx),
        }
    }

    fn marked(
        &mut self,
        reply: oneshot::Sender<Result<(), StoreError>>,
        outcome: Result<Result<(), StoreError>, JoinError>,
        ctx: &mut Context<Self>,
    ) {
        // Whoever does not wait any more needs no answer.
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

    fn want_purge(&mut self) {
        self.flushes_at_purge = self.shared.counters.flushes.load(Ordering::Acquire);
        self.purge_due = self.shared.config.applies_retention;
    }

    fn healthy(&mut self) {
        self.backoff.reset();
        self.shared.counters.well();
        if self.shared.available() {
            tracing::info!("the logger is available again");
        }
    }

    fn failed(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        let buffered = self.shared.buffer.balance().buffered;
        self.shared.failed(error.to_string());
        match error {
            StoreError::GiveUp(_) => {}
            StoreError::Reopen(_) | StoreError::Corrupt(_) => ctx.terminate(),
            StoreError::Retry(_) | StoreError::Split(_) => {
                let longest =
                    if self.closing.is_some() { self.shared.longest_pause_while_closing() } else { Duration::MAX };
                let pause = self.backoff.next().min(longest);
                tracing::warn!(cause = %error, buffered, pause_ms = pause.as_millis(), "the store failed; records are kept, and written later");
                self.due = buffered > 0 || self.attempts_due();
                let now = Instant::now();
                self.pause(now, now + pause, ctx);
            }
        }
        // Last, so that whoever is told finds the warning in the log.
        self.fail_waiters(&LoggerError::Waiting { buffered, cause: error.to_string() });
        for MarkQuestion { reply, .. } in self.marks.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Begins no job before `until`, and tries again then. There is one timer: an earlier pause ends
    /// with this one.
    fn pause(&mut self, failed_at: Instant, until: Instant, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.pause.take() {
            ctx.cancel_future(earlier.timer);
        }
        let timer = ctx.run_later(until.saturating_duration_since(Instant::now()), |actor, ctx| {
            actor.pause = None;
            actor.advance(ctx);
        });
        self.pause = Some(Pause { failed_at, until, timer });
    }

    fn panicked(&mut self, error: JoinError, ctx: &mut Context<Self>) {
        let cause = match error.try_into_panic() {
            Ok(panic) => format!("panic: {}", panic_message(&*panic)),
            Err(error) => error.to_string(),
        };
        let buffered = self.shared.buffer.balance().buffered;
        self.fail_waiters(&LoggerError::Waiting { buffered, cause: cause.clone() });
        self.shared.failed(cause);
        ctx.terminate();
    }

    fn flush_for(&mut self, reply: oneshot::Sender<Result<FlushReport, LoggerError>>, ctx: &mut Context<Self>) {
        let (jobs, ticket, before) = (self.jobs, self.shared.buffer.ticket(), self.shared.stats());
        if self.pause.is_some() {
            // Whoever asks wants to know now, and the store is not tried for it.
            let cause = self.shared.last_failure();
            let _ = reply.send(Err(LoggerError::Waiting { buffered: before.buffered, cause }));
            return;
        }
        self.waiters.push(Waiter { jobs, ticket, before, reply });
        self.advance(ctx);
    }

    fn answer_waiters(&mut self) {
        let (jobs, settled) = (self.jobs, self.shared.buffer.settled());
        let after = self.shared.stats();
        let refusal = self.shared.attempts.refusal();
        let refused = refusal.map(|refusal| format!("attempts cannot be counted: {}", refusal.cause));
        for waiter in self.waiters.extract_if(.., |waiter| waiter.ticket <= settled && waiter.jobs < jobs) {
            let report = FlushReport {
                persisted: after.persisted - waiter.before.persisted,
                rejected: after.dropped.rejected - waiter.before.dropped.rejected,
            };
            let answer = match &refused {
                Some(cause) => Err(LoggerError::Waiting { buffered: after.buffered, cause: cause.clone() }),
                None => Ok(report),
            };
            // Whoever does not wait any more needs no answer.
            let _ = waiter.reply.send(answer);
        }
    }

    fn fail_waiters(&mut self, error: &LoggerError) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(error.clone()));
        }
    }
}

impl Actor for FailureLogger {
    type Context = Context<Self>;

    /// Also after a restart, which drops all timers.
    fn started(&mut self, ctx: &mut Self::Context) {
        failpoint!("actor-started");
        ctx.run_interval(self.shared.config.flush_interval, Self::tick);
        // The interval of flushes may be long.
        ctx.run_interval(NOTE_LOSSES_EVERY, |actor, _| actor.shared.note_losses(None));
        ctx.run_interval(PURGE_INTERVAL, |actor, ctx| {
            actor.want_purge();
            actor.advance(ctx);
        });
        ctx.run_interval(COMPACT_INTERVAL, |actor, ctx| {
            actor.compact_due = true;
            actor.advance(ctx);
        });
        let shared = Arc::clone(&self.shared);
        ctx.spawn(wrap_future(listen(shared, ctx.address().downgrade())));
        let shared = Arc::clone(&self.shared);
        ctx.spawn(wrap_future(listen_for_attempts(shared, ctx.address().downgrade())));
        self.want_purge();
        // A pause goes on after a restart, which is no reason to try a failing store earlier.
        if let Some(Pause { failed_at, until, .. }) = self.pause.take() {
            self.pause(failed_at, until, ctx);
        }
        self.advance(ctx);
    }
}

/// Tells the actor when a caller has completed a batch.
async fn listen(shared: Arc<Shared>, actor: actix::WeakAddr<FailureLogger>) {
    loop {
        shared.buffer.woken().await;
        let Some(actor) = actor.upgrade() else { return };
        actor.do_send(BatchComplete);
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct BatchComplete;

impl Handler<BatchComplete> for FailureLogger {
    type Result = ();

    fn handle(&mut self, _: BatchComplete, ctx: &mut Context<Self>) {
        self.due = true;
        self.advance(ctx);
    }
}

/// Tells the actor when many attempts wait to be collected.
async fn listen_for_attempts(shared: Arc<Shared>, actor: actix::WeakAddr<FailureLogger>) {
    loop {
        shared.attempts.many_samples().await;
        let Some(actor) = actor.upgrade() else { return };
        actor.do_send(ManyAttempts);
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct ManyAttempts;

impl Handler<ManyAttempts> for FailureLogger {
    type Result = ();

    /// Makes room for more. They are written when that is due.
    fn handle(&mut self, _: ManyAttempts, ctx: &mut Context<Self>) {
        self.shared.attempts.collect();
        self.due |= self.attempts_due();
        self.advance(ctx);
    }
}

impl Supervised for FailureLogger {
    fn restarting(&mut self, _: &mut Context<Self>) {
        // The job's future went with the old context; the job itself may go on, under its lock.
        self.busy = false;
        self.attempts_timer = None;
        // Opens the store where necessary, and writes what the last incarnation left.
        self.due = true;
    }
}

impl Handler<RetrievalFailureRecord> for FailureLogger {
    type Result = ();

    /// Into the same buffer as all records; one that completes a batch wakes the actor like any other.
    fn handle(&mut self, record: RetrievalFailureRecord, ctx: &mut Context<Self>) {
        self.shared.accept_now(record);
        failpoint!("actor-record");
        self.let_others_in(ctx);
    }
}

impl Handler<Flush> for FailureLogger {
    type Result = ResponseFuture<Result<FlushReport, LoggerError>>;

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.flush_for(reply, ctx);
        Box::pin(async { answer.await.unwrap_or(Err(LoggerError::Closed)) })
    }
}

impl Handler<FlushFor> for FailureLogger {
    type Result = ();

    fn handle(&mut self, FlushFor(reply): FlushFor, ctx: &mut Context<Self>) {
        self.flush_for(reply, ctx);
    }
}

impl Handler<MarkQuestion> for FailureLogger {
    type Result = ();

    /// A job like the others: while the store fails, it is not tried for a mark either.
    fn handle(&mut self, mark: MarkQuestion, ctx: &mut Context<Self>) {
        if self.pause.is_some() {
            let _ = mark.reply.send(Err(StoreError::Retry(self.shared.last_failure())));
            return;
        }
        self.marks.push_back(mark);
        self.advance(ctx);
    }
}

impl Handler<GetStats> for FailureLogger {
    type Result = MessageResult<GetStats>;

    fn handle(&mut self, _: GetStats, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.shared.stats())
    }
}

impl Handler<Shutdown> for FailureLogger {
    type Result = ResponseFuture<Result<ShutdownReport, LoggerError>>;

    /// Comes after all records that were sent to the actor before.
    fn handle(&mut self, _: Shutdown, ctx: &mut Context<Self>) -> Self::Result {
        let shared = Arc::clone(&self.shared);
        shared.close(Instant::now() + shared.config.shutdown_timeout);
        self.closing.get_or_insert(self.jobs);
        // Counted from the failure, so that a shutdown that is asked for often ends no further pause.
        if let Some(Pause { failed_at, until, .. }) = self.pause {
            self.pause(failed_at, until.min(failed_at + self.shared.longest_pause_while_closing()), ctx);
        }
        self.advance(ctx);
        Box::pin(async move { shared.result().await })
    }
}
