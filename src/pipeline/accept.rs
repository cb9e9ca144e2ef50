//! The way in: what happens to a record or an attempt on the thread of its caller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

#[cfg(feature = "http")]
use uuid::Uuid;

use crate::model::entry::{Entry, Observed, Origin};
use crate::model::record::RetrievalFailureRecord;
use crate::model::source::Labels;
use crate::model::stats::{DropReason, LogOutcome};
use crate::model::time::Timestamp;
use crate::pipeline::buffer::Buffer;
use crate::pipeline::phase::Admission;
use crate::pipeline::state::Shared;
use crate::rollup::{Attempt, Series};

/// Stands in for text whose redaction failed.
const NOT_REDACTED: &str = "[the redactor panicked]";

impl Shared {
    /// Takes a record from a handle. `at`: the moment that its caller gives; `None`: now.
    pub(crate) fn log(
        &self,
        record: RetrievalFailureRecord,
        at: Option<Timestamp>,
        origin: Origin,
    ) -> LogOutcome {
        match self.refusal() {
            Some(DropReason::Disabled) => LogOutcome::Dropped(DropReason::Disabled),
            Some(reason) => self.count_drop(reason),
            None => self.accept(record, &self.moment(at), origin),
        }
    }

    /// Counts an attempt that a monitor saw end, and logs `failure` if it is one. `at`: the moment
    /// that its caller gives; `None`: now. Returns [`TooOld`](DropReason::TooOld) for an attempt
    /// that is not counted.
    ///
    /// A failure between both retentions is counted, and dropped: the attempt would outlive it
    /// anyway.
    pub(crate) fn observe(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        failure: impl FnOnce() -> Option<Observed>,
    ) -> LogOutcome {
        if at.is_some() || self.refusal().is_some() {
            return self.observe_dated(series, attempt, at, failure());
        }
        // The fast path: an attempt that ends now needs no comparison with the retention. The
        // coarse clock costs a quarter of the exact one, and its error of some milliseconds matters
        // to no minute's count.
        let now = Timestamp::coarse_now();
        self.attempts.push(series, attempt, now);
        if let Some(failure) = failure() {
            self.accept_observed(failure, &Moment::now(now));
        }
        LogOutcome::Queued
    }

    /// Counts an attempt that ended at another time, or comes after the end.
    #[inline(never)]
    fn observe_dated(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        failure: Option<Observed>,
    ) -> LogOutcome {
        if self.refusal().is_some() {
            if let Some(Observed { record, unmeasured }) = failure {
                self.log(
                    record,
                    at,
                    Origin {
                        is_observed: true,
                        event_id: None,
                        unmeasured,
                    },
                );
            }
            return LogOutcome::Queued;
        }
        let moment = self.moment(at);
        if !moment.attempt_too_old {
            self.note_redated(&moment);
            self.attempts.add(series, attempt, moment.at);
        }
        if let Some(failure) = failure {
            self.accept_observed(failure, &moment);
        }
        if moment.attempt_too_old {
            LogOutcome::Dropped(DropReason::TooOld)
        } else {
            LogOutcome::Queued
        }
    }

    /// Takes a failure that a monitor saw. Out of line, so that an attempt that is no failure does
    /// not pay for the record.
    ///
    /// A drop is counted by its reason and not returned: the attempt counts in any case.
    #[inline(never)]
    fn accept_observed(&self, Observed { record, unmeasured }: Observed, moment: &Moment) {
        self.accept(
            record,
            moment,
            Origin {
                is_observed: true,
                event_id: None,
                unmeasured,
            },
        );
    }

