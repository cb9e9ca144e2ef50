//! Helpers that the tests of the library share.
#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "no test uses all helpers, and `expect` would fail in a test that does"
)]

mod db;
#[cfg(feature = "failpoints")]
mod fault;
#[cfg(feature = "http")]
pub mod service;
pub mod ways;

pub use db::*;
#[cfg(feature = "failpoints")]
pub use fault::FaultDb;
