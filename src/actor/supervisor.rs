//! The logger's thread, and the supervisor that restarts the actor there.
//!
//! Everything that depends on actix's internals is in this file: `actix::Supervisor` restarts an
//! actor whose context ends, but not one that panics (actix issue 157), so the context's future is
//! polled by hand.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::task::{Context as TaskContext, Poll};
use std::thread;
use std::time::{Duration, Instant};

use actix::dev::ContextFut;
use actix::dev::channel::{AddressReceiver, channel as mailbox};
use actix::{Addr, Context};
use tokio::sync::watch;

use super::{FailureLogger, RECORDS_PER_TURN, flush};
use crate::error::{LoggerError, StartError};
use crate::shared::{Phase, Shared};
use crate::stats::ShutdownReport;

/// Restarts in quick succession, after which the logger counts as unavailable.
const FAILED_RESTARTS: u32 = 5;
/// How long the end of the logger waits for a commit that is on its way.
const COMMIT_PATIENCE: Duration = Duration::from_millis(500);
/// The longest pause before a restart while a shutdown waits for it.
const PAUSE_WHILE_CLOSING: Duration = Duration::from_millis(100);

/// A logger's thread, seen from outside.
pub(crate) struct Thread {
    pub(crate) id: thread::ThreadId,
    /// Disconnects when the thread has published the result of its shutdown.
    pub(crate) ended: Receiver<()>,
}

/// Starts the actor on a thread of its own, which runs an actix system of its own.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<(Addr<FailureLogger>, Thread), StartError> {
    // Made here, so that the mailbox has its capacity from the first message on.
    let (sender, receiver) = mailbox(shared.config.buffer_capacity);
    let (ready, started) = sync_channel(1);
    let (alive, ended) = channel();
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new()
        .name("failure-logger".into())
        .spawn(move || run(&shared, receiver, &ready, alive))
        .map_err(StartError::Thread)?;
    match started.recv() {
        Ok(()) => Ok((Addr::new(sender), Thread { id: thread.thread().id(), ended })),
        Err(_) => Err(StartError::Thread(std::io::Error::other("no event loop"))),
    }
}

fn run(
    shared: &Arc<Shared>,
    receiver: AddressReceiver<FailureLogger>,
    ready: &std::sync::mpsc::SyncSender<()>,
    alive: Sender<()>,
) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let system = actix_rt::System::new();
        // The caller waits for it, so it is there.
        let _ = ready.send(());
        system.block_on(async {
            let context = Context::with_receiver(receiver);
            let mut actor = context.into_future(FailureLogger::new(Arc::clone(shared)));
            supervise(shared, &mut actor).await;
            finish(shared, Some(&mut actor));
            drop(alive);
            // Tasks of this system answer the actors that asked for the shutdown: they get a turn,
            // about sixty of them at each yield.
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
            // An actor that panics while it is dropped changes nothing any more.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(actor)));
        });
    }));
    if outcome.is_err() && !matches!(*shared.phases().borrow(), Phase::Closed { .. }) {
        // The supervisor itself failed. What was accepted is saved all the same.
        quietly(|| tracing::error!("the logger's thread panicked; it writes what it has, and ends"));
        shared.close(Instant::now());
        let _ = catch_unwind(AssertUnwindSafe(|| flush::flush(shared)));
        finish(shared, None);
    }
}

/// Runs the actor until it has drained the buffer for a shutdown, or the shutdown's deadline has
/// passed. Restarts it whenever it stops or panics.
async fn supervise(shared: &Shared, actor: &mut ContextFut<FailureLogger, Context<FailureLogger>>) {
    let mut pauses = Backoff::new(&shared.config);
    // Of the same clock as the timers.
    let mut last_restart: Option<tokio::time::Instant> = None;
    let mut in_vain = 0;
    loop {
        let cause = tokio::select! {
            biased;
            cause = Guarded(actor) => cause,
            () = deadline(shared) => return,
        };
        if shared.is_drained() {
            return;
        }
        // A flush that succeeds proves little: what fails may be the timer, or the purge.
        if last_restart.is_some_and(|at| at.elapsed() >= 2 * shared.config.longest_backoff) {
            in_vain = 0;
            pauses.reset();
        }
        in_vain += 1;
        shared.counters.restarts.fetch_add(1, Ordering::AcqRel);
        if let Some(panic) = cause {
            shared.failed(format!("panic: {panic}"));
        }
        let cause = shared.last_failure();
        let pause = pauses.next();
        let pause_ms = pause.as_millis();
        if in_vain >= FAILED_RESTARTS {
            shared.unavailable(&cause);
            quietly(|| {
                tracing::error!(cause, in_vain, pause_ms, "the logger cannot be restarted; what is buffered is kept");
            });
        } else {
            quietly(|| tracing::warn!(cause, pause_ms, "the logger failed, and is restarted"));
        }
        tokio::select! {
            () = pause_before_restart(shared, pause) => {}
            () = deadline(shared) => return,
        }
        // The actor, which does so otherwise, was away.
        shared.note_losses(None);
        if catch_unwind(AssertUnwindSafe(|| actor.restart())).is_err() {
            shared.failed("panic while restarting".into());
        }
        last_restart = Some(tokio::time::Instant::now());
    }
}

/// Ends after `pause`, or soon if a shutdown waits.
async fn pause_before_restart(shared: &Shared, pause: Duration) {
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

/// Draws the line: nothing is accepted or committed after it, and what is left is lost, and
/// reported.
fn finish(shared: &Shared, actor: Option<&mut ContextFut<FailureLogger, Context<FailureLogger>>>) {
    shared.seal();
    let in_doubt = shared.gate.close(COMMIT_PATIENCE);
    let unsaved = shared.buffer.abandon();
    if let Some(actor) = actor {
        count_mailbox(shared, actor);
    }
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

/// Has the actor take what is left in its mailbox, if it can: nothing is accepted any more, so the
/// records are counted as dropped.
fn count_mailbox(shared: &Shared, actor: &mut ContextFut<FailureLogger, Context<FailureLogger>>) {
    let capacity = shared.config.buffer_capacity;
    let _ = catch_unwind(AssertUnwindSafe(|| {
        actor.restart();
        // A turn at a time, and no more than there was room for: others may go on sending.
        for _ in 0..=2 * capacity / RECORDS_PER_TURN as usize {
            let before = shared.buffer.balance().dropped.closed;
            let _ = Pin::new(&mut *actor).poll(&mut TaskContext::from_waker(std::task::Waker::noop()));
            if shared.buffer.balance().dropped.closed == before {
                return;
            }
        }
    }));
}

/// Polls the actor, and turns a panic into the end of the poll, with what the panic said.
struct Guarded<'a>(&'a mut ContextFut<FailureLogger, Context<FailureLogger>>);

impl Future for Guarded<'_> {
    type Output = Option<String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| pin!(&mut *self.0).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(None),
            Err(panic) => Poll::Ready(Some(panic_message(&*panic))),
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
            let (_sender, receiver) = mailbox(8);
            let mut actor =
                Context::with_receiver(receiver).into_future(FailureLogger::new(Arc::clone(&fixture.shared)));
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
