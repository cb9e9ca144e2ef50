//! From a call to a commit.

pub(crate) mod actor;
pub(crate) mod backoff;
pub(crate) mod buffer;
pub(crate) mod control;
pub(crate) mod losses;
#[cfg(feature = "program")]
pub(crate) mod manual_purge;
pub(crate) mod messages;
pub(crate) mod retention;
pub(crate) mod schedule;
pub(crate) mod state;
pub(crate) mod supervisor;
#[cfg(test)]
mod tests;
pub(crate) mod thread;
pub(crate) mod writer;
