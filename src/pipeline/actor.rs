//! The actor: takes records from its mailbox into the buffer, and leaves the mailbox unread while
//! the buffer is full.
//!
//! Two actors share one thread. [`FailureLogger`] only takes records; [`Control`] owns timers, jobs
//! and retries. An actix actor that leaves its mailbox unread runs none of its own timers.
//!
//! # States of the mailbox
//!
//! actix offers one control over a mailbox: an actor that waits for a future (`ctx.wait`) reads
//! nothing. `try_send` then meets a full mailbox and returns the record to its sender. `do_send`
//! and clones of the address ignore the capacity, so that a mailbox that is never read could grow
//! without bound.
//!
//! | from | event | to |
//! | --- | --- | --- |
//! | `Open` | the buffer has no room for all | `Closing`: marks the end of the mailbox and reads up to the mark |
//! | `Closing`, `ForcedRead` | the mark is reached, the buffer has room | `Open` |
//! | `Closing`, `ForcedRead` | the mark is reached, the buffer is full | `Closed`: reads nothing until there is room, or until the next read is due |
//! | `Closing` | the buffer has no room for the mailbox either, and the next read is due | `ForcedRead`: reads on, and drops what has no room |
//! | `Closed` | the next read is due, the buffer is still full | `ForcedRead`, up to a new mark |
//! | `Closed`, `Closing` | the buffer has room | `Open` |
//! | any | the shutdown has taken what was sent before it | `Ending`, then `Ended` |
//!
//! Places of the buffer above `call_limit` are kept for the mailbox, so that the records of a
//! mailbox that closes find room in most cases.
//!
//! # Panics
//!
//! actix drops an actor whose handler panics, and with it every record in the mailbox. Each handler
//! and each wait therefore runs in [`FailureLogger::guard`], which catches the panic and begins the
//! next incarnation after a pause, in place.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::dev::channel::{AddressReceiver, channel as mailbox};
use actix::fut::{ActorFuture, ActorFutureExt as _};
use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, MessageResult, Running,
    Supervised,
};
use tokio::time::Instant;

use crate::pipeline::backoff::{Restarts, panic_message, pause_before_restart};
use crate::pipeline::control::Control;
use crate::pipeline::messages::{MailboxEnd, MailboxMarker, RoomWanted, Shutdown};
use crate::pipeline::supervisor::{self, DrainOnDrop};
use crate::pipeline::writer;

use crate::config::LoggerConfig;
use crate::error::{ConfigError, StartError};
use crate::model::record::RetrievalFailureRecord;
use crate::model::stats::{DropReason, LogOutcome};
use crate::pipeline::buffer::Room;
use crate::pipeline::phase::Phase;
use crate::pipeline::state::{Shared, Writer};
use crate::store;
use crate::store::backend::Backend;

/// Records taken from the mailbox before timers and other actors of the thread get a turn, and the
/// time after which they get one. actix itself reads a mailbox until it is empty, which it never is
/// while senders are faster.
const RECORDS_PER_TURN: u32 = 256;
const LONGEST_TURN: Duration = Duration::from_millis(2);
/// Capacity of the mailbox while the buffer is full. The smallest one that there is: actix reads 0
/// as unbounded.
const CLOSED_CAPACITY: usize = 1;
/// First and longest time for which the mailbox is left unread. `do_send` ignores every capacity:
/// only reading on bounds the memory that it takes.
const FIRST_READ_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_READ_PAUSE: Duration = Duration::from_secs(2);
/// Records in one look, above which the next look comes as soon as the first.
const FEW_RECORDS: u64 = 1024;

/// Records that the actor takes after the end of the logger, at most. Senders that never pause
/// could otherwise keep the mailbox from becoming empty.
const MAX_RECORDS_AFTER_END: u64 = 65_536;

