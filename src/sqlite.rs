//! The schema of the log, for applications that use diesel on the same database.
//!
//! The log's migrations are recorded in a table of their own, `memory_retrieval_migrations`. The application keeps
//! `__diesel_schema_migrations` for its own migrations, which it runs, reverts and redoes as if the log were not there.

pub use crate::error::MigrationError;
pub use crate::store::migrate::{MIGRATIONS, Migrations, run_migrations};
