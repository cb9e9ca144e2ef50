//! The supervisor of the control actor, its end, and the logger's own thread.
//!
//! Everything that depends on actix's internals is in this file and in `mod.rs`: `actix::Supervisor` restarts an
//! actor whose context ends, but not one that panics (actix issue 157), so the context's future is polled by hand.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::task::{Context as TaskContext, Poll};
use std::thread;
use std::time::{Duration, Instant};

use actix::dev::ContextFut;
use actix::dev::channel::AddressReceiver;
use actix::{Actor as _, Addr, Context, WeakAddr};
use tokio::sync::{oneshot, watch};

use super::{Control, FailureLogger, MailboxMarker, flush};
use crate::error::{LoggerError, StartError};
use crate::shared::{Phase, Shared};
use crate::stats::ShutdownReport;

/// Restarts in quick succession, after which the logger counts as unavailable.
const FAILED_RESTARTS: u32 = 5;
/// How long the end of the logger waits for a commit that is on its way.
const COMMIT_PATIENCE: Duration = Duration::from_millis(500);
/// The longest pause before a restart while a shutdown waits for it.
const PAUSE_WHILE_CLOSING: Duration = Duration::from_millis(100);

/// How long the end of the logger waits for what is in the mailbox of records, to count it.
const MAILBOX_TIMEOUT: Duration = Duration::from_millis(500);

/// A logger's thread, seen from outside.
pub(crate) struct Thread {
    pub(crate) id: thread::ThreadId,
    /// Disconnects when the thread has published the result of its shutdown.
    pub(crate) ended: Receiver<()>,
}

impl Thread {
    /// Runs the actor in an actix system of its own. Returns when the actor is started.
    pub(crate) fn start(logger: FailureLogger) -> Result<(Addr<FailureLogger>, Self), StartError> {
        let (ready, started) = sync_channel(1);
        let (alive, ended) = channel();
        let thread = thread::Builder::new()
            .name("failure-logger".into())
            .spawn(move || run_thread(logger, &ready, alive))
            .map_err(StartError::Thread)?;
        match started.recv() {
            Ok(addr) => Ok((addr, Self { id: thread.thread().id(), ended })),
            Err(_) => Err(StartError::Thread(std::io::Error::other("no event loop"))),
        }
    }
}

fn run_thread(logger: FailureLogger, ready: &SyncSender<Addr<FailureLogger>>, alive: Sender<()>) {
    let shared = Arc::clone(&logger.shared);
    // If it panics, the logger is dropped, which commits what was accepted.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        actix_rt::System::new().block_on(async {
            // The caller waits for it, so it is there.
            let _ = ready.send(logger.start());
            let _ = shared.result().await;
            drop(alive);
            // Tasks of this system respond to callers, and the actor counts what is in its mailbox: they get a turn,
            // about sixty of them at each yield.
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
        });
    }));
}

/// Starts the control actor in the current arbiter.
pub(super) fn start(
    shared: &Arc<Shared>,
    mailbox: AddressReceiver<Control>,
    records: WeakAddr<FailureLogger>,
    drain: Arc<DrainOnDrop>,
) {
    let shared = Arc::clone(shared);
    actix_rt::spawn(async move {
        let run = pin!(run(&shared, mailbox, records));
        if Guarded(run).await.is_err() {
            quietly(|| tracing::error!("the supervisor panicked; the logger commits what it has, and ends"));
            let _ = actix_rt::task::spawn_blocking({
                let drain = Arc::clone(&drain);
                move || drain.drain()
            })
            .await;
        }
        // Also if this task is dropped with its event loop.
        drop(drain);
    });
}

async fn run(shared: &Arc<Shared>, mailbox: AddressReceiver<Control>, records: WeakAddr<FailureLogger>) {
    let context = Context::with_receiver(mailbox);
    let mut actor = context.into_future(Control::new(Arc::clone(shared), records.clone()));
    supervise(shared, &mut actor).await;
    shared.seal();
    shared.mailbox_counted.notify_one();
    mailbox_is_empty(&records).await;
    let last = Arc::clone(shared);
    // On a thread that may block.
    let _ = actix_rt::task::spawn_blocking(move || finish(&last)).await;
    // An actor that panics while it is dropped changes nothing any more.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(actor)));
}