    /// Takes a failure that a monitor saw from a caller who retries it, and counts it if it was
    /// taken, or is too old only to be logged.
    ///
    /// The attempt is counted after the record was taken. In the other order a caller that meets a
    /// full buffer and retries would count its attempt with each try.
    #[cfg(feature = "http")]
    pub(crate) fn offer_observed(
        &self,
        series: &Series,
        attempt: &Attempt,
        at: Option<Timestamp>,
        Observed { record, unmeasured }: Observed,
        event_id: Option<Uuid>,
    ) -> Result<(), DropReason> {
        let moment = self.moment(at);
        let origin = Origin {
            is_observed: true,
            event_id,
            unmeasured,
        };
        match self
            .refusal()
            .map_or_else(|| self.take(record, &moment, origin), Err)
        {
            Ok(()) => {}
            Err(DropReason::TooOld) => {
                self.count_drop(DropReason::TooOld);
                if moment.attempt_too_old {
                    return Err(DropReason::TooOld);
                }
            }
            Err(reason) => return Err(reason),
        }
        self.note_redated(&moment);
        self.attempts.add(series, attempt, moment.at);
        Ok(())
    }

    /// Returns the moment of a record that its caller dates `at`, and what the retention makes of
    /// it. The one rule for dates, on every way in.
    #[inline]
    fn moment(&self, at: Option<Timestamp>) -> Moment {
        // A call's own moment is right by definition, and costs no comparison.
        at.map_or_else(
            || Moment::now(Timestamp::now()),
            |claimed| self.dated(claimed),
        )
    }

    /// Returns the moment of a record that claims to be of `claimed`: the date that it gets, and if
    /// each retention would delete it at once.
    fn dated(&self, claimed: Timestamp) -> Moment {
        let now = Timestamp::now();
        let at = self.retention.dated(claimed, now);
        let (failures, attempts) = self.retention.cutoffs(now);
        Moment {
            at,
            redated: at != claimed,
            failure_too_old: at < failures,
            attempt_too_old: at < attempts,
        }
    }

    /// Counts a record or attempt that was taken, if it has another date than its caller gave it.
    fn note_redated(&self, moment: &Moment) {
        if moment.redated {
            self.counters.redated.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Returns the reason for which the handle admits no records; `None` if it admits them.
    ///
    /// Acquire and Release order nothing else: the seal of the buffer decides about a call that
    /// comes at the same time as a shutdown. Jobs that must not begin after a shutdown ask behind
    /// the writer's lock.
    pub(crate) fn refusal(&self) -> Option<DropReason> {
        match self.admission() {
            Admission::Open | Admission::Unavailable => None,
            Admission::Disabled => Some(DropReason::Disabled),
            Admission::Closed => Some(DropReason::Closed),
            Admission::Unusable => Some(DropReason::Unavailable),
        }
    }

    /// Takes a record from the actor's mailbox. It comes in until the buffer is sealed, and may use
    /// the places that calls may not.
    pub(crate) fn accept_sent(&self, record: RetrievalFailureRecord) -> LogOutcome {
        // `Closed` is left out, because a shutdown takes what was sent before it out of the
        // mailbox.
        if let Some(reason @ (DropReason::Disabled | DropReason::Unavailable)) = self.refusal() {
            return if reason == DropReason::Disabled {
                LogOutcome::Dropped(reason)
            } else {
                self.count_drop(reason)
            };
        }
        match self.take_into(
            record,
            &self.moment(None),
            Origin::LOGGED,
            Buffer::push_sent,
        ) {
            Ok(()) => LogOutcome::Queued,
            Err(reason) => self.count_drop(reason),
        }
    }

    /// Takes a record, unless it is too old or the buffer is full.
    fn accept(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
    ) -> LogOutcome {
        match self.take(record, moment, origin) {
            Ok(()) => LogOutcome::Queued,
            Err(reason) => self.count_drop(reason),
        }
    }

    /// Takes a record from a caller who retries it. One that is not taken is not lost, and not
    /// counted, unless it is too old: it will be so at any later time.
    pub(crate) fn offer(
        &self,
        record: RetrievalFailureRecord,
        at: Option<Timestamp>,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let moment = self.moment(at);
        let taken = self
            .refusal()
            .map_or_else(|| self.take(record, &moment, origin), Err);
        if taken == Err(DropReason::TooOld) {
            self.count_drop(DropReason::TooOld);
        }
        taken
    }

    #[inline]
    fn take(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
    ) -> Result<(), DropReason> {
        self.take_into(record, moment, origin, Buffer::push)
    }

    /// Takes a record by `push`, after the checks that cost least: the seal, the date, and then the
    /// redactor.
    ///
    /// # Errors
    ///
    /// [`DropReason::Closed`], [`DropReason::TooOld`], or that of `push`. Nothing is counted.
    #[inline]
    fn take_into(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        // A shortcut that spares the redactor's work. The admission below checks the seal once
        // more.
        if self.buffer.is_sealed() {
            return Err(DropReason::Closed);
        }
        if moment.failure_too_old {
            return Err(DropReason::TooOld);
        }
        if tracing::level_enabled!(tracing::Level::DEBUG) {
            self.push_traced(record, moment, origin, push)
        } else {
            self.redact_and_push(record, moment, origin, push)
        }
    }

    /// Pushes within a span. A subscriber that panics costs the span, not the record.
    #[cold]
    fn push_traced(
        &self,
        record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        let enter = || tracing::debug_span!("memory.retrieval_failure.log").entered();
        let span = catch_unwind(AssertUnwindSafe(enter));
        let pushed = self.redact_and_push(record, moment, origin, push);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(span))) {
            std::mem::forget(panic);
        }
        pushed
    }

