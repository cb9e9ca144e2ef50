//! Routes for operators.

pub(crate) mod delete;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod stats;