/// Ends when the records in the mailbox are counted, or soon. Others may go on sending.
async fn mailbox_is_empty(records: &WeakAddr<FailureLogger>) {
    let Some(records) = records.upgrade() else { return };
    let (marker, reached) = oneshot::channel();
    records.do_send(MailboxMarker(marker));
    drop(records);
    let _ = tokio::time::timeout(MAILBOX_TIMEOUT, reached).await;
}

/// Runs the control actor until it has drained the buffer for a shutdown, or the shutdown's deadline has passed.
/// Restarts it whenever it stops or panics.
async fn supervise(shared: &Shared, actor: &mut ContextFut<Control, Context<Control>>) {
    let mut restarts = Restarts::new(&shared.config);
    loop {
        let cause = tokio::select! {
            biased;
            ended = Guarded(&mut *actor) => ended.err(),
            () = deadline(shared) => return,
        };
        if shared.is_drained() {
            return;
        }
        let pause = restarts.failed(shared, cause);
        tokio::select! {
            () = pause_before_restart(shared, pause) => {}
            () = deadline(shared) => return,
        }
        // The actor, which does so otherwise, was away.
        shared.note_losses(None);
        if catch_unwind(AssertUnwindSafe(|| actor.restart())).is_err() {
            shared.failed("panic while restarting".into());
        }
        restarts.restarted();
    }
}

/// Restarts of one actor: counts them, and spaces them out.
pub(super) struct Restarts {
    pauses: Backoff,
    longest: Duration,
    /// Of the same clock as the timers.
    last: Option<tokio::time::Instant>,
    in_vain: u32,
}

impl Restarts {
    pub(super) fn new(config: &crate::LoggerConfig) -> Self {
        Self { pauses: Backoff::new(config), longest: config.longest_backoff, last: None, in_vain: 0 }
    }

    /// Notes that the actor failed. Returns the pause before its restart.
    pub(super) fn failed(&mut self, shared: &Shared, panic: Option<String>) -> Duration {
        // A flush that succeeds proves little: what fails may be the timer, or the purge.
        if self.last.is_some_and(|at| at.elapsed() >= 2 * self.longest) {
            self.in_vain = 0;
            self.pauses.reset();
        }
        self.in_vain += 1;
        shared.counters.restarts.fetch_add(1, Ordering::AcqRel);
        if let Some(panic) = panic {
            shared.failed(format!("panic: {panic}"));
        }
        let (cause, in_vain, pause) = (shared.last_failure(), self.in_vain, self.pauses.next());
        let pause_ms = pause.as_millis();
        if in_vain >= FAILED_RESTARTS {
            shared.unavailable(&cause);
            quietly(|| {
                tracing::error!(cause, in_vain, pause_ms, "the logger cannot be restarted; what is buffered is kept");
            });
        } else {
            quietly(|| tracing::warn!(cause, pause_ms, "the logger failed, and is restarted"));
        }
        pause
    }

    pub(super) fn restarted(&mut self) {
        self.last = Some(tokio::time::Instant::now());
    }
}

/// Ends after `pause`, or soon if a shutdown waits.
pub(super) async fn pause_before_restart(shared: &Shared, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = async { wait_for_closing(shared).await; tokio::time::sleep(PAUSE_WHILE_CLOSING.min(pause)).await } => {}
    }
}

/// Ends when the deadline of a shutdown has passed.
async fn deadline(shared: &Shared) {
    let deadline = wait_for_closing(shared).await;
    tokio::time::sleep_until(deadline.into()).await;
}