/// The actor that keeps records of failed retrievals. Send it a [`RetrievalFailureRecord`] with
/// `try_send`, or give its address away as a `Recipient<RetrievalFailureRecord>`.
///
/// [`new`](Self::new) returns it for [`Actor::start`], [`Actor::start_in_arbiter`],
/// [`Supervisor::start`] or the system registry; [`spawn`](Self::spawn) runs it on a thread of its
/// own. A panic in a handler, timer or future of the logger is caught, and the next incarnation
/// begins in place: actix itself would drop the actor.
///
/// # Mailbox
///
/// The mailbox holds [`mailbox_capacity`](crate::LoggerConfig::mailbox_capacity) records, and one
/// more for each further clone of the address, because actix gives each sender a place. While the
/// buffer is full the actor leaves the mailbox unread, so that `try_send` returns
/// [`SendError::Full`] with the record. A record that is handed back is not received; one in the
/// mailbox is received when the actor takes it.
///
/// - Share one address, by reference or in an `Arc`: a clone for each send defeats the bound.
/// - `do_send` ignores the bound. The actor takes what it forces in, within seconds even if the
///   buffer stays full, and drops as [`BufferFull`](crate::DropReason::BufferFull) what has no
///   room. While a full buffer has no place left for the mailbox either, this includes some records
///   that `try_send` had taken: those that the mailbox holds when the actor looks at it, every two
///   seconds.
/// - `send(record).await` returns the [`LogOutcome`](crate::LogOutcome). With actix 0.13, a `send`
///   that meets a full mailbox may never resolve, whatever its timeout: its future registers no
///   waker. Await [`log_within`](crate::LoggerHandle::log_within) instead.
///
/// [`Supervisor::start`]: actix::Supervisor::start
/// [`SendError::Full`]: actix::prelude::SendError::Full
pub struct FailureLogger {
    pub(crate) shared: Arc<Shared>,
    pub(crate) control: Addr<Control>,
    /// Mailbox of the control actor, until that is started.
    control_mailbox: Option<AddressReceiver<Control>>,
    /// Commits what was accepted when both actors are dropped before the end of the logger.
    drain: Arc<DrainOnDrop>,
    intake: Intake,
    next_read: NextRead,
    restarts: Restarts,
    /// Records taken in this turn, and when it began.
    turn: (u32, Instant),
    /// Records taken from the mailbox after the end of the logger.
    records_after_end: u64,
    /// `true` if the event loop is being dropped: no timer and no future will ever run again, so
    /// that the actor waits for nothing, and flushes by itself when the buffer is full.
    is_ending: bool,
    /// `true` if a flush failed while the event loop was being dropped. The store is then not tried
    /// for each record, which would take a statement's timeout each time.
    has_failed: bool,
    /// `true` once the system's supervisor restarted this actor. It would do so for ever after the
    /// end.
    is_supervised: bool,
    /// The slot in which existing handles find the address, once the actor is started.
    pub(crate) address: Weak<OnceLock<Addr<Self>>>,
}

/// State of the mailbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intake {
    /// Read as records come.
    Open,
    /// The buffer is nearly full: what was in the mailbox is read, up to the end that was marked.
    Closing,
    /// The same, whether or not the buffer has room: records without room are dropped.
    ForcedRead,
    /// Unread.
    Closed,
    /// A shutdown has taken what was sent before. What came meanwhile is read.
    Ending,
    /// Unread until the shutdown is done, when what came later is counted.
    Ended,
}

/// The next read of a closed mailbox, and the progress of the present one.
struct NextRead {
    /// Time between two reads. Doubles while few records come, so that a mailbox with nothing in it
    /// is hardly read.
    pause: Duration,
    at: Instant,
    /// Number of the end that was marked last. A mark with an earlier number belongs to a read that
    /// is over, and is ignored.
    end: u64,
    /// Records taken since.
    records: u64,
}

