//! The thread of a logger that runs by itself.
//!
//! The thread runs an actix system of its own, so that an application without actix can use the
//! logger, and one that stops its own system does not stop the logger. It ends when the logger has
//! ended and the last messages are answered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use actix::{Actor as _, Addr};

use crate::error::StartError;
use crate::pipeline::actor::FailureLogger;

/// Turns of the event loop after the end of the logger, of about sixty tasks each. Replies to
/// callers and the rest of the mailbox need a few.
const MIN_LAST_TURNS: u32 = 16;
/// Longest time of these turns. The actor needs microseconds, unless senders never pause.
const LAST_TURNS: Duration = Duration::from_secs(1);

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
            Ok(addr) => Ok((
                addr,
                Self {
                    id: thread.thread().id(),
                    ended,
                },
            )),
            Err(_) => Err(StartError::Thread(std::io::Error::other("no event loop"))),
        }
    }
}

fn run_thread(logger: FailureLogger, ready: &SyncSender<Addr<FailureLogger>>, alive: Sender<()>) {
    let shared = Arc::clone(&logger.shared);
    // If it panics, the logger is dropped, which commits what was accepted.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        actix_rt::System::new().block_on(async {
            let addr = logger.start();
            // Weak: an address would keep the actor from seeing that no caller has one.
            let actor = addr.downgrade();
            // The caller waits for it, so it is there.
            let _ = ready.send(addr);
            let _ = shared.result().await;
            // Callers that wait for the end of the thread return now: the result is published, and
            // the rest is for the actor alone.
            drop(alive);
            // Tasks of this system respond to callers, and the actor counts what is in its mailbox
            // before it ends. A disabled actor ends with its last address.
            let deadline = Instant::now() + LAST_TURNS;
            let has_ended = || !actor.upgrade().is_some_and(|addr| addr.connected());
            let mut turns = 0;
            while turns < MIN_LAST_TURNS
                || shared.config.enabled && !has_ended() && Instant::now() < deadline
            {
                tokio::task::yield_now().await;
                turns += 1;
            }
        });
    }));
}