    /// Runs the redactor and pushes. The redactor comes before the buffer, so that no thread but
    /// the caller's ever sees the text that it takes out.
    #[inline]
    fn redact_and_push(
        &self,
        mut record: RetrievalFailureRecord,
        moment: &Moment,
        origin: Origin,
        push: impl FnOnce(&Buffer, Entry) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        self.redact(&mut record);
        push(
            &self.buffer,
            Entry {
                record,
                logged_at: moment.at,
                origin,
            },
        )
        // The buffer of an unavailable logger is full because nothing empties it. A larger one
        // would not help, so that the caller gets the other reason.
        .map_err(|reason| match reason {
            DropReason::BufferFull if self.admission() == Admission::Unavailable => {
                DropReason::Unavailable
            }
            reason => reason,
        })?;
        // That of a monitor was counted with its attempt.
        if !origin.is_observed {
            self.note_redated(moment);
        }
        Ok(())
    }

    /// Counts a drop, and returns it as the outcome of the call.
    pub(crate) fn count_drop(&self, reason: DropReason) -> LogOutcome {
        self.buffer.count_drop(reason);
        LogOutcome::Dropped(reason)
    }

    /// Runs the redactor of the application. After a panic every field that may hold text of a
    /// person is replaced or emptied, because the redactor may have stopped anywhere.
    fn redact(&self, record: &mut RetrievalFailureRecord) {
        let Some(redact) = &self.config.redactor else {
            return;
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| redact(record))) {
            // Dropping what was thrown may panic as well.
            std::mem::forget(panic);
            record.query_text = NOT_REDACTED.into();
            record.error_context = record.error_context.as_ref().map(|_| NOT_REDACTED.into());
            record.edge_types = None;
            record.conversation_id = None;
            record.source = None;
            record.labels = Labels::default();
        }
    }
}

/// The moment of a record or attempt.
struct Moment {
    at: Timestamp,
    /// `true` if its caller gave another one, which lies in the future.
    redated: bool,
    /// `true` if the retention of failures would delete it at once.
    failure_too_old: bool,
    /// `true` if the retention of attempts would.
    attempt_too_old: bool,
}

impl Moment {
    /// Returns the moment of a call, which is neither too old nor in the future.
    fn now(now: Timestamp) -> Self {
        Self {
            at: now,
            redated: false,
            failure_too_old: false,
            attempt_too_old: false,
        }
    }
}
