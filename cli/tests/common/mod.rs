//! Helpers of the program's tests: the binary, and helpers of the library's tests.
#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "no test uses all helpers, and `expect` would fail in a test that does"
)]

pub mod binary;
#[path = "../../../tests/common/db.rs"]
mod db;
#[path = "../../../tests/common/service.rs"]
pub mod service;

pub use db::*;