impl FailureLogger {
    /// Returns the actor for a validated configuration, with the database open.
    pub(crate) fn open(
        config: LoggerConfig,
        database: Box<dyn Backend>,
    ) -> Result<Self, StartError> {
        let store = database.open()?;
        let logger = Self::with_writer(config, Writer::new(database, Some(store)));
        writer::begin_retention(&logger.shared);
        Ok(logger)
    }

    /// Returns the actor with a database that could not be opened yet.
    pub(crate) fn unopened(
        config: LoggerConfig,
        database: Box<dyn Backend>,
        error: &StartError,
    ) -> Self {
        let logger = Self::with_writer(config, Writer::new(database, None));
        logger.shared.unavailable(&error.to_string());
        logger.shared.failed(error.to_string());
        logger
    }

    /// Returns an actor that drops every record, because its settings are not accepted.
    pub(crate) fn unconfigured(error: &ConfigError) -> Self {
        // There is nothing to wait for at the end.
        let config = LoggerConfig::default().shutdown_timeout(Duration::from_millis(1));
        let mut logger = Self::with_writer(config, Writer::new(store::in_memory(), None));
        logger.control_mailbox = None;
        logger.shared.unusable(&error.to_string());
        logger
    }

    /// Returns the actor of a new logger with `writer`.
    fn with_writer(config: LoggerConfig, writer: Writer) -> Self {
        Self::with_shared(Arc::new(Shared::new(config, writer)))
    }

    /// Returns the actor of a logger with this state. It reserves the mailbox's part of the buffer,
    /// because its address can be used from now on.
    pub(crate) fn with_shared(shared: Arc<Shared>) -> Self {
        // Used without its bound: a request that waits for its response must not be handed back.
        // The mailbox of the control actor exists from the beginning, so that a handle can send a
        // request before the actor is started.
        let (control, control_mailbox) = mailbox(1);
        let now = Instant::now();
        shared.buffer.reserve(shared.config.mailbox_reserve());
        Self {
            control: Addr::new(control),
            control_mailbox: Some(control_mailbox),
            drain: Arc::new(DrainOnDrop(Arc::clone(&shared))),
            intake: Intake::Open,
            next_read: NextRead {
                pause: FIRST_READ_PAUSE,
                at: now,
                end: 0,
                records: 0,
            },
            restarts: Restarts::new(&shared.config),
            turn: (0, now),
            records_after_end: 0,
            is_ending: false,
            has_failed: false,
            is_supervised: false,
            address: Weak::new(),
            shared,
        }
    }

    /// Opens or closes the mailbox as the buffer has room, and leaves it unread while there is
    /// none.
    fn regulate(&mut self, ctx: &mut Context<Self>) {
        if self.shared.mailbox_has_ended.load(Ordering::Acquire) {
            self.end(ctx);
            return;
        }
        match (self.intake, self.shared.buffer.room()) {
            (Intake::Open, Room::ForAll)
            | (Intake::ForcedRead | Intake::Closed | Intake::Ending | Intake::Ended, _) => {}
            (Intake::Open, Room::ForMailbox | Room::None) => self.close(ctx),
            (Intake::Closing, Room::None) => self.wait_for(Room::ForMailbox, ctx),
            (Intake::Closing, Room::ForMailbox | Room::ForAll) => {}
        }
    }

    /// Gives the mailbox its capacity back.
    fn open_mailbox(&mut self, ctx: &mut Context<Self>) {
        self.intake = Intake::Open;
        self.next_read.pause = FIRST_READ_PAUSE;
        self.shared.mailbox_is_full.store(false, Ordering::Release);
        ctx.set_mailbox_capacity(self.shared.config.mailbox_places());
    }

    /// Leaves room in the mailbox for one record of each sender, and reads what is in it.
    fn close(&mut self, ctx: &mut Context<Self>) {
        self.intake = Intake::Closing;
        self.shared.mailbox_is_full.store(true, Ordering::Release);
        ctx.set_mailbox_capacity(CLOSED_CAPACITY);
        self.next_read.at = Instant::now() + self.next_read.pause;
        self.mark_end(ctx);
        self.control.do_send(RoomWanted);
        self.regulate(ctx);
    }