async fn wait_for_closing(shared: &Shared) -> Instant {
    let mut phases: watch::Receiver<Phase> = shared.phases();
    let closing = phases.wait_for(|phase| matches!(phase, Phase::Closing { .. })).await;
    match closing.as_deref() {
        Ok(Phase::Closing { deadline, .. }) => *deadline,
        _ => Instant::now(),
    }
}

/// Commits what was accepted if the logger is dropped before its end: with an event loop that stops, or unstarted.
///
/// Shared by the actor and its control actor; the last one drops it.
pub(crate) struct DrainOnDrop(pub(super) Arc<Shared>);

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        self.drain();
    }
}

impl DrainOnDrop {
    /// Blocks until everything is committed, at most until the deadline of the shutdown.
    fn drain(&self) {
        let shared = &self.0;
        if !shared.config.enabled || matches!(*shared.phases().borrow(), Phase::Closed { .. }) {
            return;
        }
        shared.close(Instant::now() + shared.config.shutdown_timeout);
        let deadline = match *shared.phases().borrow() {
            Phase::Closing { deadline, .. } => deadline,
            _ => Instant::now(),
        };
        shared.seal();
        let (done, wait) = sync_channel(1);
        let last = Arc::clone(shared);
        // On a thread of its own, because a statement may wait for a lock beyond the deadline.
        let drain = move || {
            let _ = catch_unwind(AssertUnwindSafe(|| flush_until_empty(&last)));
            let _ = done.send(());
        };
        match thread::Builder::new().name("failure-logger-end".into()).spawn(drain) {
            Ok(_) => {
                let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            Err(error) => shared.failed(error.to_string()),
        }
        finish(shared);
    }
}

fn flush_until_empty(shared: &Shared) {
    while !shared.gate.is_closed() {
        match flush::flush(shared) {
            Ok(()) if shared.buffer.balance().buffered == 0 && shared.attempts.are_written() => {
                flush::close(shared);
                return;
            }
            Ok(()) => thread::yield_now(),
            Err(error) => {
                shared.failed(error.to_string());
                thread::sleep(shared.longest_pause_while_closing().min(shared.config.first_backoff));
            }
        }
    }
}

/// Draws the line: nothing is accepted or committed after it, and what is left is lost, and reported. Blocks for a
/// commit that is on its way. Does nothing if the line is drawn already.
pub(crate) fn finish(shared: &Shared) {
    let _one = shared.finishing();
    if matches!(*shared.phases().borrow(), Phase::Closed { .. }) {
        return;
    }
    shared.seal();
    let in_doubt = shared.gate.close(COMMIT_PATIENCE);
    let unsaved = shared.buffer.abandon();
    let persisted_before = match *shared.phases().borrow() {
        Phase::Closing { persisted_before, .. } => persisted_before,
        _ => 0,
    };
    shared.attempts.collect();
    let stats = shared.stats();
    // Also what an earlier attempt to finish gave up, before it failed itself.
    let unsaved = unsaved.max(stats.dropped.unsaved);
    let report = ShutdownReport {
        drained: stats.persisted - persisted_before,
        unsaved,
        attempts_unsaved: stats.attempts - stats.attempts_persisted,
        in_doubt: in_doubt as u64,
        stats,
    };
    let saved = unsaved == 0 && report.attempts_unsaved == 0;
    let cause = match shared.last_failure() {
        none if none.is_empty() => "the store was too slow".into(),
        cause => cause,
    };
    // Before whoever waits for the result finds no line about it; and it must come, whatever happens here.
    quietly(|| {
        if !saved {
            tracing::error!(
                unsaved,
                report.attempts_unsaved,
                in_doubt,
                cause,
                "the deadline passed before all records were stored"
            );
        }
        if stats.dropped.total() > 0 {
            tracing::warn!(dropped = ?stats.dropped, "records were dropped (all in all)");
        }
    });
    shared.closed(match saved {
        true => Ok(report),
        false => Err(LoggerError::Unsaved { report: Box::new(report), cause }),
    });
}

/// Logs; a subscriber that panics is no reason to end.
fn quietly(log: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(log)) {
        std::mem::forget(panic);
    }
}

