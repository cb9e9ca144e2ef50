//! From a call to a commit.
//!
//! Two actors and one blocking thread share one state. A record passes them in this order:
//!
//! | file | runs on | does |
//! | --- | --- | --- |
//! | `accept` | the thread of the caller | checks the date, runs the redactor, pushes |
//! | `buffer` | the thread of the caller | counts the record, enqueues it, wakes the writer if a batch is complete |
//! | `actor` | the arbiter of the logger | takes records that other actors sent out of its mailbox, and pushes them |
//! | `control` | the arbiter of the logger | owns timers, requests and the progress of a shutdown |
//! | `schedule` | the arbiter of the logger | chooses the next job |
//! | `writer` | a thread that may block | runs the job: commits, rolls up, purges |
//! | `supervisor` | the arbiter of the logger | restarts `control`, and makes the report at the end |
//!
//! State that must not be lost is in `state`, which outlives each of the others: an actor may be
//! dropped in any line, a job may panic in any line. `phase` and `counters` are parts of it. `thread` and `backoff` serve the actors;
//! `losses` and `retention` serve the writer; `manual_purge` is a purge without a logger.

mod accept;
pub(crate) mod actor;
pub(crate) mod backoff;
pub(crate) mod buffer;
pub(crate) mod control;
mod counters;
pub(crate) mod losses;
#[cfg(feature = "program")]
pub(crate) mod manual_purge;
pub(crate) mod messages;
pub(crate) mod phase;
pub(crate) mod retention;
pub(crate) mod schedule;
pub(crate) mod state;
pub(crate) mod supervisor;
#[cfg(test)]
mod tests;
pub(crate) mod thread;
pub(crate) mod writer;