    /// Marks the present end of the mailbox, by a message to the actor itself. A mailbox keeps its
    /// order, so that the mark comes back when everything that is in front of it was taken.
    fn mark_end(&mut self, ctx: &mut Context<Self>) {
        self.next_read.end += 1;
        self.next_read.records = 0;
        ctx.address().do_send(MailboxEnd(self.next_read.end));
    }

    /// Ends a read: everything that was in the mailbox when its end was marked is taken.
    fn reached_end(&mut self, ctx: &mut Context<Self>) {
        if self.intake == Intake::Ending {
            self.intake = Intake::Ended;
            self.wait_for_end(ctx);
            return;
        }
        if self.shared.buffer.room() == Room::ForAll {
            self.open_mailbox(ctx);
            return;
        }
        // Many records in one read were forced in by `do_send`. They take memory that no bound
        // holds, so that the next read comes soon.
        let pause = if self.next_read.records > FEW_RECORDS {
            FIRST_READ_PAUSE
        } else {
            2 * self.next_read.pause
        };
        self.next_read.pause = pause.min(LONGEST_READ_PAUSE);
        self.next_read.at = Instant::now() + self.next_read.pause;
        self.intake = Intake::Closed;
        self.wait_for(Room::ForAll, ctx);
    }

    /// Leaves the mailbox unread until the buffer has room, or it is time to look.
    fn wait_for(&mut self, room: Room, ctx: &mut Context<Self>) {
        let (shared, at) = (Arc::clone(&self.shared), self.next_read.at);
        let wait = async move {
            tokio::select! {
                biased;
                () = shared.buffer.wait_for(room) => {}
                () = tokio::time::sleep_until(at) => {}
            }
        };
        self.wait(ctx, wait, Self::resume);
    }

    /// Decides at the end of a wait, when the buffer has room or the next read is due.
    fn resume(&mut self, ctx: &mut Context<Self>) {
        match (self.intake, self.shared.buffer.room()) {
            (Intake::Closing | Intake::Closed, Room::ForAll) => self.open_mailbox(ctx),
            (Intake::Closing, Room::ForMailbox) if Instant::now() < self.next_read.at => {}
            (Intake::Closing, _) => self.intake = Intake::ForcedRead,
            (Intake::Closed, _) => {
                self.intake = Intake::ForcedRead;
                self.mark_end(ctx);
                // The last job may have ended before it made enough room.
                self.control.do_send(RoomWanted);
            }
            (Intake::Open | Intake::ForcedRead | Intake::Ending | Intake::Ended, _) => {}
        }
    }

    /// Hands records back to their senders until the shutdown is done.
    fn end(&mut self, ctx: &mut Context<Self>) {
        match self.intake {
            Intake::Open | Intake::Closing | Intake::ForcedRead | Intake::Closed => {
                self.intake = Intake::Ending;
                self.shared.mailbox_is_full.store(true, Ordering::Release);
                ctx.set_mailbox_capacity(CLOSED_CAPACITY);
                self.mark_end(ctx);
            }
            Intake::Ending if self.shared.buffer.room() == Room::None => {
                self.next_read.at = Instant::now() + LONGEST_READ_PAUSE;
                self.wait_for(Room::ForMailbox, ctx);
            }
            Intake::Ending | Intake::Ended => {}
        }
    }

    /// Leaves the mailbox unread until its records must be counted, or the shutdown is done.
    fn wait_for_end(&mut self, ctx: &mut Context<Self>) {
        let shared = Arc::clone(&self.shared);
        let wait = async move {
            let mut phases = shared.phases();
            tokio::select! {
                () = shared.mailbox_counted.notified() => {}
                _ = phases.wait_for(|phase| matches!(phase, Phase::Closed { .. })) => {}
            }
        };
        self.wait(ctx, wait, |_, _| {});
    }

