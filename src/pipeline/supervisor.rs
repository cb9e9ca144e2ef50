//! The supervisor of the control actor, its end, and the logger's own thread.
//!
//! Everything that depends on actix's internals is in this file and in `mod.rs`:
//! `actix::Supervisor` restarts an actor whose context ends, but not one that panics (actix issue
//! 157), so the context's future is polled by hand.
//!
//! # The end of a logger
//!
//! Three parties may end a logger: the supervisor after a shutdown, a handle whose `shutdown`
//! waited too long, and the drop of an event loop ([`DrainOnDrop`]). [`finish`] makes the report
//! once for all of them, in an order in which no count can change behind it:
//!
//! 1. `seal`: no record and no attempt comes in.
//! 2. `gate.close`: no transaction commits. A commit that is under way gets some time to be
//!    accounted for; after it, its rows are in doubt.
//! 3. `abandon`: what is left in the buffer is unsaved.
//! 4. The counters are read, logged, and published with [`Phase::Closed`].

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::task::{Context as TaskContext, Poll};
use std::thread;
use std::time::{Duration, Instant};

use actix::dev::ContextFut;
use actix::dev::channel::AddressReceiver;
use actix::{Context, WeakRecipient};
use tokio::sync::oneshot;

use crate::error::LoggerError;
use crate::model::stats::ShutdownReport;
use crate::pipeline::backoff::{
    Restarts, log_without_panic, panic_message, pause_before_restart, wait_for_closing,
};
use crate::pipeline::control::Control;
use crate::pipeline::messages::MailboxMarker;
use crate::pipeline::phase::Phase;
use crate::pipeline::state::Shared;
use crate::pipeline::writer;