/// Polls a future, and turns a panic into its end, with what the panic said.
struct Guarded<F>(F);

impl<F: Future + Unpin> Future for Guarded<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic_message(&*panic))),
        }
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)").to_owned()
}

/// Pauses that double from the first to the longest, a little uneven so that several processes
/// do not try at the same moment.
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
}

impl Backoff {
    pub(super) fn new(config: &crate::config::LoggerConfig) -> Self {
        Self { first: config.first_backoff, longest: config.longest_backoff, pause: config.first_backoff }
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest);
        // Three quarters to all of it. A fresh hasher is randomness enough, and at hand.
        let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
        pause.mul_f64(0.75 + 0.25 * random)
    }

    pub(super) fn reset(&mut self) {
        self.pause = self.first;
    }
}

#[cfg(test)]
mod tests {
    use actix::dev::channel::channel as mailbox;

    use super::*;
    use crate::config::LoggerConfig;

    #[test]
    fn backoff_doubles_up_to_its_longest_and_begins_anew() {
        let config = LoggerConfig::default().backoff(Duration::from_millis(100), Duration::from_millis(1000));
        let mut backoff = Backoff::new(&config);
        for _ in 0..2 {
            for longest in [100, 200, 400, 800, 1000, 1000, 1000] {
                let pause = backoff.next();
                let longest = Duration::from_millis(longest);
                assert!((longest.mul_f64(0.75)..=longest).contains(&pause), "{pause:?} of {longest:?}");
            }
            backoff.reset();
        }
        let pauses: std::collections::HashSet<_> = (0..100).map(|_| (backoff.next(), backoff.reset()).0).collect();
        assert!(pauses.len() > 10, "processes that fail together try at different moments");
    }

    #[cfg(feature = "failpoints")]
    #[test]
    fn faults_far_apart_are_no_failed_restarts() {
        use std::sync::atomic::AtomicU32;

        use crate::actor::tests::{Fixture, at_fault_point, in_virtual_time};

        const LONGEST: Duration = Duration::from_secs(10);
        let first = Duration::from_millis(100);
        let fixture = Fixture::new(|config| config.backoff(first, LONGEST).flush_interval(first / 10));
        let (faults, started) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (left, count) = (Arc::clone(&faults), Arc::clone(&started));
        let _scenario = at_fault_point("actor-tick", move || {
            let fails = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
            assert!(fails.is_err(), "injected");
        });
        let this = thread::current().id();
        fail::cfg_callback("actor-started", move || {
            count.fetch_add(u32::from(thread::current().id() == this), Ordering::AcqRel);
        })
        .unwrap();
        in_virtual_time(async {
            let (_control, control_mailbox) = mailbox(8);
            let records = Addr::<FailureLogger>::new(mailbox(8).0).downgrade();
            let mut actor =
                Context::with_receiver(control_mailbox).into_future(Control::new(Arc::clone(&fixture.shared), records));
            let mut phases = fixture.shared.phases();
            let script = async {
                for round in 1..=20 {
                    tokio::time::sleep(2 * LONGEST).await;
                    faults.store(1, Ordering::Release);
                    // The next tick and the shortest pause, not a longer one.
                    tokio::time::sleep(first / 5 + first).await;
                    assert_eq!(started.load(Ordering::Acquire), round + 1);
                }
                assert!(!phases.has_changed().unwrap(), "the logger was unavailable for a moment");
                tokio::time::sleep(2 * LONGEST).await;
                // One after the other.
                faults.store(u32::MAX, Ordering::Release);
                let unavailable = phases.wait_for(|phase| matches!(phase, Phase::Unavailable { .. })).await;
                drop(unavailable.unwrap());
                assert_eq!(started.load(Ordering::Acquire), 20 + FAILED_RESTARTS);
            };
            tokio::select! {
                () = supervise(&fixture.shared, &mut actor) => panic!("the supervisor ended"),
                () = script => {}
            }
        });
    }
}