    /// Gives timers and other actors a turn after some records, or some time. actix empties the
    /// mailbox first, however fast others fill it.
    fn yield_turn(&mut self, ctx: &mut Context<Self>) {
        let (taken, began) = &mut self.turn;
        if *taken == 0 {
            *began = Instant::now();
        }
        *taken += 1;
        if *taken >= RECORDS_PER_TURN || began.elapsed() >= LONGEST_TURN {
            // The wait ends at the next poll. Until then the arbiter runs whatever else is ready.
            *taken = 0;
            self.wait(ctx, tokio::task::yield_now(), |_, _| {});
        }
    }

    /// Takes nothing from the mailbox until `future` ends, then runs `done`.
    fn wait(
        &mut self,
        ctx: &mut Context<Self>,
        future: impl Future<Output = ()> + 'static,
        done: fn(&mut Self, &mut Context<Self>),
    ) {
        let wait = Wait(Box::pin(future))
            .map(move |(), actor: &mut Self, ctx: &mut Context<Self>| actor.guard(ctx, done));
        ctx.wait(wait);
    }

    /// Runs `work`, unless the event loop is being dropped. A panic begins the next incarnation
    /// after a pause, in place.
    fn guard(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self, &mut Context<Self>)) {
        if self.is_ending {
            return;
        }
        // AssertUnwindSafe: the work changes the state of the mailbox alone, and the next
        // incarnation opens the mailbox and compares it with the room in the buffer.
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self, ctx))) else {
            return;
        };
        let pause = self
            .restarts
            .failed(&self.shared, Some(panic_message(&*panic)));
        // Dropping what was thrown may panic as well.
        std::mem::forget(panic);
        let shared = Arc::clone(&self.shared);
        let wait = async move { pause_before_restart(&shared, pause).await };
        self.wait(ctx, wait, |actor, ctx| {
            actor.restarts.restarted();
            actor.open_mailbox(ctx);
            actor.regulate(ctx);
        });
    }

    /// Begins the shutdown that no handle asked for: nothing can be sent any more.
    fn end_without_senders(&mut self, ctx: &mut Context<Self>) {
        if !ctx.connected() && self.shared.refusal().is_none() {
            self.shared
                .close(std::time::Instant::now() + self.shared.config.shutdown_timeout);
            self.control.do_send(Shutdown);
        }
    }
}

impl Actor for FailureLogger {
    type Context = Context<Self>;

    /// Starts the actor as actix does, except that the mailbox has its capacity from the first
    /// message on.
    fn start(self) -> Addr<Self> {
        // `Actor::start` of actix begins with its own capacity of 16 and changes it with the first
        // poll. A sender that is faster than that poll would meet the wrong bound.
        let (_sender, receiver) = mailbox(self.shared.config.mailbox_places());
        Context::with_receiver(receiver).run(self)
    }

    /// Begins, also after a restart by actix's own supervisor.
    fn started(&mut self, ctx: &mut Context<Self>) {
        let addr = ctx.address();
        if let Some(address) = self.address.upgrade() {
            let _ = address.set(addr.clone());
        }
        if !self.shared.config.enabled {
            return;
        }
        if let Some(mailbox) = self.control_mailbox.take() {
            supervisor::start(
                &self.shared,
                mailbox,
                addr.clone().recipient().downgrade(),
                Arc::clone(&self.drain),
            );
        }
        if self.is_supervised && self.shared.is_closed() {
            // The actor counts records that are sent after the end, until no address is left.
            return;
        }
        self.open_mailbox(ctx);
        self.regulate(ctx);
        let mut phases = self.shared.phases();
        let closed = async move {
            let _ = phases
                .wait_for(|phase| matches!(phase, Phase::Closed { .. }))
                .await;
        };
        let end = UntilClosed(Box::pin(closed)).map(|(), _: &mut Self, ctx: &mut Context<Self>| {
            // actix polls this after it found the mailbox empty: nothing is in it but what was sent
            // since then.
            ctx.terminate();
        });
        ctx.spawn(end);
    }