/// Longest wait of the end for a running commit.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait of the end for the records in the mailbox, which it counts.
const MAILBOX_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval of the heartbeat of the actor's event loop.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the control actor in the current arbiter.
pub(crate) fn start(
    shared: &Arc<Shared>,
    mailbox: AddressReceiver<Control>,
    records: WeakRecipient<MailboxMarker>,
    drain: Arc<DrainOnDrop>,
) {
    let shared = Arc::clone(shared);
    actix_rt::spawn(async move {
        let run = pin!(run(&shared, mailbox, records));
        let ended = tokio::select! {
            ended = Guarded(run) => ended,
            // Beside the supervisor and not in the control actor: the heartbeat tells about the
            // event loop, also while the actor pauses before a restart.
            () = beat(&shared) => Ok(()),
        };
        if ended.is_err() {
            log_without_panic(|| {
                tracing::error!("the supervisor panicked; the logger commits what it has, and ends")
            });
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

/// Notes at intervals that the event loop has a turn. Never ends.
async fn beat(shared: &Shared) {
    loop {
        shared.counters.beat();
        tokio::time::sleep(BEAT_INTERVAL).await;
    }
}

/// Runs the logger to its end, and publishes the report.
async fn run(
    shared: &Arc<Shared>,
    mailbox: AddressReceiver<Control>,
    records: WeakRecipient<MailboxMarker>,
) {
    let context = Context::with_receiver(mailbox);
    let mut actor = context.into_future(Control::new(Arc::clone(shared), records.clone()));
    supervise(shared, &mut actor).await;
    shared.seal();
    // The seal comes first: records that the actor takes out from here on are dropped as closed,
    // and counted before the report.
    shared.mailbox_counted.notify_one();
    mailbox_is_empty(&records).await;
    let last = Arc::clone(shared);
    // On a thread that may block.
    let _ = actix_rt::task::spawn_blocking(move || finish(&last)).await;
    // An actor that panics while it is dropped changes nothing any more.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(actor)));
}

/// Returns when the records in the mailbox are counted, or after [`MAILBOX_TIMEOUT`]. Senders may
/// continue to send.
async fn mailbox_is_empty(records: &WeakRecipient<MailboxMarker>) {
    let Some(records) = records.upgrade() else {
        return;
    };
    let (marker, reached) = oneshot::channel();
    records.do_send(MailboxMarker(marker));
    drop(records);
    let _ = tokio::time::timeout(MAILBOX_TIMEOUT, reached).await;
}

/// Runs the control actor until it has drained the buffer for a shutdown, or the shutdown's
/// deadline has passed. Restarts it whenever it stops or panics.
///
/// The state of the actor survives a restart, and its mailbox as well: requests that callers sent
/// during a pause are served by the next incarnation.
pub(crate) async fn supervise(shared: &Shared, actor: &mut ContextFut<Control, Context<Control>>) {
    let mut restarts = Restarts::new(&shared.config);
    loop {
        let cause = tokio::select! {
            biased;
            // `biased`, with the actor first: an actor that ends at the deadline has drained the
            // buffer, and its result counts.
            ended = Guarded(&mut *actor) => ended.err(),
            () = deadline(shared) => return,
        };
        if shared.is_drained() {
            return;
        }
        // Every end that is not the end of a shutdown is a failure, also the one without a panic,
        // which the control actor chooses to have the file reopened.
        let pause = restarts.failed(shared, cause);
        tokio::select! {
            () = pause_before_restart(shared, pause) => {}
            () = deadline(shared) => return,
        }
        // The timer of the actor notes drops otherwise. It did not run during the pause, and drops
        // must be noted at their minute.
        shared.note_losses(None);
        if catch_unwind(AssertUnwindSafe(|| actor.restart())).is_err() {
            shared.failed("panic while restarting".into());
        }
        restarts.restarted();
    }
}

/// Ends when the deadline of a shutdown has passed.
async fn deadline(shared: &Shared) {
    let deadline = wait_for_closing(shared).await;
    tokio::time::sleep_until(deadline.into()).await;
}

/// Commits what was accepted if the logger is dropped before its end: with an event loop that
/// stops, or unstarted.
///
/// Shared by the actor and its control actor; the last one drops it.
///
/// Runs in a drop, because a System that stops drops its actors without a turn in which they could
/// wait. It blocks that thread until the records are committed, at most for the `shutdown_timeout`.
pub(crate) struct DrainOnDrop(pub(crate) Arc<Shared>);

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        self.drain();
    }
}

impl DrainOnDrop {
    /// Blocks until everything is committed, at most until the deadline of the shutdown.
    fn drain(&self) {
        let shared = &self.0;
        if !shared.config.enabled || shared.is_closed() {
            return;
        }
        // An earlier shutdown's deadline stands, so that it is read from the phase afterwards.
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
        match thread::Builder::new()
            .name("failure-logger-end".into())
            .spawn(drain)
        {
            Ok(_) => {
                let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            Err(error) => shared.failed(error.to_string()),
        }
        finish(shared);
    }
}

/// Flushes until everything is committed or the gate is closed. Runs without actors and timers,
/// because their event loop is being dropped.
fn flush_until_empty(shared: &Shared) {
    while !shared.gate.is_closed() {
        match writer::flush(shared) {
            Ok(()) if shared.buffer.balance().buffered == 0 && shared.attempts.are_written() => {
                writer::close(shared);
                return;
            }
            Ok(()) => thread::yield_now(),
            Err(error) => {
                shared.failed(error.to_string());
                thread::sleep(
                    shared
                        .longest_pause_while_closing()
                        .min(shared.config.first_backoff),
                );
            }
        }
    }
}

/// Ends the logger: no record is accepted and no transaction commits afterwards. What is left is
/// unsaved, and the report says so. Blocks for up to [`COMMIT_TIMEOUT`] for a commit that is under
/// way. Does nothing if the logger has ended already.
pub(crate) fn finish(shared: &Shared) {
    let _one = shared.finishing();
    if shared.is_closed() {
        return;
    }
    shared.seal();
    let in_doubt = shared.gate.close(COMMIT_TIMEOUT);
    // Only behind the gate: before it, the writer could commit and settle what is given up here.
    let unsaved = shared.buffer.abandon();
    let persisted_before = match *shared.phases().borrow() {
        Phase::Closing {
            persisted_before, ..
        } => persisted_before,
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
    // Before the result, so that a caller of `shutdown` finds the line in the log when its call
    // returns. A subscriber that panics must not keep the result back: every call of `shutdown`
    // would wait for it for ever.
    log_without_panic(|| {
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
        false => Err(LoggerError::Unsaved {
            report: Box::new(report),
            cause,
        }),
    });
}

/// Polls a future, and turns a panic into an error with the message of the panic. The future must
/// not be polled afterwards, unless it is restarted first.
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
