//! Chooses the next job of the writer: a pure function of the state of the control actor.
//!
//! The choice is apart from the actor, so that the tests can run it for every situation without
//! timers and threads. Its order of precedence:
//!
//! 1. Nothing begins beside another job, in a pause, or after the commit gate is closed.
//! 2. A flush and maintenance take turns if both are wanted. A steady stream of records can
//!    therefore starve no purge, and a long purge delays a flush by one chunk.
//! 3. Among maintenance, requests come first, because a caller waits for each of them. A roll-up
//!    comes before a purge, because a purge may only delete rows that were rolled up.
//! 4. A shutdown runs flushes and requests alone. The next start does the rest.

/// The state of the control actor when it chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    pub(crate) writer: Writer,
    pub(crate) records: Records,
    /// The timer found records or attempts to write.
    pub(crate) is_due: bool,
    /// A caller waits for a flush, and its records are in the buffer.
    pub(crate) is_awaited: bool,
    pub(crate) shutdown: Shutdown,
    /// A caller waits for a status to be set, or for a deletion.
    pub(crate) has_requests: bool,
    /// A minute has passed since the last roll-up, or many rows wait for one.
    pub(crate) roll_up_is_due: bool,
    /// An hour or `cleanup_every` flushes have passed since the last purge, or it has chunks left.
    pub(crate) purge_is_due: bool,
    /// If flushes and maintenance are both wanted, they take turns.
    pub(crate) turn: Turn,
}

/// Permission to begin a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    Free,
    /// A job is on the blocking thread: one at a time.
    Busy,
    /// A job failed, and the pause after it is not over. Not even a full batch begins a job in it.
    Paused,
    /// The commit gate is closed: nothing is committed any more.
    Ended,
}

/// Records in the buffer that no job has taken yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    None,
    Some,
    /// A batch or more.
    Batch,
}

/// Progress of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    None,
    /// Records that were sent before it are taken out of the mailbox.
    TakesMailbox,
    /// The buffered records are committed.
    Drains,
}

/// The kind of job that has the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Flush,
    Maintenance,
}

/// The next job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: the end of a job or of a pause leads to the next decision.
    Wait,
    Flush,
    /// The first of the requests.
    Request,
    RollUp,
    Purge,
    /// Nothing is wanted. The caller that completes the next batch wakes the actor, or the timer
    /// does. The actor must mark the writer as asleep before it relies on that.
    Sleep,
}

/// Returns the job to begin in `situation`. Has no state and no side effect.
pub(crate) fn next(situation: Situation) -> Next {
    let Situation {
        writer,
        records,
        is_due,
        is_awaited,
        shutdown,
        has_requests,
        roll_up_is_due,
        purge_is_due,
        turn,
    } = situation;
    match writer {
        Writer::Busy | Writer::Paused | Writer::Ended => return Next::Wait,
        Writer::Free => {}
    }
    let shutdown_flushes = match shutdown {
        Shutdown::None => false,
        // Without a record to write, it waits for the end of the mailbox.
        Shutdown::TakesMailbox => records != Records::None,
        Shutdown::Drains => true,
    };
    // `Records::Some` alone is no reason: records below a batch wait for the timer, so that a quiet
    // system commits once an interval and not once a record.
    let flush = records == Records::Batch || is_due || is_awaited || shutdown_flushes;
    // A shutdown leaves maintenance to the next start, and keeps its promises to callers.
    let maintenance = match shutdown {
        _ if has_requests => Some(Next::Request),
        Shutdown::None if roll_up_is_due => Some(Next::RollUp),
        Shutdown::None if purge_is_due => Some(Next::Purge),
        Shutdown::None | Shutdown::TakesMailbox | Shutdown::Drains => None,
    };
    match (flush, maintenance, turn) {
        (true, None, _) | (true, Some(_), Turn::Flush) => Next::Flush,
        (_, Some(job), _) => job,
        (false, None, _) => Next::Sleep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Situation = Situation {
        writer: Writer::Free,
        records: Records::None,
        is_due: false,
        is_awaited: false,
        shutdown: Shutdown::None,
        has_requests: false,
        roll_up_is_due: false,
        purge_is_due: false,
        turn: Turn::Flush,
    };
    const ALL: Situation = Situation {
        records: Records::Batch,
        is_due: true,
        is_awaited: true,
        has_requests: true,
        roll_up_is_due: true,
        purge_is_due: true,
        ..IDLE
    };

    #[test]
    fn no_job_begins_beside_another_in_a_pause_or_after_the_end() {
        for writer in [Writer::Busy, Writer::Paused, Writer::Ended] {
            for shutdown in [Shutdown::None, Shutdown::TakesMailbox, Shutdown::Drains] {
                assert_eq!(
                    next(Situation {
                        writer,
                        shutdown,
                        ..ALL
                    }),
                    Next::Wait,
                    "{writer:?} {shutdown:?}"
                );
            }
        }
    }

    #[test]
    fn each_reason_alone_leads_to_its_job() {
        for (situation, expected) in [
            (IDLE, Next::Sleep),
            (
                Situation {
                    records: Records::Some,
                    ..IDLE
                },
                Next::Sleep,
            ),
            (
                Situation {
                    records: Records::Batch,
                    ..IDLE
                },
                Next::Flush,
            ),
            (
                Situation {
                    is_due: true,
                    ..IDLE
                },
                Next::Flush,
            ),
            (
                Situation {
                    is_awaited: true,
                    ..IDLE
                },
                Next::Flush,
            ),
            (
                Situation {
                    has_requests: true,
                    ..IDLE
                },
                Next::Request,
            ),
            (
                Situation {
                    roll_up_is_due: true,
                    ..IDLE
                },
                Next::RollUp,
            ),
            (
                Situation {
                    purge_is_due: true,
                    ..IDLE
                },
                Next::Purge,
            ),
            (
                Situation {
                    shutdown: Shutdown::TakesMailbox,
                    ..IDLE
                },
                Next::Sleep,
            ),
            (
                Situation {
                    shutdown: Shutdown::TakesMailbox,
                    records: Records::Some,
                    ..IDLE
                },
                Next::Flush,
            ),
            (
                Situation {
                    shutdown: Shutdown::Drains,
                    ..IDLE
                },
                Next::Flush,
            ),
        ] {
            assert_eq!(next(situation), expected, "{situation:?}");
            // The turn does not matter, because nothing else is wanted.
            assert_eq!(
                next(Situation {
                    turn: Turn::Maintenance,
                    ..situation
                }),
                expected,
                "{situation:?}"
            );
        }
    }

    #[test]
    fn flushes_and_maintenance_take_turns_and_requests_come_first() {
        let maintenance = Situation {
            turn: Turn::Maintenance,
            ..ALL
        };
        assert_eq!(next(ALL), Next::Flush);
        assert_eq!(next(maintenance), Next::Request);
        assert_eq!(
            next(Situation {
                has_requests: false,
                ..maintenance
            }),
            Next::RollUp
        );
        assert_eq!(
            next(Situation {
                has_requests: false,
                roll_up_is_due: false,
                ..maintenance
            }),
            Next::Purge
        );
    }

    #[test]
    fn shutdown_serves_requests_and_leaves_other_maintenance() {
        for shutdown in [Shutdown::TakesMailbox, Shutdown::Drains] {
            let all = Situation {
                shutdown,
                turn: Turn::Maintenance,
                ..ALL
            };
            assert_eq!(next(all), Next::Request);
            assert_eq!(
                next(Situation {
                    has_requests: false,
                    ..all
                }),
                Next::Flush
            );
        }
    }
}
