//! The vocabulary: what a failure is, and what is counted.

pub(crate) mod deletion;
pub(crate) mod entry;
pub(crate) mod failure;
pub(crate) mod histogram;
pub(crate) mod outcome;
pub(crate) mod query_status;
pub(crate) mod record;
pub(crate) mod source;
pub mod stats;
pub(crate) mod time;
