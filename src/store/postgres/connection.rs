//! One connection to the server, and its transactions.
//!
//! The limits of a transaction come with its `BEGIN`, by `SET LOCAL`: a pooler in transaction mode
//! gives each transaction another session, and one message carries all of them.

use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, Connection as _, TransactionManager as _};
use diesel::prelude::*;

use crate::database_url::DatabaseUrl;
use crate::error::StoreError;
use crate::store::postgres::errors::classify;

/// Longest time of one statement of a writer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a lock: longer than any chunk of work of another node.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two statements of a transaction, after which the server ends it. It frees
/// the locks of a node whose machine or network died without closing the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time of a connect, unless the URL has another one.
const CONNECT_TIMEOUT_S: u64 = 10;
/// The name under which the server lists the connections, unless the URL has another one.
const APPLICATION_NAME: &str = "failure-logger";

/// A connection that opens when it is needed, and opens once more after it was lost.
pub(crate) struct Connection {
    url: DatabaseUrl,
    conn: Option<PgConnection>,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Write,
    /// One consistent view. The server ends a statement after this time.
    Read(Duration),
    /// Holds a lock beside the statements of another connection, so that it is idle meanwhile.
    Hold,
}

impl Connection {
    /// Returns a connection that is not open yet.
    pub(crate) fn new(url: DatabaseUrl) -> Self {
        Self { url, conn: None }
    }

    /// Runs `work` in a transaction. Rolls it back after an error, and then closes the connection
    /// unless only rows are at fault: what is left of a failed connection or session is unknown.
    pub(crate) fn transact<T, E>(
        &mut self,
        purpose: Purpose,
        work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<StoreError> + KeepsConnection,
    {
        // Out of its place meanwhile, so that a panic in `work` drops it with its transaction.
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => connect(&self.url)?,
        };
        let failed = |error: diesel::result::Error| E::from(classify(&error));
        AnsiTransactionManager::begin_transaction_sql(&mut conn, &begin(purpose))
            .map_err(failed)?;
        let result = match work(&mut conn) {
            Ok(done) => AnsiTransactionManager::commit_transaction(&mut conn)
                .map(|()| done)
                .map_err(failed),
            Err(error) => {
                match AnsiTransactionManager::rollback_transaction(&mut conn) {
                    Ok(()) if error.keeps_connection() => self.conn = Some(conn),
                    Ok(()) | Err(_) => {}
                }
                return Err(error);
            }
        };
        if result.is_ok() {
            self.conn = Some(conn);
        }
        result
    }
}

/// An error after which a connection may be used for the next transaction.
pub(crate) trait KeepsConnection {
    fn keeps_connection(&self) -> bool;
}

impl KeepsConnection for StoreError {
    fn keeps_connection(&self) -> bool {
        match self {
            Self::Split(_) | Self::GiveUp(_) => true,
            Self::Retry(_) | Self::Reopen(_) | Self::Corrupt(_) => false,
        }
    }
}

fn begin(purpose: Purpose) -> String {
    let (mode, statement, lock, idle) = match purpose {
        Purpose::Write => (
            "READ COMMITTED",
            STATEMENT_TIMEOUT,
            LOCK_TIMEOUT,
            IDLE_TIMEOUT,
        ),
        // A report computes between two statements.
        Purpose::Read(timeout) => (
            "REPEATABLE READ READ ONLY",
            timeout,
            LOCK_TIMEOUT,
            timeout.max(IDLE_TIMEOUT),
        ),
        // Waits for the migrations of another node.
        Purpose::Hold => (
            "READ COMMITTED",
            STATEMENT_TIMEOUT,
            STATEMENT_TIMEOUT,
            Duration::ZERO,
        ),
    };
    format!(
        "BEGIN ISOLATION LEVEL {mode}; SET LOCAL statement_timeout = {}; \
         SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
        // 0 would be no timeout.
        milliseconds(statement).max(1),
        milliseconds(lock),
        milliseconds(idle),
    )
}

/// Returns whole milliseconds, as the server's settings accept them: up to 2^31.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Connects. The error has no password.
fn connect(url: &DatabaseUrl) -> Result<PgConnection, StoreError> {
    PgConnection::establish(&with_defaults(url.reveal())).map_err(|error| {
        let cause = url.scrub(error.to_string().trim_end());
        StoreError::Retry(format!("cannot connect to {url}: {cause}"))
    })
}

/// Adds a name and a timeout, where the URL has none. libpq reads its environment only for what the
/// URL lacks, so that `PGAPPNAME` still counts, by the word `fallback`.
fn with_defaults(url: &str) -> String {
    let mut url = url.to_owned();
    let add = |url: &mut String, name: &str, value: &str| {
        if !url.contains(&format!("{name}=")) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={value}"));
        }
    };
    add(&mut url, "fallback_application_name", APPLICATION_NAME);
    add(&mut url, "connect_timeout", &CONNECT_TIMEOUT_S.to_string());
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_gets_a_name_and_a_timeout_where_it_has_none() {
        for (url, expected) in [
            (
                "postgres://h/d",
                "postgres://h/d?fallback_application_name=failure-logger&connect_timeout=10",
            ),
            (
                "postgres://h/d?connect_timeout=1",
                "postgres://h/d?connect_timeout=1&fallback_application_name=failure-logger",
            ),
        ] {
            assert_eq!(with_defaults(url), expected);
        }
    }

    #[test]
    fn error_of_a_connect_names_the_server_without_its_password() {
        for url in [
            "postgres://u:secret@127.0.0.1:1/d",
            "postgres://u:secret%zz@127.0.0.1:1/d",
            "postgres://u:secret@127.0.0.1:port/d?password=secret",
        ] {
            let url = DatabaseUrl::from(url.to_owned());
            let StoreError::Retry(error) = connect(&url).err().unwrap() else {
                panic!("not a remedy that retries")
            };
            assert!(error.contains("u:***@127.0.0.1"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