    /// Ends because the event loop is being dropped: what is in the mailbox is taken, and committed
    /// when both actors are dropped.
    fn stopping(&mut self, _: &mut Context<Self>) -> Running {
        if self.is_ending || self.shared.is_closed() {
            return Running::Stop;
        }
        self.is_ending = true;
        // Continue, so that actix delivers what is left in the mailbox before it drops the actor.
        Running::Continue
    }
}

impl Supervised for FailureLogger {
    fn restarting(&mut self, _: &mut Context<Self>) {
        self.is_supervised = true;
    }
}

impl Handler<RetrievalFailureRecord> for FailureLogger {
    type Result = MessageResult<RetrievalFailureRecord>;

    fn handle(&mut self, record: RetrievalFailureRecord, ctx: &mut Context<Self>) -> Self::Result {
        if self.is_ending && !self.has_failed && self.shared.buffer.room() == Room::None {
            // The only writer that is left.
            // On the thread of the arbiter, which blocks: no timer and no other task will run on it
            // again.
            let flushed = catch_unwind(AssertUnwindSafe(|| writer::flush(&self.shared)));
            self.has_failed = !matches!(flushed, Ok(Ok(())));
        }
        // Outside of `guard`: a panic of the redactor is caught deeper, and the record must be
        // accounted for before anything else can fail.
        let outcome = self.shared.accept_sent(record);
        self.next_read.records += 1;
        // After the report nothing counts these records but the counter of drops. The actor ends
        // after so many, because senders that never pause would keep it for ever.
        if outcome == LogOutcome::Dropped(DropReason::Closed) && self.shared.is_closed() {
            self.records_after_end += 1;
            if self.records_after_end >= MAX_RECORDS_AFTER_END {
                ctx.terminate();
            }
        }
        self.guard(ctx, |actor, ctx| {
            failpoint!("actor-record");
            actor.regulate(ctx);
            actor.yield_turn(ctx);
        });
        MessageResult(outcome)
    }
}

impl Handler<MailboxMarker> for FailureLogger {
    type Result = ();

    fn handle(&mut self, MailboxMarker(reached): MailboxMarker, ctx: &mut Context<Self>) {
        // A caller that stopped waiting has dropped its receiver.
        let _ = reached.send(());
        self.guard(ctx, |actor, ctx| match actor.intake {
            Intake::Ended => actor.wait_for_end(ctx),
            _ => actor.regulate(ctx),
        });
    }
}

impl Handler<MailboxEnd> for FailureLogger {
    type Result = ();

    fn handle(&mut self, MailboxEnd(end): MailboxEnd, ctx: &mut Context<Self>) {
        if end == self.next_read.end
            && matches!(
                self.intake,
                Intake::Closing | Intake::ForcedRead | Intake::Ending
            )
        {
            self.guard(ctx, Self::reached_end);
        }
    }
}

/// A future for which the mailbox is left unread, unless the event loop is being dropped.
struct Wait(Pin<Box<dyn Future<Output = ()>>>);

impl ActorFuture<FailureLogger> for Wait {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut FailureLogger,
        _: &mut Context<FailureLogger>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        if actor.is_ending {
            Poll::Ready(())
        } else {
            self.0.as_mut().poll(cx)
        }
    }
}

/// Ends when the logger has. Until then it sees when no address is left: actix wakes the actor for
/// it.
struct UntilClosed(Pin<Box<dyn Future<Output = ()>>>);

impl ActorFuture<FailureLogger> for UntilClosed {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut FailureLogger,
        ctx: &mut Context<FailureLogger>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        actor.end_without_senders(ctx);
        // A handler that asked for a wait left the mailbox unread, and actix polls this all the
        // same. It polls this again after the wait.
        if ctx.waiting() {
            return Poll::Pending;
        }
        self.0.as_mut().poll(cx)
    }
}
